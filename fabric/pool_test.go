package fabric_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/samples"
)

func addresses(t *testing.T, s string) fabric.AddressRange {
	r, err := fabric.ParseAddressRange(s)
	require.NoError(t, err)
	return r
}

// TestPrefixesOfARange: as few as possible, which together are the range.
func TestPrefixesOfARange(t *testing.T) {
	for text, want := range map[string][]string{
		"203.0.113.10-203.0.113.99":                            {"203.0.113.10/31", "203.0.113.12/30", "203.0.113.16/28", "203.0.113.32/27", "203.0.113.64/27", "203.0.113.96/30"},
		"203.0.113.0-203.0.113.255":                            {"203.0.113.0/24"},
		"203.0.113.7-203.0.113.7":                              {"203.0.113.7/32"},
		"255.255.255.254-255.255.255.255":                      {"255.255.255.254/31"},
		"0.0.0.0-255.255.255.255":                              {"0.0.0.0/0"},
		"2001:db8::5-2001:db8::8":                              {"2001:db8::5/128", "2001:db8::6/127", "2001:db8::8/128"},
		"2001:db8:100::-2001:db8:100:ffff:ffff:ffff:ffff:ffff": {"2001:db8:100::/48"},
		"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff": {"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"},
	} {
		r := addresses(t, text)
		assert.Equal(t, want, samples.Texts(r.Prefixes()), text)
		assert.Equal(t, text, r.String())
	}
	assert.Empty(t, fabric.AddressRange{}.Prefixes())
	assert.Equal(t, addresses(t, "203.0.113.8-203.0.113.15"), fabric.RangeOf(prefix("203.0.113.9/29")))
	assert.Equal(t, addresses(t, "2001:db8::-2001:db8::ffff"), fabric.RangeOf(prefix("2001:db8::/112")))
	assert.Zero(t, fabric.RangeOf(netip.Prefix{}))
	for _, text := range []string{"", "203.0.113.10", "203.0.113.10-", "-", "a-b", "203.0.113.0/24-203.0.114.0/24"} {
		_, err := fabric.ParseAddressRange(text)
		assert.ErrorContains(t, err, "is not a range of addresses; write one such as 203.0.113.10-203.0.113.99", text)
	}
}

// TestPoolOfSeveralParts has the addresses of each, and not those between them.
func TestPoolOfSeveralParts(t *testing.T) {
	for _, tt := range []struct {
		pool        fabric.Pool
		has, not    []string
		inside, out []string
		extent      string
	}{
		{
			fabric.Pool{
				Prefix: prefix("203.0.113.0/25"), Prefixes: []netip.Prefix{prefix("198.51.100.0/28")},
				Ranges: []fabric.AddressRange{addresses(t, "192.0.2.10-192.0.2.99")},
			},
			[]string{"203.0.113.0", "203.0.113.127", "198.51.100.15", "192.0.2.10", "192.0.2.99"},
			[]string{"203.0.113.128", "198.51.100.16", "192.0.2.9", "192.0.2.100", "2001:db8::1", "::ffff:203.0.113.5"},
			[]string{"203.0.113.64/26", "192.0.2.32/27", "192.0.2.99/32"},
			[]string{"203.0.113.0/24", "192.0.2.64/26", "0.0.0.0/0", "::/0"},
			"203.0.113.0/25, 198.51.100.0/28, 192.0.2.10-192.0.2.99",
		},
		{
			fabric.Pool{Ranges: []fabric.AddressRange{addresses(t, "2001:db8::5-2001:db8::20"), addresses(t, "2001:db8::30-2001:db8::30")}},
			[]string{"2001:db8::5", "2001:db8::20", "2001:db8::30"},
			[]string{"2001:db8::4", "2001:db8::21", "2001:db8::31", "2001:db8::5%eth0", "0.0.0.5"},
			[]string{"2001:db8::10/124"},
			[]string{"2001:db8::/124", "2001:db8::/64"},
			"2001:db8::5-2001:db8::20, 2001:db8::30-2001:db8::30",
		},
	} {
		for _, a := range tt.has {
			assert.True(t, tt.pool.Has(netip.MustParseAddr(a)), a)
		}
		for _, a := range tt.not {
			assert.False(t, tt.pool.Has(netip.MustParseAddr(a)), a)
		}
		for _, p := range tt.inside {
			assert.True(t, tt.pool.HasPrefix(prefix(p)) && tt.pool.Overlaps(prefix(p)), p)
		}
		for _, p := range tt.out {
			assert.False(t, tt.pool.HasPrefix(prefix(p)), p)
			assert.Equal(t, prefix(p).Addr().Is6() == tt.pool.Is6(), tt.pool.Overlaps(prefix(p)), p)
		}
		assert.Equal(t, tt.extent, tt.pool.Extent())
		assert.False(t, tt.pool.Overlaps(netip.Prefix{}))
	}
}

