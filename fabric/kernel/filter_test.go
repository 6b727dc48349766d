package kernel_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/internal/packets"
	"github.com/vmfabric/vmfabric/internal/probe"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

var (
	coreAddr  = map[bool]netip.Addr{true: netip.MustParseAddr("10.10.0.1"), false: netip.MustParseAddr("fd00:10:10::1")}
	nodeAddr  = map[bool]netip.Addr{true: netip.MustParseAddr("10.10.0.21"), false: netip.MustParseAddr("fd00:10:10::21")}
	second    = map[bool]netip.Addr{true: netip.MustParseAddr("203.0.113.20"), false: netip.MustParseAddr("2001:db8:100::20")}
	metadata  = netip.MustParseAddr("169.254.169.254")
	secondMAC = fabric.MAC{0x52, 0x54, 0, 0, 0, 0x20}
)

// openGuarded opens a dataplane that knows the cluster's machines.
func openGuarded(t *testing.T, guests fabric.Guests) *kernel.Dataplane {
	t.Helper()
	d := guarded(t, guests)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	return d
}

// guarded leaves the closing to the caller. The underlay has more prefixes.
func guarded(t *testing.T, guests fabric.Guests, more ...netip.Prefix) *kernel.Dataplane {
	t.Helper()
	d, err := kernel.New(t.Context(), kernel.Config{
		Cluster: "lab", Underlay: []netip.Addr{node2[true], node2[false]}, Guests: guests,
		Private: append(more, netip.MustParsePrefix("10.10.0.0/24"), netip.MustParsePrefix("fd00:10:10::/64")),
	})
	require.NoError(t, err)
	labtest.Running(t, d)
	require.Empty(t, d.Diagnose(t.Context()))
	return d
}

// newGuest makes a guest in a namespace behind a port of two addresses.
func newGuest(t *testing.T, d *kernel.Dataplane, vm string, a map[bool]netip.Addr, mac fabric.MAC) *space {
	t.Helper()
	p := port(vm, fabric.NIC{Kind: fabric.Veth, MAC: mac, Addresses: []netip.Addr{a[true], a[false]}})
	require.NoError(t, d.Put(t.Context(), p))
	g := newSpace(t)
	ipIn(t, nil, "link set "+fabric.PeerName(vm, 0)+fmt.Sprintf(" netns /proc/%d/fd/%d", os.Getpid(), int(g.handle)))
	ipIn(t, g, "link set "+fabric.PeerName(vm, 0)+" name eth0 address "+mac.String()+" up", "link set lo up",
		"addr add "+a[true].String()+"/32 dev eth0", "addr add "+a[false].String()+"/128 dev eth0 nodad",
		"route add 169.254.1.1 dev eth0", "route add default via 169.254.1.1", "route replace default via fe80::1 dev eth0") // it may have heard of that one
	// The link is up at both ends once its guest is answered.
	for _, v4 := range []bool{true, false} {
		awaitPing(t, g, map[bool]netip.Addr{true: gateway.IPv4, false: gateway.IPv6.WithZone("eth0")}[v4])
	}
	return g
}

// pings reports whether one of some echo requests is answered.
func pings(t *testing.T, from *space, to netip.Addr) bool {
	t.Helper()
	return in(from, func() error {
		return exec.Command("ping", "-n", "-c", "3", "-i", "0.1", "-W", "1", to.String()).Run()
	}) == nil
}

func awaitPing(t *testing.T, from *space, to netip.Addr) {
	t.Helper()
	require.Eventually(t, func() bool { return pings(t, from, to) }, 20*time.Second, 10*time.Millisecond, to)
}

// in runs f in a namespace; nil is the node's.
func in(s *space, f func() error) error {
	if s == nil {
		return f()
	}
	return within(s, f)
}

// serve answers on TCP and UDP of one port number with what comes.
func serve(t *testing.T, s *space, a netip.Addr, number uint16) {
	t.Helper()
	at := netip.AddrPortFrom(a, number)
	require.NoError(t, in(s, func() error {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close(); u.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write([]byte("hello"))
				c.Close()
			}
		}()
		go func() {
			buf := make([]byte, 1500)
			for {
				n, from, err := u.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				_, _ = u.WriteToUDPAddrPort(buf[:n], from)
			}
		}()
		return nil
	}))
}

