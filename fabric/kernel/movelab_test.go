package kernel_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/probe"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// The moves' lab has the node in the namespace of the tests, and around it
//
//	core: a bridge, 10.10.0.1, and a client, 192.0.2.1, for whom guests are behind the node
//	other: a node, 10.10.0.22, which has taps or veths for the same guests
var (
	client    = map[bool]netip.Addr{true: netip.MustParseAddr("192.0.2.1"), false: netip.MustParseAddr("2001:db8:ffff::1")}
	guestAddr = map[bool]netip.Addr{true: netip.MustParseAddr("203.0.113.10"), false: netip.MustParseAddr("2001:db8:100::10")}
	guestMAC  = fabric.MAC{0x52, 0x54, 0, 0, 0, 0x10}
	routed    = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/29"), netip.MustParsePrefix("2001:db8:200::/64")}
	otherNode = fabric.Node{Name: "node2", Address: node2[true], Address6: node2[false]}
)

// space is a network namespace.
type space struct{ handle netns.NsHandle }

// within runs f on a thread of its own in a namespace.
func within(s *space, f func() error) error {
	return labtest.InNamespace(&s.handle, f)
}

func newSpace(t *testing.T) *space {
	t.Helper()
	s := &space{}
	require.NoError(t, within(s, func() error { return nil }))
	sysctls(t, s, map[string]string{"ipv6/conf/all/accept_dad": "0", "ipv6/conf/default/accept_dad": "0"})
	t.Cleanup(func() { s.handle.Close() })
	return s
}

// ipIn runs ip(8) commands in a namespace; nil is the node's.
func ipIn(t *testing.T, s *space, commands ...string) {
	t.Helper()
	run := func() error {
		cmd := exec.Command("ip", "-batch", "-")
		cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	if s == nil {
		require.NoError(t, run())
		return
	}
	require.NoError(t, within(s, run))
}

func sysctls(t *testing.T, s *space, kv map[string]string) {
	t.Helper()
	set := func() error {
		for path, value := range kv {
			if err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0); err != nil {
				return err
			}
		}
		return nil
	}
	if s == nil {
		require.NoError(t, set())
		return
	}
	require.NoError(t, within(s, set))
}

type moveLab struct{ core, other *space }

