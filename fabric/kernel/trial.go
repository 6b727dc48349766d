package kernel

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/capture"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
	"github.com/vmfabric/vmfabric/internal/backoff"
	"github.com/vmfabric/vmfabric/internal/packets"
)

// A trial sends packets of its own through the node's forwarding path, between a
// link of the underlay and a throw-away port, and lets nf_tables trace them.
//
//	fabric_net147 === fabric_peer147     a veth pair; the first is a port to every filter (group 147)
//
// The trial sends a packet from a guest into the peer; it comes in from the port.
// It sends a packet to a guest out of the port; tc-mirred(8) redirects it from the
// peer to the ingress of the underlay's link, as if it had come from the wire. An
// nftables table of the trial marks both when they come in, before all other
// chains, so that a routing table of the trial routes them whatever address they
// have. It drops them after all other chains: none leaves the node, and conntrack
// keeps none.
//
//	table inet vmfabric-trial {
//	  chain arrive  { type filter hook prerouting  priority -2147483648; <packet> meta mark set 147 meta nftrace set 1 }
//	  chain forward { type filter hook forward     priority -2147483648; }
//	  chain leave   { type filter hook postrouting priority  2147483646; <packet> drop }
//	                  (hook input for packets to the node itself)
//	  chain answers { type filter hook output      priority -2147483648; <reset or ICMP error about packet> drop }
//	}
const (
	// No VM has as many ports. The package's configuration tells NetworkManager and
	// systemd-networkd to leave links of such names alone.
	trialPort  = "fabric_net147"
	trialPeer  = "fabric_peer147"
	trialAlias = "vmfabric-trial"
	trialName  = "vmfabric-trial" // of the nftables table
	trialMark  = 147

	// The trace of a packet is complete before the call that sends it returns,
	// unless the node is too busy. The trial waits longer for a packet that it
	// sends a second time. Once that was in vain, it does so no more.
	trialWait     = 100 * time.Millisecond
	trialPatience = time.Second
)

// Ports of the packets, TCP and UDP. No program on the node has the source port.
// Filters that let anything pass let packets to the destination port pass.
const trialFrom, trialTo = 61147, 443

// remotes are hosts of the Internet for which nobody has a special rule (root name
// servers). No packet gets to them.
var remotes = map[uint8]netip.Addr{
	unix.AF_INET: netip.MustParseAddr("198.41.0.4"), unix.AF_INET6: netip.MustParseAddr("2001:503:ba3e::2:30"),
}

// way is one way of a guest's packets through the node.
type way struct {
	family  uint8
	inbound bool // to the guest
	proto   uint8
	link    string // of the underlay
}

// outcome is the end of a packet of a trial.
type outcome struct {
	passed bool
	steps  []traceStep // the steps of the packet filters, in order
}

// dropper returns the step that dropped a packet, or the zero step.
func (o outcome) dropper() traceStep {
	if n := len(o.steps); n > 0 && o.steps[n-1].drops() {
		return o.steps[n-1]
	}
	return traceStep{}
}

// trial is a trial that is under way.
type trial struct {
	rtnl       *socket
	port, peer link
	out        *os.File // a packet socket that sends
	trace      *netlink.Conn
	patience   time.Duration
}

