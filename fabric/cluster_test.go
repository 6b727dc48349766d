package fabric_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// cluster gives a valid cluster of both families, for a test to spoil.
func cluster() fabric.Cluster {
	ip, prefix := netip.MustParseAddr, netip.MustParsePrefix
	return fabric.Cluster{
		Name:        "msk1",
		ASN:         64512,
		Communities: []fabric.Community{{A: 64512, B: 100}, {Large: true, A: 64512, B: 1, C: 100}},
		Gateway:     fabric.Gateway{IPv4: ip("169.254.1.1"), IPv6: ip("fe80::1")},
		Pools: []fabric.Pool{
			{Name: "public4", Prefix: prefix("203.0.113.0/24"), Exclude: []netip.Prefix{prefix("203.0.113.0/32")}},
			{Name: "public6", Prefix: prefix("2001:db8:100::/48"), Exclude: []netip.Prefix{prefix("2001:db8:100::/64")}},
		},
		Routed: []netip.Prefix{prefix("198.51.100.0/24"), prefix("2001:db8:200::/48")},
		Reflectors: []fabric.RR{
			{Name: "rr1", Address: ip("10.10.0.11")},
			{Name: "rr2", Address: ip("fd00::12")},
		},
		Core: []fabric.Core{{Name: "core1", Address: ip("10.10.0.1")}, {Name: "core2", Address: ip("fd00::1")}},
		Nodes: []fabric.Node{
			{Name: "node1", Address: ip("10.10.0.21"), Address6: ip("fd00::21")},
			{Name: "node2", Address: ip("10.10.0.22"), Address6: ip("fd00::22")},
		},
	}.WithDefaults()
}

func TestClusterIsValid(t *testing.T) {
	both := cluster()
	assert.Nil(t, both.Validate())

	four := cluster()
	four.Pools, four.Gateway.IPv6 = four.Pools[:1], netip.Addr{}
	four.Reflectors = four.Reflectors[:1]
	four.Nodes[0].Address6, four.Nodes[1].Address6 = netip.Addr{}, netip.Addr{}
	assert.Nil(t, four.Validate(), "IPv4 alone")

	six := cluster()
	six.Pools, six.Gateway.IPv4 = six.Pools[1:], netip.Addr{}
	six.Reflectors = six.Reflectors[1:]
	six.Nodes[0].Address, six.Nodes[1].Address = netip.Addr{}, netip.Addr{}
	assert.Nil(t, six.Validate(), "IPv6 alone")
}

