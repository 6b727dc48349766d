package kernel_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/internal/packets"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// guestPools are the prefixes of guests in these tests.
var guestPools = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:100::/64")}

// guardedNode opens a dataplane that knows the pools.
func guardedNode(t *testing.T, guests fabric.Guests, known ...fabric.Port) *kernel.Dataplane {
	t.Helper()
	d, err := kernel.New(t.Context(), kernel.Config{
		Cluster: "lab", Guests: guests, Pools: guestPools, Known: known,
		Private: []netip.Prefix{netip.MustParsePrefix("10.10.0.0/24"), netip.MustParsePrefix("fd00:10:10::/64")},
	})
	require.NoError(t, err)
	labtest.Running(t, d)
	require.Empty(t, d.Diagnose(t.Context()))
	return d
}

// firewall reads the rules of both directions.
func firewall(t testing.TB, ingress, egress string, stateful bool) *fabric.Firewall {
	t.Helper()
	in, err := fabric.ParseFilter(ingress, fabric.Ingress)
	require.NoError(t, err)
	out, err := fabric.ParseFilter(egress, fabric.Egress)
	require.NoError(t, err)
	w := &fabric.Firewall{Ingress: in, Egress: out, Stateful: stateful}
	require.NoError(t, w.Validate())
	return w
}

// wire is a tap of which the test has the other end.
type wire struct {
	*os.File
	mac fabric.MAC // of the node's end
}

// beyond makes a link of the node behind which is everybody but its guests.
func beyond(t *testing.T) wire {
	t.Helper()
	ipIn(t, nil, "tuntap add out0 mode tap", "link set out0 up", "addr add 198.18.0.1/24 dev out0", "addr add fd00:18::1/64 dev out0 nodad",
		"neigh replace 198.18.0.254 lladdr 02:00:00:00:00:fe dev out0", "neigh replace fd00:18::fe lladdr 02:00:00:00:00:fe dev out0",
		"route add 192.0.2.0/24 via 198.18.0.254", "route add 2001:db8:ffff::/64 via fd00:18::fe")
	t.Cleanup(func() { _, _ = execIP("link", "del", "out0") })
	return wireOf(t, "out0")
}

func wireOf(t *testing.T, name string) wire {
	t.Helper()
	return wire{plug(t, nil, name).tap, fabric.MAC(link(t, name).Attrs().HardwareAddr)}
}

// sample is a packet between the guest and a peer.
type sample struct {
	egress   bool
	peer     netip.Addr
	proto    byte
	from, to uint16 // ports
	flags    byte   // of TCP
	kind     byte   // of ICMP
	echo     uint16 // its identifier
	late     bool   // a later fragment
	second   bool   // that one begins eight bytes behind the first
	hidden   bool   // a first fragment that ends before the ports
}

// frame is the packet with its number at the end.
func (s sample) frame(number uint32, to fabric.MAC) []byte {
	guest := guestAddr[s.peer.Is4()]
	src, dst := s.peer, guest
	if s.egress {
		src, dst = guest, s.peer
	}
	var body []byte
	switch s.proto {
	case unix.IPPROTO_TCP:
		body = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, s.from), s.to)
		body = append(body, 0, 0, 0, 1, 0, 0, 0, 1, 5<<4, s.flags, 0xff, 0xff, 0, 0, 0, 0)
	case unix.IPPROTO_UDP:
		body = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, s.from), s.to)
		body = append(body, 0, 16, 0, 0)
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		body = []byte{s.kind, 0, 0, 0, byte(s.echo >> 8), byte(s.echo), 0, 1}
	}
	body = append(body, "samp"...)
	body = binary.BigEndian.AppendUint32(body, number)
	proto := s.proto
	offset := uint16(32) // in units of eight bytes
	if s.second {
		offset = 1
	}
	if s.late && src.Is6() {
		body, proto = append([]byte{s.proto, 0, byte(offset >> 5), byte(offset << 3), 0, 0, 0, 1}, body...), unix.IPPROTO_FRAGMENT
	}
	if s.hidden { // destination options, of which eight bytes are here
		proto = unix.IPPROTO_FRAGMENT
		body = append([]byte{unix.IPPROTO_DSTOPTS, 0, 0, 1, 0, 0, 0, 1, s.proto, 3, 0x1e, 24, 0, 0, 0, 0}, body[len(body)-8:]...)
	}
	f := ipFrame(fabric.MAC{2, 0, 0, 0, 0, 0xfe}, src, dst, proto, 64, body)
	if s.late && src.Is4() {
		head := f[14:34]
		head[7] = byte(offset)
		head[10], head[11] = 0, 0
		binary.BigEndian.PutUint16(head[10:], ^packets.Sum(0, head))
	}
	copy(f, to[:])
	return f
}

