package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
)

// A port whose guest is about to arrive ([fabric.Port.Incoming]) has its routes in
// a table of their own, in which the kernel looks up only packets from the
// underlay. These packets wait in the port's queue. They do not wait for neighbour
// discovery: a guest that does not run answers nothing, and the kernel's queue
// there is short.
//
// The addresses of any guest whose MAC is known are permanent neighbours: the
// kernel asks nobody for them, drops none of them for other neighbours when its
// table is full, and the guest cannot give them another MAC.

// neighbours lists the changes that make the addresses behind a port neighbours at
// the guest's MAC. It lists none if the MAC is unknown.
func neighbours(p fabric.Port, index int32, state uint16) []change {
	if p.NIC.MAC.IsZero() {
		return nil
	}
	var changes []change
	for _, a := range p.NIC.Addresses {
		changes = append(changes, change{
			text: "neighbour " + a.String(),
			message: rtnl.Message(unix.RTM_NEWNEIGH, netlink.Acknowledge|netlink.Create|netlink.Replace, ndmsg(a, index, state, 0), func(ae *netlink.AttributeEncoder) {
				ae.Bytes(unix.NDA_DST, a.AsSlice())
				ae.Bytes(unix.NDA_LLADDR, p.NIC.MAC[:])
			}),
		})
	}
	return changes
}

// sameNeighbours reports whether two ports have the same neighbours.
func sameNeighbours(p, was fabric.Port) bool {
	return p.NIC.MAC == was.NIC.MAC && slices.Equal(p.NIC.Addresses, was.NIC.Addresses)
}

// staleNeighbours lists the changes that remove the neighbours that a port had and
// has no more.
func staleNeighbours(p, was fabric.Port, index int32) []change {
	if was.NIC.MAC.IsZero() {
		return nil
	}
	var changes []change
	for _, a := range was.NIC.Addresses {
		if !p.NIC.MAC.IsZero() && slices.Contains(p.NIC.Addresses, a) {
			continue
		}
		changes = append(changes, change{
			text: "remove neighbour " + a.String(), stale: true,
			message: rtnl.Message(unix.RTM_DELNEIGH, netlink.Acknowledge, ndmsg(a, index, 0, 0), func(ae *netlink.AttributeEncoder) {
				ae.Bytes(unix.NDA_DST, a.AsSlice())
			}),
		})
	}
	return changes
}

// introduce makes the addresses of a guest neighbours at the MAC that its first
// frame showed. The kernel then sends the packets that wait for them.
func (d *Dataplane) introduce(nic fabric.NIC, index int32) {
	var msgs []netlink.Message
	for _, c := range neighbours(fabric.Port{NIC: nic}, index, unix.NUD_STALE) {
		msgs = append(msgs, c.message)
	}
	if _, err := d.rtnl.Batch(msgs...); err != nil {
		d.log.Debug("neighbours not made known", "err", err) // then the kernel asks the guest for them
	}
}

// ndmsg is the fixed header of neighbour messages (rtnetlink(7)).
func ndmsg(a netip.Addr, index int32, state uint16, flags uint8) []byte {
	b := make([]byte, unix.SizeofNdMsg)
	b[0] = familyOf(a)
	putUint32(b[4:], uint32(index))
	putUint16(b[8:], state)
	b[10] = flags
	return b
}

func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// neighbour is an entry of the kernel's neighbour table.
type neighbour struct {
	index int32
	state uint16 // NUD_*
	addr  netip.Addr
	mac   fabric.MAC
}

func parseNeighbour(data []byte) (n neighbour, ok bool) {
	if len(data) < unix.SizeofNdMsg {
		return n, false
	}
	n.index, n.state = int32(nativeUint32(data[4:])), nativeUint16(data[8:])
	ad, err := netlink.NewAttributeDecoder(data[unix.SizeofNdMsg:])
	if err != nil {
		return n, false
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.NDA_DST:
			n.addr, _ = netip.AddrFromSlice(ad.Bytes())
		case unix.NDA_LLADDR:
			if b := ad.Bytes(); len(b) == 6 {
				n.mac = fabric.MAC(b)
			}
		}
	}
	return n, ad.Err() == nil && n.addr.IsValid()
}

// neighbours lists the neighbours on a link, or all of them if index is 0.
func (r *socket) neighbours(family uint8, index int32) ([]neighbour, error) {
	head := make([]byte, unix.SizeofNdMsg)
	head[0] = family
	replies, err := r.Do(rtnl.Message(unix.RTM_GETNEIGH, netlink.Dump, head, func(ae *netlink.AttributeEncoder) {
		if index != 0 {
			ae.Uint32(unix.NDA_IFINDEX, uint32(index)) // a kernel that does not know it lists all
		}
	}))
	if err != nil {
		return nil, err
	}
	var all []neighbour
	for _, reply := range replies {
		if n, ok := parseNeighbour(reply.Data); ok && (index == 0 || n.index == index) {
			all = append(all, n)
		}
	}
	return all, nil
}

// neighbourFaults lists the addresses of a guest that are not permanent neighbours
// among those of its port. The kernel notifies of all neighbours or of none, so the
// watcher checks them in rounds.
func neighbourFaults(p fabric.Port, have []neighbour) []string {
	if p.NIC.MAC.IsZero() {
		return nil
	}
	var faults []string
	for _, a := range p.NIC.Addresses {
		if !slices.ContainsFunc(have, func(n neighbour) bool {
			return n.addr == a && n.mac == p.NIC.MAC && n.state&unix.NUD_PERMANENT != 0
		}) {
			faults = append(faults, fmt.Sprintf("neighbour %s missing", a))
		}
	}
	return faults
}

// arriving lists the prefixes of guests that are about to arrive, by port, and of
// those that have just arrived. During a trial it includes the throw-away port.
func (d *Dataplane) arriving() map[string][]netip.Prefix {
	all := d.ports.arriving()
	if sources := d.forwarding.trials.exempted(); sources != nil {
		all[trialPort] = sources
	}
	return all
}

// attend opens the listeners of a port that was put, on the link that the port is
// now, and has its guest's requests answered.
func (d *Dataplane) attend(p fabric.Port, index int32) {
	d.responder.attend(p, index)
	here := d.watch.cache.put(index)
	err := d.moves.attend(p, index)
	if p.Listen {
		err = errors.Join(err, d.moves.listen(p, index, here))
	}
	text := ""
	if err != nil {
		text = fmt.Sprintf("frames of port %s are not listened to: %v", p.Name, err)
	}
	d.conditions.set("hear "+p.Name, text)
}

// Heard implements [fabric.Dataplane].
func (d *Dataplane) Heard() <-chan string { return d.moves.heard }

// Record implements [fabric.Dataplane].
func (d *Dataplane) Record(_ context.Context, port string, record bool) error {
	if !record {
		d.moves.endRecording(port)
		return nil
	}
	l, err := d.rtnl.linkByName(port)
	if err != nil {
		return fmt.Errorf("record port %s: %w", port, err)
	}
	if cluster, _, _, ours := fabric.ParseAlias(l.alias); !ours || cluster != d.cluster {
		return fmt.Errorf("record port %s: the link of that name is no port of this cluster: %w", port, os.ErrNotExist)
	}
	// Prepare a diversion now, while there is time for it.
	if err := d.prepareDiversions(); err != nil {
		return fmt.Errorf("record port %s: %w", port, err)
	}
	if err := d.moves.record(port, l.index); err != nil {
		return fmt.Errorf("record port %s: %w", port, err)
	}
	return nil
}