// reaches reports whether a service answers. Where it may not, nothing is judged
// by how long that takes: one that answers does so well before.
func reaches(s *space, network string, a netip.Addr, number uint16) bool {
	return in(s, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		defer cancel()
		c, err := (&net.Dialer{}).DialContext(ctx, network, netip.AddrPortFrom(a, number).String())
		if err != nil {
			return err
		}
		defer c.Close()
		deadline, _ := ctx.Deadline()
		_ = c.SetDeadline(deadline)
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 16))
		return err
	}) == nil
}

func awaitReach(t *testing.T, s *space, network string, a netip.Addr, number uint16) {
	t.Helper()
	require.Eventually(t, func() bool { return reaches(s, network, a, number) }, 20*time.Second, 10*time.Millisecond, "%s %s %d", network, a, number)
}

// TestGuestReach: from a port, the node gives echo replies and no service, and
// the underlay nothing, but for what the operator opens.
func TestGuestReach(t *testing.T) {
	labtest.Need(t, "nft")
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		d := guarded(t, fabric.Guests{})
		g := newGuest(t, d, "web", guestAddr, guestMAC)
		h := newGuest(t, d, "db", second, secondMAC)
		ipIn(t, lab.core, "addr add 169.254.169.254/32 dev lo")
		ipIn(t, nil, "route add 169.254.169.254 via 10.10.0.1")
		t.Cleanup(func() { _, _ = execIP("route", "del", "169.254.169.254") })
		at := netip.IPv6Unspecified()
		for _, s := range []*space{nil, lab.core, lab.other, h} {
			for _, number := range []uint16{22, 53, 161, 179, fabric.DefaultAgentPort} {
				serve(t, s, at, number)
			}
		}
		serve(t, lab.core, client[v4], 162)
		own := map[bool]netip.Addr{true: gateway.IPv4, false: gateway.IPv6.WithZone("eth0")}[v4]
		closed := map[netip.Addr][]uint16{
			own: {22, 53, fabric.DefaultAgentPort}, nodeAddr[v4]: {22, fabric.DefaultAgentPort},
			coreAddr[v4]: {53, 179}, node2[v4]: {22, fabric.DefaultAgentPort},
		}
		if v4 {
			closed[metadata] = []uint16{53}
		}
		for _, network := range []string{"tcp", "udp"} {
			awaitReach(t, g, network, client[v4], 162) // the Internet, by the same way
			awaitReach(t, g, network, second[v4], 161)
			for a, numbers := range closed {
				for _, number := range numbers {
					assert.False(t, reaches(g, network, a, number), "%s %s %d", network, a, number)
				}
			}
		}
		assert.True(t, pings(t, g, own))
		assert.True(t, pings(t, g, nodeAddr[v4]))
		assert.False(t, pings(t, g, coreAddr[v4]))
		require.NoError(t, d.Close())

		reach := []netip.Prefix{fabric.HostPrefix(coreAddr[v4]), netip.MustParsePrefix("169.254.169.254/32")}
		openGuarded(t, fabric.Guests{Reach: reach, NodePorts: []fabric.Service{{Protocol: "tcp", Port: 53}, {Protocol: "udp", Port: 161}}})
		awaitReach(t, g, "tcp", own, 53)
		awaitReach(t, g, "udp", own, 161)
		awaitReach(t, g, "tcp", nodeAddr[v4], 53)
		awaitReach(t, g, "tcp", coreAddr[v4], 179)
		awaitReach(t, g, "udp", coreAddr[v4], 53)
		awaitPing(t, g, coreAddr[v4])
		if v4 {
			awaitReach(t, g, "tcp", metadata, 53)
		}
		for _, network := range []string{"tcp", "udp"} {
			assert.False(t, reaches(g, network, own, 22))
			assert.False(t, reaches(g, network, node2[v4], 161))
		}
		assert.False(t, reaches(g, "udp", own, 53))
		assert.False(t, reaches(g, "tcp", own, 161))
		assert.False(t, reaches(g, "tcp", coreAddr[v4], fabric.DefaultAgentPort), "no agent, whatever is opened")
	})
}