// openTrial makes the throw-away port and begins to listen.
func openTrial(ctx context.Context, r *socket, ipv6 bool) (t *trial, err error) {
	t = &trial{rtnl: r, patience: trialPatience}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	if err = r.removeTrialLink(); err != nil {
		return t, err
	}
	if err = r.addVeth(trialPort, trialPeer, trialMAC, 0, txQueueLength); err != nil {
		return t, fmt.Errorf("make a veth pair: %w; load veth", err)
	}
	if t.port, err = r.linkByName(trialPort); err == nil {
		t.peer, err = r.linkByName(trialPeer)
	}
	if err != nil {
		return t, err
	}
	up := func(l link) netlink.Message {
		return rtnl.Message(unix.RTM_SETLINK, netlink.Acknowledge, rtnl.IfInfoMsg(l.index, unix.IFF_UP|unix.IFF_NOARP, unix.IFF_UP|unix.IFF_NOARP), nil)
	}
	errs, err := r.Batch(
		rtnl.Message(unix.RTM_SETLINK, netlink.Acknowledge, rtnl.IfInfoMsg(t.port.index, 0, 0), func(ae *netlink.AttributeEncoder) {
			ae.String(unix.IFLA_IFALIAS, trialAlias)
			encodeSpec(ae, len(t.port.conf6) > 0, strictPath)
		}),
		up(t.port), up(t.peer))
	if err = errors.Join(append(errs, err)...); err != nil {
		return t, fmt.Errorf("set up %s: %w", trialPort, err)
	}
	if err = t.settings(ipv6); err != nil {
		return t, err
	}
	if t.out, err = capture.Socket(0); err != nil {
		return t, err
	}
	if t.trace, err = dialTrace(); err != nil {
		return t, err
	}
	if err = t.clsact(); err != nil {
		return t, err
	}
	return t, t.awaitCarriers(ctx)
}

// carrierLook is how often awaitCarriers looks.
const carrierLook = 2 * time.Millisecond

// awaitCarriers waits until both ends of the veth pair can send. The end that came up
// first had no carrier then. The kernel drops what it sends without a word until a
// worker has noticed the carrier, which waits for everybody who changes links
// (linkwatch): for seconds on a busy node.
func (t *trial) awaitCarriers(ctx context.Context) error {
	for _, end := range []*link{&t.port, &t.peer} {
		for {
			l, err := t.rtnl.linkByIndex(end.index)
			if err != nil {
				return fmt.Errorf("link %s: %w", end.name, err)
			}
			if l.flags&unix.IFF_RUNNING != 0 {
				break
			}
			if !backoff.Sleep(ctx, carrierLook) {
				return fmt.Errorf("link %s cannot send yet (%w): too many links of this machine change; ask again later", end.name, ctx.Err())
			}
		}
	}
	return nil
}

// settings makes the port forward, and makes the kernel look up the reverse path of
// a packet by its mark. It disables IPv6 on the peer, which would otherwise send
// packets of its own.
func (t *trial) settings(ipv6 bool) error {
	all := []struct {
		path  string
		value int32
	}{{"ipv4/conf/" + trialPort + "/src_valid_mark", 1}}
	if ipv6 {
		all = append(all, []struct {
			path  string
			value int32
		}{
			{"ipv6/conf/" + trialPeer + "/disable_ipv6", 1},
			{"ipv6/conf/" + trialPort + "/disable_ipv6", 0},
			{"ipv6/conf/" + trialPort + "/forwarding", 1},
		}...)
	}
	for _, s := range all {
		if err := writeSysctl(s.path, s.value); err != nil {
			return err
		}
	}
	return nil
}

// close removes everything but the rule.
func (t *trial) close() error {
	var errs []error
	if t.trace != nil {
		errs = append(errs, t.trace.Close())
	}
	if t.out != nil {
		errs = append(errs, t.out.Close())
	}
	return errors.Join(append(errs, t.rtnl.removeTrial())...)
}

// removeTrial removes everything that a trial makes, also the remains of a killed
// process's trial. The rule stays, as those of moves do.
func (r *socket) removeTrial() error {
	c, err := openTables()
	if err == nil {
		table := &nftables.Table{Family: nftables.TableFamilyINet, Name: trialName}
		c.AddTable(table) // the deletion needs a table
		c.DelTable(table)
		err = c.Flush()
	}
	if unknownTo(err, noTables...) != nil {
		err = nil // there is no table then
	}
	return errors.Join(err, r.removeTrialLink(), r.removeTrialRoutes())
}

