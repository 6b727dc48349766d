package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/capture"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
	"github.com/vmfabric/vmfabric/internal/backoff"
)

const (
	// resolveIn bounds the wait for the other node's MAC address.
	resolveIn   = time.Second
	resolveLook = time.Millisecond
)

// stragglers are the waits before further reads of a replay buffer, for packets
// whose route was chosen before the diversion.
var stragglers = []time.Duration{2 * time.Millisecond, 8 * time.Millisecond}

// prepareDiversions makes everything that a diversion needs but its routes.
func (d *Dataplane) prepareDiversions() error {
	if d.moves.diverting.Load() {
		return nil
	}
	if err := d.moves.rtnl.ensureRules(d.divertedRules()); err != nil {
		return err
	}
	if _, err := d.moves.openSender(); err != nil {
		return err
	}
	d.moves.diverting.Store(true)
	return nil
}

// findDiversions takes over the diversions of an earlier process.
func (d *Dataplane) findDiversions(ctx context.Context) error {
	found, err := d.Diverted(ctx)
	if err != nil || len(found) == 0 || !d.features.has(policyRules) {
		return err // without policy routing they have no effect
	}
	d.moves.diverting.Store(true)
	return d.moves.rtnl.ensureRules(d.divertedRules())
}

// Divert implements [fabric.Dataplane]. The kernel looks up diversions in a table of
// their own, before the main one; routing daemons do not see it. A diversion
// disappears with the link to the other node.
func (d *Dataplane) Divert(ctx context.Context, ports []fabric.Port, to fabric.Node) (fabric.Diversion, error) {
	called := time.Now()
	failed := prefixErrors{verb: "divert"}
	var prefixes []netip.Prefix
	for _, p := range ports {
		for _, prefix := range p.NIC.Prefixes() {
			if to.Source(prefix.Addr()).IsValid() {
				prefixes = append(prefixes, prefix)
				continue
			}
			failed.add(prefix, fmt.Errorf("node %s has no %s address to send it to; give it one in the cluster file", to.Name, familyName(prefix.Addr())))
		}
	}
	diverted, err := d.divert(prefixes, to, &failed)
	now := time.Now()
	done := fabric.Diversion{At: now, Done: now}
	if err != nil {
		return done, errors.Join(err, failed.err())
	}
	if slices.ContainsFunc(diverted, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		failed.addOther(d.forgetRoutes6())
	}
	err = d.replay(ctx, ports, diverted, to, called, &done)
	if err != nil {
		err = fmt.Errorf("send again to node %s: %w", to.Name, err)
	}
	return done, errors.Join(err, failed.err())
}

// divert makes the routes, and returns the prefixes whose route is made.
func (d *Dataplane) divert(prefixes []netip.Prefix, to fabric.Node, failed *prefixErrors) (diverted []netip.Prefix, err error) {
	// The routes have no effect without the rules. Record has made these, as a rule.
	if !d.moves.diverting.Load() {
		if err := d.moves.rtnl.ensureRules(d.divertedRules()); err != nil {
			return nil, err
		}
		d.moves.diverting.Store(true)
	}
	msgs := make([]netlink.Message, len(prefixes))
	for i, p := range prefixes {
		msgs[i] = diversionMessage(unix.RTM_NEWROUTE, netlink.Create|netlink.Replace, p, to.Source(p.Addr()))
	}
	errs, err := d.moves.rtnl.Batch(msgs...)
	if err != nil {
		return nil, fmt.Errorf("divert: %w", err)
	}
	for i, p := range prefixes {
		switch err := errs[i]; rtnl.Errno(err) {
		case 0:
			diverted = append(diverted, p)
		case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EINVAL:
			failed.add(p, fmt.Errorf("node %s (%s) is no neighbour on one of the links: %w; put both nodes on one link", to.Name, to.Source(p.Addr()), err))
		default:
			failed.add(p, err)
		}
	}
	return diverted, nil
}

