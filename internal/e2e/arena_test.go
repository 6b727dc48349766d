package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/attack"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// arena is a node with attackers and an honest guest on it, and what is seen of the
// attackers' frames around it.
type arena struct {
	*system
	node      *core.Host
	other     *core.Guest
	attackers []*attacker
	raw       []int // sockets of the node, one for each protocol and family
	gun       *gun

	mu    sync.Mutex
	seen  map[string]attack.Place
	wrong []string // frames that show a bridge where there is none
}

// attacker is a guest that sends what it likes.
type attacker struct {
	vm     fabric.VM
	letter byte
	cast   attack.Cast
	send   func([]byte) error
}

// gun sends by one processor: the kernel takes its frames in their order.
type gun struct {
	shots chan func() error
	done  chan error
}

func newGun(t testing.TB) *gun {
	g := &gun{make(chan func() error), make(chan error)}
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with its goroutine
		var may, one unix.CPUSet
		err := unix.SchedGetaffinity(0, &may)
		for cpu := 0; err == nil && one.Count() == 0; cpu++ {
			if may.IsSet(cpu) {
				one.Set(cpu)
				err = unix.SchedSetaffinity(0, &one)
			}
		}
		for shot := range g.shots {
			g.done <- errors.Join(err, shot())
		}
	}()
	t.Cleanup(func() { close(g.shots) })
	return g
}

func (g *gun) fire(shot func() error) error {
	g.shots <- shot
	return <-g.done
}

// mac converts a MAC address.
func mac(hw net.HardwareAddr) fabric.MAC { return fabric.MAC(hw) }

func linkMAC(t testing.TB, h *core.Host, link string) fabric.MAC {
	t.Helper()
	l, err := h.Link(link)
	require.NoError(t, err)
	return mac(l.Attrs().HardwareAddr)
}

// newArena builds the cluster, its guests and its watchers.
func newArena(t *testing.T, change func(*fabric.Cluster)) *arena {
	t.Helper()
	a, cast := newStage(start(t, options{change: func(c *fabric.Cluster) {
		c.Timers.Hold = 10 * time.Minute // the agent will stand still
		change(c)
	}}), (*arena).loosen)
	for n, kind := range []fabric.Kind{fabric.Tap, fabric.Veth} {
		a.addAttacker(cast, kind, byte(30+n))
	}
	for _, h := range []*core.Host{a.lab.Host("neighbor"), a.top.Core, a.top.Reflectors["rr1"], a.top.Reflectors["rr2"], a.other.Host} {
		a.reaches(h, a.node.Addr4().String(), a.node.Addr6().String())
	}
	a.reaches(a.top.Client, "203.0.113.20", "2001:db8:100::20")
	a.withdrawSome()
	return a
}

// newStage has an honest guest on the first node of a cluster, whose node is prepared
// before, a machine of the underlay that is no node, and watchers.
func newStage(s *system, prepare func(*arena)) (*arena, attack.Cast) {
	s.t.Helper()
	a := &arena{system: s, node: s.top.Nodes["node1"], gun: newGun(s.t), seen: map[string]attack.Place{}}
	prepare(a)
	neighbor, err := s.lab.AddReflector("neighbor", core.Underlay4(77), core.Underlay6(77))
	require.NoError(s.t, err)
	other := veth("good", "203.0.113.20", "2001:db8:100::20")
	other.NICs[0].MAC = mac(core.GuestMAC("good", 0))
	a.other = s.run("node1", other)
	cast := attack.Cast{
		Other:     attack.Guest{Pair: pairOf("203.0.113.20", "2001:db8:100::20"), MAC: other.NICs[0].MAC},
		Gateway:   attack.Guest{Pair: attack.Pair{V4: s.cluster.Gateway.IPv4, V6: s.cluster.Gateway.IPv6}, MAC: s.cluster.Gateway.MAC},
		Node:      attack.Guest{Pair: attack.Pair{V4: a.node.Addr4(), V6: a.node.Addr6()}, MAC: linkMAC(s.t, a.node, "eth0")},
		Neighbor:  attack.Pair{V4: neighbor.Addr4(), V6: neighbor.Addr6()},
		Reflector: attack.Pair{V4: s.top.Reflectors["rr1"].Addr4(), V6: s.top.Reflectors["rr1"].Addr6()},
		Core:      attack.Pair{V4: s.top.Core.Addr4(), V6: s.top.Core.Addr6()},
		Client:    attack.Pair{V4: core.ClientAddr4, V6: core.ClientAddr6},
		Free:      pairOf("203.0.113.77", "2001:db8:100::77"),
	}
	a.watch(cast)
	return a, cast
}

