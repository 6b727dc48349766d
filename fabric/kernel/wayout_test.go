package kernel_test

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// wayOutConfig is of a cluster whose pools are given, on the node of the moves' lab.
func wayOutConfig(samples []netip.Addr, pools ...netip.Prefix) kernel.Config {
	return kernel.Config{
		Cluster: "lab", Underlay: []netip.Addr{node2[true], node2[false]}, Samples: samples,
		NextHop: netip.MustParseAddr("10.10.0.21"), NextHop6: netip.MustParseAddr("fd00:10:10::21"),
		Private: []netip.Prefix{netip.MustParsePrefix("10.10.0.0/24"), netip.MustParsePrefix("fd00:10:10::/64")},
		Pools:   pools, Routers: addrs("10.10.0.1", "fd00:10:10::1"),
	}
}

// outside is what leads outside for guests, by whether it is IPv4, and what does not.
type outside struct {
	name     string
	guests   []netip.Addr
	pools    []netip.Prefix
	gateways map[bool]string
	specific map[bool]string // a route that leads outside
	near     map[bool]string // one that does not
}

var outsides = []outside{
	{
		"public guests", trialGuests,
		[]netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:100::/48")},
		map[bool]string{true: "10.10.0.1", false: "fd00:10:10::1"},
		map[bool]string{true: "192.0.2.0/25", false: "2001:db8:ffff::/64"},
		map[bool]string{true: "10.99.0.0/16", false: "fd00:99::/32"},
	},
	{
		"private guests", addrs("10.50.0.250", "fd00:50::fa"),
		[]netip.Prefix{netip.MustParsePrefix("10.50.0.0/16"), netip.MustParsePrefix("fd00:50::/32")},
		map[bool]string{true: "10.10.0.1", false: "fd00:10:10::1"},
		map[bool]string{true: "10.99.0.0/16", false: "fd00:99::/32"},
		map[bool]string{true: "10.50.7.0/24", false: "fd00:50:7::/48"}, // a part of the pool, which another node has
	},
}

// TestWayOut: a node that has no route to the outside for what guests send is ill,
// in the family that lacks it, until it has one; one whose routes are more specific
// than a default route is not.
func TestWayOut(t *testing.T) {
	newMoveLab(t)
	for _, c := range outsides {
		for _, ports := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/port %v", c.name, ports), func(t *testing.T) {
				d, err := kernel.New(t.Context(), wayOutConfig(c.guests, c.pools...))
				require.NoError(t, err)
				labtest.Running(t, d)
				t.Cleanup(func() { require.NoError(t, d.Close()) })
				if ports {
					p := port("web", fabric.NIC{Addresses: []netip.Addr{c.guests[0].Prev(), c.guests[1].Prev()}, Kind: fabric.Veth})
					require.NoError(t, d.Put(t.Context(), p))
					t.Cleanup(func() { require.NoError(t, d.Remove(t.Context(), p.Name)) })
				}
				bothFamilies(t, func(t *testing.T, v4 bool) { losesItsWayOut(t, d, c, v4) })
			})
		}
	}
}

// losesItsWayOut: a node loses it in one family, and gets others, of which some will do.
func losesItsWayOut(t *testing.T, d *kernel.Dataplane, c outside, v4 bool) {
	t.Helper()
	via, family, v := " via "+c.gateways[v4], map[bool]string{true: "IPv4", false: "IPv6"}[v4], map[bool]string{true: "-4", false: "-6"}[v4]
	guest := c.guests[map[bool]int{true: 0, false: 1}[v4]]
	ill := family + " packets of guests have no way out of this node: its routes lead nowhere outside"
	route := func(verb, what string) {
		t.Helper()
		ipIn(t, nil, "route "+verb+" "+what)
	}
	well := func() {
		t.Helper()
		diagnosed(t, d)
		assert.Empty(t, faultLines(t, d))
	}
	well()
	route("del", "default"+via)
	diagnosed(t, d, ill)
	lines := faultLines(t, d)
	require.Len(t, lines, 1)
	assert.Contains(t, lines[0], fmt.Sprintf("ip %s route add default via %s, and in the network's configuration", v, c.gateways[v4]))
	route("add", c.near[v4]+via)
	assert.Len(t, faultLines(t, d), 1, "that is no outside")
	route("add", c.specific[v4]+via)
	well()
	route("del", c.specific[v4]+via)
	diagnosed(t, d, ill)
	route("del", c.near[v4]+via)
	// A way for guests alone, of which the main table says nothing.
	route("add", "default"+via+" table 100")
	assert.Len(t, faultLines(t, d), 1)
	rule := fmt.Sprintf("from %s/%d lookup 100 priority 1000", guest, map[bool]int{true: 24, false: 64}[v4])
	_, err := exec.Command("ip", append([]string{v, "rule", "add"}, strings.Fields(rule)...)...).CombinedOutput()
	require.NoError(t, err)
	well()
	_, err = exec.Command("ip", append([]string{v, "rule", "del"}, strings.Fields(rule)...)...).CombinedOutput()
	require.NoError(t, err)
	diagnosed(t, d, ill)
	route("del", "default"+via+" table 100")
	// Likewise of what somebody marks.
	marked := strings.Fields("fwmark 7 lookup 100 priority 1000")
	route("add", "default"+via+" table 100")
	_, err = exec.Command("ip", append([]string{v, "rule", "add"}, marked...)...).CombinedOutput()
	require.NoError(t, err)
	well()
	route("del", "default"+via+" table 100")
	diagnosed(t, d, ill)
	_, err = exec.Command("ip", append([]string{v, "rule", "del"}, marked...)...).CombinedOutput()
	require.NoError(t, err)
	// A route that refuses.
	_, err = exec.Command("ip", v, "route", "add", "prohibit", "default").CombinedOutput()
	require.NoError(t, err)
	lines = faultLines(t, d)
	require.Len(t, lines, 1)
	assert.Contains(t, lines[0], "remove the route or the rule that refuses them (ip "+v+" route; ip "+v+" rule)")
	_, err = exec.Command("ip", v, "route", "del", "prohibit", "default").CombinedOutput()
	require.NoError(t, err)
	route("add", "default"+via)
	well()
}