// removeTrialLink removes the throw-away port. A link of that name that is not the
// trial's is an error.
func (r *socket) removeTrialLink() error {
	l, err := r.linkByName(trialPort)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("link %s: %w", trialPort, err)
	}
	if unmarked := l.alias == "" && l.group == fabric.LinkGroup && l.mac == trialMAC; l.alias != trialAlias && !unmarked {
		return fmt.Errorf("link %s is there and %w; rename it, the agent needs the name", trialPort, fabric.ErrForeign)
	}
	_, err = r.Do(rtnl.Message(unix.RTM_DELLINK, netlink.Acknowledge, rtnl.IfInfoMsg(l.index, 0, 0), nil))
	if rtnl.Errno(err) == unix.ENODEV {
		return nil
	}
	return err
}

func (r *socket) removeTrialRoutes() error {
	var errs []error
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		head := rtnl.RoutesOf(family, routeProtocol)
		head[4] = fabric.TrialTable
		replies, err := r.Do(rtnl.Message(unix.RTM_GETROUTE, netlink.Dump, head, nil))
		if err != nil {
			continue // no such table, or no such family
		}
		var msgs []netlink.Message
		for _, reply := range replies {
			if have, err := parseTableRoute(reply.Data); err == nil && have.table == fabric.TrialTable && have.proto == routeProtocol {
				msgs = append(msgs, routeMessage(unix.RTM_DELROUTE, 0, have))
			}
		}
		if len(msgs) == 0 {
			continue
		}
		gone, err := r.Batch(msgs...)
		for _, e := range gone {
			if e != nil && rtnl.Errno(e) != unix.ESRCH {
				err = errors.Join(err, e)
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// course is the part of a trial for one link of the underlay and one family.
type course struct {
	family uint8
	link   link
	guest  netip.Addr // with service, an address of the node itself
	remote netip.Addr // destination of the guest's packets
	sender netip.Addr // source of the packets to the guest
	// service is the TCP port of the node to which the packets go; 0: they go to a guest.
	service uint16
}

// port is the destination port of a course's packets.
func (c course) port() uint16 { return cmp.Or(c.service, trialTo) }

// prepare makes the kernel route, mark, trace and finally drop the packets of a
// course.
func (t *trial) prepare(c course) error {
	if c.service != 0 {
		// The kernel's own table routes them.
		return t.intercept(c)
	}
	if err := t.rtnl.ensureRules([]rule{{family: c.family, priority: fabric.TrialRule, mark: trialMark, table: fabric.TrialTable}}); err != nil {
		return err
	}
	errs, err := t.rtnl.Batch(
		routeMessage(unix.RTM_NEWROUTE, netlink.Create|netlink.Replace, route{table: fabric.TrialTable, prefix: fabric.HostPrefix(c.guest), index: t.port.index}),
		routeMessage(unix.RTM_NEWROUTE, netlink.Create|netlink.Replace, route{table: fabric.TrialTable, prefix: fabric.HostPrefix(c.remote), index: c.link.index}),
	)
	if err = errors.Join(append(errs, err)...); err != nil {
		return fmt.Errorf("route by %s: %w", c.link.name, err)
	}
	return t.intercept(c)
}

// intercept makes nf_tables trace the packets of a course, and drop them in the end.
func (t *trial) intercept(c course) error {
	if err := t.table(c); err != nil {
		return fmt.Errorf("nftables table %s: %w", trialName, err)
	}
	return t.redirect(c)
}

// table makes the trial's table for a course.
func (t *trial) table(c course) error {
	n, err := openTables()
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: trialName}
	n.AddTable(table)
	n.DelTable(table)
	n.AddTable(table)
	first, last := nftables.ChainPriority(math.MinInt32), nftables.ChainPriority(math.MaxInt32-1)
	chain := func(name string, hook *nftables.ChainHook, at nftables.ChainPriority) *nftables.Chain {
		return n.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: &at})
	}
	arrive := chain("arrive", nftables.ChainHookPrerouting, first)
	end, pairs := nftables.ChainHookPostrouting, [][2]netip.Addr{{c.guest, c.remote}, {c.sender, c.guest}}
	if c.service != 0 {
		end, pairs = nftables.ChainHookInput, pairs[1:]
	}
	chain("forward", nftables.ChainHookForward, first)
	leave := chain("leave", end, last)
	answers := chain("answers", nftables.ChainHookOutput, first)
	add := func(chain *nftables.Chain, parts ...[]expr.Any) {
		n.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: slices.Concat(parts...)})
	}
	drop := []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, trialFrom), c.port())
	back := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, c.port()), trialFrom)
	for _, pair := range pairs {
		packet := slices.Concat(addresses(c.family, pair[0], pair[1], expr.PayloadBaseNetworkHeader, 0), payload(expr.PayloadBaseTransportHeader, 0, ports))
		add(arrive, packet, []expr.Any{
			&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(trialMark)},
			&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
			&expr.Immediate{Register: 1, Data: []byte{1}},
			&expr.Meta{Key: expr.MetaKeyNFTRACE, SourceRegister: true, Register: 1},
		})
		add(leave, packet, drop)
		answer := addresses(c.family, netip.Addr{}, pair[0], expr.PayloadBaseNetworkHeader, 0)
		add(answers, answer, payload(expr.PayloadBaseTransportHeader, 0, back), drop)
		// An ICMP error quotes the packet behind its header of eight bytes.
		add(answers, answer, addresses(c.family, pair[0], pair[1], expr.PayloadBaseTransportHeader, 8), drop)
	}
	return n.Flush()
}