func pairOf(v4, v6 string) attack.Pair {
	return attack.Pair{V4: netip.MustParseAddr(v4), V6: netip.MustParseAddr(v6)}
}

// loosen gives the node settings that its operator may have for other reasons, and that
// would let guests do more if the ports took them over.
func (a *arena) loosen() {
	a.t.Helper()
	settings := map[string]string{"net.ipv4.conf.all.rp_filter": "2"}
	for _, links := range []string{"all", "default"} {
		for _, name := range []string{"accept_source_route", "accept_redirects", "route_localnet", "arp_accept"} {
			settings["net.ipv4.conf."+links+"."+name] = "1"
		}
		for _, name := range []string{"accept_redirects", "accept_source_route", "seg6_enabled", "rpl_seg_enabled", "accept_untracked_na"} {
			settings["net.ipv6.conf."+links+"."+name] = "1"
		}
	}
	for key, value := range settings {
		if err := a.node.SetSysctls(map[string]string{key: value}); !errors.Is(err, os.ErrNotExist) { // an older kernel
			require.NoError(a.t, err, key)
		}
	}
}

// addAttacker adds a guest with two addresses of each family.
func (a *arena) addAttacker(cast attack.Cast, kind fabric.Kind, n byte) {
	a.t.Helper()
	v4, v6 := fmt.Sprintf("203.0.113.%d", n), fmt.Sprintf("2001:db8:100::%d", n)
	gone4, gone6 := fmt.Sprintf("203.0.113.%d", n+10), fmt.Sprintf("2001:db8:100::%d", n+10)
	vm := veth("evil"+string(kind[0]), v4, v6, gone4, gone6)
	vm.NICs[0].Kind, vm.NICs[0].MAC = kind, mac(core.GuestMAC(vm.Name, 0))
	by := &attacker{vm: vm, letter: kind[0], cast: cast}
	by.cast.Self = attack.Guest{Pair: pairOf(v4, v6), MAC: vm.NICs[0].MAC}
	by.cast.Gone = pairOf(gone4, gone6)
	if kind == fabric.Tap {
		a.agents["node1"].ask(hooks.Wire, vm)
		by.send = a.sendTap(fabric.PortName(vm.Name, 0))
		a.agents["node1"].ask(hooks.Live, vm)
	} else {
		g := a.run("node1", vm)
		by.send = a.packetSocket(g.Host, "eth0")
	}
	a.watchPort(fabric.PortName(vm.Name, 0), attack.Answer, cast, cast.Gateway.MAC)
	a.coreHas(a.node, vm.Prefixes()...)
	a.attackers = append(a.attackers, by)
}

// holdTap takes the guest's end of a tap, as QEMU does, until the file is closed.
func holdTap(node *core.Host, name string) (f *os.File, err error) {
	return f, node.Do(func() (err error) {
		if f, err = os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
			return err
		}
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		return unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, ifr)
	})
}

// sendTap takes the guest's end of a tap, and sends frames by it.
func (a *arena) sendTap(name string) func([]byte) error {
	a.t.Helper()
	f, err := holdTap(a.node, name)
	require.NoError(a.t, err)
	a.t.Cleanup(func() { f.Close() })
	return func(b []byte) error { _, err := f.Write(b); return err }
}

