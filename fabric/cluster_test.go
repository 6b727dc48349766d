package fabric_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

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

// spoiltClusters are clusters with one mistake each, and what is said of it.
var spoiltClusters = []struct {
	name  string
	spoil func(c *fabric.Cluster)
	path  string
	text  string // a part of it
}{
	{"no name", func(c *fabric.Cluster) { c.Name = "" }, "name", "missing; name the cluster with 1 to 32 letters"},
	{"name with a colon", func(c *fabric.Cluster) { c.Name = "a:b" }, "name", `"a:b" is not a cluster name`},
	{"name that is a path", func(c *fabric.Cluster) { c.Name = ".." }, "name", `".." is not a cluster name`},
	{"name of 33 letters", func(c *fabric.Cluster) { c.Name = "abcdefghijklmnopqrstuvwxyz1234567" }, "name", "use 1 to 32"},
	{"no AS number", func(c *fabric.Cluster) { c.ASN = 0 }, "asn", "missing; give your own AS number, or a private one (64512 to 65534)"},
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
	{"pool without a name", func(c *fabric.Cluster) { c.Pools[1].Name = "" }, "pools[1].name", "missing; name the pool with"},
	{"two pools of one name", func(c *fabric.Cluster) { c.Pools[1].Name = "public4" }, "pools[1].name", `pool "public4" is already at pools[0].name`},
	{"pool without a prefix", func(c *fabric.Cluster) { c.Pools[1].Prefix, c.Pools[1].Exclude = netip.Prefix{}, nil }, "pools[1].prefix", "missing"},
	{"IPv4 pool with host bits", func(c *fabric.Cluster) { c.Pools[0].Prefix = prefix("203.0.113.7/24") }, "pools[0].prefix", "write 203.0.113.0/24"},
	{"IPv6 pool with host bits", func(c *fabric.Cluster) { c.Pools[1].Prefix = prefix("2001:db8:100::7/48") }, "pools[1].prefix", "write 2001:db8:100::/48"},
	{"multicast IPv4 pool", func(c *fabric.Cluster) { c.Pools[0] = fabric.Pool{Name: "m", Prefix: prefix("224.0.0.0/8")} }, "pools[0].prefix", "224.0.0.0/8 holds multicast addresses, which no guest can have; "},
	{"multicast IPv6 pool", func(c *fabric.Cluster) { c.Pools[1] = fabric.Pool{Name: "m", Prefix: prefix("ff05::/64")} }, "pools[1].prefix", "ff05::/64 holds multicast addresses, which no guest can have; "},
	{"overlapping IPv4 pools", func(c *fabric.Cluster) {
		c.Pools = append(c.Pools, fabric.Pool{Name: "more4", Prefix: prefix("203.0.113.128/25")})
	}, "pools[2].prefix", "overlaps 203.0.113.0/24 of pool public4 (pools[0])"},
	{"overlapping IPv6 pools", func(c *fabric.Cluster) {
		c.Pools = append(c.Pools, fabric.Pool{Name: "more6", Prefix: prefix("2001:db8:100::/47")})
	}, "pools[2].prefix", "overlaps 2001:db8:100::/48 of pool public6 (pools[1])"},
	{"a prefix of the other family in a pool", func(c *fabric.Cluster) {
		c.Pools[0].Prefixes = []netip.Prefix{prefix("192.0.2.0/24"), prefix("2001:db8:300::/48")}
	}, "pools[0].prefixes[1]", "2001:db8:300::/48 is of another family than 203.0.113.0/24 (pools[0].prefix); a pool has one, make two pools"},
	{"a prefix twice in a pool", func(c *fabric.Cluster) {
		c.Pools[1].Prefixes = []netip.Prefix{prefix("2001:db8:300::/48"), prefix("2001:db8:300:1::/64")}
	}, "pools[1].prefixes[1]", "2001:db8:300:1::/64 overlaps 2001:db8:300::/48 (pools[1].prefixes[0]); leave out what is in both"},
	{"a range inside the prefix", func(c *fabric.Cluster) {
		c.Pools[0].Ranges = []fabric.AddressRange{{First: ip("203.0.113.10"), Last: ip("203.0.113.99")}}
	}, "pools[0].ranges[0]", "203.0.113.10-203.0.113.99 overlaps 203.0.113.0/24 (pools[0].prefix); leave out what is in both"},
	{"a range that overlaps another pool", func(c *fabric.Cluster) {
		c.Pools = append(c.Pools, fabric.Pool{Name: "more", Ranges: []fabric.AddressRange{{First: ip("203.0.112.10"), Last: ip("203.0.113.5")}}})
	}, "pools[2].ranges[0]", "203.0.112.10-203.0.113.5 overlaps 203.0.113.0/24 of pool public4 (pools[0]); make them disjoint"},
	{"a pool that overlaps a range", func(c *fabric.Cluster) {
		c.Pools = append([]fabric.Pool{{Name: "more", Ranges: []fabric.AddressRange{{First: ip("2001:db8:100::5"), Last: ip("2001:db8:100::9")}}}}, c.Pools...)
	}, "pools[2].prefix", "2001:db8:100::/48 overlaps 2001:db8:100::5-2001:db8:100::9 of pool more (pools[0]); make them disjoint"},
	{"a range that ends before it begins", func(c *fabric.Cluster) {
		c.Pools[0] = fabric.Pool{Name: "r", Ranges: []fabric.AddressRange{{First: ip("192.0.2.9"), Last: ip("192.0.2.1")}}}
	}, "pools[0].ranges[0]", "192.0.2.9-192.0.2.1 ends before it begins; write 192.0.2.1-192.0.2.9"},
	{"a range of two families", func(c *fabric.Cluster) {
		c.Pools[0] = fabric.Pool{Name: "r", Ranges: []fabric.AddressRange{{First: ip("192.0.2.9"), Last: ip("2001:db8::1")}}}
	}, "pools[0].ranges[0]", "192.0.2.9-2001:db8::1 is from IPv4 to IPv6; give two addresses of one family"},
	{"a range of multicast", func(c *fabric.Cluster) {
		c.Pools[0] = fabric.Pool{Name: "r", Ranges: []fabric.AddressRange{{First: ip("223.255.255.0"), Last: ip("224.0.0.9")}}}
	}, "pools[0].ranges[0]", "223.255.255.0-224.0.0.9 holds multicast addresses, which no guest can have"},
	{"a range that is none", func(c *fabric.Cluster) {
		c.Pools[0] = fabric.Pool{Name: "r", Ranges: []fabric.AddressRange{{}}}
	}, "pools[0].ranges[0]", "not a range of addresses; for example 203.0.113.10-203.0.113.99"},
	{"a further prefix that is none", func(c *fabric.Cluster) { c.Pools[0].Prefixes = make([]netip.Prefix, 1) }, "pools[0].prefixes[0]", "not a prefix; for example 203.0.113.0/24"},
	{"a prefix per guest of one address", func(c *fabric.Cluster) { c.Pools[0].PerGuest = 32 }, "pools[0].per_guest", "32 is no length of a prefix of several addresses; give one up to 31, such as 29, or leave the key out for single addresses"},
	{"an IPv6 prefix per guest of one address", func(c *fabric.Cluster) { c.Pools[1].PerGuest = 128 }, "pools[1].per_guest", "give one up to 127, such as 64"},
	{"IPv6 addresses without an address", func(c *fabric.Cluster) { c.Pools[1].NoAddress = true }, "pools[1].guest_address", "give the length of a prefix for each guest under per_guest, such as 64"},
	{"a prefix per guest larger than the pool", func(c *fabric.Cluster) { c.Pools[1].PerGuest = 40 }, "pools[1].prefix", "2001:db8:100::/48 is not made of whole prefixes of length 40, of which each guest gets one (per_guest); give it ends that fit, or a longer per_guest"},
	{"a range of broken prefixes", func(c *fabric.Cluster) {
		c.Pools = append(c.Pools, fabric.Pool{Name: "r", PerGuest: 29, Ranges: []fabric.AddressRange{{First: ip("192.0.2.8"), Last: ip("192.0.2.20")}}})
	}, "pools[2].ranges[0]", "192.0.2.8-192.0.2.20 is not made of whole prefixes of length 29"},
	{"a label of no node", func(c *fabric.Cluster) { c.Pools[0].NodeLabels = []string{"ssd"} }, "pools[0].node_labels[0]", `no node of this file has the label "ssd"; correct it, or add it to the labels of a node`},
	{"a label twice", func(c *fabric.Cluster) { c.Labels = map[string][]string{"node1": {"ssd", "rack1", "ssd"}} }, "nodes[0].labels[2]", `"ssd" is already at nodes[0].labels[0]; remove one`},
	{"a label of a pool twice", func(c *fabric.Cluster) {
		c.Labels, c.Pools[1].NodeLabels = map[string][]string{"node2": {"ssd"}}, []string{"ssd", "ssd"}
	}, "pools[1].node_labels[1]", `"ssd" is already at pools[1].node_labels[0]; remove one`},
	{"a label with a blank", func(c *fabric.Cluster) { c.Labels = map[string][]string{"node1": {"a b"}} }, "nodes[0].labels[0]", `"a b" is not a label; use 1 to 32 letters`},
	{"an excluded address of a hole", func(c *fabric.Cluster) {
		c.Pools[0].Prefixes = []netip.Prefix{prefix("203.0.115.0/24")}
		c.Pools[0].Exclude = []netip.Prefix{prefix("203.0.114.9/32")}
	}, "pools[0].exclude[0]", "203.0.114.9/32 lies outside 203.0.113.0/24, 203.0.115.0/24; remove it or correct it"},
	{"all of a prefix and a range excluded", func(c *fabric.Cluster) {
		c.Pools = append(c.Pools, fabric.Pool{
			Name: "r", Prefixes: []netip.Prefix{prefix("192.0.2.0/31")}, Ranges: []fabric.AddressRange{{First: ip("192.0.2.9"), Last: ip("192.0.2.12")}},
			Exclude: []netip.Prefix{prefix("192.0.2.0/31"), prefix("192.0.2.9/32"), prefix("192.0.2.10/31"), prefix("192.0.2.12/32")},
		})
	}, "pools[2].exclude", "leaves no address of 192.0.2.0/31, 192.0.2.9-192.0.2.12; exclude less, or remove the pool"},
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

	{"no nodes", func(c *fabric.Cluster) { c.Nodes = nil }, "nodes", "missing"},
	{"two nodes of one name", func(c *fabric.Cluster) { c.Nodes[1].Name = "node1" }, "nodes[1].name", `node "node1" is already at nodes[0].name`},
	{"two nodes at one IPv4 address", func(c *fabric.Cluster) { c.Nodes[1].Address = ip("10.10.0.21") }, "nodes[1].address", "10.10.0.21 is already at nodes[0].address"},
	{"two nodes at one IPv6 address", func(c *fabric.Cluster) { c.Nodes[1].Address6 = ip("fd00::21") }, "nodes[1].address6", "fd00::21 is already at nodes[0].address6"},
	{"node at a core gateway's address", func(c *fabric.Cluster) { c.Nodes[0].Address6 = ip("fd00::1") }, "nodes[0].address6", "fd00::1 is already at core[1].address"},
	{"two reflectors at one address", func(c *fabric.Cluster) { c.Reflectors[1].Address = ip("10.10.0.11") }, "reflectors[1].address", "10.10.0.11 is already at reflectors[0].address; each needs"},
	{"two core gateways at one address", func(c *fabric.Cluster) { c.Core[1].Address = ip("10.10.0.1") }, "core[1].address", "10.10.0.1 is already at core[0].address; each needs"},
	{"node without an address", func(c *fabric.Cluster) {
		c.Nodes[1].Address, c.Nodes[1].Address6 = netip.Addr{}, netip.Addr{}
	}, "nodes[1].address", "missing; give the node's address"},
	{"IPv6 in a node's address", func(c *fabric.Cluster) { c.Nodes[1].Address = ip("fd00::23") }, "nodes[1].address", "fd00::23 is not an IPv4 address; write it as address6"},
	{"IPv4 in a node's address6", func(c *fabric.Cluster) { c.Nodes[1].Address6 = ip("10.10.0.23") }, "nodes[1].address6", "10.10.0.23 is not an IPv6 address; write it as address"},
	{"node at the IPv4 gateway", func(c *fabric.Cluster) { c.Nodes[0].Address = ip("169.254.1.1") }, "nodes[0].address", "is the guests' gateway"},
	{"node at the IPv6 gateway", func(c *fabric.Cluster) { c.Nodes[0].Address6 = ip("fe80::1") }, "nodes[0].address6", "is the guests' gateway"},
	{"node in an IPv4 pool", func(c *fabric.Cluster) { c.Nodes[0].Address = ip("203.0.113.21") }, "nodes[0].address", "lies in pool public4"},
	{"node in an IPv6 pool", func(c *fabric.Cluster) { c.Nodes[0].Address6 = ip("2001:db8:100:1::21") }, "nodes[0].address6", "lies in pool public6"},
	{"node at a loopback address", func(c *fabric.Cluster) { c.Nodes[0].Address = ip("127.0.0.1") }, "nodes[0].address", "cannot be the address of a host"},
	{"node at a multicast address", func(c *fabric.Cluster) { c.Nodes[0].Address6 = ip("ff02::1") }, "nodes[0].address6", "cannot be the address of a host"},

	{"IPv4-mapped gateway", func(c *fabric.Cluster) { c.Gateway.IPv6 = ip("::ffff:169.254.1.2") }, "gateway.ipv6", "::ffff:169.254.1.2 is an IPv4 address in IPv6 form; write 169.254.1.2"},
	{"gateway with a zone", func(c *fabric.Cluster) { c.Gateway.IPv6 = ip("fe80::1%eth0") }, "gateway.ipv6", "fe80::1%eth0 has a zone, which means nothing to other hosts; write the address without it"},
	{"IPv4-mapped pool", func(c *fabric.Cluster) {
		c.Pools[0] = fabric.Pool{Name: "m", Prefix: prefix("::ffff:203.0.113.0/120")}
	}, "pools[0].prefix", "::ffff:203.0.113.0/120 is an IPv4 prefix in IPv6 form; write 203.0.113.0/24"},
	{"IPv4-mapped pool and more", func(c *fabric.Cluster) { c.Pools[0] = fabric.Pool{Name: "m", Prefix: prefix("::ffff:0:0/90")} }, "pools[0].prefix", "::ffff:0.0.0.0/90 is an IPv4 prefix in IPv6 form; write it as IPv4"},
	{"IPv4-mapped exclude", func(c *fabric.Cluster) { c.Pools[0].Exclude[0] = prefix("::ffff:203.0.113.0/128") }, "pools[0].exclude[0]", "is an IPv4 prefix in IPv6 form; write 203.0.113.0/32"},
	{"IPv4-mapped routed prefix", func(c *fabric.Cluster) { c.Routed[0] = prefix("::ffff:198.51.100.0/120") }, "routed[0]", "is an IPv4 prefix in IPv6 form; write 198.51.100.0/24"},
	{"IPv4-mapped reflector", func(c *fabric.Cluster) { c.Reflectors[0].Address = ip("::ffff:10.10.0.11") }, "reflectors[0].address", "::ffff:10.10.0.11 is an IPv4 address in IPv6 form; write 10.10.0.11"},
	{"core gateway with a zone", func(c *fabric.Cluster) { c.Core[1].Address = ip("fe80::2%eth0") }, "core[1].address", "fe80::2%eth0 has a zone"},
	{"IPv4-mapped node", func(c *fabric.Cluster) { c.Nodes[1].Address = ip("::ffff:10.10.0.22") }, "nodes[1].address", "::ffff:10.10.0.22 is an IPv4 address in IPv6 form; write 10.10.0.22"},
	{"node with a zone", func(c *fabric.Cluster) { c.Nodes[1].Address6 = ip("fd00::22%eth0") }, "nodes[1].address6", "fd00::22%eth0 has a zone"},
	{"link-local IPv4 reflector", func(c *fabric.Cluster) { c.Reflectors[0].Address = ip("169.254.7.7") }, "reflectors[0].address", "169.254.7.7 cannot be the address of a host (link-local); give the one that it has on the private network"},
	{"link-local IPv6 reflector", func(c *fabric.Cluster) { c.Reflectors[1].Address = ip("fe80::12") }, "reflectors[1].address", "fe80::12 cannot be the address of a host (link-local)"},
	{"link-local core gateway", func(c *fabric.Cluster) { c.Core[1].Address = ip("fe80::2") }, "core[1].address", "cannot be the address of a host (link-local)"},
	{"link-local IPv4 node", func(c *fabric.Cluster) { c.Nodes[1].Address = ip("169.254.7.8") }, "nodes[1].address", "cannot be the address of a host (link-local)"},
	{"link-local IPv6 node", func(c *fabric.Cluster) { c.Nodes[1].Address6 = ip("fe80::22") }, "nodes[1].address6", "cannot be the address of a host (link-local)"},
	{"broadcast gateway", func(c *fabric.Cluster) { c.Gateway.IPv4 = ip("255.255.255.255") }, "gateway.ipv4", "255.255.255.255 cannot be the address of a host (broadcast); for example 169.254.1.1"},
	{"broadcast reflector", func(c *fabric.Cluster) { c.Reflectors[0].Address = ip("255.255.255.255") }, "reflectors[0].address", "(broadcast)"},
	{"broadcast core gateway", func(c *fabric.Cluster) { c.Core[0].Address = ip("255.255.255.255") }, "core[0].address", "(broadcast)"},
	{"broadcast node", func(c *fabric.Cluster) { c.Nodes[0].Address = ip("255.255.255.255") }, "nodes[0].address", "(broadcast)"},

	{"reserved AS number of a reflector", func(c *fabric.Cluster) { c.Reflectors[0].ASN = 23456 }, "reflectors[0].asn", "23456 is a reserved AS number; leave it out for the cluster's own"},
	{"reflector with AS number zero", func(c *fabric.Cluster) { c.Reflectors[0].ASN = 0 }, "reflectors[0].asn", "0 is a reserved AS number"},
	{"reserved AS number of a core gateway", func(c *fabric.Cluster) { c.Core[1].ASN = 65535 }, "core[1].asn", "65535 is a reserved AS number; leave it out for the cluster's own"},
	{"last AS number of a core gateway", func(c *fabric.Cluster) { c.Core[1].ASN = 1<<32 - 1 }, "core[1].asn", "4294967295 is a reserved AS number"},
	{"long password", func(c *fabric.Cluster) { c.Reflectors[1].Password = strings.Repeat("x", 81) }, "reflectors[1].password_file", "the password has 81 bytes; Linux takes TCP MD5 keys of at most 80, choose a shorter one"},

	{"community twice", func(c *fabric.Cluster) { c.Communities = append(c.Communities, c.Communities[0]) }, "community[2]", "64512:100 is already at community[0]; remove one"},
	{"large community twice", func(c *fabric.Cluster) { c.Communities = append(c.Communities, c.Communities[1]) }, "community[2]", "64512:1:100 is already at community[1]; remove one"},
	{"well-known community", func(c *fabric.Cluster) { c.Communities[0] = fabric.Community{A: 65535, B: 65281} }, "community[0]", "65535:65281 is a well-known community, which means something to every router (RFC 1997); use one of your own, for example \"64512:100\""},
	{"well-known community alone", func(c *fabric.Cluster) { c.Communities = []fabric.Community{{A: 65535, B: 666}} }, "community", "65535:666 is a well-known community"},
	{"community with a large half", func(c *fabric.Cluster) { c.Communities[0].A = 4200000001 }, "community[0]", "4200000001:100 has a half above 65535; write a large community, for example \"4200000001:1:100\""},
	{"community with a large second half", func(c *fabric.Cluster) { c.Communities[0].B = 65536 }, "community[0]", "64512:65536 has a half above 65535; write a large community, for example \"64512:1:65536\""},
	{"no community, AS number of four bytes", func(c *fabric.Cluster) {
		*c = withASN(*c, 4200000001)
		c.Communities = nil
	}, "community", `for example "4200000001:1:100"`},

	{"IPv4 exclude with host bits", func(c *fabric.Cluster) { c.Pools[0].Exclude[0] = prefix("203.0.113.9/29") }, "pools[0].exclude[0]", "203.0.113.9/29 has bits beyond its length; write 203.0.113.8/29"},
	{"IPv6 exclude with host bits", func(c *fabric.Cluster) { c.Pools[1].Exclude[0] = prefix("2001:db8:100::9/64") }, "pools[1].exclude[0]", "write 2001:db8:100::/64"},
	{"exclude twice", func(c *fabric.Cluster) {
		c.Pools[0].Exclude = append(c.Pools[0].Exclude, prefix("203.0.113.255/32"), prefix("203.0.113.0/32"))
	}, "pools[0].exclude[2]", "203.0.113.0/32 is already at pools[0].exclude[0]; remove one"},
	{"exclude that is no prefix", func(c *fabric.Cluster) { c.Pools[0].Exclude[0] = netip.Prefix{} }, "pools[0].exclude[0]", "not a prefix; name an address or a prefix inside 203.0.113.0/24, or remove it"},
	{"whole IPv4 pool excluded", func(c *fabric.Cluster) { c.Pools[0].Exclude[0] = prefix("203.0.113.0/24") }, "pools[0].exclude", "leaves no address of 203.0.113.0/24; exclude less, or remove the pool"},
	{"whole IPv6 pool excluded in parts", func(c *fabric.Cluster) {
		c.Pools[1].Exclude = []netip.Prefix{prefix("2001:db8:100:8000::/49"), prefix("2001:db8:100::/64"), prefix("2001:db8:100::/49")}
	}, "pools[1].exclude", "leaves no address of 2001:db8:100::/48"},
	{"third pool overlaps two", func(c *fabric.Cluster) {
		c.Pools = append(c.Pools, fabric.Pool{Name: "next4", Prefix: prefix("203.0.112.0/24")}, fabric.Pool{Name: "more4", Prefix: prefix("203.0.112.0/23")})
	}, "pools[3].prefix", "203.0.112.0/23 overlaps 203.0.113.0/24 of pool public4 (pools[0]); make them disjoint"},

	{"routed that is no prefix", func(c *fabric.Cluster) { c.Routed[0] = netip.Prefix{} }, "routed[0]", "not a prefix; for example 198.51.100.0/24"},
	{"routed prefixes that overlap", func(c *fabric.Cluster) { c.Routed = append(c.Routed, prefix("198.51.100.8/29")) }, "routed[2]", "198.51.100.8/29 overlaps 198.51.100.0/24 (routed[0]); keep the larger one"},
	{"IPv6 routed prefixes that overlap", func(c *fabric.Cluster) { c.Routed = append(c.Routed, prefix("2001:db8:200::/47")) }, "routed[2]", "2001:db8:200::/47 overlaps 2001:db8:200::/48 (routed[1]); keep the larger one"},
	{"routed with a node", func(c *fabric.Cluster) { c.Routed[0] = prefix("10.10.0.20/30") }, "routed[0]", "10.10.0.20/30 holds the address of node node1 (10.10.0.21); name prefixes that are for guests alone"},
	{"routed with a node's address6", func(c *fabric.Cluster) { c.Routed[1] = prefix("fd00::20/124") }, "routed[1]", "holds the address of node node1 (fd00::21)"},
	{"routed with a reflector", func(c *fabric.Cluster) { c.Routed[0] = prefix("10.10.0.8/29") }, "routed[0]", "holds the address of reflector rr1 (10.10.0.11)"},
	{"routed with a core gateway", func(c *fabric.Cluster) { c.Routed[0] = prefix("10.10.0.0/29") }, "routed[0]", "holds the address of core gateway core1 (10.10.0.1)"},
	{"routed with the gateway", func(c *fabric.Cluster) {
		c.Gateway.IPv4 = ip("192.0.2.1")
		c.Routed[0] = prefix("192.0.2.0/24")
	}, "routed[0]", "holds the address of the gateway (192.0.2.1)"},
	{"routed link-local", func(c *fabric.Cluster) { c.Routed[1] = prefix("fe80::/64") }, "routed[1]", "fe80::/64 holds link-local addresses"},

	{"hold time with a fraction", func(c *fabric.Cluster) { c.Timers.Hold = 9500 * time.Millisecond }, "timers.hold", "9.5s is not in whole seconds, which is how routers count; write 9s"},
	{"connect retry with a fraction", func(c *fabric.Cluster) { c.Timers.ConnectRetry = time.Second + time.Nanosecond }, "timers.connect_retry", "write 1s"},
	{"restart time with a fraction", func(c *fabric.Cluster) { c.Timers.Restart += time.Microsecond }, "timers.restart", "write 2m0s"},
	{"hold time too short", func(c *fabric.Cluster) { c.Timers.Hold = 2 * time.Second }, "timers.hold", "2s is out of range"},
	{"hold time too long", func(c *fabric.Cluster) { c.Timers.Hold = 65536 * time.Second }, "timers.hold", "is out of range"},
	{"restart time too long", func(c *fabric.Cluster) { c.Timers.Restart = 4096 * time.Second }, "timers.restart", "is out of range"},
	{"long-lived time too long", func(c *fabric.Cluster) { c.Timers.LongLived = 1 << 24 * time.Second }, "timers.long_lived", "is out of range; RFC 9494"},

	{"underlay without a node", func(c *fabric.Cluster) {
		c.Underlay = []netip.Prefix{prefix("10.11.0.0/16"), prefix("fd00::/16")}
		c.Nodes = c.Nodes[:1]
	}, "underlay", "node node1 (nodes[0]) has 10.10.0.21, which is in none of them"},
	{"underlay with guests", func(c *fabric.Cluster) {
		c.Underlay = append(c.NodeRanges(), prefix("203.0.0.0/16"))
	}, "underlay[2]", "203.0.0.0/16 overlaps 203.0.113.0/24 of pool public4, so that a guest could pose as a node"},
	{"underlay of everybody", func(c *fabric.Cluster) { c.Underlay = append(c.NodeRanges(), prefix("0.0.0.0/0")) }, "underlay[2]", "0.0.0.0/0 is the whole Internet"},
	{"no prefixes at all", func(c *fabric.Cluster) { c.MaxPrefixes = -1 }, "max_prefixes", "-1 is out of range; give 10 to 1000000"},
	{"speaker of another name", func(c *fabric.Cluster) { c.Speaker = "birdd" }, "speaker", `"birdd" is not one of gobgp, bird, frr or the absolute path of a plugin`},
	{"resolver without a path", func(c *fabric.Cluster) { c.Resolver = "inventory" }, "resolver", `"inventory" is not the absolute path of a plugin`},
	{"observer twice", func(c *fabric.Cluster) { c.Observers = []string{"/a", "/b", "/a"} }, "observers[2]", "/a is already at observers[0]"},
	{"a rate of moves", func(c *fabric.Cluster) { c.Moves.Rate = -1 }, "moves.packets_per_second", "-1 is out of range; give 1 to 1000000"},
	{"a pause of moves", func(c *fabric.Cluster) { c.Moves.Pause = time.Microsecond }, "moves.pause", "1µs is out of range; give 1ms to 1m0s"},
	{"a long pause of moves", func(c *fabric.Cluster) { c.Moves = fabric.Moves{Rate: 1, Pause: time.Minute + 1} }, "moves.pause", "is out of range"},
	{"a queue of moves", func(c *fabric.Cluster) { c.Moves = fabric.Moves{Rate: 1_000_000, Pause: 901 * time.Millisecond} }, "moves", "are 1001000 packets to hold for one guest; 1000000 are the most"},
	{"a resolver of nobody", func(c *fabric.Cluster) { c.Guests.DNS = make([]netip.Addr, 1) }, "guests.dns[0]", "not an address; for example 9.9.9.9"},
	{"a resolver with a zone", func(c *fabric.Cluster) { c.Guests.DNS = []netip.Addr{ip("fe80::1%eth0")} }, "guests.dns[0]", "fe80::1%eth0 has a zone"},
	{"a resolver in IPv6 form", func(c *fabric.Cluster) { c.Guests.DNS = []netip.Addr{ip("::ffff:9.9.9.9")} }, "guests.dns[0]", "write 9.9.9.9"},
	{"a resolver twice", func(c *fabric.Cluster) {
		c.Guests.DNS = []netip.Addr{ip("9.9.9.9"), ip("2620:fe::fe"), ip("9.9.9.9")}
	}, "guests.dns[2]", "9.9.9.9 is already at guests.dns[0]; remove one"},
	{"a resolver in the guest", func(c *fabric.Cluster) { c.Guests.DNS = []netip.Addr{ip("127.0.0.53")} }, "guests.dns[0]", "127.0.0.53 cannot be the address of a resolver (loopback)"},
	{"a resolver for all", func(c *fabric.Cluster) { c.Guests.DNS = []netip.Addr{ip("ff02::fb")} }, "guests.dns[0]", "ff02::fb cannot be the address of a resolver (multicast)"},
	{"a resolver on the link", func(c *fabric.Cluster) { c.Guests.DNS = []netip.Addr{ip("fe80::53")} }, "guests.dns[0]", "fe80::53 is link-local, and on a guest's link there is nothing but the gateway"},
	{"a resolver of the underlay", func(c *fabric.Cluster) { c.Guests.DNS = []netip.Addr{ip("10.10.0.53")} }, "guests.dns[0]", "10.10.0.53 is in the underlay or in 169.254.0.0/16, which guests do not reach; add 10.10.0.53/32 to guests.reach, or name a resolver elsewhere"},
	{"a resolver of the IPv6 underlay", func(c *fabric.Cluster) { c.Guests.DNS = []netip.Addr{ip("fd00::53")} }, "guests.dns[0]", "add fd00::53/128 to guests.reach"},
	{"a resolver of a cloud", func(c *fabric.Cluster) { c.Guests.DNS = []netip.Addr{ip("169.254.169.253")} }, "guests.dns[0]", "add 169.254.169.253/32 to guests.reach"},
	{"a resolver on the nodes", func(c *fabric.Cluster) {
		c.Guests.DNS, c.Guests.NodePorts = []netip.Addr{ip("169.254.1.1")}, []fabric.Service{{Protocol: "tcp", Port: 53}}
	}, "guests.dns[0]", "169.254.1.1 is the gateway, which is the node itself, and guests do not reach its udp/53; add udp/53 to guests.node_ports and run a resolver on every node, or name another"},
	{"a time server on the nodes", func(c *fabric.Cluster) { c.Guests.NTP = []netip.Addr{ip("fe80::1")} }, "guests.ntp[0]", "guests do not reach its udp/123"},
	{"too many resolvers", func(c *fabric.Cluster) {
		for i := range fabric.MaxResolvers + 1 {
			c.Guests.DNS = append(c.Guests.DNS, netip.AddrFrom4([4]byte{9, 9, 9, byte(i)}), netip.AddrFrom16([16]byte{0x26, 0x20, 15: byte(i)}))
		}
		c.Guests.DNS = c.Guests.DNS[1:]
	}, "guests.dns[12]", "more than 6 resolvers of one family"},
	{"a domain in Unicode", func(c *fabric.Cluster) { c.Guests.Search = []string{"пример.рф"} }, "guests.search[0]", "with xn-- (idn2 prints it)"},
	{"a domain that is an address", func(c *fabric.Cluster) { c.Guests.Search = []string{"9.9.9.9"} }, "guests.search[0]", "9.9.9.9 is an address; resolvers go under dns"},
	{"a domain with a dot after", func(c *fabric.Cluster) { c.Guests.Search = []string{"example.net."} }, "guests.search[0]", "write it without"},
	{"an empty domain", func(c *fabric.Cluster) { c.Guests.Search = []string{""} }, "guests.search[0]", "an empty domain"},
	{"a domain with an empty part", func(c *fabric.Cluster) { c.Guests.Search = []string{"a..b"} }, "guests.search[0]", `its part "" is not`},
	{"a domain with a mark", func(c *fabric.Cluster) { c.Guests.Search = []string{"my_net.example"} }, "guests.search[0]", `its part "my_net" is not 1 to 63 letters`},
	{"a domain with '-' at an end", func(c *fabric.Cluster) { c.Guests.Search = []string{"a-.example"} }, "guests.search[0]", `its part "a-"`},
	{"a domain with a long part", func(c *fabric.Cluster) { c.Guests.Search = []string{strings.Repeat("a", 64) + ".net"} }, "guests.search[0]", "is not 1 to 63"},
	{"a long domain", func(c *fabric.Cluster) { c.Guests.Search = []string{strings.Repeat("a.", 127) + "b"} }, "guests.search[0]", "has 255 characters; a domain has at most 253"},
	{"a domain twice", func(c *fabric.Cluster) { c.Guests.Search = []string{"example.net", "Example.NET"} }, "guests.search[1]", "Example.NET is already at guests.search[0]"},
	{"many domains", func(c *fabric.Cluster) { c.Guests.Search = strings.Split("a b c d e f g", " ") }, "guests.search", "7 domains; at most 6"},
	{"long domains", func(c *fabric.Cluster) {
		long := strings.Repeat("a", 60) + "." + strings.Repeat("b", 61) + ".net"
		c.Guests.Search = []string{long, "x" + long[1:]}
	}, "guests.search", "domains of 256 bytes"},
	{"a small MTU", func(c *fabric.Cluster) { c.Guests.MTU = 1279 }, "guests.mtu", "1279 is out of range; IPv6 needs 1280, a tap takes at most 65521"},
	{"metadata at the gateway", func(c *fabric.Cluster) { c.Guests.Metadata, c.Gateway.IPv4 = true, fabric.Metadata4 }, "gateway.ipv4", "169.254.169.254 is where guests find their metadata"},
	{"metadata at the gateway, IPv6", func(c *fabric.Cluster) { c.Guests.Metadata, c.Gateway.IPv6 = true, fabric.Metadata6 }, "gateway.ipv6", "fe80::a9fe:a9fe is where guests find their metadata"},
	{"metadata of two", func(c *fabric.Cluster) {
		c.Guests.Metadata, c.Guests.Reach = true, []netip.Prefix{fabric.HostPrefix(fabric.Metadata4)}
	}, "guests.reach[0]", "the node itself serves guests their metadata at 169.254.169.254"},
	{"a large MTU", func(c *fabric.Cluster) { c.Guests.MTU = 65522 }, "guests.mtu", "65522 is out of range"},
	{"another DHCP server", func(c *fabric.Cluster) { c.Guests.NodePorts = []fabric.Service{{Protocol: "udp", Port: 67}} }, "guests.node_ports[0]", "at udp/67 the agent answers the guests' DHCP itself; remove it, or write dhcp: false for a server of your own"},
	{"another DHCPv6 server", func(c *fabric.Cluster) { c.Guests.NodePorts = []fabric.Service{{Protocol: "udp", Port: 547}} }, "guests.node_ports[0]", "at udp/547 the agent answers"},
	{"connect retry too short", func(c *fabric.Cluster) { c.Timers.ConnectRetry = time.Millisecond }, "timers.connect_retry", "1ms is out of range"},
}