func TestClusterValidate(t *testing.T) {
	ip, prefix := netip.MustParseAddr, netip.MustParsePrefix
	for _, tt := range []struct {
		name  string
		spoil func(c *fabric.Cluster)
		path  string
		text  string // a part of it
	}{
		{"no name", func(c *fabric.Cluster) { c.Name = "" }, "name", "is not a cluster name"},
		{"name with a colon", func(c *fabric.Cluster) { c.Name = "a:b" }, "name", `"a:b" is not a cluster name`},
		{"name that is a path", func(c *fabric.Cluster) { c.Name = ".." }, "name", `".." is not a cluster name`},
		{"name of 33 letters", func(c *fabric.Cluster) { c.Name = "abcdefghijklmnopqrstuvwxyz1234567" }, "name", "use 1 to 32"},
		{"no AS number", func(c *fabric.Cluster) { c.ASN = 0 }, "asn", "reserved AS number"},
		{"AS_TRANS", func(c *fabric.Cluster) { c.ASN = 23456 }, "asn", "23456 is a reserved AS number"},
		{"last AS number of two bytes", func(c *fabric.Cluster) { c.ASN = 65535 }, "asn", "65535 is a reserved AS number"},
		{"last AS number of four bytes", func(c *fabric.Cluster) { c.ASN = 1<<32 - 1 }, "asn", "4294967295 is a reserved AS number"},
		{"no community", func(c *fabric.Cluster) { c.Communities = nil }, "community", "missing"},

		{"no IPv4 gateway", func(c *fabric.Cluster) { c.Gateway.IPv4 = netip.Addr{} }, "gateway.ipv4", "missing, and pool public4 is IPv4"},
		{"no IPv6 gateway", func(c *fabric.Cluster) { c.Gateway.IPv6 = netip.Addr{} }, "gateway.ipv6", "missing, and pool public6 is IPv6"},
		{"IPv4 gateway in a pool", func(c *fabric.Cluster) { c.Gateway.IPv4 = ip("203.0.113.1") }, "gateway.ipv4", "lies in pool public4"},
		{"IPv4 gateway in a pool, excluded", func(c *fabric.Cluster) { c.Gateway.IPv4 = ip("203.0.113.0") }, "gateway.ipv4", "lies in pool public4"},
		{"IPv6 gateway in a pool", func(c *fabric.Cluster) { c.Gateway.IPv6 = ip("2001:db8:100::1") }, "gateway.ipv6", "lies in pool public6"},
		{"IPv6 in the place of IPv4", func(c *fabric.Cluster) { c.Gateway.IPv4 = ip("fe80::2") }, "gateway.ipv4", "fe80::2 is not an IPv4 address"},
		{"IPv4 in the place of IPv6", func(c *fabric.Cluster) { c.Gateway.IPv6 = ip("169.254.1.2") }, "gateway.ipv6", "169.254.1.2 is not an IPv6 address"},
		{"multicast IPv4 gateway", func(c *fabric.Cluster) { c.Gateway.IPv4 = ip("224.0.0.1") }, "gateway.ipv4", "cannot be the address of a host"},
		{"unspecified IPv6 gateway", func(c *fabric.Cluster) { c.Gateway.IPv6 = ip("::") }, "gateway.ipv6", "cannot be the address of a host"},
		{"multicast MAC address", func(c *fabric.Cluster) { c.Gateway.MAC[0] = 1 }, "gateway.mac", "is not a unicast MAC address"},
		{"no MAC address", func(c *fabric.Cluster) { c.Gateway.MAC = fabric.MAC{} }, "gateway.mac", "is not a unicast MAC address"},

		{"no pools", func(c *fabric.Cluster) { c.Pools = nil }, "pools", "missing"},
		{"pool without a name", func(c *fabric.Cluster) { c.Pools[1].Name = "" }, "pools[1].name", "is not a pool name"},
		{"two pools of one name", func(c *fabric.Cluster) { c.Pools[1].Name = "public4" }, "pools[1].name", `pool "public4" is already at pools[0].name`},
		{"pool without a prefix", func(c *fabric.Cluster) { c.Pools[1].Prefix, c.Pools[1].Exclude = netip.Prefix{}, nil }, "pools[1].prefix", "missing"},
		{"IPv4 pool with host bits", func(c *fabric.Cluster) { c.Pools[0].Prefix = prefix("203.0.113.7/24") }, "pools[0].prefix", "write 203.0.113.0/24"},
		{"IPv6 pool with host bits", func(c *fabric.Cluster) { c.Pools[1].Prefix = prefix("2001:db8:100::7/48") }, "pools[1].prefix", "write 2001:db8:100::/48"},
		{"multicast IPv4 pool", func(c *fabric.Cluster) { c.Pools[0] = fabric.Pool{Name: "m", Prefix: prefix("224.0.0.0/8")} }, "pools[0].prefix", "no addresses that a guest can use"},
		{"multicast IPv6 pool", func(c *fabric.Cluster) { c.Pools[1] = fabric.Pool{Name: "m", Prefix: prefix("ff05::/64")} }, "pools[1].prefix", "no addresses that a guest can use"},
		{"overlapping IPv4 pools", func(c *fabric.Cluster) {
			c.Pools = append(c.Pools, fabric.Pool{Name: "more4", Prefix: prefix("203.0.113.128/25")})
		}, "pools[2].prefix", "overlaps 203.0.113.0/24 of pool public4 (pools[0])"},
		{"overlapping IPv6 pools", func(c *fabric.Cluster) {
			c.Pools = append(c.Pools, fabric.Pool{Name: "more6", Prefix: prefix("2001:db8::/32")})
		}, "pools[2].prefix", "overlaps 2001:db8:100::/48 of pool public6 (pools[1])"},
		{"IPv4 exclude outside its pool", func(c *fabric.Cluster) { c.Pools[0].Exclude[0] = prefix("203.0.114.0/32") }, "pools[0].exclude[0]", "lies outside 203.0.113.0/24"},
		{"IPv6 exclude outside its pool", func(c *fabric.Cluster) { c.Pools[1].Exclude[0] = prefix("2001:db8:200::/64") }, "pools[1].exclude[0]", "lies outside 2001:db8:100::/48"},
		{"exclude larger than its pool", func(c *fabric.Cluster) { c.Pools[0].Exclude[0] = prefix("203.0.112.0/23") }, "pools[0].exclude[0]", "lies outside 203.0.113.0/24"},
		{"exclude of the other family", func(c *fabric.Cluster) { c.Pools[0].Exclude[0] = prefix("2001:db8:100::/64") }, "pools[0].exclude[0]", "lies outside 203.0.113.0/24"},
		{"IPv4 routed with host bits", func(c *fabric.Cluster) { c.Routed[0] = prefix("198.51.100.7/24") }, "routed[0]", "write 198.51.100.0/24"},
		{"IPv6 routed with host bits", func(c *fabric.Cluster) { c.Routed[1] = prefix("2001:db8:200::7/48") }, "routed[1]", "write 2001:db8:200::/48"},

		{"no reflectors", func(c *fabric.Cluster) { c.Reflectors = nil }, "reflectors", "missing"},
		{"two reflectors of one name", func(c *fabric.Cluster) { c.Reflectors[1].Name = "rr1" }, "reflectors[1].name", `reflector "rr1" is already at reflectors[0].name`},
		{"reflector without an address", func(c *fabric.Cluster) { c.Reflectors[1].Address = netip.Addr{} }, "reflectors[1].address", "missing"},
		{"IPv4 reflector, a node without", func(c *fabric.Cluster) { c.Nodes[1].Address = netip.Addr{} }, "reflectors[0].address", "10.10.0.11 is IPv4 but node node2 (nodes[1]) has no IPv4 address; give the node an address,"},
		{"IPv6 reflector, a node without", func(c *fabric.Cluster) { c.Nodes[1].Address6 = netip.Addr{} }, "reflectors[1].address", "fd00::12 is IPv6 but node node2 (nodes[1]) has no IPv6 address; give the node an address6,"},
		{"reflector in a pool", func(c *fabric.Cluster) { c.Reflectors[0].Address = ip("203.0.113.11") }, "reflectors[0].address", "lies in pool public4"},

		{"two core gateways of one name", func(c *fabric.Cluster) { c.Core[1].Name = "core1" }, "core[1].name", `core gateway "core1" is already at core[0].name`},
		{"core gateway without an address", func(c *fabric.Cluster) { c.Core[0].Address = netip.Addr{} }, "core[0].address", "missing"},
		{"core gateway at a reflector's address", func(c *fabric.Cluster) { c.Core[0].Address = ip("10.10.0.11") }, "core[0].address", "is already at reflectors[0].address"},

		{"no nodes", func(c *fabric.Cluster) { c.Nodes = nil }, "nodes", "missing"},
		{"two nodes of one name", func(c *fabric.Cluster) { c.Nodes[1].Name = "node1" }, "nodes[1].name", `node "node1" is already at nodes[0].name`},
		{"two nodes at one IPv4 address", func(c *fabric.Cluster) { c.Nodes[1].Address = ip("10.10.0.21") }, "nodes[1].address", "10.10.0.21 is already at nodes[0].address"},
		{"two nodes at one IPv6 address", func(c *fabric.Cluster) { c.Nodes[1].Address6 = ip("fd00::21") }, "nodes[1].address6", "fd00::21 is already at nodes[0].address6"},
		{"node at a reflector's address", func(c *fabric.Cluster) { c.Nodes[0].Address6 = ip("fd00::12") }, "nodes[0].address6", "fd00::12 is already at reflectors[1].address"},
		{"node at the IPv4 gateway", func(c *fabric.Cluster) { c.Nodes[0].Address = ip("169.254.1.1") }, "nodes[0].address", "is the guests' gateway"},
		{"node at the IPv6 gateway", func(c *fabric.Cluster) { c.Nodes[0].Address6 = ip("fe80::1") }, "nodes[0].address6", "is the guests' gateway"},
		{"node in an IPv4 pool", func(c *fabric.Cluster) { c.Nodes[0].Address = ip("203.0.113.21") }, "nodes[0].address", "lies in pool public4"},
		{"node in an IPv6 pool", func(c *fabric.Cluster) { c.Nodes[0].Address6 = ip("2001:db8:100::21") }, "nodes[0].address6", "lies in pool public6"},
		{"node at a loopback address", func(c *fabric.Cluster) { c.Nodes[0].Address = ip("127.0.0.1") }, "nodes[0].address", "cannot be the address of a host"},
		{"node at a multicast address", func(c *fabric.Cluster) { c.Nodes[0].Address6 = ip("ff02::1") }, "nodes[0].address6", "cannot be the address of a host"},

		{"hold time too short", func(c *fabric.Cluster) { c.Timers.Hold = 2 * time.Second }, "timers.hold", "2s is out of range"},
		{"hold time too long", func(c *fabric.Cluster) { c.Timers.Hold = 65536 * time.Second }, "timers.hold", "is out of range"},
		{"restart time too long", func(c *fabric.Cluster) { c.Timers.Restart = 4096 * time.Second }, "timers.restart", "is out of range"},
		{"connect retry too short", func(c *fabric.Cluster) { c.Timers.ConnectRetry = time.Millisecond }, "timers.connect_retry", "1ms is out of range"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := cluster()
			tt.spoil(&c)
			problems := c.Validate()
			require.Len(t, problems, 1)
			assert.Equal(t, tt.path, problems[0].Path)
			assert.Contains(t, problems[0].Text, tt.text)
			assert.Equal(t, tt.path+": "+problems[0].Text, problems[0].Error())
		})
	}
}