// packetSocket sends frames by a link of a host.
func (a *arena) packetSocket(h *core.Host, link string) func([]byte) error {
	a.t.Helper()
	l, err := h.Link(link)
	require.NoError(a.t, err)
	var fd int
	require.NoError(a.t, h.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	a.t.Cleanup(func() { unix.Close(fd) })
	to := &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index}
	return func(b []byte) error { return unix.Sendto(fd, b, 0, to) }
}

// watch looks at the places of attack.Place.
func (a *arena) watch(cast attack.Cast) {
	a.t.Helper()
	a.watchPort("eth0", attack.Underlay, cast, cast.Node.MAC)
	a.watchPort(fabric.PortName("good", 0), attack.OtherGuest, cast, cast.Gateway.MAC)
	for family, protocols := range map[int][]int{
		unix.AF_INET:  {1, 2, 4, 6, 17, 33, 41, 47, 50, 88, 89, 103, 112, 115, 132, 136},
		unix.AF_INET6: {58, 4, 6, 17, 33, 41, 47, 50, 88, 89, 103, 112, 115, 132, 136},
	} {
		for _, protocol := range protocols {
			var fd int
			require.NoError(a.t, a.node.Do(func() (err error) {
				fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
				return err
			}), protocol)
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
			a.t.Cleanup(func() { unix.Close(fd) })
			a.raw = append(a.raw, fd)
		}
	}
}

// watchPort notes what the node sends on a link, which is all from one MAC address: the
// node routes, and bridges nothing. To attackers it says of no address but its own that it
// is here.
func (a *arena) watchPort(link string, place attack.Place, cast attack.Cast, from fabric.MAC) {
	a.t.Helper()
	own := func(addr netip.Addr) bool {
		return addr == cast.Node.V4 || addr == cast.Node.V6 || addr.IsLinkLocalUnicast() || addr.IsLoopback() // with route_localnet
	}
	sniffer, err := a.node.Sniff(link, func(f core.Frame) bool {
		if !f.Outgoing {
			return false
		}
		a.note(place, f.Data)
		sender, _ := f.MACs()
		if claimed := claimedBy(f); sender.String() != from.String() || place == attack.Answer && claimed.IsValid() && !own(claimed) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.wrong = append(a.wrong, fmt.Sprintf("%s: a frame from %s, of type %04x, about %v", link, sender, f.EtherType(), claimed))
		}
		return false
	})
	require.NoError(a.t, err)
	a.t.Cleanup(func() { require.NoError(a.t, sniffer.Close()) })
}

// claimedBy returns the address that an answer of ARP or neighbour discovery says is the
// sender's.
func claimedBy(f core.Frame) netip.Addr {
	const arpReply, neighborAdvertisement, message = 2, 136, 14 + 40
	from, _ := f.Addrs()
	switch {
	case f.EtherType() == unix.ETH_P_ARP && len(f.Data) > 21 && f.Data[21] == arpReply:
		return from
	case f.EtherType() == unix.ETH_P_IPV6 && len(f.Data) >= message+24 && f.Data[20] == unix.IPPROTO_ICMPV6 && f.Data[message] == neighborAdvertisement:
		target, _ := netip.AddrFromSlice(f.Data[message+8:][:16])
		return target
	}
	return netip.Addr{}
}

func (a *arena) note(place attack.Place, b []byte) {
	tokens := attack.TokensIn(b)
	if len(tokens) == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range tokens {
		a.seen[t] |= place
	}
}

// placesOf returns where a token was seen.
func (a *arena) placesOf(token string) attack.Place {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.seen[token]
}

// drain reads what the node has taken.
func (a *arena) drain() {
	b := make([]byte, 1<<16)
	for _, fd := range a.raw {
		for {
			n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				break
			}
			a.note(attack.NodeItself, b[:n])
		}
	}
}