func newMoveLab(t *testing.T) *moveLab {
	t.Helper()
	sweep(t)
	t.Cleanup(func() { sweep(t) })
	lab := &moveLab{core: newSpace(t), other: newSpace(t)}
	path := func(s *space) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(s.handle)) }
	// A router takes no redirects. A host would be told by the node to send to the other node
	// itself, and go on with that when the diversion has ended.
	sysctls(t, lab.core, map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"})
	ipIn(t, lab.core, "link set lo up", "link add br0 type bridge mcast_snooping 0", "link set br0 up",
		"addr add 10.10.0.1/24 dev br0", "addr add fd00:10:10::1/64 dev br0 nodad",
		"addr add 192.0.2.1/32 dev lo", "addr add 2001:db8:ffff::1/128 dev lo nodad")
	for _, side := range []struct {
		space  *space
		name   string
		v4, v6 string
	}{{nil, "to1", "10.10.0.21/24", "fd00:10:10::21/64"}, {lab.other, "to2", "10.10.0.22/24", "fd00:10:10::22/64"}} {
		ipIn(t, side.space, "link set lo up", "link add up0 type veth peer name "+side.name+" netns "+path(lab.core),
			"addr add "+side.v4+" dev up0", "addr add "+side.v6+" dev up0 nodad", "link set up0 up",
			"route add default via 10.10.0.1", "route add default via fd00:10:10::1")
		ipIn(t, lab.core, "link set "+side.name+" master br0 up")
	}
	for _, p := range routed {
		ipIn(t, lab.core, "route add "+p.String()+" via "+via(p.Addr()))
	}
	for _, net := range []string{"203.0.113.0/24", "2001:db8:100::/64"} {
		ipIn(t, lab.core, "route add "+net+" via "+via(netip.MustParsePrefix(net).Addr()))
	}
	for _, a := range []netip.Addr{netip.MustParseAddr("10.10.0.21"), netip.MustParseAddr("fd00:10:10::21"), node2[true], node2[false]} {
		p := lab.probe(t, a, 0) // also has everybody know each other
		begun(t, p)
		p.Abandon()
	}
	sysctls(t, lab.other, map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"})
	return lab
}

// via is the node's address of a family.
func via(a netip.Addr) string {
	if a.Is4() {
		return "10.10.0.21"
	}
	return "fd00:10:10::21"
}

// otherPort makes a port of the other node's by hand.
func (lab *moveLab) otherPort(t *testing.T, p fabric.Port) {
	t.Helper()
	ipIn(t, lab.other, "tuntap add "+p.Name+" mode tap", "link set "+p.Name+" address "+p.Gateway.MAC.String()+" txqueuelen 10000 up",
		"addr add 169.254.1.1/32 dev "+p.Name, "addr add fe80::1/64 dev "+p.Name+" nodad")
	for _, a := range p.NIC.Addresses {
		ipIn(t, lab.other, "neigh replace "+a.String()+" lladdr "+p.NIC.MAC.String()+" dev "+p.Name, "route add "+fabric.HostPrefix(a).String()+" dev "+p.Name)
	}
	for _, r := range p.NIC.Routes {
		ipIn(t, lab.other, "route add "+r.String()+" via "+p.NIC.Via(r).String()+" dev "+p.Name+" onlink")
	}
}

// probe sends echo requests from the client, one a millisecond; count 0: until
// they are stopped.
func (lab *moveLab) probe(t *testing.T, to netip.Addr, count int) *probe.Prober {
	t.Helper()
	return lab.probeFrom(t, client[to.Is4()], to, count)
}

// probeFrom is probe from another address of the client's.
func (lab *moveLab) probeFrom(t *testing.T, from, to netip.Addr, count int) *probe.Prober {
	t.Helper()
	var p *probe.Prober
	require.NoError(t, within(lab.core, func() (err error) {
		p, err = probe.Start(probe.Config{From: from, To: to, Interval: time.Millisecond, Count: count})
		return err
	}))
	return p
}

// begun waits for the first answer.
func begun(t *testing.T, p *probe.Prober) {
	t.Helper()
	select {
	case <-p.First():
	case <-time.After(20 * time.Second):
		require.FailNow(t, "no answer")
	}
}

func movePort(vm string, nic fabric.NIC) fabric.Port {
	if nic.MAC.IsZero() {
		nic.MAC = guestMAC
	}
	return port(vm, nic)
}

func bothFamilies(t *testing.T, f func(t *testing.T, v4 bool)) {
	for name, v4 := range map[string]bool{"IPv4": true, "IPv6": false} {
		t.Run(name, func(t *testing.T) { f(t, v4) })
	}
}

// fakeGuest answers echo requests that come in on its tap while it runs.
type fakeGuest struct {
	tap     *os.File
	mac     fabric.MAC
	running atomic.Bool
	wg      sync.WaitGroup
	taken   atomic.Int64 // requests
}

// plug opens a tap for a guest that does not run yet; s nil is the node's.
func plug(t *testing.T, s *space, name string) *fakeGuest {
	t.Helper()
	g := &fakeGuest{mac: guestMAC}
	open := func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			return err
		}
		g.tap = os.NewFile(uintptr(fd), name)
		return nil
	}
	// The link sends nothing until the kernel has taken up that it has a carrier.
	settled := func() error {
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			l, err := netlink.LinkByName(name)
			if err != nil || l.Attrs().OperState == netlink.OperUp {
				time.Sleep(10 * time.Millisecond)
				return err
			}
			if time.Now().After(end) {
				return errors.New(name + " does not come up")
			}
		}
	}
	both := func() error {
		if err := open(); err != nil {
			return err
		}
		return settled()
	}
	if s == nil {
		require.NoError(t, both())
	} else {
		require.NoError(t, within(s, both))
	}
	t.Cleanup(func() {
		g.stop()
		g.tap.Close()
	})
	return g
}