// oracle says which packets pass, from the rules as they are documented.
type oracle struct {
	w        *fabric.Firewall
	isolated bool
	flows    map[string]bool
}

func (s sample) flow() string {
	guest, peer := s.to, s.from
	if s.egress {
		guest, peer = s.from, s.to
	}
	return fmt.Sprint("udp ", s.peer, guest, peer)
}

func (s sample) is(kinds ...byte) bool {
	return (s.proto == unix.IPPROTO_ICMP || s.proto == unix.IPPROTO_ICMPV6) && slices.Contains(kinds, s.kind)
}

func (o *oracle) passes(s sample) (passes bool, reason fabric.DropReason) {
	v4 := s.peer.Is4()
	if o.isolated && slices.ContainsFunc(guestPools, func(p netip.Prefix) bool { return p.Contains(s.peer) }) {
		return false, fabric.DropIsolation
	}
	if o.w == nil {
		return true, ""
	}
	filter, reason := o.w.Ingress, fabric.DropIngress
	if s.egress {
		filter, reason = o.w.Egress, fabric.DropEgress
	}
	errors, request, reply := []byte{3, 11, 12}, byte(8), byte(0)
	if !v4 {
		errors, request, reply = []byte{1, 2, 3, 4}, 128, 129
	}
	pass := func() (bool, fabric.DropReason) {
		if s.late || s.hidden { // it has no ports
			return true, ""
		}
		if o.w.Stateful && s.proto == unix.IPPROTO_UDP {
			o.flows[s.flow()] = true
		}
		if o.w.Stateful && s.is(request) {
			o.flows[fmt.Sprint("echo ", s.egress, s.peer, s.echo)] = true
		}
		return true, ""
	}
	filters := filter.Drop
	for _, r := range filter.Rules {
		filters = filters || r.Drop
	}
	if filters && (s.hidden || s.late && s.second) {
		return false, reason
	}
	if filters && (s.late || s.is(errors...)) {
		return true, ""
	}
	for _, r := range filter.Rules {
		if s.matches(r) {
			if r.Drop {
				return false, reason
			}
			return pass()
		}
	}
	switch {
	case !filter.Drop:
		return pass()
	case s.proto == unix.IPPROTO_TCP && s.flags&0x12 != 2:
		return true, ""
	case o.w.Stateful && s.proto == unix.IPPROTO_UDP && o.flows[s.flow()]:
		return true, ""
	case o.w.Stateful && s.is(reply) && o.flows[fmt.Sprint("echo ", !s.egress, s.peer, s.echo)]:
		return true, ""
	}
	return false, reason
}

func (s sample) matches(r fabric.Rule) bool {
	number := map[fabric.Transport]byte{fabric.TCP: unix.IPPROTO_TCP, fabric.UDP: unix.IPPROTO_UDP, fabric.ICMP: unix.IPPROTO_ICMP}[r.Protocol]
	if r.Protocol == fabric.ICMP && s.peer.Is6() {
		number = unix.IPPROTO_ICMPV6
	}
	return (r.Protocol == fabric.AnyProtocol || s.proto == number) &&
		(len(r.Ports) == 0 || slices.ContainsFunc(r.Ports, func(p fabric.PortRange) bool { return p.First <= s.to && s.to <= p.Last })) &&
		(len(r.Peers) == 0 || slices.ContainsFunc(r.Peers, func(p netip.Prefix) bool { return p.Contains(s.peer) }))
}

