package fabric_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/fabric"
)

func TestNodeNextHop(t *testing.T) {
	four, six := netip.MustParseAddr("10.10.0.21"), netip.MustParseAddr("fd00::21")
	both, only4, only6, unnamed := fabric.Node{Address: four, Address6: six}, fabric.Node{Address: four}, fabric.Node{Address6: six}, fabric.Node{}
	for _, tt := range []struct {
		name    string
		node    fabric.Node
		session netip.Addr
		v6      bool
		want    string
	}{
		{"the session's family, IPv4", both, four, false, "10.10.0.21"},
		{"the session's family, IPv6", both, six, true, "fd00::21"},
		{"the other, declared, IPv6", both, four, true, "fd00::21"},
		{"the other, declared, IPv4", both, six, false, "10.10.0.21"},
		{"the other, not declared, IPv6", only4, four, true, "::ffff:10.10.0.21"},
		{"the other, not declared, IPv4", only6, six, false, "fd00::21"},
		{"by range, IPv4", unnamed, four, false, "10.10.0.21"},
		{"by range, IPv6", unnamed, six, true, "fd00::21"},
		{"by range, IPv6 over IPv4", unnamed, four, true, "::ffff:10.10.0.21"},
		{"by range, IPv4 over IPv6", unnamed, six, false, "fd00::21"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			assert.Equal(t, tt.want, tt.node.NextHop(tt.session, tt.v6).String())
		})
	}
}

func TestNextHopRanges(t *testing.T) {
	c := cluster()
	in, not := c.NextHopRanges(true)
	assert.Equal(t, []netip.Prefix{prefix("fd00::/64")}, in)
	for _, other := range []string{"fd00::21", "fd00::22", "fd00::12", "fe80::1", "fe80::77", "2001:db8:100::5", "::1", "::ffff:10.10.0.21", "ff02::1"} {
		assert.True(t, slices.ContainsFunc(not, func(p netip.Prefix) bool { return p.Contains(ip(other)) }), other)
	}
	for _, free := range []string{"fd00::23", "2001:db8:1::5"} {
		assert.False(t, slices.ContainsFunc(not, func(p netip.Prefix) bool { return p.Contains(ip(free)) }), free)
	}
	assert.False(t, slices.ContainsFunc(not, func(p netip.Prefix) bool { return p.Addr().Is4() }))
	c.Nodes[0].Address6, c.Nodes[1].Address6 = netip.Addr{}, netip.Addr{}
	in, _ = c.NextHopRanges(true)
	assert.Equal(t, []netip.Prefix{prefix("::/0")}, in, "no range of this family is known")
	in, _ = c.NextHopRanges(false)
	assert.Equal(t, []netip.Prefix{prefix("10.10.0.0/24")}, in)
}