func (g *fakeGuest) run() {
	g.running.Store(true)
	_ = g.tap.SetReadDeadline(time.Time{})
	g.wg.Go(func() {
		buf := make([]byte, 1<<16)
		for g.running.Load() {
			n, err := g.tap.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
			if err != nil {
				continue // the link is down
			}
			if reply(buf[:n]) {
				g.taken.Add(1)
				_, _ = g.tap.Write(buf[:n])
			}
		}
	})
}

// takeNowAndThen has a guest that does not run take up to so many frames, and
// answer the requests among them, after each of several pauses, in each of which
// more than that come. It returns how many wait at the end, at least.
func (g *fakeGuest) takeNowAndThen(t *testing.T, times int, pause time.Duration, atOnce int) (waiting int) {
	t.Helper()
	buf := make([]byte, 1<<16)
	ticks := time.NewTicker(pause)
	defer ticks.Stop()
	for range times {
		<-ticks.C
		waiting += int(pause/time.Millisecond) - atOnce
		for range atOnce {
			require.NoError(t, g.tap.SetReadDeadline(time.Now().Add(20*time.Second)))
			n, err := g.tap.Read(buf)
			require.NoError(t, err)
			if reply(buf[:n]) {
				_, err := g.tap.Write(buf[:n])
				require.NoError(t, err)
			}
		}
	}
	return waiting
}

// stop returns when the guest takes nothing any more.
func (g *fakeGuest) stop() {
	g.running.Store(false)
	_ = g.tap.SetReadDeadline(time.Unix(1, 0))
	g.wg.Wait()
}

// announce sends what QEMU does when a guest begins to run.
func (g *fakeGuest) announce(t *testing.T) {
	t.Helper()
	frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, g.mac[:]...)
	frame = append(frame, 0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3)
	_, err := g.tap.Write(append(frame, make([]byte, 32)...))
	require.NoError(t, err)
}

// reply makes an echo request the answer to it.
func reply(f []byte) bool {
	swap := func(a, b, n int) {
		for i := range n {
			f[a+i], f[b+i] = f[b+i], f[a+i]
		}
	}
	if len(f) < 14+20+8 {
		return false
	}
	var at int
	switch {
	case binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_IP && f[23] == unix.IPPROTO_ICMP && f[34] == 8:
		at, f[34] = 34, 0
		swap(26, 30, 4)
	case binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_IPV6 && f[20] == unix.IPPROTO_ICMPV6 && len(f) > 14+40+8 && f[54] == 128:
		at, f[54] = 54, 129
		swap(22, 38, 16)
	default:
		return false
	}
	swap(0, 6, 6)
	// Only the type has changed (RFC 1624).
	was, is := uint32(0x0800), uint32(0)
	if at == 54 {
		was, is = 0x8000, 0x8100
	}
	sum := uint32(^binary.BigEndian.Uint16(f[at+2:])) + (^was & 0xffff) + is
	sum = sum&0xffff + sum>>16
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(f[at+2:], ^uint16(sum))
	return true
}

// listenUDP listens in a namespace.
func listenUDP(t *testing.T, s *space, a netip.Addr) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	require.NoError(t, within(s, func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		return err
	}))
	t.Cleanup(func() { c.Close() })
	return c
}

// startProbe is probe from the node itself.
func startProbe(t *testing.T, to netip.Addr, count int) *probe.Prober {
	t.Helper()
	p, err := probe.Start(probe.Config{To: to, Interval: time.Millisecond, Count: count})
	require.NoError(t, err)
	return p
}

// drop takes what waits for the guest, which answers none of it.
func (g *fakeGuest) drop(t *testing.T) {
	t.Helper()
	buf := make([]byte, 1<<16)
	for {
		require.NoError(t, g.tap.SetReadDeadline(time.Now().Add(5*time.Millisecond)))
		if _, err := g.tap.Read(buf); err != nil {
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			return
		}
	}
}

func execIP(args ...string) ([]byte, error) { return exec.Command("ip", args...).CombinedOutput() }