// TestGlobalUnderlay: guests do not reach an underlay either whose addresses are like
// others of the Internet, while those of the Internet around it are reached.
func TestGlobalUnderlay(t *testing.T) {
	labtest.Need(t, "nft")
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		d := guarded(t, fabric.Guests{})
		g := newGuest(t, d, "web", guestAddr, guestMAC)
		serve(t, lab.core, client[v4], 162)
		awaitReach(t, g, "udp", client[v4], 162)
		family := map[bool]string{true: "4", false: "6"}[v4]
		nft(t, fmt.Sprintf("get element inet vmfabric checked%s { web_net0 . %s }", family, guestAddr[v4])) // so the next packets cost less
		require.NoError(t, d.Close())
		its := fabric.HostPrefix(client[v4])
		d = guarded(t, fabric.Guests{}, its)
		assert.False(t, reaches(g, "udp", client[v4], 162))
		assert.False(t, reaches(g, "tcp", client[v4], 162))
		require.NoError(t, d.Close())
		beside := netip.PrefixFrom(its.Addr().Next(), its.Bits())
		d = guarded(t, fabric.Guests{}, beside)
		awaitReach(t, g, "udp", client[v4], 162)
		require.NoError(t, d.Close())
		d = guarded(t, fabric.Guests{Reach: []netip.Prefix{its}}, its)
		awaitReach(t, g, "udp", client[v4], 162)
		require.NoError(t, d.Close())
	})
}

// TestGuestAnswers: what the node and the underlay begin with a guest is
// answered, and gives the guest no way to begin anything.
func TestGuestAnswers(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		d := openGuarded(t, fabric.Guests{})
		g := newGuest(t, d, "web", guestAddr, guestMAC)
		serve(t, g, netip.IPv6Unspecified(), 161)
		serve(t, lab.core, netip.IPv6Unspecified(), 162)
		serve(t, nil, netip.IPv6Unspecified(), 162)
		ipIn(t, lab.core, "route replace "+fabric.HostPrefix(guestAddr[v4]).String()+" via "+nodeAddr[v4].String()+" src "+coreAddr[v4].String())
		for name, from := range map[string]*space{"node": nil, "core": lab.core, "other node": lab.other} {
			if from == lab.other {
				ipIn(t, lab.other, "route replace "+fabric.HostPrefix(guestAddr[v4]).String()+" via "+nodeAddr[v4].String())
			}
			awaitPing(t, from, guestAddr[v4])
			for _, network := range []string{"tcp", "udp"} {
				require.Eventually(t, func() bool { return reaches(from, network, guestAddr[v4], 161) }, 20*time.Second, 10*time.Millisecond, "%s from the %s", network, name)
			}
		}
		// Large ones come in fragments, whose later ones have no ports.
		require.NoError(t, within(lab.core, func() error {
			out, err := exec.Command("ping", "-n", "-c", "2", "-i", "0.2", "-W", "5", "-s", "4000", guestAddr[v4].String()).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}))
		for _, network := range []string{"tcp", "udp"} {
			assert.False(t, reaches(g, network, coreAddr[v4], 162), network)
			assert.False(t, reaches(g, network, nodeAddr[v4], 162), network)
		}
		assert.False(t, pings(t, g, coreAddr[v4]))
	})
}

// ipFrame builds a packet in an Ethernet frame to the gateway.
func ipFrame(from fabric.MAC, src, dst netip.Addr, proto, ttl byte, payload []byte) []byte {
	f := ipBroadcast(from, src, dst, proto, ttl, payload)
	copy(f, gateway.MAC[:]) // one to everybody is not forwarded
	return f
}

func ipBroadcast(from fabric.MAC, src, dst netip.Addr, proto, ttl byte, payload []byte) []byte {
	p := packets.IP{Source: src, Destination: dst, Protocol: proto, Hops: ttl, Payload: payload}
	return ethernet(from, packets.EtherType(src), p.Bytes())
}

