package core_test

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

func TestSmallClusterIsValid(t *testing.T) {
	t.Parallel()
	c := core.SmallCluster(3)
	assert.Empty(t, c.Validate())
}

func TestUnderlay6ReadsLikeUnderlay4(t *testing.T) {
	t.Parallel()
	for n, want := range map[byte]string{1: "fd00:10:10::1", 21: "fd00:10:10::21", 100: "fd00:10:10::100", 254: "fd00:10:10::254"} {
		assert.Equal(t, netip.MustParseAddr(want), core.Underlay6(n))
	}
}

func TestEveryHostReachesEveryOther(t *testing.T) {
	t.Parallel()
	_, top := labtest.Build(t, core.SmallCluster(2))
	node1, node2 := top.Nodes["node1"], top.Nodes["node2"]
	for _, tc := range []struct {
		name string
		from *core.Host
		to   []netip.Addr
	}{
		{"client to node", top.Client, []netip.Addr{node1.Addr4(), node1.Addr6()}},
		{"node to client", node2, []netip.Addr{core.ClientAddr4, core.ClientAddr6}},
		{"node to node", node1, []netip.Addr{node2.Addr4(), node2.Addr6()}},
		{"client to reflector", top.Client, []netip.Addr{top.Reflectors["rr1"].Addr4(), top.Reflectors["rr2"].Addr6()}},
	} {
		for _, to := range tc.to {
			_, err := tc.from.Ping(labtest.Soon(t), to)
			assert.NoError(t, err, tc.name)
		}
	}
	r, ok, err := node1.Route(netip.MustParsePrefix("::/0"))
	require.NoError(t, err)
	require.True(t, ok)
	assert.Equal(t, []core.Hop{{Via: core.CoreAddr6, Link: "eth0"}}, r.Hops)
}

func TestDisconnectIsSilent(t *testing.T) {
	t.Parallel()
	lab, top := labtest.Build(t, core.SmallCluster(1))
	node := top.Nodes["node1"]
	_, err := top.Core.Ping(labtest.Soon(t), node.Addr4())
	require.NoError(t, err)

	require.NoError(t, lab.Disconnect(node))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = top.Core.Ping(ctx, node.Addr4())
	assert.ErrorContains(t, err, "none answered")
	link, err := node.Link("eth0")
	require.NoError(t, err)
	assert.Equal(t, netlink.LinkOperState(netlink.OperUp), link.Attrs().OperState, "carrier stays")

	require.NoError(t, lab.Reconnect(node))
	_, err = top.Core.Ping(labtest.Soon(t), node.Addr6())
	assert.NoError(t, err)
}

func TestSplitCutsOffTogether(t *testing.T) {
	t.Parallel()
	lab, top := labtest.Build(t, core.SmallCluster(2))
	one, two := top.Nodes["node1"], top.Nodes["node2"]
	require.NoError(t, lab.Split(one, two))
	_, err := one.Ping(labtest.Soon(t), two.Addr4())
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = top.Core.Ping(ctx, one.Addr4())
	assert.ErrorContains(t, err, "none answered")
	for _, h := range []*core.Host{one, two} {
		require.NoError(t, lab.Reconnect(h))
		_, err = top.Core.Ping(labtest.Soon(t), h.Addr6())
		assert.NoError(t, err)
	}
}

// port makes what a node's agent makes for a guest's NIC of kind veth.
func port(t testing.TB, node *core.Host, p fabric.Port) {
	t.Helper()
	require.NoError(t, node.Lab().Cable(node, p.Name, node, fabric.PeerName(p.VM, p.Index)))
	link, err := node.Link(p.Name)
	require.NoError(t, err)
	require.NoError(t, node.Netlink().LinkSetHardwareAddr(link, p.Gateway.MAC[:]))
	require.NoError(t, node.AddAddr(p.Name, fabric.HostPrefix(p.Gateway.IPv4), netip.PrefixFrom(p.Gateway.IPv6, 64)))
	for _, a := range p.NIC.Addresses {
		require.NoError(t, node.AddRoute(fabric.HostPrefix(a), netip.Addr{}, p.Name))
	}
	for _, r := range p.NIC.Routes {
		require.NoError(t, node.AddRoute(r, p.NIC.Via(r), p.Name))
	}
}