// fire sends a volley.
func (a *arena) fire(by *attacker, v *attack.Volley) {
	a.t.Helper()
	require.NoError(a.t, a.gun.fire(func() error {
		for _, f := range v.Frames {
			if err := by.send(f); err != nil {
				return fmt.Errorf("a frame of %d bytes: %w", len(f), err)
			}
		}
		return nil
	}))
}

// passes sends the honest frames of a kind until all were seen where they are to be. What
// was sent before them has been taken by then.
func (a *arena) passes(by *attacker, k attack.Kind, f attack.Family, number int) {
	a.t.Helper()
	honest, place := k.Control()
	v := attack.NewVolley(by.cast, f, number, by.letter, true)
	honest(v)
	a.fire(by, v)
	tries := 0
	a.eventually(fmt.Sprintf("the control of %q by %s, %s", k.Name, by.vm.Name, f), func() error {
		a.drain()
		for i, t := range v.Tokens {
			if a.placesOf(t)&place == 0 {
				if tries++; tries%20 == 0 {
					a.fire(by, v)
				}
				return fmt.Errorf("frame %d did not reach %s", i+1, place)
			}
		}
		return nil
	})
}

// kept describes what attacks are to leave as it is: the node's addresses and routes, what
// it and the other guest believe of their neighbours, and the ways to machines around it.
func (a *arena) kept(cast attack.Cast) (lines []string) {
	a.t.Helper()
	known := []attack.Pair{cast.Other.Pair, cast.Gateway.Pair, cast.Node.Pair, cast.Core, cast.Neighbor, cast.Reflector, cast.Client}
	for _, h := range []*core.Host{a.node, a.other.Host} {
		links, err := h.Netlink().LinkList()
		require.NoError(a.t, err)
		for _, l := range links {
			name := l.Attrs().Name
			as, err := h.Netlink().AddrList(l, netlink.FAMILY_ALL)
			require.NoError(a.t, err)
			for _, at := range as {
				lines = append(lines, fmt.Sprintf("%s: address %s on %s", h.Name(), at.IPNet, name))
			}
			neighbours, err := h.Netlink().NeighList(l.Attrs().Index, netlink.FAMILY_ALL)
			require.NoError(a.t, err)
			for _, n := range neighbours {
				ip, _ := netip.AddrFromSlice(n.IP)
				ours := slices.ContainsFunc(known, func(p attack.Pair) bool { return p.V4 == ip.Unmap() || p.V6 == ip })
				if ours && n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) == 0 && !strings.HasPrefix(name, "evil") {
					lines = append(lines, fmt.Sprintf("%s: neighbour %s is %s on %s", h.Name(), ip, n.HardwareAddr, name))
				}
			}
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := h.Routes(family, 0)
			require.NoError(a.t, err)
			for _, r := range routes {
				lines = append(lines, fmt.Sprintf("%s: %s", h.Name(), r))
			}
		}
	}
	for _, p := range known {
		for _, to := range []netip.Addr{p.V4, p.V6} {
			if to.IsLinkLocalUnicast() {
				continue
			}
			ways, err := a.node.Netlink().RouteGet(to.AsSlice())
			require.NoError(a.t, err)
			for _, w := range ways {
				lines = append(lines, fmt.Sprintf("node: %s by link %d via %s, MTU %d", to, w.LinkIndex, w.Gw, w.MTU))
			}
		}
	}
	slices.Sort(lines)
	return lines
}

// difference lists what two descriptions do not have in common.
func difference(before, after []string) string {
	var lines []string
	for _, l := range before {
		if !slices.Contains(after, l) {
			lines = append(lines, "-"+l)
		}
	}
	for _, l := range after {
		if !slices.Contains(before, l) {
			lines = append(lines, "+"+l)
		}
	}
	return strings.Join(lines, "; ")
}