func udpFrame(from fabric.MAC, src, dst netip.Addr, number uint16, text string) []byte {
	return ipFrame(from, src, dst, unix.IPPROTO_UDP, 64, packets.UDP(src, dst, 12345, number, []byte(text)))
}

// solicit is a neighbor solicitation for the gateway, with the sender's MAC.
func solicit(mac fabric.MAC, src netip.Addr) []byte {
	group := netip.MustParseAddr("ff02::1:ff00:1")
	body := slices.Concat([]byte{135, 0, 0, 0, 0, 0, 0, 0}, gateway.IPv6.AsSlice(), []byte{1, 1}, mac[:])
	f := ipFrame(mac, src, group, unix.IPPROTO_ICMPV6, 255, packets.Seal(src, group, unix.IPPROTO_ICMPV6, 2, body))
	copy(f, []byte{0x33, 0x33, 0xff, 0, 0, 1})
	return f
}

func echo(mac fabric.MAC, src, dst netip.Addr) []byte {
	return ipFrame(mac, src, dst, unix.IPPROTO_ICMPV6, 64, packets.Echo(src, dst, 1, 1, nil))
}

// TestLoopback: no packet from a port gets to the loopback addresses, whatever
// the host has route_localnet set to.
func TestLoopback(t *testing.T) {
	labtest.Need(t, "nft")
	bothFamilies(t, func(t *testing.T, v4 bool) {
		newMoveLab(t)
		sysctls(t, nil, map[string]string{"ipv4/conf/all/route_localnet": "1"})
		t.Cleanup(func() { sysctls(t, nil, map[string]string{"ipv4/conf/all/route_localnet": "0"}) })
		d := openGuarded(t, fabric.Guests{NodePorts: []fabric.Service{{Protocol: "udp", Port: 5353}}})
		require.NoError(t, d.Put(t.Context(), movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})))
		tap := hold(t, "web_net0", 0)
		defer tap.Close()
		lo := map[bool]netip.Addr{true: netip.MustParseAddr("127.0.0.1"), false: netip.IPv6Loopback()}[v4]
		at := netip.AddrPortFrom(map[bool]netip.Addr{true: netip.IPv4Unspecified(), false: netip.IPv6Unspecified()}[v4], 5353)
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		require.NoError(t, err)
		defer c.Close()
		heard := make(chan string, 1000)
		go func() {
			buf := make([]byte, 1500)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				heard <- string(buf[:n])
			}
		}()
		// They arrive in order: what is heard last is behind all others.
		require.Eventually(t, func() bool {
			_, err := tap.Write(udpFrame(guestMAC, guestAddr[v4], lo, 5353, "inside"))
			require.NoError(t, err)
			_, err = tap.Write(udpFrame(guestMAC, guestAddr[v4], nodeAddr[v4], 5353, "outside"))
			require.NoError(t, err)
			select {
			case text := <-heard:
				require.Equal(t, "outside", text)
				return true
			case <-time.After(50 * time.Millisecond):
				return false
			}
		}, 20*time.Second, time.Millisecond)
		require.NoError(t, d.Remove(t.Context(), "web_net0"))
	})
}