func TestGuestMoves(t *testing.T) {
	t.Parallel()
	cluster := core.SmallCluster(2)
	lab, top := labtest.Build(t, cluster)
	vm := fabric.VM{Name: "web", NICs: []fabric.NIC{
		{
			Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10")},
			Routes:    []netip.Prefix{netip.MustParsePrefix("198.51.100.0/29"), netip.MustParsePrefix("2001:db8:200::/64")},
		},
		{Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.11"), netip.MustParseAddr("2001:db8:100::11")}},
	}}
	reach := []netip.Addr{
		netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10"),
		netip.MustParseAddr("203.0.113.11"), netip.MustParseAddr("2001:db8:100::11"),
		netip.MustParseAddr("198.51.100.5"), netip.MustParseAddr("2001:db8:200::5"),
	}
	attach := func(node *core.Host) {
		for _, p := range vm.Ports(&cluster) {
			port(t, node, p)
		}
		for _, p := range vm.Prefixes() {
			via := node.Addr4()
			if p.Addr().Is6() {
				via = node.Addr6()
			}
			require.NoError(t, top.Core.AddRoute(p, via, "eth0"))
		}
	}
	node1, node2 := top.Nodes["node1"], top.Nodes["node2"]
	attach(node1)
	guest, err := lab.AddGuest(node1, vm, cluster.Gateway)
	require.NoError(t, err)
	mac := guest.MAC(0)
	for _, a := range reach {
		_, err := top.Client.Ping(labtest.Soon(t), a)
		require.NoError(t, err, "on node1")
	}
	_, err = guest.Ping(labtest.Soon(t), core.ClientAddr6)
	require.NoError(t, err)
	_, err = guest.Ping(labtest.Soon(t), netip.MustParseAddr("fe80::1%eth0"))
	require.NoError(t, err)

	attach(node2)
	require.NoError(t, guest.Plug(node2))
	assert.True(t, node1.HasLink("web_peer0"), "the end at node1 is put back")
	for _, a := range reach {
		_, err := top.Client.Ping(labtest.Soon(t), a)
		require.NoError(t, err, "on node2")
	}
	assert.Equal(t, mac, guest.MAC(0))
	require.NoError(t, guest.Unplug())
	require.NoError(t, node2.DeleteLink("web_net0"))
	assert.Nil(t, guest.Node())
}

func TestTrafficOfTwoGuestsStaysApart(t *testing.T) {
	t.Parallel()
	cluster := core.SmallCluster(1)
	lab, top := labtest.Build(t, cluster)
	node := top.Nodes["node1"]
	addrs := map[string]netip.Addr{"a": netip.MustParseAddr("203.0.113.1"), "b": netip.MustParseAddr("203.0.113.2")}
	for name, a := range addrs {
		vm := fabric.VM{Name: name, NICs: []fabric.NIC{{Addresses: []netip.Addr{a}}}}
		port(t, node, vm.Ports(&cluster)[0])
		require.NoError(t, top.Core.AddRoute(fabric.HostPrefix(a), node.Addr4(), "eth0"))
		_, err := lab.AddGuest(node, vm, cluster.Gateway)
		require.NoError(t, err)
	}
	concerns := func(a netip.Addr) func(core.Frame) bool {
		return func(f core.Frame) bool { return f.Concerns(a) }
	}
	own, err := node.Sniff("a_net0", concerns(addrs["a"]))
	require.NoError(t, err)
	other, err := node.Sniff("b_net0", concerns(addrs["a"]))
	require.NoError(t, err)
	_, err = top.Client.Ping(labtest.Soon(t), addrs["a"])
	require.NoError(t, err)
	_, err = own.Wait(labtest.Soon(t), 2)
	require.NoError(t, err)
	frames := own.Frames() // the answered request is among them
	assert.True(t, slices.ContainsFunc(frames, func(f core.Frame) bool { return f.EtherType() == 0x0800 }), "ARP may come before and after the packets")
	assert.WithinDuration(t, time.Now(), frames[0].At, time.Minute)
	require.NoError(t, own.Close())
	require.NoError(t, other.Close())
	assert.Empty(t, other.Frames())
}

func TestProbeCountsWhatIsLost(t *testing.T) {
	t.Parallel()
	lab, top := labtest.Build(t, core.SmallCluster(1))
	node := top.Nodes["node1"]
	for _, to := range []netip.Addr{node.Addr4(), node.Addr6()} {
		p, err := top.Client.Probe(to, 5*time.Millisecond)
		require.NoError(t, err)
		answers := func(more int) {
			n := p.Received() + more
			require.Eventually(t, func() bool { return p.Received() >= n }, 20*time.Second, time.Millisecond)
		}
		answers(20)
		require.NoError(t, lab.Disconnect(node))
		start := time.Now()
		time.Sleep(100 * time.Millisecond) // the length of the outage is what is measured
		require.NoError(t, lab.Reconnect(node))
		outage := time.Since(start)
		answers(20)
		r := p.Stop()
		assert.Equal(t, r.Sent, r.Received+r.Lost)
		assert.NotZero(t, r.Lost)
		assert.Equal(t, r.Lost, r.LongestLoss, "one outage")
		assert.GreaterOrEqual(t, r.LongestGap, 90*time.Millisecond, "outage %v", outage)
		assert.Zero(t, r.Duplicates)
	}
}

func TestProbeCountsRefusals(t *testing.T) {
	t.Parallel()
	_, top := labtest.Build(t, core.SmallCluster(0))
	for _, to := range []string{"203.0.113.77", "2001:db8:100::77"} { // the core has no route
		p, err := top.Client.Probe(netip.MustParseAddr(to), 5*time.Millisecond)
		require.NoError(t, err)
		time.Sleep(50 * time.Millisecond) // some requests
		r := p.Stop()
		assert.Zero(t, r.Received)
		assert.NotZero(t, r.Refused, to)
	}
}

// TestTapIsOnTheUnderlay: what opens the tap sees what is broadcast on the underlay.
func TestTapIsOnTheUnderlay(t *testing.T) {
	t.Parallel()
	lab, top := labtest.Build(t, core.SmallCluster(1))
	sw, err := lab.AddTap("machine")
	require.NoError(t, err)
	var tap *os.File
	require.NoError(t, sw.Do(func() (err error) {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq("machine")
		if err == nil {
			request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		tap = os.NewFile(uintptr(fd), "tap")
		return err
	}))
	defer tap.Close()
	p, err := top.Nodes["node1"].Probe(core.Underlay4(99), 10*time.Millisecond)
	require.NoError(t, err)
	defer p.Stop()
	require.NoError(t, tap.SetReadDeadline(time.Now().Add(time.Minute)))
	asksFor := core.Underlay4(99).AsSlice()
	for frame := make([]byte, 2048); ; {
		n, err := tap.Read(frame)
		require.NoError(t, err)
		if n >= 42 && frame[12] == 8 && frame[13] == 6 && bytes.Equal(frame[38:42], asksFor) {
			return
		}
	}
}