func TestClusterValidateWholeInternet(t *testing.T) {
	for _, all := range []string{"0.0.0.0/0", "::/0"} {
		c := cluster()
		c.Pools = append(c.Pools, fabric.Pool{Name: "all", Prefix: netip.MustParsePrefix(all)})
		c.Routed = append(c.Routed, netip.MustParsePrefix(all))
		var texts []string
		for _, p := range c.Validate() {
			texts = append(texts, p.Error())
		}
		assert.Contains(t, texts, "pools[2].prefix: "+all+" is the whole Internet; name the prefixes that were given to you")
		assert.Contains(t, texts, "routed[2]: "+all+" is the whole Internet; name the prefixes that were given to you")
	}
}

func TestClusterValidateTellsAllInOrder(t *testing.T) {
	c := cluster()
	c.ASN = 0
	c.Gateway.IPv6 = netip.MustParseAddr("2001:db8:100::1")
	c.Pools[1].Name = "public4"
	c.Nodes[1].Address = c.Nodes[0].Address
	c.Timers.Hold = time.Hour * 24
	var paths []string
	for _, p := range c.Validate() {
		paths = append(paths, p.Path)
	}
	assert.Equal(t, []string{"asn", "gateway.ipv6", "pools[1].name", "nodes[1].address", "timers.hold"}, paths)
}