func familyName(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// diversionMessage makes a request about a diversion. The kernel finds the link by
// itself, and refuses a next hop that is no neighbour: a router in between might
// send the packet back.
func diversionMessage(typ netlink.HeaderType, flags netlink.HeaderFlags, p netip.Prefix, via netip.Addr) netlink.Message {
	head := rtnl.RtMsg(familyOf(p.Addr()), uint8(p.Bits()), routeProtocol, unix.RT_SCOPE_UNIVERSE, 0)
	head[4] = fabric.DivertedTable
	if typ == unix.RTM_DELROUTE {
		head[6], head[7] = unix.RT_SCOPE_NOWHERE, unix.RTN_UNSPEC // of any scope and type
	}
	return rtnl.Message(typ, flags|netlink.Acknowledge, head, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.RTA_DST, p.Addr().AsSlice())
		ae.Uint32(unix.RTA_PRIORITY, fabric.PortMetric)
		if via.IsValid() {
			ae.Bytes(unix.RTA_GATEWAY, via.AsSlice())
		}
	})
}

// Return implements [fabric.Dataplane].
func (d *Dataplane) Return(_ context.Context, prefixes ...netip.Prefix) error {
	failed := prefixErrors{verb: "end the diversion of"}
	msgs := make([]netlink.Message, len(prefixes))
	for i, p := range prefixes {
		msgs[i] = diversionMessage(unix.RTM_DELROUTE, 0, p, netip.Addr{})
	}
	errs, err := d.moves.rtnl.Batch(msgs...)
	if err != nil {
		return fmt.Errorf("end diversion: %w", err)
	}
	for i, err := range errs {
		if n := rtnl.Errno(err); err != nil && n != unix.ESRCH && n != unix.ENOENT {
			failed.add(prefixes[i], err)
		}
	}
	return failed.err()
}

