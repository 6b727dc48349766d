package e2e

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// TestForwardingRules: rules of somebody else's that keep guests' packets from
// passing are in status and why, on a node without guests too, and end with them.
// No packet by which that is found leaves the node.
func TestForwardingRules(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	a := s.agents["node1"]
	nft := func(commands ...string) {
		_, errs, code := runIn(t, a.node, "/usr/sbin/nft", strings.Join(commands, "; "))
		require.Zero(t, code, errs)
	}
	status := func(want int, says ...string) {
		var out string
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			var code int
			out, _, code = a.cli("status")
			assert.Equal(c, want, code, out)
			for _, text := range says {
				assert.Contains(c, out, text)
			}
		}, time.Minute, 50*time.Millisecond)
	}
	strangers, err := s.top.Core.Sniff("eth0", func(f core.Frame) bool {
		return f.Concerns(netip.MustParseAddr("198.41.0.4")) || f.Concerns(netip.MustParseAddr("2001:503:ba3e::2:30"))
	})
	require.NoError(t, err)

	status(0)
	nft("add table inet strange", "add chain inet strange forward { type filter hook forward priority 0; policy drop; }")
	status(1, "IPv4 packets to and from guests do not pass this node: table inet strange chain forward (policy drop)",
		"IPv6 packets to and from guests do not pass this node: table inet strange chain forward (policy drop)",
		"nft insert rule inet strange forward iifgroup 147 accept")
	_, errs, code := a.cli("attach", "web", "--address", "203.0.113.10,2001:db8:100::10", "--kind", "veth")
	require.Zero(t, code, errs)
	for _, address := range []string{"203.0.113.10", "2001:db8:100::10"} {
		out, _, code := a.cli("why", address)
		assert.Equal(t, 1, code, out)
		assert.Contains(t, out, "MISSING forwarding: IPv")
	}
	// The way out, as typed.
	nft("insert rule inet strange forward iifgroup 147 accept", "insert rule inet strange forward oifgroup 147 accept")
	status(0)
	// Asked at once, why does not tell what was.
	nft("flush chain inet strange forward", "add rule inet strange forward meta nfproto ipv4 accept")
	out, _, code := a.cli("why", "2001:db8:100::10")
	assert.Equal(t, 1, code, out)
	out, _, code = a.cli("why", "203.0.113.10")
	assert.Zero(t, code, out)
	status(1, "IPv6 packets to and from guests")
	nft("delete table inet strange")
	status(0)
	for _, address := range []string{"203.0.113.10", "2001:db8:100::10"} {
		out, _, code := a.cli("why", address)
		assert.Zero(t, code, out)
		assert.Contains(t, out, "packets pass between the underlay and a port, tried now")
	}
	assert.Empty(t, strangers.Frames())
	require.NoError(t, strangers.Close())
	_, errs, code = a.cli("detach", "web")
	require.Zero(t, code, errs)
	s.leavesNothing(a.node, seaGold...)
}

// TestNextHopGone: a node that loses the address which it announces as next hop
// withdraws the family, says so, and announces it again with the address.
func TestNextHopGone(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	a := s.agents["node1"]
	_, errs, code := a.cli("attach", "web", "--address", "203.0.113.10,2001:db8:100::10", "--kind", "veth")
	require.Zero(t, code, errs)
	v4, v6 := netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128")
	s.coreHas(a.node, v4, v6)
	run := func(script string) {
		_, errs, code := runIn(t, a.node, "/bin/sh", "-c", script)
		require.Zero(t, code, errs)
	}
	run("echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6")
	s.eventually("the core gateway has only "+v4.String(), func() error {
		routes, err := s.core.Routes(soon(t))
		if err != nil {
			return err
		}
		have := map[netip.Prefix]bool{}
		for _, r := range routes {
			have[r.Prefix] = true
		}
		if have[v6] || !have[v4] {
			return errors.New("it has others")
		}
		return nil
	})
	out, _, code := a.cli("status")
	assert.Equal(t, 1, code)
	assert.Contains(t, out, "IPv6 is announced for no guest: next hop "+a.node.Addr6().String())
	out, _, code = a.cli("why", v6.Addr().String())
	assert.Equal(t, 1, code, out)
	assert.Contains(t, out, "MISSING announcement: IPv6 is announced for no guest")
	assert.NotContains(t, out, "reflector")
	out, _, code = a.cli("why", v4.Addr().String())
	assert.Zero(t, code, out)
	run("echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6; ip -6 addr add " + a.node.Addr6().String() + "/64 dev eth0 nodad")
	s.coreHas(a.node, v4, v6)
	out, _, code = a.cli("why", v6.Addr().String())
	assert.Equal(t, 1, code, out)
	assert.Contains(t, out, "MISSING forwarding: IPv6 packets of guests have no way out of this node", "the kernel dropped the default route with the address")
	run("ip -6 route add default via " + core.CoreAddr6.String())
	out, _, code = a.cli("why", v6.Addr().String())
	assert.Zero(t, code, out)
	require.Eventually(t, func() bool { _, _, code := a.cli("status"); return code == 0 }, time.Minute, 50*time.Millisecond)
}

// TestNoWayOut: a node without a route to the outside says so, in the family that
// lacks it, and why does; both are well as soon as it has one again.
func TestNoWayOut(t *testing.T) {
	t.Parallel()
	s := start(t, options{})
	a := s.agents["node1"]
	_, errs, code := a.cli("attach", "web", "--address", "203.0.113.10,2001:db8:100::10", "--kind", "veth")
	require.Zero(t, code, errs)
	status := func(want int, says string) {
		t.Helper()
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			out, _, code := a.cli("status")
			assert.Equal(c, want, code, out)
			assert.Contains(c, out, says)
		}, time.Minute, 20*time.Millisecond)
	}
	s.coreHas(a.node, netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128"))
	for _, f := range []struct{ family, v, address, other, via string }{
		{"IPv4", "-4", "203.0.113.10", "2001:db8:100::10", core.CoreAddr4.String()},
		{"IPv6", "-6", "2001:db8:100::10", "203.0.113.10", core.CoreAddr6.String()},
	} {
		route := func(verb string) {
			_, errs, code := runIn(t, a.node, "/bin/sh", "-c", "ip "+f.v+" route "+verb+" default via "+f.via)
			require.Zero(t, code, errs)
		}
		status(0, "is healthy")
		route("del")
		status(1, f.family+" packets of guests have no way out of this node")
		out, _, code := a.cli("why", f.address)
		assert.Equal(t, 1, code, out)
		assert.Contains(t, out, "MISSING forwarding: "+f.family+" packets of guests have no way out")
		out, _, code = a.cli("why", f.other)
		assert.Zero(t, code, out)
		route("add")
		out, _, code = a.cli("why", f.address)
		assert.Zero(t, code, out)
		status(0, "is healthy")
	}
}