// TestNeighbourFlood: a guest that uses many sources gets a few entries of the
// neighbour tables, which are the whole host's, and others theirs.
func TestNeighbourFlood(t *testing.T) {
	newMoveLab(t)
	d := openGuarded(t, fabric.Guests{})
	p := movePort("evil", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}, Routes: routed})
	require.NoError(t, d.Put(t.Context(), p))
	tap := hold(t, p.Name, 0)
	defer tap.Close()
	write := func(frame []byte) {
		_, err := tap.Write(frame)
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool { return link(t, p.Name).Attrs().OperState == netlink.OperUp }, 20*time.Second, time.Millisecond)
	random := rand.New(rand.NewPCG(1, 2))
	in6 := func(prefix string) netip.Addr {
		b := netip.MustParseAddr(prefix).As16()
		binary.BigEndian.PutUint64(b[8:], random.Uint64())
		return netip.AddrFrom16(b)
	}
	for _, sources := range []struct {
		name  string
		frame func() []byte
	}{
		{"solicitations from link-local addresses", func() []byte { return solicit(guestMAC, in6("fe80::")) }},
		{"solicitations from a routed prefix", func() []byte { return solicit(guestMAC, in6("2001:db8:200::")) }},
		{"echo requests from link-local addresses", func() []byte { return echo(guestMAC, in6("fe80::"), gateway.IPv6) }},
		{"echo requests beyond the link", func() []byte { return echo(guestMAC, in6("fe80::"), client[false]) }},
		{"packets to link-local addresses", func() []byte { return echo(guestMAC, guestAddr[false], in6("fe80::")) }},
		{"answers to the underlay that nobody asked for", func() []byte {
			to := in6("fd00:10:10::")
			f := echo(guestMAC, guestAddr[false], to)
			f[14+40] = 129
			packets.Seal(guestAddr[false], to, unix.IPPROTO_ICMPV6, 2, f[14+40:])
			return f
		}},
		{"ARP", func() []byte {
			b := netip.MustParseAddr("198.51.100.0").As4()
			binary.BigEndian.PutUint16(b[2:], uint16(random.Uint32()))
			return arp(guestMAC, netip.AddrFrom4(b).String(), "169.254.1.1")
		}},
	} {
		for range 400 {
			write(sources.frame())
		}
		// One whose answer shows that the others were taken, too.
		assert.LessOrEqual(t, len(neigh(t, p.Name)), 2+2*(32+20), sources.name)
		assert.LessOrEqual(t, len(neigh(t, "up0")), 20, sources.name)
	}
	g := newGuest(t, d, "web", second, secondMAC) // pings the gateway in both families
	ipIn(t, g, "addr add fe80::77/64 dev eth0 nodad")
	require.NoError(t, within(g, func() error {
		return exec.Command("ping", "-n", "-c", "1", "-W", "5", "-I", "fe80::77%eth0", "fe80::1%eth0").Run()
	}))
	assert.Contains(t, neigh(t, "web_net0"), netip.MustParseAddr("fe80::77"), "a port's limit is its own")
	have := neigh(t, "web_net0")
	for _, v4 := range []bool{true, false} {
		assert.Equal(t, netlink.NUD_PERMANENT, have[second[v4]].State)
		probes, err := probe.Start(probe.Config{To: second[v4], Interval: time.Millisecond, Count: 20})
		require.NoError(t, err)
		<-probes.Sent()
		assert.Zero(t, probes.Stop().Lost)
	}
}

// TestPathMTU: a guest does not tell the node how large packets to others may be.
func TestPathMTU(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		newMoveLab(t)
		d := openGuarded(t, fabric.Guests{})
		p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
		require.NoError(t, d.Put(t.Context(), p))
		tap := hold(t, p.Name, 0)
		defer tap.Close()
		tooBig := func(to netip.Addr) []byte {
			c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(nodeAddr[v4], 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 4000)))
			require.NoError(t, err)
			t.Cleanup(func() { c.Close() })
			number := c.LocalAddr().(*net.UDPAddr).Port
			quoted := ipFrame(guestMAC, nodeAddr[v4], to, unix.IPPROTO_UDP, 64, append([]byte{byte(number >> 8), byte(number), 0x0f, 0xa0, 0, 8, 0, 0}, make([]byte, 1300)...))[14:]
			if v4 {
				body := append([]byte{3, 4, 0, 0, 0, 0, 1300 >> 8, 1300 & 0xff}, quoted[:28]...)
				return ipFrame(guestMAC, guestAddr[v4], nodeAddr[v4], unix.IPPROTO_ICMP, 64, packets.Seal(guestAddr[v4], nodeAddr[v4], unix.IPPROTO_ICMP, 2, body))
			}
			body := append([]byte{2, 0, 0, 0, 0, 0, 1300 >> 8, 1300 & 0xff}, quoted[:48]...)
			return ipFrame(guestMAC, guestAddr[v4], nodeAddr[v4], unix.IPPROTO_ICMPV6, 64, packets.Seal(guestAddr[v4], nodeAddr[v4], unix.IPPROTO_ICMPV6, 2, body))
		}
		believed := func(to netip.Addr) bool {
			out, err := execIP("route", "get", to.String())
			require.NoError(t, err, string(out))
			return strings.Contains(string(out), "mtu 1300")
		}
		others, own := tooBig(coreAddr[v4]), tooBig(guestAddr[v4])
		require.Eventually(t, func() bool {
			for _, frame := range [][]byte{others, own} {
				_, err := tap.Write(frame)
				require.NoError(t, err)
			}
			return believed(guestAddr[v4])
		}, 20*time.Second, 20*time.Millisecond, "what the node sends the guest is the guest's to say")
		assert.False(t, believed(coreAddr[v4]))
		require.NoError(t, d.Remove(t.Context(), p.Name))
	})
}