func TestClusterWithDefaults(t *testing.T) {
	given := fabric.Cluster{
		ASN:        64512,
		Reflectors: []fabric.RR{{Name: "rr1"}, {Name: "rr2", ASN: 64513, Port: 1790}},
		Core:       []fabric.Core{{Name: "core1"}, {Name: "core2", ASN: 64496}},
		Timers:     fabric.Timers{Hold: time.Minute},
	}
	got := given.WithDefaults()
	assert.Equal(t, fabric.Cluster{
		ASN:        64512,
		Gateway:    fabric.Gateway{MAC: fabric.DefaultMAC},
		Reflectors: []fabric.RR{{Name: "rr1", ASN: 64512, Port: 179}, {Name: "rr2", ASN: 64513, Port: 1790}},
		Core:       []fabric.Core{{Name: "core1", ASN: 64512}, {Name: "core2", ASN: 64496}},
		Timers:     fabric.Timers{Hold: time.Minute, ConnectRetry: time.Second, Restart: 2 * time.Minute},
	}, got)
	assert.Zero(t, given.Reflectors[0].ASN, "the original stays as it was")
	assert.Equal(t, got, got.WithDefaults(), "idempotent")
}

func TestClusterFinds(t *testing.T) {
	c := cluster()
	for _, tt := range []struct {
		address, pool string
		free          bool
	}{
		{"203.0.113.10", "public4", true},
		{"203.0.113.0", "public4", false},
		{"203.0.114.1", "", false},
		{"2001:db8:100:1::10", "public6", true},
		{"2001:db8:100::10", "public6", false},
		{"2001:db8:200::1", "", false},
	} {
		a := netip.MustParseAddr(tt.address)
		p, ok := c.PoolOf(a)
		assert.Equal(t, tt.pool != "", ok, tt.address)
		assert.Equal(t, tt.pool, p.Name, tt.address)
		assert.Equal(t, tt.free, ok && p.Contains(a), tt.address)
	}

	n, err := c.Node("node2")
	require.NoError(t, err)
	assert.Equal(t, netip.MustParseAddr("10.10.0.22"), n.Source(netip.MustParseAddr("10.10.0.11")))
	assert.Equal(t, netip.MustParseAddr("fd00::22"), n.Source(netip.MustParseAddr("fd00::12")))
	_, err = c.Node("node3")
	assert.EqualError(t, err, `node "node3" is not in cluster msk1 (it has node1, node2); add it under nodes, or name another with --node`)
}