var somePorts = []uint16{1, 22, 53, 80, 443, 8000, 8050, 65535}

func randomFilter(r *rand.Rand) (f fabric.Filter) {
	f.Drop = r.IntN(3) > 0
	for range r.IntN(6) {
		rule := fabric.Rule{Drop: r.IntN(2) == 0, Protocol: []fabric.Transport{fabric.AnyProtocol, fabric.TCP, fabric.UDP, fabric.ICMP}[r.IntN(4)]}
		if rule.Protocol == fabric.TCP || rule.Protocol == fabric.UDP {
			for range r.IntN(4) {
				first := somePorts[r.IntN(len(somePorts))]
				last := max(first, somePorts[r.IntN(len(somePorts))])
				if r.IntN(2) == 0 {
					last = first
				}
				rule.Ports = append(rule.Ports, fabric.PortRange{First: first, Last: last})
			}
		}
		for range r.IntN(4) {
			a := randomPeer(r, r.IntN(2) == 0)
			bits := a.BitLen() - r.IntN(9)
			if r.IntN(8) == 0 {
				bits = 0
			}
			rule.Peers = append(rule.Peers, netip.PrefixFrom(a, bits).Masked())
		}
		f.Rules = append(f.Rules, rule)
	}
	return f
}

func randomPeer(r *rand.Rand, v4 bool) netip.Addr {
	last := byte(r.IntN(6)) * 50
	if v4 {
		return netip.AddrFrom4([4]byte{192, 0, 2, last + 1})
	}
	a := netip.MustParseAddr("2001:db8:ffff::").As16()
	a[15] = last + 1
	return netip.AddrFrom16(a)
}

func randomSample(r *rand.Rand) sample {
	v4 := r.IntN(2) == 0
	icmp, kinds := byte(unix.IPPROTO_ICMP), []byte{0, 8, 3, 11}
	if !v4 {
		icmp, kinds = unix.IPPROTO_ICMPV6, []byte{128, 129, 1, 2, 3}
	}
	s := sample{
		egress: r.IntN(2) == 0, peer: randomPeer(r, v4),
		proto: []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_UDP, icmp, icmp, unix.IPPROTO_GRE}[r.IntN(6)],
		from:  somePorts[r.IntN(len(somePorts))], to: somePorts[r.IntN(len(somePorts))],
		flags: []byte{2, 2, 0x12, 0x10, 4}[r.IntN(5)], kind: kinds[r.IntN(len(kinds))], echo: uint16(r.IntN(3)),
	}
	switch r.IntN(12) {
	case 0:
		s.late, s.second = true, r.IntN(2) == 0
	case 1:
		s.hidden = !v4
	}
	return s
}

// answer is a packet that answers s.
func (s sample) answer() sample {
	s.egress, s.from, s.to, s.late, s.second, s.hidden = !s.egress, s.to, s.from, false, false, false
	s.flags = 0x12
	if s.is(8, 128) {
		s.kind = map[byte]byte{8: 0, 128: 129}[s.kind]
	}
	return s
}

// sentinel is a packet that every firewall lets pass.
func sentinel(v4, egress bool) sample {
	s := sample{egress: egress, peer: client[v4], proto: unix.IPPROTO_ICMP, kind: 3}
	if !v4 {
		s.proto, s.kind = unix.IPPROTO_ICMPV6, 1
	}
	return s
}

// arrivals reads the numbers of the packets that come until none is missing, and adds
// them to seen. Packets overtake each other where processors have a queue each.
func (w wire) arrivals(seen map[uint32]bool, missing func() (uint32, bool)) error {
	if err := w.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	buf := make([]byte, 2048)
	for {
		if _, any := missing(); !any {
			return nil
		}
		n, err := w.Read(buf)
		if err != nil {
			return err
		}
		if n > 22 && string(buf[n-8:n-4]) == "samp" {
			seen[binary.BigEndian.Uint32(buf[n-4:n])] = true
		}
	}
}

