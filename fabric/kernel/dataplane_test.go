package kernel_test

import (
	"context"
	"net/netip"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

var gateway = fabric.Gateway{
	IPv4: netip.MustParseAddr("169.254.1.1"), IPv6: netip.MustParseAddr("fe80::1"), MAC: fabric.DefaultMAC,
}

func open(t *testing.T) *kernel.Dataplane { return openFor(t, "lab") }

func openFor(t *testing.T, cluster string) *kernel.Dataplane {
	t.Helper()
	d := newFor(t, cluster)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	return d
}

// newFor leaves the closing to the caller.
func newFor(t *testing.T, cluster string) *kernel.Dataplane {
	t.Helper()
	labtest.Long(t)
	d, err := kernel.New(t.Context(), kernel.Config{Cluster: cluster, Underlay: []netip.Addr{node2[true], node3[false], afar[true]}})
	require.NoError(t, err)
	labtest.Running(t, d)
	return d
}

func port(vm string, nic fabric.NIC) fabric.Port {
	c := fabric.Cluster{Name: "lab", Gateway: gateway}
	return fabric.VM{Name: vm, NICs: []fabric.NIC{nic}}.Ports(&c)[0]
}

func addrs(ss ...string) []netip.Addr {
	var as []netip.Addr
	for _, s := range ss {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

func sysctl(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/net/" + path)
	require.NoError(t, err)
	return string(b[:len(b)-1])
}

func TestPutMakesWholePort(t *testing.T) {
	d := open(t)
	p := port("sea_gold", fabric.NIC{
		Addresses: addrs("203.0.113.10", "2001:db8:100::10"),
		Routes:    []netip.Prefix{netip.MustParsePrefix("198.51.100.0/29"), netip.MustParsePrefix("2001:db8:200::/64")},
	})
	require.NoError(t, d.Put(t.Context(), p))

	l, err := netlink.LinkByName("sea_gold_net0")
	require.NoError(t, err)
	at := l.Attrs()
	assert.Equal(t, "tuntap", l.Type())
	assert.Equal(t, "vmfabric:lab:sea_gold:0", at.Alias)
	assert.EqualValues(t, fabric.LinkGroup, at.Group)
	assert.Equal(t, fabric.DefaultMAC.String(), at.HardwareAddr.String())
	assert.NotZero(t, at.RawFlags&1, "up")

	as, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
	require.NoError(t, err)
	var got []string
	for _, a := range as {
		got = append(got, a.IPNet.String())
	}
	assert.ElementsMatch(t, []string{"169.254.1.1/32", "fe80::1/64"}, got)

	var routes []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rs, err := dump(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Protocol: fabric.Protocol}, netlink.RT_FILTER_PROTOCOL)
		})
		require.NoError(t, err)
		for _, r := range rs {
			s := r.Dst.String()
			if r.Gw != nil {
				s += " via " + r.Gw.String()
			}
			routes = append(routes, s)
		}
	}
	assert.ElementsMatch(t, []string{
		"203.0.113.10/32", "198.51.100.0/29 via 203.0.113.10",
		"2001:db8:100::10/128", "2001:db8:200::/64 via 2001:db8:100::10",
	}, routes)
	for path, want := range map[string]string{
		"ipv4/conf/sea_gold_net0/rp_filter": "1", "ipv4/conf/sea_gold_net0/forwarding": "1",
		"ipv4/conf/sea_gold_net0/accept_redirects": "0", "ipv4/conf/sea_gold_net0/send_redirects": "0",
		"ipv6/conf/sea_gold_net0/forwarding": "1", "ipv6/conf/sea_gold_net0/accept_ra": "0",
		"ipv6/conf/sea_gold_net0/accept_redirects": "0",
	} {
		assert.Equal(t, want, sysctl(t, path), path)
	}

	actual, err := d.Actual(t.Context())
	require.NoError(t, err)
	require.Len(t, actual, 1)
	assert.Empty(t, actual[0].Faults)
	assert.ElementsMatch(t, p.NIC.Addresses, actual[0].NIC.Addresses)
	assert.ElementsMatch(t, p.NIC.Routes, actual[0].NIC.Routes)

	require.NoError(t, d.Remove(context.Background(), "sea_gold_net0"))
	_, err = netlink.LinkByName("sea_gold_net0")
	assert.ErrorAs(t, err, &netlink.LinkNotFoundError{})
}