func TestClusterValidate(t *testing.T) {
	for _, tt := range spoiltClusters {
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

// withASN gives c with another AS number, also where it is the default.
func withASN(c fabric.Cluster, asn uint32) fabric.Cluster {
	c.ASN = asn
	for i := range c.Reflectors {
		c.Reflectors[i].ASN = 0
	}
	for i := range c.Core {
		c.Core[i].ASN = 0
	}
	return c.WithDefaults()
}

func TestClusterAllows(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(c *fabric.Cluster)
	}{
		{"a node in a pool where it is excluded", func(c *fabric.Cluster) { c.Nodes[0].Address = ip("203.0.113.0") }},
		{"an IPv6 node in a pool where it is excluded", func(c *fabric.Cluster) { c.Nodes[0].Address6 = ip("2001:db8:100::21") }},
		{"a reflector in a pool where it is excluded", func(c *fabric.Cluster) { c.Reflectors[1].Address = ip("2001:db8:100::12") }},
		{"a core gateway in a pool where it is excluded", func(c *fabric.Cluster) { c.Core[0].Address = ip("203.0.113.0") }},
		{"a reflector on a node", func(c *fabric.Cluster) { c.Reflectors[0].Address = c.Nodes[0].Address }},
		{"a reflector on a node, IPv6", func(c *fabric.Cluster) { c.Reflectors[1].Address = c.Nodes[1].Address6 }},
		{"a reflector on a core gateway", func(c *fabric.Cluster) { c.Reflectors[0].Address = c.Core[0].Address }},
		{"a reflector on a core gateway, IPv6", func(c *fabric.Cluster) { c.Reflectors[1].Address = c.Core[1].Address }},
		{"documentation prefixes", func(c *fabric.Cluster) {
			c.Pools = []fabric.Pool{{Name: "a", Prefix: prefix("192.0.2.0/24")}, {Name: "b", Prefix: prefix("2001:db8:100::/56")}, {Name: "c", Prefix: prefix("3fff::/20")}}
		}},
		{"private and shared prefixes", func(c *fabric.Cluster) {
			c.Pools = []fabric.Pool{{Name: "a", Prefix: prefix("172.16.0.0/12")}, {Name: "b", Prefix: prefix("100.64.0.0/10")}, {Name: "c", Prefix: prefix("fd01::/16")}}
			c.Nodes[0].Address6, c.Nodes[1].Address6, c.Core[1].Address, c.Reflectors[1].Address = ip("2001:db8::1"), ip("2001:db8::2"), ip("2001:db8::3"), ip("2001:db8::4")
		}},
		{"a routed prefix that is all of a pool", func(c *fabric.Cluster) { c.Routed[0] = prefix("203.0.113.0/24") }},
		{"a routed prefix around a pool", func(c *fabric.Cluster) { c.Routed[1] = prefix("2001:db8:100::/40") }},
		{"all but one address excluded", func(c *fabric.Cluster) {
			c.Pools[0].Prefix, c.Pools[0].Exclude = prefix("203.0.113.0/30"), []netip.Prefix{prefix("203.0.113.0/31"), prefix("203.0.113.3/32")}
		}},
		{"prefixes and ranges", func(c *fabric.Cluster) {
			c.Pools[0].Prefixes, c.Pools[0].Ranges = []netip.Prefix{prefix("192.0.2.0/25")}, []fabric.AddressRange{{First: ip("192.0.2.200"), Last: ip("192.0.2.209")}}
			c.Pools[0].Exclude = append(c.Pools[0].Exclude, prefix("192.0.2.200/29"))
			c.Pools[0].Reserve = []fabric.Reservation{{Prefix: prefix("192.0.2.9/32")}, {Prefix: prefix("192.0.2.208/31")}}
		}},
		{"a range alone", func(c *fabric.Cluster) {
			c.Pools[1] = fabric.Pool{Name: "r", Ranges: []fabric.AddressRange{{First: ip("2001:db8:100::5"), Last: ip("2001:db8:100::5")}}}
		}},
		{"a prefix per guest", func(c *fabric.Cluster) {
			c.Pools[0].PerGuest, c.Pools[1].PerGuest = 29, 64
			c.Pools[0].Ranges = []fabric.AddressRange{{First: ip("192.0.2.8"), Last: ip("192.0.2.23")}}
		}},
		{"one prefix for one guest", func(c *fabric.Cluster) {
			c.Pools[1].Prefix, c.Pools[1].Exclude, c.Pools[1].PerGuest = prefix("2001:db8:100:5::/64"), nil, 64
		}},
		{"labels", func(c *fabric.Cluster) {
			c.Labels = map[string][]string{"node1": {"rack1", "ssd"}, "node2": {"ssd"}}
			c.Pools[0].NodeLabels, c.Pools[0].Nodes = []string{"rack1"}, []string{"node2"}
		}},
		{"exclude in exclude", func(c *fabric.Cluster) { c.Pools[0].Exclude = append(c.Pools[0].Exclude, prefix("203.0.113.0/29")) }},
		{"a pool of one address", func(c *fabric.Cluster) { c.Pools[0] = fabric.Pool{Name: "one", Prefix: prefix("203.0.113.7/32")} }},
		{"a password of 80 bytes", func(c *fabric.Cluster) { c.Reflectors[0].Password = strings.Repeat("x", 80) }},
		{"other AS numbers of routers", func(c *fabric.Cluster) { c.Reflectors[0].ASN, c.Core[0].ASN = 4200000000, 64496 }},
		{"one community", func(c *fabric.Cluster) { c.Communities = c.Communities[:1] }},
		{"a large community that starts with 65535", func(c *fabric.Cluster) { c.Communities[1].A = 65535 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := cluster()
			tt.change(&c)
			assert.Nil(t, c.Validate())
		})
	}
}

// One mistake is told once, where it was made.
func TestClusterValidateTellsNoConsequences(t *testing.T) {
	bare := fabric.Cluster{}.WithDefaults()
	assert.Equal(t, []fabric.Problem{
		{Path: "name", Text: "missing; name the cluster with 1 to 32 letters, digits, '.', '_' and '-'"},
		{Path: "asn", Text: "missing; give your own AS number, or a private one (64512 to 65534)"},
		{Path: "community", Text: `missing; the routers recognise the guests' routes by it, for example "64512:100"`},
		{Path: "pools", Text: "missing; name at least one prefix whose addresses guests may have"},
		{Path: "reflectors", Text: "missing; without a route reflector nothing can be announced, name at least one (two are better)"},
		{Path: "nodes", Text: "missing; name at least one node with its address"},
	}, bare.Validate())

	c := cluster()
	c.Nodes[0] = fabric.Node{Name: "node1"}
	c.Nodes[1].Address = netip.MustParseAddr("fd00::23")
	c.Reflectors[0].Address = netip.MustParseAddr("::ffff:10.10.0.11")
	c.Pools[1].Prefix = netip.Prefix{}
	c.Gateway.IPv6 = netip.Addr{}
	c = withASN(c, 65535)
	assert.Equal(t, []fabric.Problem{
		{Path: "asn", Text: "65535 is a reserved AS number; use your own, or a private one (64512 to 65534)"},
		{Path: "pools[1].prefix", Text: "missing; for example 203.0.113.0/24"},
		{Path: "reflectors[0].address", Text: "::ffff:10.10.0.11 is an IPv4 address in IPv6 form; write 10.10.0.11"},
		{Path: "nodes[0].address", Text: "missing; give the node's address on the private network"},
		{Path: "nodes[1].address", Text: "fd00::23 is not an IPv4 address; write it as address6"},
	}, c.Validate())
}

func TestClusterValidateMartians(t *testing.T) {
	for _, tt := range []struct{ pool, holds string }{
		{"0.0.0.0/8", "unspecified"},
		{"0.0.0.0/1", "unspecified"},
		{"126.0.0.0/7", "loopback"},
		{"127.8.0.0/16", "loopback"},
		{"169.254.0.0/24", "link-local"},
		{"168.0.0.0/6", "link-local"},
		{"239.1.0.0/16", "multicast"},
		{"192.0.0.0/2", "multicast"},
		{"240.0.0.0/8", "reserved"},
		{"255.255.255.255/32", "broadcast"},
		{"::/64", "loopback"},
		{"::/128", "unspecified"},
		{"::c000:200/120", "unspecified"},
		{"::fffe:0:0/95", "IPv4-mapped"},
		{"fe80::/64", "link-local"},
		{"fe00::/8", "link-local"},
		{"ff0e::/16", "multicast"},
		{"e000::/3", "link-local"},
	} {
		c := cluster()
		p := netip.MustParsePrefix(tt.pool)
		c.Pools, c.Routed = []fabric.Pool{{Name: "p", Prefix: p}}, nil
		c.Gateway = fabric.Gateway{IPv4: netip.MustParseAddr("192.0.2.1"), IPv6: netip.MustParseAddr("fd01::1"), MAC: fabric.DefaultMAC}
		want := fabric.Problem{Path: "pools[0].prefix", Text: tt.pool + " holds " + tt.holds + " addresses, which no guest can have; name the prefixes that were given to you"}
		assert.Contains(t, c.Validate(), want)
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
		ASN:         64512,
		Gateway:     fabric.Gateway{MAC: fabric.DefaultMAC},
		Reflectors:  []fabric.RR{{Name: "rr1", ASN: 64512, Port: 179}, {Name: "rr2", ASN: 64513, Port: 1790}},
		Core:        []fabric.Core{{Name: "core1", ASN: 64512}, {Name: "core2", ASN: 64496}},
		Timers:      fabric.Timers{Hold: time.Minute, ConnectRetry: time.Second, Restart: 2 * time.Minute},
		MaxPrefixes: fabric.DefaultMaxPrefixes,
		Speaker:     fabric.SpeakerGoBGP,
		AgentPort:   fabric.DefaultAgentPort,
		Moves:       fabric.DefaultMoves,
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
	assert.EqualError(t, err, `node "node3" is not in cluster msk1 (it has node1, node2); add it under nodes, or name another`)
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

func TestNodeRanges(t *testing.T) {
	c := cluster()
	c.Nodes = []fabric.Node{
		{Name: "a", Address: netip.MustParseAddr("10.10.0.21"), Address6: netip.MustParseAddr("fd00:10:10::21")},
		{Name: "b", Address: netip.MustParseAddr("10.10.0.22"), Address6: netip.MustParseAddr("fd00:10:11::22")},
		{Name: "c", Address: netip.MustParseAddr("203.0.113.0")}, // excluded from the pool around it
	}
	assert.Equal(t, []netip.Prefix{prefix("10.10.0.0/24"), prefix("203.0.113.0/32"), prefix("fd00:10:10::/64"), prefix("fd00:10:11::/64")}, c.NodeRanges())
	c.Underlay = []netip.Prefix{prefix("fd00::/16"), prefix("10.0.0.0/8")}
	assert.Equal(t, []netip.Prefix{prefix("10.0.0.0/8"), prefix("fd00::/16")}, c.NodeRanges())
}

func TestAnnounceable(t *testing.T) {
	c := cluster()
	c.Routed = []netip.Prefix{prefix("198.51.100.0/24"), prefix("2001:db8:200::/40")}
	c.Pools = append(c.Pools, fabric.Pool{Name: "own6", Prefix: prefix("2001:db8:300::/48"), PerGuest: 64},
		fabric.Pool{Name: "own4", Ranges: []fabric.AddressRange{{First: ip("192.0.2.8"), Last: ip("192.0.2.23")}}, PerGuest: 29})
	for text, want := range map[string]bool{
		"203.0.113.10/32": true, "203.0.113.0/24": false, "203.0.113.128/25": false, "0.0.0.0/0": false, "203.0.114.1/32": false,
		"198.51.100.0/24": true, "198.51.100.8/29": true, "198.51.100.8/32": true, "198.51.0.0/16": false,
		"192.0.2.8/29": true, "192.0.2.16/30": false, "192.0.2.24/29": false, "192.0.2.8/32": true, "192.0.2.0/24": false,
		"2001:db8:300:5::/64": true, "2001:db8:300:5::/65": false, "2001:db8:300::/63": false, "2001:db8:300:5::1/128": true,
		"2001:db8:100::10/128": true, "2001:db8:100::/64": false, "2001:db8:200::/56": true, "2001:db8::/32": false, "::/0": false,
	} {
		p := prefix(text)
		in := slices.ContainsFunc(c.Announceable(p.Addr().Is6()), func(r fabric.PrefixRange) bool { return r.Contains(p) })
		assert.Equal(t, want, in, text)
	}
}

func TestRouterID(t *testing.T) {
	four, six, other := netip.MustParseAddr("10.10.0.21"), netip.MustParseAddr("fd00::21"), netip.MustParseAddr("fd00::22")
	assert.Equal(t, four, fabric.RouterID(four, six))
	assert.Equal(t, four, fabric.RouterID(four, netip.Addr{}))
	id := fabric.RouterID(netip.Addr{}, six)
	assert.Equal(t, id, fabric.RouterID(six, six))
	assert.True(t, id.Is4() && id.IsGlobalUnicast(), id)
	assert.NotEqual(t, id, fabric.RouterID(netip.Addr{}, other))
}

func TestMartians(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		ps := fabric.Martians(v6)
		assert.NotEmpty(t, ps)
		for _, p := range ps {
			assert.Equal(t, v6, p.Addr().Is6(), p)
		}
	}
}

// TestGuestsAreTold accepts what fits, up to the limits.
func TestGuestsAreTold(t *testing.T) {
	c := cluster()
	c.Guests = fabric.Guests{
		Reach:     []netip.Prefix{prefix("10.10.0.53/32"), prefix("fd00::/120"), prefix("169.254.169.0/24")},
		NodePorts: []fabric.Service{{Protocol: "udp", Port: 53}, {Protocol: "udp", Port: 123}},
		DNS:       []netip.Addr{ip("9.9.9.9"), ip("2620:fe::fe"), ip("10.10.0.53"), ip("fd00::53"), ip("169.254.169.253"), ip("169.254.1.1"), ip("fe80::1"), ip("203.0.113.53"), ip("192.168.7.7")},
		NTP:       []netip.Addr{ip("169.254.1.1"), ip("2001:db8:100::123")},
		Search:    []string{"example.net", "xn--e1afmkfd.xn--p1ai", "lan", strings.Repeat("a", 63) + ".1.net"},
		MTU:       fabric.MinMTU,
	}
	assert.Empty(t, c.Validate())
	c.Guests.MTU = fabric.MaxMTU
	assert.Empty(t, c.Validate())
	c.Guests = fabric.Guests{NoDHCP: true, NodePorts: []fabric.Service{{Protocol: "udp", Port: 67}, {Protocol: "udp", Port: 547}}}
	assert.Empty(t, c.Validate(), "a server of the operator's own")
	c.Guests = fabric.Guests{NodePorts: []fabric.Service{{Protocol: "tcp", Port: 67}}}
	assert.Empty(t, c.Validate(), "DHCP is UDP")
}