// contest is what is sent past one firewall, and what comes of it.
type contest struct {
	t       *testing.T
	out     wire // of the peers
	guest   wire
	oracle  oracle
	said    string // about the firewall
	number  *uint32
	sent    map[uint32]sample
	want    map[uint32]bool // which of them pass
	seen    map[uint32]bool
	dropped map[fabric.DropReason]uint64
	egress  bool // the direction of the last
}

func (x *contest) send(s sample) {
	x.t.Helper()
	*x.number++
	x.sent[*x.number] = s
	passes, reason := x.oracle.passes(s)
	if x.want[*x.number] = passes; !passes {
		x.dropped[reason]++
	}
	to := x.out
	if s.egress {
		to = x.guest
	}
	_, err := to.Write(s.frame(*x.number, to.mac))
	require.NoError(x.t, err)
}

// next sends a packet, after those of the other direction have passed: another processor
// may have an answer before its question.
func (x *contest) next(s sample) {
	x.t.Helper()
	if s.egress != x.egress {
		x.settle(x.egress)
	}
	x.egress = s.egress
	x.send(s)
}

// settle waits until the packets in a direction have passed.
func (x *contest) settle(egress bool) {
	x.t.Helper()
	x.send(sentinel(true, egress))
	at := x.guest
	if egress {
		at = x.out
	}
	missing := func() (uint32, bool) {
		for n, passes := range x.want {
			if passes && !x.seen[n] && x.sent[n].egress == egress {
				return n, true
			}
		}
		return 0, false
	}
	err := at.arrivals(x.seen, missing)
	n, _ := missing()
	require.NoError(x.t, err, "%s\ndoes not pass: %+v", x.said, x.sent[n])
}

// TestFirewallRules compares random firewalls with what they are documented to do, with
// random packets of both families in both directions, and what is counted.
func TestFirewallRules(t *testing.T) {
	sweep(t)
	t.Cleanup(func() { sweep(t) })
	d := guardedNode(t, fabric.Guests{NoDHCP: true, NoRA: true})
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	out := beyond(t)
	p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
	require.NoError(t, d.Put(t.Context(), p))
	guest := wireOf(t, p.Name)
	number := uint32(0)
	before := map[fabric.DropReason]uint64{}
	for _, seed := range []uint64{5861765206295420909, rand.Uint64()} { // the first remembered ports of a fragment that has none
		r := rand.New(rand.NewPCG(seed, 1))
		for range 25 {
			w := &fabric.Firewall{Ingress: randomFilter(r), Egress: randomFilter(r), Stateful: r.IntN(2) == 0}
			x := &contest{
				t: t, out: out, guest: guest, oracle: oracle{w: w, flows: map[string]bool{}}, number: &number, egress: true,
				said: fmt.Sprintf("seed %d: ingress %s | egress %s | stateful %v", seed, w.Ingress.Text(fabric.Ingress), w.Egress.Text(fabric.Egress), w.Stateful),
				sent: map[uint32]sample{}, want: map[uint32]bool{}, seen: map[uint32]bool{}, dropped: map[fabric.DropReason]uint64{},
			}
			p.Firewall = w
			require.NoError(t, d.Put(t.Context(), p), x.said)
			// What an earlier firewall remembered does not count.
			const set = "flush set inet vmfabric "
			require.NoError(t, exec.Command("nft", set+"flows4;"+set+"flows6;"+set+"echoes4;"+set+"echoes6").Run())
			for range 30 {
				s := randomSample(r)
				x.next(s)
				if r.IntN(2) == 0 {
					x.next(s.answer())
				}
			}
			x.settle(true)
			x.settle(false)
			for n, passes := range x.want {
				require.Equal(t, passes, x.seen[n], "%s\n%+v", x.said, x.sent[n])
			}
			for _, reason := range []fabric.DropReason{fabric.DropIngress, fabric.DropEgress, fabric.DropSource, fabric.DropDestination} {
				is := dropsOf(t, d, p.Name, reason).Packets
				require.Equal(t, x.dropped[reason], is-before[reason], "%s: %s", x.said, reason)
				before[reason] = is
			}
		}
	}
	require.NoError(t, d.Remove(t.Context(), p.Name))
}