// TestFilterRepair: what others do to our tables is undone.
func TestFilterRepair(t *testing.T) {
	labtest.Need(t, "nft")
	nft(t, "flush ruleset") // a dataplane keeps the tables of the one before, with what their sets have learned
	d := openGuarded(t, fabric.Guests{NodePorts: []fabric.Service{{Protocol: "tcp", Port: 53}}})
	p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
	p.Incoming = true
	underlay(t)
	require.NoError(t, d.Put(t.Context(), p))
	defer func() { require.NoError(t, d.Remove(t.Context(), p.Name)) }()
	list := func() string {
		var all string
		for _, family := range []string{"inet", "arp"} {
			out, err := exec.Command("nft", "-s", "list", "table", family, "vmfabric").CombinedOutput()
			if err != nil {
				return ""
			}
			all += string(out)
		}
		return all
	}
	want := list()
	require.Contains(t, want, "203.0.113.10")
	for _, harm := range []string{
		"flush ruleset",
		"delete table inet vmfabric",
		"delete table arp vmfabric",
		"flush chain inet vmfabric to_node",
		"insert rule inet vmfabric sources accept",
		"flush map inet vmfabric destinations4",
		"delete element inet vmfabric tcp_ports { 53 }",
		"add element inet vmfabric private6 { 2001:db8::/32 }",
		"flush map inet vmfabric arriving",
		"flush chain inet vmfabric arriving_web_net0",
	} {
		harmed := false
		for range 5 { // on a busy machine it may be repaired before one can look
			out, err := exec.Command("nft", harm).CombinedOutput()
			require.NoError(t, err, "%s: %s", harm, out)
			if harmed = list() != want; harmed {
				break
			}
		}
		require.True(t, harmed, harm)
		require.Eventually(t, func() bool { return list() == want }, 20*time.Second, 20*time.Millisecond, harm)
	}
}

// TestTakenAddress: from an address that a port has no more, its guest does not
// send, also when it just did.
func TestTakenAddress(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		d := openGuarded(t, fabric.Guests{})
		was := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[v4], second[v4]}})
		require.NoError(t, d.Put(t.Context(), was))
		tap := hold(t, was.Name, 0)
		defer tap.Close()
		at := netip.AddrPortFrom(client[v4], 4001)
		var c *net.UDPConn
		require.NoError(t, within(lab.core, func() (err error) {
			c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
			return err
		}))
		defer c.Close()
		hears := func(text string, from ...netip.Addr) netip.Addr {
			t.Helper()
			var heard netip.Addr
			require.Eventually(t, func() bool {
				for _, a := range from {
					_, err := tap.Write(udpFrame(guestMAC, a, client[v4], 4001, text))
					require.NoError(t, err)
				}
				_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
				for buf := make([]byte, 100); ; {
					n, who, err := c.ReadFromUDPAddrPort(buf)
					if err != nil {
						return false
					}
					if string(buf[:n]) == text {
						heard = who.Addr().Unmap()
						return true
					}
				}
			}, 20*time.Second, time.Millisecond)
			return heard
		}
		assert.Equal(t, second[v4], hears("before", second[v4]))
		is := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[v4]}})
		require.NoError(t, d.Put(t.Context(), is))
		assert.Equal(t, guestAddr[v4], hears("after", second[v4], guestAddr[v4]))
		require.NoError(t, d.Remove(t.Context(), is.Name))
	})
}