// TestProxyDelay: where the host proxies for neighbours, a guest does not wait.
func TestProxyDelay(t *testing.T) {
	for _, where := range []string{"all", "default"} {
		for path, want := range map[string]string{"ipv4/conf/" + where + "/proxy_arp": "ipv4", "ipv6/conf/" + where + "/proxy_ndp": "ipv6"} {
			require.NoError(t, os.WriteFile("/proc/sys/net/"+path, []byte("1"), 0))
			d := open(t)
			require.NoError(t, d.Put(t.Context(), port("web", fabric.NIC{Addresses: addrs("203.0.113.10", "2001:db8:100::10")})))
			assert.Equal(t, "0", sysctl(t, want+"/neigh/web_net0/proxy_delay"), path)
			require.NoError(t, d.Remove(t.Context(), "web_net0"))
			require.NoError(t, os.WriteFile("/proc/sys/net/"+path, []byte("0"), 0))
		}
	}
	d := open(t)
	require.NoError(t, d.Put(t.Context(), port("web", fabric.NIC{Addresses: addrs("203.0.113.10")})))
	assert.NotEqual(t, "0", sysctl(t, "ipv4/neigh/web_net0/proxy_delay"), "nothing is changed where nobody proxies")
	require.NoError(t, d.Remove(t.Context(), "web_net0"))
}

// TestCompetingRoute: a route of somebody else's that comes before ours is reported
// until it is gone; an announcement of ours beside it never.
func TestCompetingRoute(t *testing.T) {
	d := open(t)
	nic := fabric.NIC{Addresses: addrs("203.0.113.10", "2001:db8:100::10")}
	require.NoError(t, d.Put(t.Context(), port("web", nic)))
	link, err := netlink.LinkByName("web_net0")
	require.NoError(t, err)
	lo, err := netlink.LinkByName("lo")
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetUp(lo))
	faults := func() []string {
		all, err := d.Actual(t.Context())
		require.NoError(t, err)
		require.Len(t, all, 1)
		return all[0].Faults
	}
	for _, a := range nic.Addresses {
		announcement := &netlink.Route{Dst: netlink.NewIPNet(a.AsSlice()), LinkIndex: link.Attrs().Index, Protocol: fabric.Protocol, Scope: netlink.SCOPE_LINK, Priority: 100}
		require.NoError(t, netlink.RouteAdd(announcement))
		assert.Empty(t, faults())
		theirs := &netlink.Route{Dst: netlink.NewIPNet(a.AsSlice()), LinkIndex: lo.Attrs().Index, Protocol: 4, Scope: netlink.SCOPE_LINK, Priority: 7}
		require.NoError(t, netlink.RouteAdd(theirs))
		require.Len(t, faults(), 1)
		assert.Contains(t, faults()[0], "ip route del "+fabric.HostPrefix(a).String()+" metric 7")
		require.ErrorIs(t, d.Put(t.Context(), port("web", nic)), fabric.ErrForeign)
		require.NoError(t, netlink.RouteDel(theirs))
		require.Empty(t, faults())
		require.NoError(t, d.Put(t.Context(), port("web", nic)))
		require.NoError(t, netlink.RouteDel(announcement))
		assert.Empty(t, faults())
	}
	require.NoError(t, d.Remove(t.Context(), "web_net0"))
}

// TestForeignRoute: a route of somebody else's is never touched.
func TestForeignRoute(t *testing.T) {
	d := open(t)
	lo, err := netlink.LinkByName("lo")
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetUp(lo))
	for _, s := range []string{"203.0.113.10", "2001:db8:100::10"} {
		a := netip.MustParseAddr(s)
		theirs := &netlink.Route{Dst: netlink.NewIPNet(a.AsSlice()), LinkIndex: lo.Attrs().Index, Protocol: 4, Scope: netlink.SCOPE_LINK, Priority: map[bool]int{true: 0, false: 1024}[a.Is4()]}
		require.NoError(t, netlink.RouteAdd(theirs))
		err := d.Put(t.Context(), port("web", fabric.NIC{Addresses: []netip.Addr{a}}))
		require.ErrorIs(t, err, fabric.ErrForeign)
		assert.Contains(t, err.Error(), "ip route del "+s)
		_, err = netlink.LinkByName("web_net0")
		require.ErrorAs(t, err, &netlink.LinkNotFoundError{}, "what was begun is undone")
		require.NoError(t, netlink.RouteDel(theirs))
		require.NoError(t, d.Put(t.Context(), port("web", fabric.NIC{Addresses: []netip.Addr{a}})))
		require.NoError(t, d.Remove(t.Context(), "web_net0"))
	}
}