// TestIsolation: no packets pass between an isolated guest and others, whichever of the
// two is isolated, and all that is not a guest reaches it.
func TestIsolation(t *testing.T) {
	for name, all := range map[string]bool{"one guest": false, "all": true} {
		t.Run(name, func(t *testing.T) {
			bothFamilies(t, func(t *testing.T, v4 bool) {
				lab := newMoveLab(t)
				d := guardedNode(t, fabric.Guests{Isolate: all, NodePorts: []fabric.Service{{Protocol: "tcp", Port: 53}}})
				t.Cleanup(func() { require.NoError(t, d.Close()) })
				g := newGuest(t, d, "web", guestAddr, guestMAC)
				h := newGuest(t, d, "db", second, secondMAC)
				if !all {
					awaitPing(t, g, second[v4])
				}
				put := func(vm string, a map[bool]netip.Addr, mac fabric.MAC, isolated bool) {
					p := port(vm, fabric.NIC{Kind: fabric.Veth, MAC: mac, Addresses: []netip.Addr{a[true], a[false]}})
					p.Isolated = isolated
					require.NoError(t, d.Put(t.Context(), p))
				}
				serve(t, lab.core, client[v4], 162)
				serve(t, nil, netip.IPv6Unspecified(), 53)
				put("web", guestAddr, guestMAC, !all)
				for from, to := range map[*space]netip.Addr{g: second[v4], h: guestAddr[v4]} {
					assert.False(t, pings(t, from, to))
				}
				before := dropsOf(t, d, "web_net0", fabric.DropIsolation).Packets
				assert.GreaterOrEqual(t, before, uint64(3))
				p := port("db", fabric.NIC{Kind: fabric.Veth, MAC: secondMAC, Addresses: []netip.Addr{second[true], second[false]}, Routes: routed})
				require.NoError(t, d.Put(t.Context(), p))
				assert.False(t, pings(t, g, routed[map[bool]int{true: 0, false: 1}[v4]].Addr().Next()))
				assert.Equal(t, before+3, dropsOf(t, d, "web_net0", fabric.DropIsolation).Packets, "a prefix in no pool")
				awaitReach(t, g, "tcp", client[v4], 162)
				awaitReach(t, g, "udp", client[v4], 162)
				awaitReach(t, g, "tcp", nodeAddr[v4], 53)
				awaitPing(t, g, map[bool]netip.Addr{true: gateway.IPv4, false: gateway.IPv6.WithZone("eth0")}[v4])
				awaitPing(t, lab.core, guestAddr[v4])
				awaitPing(t, nil, guestAddr[v4])
				if all {
					return
				}
				put("web", guestAddr, guestMAC, false)
				awaitPing(t, g, second[v4])
				awaitPing(t, h, guestAddr[v4])
				assert.NotContains(t, nftTable(t), "guard", "nothing is left of it")
			})
		})
	}
}