// TestPoolServes the nodes that it names, and those of its labels.
func TestPoolServes(t *testing.T) {
	c := cluster()
	c.Labels = map[string][]string{"node1": {"rack1", "ssd"}, "node2": {"rack2"}}
	for _, tt := range []struct {
		pool        fabric.Pool
		one, two    bool
		elsewhere   bool // a node that the file does not name
		nodesOf     []string
		description string
	}{
		{fabric.Pool{}, true, true, true, nil, "all"},
		{fabric.Pool{Nodes: []string{"node2"}}, false, true, false, []string{"node2"}, "by name"},
		{fabric.Pool{NodeLabels: []string{"ssd"}}, true, false, false, []string{"node1"}, "by label"},
		{fabric.Pool{NodeLabels: []string{"rack2", "rack1"}}, true, true, false, []string{"node1", "node2"}, "by one label or the other"},
		{fabric.Pool{Nodes: []string{"node2"}, NodeLabels: []string{"ssd"}}, true, true, false, []string{"node2", "node1"}, "by both"},
		{fabric.Pool{NodeLabels: []string{"hdd"}}, false, false, false, nil, "by a label that no node has"},
	} {
		assert.Equal(t, tt.one, c.Serves(tt.pool, "node1"), tt.description)
		assert.Equal(t, tt.two, c.Serves(tt.pool, "node2"), tt.description)
		assert.Equal(t, tt.elsewhere, c.Serves(tt.pool, "node9"), tt.description)
		assert.Equal(t, tt.nodesOf, c.NodesOf(tt.pool), tt.description)
	}
}

// TestRoutesInPools: a prefix of a pool can be routed to a guest, not the pool.
func TestRoutesInPools(t *testing.T) {
	c := cluster()
	c.Routed = nil
	c.Pools = []fabric.Pool{
		{Name: "range4", Ranges: []fabric.AddressRange{addresses(t, "203.0.113.10-203.0.113.99")}},
		{Name: "own6", Prefix: prefix("2001:db8:100:5::/64"), PerGuest: 64},
		{Name: "plain6", Prefix: prefix("2001:db8:200::/64")},
	}
	for route, says := range map[string]string{
		"203.0.113.32/27":     "",
		"203.0.113.99/32":     "",
		"203.0.113.64/26":     "it is partly in pool range4 (203.0.113.10-203.0.113.99); route a prefix that is inside of it, or outside",
		"203.0.113.0/24":      "it holds all of pool range4; route a prefix that is not other guests'",
		"2001:db8:100:5::/64": "",
		"2001:db8:100:4::/63": "it holds all of pool own6; route a prefix that is not other guests'",
		"2001:db8:200::/64":   "it holds all of pool plain6; route a prefix that is not other guests'",
		"2001:db8:200::/65":   "",
	} {
		err := c.Permits(fabric.VM{NICs: []fabric.NIC{{Routes: []netip.Prefix{prefix(route)}}}})
		if says == "" {
			assert.NoError(t, err, route)
		} else {
			assert.EqualError(t, err, "NIC 0: route "+route+": "+says)
		}
	}
}