// Diverted implements [fabric.Dataplane].
func (d *Dataplane) Diverted(context.Context) ([]netip.Prefix, error) {
	prefixes := []netip.Prefix{}
	for _, family := range d.host.families() {
		head := rtnl.RoutesOf(family, routeProtocol)
		head[4] = fabric.DivertedTable
		replies, err := d.moves.rtnl.Do(rtnl.Message(unix.RTM_GETROUTE, netlink.Dump, head, nil))
		if err != nil && rtnl.Errno(err) != unix.ENOENT { // no such table yet
			return nil, fmt.Errorf("list diversions: %w", err)
		}
		for _, reply := range replies {
			if r, err := parseTableRoute(reply.Data); err == nil && r.table == fabric.DivertedTable && r.proto == routeProtocol {
				prefixes = append(prefixes, r.prefix)
			}
		}
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return prefixes, nil
}

// replay sends the frames that the guests may not have taken to the node where they
// run, and counts them in done. Those of the gateway stay: they are this node's own,
// such as answers by DHCP, and another node takes none that come from an address of
// its own.
func (d *Dataplane) replay(ctx context.Context, ports []fabric.Port, diverted []netip.Prefix, to fabric.Node, called time.Time, done *fabric.Diversion) error {
	buffers := d.moves.replayBuffers(ports)
	if len(buffers) == 0 || len(diverted) == 0 {
		return nil
	}
	out, err := d.moves.openSender()
	if err != nil || out == nil {
		return err
	}
	var own []netip.Addr
	for _, p := range ports {
		own = append(own, p.Gateway.IPv4, p.Gateway.IPv6)
	}
	fits := func(f capture.Frame) bool {
		to := f.Destination()
		return !slices.Contains(own, f.Source()) && slices.ContainsFunc(diverted, func(p netip.Prefix) bool { return p.Contains(to) })
	}
	since := make([]time.Time, len(buffers))
	for i, r := range buffers {
		since[i] = r.ReplayFrom(called)
	}
	hops := map[uint16]capture.Hop{}
	var failed error
	once := func() {
		for i, r := range buffers {
			for _, f := range r.Take(since[i], fits) {
				source, destination, bytes := f.Source(), f.Destination(), f.Bytes() // sending may change the frame
				err := d.replayFrame(ctx, out, hops, f, to)
				if err == nil {
					done.Resent++
					done.Done = time.Now()
					d.accounting.sentAgain(diverted, source, destination, bytes)
				} else if failed == nil {
					failed = err
				}
			}
		}
	}
	once()
	for _, wait := range stragglers {
		if !backoff.Sleep(ctx, wait) {
			return errors.Join(failed, ctx.Err())
		}
		once()
	}
	return failed
}

// replayFrame sends a frame. hops caches the way to the node by the type of frame;
// a hop without a link says that there is none.
func (d *Dataplane) replayFrame(ctx context.Context, out *capture.Sender, hops map[uint16]capture.Hop, f capture.Frame, to fabric.Node) error {
	typ := f.Type()
	h, known := hops[typ]
	if !known {
		var err error
		h, err = d.hop(ctx, to.Source(f.Destination()))
		hops[typ] = h
		if err != nil {
			return err
		}
	}
	if h.Index == 0 {
		return errNoHop
	}
	return out.Send(ctx, h, f)
}

var errNoHop = errors.New("no way to the node")

// hop finds the way to a neighbour. It asks for the MAC address if the kernel does
// not know it yet.
func (d *Dataplane) hop(ctx context.Context, a netip.Addr) (capture.Hop, error) {
	r := d.moves.rtnl
	replies, err := r.Do(routeRequest(a, 0))
	if err != nil {
		return capture.Hop{}, fmt.Errorf("route to %s: %w", a, err)
	}
	var index int32
	for _, reply := range replies {
		for _, i := range routeLinks(reply.Data) {
			index = i
		}
	}
	l, err := r.linkByIndex(index)
	if err != nil {
		return capture.Hop{}, fmt.Errorf("link to %s: %w", a, err)
	}
	switch {
	case l.hardware == unix.ARPHRD_NONE:
		return capture.Hop{Index: index, Bare: true}, nil
	case l.hardware != unix.ARPHRD_ETHER:
		return capture.Hop{}, fmt.Errorf("link %s to %s is neither Ethernet nor without a header", l.name, a)
	}
	mac, err := r.resolve(ctx, a, index)
	if err != nil {
		return capture.Hop{}, err
	}
	return capture.Hop{Index: index, From: l.mac, To: mac}, nil
}

// resolve returns the MAC address of a neighbour.
func (r *socket) resolve(ctx context.Context, a netip.Addr, index int32) (fabric.MAC, error) {
	const valid = unix.NUD_PERMANENT | unix.NUD_NOARP | unix.NUD_REACHABLE | unix.NUD_PROBE | unix.NUD_STALE | unix.NUD_DELAY
	ctx, cancel := context.WithTimeout(ctx, resolveIn)
	defer cancel()
	for asked := false; ; asked = true {
		n, err := r.neighbour(a, index)
		if err != nil {
			return fabric.MAC{}, fmt.Errorf("neighbour %s: %w", a, err)
		}
		if n.state&valid != 0 && !n.mac.IsZero() {
			return n.mac, nil
		}
		if !asked {
			if _, err := r.Do(rtnl.Message(unix.RTM_NEWNEIGH, netlink.Acknowledge|netlink.Create, ndmsg(a, index, unix.NUD_NONE, unix.NTF_USE), func(ae *netlink.AttributeEncoder) {
				ae.Bytes(unix.NDA_DST, a.AsSlice())
			})); err != nil {
				return fabric.MAC{}, fmt.Errorf("neighbour %s: %w", a, err)
			}
		}
		if !backoff.Sleep(ctx, resolveLook) {
			return fabric.MAC{}, fmt.Errorf("neighbour %s does not answer; see whether it is up: ip neigh show %[1]s", a)
		}
	}
}

// neighbour returns the kernel's entry of a neighbour, or the zero neighbour.
func (r *socket) neighbour(a netip.Addr, index int32) (neighbour, error) {
	replies, err := r.Do(rtnl.Message(unix.RTM_GETNEIGH, 0, ndmsg(a, index, 0, 0), func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.NDA_DST, a.AsSlice())
	}))
	switch rtnl.Errno(err) {
	case 0:
		if err != nil {
			return neighbour{}, err
		}
		for _, reply := range replies {
			if n, ok := parseNeighbour(reply.Data); ok {
				return n, nil
			}
		}
		return neighbour{}, nil
	case unix.ENOENT:
		return neighbour{}, nil
	case unix.EOPNOTSUPP: // before Linux 5.0
		all, err := r.neighbours(familyOf(a), index)
		for _, n := range all {
			if n.addr == a {
				return n, nil
			}
		}
		return neighbour{}, err
	}
	return neighbour{}, err
}
