package gobgp_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/gobgptest"
)

// with gives a cluster with these of its reflectors.
func with(c fabric.Cluster, reflectors ...int) fabric.Cluster {
	all := c.Reflectors
	c.Reflectors = nil
	for _, n := range reflectors {
		c.Reflectors = append(c.Reflectors, all[n])
	}
	return c
}

// TestReconfiguredReflectors: a speaker that runs leaves a reflector after it has a session
// with another one, which has all routes by then.
func TestReconfiguredReflectors(t *testing.T) {
	c := learning(11941, 2)
	for n := range c.Reflectors {
		rr := reflect(t, c, n)
		defer func() { require.NoError(t, rr.Close()) }()
	}
	one, former, new := newNode(t, with(c, 0), 51), newNode(t, with(c, 0), 52), newNode(t, with(c, 1), 53)
	one.announces(fabric.Normal, gobgptest.V4, gobgptest.V6)
	open(t, one, former, new)
	former.learns(one, gobgptest.V4, gobgptest.V6)
	require.NoError(t, one.speaker.Reconfigure(with(c, 1)))
	new.learns(one, gobgptest.V4, gobgptest.V6)
	assert.True(t, former.has(learnedRoute{gobgptest.V4, one.Address}, learnedRoute{gobgptest.V6, one.Address6}), "the former reflector has them meanwhile")
	sessions, err := one.speaker.Sessions(t.Context())
	require.NoError(t, err)
	require.Len(t, sessions, 1)
	assert.Equal(t, "rr2", sessions[0].Peer)
	former.learns(nil, gobgptest.V4, gobgptest.V6)
	assert.True(t, new.has(learnedRoute{gobgptest.V4, one.Address}, learnedRoute{gobgptest.V6, one.Address6}))

	more := netip.MustParsePrefix("203.0.113.51/32")
	require.NoError(t, one.speaker.Reconfigure(c))
	one.announces(fabric.Normal, more)
	former.learns(one, gobgptest.V4, gobgptest.V6, more)
	new.learns(one, more)
	one.advertises(3)

	four, err := gobgp.New(gobgp.Config{Cluster: c, Node: fabric.Node{Name: "node4", Address: netip.MustParseAddr("127.0.0.54")}})
	require.NoError(t, err)
	beyond := c
	beyond.Reflectors = []fabric.RR{{Name: "rr6", Address: netip.MustParseAddr("2001:db8:6::6")}}
	require.ErrorContains(t, four.Reconfigure(beyond), "reflector rr6: 2001:db8:6::6: node node4 has no address of that family")
	sessions, err = four.Sessions(t.Context())
	require.NoError(t, err)
	assert.Len(t, sessions, 2, "nothing has changed")
}

// TestReconfiguredPools: what a reflector sent before counts as soon as a pool has it, and
// no longer than that.
func TestReconfiguredPools(t *testing.T) {
	c := learning(11951, 1)
	rr := reflect(t, c, 0)
	defer func() { require.NoError(t, rr.Close()) }()
	one, two := newNode(t, c, 61), newNode(t, c, 62)
	open(t, one, two)
	later4, later6 := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8:300::1/128")
	two.announces(fabric.Normal, later4, later6, gobgptest.V4)
	one.learns(two, gobgptest.V4)
	require.False(t, one.has(learnedRoute{later4, two.Address}))

	wider := c
	wider.Pools = append(slices.Clone(c.Pools), fabric.Pool{Name: "later4", Prefix: netip.MustParsePrefix("192.0.2.0/24")})
	wider.Routed = append(slices.Clone(c.Routed), netip.MustParsePrefix("2001:db8:300::/48"))
	require.NoError(t, one.speaker.Reconfigure(wider))
	one.learns(two, later4, later6, gobgptest.V4)

	wider.Pools = slices.Clone(wider.Pools)
	wider.Pools[2].Exclude = []netip.Prefix{later4}
	require.NoError(t, one.speaker.Reconfigure(wider))
	one.learns(nil, later4)
	assert.True(t, one.has(learnedRoute{later6, two.Address6}, learnedRoute{gobgptest.V4, two.Address}))
	last := netip.MustParsePrefix("203.0.113.62/32")
	two.announces(fabric.Fresh, later4)
	two.announces(fabric.Normal, last)
	one.learns(two, last)
	assert.False(t, one.has(learnedRoute{later4, two.Address}), "nor what comes later")
}