func TestCommunityAndMACReadBack(t *testing.T) {
	for _, s := range []string{"0:0", "64512:100", "65535:65535", "64512:1:100", "4294967295:4294967295:4294967295"} {
		c, err := fabric.ParseCommunity(s)
		require.NoError(t, err)
		assert.Equal(t, s, c.String())
	}
	for _, s := range []string{"", "64512", "65536:1", "1:65536", "1:2:4294967296", "1:2:3:4", "a:b", "-1:2", " 1:2", "1:"} {
		_, err := fabric.ParseCommunity(s)
		assert.ErrorContains(t, err, "is not a community; write 64512:100", s)
	}

	for _, s := range []string{"02:00:5e:00:01:01", "02-00-5E-00-01-01", "0200.5e00.0101"} {
		m, err := fabric.ParseMAC(s)
		require.NoError(t, err)
		assert.Equal(t, fabric.DefaultMAC, m)
	}
	for _, s := range []string{"", "02:00:5e:00:01", "02:00:5e:00:01:01:02:03", "x"} {
		_, err := fabric.ParseMAC(s)
		assert.ErrorContains(t, err, "is not a MAC address", s)
	}
	var m fabric.MAC
	assert.True(t, m.IsZero())
	assert.Empty(t, m.String())
	require.NoError(t, m.UnmarshalText([]byte("02:00:5e:00:01:01")))
	assert.Equal(t, fabric.DefaultMAC, m)
	require.Error(t, m.UnmarshalText([]byte("x")))
	assert.Equal(t, fabric.DefaultMAC, m, "an error changes nothing")
	require.NoError(t, m.UnmarshalText(nil))
	assert.True(t, m.IsZero())
}