func nftTable(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "table", "inet", "vmfabric").CombinedOutput()
	require.NoError(t, err, string(out))
	var lines []string
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, "map guarded_") { // the maps themselves stay
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// TestGuardStays: the firewall of a guest stands before its port does, outlasts a restart
// of the agent, also one with another configuration, is made again after a flush, and is
// gone with the port. One of a port that failed is not left behind.
func TestGuardStays(t *testing.T) {
	labtest.Need(t, "nft")
	sweep(t)
	t.Cleanup(func() { sweep(t) })
	var d *kernel.Dataplane
	restart := func(g fabric.Guests, known ...fabric.Port) {
		if d != nil {
			require.NoError(t, d.Close())
		}
		d = guardedNode(t, g, known...)
	}
	restart(fabric.Guests{})
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	await := func(when string, f func() bool) {
		t.Helper()
		require.Eventually(t, f, 25*time.Second, 50*time.Millisecond, "%s: %v", when, d.Diagnose(t.Context()))
	}
	out := beyond(t)
	p := movePort("web", fabric.NIC{Kind: fabric.Adopt, Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
	p.Firewall = firewall(t, "accept tcp 22; drop", "", false)
	require.ErrorIs(t, d.Put(t.Context(), p), os.ErrNotExist)
	await("a port that failed", func() bool { return !strings.Contains(nftTable(t), "guard") })

	p.NIC.Kind = fabric.Tap
	require.NoError(t, d.Put(t.Context(), p))
	guest := wireOf(t, p.Name)
	number := uint32(0)
	holds := func(when string) {
		t.Helper()
		for _, v4 := range []bool{true, false} {
			number += 2
			for i, s := range []sample{{peer: client[v4], proto: unix.IPPROTO_TCP, to: 23, flags: 2}, {peer: client[v4], proto: unix.IPPROTO_TCP, to: 22, flags: 2}} {
				_, err := out.Write(s.frame(number-1+uint32(i), out.mac))
				require.NoError(t, err)
			}
			seen := map[uint32]bool{}
			require.NoError(t, guest.arrivals(seen, func() (uint32, bool) { return number, !seen[number] }))
			assert.False(t, seen[number-1], "%s, IPv4 %v", when, v4)
		}
	}
	holds("at first")
	restart(fabric.Guests{})
	holds("after a restart")
	time.Sleep(time.Second) // two rounds
	holds("before the port is put")
	require.NoError(t, d.Put(t.Context(), p))
	holds("after it")
	restart(fabric.Guests{NodePorts: []fabric.Service{{Protocol: "udp", Port: 53}}}, p)
	holds("after a restart with another configuration")
	time.Sleep(time.Second)
	holds("before the port is put, with another configuration")
	require.NoError(t, d.Put(t.Context(), p))

	for _, harm := range []string{
		"flush ruleset", "flush chain inet vmfabric guard_to_web_net0", "flush map inet vmfabric guarded_to", "flush chain inet vmfabric guards",
	} {
		require.NoError(t, exec.Command("nft", strings.Fields(harm)...).Run(), harm)
		await(harm, func() bool {
			for what, want := range map[string]string{
				"chain inet vmfabric guard_to_web_net0": "goto drop_to_firewall_ingress", "chain inet vmfabric guards": "vmap @guarded_to", "map inet vmfabric guarded_to": "jump guard_to_web_net0",
			} {
				out, err := exec.Command("nft", "list "+what).CombinedOutput()
				if err != nil || !strings.Contains(string(out), want) {
					return false
				}
			}
			return true
		})
		holds(harm)
	}
	require.NoError(t, d.Remove(t.Context(), p.Name))
	await("gone with the port", func() bool { return !strings.Contains(nftTable(t), "guard") })
}

// TestGuardArrives: a guest that is about to arrive gets only what its firewall lets
// pass, from its first packet on.
func TestGuardArrives(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		d, err := kernel.New(t.Context(), kernel.Config{Cluster: "lab", Underlay: []netip.Addr{node2[true], node2[false]}, Pools: guestPools})
		require.NoError(t, err)
		labtest.Running(t, d)
		t.Cleanup(func() { require.NoError(t, d.Close()) })
		p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
		p.Incoming, p.Firewall = true, firewall(t, "accept icmp; drop", "accept icmp; drop", false)
		require.NoError(t, d.Put(t.Context(), p))
		g := plug(t, nil, p.Name)
		sendDatagrams(t, lab.core, client[v4].String(), guestAddr[v4].String(), 53, 5)
		probe := lab.probe(t, guestAddr[v4], 200)
		<-probe.Sent()
		p.Incoming = false
		require.NoError(t, d.Put(t.Context(), p))
		g.run()
		is := probe.Stop()
		assert.Zero(t, is.Lost, "%+v", is)
		assert.Equal(t, uint64(5), dropsOf(t, d, p.Name, fabric.DropIngress).Packets)
		assert.Zero(t, dropsOf(t, d, p.Name, fabric.DropEgress))
	})
}