// addresses matches source and destination of an IP header at an offset from a base.
func addresses(family uint8, from, to netip.Addr, base expr.PayloadBase, offset uint32) []expr.Any {
	proto, src, dst := byte(unix.NFPROTO_IPV4), uint32(12), uint32(16)
	if family == unix.AF_INET6 {
		proto, src, dst = unix.NFPROTO_IPV6, 8, 24
	}
	match := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
	}
	if from.IsValid() {
		match = append(match, payload(base, offset+src, from.AsSlice())...)
	}
	return append(match, payload(base, offset+dst, to.AsSlice())...)
}

func payload(base expr.PayloadBase, offset uint32, data []byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(data))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data},
	}
}

// send sends a packet on its way, and returns its outcome.
func (t *trial) send(ctx context.Context, c course, w way, wait time.Duration) (outcome, error) {
	into, mac := t.peer, t.port.mac // a frame that one end sends comes in at the other
	from, to := c.guest, c.remote
	if w.inbound {
		into, mac, from, to = t.port, t.peer.mac, c.sender, c.guest
	}
	frame := packets.Ethernet(mac, into.mac, protocolOf(c.family), trialPacket(w.proto, from, to, c.port()))
	addr := &unix.SockaddrLinklayer{Protocol: capture.NetworkUint16(protocolOf(c.family)), Ifindex: int(into.index), Halen: 6}
	copy(addr.Addr[:], mac[:])
	if err := drain(t.trace); err != nil {
		return outcome{}, err
	}
	if err := capture.Control(t.out, func(fd int) error { return unix.Sendto(fd, frame, 0, addr) }); err != nil {
		return outcome{}, fmt.Errorf("send: %w", err)
	}
	return follow(ctx, t.trace, wait)
}

func protocolOf(family uint8) uint16 {
	if family == unix.AF_INET {
		return unix.ETH_P_IP
	}
	return unix.ETH_P_IPV6
}

// trialPacket is a TCP SYN or a UDP datagram that dies at the next router.
func trialPacket(proto uint8, from, to netip.Addr, port uint16) []byte {
	const hops, id = 2, 147
	body := packets.TCP(from, to, trialFrom, port, packets.SYN, nil)
	if proto == unix.IPPROTO_UDP {
		body = packets.UDP(from, to, trialFrom, port, []byte("vmfabric"))
	}
	return packets.IP{Source: from, Destination: to, Protocol: proto, Hops: hops, Payload: body, Fragment: packets.DontFragment, ID: id}.Bytes()
}
