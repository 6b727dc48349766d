package clusterfile_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

var (
	ip     = netip.MustParseAddr
	prefix = netip.MustParsePrefix
)

func TestReferenceFile(t *testing.T) {
	got, err := clusterfile.Load(labtest.Own(t, "testdata/cluster.yaml"))
	require.NoError(t, err)
	assert.Equal(t, fabric.Cluster{
		Name:        "msk1",
		ASN:         64512,
		Communities: []fabric.Community{{A: 64512, B: 100}},
		Gateway:     fabric.Gateway{IPv4: ip("169.254.1.1"), IPv6: ip("fe80::1"), MAC: fabric.MAC{2, 0, 0x5e, 0, 1, 1}},
		Pools: []fabric.Pool{
			{Name: "public4", Prefix: prefix("203.0.113.0/24"), Exclude: []netip.Prefix{prefix("203.0.113.0/32"), prefix("203.0.113.255/32")}, Quarantine: 10 * time.Minute},
			{Name: "public6", Prefix: prefix("2001:db8:100::/48"), Quarantine: 10 * time.Minute},
		},
		Reflectors: []fabric.RR{
			{Name: "rr1", Address: ip("10.10.0.11"), ASN: 64512, Port: 179},
			{Name: "rr2", Address: ip("10.10.0.12"), ASN: 64512, Port: 179},
		},
		Core: []fabric.Core{{Name: "core1", Address: ip("10.10.0.1"), ASN: 64512}},
		Nodes: []fabric.Node{
			{Name: "node1", Address: ip("10.10.0.21")},
			{Name: "node2", Address: ip("10.10.0.22")},
		},
		Timers:      fabric.Timers{Hold: 9 * time.Second, ConnectRetry: time.Second, Restart: 2 * time.Minute},
		MaxPrefixes: fabric.DefaultMaxPrefixes,
		Speaker:     fabric.SpeakerGoBGP,
		AgentPort:   7147,
		Moves:       fabric.Moves{Rate: 10_000, Pause: 900 * time.Millisecond},
	}, got)
}

func TestEveryKey(t *testing.T) {
	got, err := clusterfile.Load(labtest.Own(t, "testdata/dualstack.yaml"))
	require.NoError(t, err)
	assert.Equal(t, fabric.Cluster{
		Name:        "spb-2",
		ASN:         4200000001,
		Communities: []fabric.Community{{A: 64512, B: 100}, {Large: true, A: 4200000001, B: 1, C: 100}},
		Gateway:     fabric.Gateway{IPv4: ip("169.254.1.1"), IPv6: ip("fe80::1"), MAC: fabric.MAC{2, 0, 0x5e, 0, 1, 2}},
		Pools: []fabric.Pool{
			{Name: "public4", Prefix: prefix("203.0.113.0/24"), Exclude: []netip.Prefix{prefix("203.0.113.0/32"), prefix("203.0.113.248/29")}, Quarantine: 10 * time.Minute},
			{
				Name: "public6", Prefix: prefix("2001:db8:100::/48"), Exclude: []netip.Prefix{prefix("2001:db8:100::/128"), prefix("2001:db8:100:ffff::/64")},
				Reserve:    []fabric.Reservation{{Prefix: prefix("2001:db8:100::53/128"), Note: "name server"}, {Prefix: prefix("2001:db8:100:fe00::/56")}},
				Quarantine: time.Hour, Nodes: []string{"node2"},
			},
			{
				Name: "own6", Prefixes: []netip.Prefix{prefix("2001:db8:300::/48"), prefix("2001:db8:400::/56")}, PerGuest: 64, NoAddress: true,
				Quarantine: 10 * time.Minute, NodeLabels: []string{"ssd"},
			},
			{Name: "odd4", Ranges: []fabric.AddressRange{{First: ip("192.0.2.10"), Last: ip("192.0.2.99")}, {First: ip("192.0.2.101"), Last: ip("192.0.2.101")}}, Quarantine: 10 * time.Minute},
		},
		Routed: []netip.Prefix{prefix("198.51.100.0/24"), prefix("2001:db8:200::/40")},
		Reflectors: []fabric.RR{
			{Name: "rr1", Address: ip("10.10.0.11"), ASN: 4200000002, Port: 1790, GTSM: true, BFD: true},
			{Name: "rr2", Address: ip("fd00::12"), ASN: 4200000001, Port: 179},
		},
		Core: []fabric.Core{
			{Name: "core1", Address: ip("10.10.0.1"), ASN: 64496},
			{Name: "core2", Address: ip("fd00::1"), ASN: 4200000001},
		},
		Nodes: []fabric.Node{
			{Name: "node1", Address: ip("10.10.0.21"), Address6: ip("fd00::21")},
			{Name: "node2", Address: ip("10.10.0.22"), Address6: ip("fd00::22")},
		},
		Labels:      map[string][]string{"node1": {"rack1", "ssd"}},
		Timers:      fabric.Timers{Hold: 30 * time.Second, ConnectRetry: 5 * time.Second, Restart: 2 * time.Minute, LongLived: time.Hour},
		Underlay:    []netip.Prefix{prefix("10.10.0.0/23"), prefix("fd00::/64")},
		MaxPrefixes: 500,
		EastWest:    true,
		Speaker:     fabric.SpeakerBIRD,
		Resolver:    "/usr/local/lib/vmfabric/inventory",
		Observers:   []string{"/usr/local/lib/vmfabric/billing", "/usr/local/lib/vmfabric/dns"},
		AgentPort:   7148,
		Registry:    fabric.RegistryConfig{Etcd: &fabric.EtcdConfig{Endpoints: []string{"http://10.10.0.11:2379", "http://[fd00::12]:2379"}, Prefix: "/lab/vmfabric"}},
		Moves:       fabric.Moves{Rate: 20_000, Pause: 1500 * time.Millisecond},
		Guests: fabric.Guests{
			Reach:     []netip.Prefix{prefix("10.10.0.53/32"), prefix("fd00::35/128"), prefix("169.254.169.254/32")},
			NodePorts: []fabric.Service{{Protocol: "tcp", Port: 53}, {Protocol: "udp", Port: 53}},
			NoRA:      true,
			DNS:       []netip.Addr{ip("9.9.9.9"), ip("2620:fe::fe"), ip("169.254.1.1"), ip("10.10.0.53")},
			Search:    []string{"example.net", "xn--e1afmkfd.xn--p1ai"},
			NTP:       []netip.Addr{ip("192.0.2.123")},
			MTU:       1400,
		},
	}, got)
}

// base is a cluster file without a mistake, one key a line, that tests change.
const base = `name: msk1
asn: 64512
community: "64512:100"
gateway:
  ipv4: 169.254.1.1
  ipv6: fe80::1
pools:
  - name: public4
    prefix: 203.0.113.0/24
    exclude: [203.0.113.0]
  - name: public6
    prefix: 2001:db8:100::/48
reflectors:
  - name: rr1
    address: 10.10.0.11
  - name: rr2
    address: 10.10.0.12
core:
  - name: core1
    address: 10.10.0.1
nodes:
  - name: node1
    address: 10.10.0.21
  - name: node2
    address: 10.10.0.22
`

// edit replaces old, which must be in the text once, by new.
func edit(t *testing.T, text, old, new string) string {
	t.Helper()
	require.Equal(t, 1, strings.Count(text, old), "%q in the text", old)
	return strings.Replace(text, old, new, 1)
}

func parse(text string) error {
	_, err := clusterfile.Parse("cluster.yaml", []byte(text))
	return err
}

func TestVariants(t *testing.T) {
	tests := []struct {
		name, old, new string
		check          func(t *testing.T, c fabric.Cluster)
	}{
		{"keys in any order", "name: msk1\nasn: 64512\n", "asn: 64512\nname: msk1\n", nil},
		{"document marks", "name: msk1\n", "---\nname: msk1\n", nil},
		{"a name that looks like a number", "name: node1", "name: 007", func(t *testing.T, c fabric.Cluster) {
			assert.Equal(t, "007", c.Nodes[0].Name)
		}},
		{"a community without quotes", `"64512:100"`, "64512:100", nil},
		{"lists and mappings without a value", "core:\n  - name: core1\n    address: 10.10.0.1\n", "core:\ntimers:\nrouted:\n", func(t *testing.T, c fabric.Cluster) {
			assert.Empty(t, c.Core)
			assert.Equal(t, fabric.DefaultTimers, c.Timers)
		}},
		{"an empty list", "core:\n  - name: core1\n    address: 10.10.0.1\n", "core: []\n", func(t *testing.T, c fabric.Cluster) {
			assert.Empty(t, c.Core)
		}},
		{"an IPv4-only cluster", "  - name: public6\n    prefix: 2001:db8:100::/48\n", "", func(t *testing.T, c fabric.Cluster) {
			assert.Len(t, c.Pools, 1)
		}},
		{"half of what moves have", "name: msk1", "name: msk1\nmoves: {pause: 2s}\nagent_port: 1", func(t *testing.T, c fabric.Cluster) {
			assert.Equal(t, fabric.Moves{Rate: 10_000, Pause: 2 * time.Second}, c.Moves)
			assert.EqualValues(t, 1, c.AgentPort)
		}},
		{"moves without a value", "name: msk1", "name: msk1\nmoves:", func(t *testing.T, c fabric.Cluster) {
			assert.Equal(t, fabric.DefaultMoves, c.Moves)
		}},
		{"timers in seconds", "name: msk1", "name: msk1\ntimers: {hold: 30, connect_retry: 1m, restart: 4095}", func(t *testing.T, c fabric.Cluster) {
			assert.Equal(t, fabric.Timers{Hold: 30 * time.Second, ConnectRetry: time.Minute, Restart: 4095 * time.Second}, c.Timers)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := clusterfile.Parse("cluster.yaml", []byte(edit(t, base, tt.old, tt.new)))
			require.NoError(t, err)
			if tt.check != nil {
				tt.check(t, c)
			}
		})
	}
}

func TestWindowsLineEnds(t *testing.T) {
	want, err := clusterfile.Parse("cluster.yaml", []byte(base))
	require.NoError(t, err)
	windows := "\uFEFF" + strings.ReplaceAll(base, "\n", "\r\n")
	got, err := clusterfile.Parse("cluster.yaml", []byte(windows))
	require.NoError(t, err)
	assert.Equal(t, want, got)
	assert.ErrorContains(t, parse(strings.Replace(windows, "10.10.0.22", "10.10.0.299", 1)), "cluster.yaml:25: nodes[1].address: ")
}

func TestNodeWithIPv6Only(t *testing.T) {
	text := strings.NewReplacer("10.10.0.11", "fd00::11", "10.10.0.12", "fd00::12", "10.10.0.21", "fd00::21",
		"address: 10.10.0.22", "address6: fd00::22").Replace(base)
	c, err := clusterfile.Parse("cluster.yaml", []byte(text))
	require.NoError(t, err)
	assert.Equal(t, []fabric.Node{
		{Name: "node1", Address6: ip("fd00::21")},
		{Name: "node2", Address6: ip("fd00::22")},
	}, c.Nodes)

	// What is wrong with such an address is told under the key that was written.
	err = parse(strings.Replace(text, "fd00::21", "fe80::21", 1))
	assert.EqualError(t, err, "cluster.yaml:23: nodes[0].address: fe80::21 cannot be the address of a host (link-local); give the one that it has on the private network")
}

func TestMany(t *testing.T) {
	var b strings.Builder
	b.WriteString(base)
	for i := range 200 {
		fmt.Fprintf(&b, "  - {name: many%d, address: 10.20.%d.%d, address6: \"fd00:20::%x\"}\n", i, i/100, i%100+1, i+1)
	}
	c, err := clusterfile.Parse("cluster.yaml", []byte(b.String()))
	require.NoError(t, err)
	require.Len(t, c.Nodes, 202)
	assert.Equal(t, fabric.Node{Name: "many199", Address: ip("10.20.1.100"), Address6: ip("fd00:20::c8")}, c.Nodes[201])

	err = parse(strings.Replace(b.String(), "10.20.1.100", "10.20.0.7", 1))
	assert.EqualError(t, err, "cluster.yaml:225: nodes[201].address: 10.20.0.7 is already at nodes[8].address; each needs an address of its own")
}

// mistakes are changes to base. What is wanted is the whole error: file, line, key,
// reason and way out.
var mistakes = []struct{ name, old, new, want string }{
	// Keys.
	{"unknown key", "name: msk1", "name: msk1\nvlan: 7", `2: vlan: unknown key; the keys here are name, asn, community, gateway, pools, routed, reflectors, core, nodes, timers, underlay, max_prefixes, east_west, speaker, resolver, observers, key_file, agent_port, registry, moves, guests, accounting, metrics`},
	{"misspelt key", "prefix: 203", "prefx: 203", `9: pools[0].prefx: unknown key; did you mean prefix?`},
	{"misspelt key of a node", "address: 10.10.0.21", "adress: 10.10.0.21", `23: nodes[0].adress: unknown key; did you mean address?`},
	{"shortened key", "address: 10.10.0.1\n", "addr: 10.10.0.1\n", `20: core[0].addr: unknown key; did you mean address?`},
	{"key in capitals", "asn: 64512", "ASN: 64512", `2: ASN: unknown key; did you mean asn?`},
	{"key with a hyphen", "name: msk1", "name: msk1\ntimers: {connect-retry: 5s}", `2: timers.connect-retry: unknown key; did you mean connect_retry?`},
	{"password in the file", "10.10.0.11", "10.10.0.11\n    password: x", `16: reflectors[0].password: unknown key; did you mean password_file?`},
	{"singular", "pools:", "pool:", `7: pool: unknown key; did you mean pools?`},
	{"key with line breaks", "name: msk1", "name: msk1\n\"a\\nb\": 1", `2: "a\nb": unknown key; the keys here are name, asn, community, gateway, pools, routed, reflectors, core, nodes, timers, underlay, max_prefixes, east_west, speaker, resolver, observers, key_file, agent_port, registry, moves, guests, accounting, metrics`},
	{"merge key", "name: msk1", "name: msk1\n<<: {asn: 1}", `2: "<<": unknown key; the keys here are name, asn, community, gateway, pools, routed, reflectors, core, nodes, timers, underlay, max_prefixes, east_west, speaker, resolver, observers, key_file, agent_port, registry, moves, guests, accounting, metrics`},
	{"key given twice", "address: 10.10.0.21", "address: 10.10.0.21\n    address: 10.10.0.23", `24: nodes[0].address: given twice, first in line 23; remove one`},
	{"key given twice at the top", "core:", "asn: 64513\ncore:", `18: asn: given twice, first in line 2; remove one`},

	// Missing keys, told where they belong.
	{"no name", "name: msk1\n", "", `1: name: missing; name the cluster with 1 to 32 letters, digits, '.', '_' and '-'`},
	{"AS number 0", "asn: 64512\n", "asn: 0\n", `2: asn: 0 is a reserved AS number; give your own, or a private one (64512 to 65534)`},
	{"no AS number", "asn: 64512\n", "", `1: asn: missing; give your own AS number, or a private one (64512 to 65534)`},
	{"no gateway of a family", "  ipv6: fe80::1\n", "", `4: gateway.ipv6: missing, and pool public6 is IPv6; any address that is used nowhere else will do, for example fe80::1`},
	{"no prefix", "\n    prefix: 2001:db8:100::/48", "", `11: pools[1].prefix: missing; for example 203.0.113.0/24`},
	{"no core address", "    address: 10.10.0.1\n", "", `19: core[0].address: missing; give the core gateway's address`},
	{"empty scalar", "name: msk1", "name:", `1: name: empty; give it a value or leave the key out`},
	{"empty password file", "10.10.0.11", "10.10.0.11\n    password_file: ~", `16: reflectors[0].password_file: empty; give it a value or leave the key out`},
	{"empty item", "exclude: [203.0.113.0]", "exclude: [203.0.113.0, ~]", `10: pools[0].exclude[1]: empty; give it a value or remove it`},

	{"name of two lines", "name: public6\n    prefix: 2001:db8:100::/48", "name: \"a\\nb\"\n    prefix: 2001:db8:100::/48", `11: pools[1].name: "a\nb" is not a name; use 1 to 32 letters, digits, '.', '_' and '-'`},
	{"long name", "name: node1", "name: " + strings.Repeat("x", 65), `22: nodes[0].name: "` + strings.Repeat("x", 64) + `..." is not a name; use 1 to 32 letters, digits, '.', '_' and '-'`},

	// Shapes.
	{"list where a mapping belongs", "gateway:\n  ipv4: 169.254.1.1\n  ipv6: fe80::1", "gateway: [169.254.1.1]", `4: gateway: a list where a mapping belongs; give it the keys ipv4, ipv6, mac`},
	{"value where a mapping belongs", "  - name: node1\n    address: 10.10.0.21", "  - node1", `22: nodes[0]: a single value where a mapping belongs; give it the keys name, address, address6, labels`},
	{"value where a list belongs", "[203.0.113.0]", "203.0.113.0", `10: pools[0].exclude: a single value where a list belongs; put each item on a line of its own that begins with '-', or all in [ ]`},
	{"mapping where a list belongs", "core:\n  - name: core1\n    address: 10.10.0.1", "core:\n  name: core1\n  address: 10.10.0.1", `18: core: a mapping where a list belongs; put each item on a line of its own that begins with '-', or all in [ ]`},
	{"list where a value belongs", "name: msk1", "name: [msk1]", `1: name: a list where a single value belongs; give one value`},
	{"mapping for a community", `"64512:100"`, "{64512: 100}", `3: community: a mapping where a list belongs; put each item on a line of its own that begins with '-', or all in [ ]`},

	// Values.
	{"AS number in dots", "asn: 64512", "asn: 1.10", `2: asn: "1.10" is in the dotted form of RFC 5396; write the plain number 65546`},
	{"AS number with letters", "asn: 64512", "asn: AS64512", `2: asn: "AS64512" is not a plain number; write 64512, without quotes`},
	{"AS number in quotes", "asn: 64512", `asn: "64512"`, `2: asn: "64512" is not a plain number; write 64512, without quotes`},
	{"AS number of five bytes", "asn: 64512", "asn: 4294967296", `2: asn: "4294967296" is too large for an AS number; they end at 4294967294`},
	{"AS number that is none", "asn: 64512", "asn: mine", `2: asn: "mine" is not an AS number; write a plain number, for example 64512`},
	{"AS number in hexadecimal", "asn: 64512", "asn: 0xFC00", `2: asn: "0xFC00" is not an AS number; write a plain number, for example 64512`},
	{"reserved AS number", "asn: 64512", "asn: 23456", `2: asn: 23456 is a reserved AS number; use your own, or a private one (64512 to 65534)`},
	{"reflector with AS number zero", "10.10.0.11", "10.10.0.11\n    asn: 0", `16: reflectors[0].asn: 0 is a reserved AS number; leave the key out for the cluster's own`},
	{"core with AS number zero", "10.10.0.1\n", "10.10.0.1\n    asn: 0\n", `21: core[0].asn: 0 is a reserved AS number; leave the key out for the cluster's own`},
	{"community out of range", `"64512:100"`, `"4200000001:100"`, `3: community: "4200000001:100" is not a community; write "64512:100", or "64512:1:100" for a large one`},
	{"community in a list", `"64512:100"`, `["64512:100", "x"]`, `3: community[1]: "x" is not a community; write "64512:100", or "64512:1:100" for a large one`},
	{"no community", "community: \"64512:100\"\n", "community: []\n", `3: community: missing; the routers recognise the guests' routes by it, for example "64512:100"`},
	{"not an address", "10.10.0.21", "10.10.0.299", `23: nodes[0].address: "10.10.0.299" is not an IP address; write one such as 10.10.0.21 or "2001:db8::21"`},
	{"not an IPv6 address", "10.10.0.21", "fd00::x", `23: nodes[0].address: "fd00::x" is not an IP address; write one such as 10.10.0.21 or "2001:db8::21"`},
	{"a number for an address", "10.10.0.21", "10.10", `23: nodes[0].address: "10.10" is not an IP address; write one such as 10.10.0.21 or "2001:db8::21"`},
	{"a prefix for an address", "10.10.0.21", "10.10.0.21/24", `23: nodes[0].address: 10.10.0.21/24 is a prefix; write the address alone, 10.10.0.21`},
	{"an address with a zone", "10.10.0.11", "fe80::11%eth0", `15: reflectors[0].address: "fe80::11%eth0" has a zone, which means nothing to other hosts; give an address without '%'`},
	{"an IPv4-mapped address", "10.10.0.11", "\"::ffff:10.10.0.11\"", `15: reflectors[0].address: ::ffff:10.10.0.11 is an IPv4 address in IPv6 form; write 10.10.0.11`},
	{"an IPv4-mapped address6", "10.10.0.21", "10.10.0.21\n    address6: ::ffff:10.10.0.23", `24: nodes[0].address6: ::ffff:10.10.0.23 is an IPv4 address in IPv6 form; write 10.10.0.23`},
	{"IPv4 in address6", "10.10.0.21", "10.10.0.21\n    address6: 10.10.0.23", `24: nodes[0].address6: 10.10.0.23 is an IPv4 address; write it as address, and the node's IPv6 address here`},
	{"two IPv6 addresses", "10.10.0.21", "fd00::21\n    address6: fd00::22", `23: nodes[0].address: fd00::21 is IPv6, and the node has an address6; give its IPv4 address here, or remove one of the two`},
	{"IPv6 gateway in the place of IPv4", "169.254.1.1", "fe80::2", `5: gateway.ipv4: fe80::2 is not an IPv4 address; for example 169.254.1.1`},
	{"IPv4 gateway in the place of IPv6", "fe80::1", "169.254.1.2", `6: gateway.ipv6: 169.254.1.2 is not an IPv6 address; for example fe80::1`},
	{"gateway with a zone", "fe80::1", "fe80::1%eth0", `6: gateway.ipv6: "fe80::1%eth0" has a zone, which means nothing to other hosts; give an address without '%'`},
	{"no MAC address", "fe80::1", "fe80::1\n  mac: 02:00:5e", `7: gateway.mac: "02:00:5e" is not a MAC address; write it as 02:00:5e:00:01:01, or leave the key out for that`},
	{"MAC address of zeros", "fe80::1", "fe80::1\n  mac: 00:00:00:00:00:00", `7: gateway.mac: all zeros is not a unicast MAC address; leave the key out for 02:00:5e:00:01:01`},
	{"multicast MAC address", "fe80::1", "fe80::1\n  mac: 01:00:5e:00:01:01", `7: gateway.mac: "01:00:5e:00:01:01" is not a unicast MAC address; leave it out for 02:00:5e:00:01:01`},
	{"pool without a length", "203.0.113.0/24", "203.0.113.0", `9: pools[0].prefix: 203.0.113.0 has no length; write 203.0.113.0/32 for this one address, or the length of the prefix`},
	{"IPv6 pool without a length", "2001:db8:100::/48", `"2001:db8:100::"`, `12: pools[1].prefix: 2001:db8:100:: has no length; write 2001:db8:100::/128 for this one address, or the length of the prefix`},
	{"pool that is no prefix", "203.0.113.0/24", "203.0.113.0/33", `9: pools[0].prefix: "203.0.113.0/33" is not a prefix; write one such as 203.0.113.0/24 or "2001:db8:100::/48"`},
	{"pool in the IPv4-mapped form", "203.0.113.0/24", "::ffff:203.0.113.0/120", `9: pools[0].prefix: ::ffff:203.0.113.0/120 is an IPv4 prefix in IPv6 form; write it as IPv4, for example 203.0.113.0/24`},
	{"exclude that is no address", "[203.0.113.0]", "[203.0.113.0, first]", `10: pools[0].exclude[1]: "first" is not an IP address; write one such as 10.10.0.21 or "2001:db8::21"`},
	{"routed that is no prefix", "core:", "routed: [198.51.100.0]\ncore:", `18: routed[0]: 198.51.100.0 has no length; write 198.51.100.0/32 for this one address, or the length of the prefix`},
	{"port zero", "10.10.0.11", "10.10.0.11\n    port: 0", `16: reflectors[0].port: "0" is not a TCP port; write a number from 1 to 65535, or leave the key out for 179`},
	{"port too high", "10.10.0.11", "10.10.0.11\n    port: 65536", `16: reflectors[0].port: "65536" is not a TCP port; write a number from 1 to 65535, or leave the key out for 179`},
	{"not a boolean", "10.10.0.11", "10.10.0.11\n    bfd: yes", `16: reflectors[0].bfd: "yes" is neither true nor false; write one of them, without quotes`},
	{"boolean in quotes", "10.10.0.11", "10.10.0.11\n    gtsm: \"true\"", `16: reflectors[0].gtsm: "true" is neither true nor false; write one of them, without quotes`},
	{"not a duration", "name: msk1", "name: msk1\ntimers: {hold: 9 seconds}", `2: timers.hold: "9 seconds" is not a duration; write 9s, or 9 for seconds`},
	{"no time", "name: msk1", "name: msk1\ntimers:\n  hold: 0", `3: timers.hold: a duration of zero; give a longer one, or leave the key out for the default`},
	{"hold time out of range", "name: msk1", "name: msk1\ntimers:\n  hold: 2s", `3: timers.hold: 2s is out of range; RFC 4271 allows 3s to 65535s`},
	{"agents' port zero", "name: msk1", "name: msk1\nagent_port: 0", `2: agent_port: "0" is not a TCP port; write a number from 1 to 65535, or leave the key out for 7147`},
	{"metrics without a port", "name: msk1", "name: msk1\nmetrics: 127.0.0.1", `2: metrics: "127.0.0.1" is not an IP address with a TCP port; write one such as 127.0.0.1:9178 or "[::1]:9178"`},
	{"metrics at port zero", "name: msk1", "name: msk1\nmetrics: 127.0.0.1:0", `2: metrics: "127.0.0.1:0" is not an IP address with a TCP port; write one such as 127.0.0.1:9178 or "[::1]:9178"`},
	{"agents' port in words", "name: msk1", "name: msk1\nagent_port: ssh", `2: agent_port: "ssh" is not a TCP port; write a number from 1 to 65535, or leave the key out for 7147`},
	{"misspelt key of moves", "name: msk1", "name: msk1\nmoves: {pauses: 1s}", `2: moves.pauses: unknown key; did you mean pause?`},
	{"no packets", "name: msk1", "name: msk1\nmoves:\n  packets_per_second: 0", `3: moves.packets_per_second: "0" is not a number of packets a second; write one such as 10000, or leave the key out for that`},
	{"packets in words", "name: msk1", "name: msk1\nmoves:\n  packets_per_second: 10k", `3: moves.packets_per_second: "10k" is not a number of packets a second; write one such as 10000, or leave the key out for that`},
	{"too many packets", "name: msk1", "name: msk1\nmoves:\n  packets_per_second: 1000001\n  pause: 1ms", `3: moves.packets_per_second: 1000001 is out of range; give 1 to 1000000, or leave it out for 10000`},
	{"a pause too long", "name: msk1", "name: msk1\nmoves:\n  packets_per_second: 1000\n  pause: 61s", `4: moves.pause: 1m1s is out of range; give 1ms to 1m0s, or leave it out for 900ms`},
	{"more packets than can wait", "name: msk1", "name: msk1\nmoves:\n  pause: 10s\n  packets_per_second: 100000", `2: moves: 100000 packets a second for 10s and a little more are 1010000 packets to hold for one guest; 1000000 are the most, give less of one of the two`},
	{"no pause", "name: msk1", "name: msk1\nmoves: {pause: 0}", `2: moves.pause: a duration of zero; give a longer one, or leave the key out for the default`},
	{"negative time", "name: msk1", "name: msk1\ntimers: {restart: -1s}", `2: timers.restart: -1s is out of range; RFC 4724 allows 1s to 4095s`},

	// The cluster as a whole.
	{"well-known community", `"64512:100"`, `"65535:65281"`, `3: community: 65535:65281 is a well-known community, which means something to every router (RFC 1997); use one of your own, for example "64512:100"`},
	{"community twice", `"64512:100"`, `["64512:100", "64512:100"]`, `3: community[1]: 64512:100 is already at community[0]; remove one`},
	{"whole pool excluded", "[203.0.113.0]", "[203.0.113.0/25, 203.0.113.128/25]", `10: pools[0].exclude: leaves no address of 203.0.113.0/24; exclude less, or remove the pool`},
	{"routed with a node in it", "core:", "routed: [10.0.0.0/8]\ncore:", `18: routed[0]: 10.0.0.0/8 holds the address of reflector rr1 (10.10.0.11); name prefixes that are for guests alone`},
	{"a fraction of a second", "name: msk1", "name: msk1\ntimers: {connect_retry: 1500ms}", `2: timers.connect_retry: 1.5s is not in whole seconds, which is how routers count; write 1s`},
	{"reach that is no prefix", "name: msk1", "name: msk1\nguests: {reach: [10.10.0.53]}", `2: guests.reach[0]: 10.10.0.53 has no length; write 10.10.0.53/32 for this one address, or the length of the prefix`},
	{"reach of the Internet", "name: msk1", "name: msk1\nguests: {reach: [10.10.0.53/32, 198.51.100.0/24]}", `2: guests.reach[1]: 198.51.100.0/24 lies neither in the underlay nor in 169.254.0.0/16, so that guests reach it anyway; remove it`},
	{"reach of IPv6 elsewhere", "name: msk1", "name: msk1\nguests: {reach: [\"2001:db8:9::/48\"]}", `2: guests.reach[0]: 2001:db8:9::/48 lies neither in the underlay nor in 169.254.0.0/16, so that guests reach it anyway; remove it`},
	{"reach of everything", "name: msk1", "name: msk1\nguests: {reach: [0.0.0.0/0]}", `2: guests.reach[0]: 0.0.0.0/0 is the whole Internet; name the prefixes that were given to you`},
	{"reach of the loopback", "name: msk1", "name: msk1\nguests: {reach: [127.0.0.1/32]}", `2: guests.reach[0]: 127.0.0.1/32 holds loopback addresses, which no guest can have; name the prefixes that were given to you`},
	{"reach of IPv6 neighbours", "name: msk1", "name: msk1\nguests: {reach: [\"fe80::/64\"]}", `2: guests.reach[0]: fe80::/64 holds link-local addresses, which no guest can have; name the prefixes that were given to you`},
	{"reach with bits beyond", "name: msk1", "name: msk1\nguests: {reach: [169.254.169.254/24]}", `2: guests.reach[0]: 169.254.169.254/24 has bits beyond its length; write 169.254.169.0/24`},
	{"reach twice", "name: msk1", "name: msk1\nguests: {reach: [10.10.0.0/24, 10.10.0.53/32]}", `2: guests.reach[1]: 10.10.0.53/32 overlaps 10.10.0.0/24 (guests.reach[0]); keep the larger one`},
	{"dhcp that is a word", "name: msk1", "name: msk1\nguests: {dhcp: \"no\"}", `2: guests.dhcp: "no" is neither true nor false; write one of them, without quotes`},
	{"ra without a value", "name: msk1", "name: msk1\nguests: {ra: }", `2: guests.ra: empty; give it a value or leave the key out`},
	{"a resolver by name", "name: msk1", "name: msk1\nguests: {dns: [dns.example.net]}", `2: guests.dns[0]: "dns.example.net" is not an IP address; write one such as 10.10.0.21 or "2001:db8::21"`},
	{"a resolver that guests do not reach", "name: msk1", "name: msk1\nguests: {dns: [9.9.9.9, 10.10.0.53]}", `2: guests.dns[1]: 10.10.0.53 is in the underlay or in 169.254.0.0/16, which guests do not reach; add 10.10.0.53/32 to guests.reach, or name a resolver elsewhere`},
	{"one resolver, no list", "name: msk1", "name: msk1\nguests: {dns: 9.9.9.9}", `2: guests.dns: a single value where a list belongs; put each item on a line of its own that begins with '-', or all in [ ]`},
	{"a domain with line breaks", "name: msk1", "name: msk1\nguests: {search: [\"a\\nb\"]}", `2: guests.search[0]: "a\nb" is not a domain; write one such as example.net`},
	{"a domain of no name", "name: msk1", "name: msk1\nguests: {search: [example.net, www.xn--99999999]}", `2: guests.search[1]: "www.xn--99999999" has a part that begins with xn-- and stands for no name; correct it (idn2 prints what a name is in DNS)`},
	{"a domain in Unicode", "name: msk1", "name: msk1\nguests: {search: [пример.рф]}", `2: guests.search[0]: "пример.рф" has characters beyond ASCII; write the form that DNS has, with xn-- (idn2 prints it)`},
	{"an MTU of none", "name: msk1", "name: msk1\nguests: {mtu: 0}", `2: guests.mtu: "0" is not an MTU; write a number of bytes such as 1500, without quotes, or leave the key out to say nothing`},
	{"an MTU that is too small", "name: msk1", "name: msk1\nguests: {mtu: 576}", `2: guests.mtu: 576 is out of range; IPv6 needs 1280, a tap takes at most 65521`},
	{"a key of guests that is misspelt", "name: msk1", "name: msk1\nguests: {dchp: false}", `2: guests.dchp: unknown key; did you mean dhcp?`},
	{"a resolver behind a mistake", "name: msk1", "name: msk1\nguests: {dns: [10.10.0.53, 169.254.1.1], reach: [10.10.0.53], node_ports: [tcp/53, udp/53]}", `2: guests.reach[0]: 10.10.0.53 has no length; write 10.10.0.53/32 for this one address, or the length of the prefix`},
	{"a DHCP server behind a mistake", "name: msk1", "name: msk1\nguests: {dhcp: off, node_ports: [udp/67]}", `2: guests.dhcp: "off" is neither true nor false; write one of them, without quotes`},
	{"a DHCP server on the nodes", "name: msk1", "name: msk1\nguests: {node_ports: [udp/67]}", `2: guests.node_ports[0]: at udp/67 the agent answers the guests' DHCP itself; remove it, or write dhcp: false for a server of your own`},
	{"service without a protocol", "name: msk1", "name: msk1\nguests: {node_ports: [53]}", `2: guests.node_ports[0]: "53" is not a service; write tcp/53 or udp/53`},
	{"service of another protocol", "name: msk1", "name: msk1\nguests: {node_ports: [sctp/53]}", `2: guests.node_ports[0]: "sctp/53" is not a service; write tcp/53 or udp/53`},
	{"service beyond all", "name: msk1", "name: msk1\nguests: {node_ports: [tcp/65536]}", `2: guests.node_ports[0]: "tcp/65536" is not a service; write tcp/53 or udp/53`},
	{"service twice", "name: msk1", "name: msk1\nguests: {node_ports: [tcp/53, udp/53, tcp/53]}", `2: guests.node_ports[2]: tcp/53 is already at guests.node_ports[0]; remove one`},
	{"service of the agents", "name: msk1", "name: msk1\nguests: {node_ports: [tcp/53, tcp/7147]}", `2: guests.node_ports[1]: tcp/7147 is the port on which the agents hear each other (agent_port), which no guest may reach; remove it`},
	{"overlapping range", "prefix: 2001:db8:100::/48", "ranges:\n      - 192.0.2.1-192.0.2.9\n      - 203.0.113.128-203.0.114.9", `14: pools[1].ranges[1]: 203.0.113.128-203.0.114.9 overlaps 203.0.113.0/24 of pool public4 (pools[0]); make them disjoint`},
	{"no range", "prefix: 2001:db8:100::/48", "ranges: [203.0.113.9]", `12: pools[1].ranges[0]: "203.0.113.9" is not a range of addresses; write one such as 203.0.113.10-203.0.113.99`},
	{"a prefix for a range", "prefix: 2001:db8:100::/48", "ranges: [192.0.2.0/24]", `12: pools[1].ranges[0]: 192.0.2.0/24 is a prefix; write it under prefixes, or as its first and last address, 192.0.2.0-192.0.2.255`},
	{"prefix of the other family", "exclude: [203.0.113.0]", "prefixes: [192.0.2.0/24, 2001:db8:300::/48]", `10: pools[0].prefixes[1]: 2001:db8:300::/48 is of another family than 203.0.113.0/24 (pools[0].prefix); a pool has one, make two pools`},
	{"ranges that are no list", "prefix: 2001:db8:100::/48", "ranges: 5", `12: pools[1].ranges: a single value where a list belongs; put each item on a line of its own that begins with '-', or all in [ ]`},
	{"a further prefix without a length", "exclude: [203.0.113.0]", "prefixes: [192.0.2.0]\n    exclude: [192.0.2.9]", `10: pools[0].prefixes[0]: 192.0.2.0 has no length; write 192.0.2.0/32 for this one address, or the length of the prefix`},
	{"no prefix length", "exclude: [203.0.113.0]", "per_guest: no", `10: pools[0].per_guest: "no" is no length of a prefix; write one such as 64 or, of IPv4, 29, or leave the key out for single addresses`},
	{"no address without a prefix", "exclude: [203.0.113.0]", "guest_address: false", `10: pools[0].guest_address: pool public4 gives single addresses, which are the guests'; leave the key out, or give the length of a prefix for each guest under per_guest, such as 29`},
	{"guest_address in quotes", "exclude: [203.0.113.0]", `guest_address: "no"`, `10: pools[0].guest_address: "no" is neither true nor false; write one of them, without quotes`},
	{"prefix length of IPv6", "exclude: [203.0.113.0]", "per_guest: 64", `10: pools[0].per_guest: 64 is no length of a prefix of several addresses; give one up to 31, such as 29, or leave the key out for single addresses`},
	{"prefix length of more than the pool", "exclude: [203.0.113.0]", "per_guest: 20", `9: pools[0].prefix: 203.0.113.0/24 is not made of whole prefixes of length 20, of which each guest gets one (per_guest); give it ends that fit, or a longer per_guest`},
	{"label of no node", "exclude: [203.0.113.0]", "node_labels: [ssd]", `10: pools[0].node_labels[0]: no node of this file has the label "ssd"; correct it, or add it to the labels of a node`},
	{"overlapping pools", "2001:db8:100::/48", "203.0.113.128/25", `12: pools[1].prefix: 203.0.113.128/25 overlaps 203.0.113.0/24 of pool public4 (pools[0]); make them disjoint`},
	{"overlapping IPv6 pools", "203.0.113.0/24\n    exclude: [203.0.113.0]", "2001:db8::/32", `11: pools[1].prefix: 2001:db8:100::/48 overlaps 2001:db8::/32 of pool public4 (pools[0]); make them disjoint`},
	{"gateway in a pool", "169.254.1.1", "203.0.113.1", `5: gateway.ipv4: 203.0.113.1 lies in pool public4; the gateway must be an address that no guest can have, for example 169.254.1.1`},
	{"IPv6 gateway in a pool", "fe80::1", "2001:db8:100::1", `6: gateway.ipv6: 2001:db8:100::1 lies in pool public6; the gateway must be an address that no guest can have, for example fe80::1`},
	{"exclude outside the pool", "[203.0.113.0]", "[203.0.113.0, 203.0.114.0]", `10: pools[0].exclude[1]: 203.0.114.0/32 lies outside 203.0.113.0/24; remove it or correct it`},
	{"reservation outside the pool", "exclude: [203.0.113.0]", "reserve: [{address: 203.0.114.1}]", `10: pools[0].reserve[0].address: 203.0.114.1/32 lies outside 203.0.113.0/24; remove it or correct it`},
	{"reservation of nothing", "exclude: [203.0.113.0]", "reserve: [{note: vpn}]", `10: pools[0].reserve[0].address: missing; name an address or a prefix inside 203.0.113.0/24`},
	{"reservation that is none", "exclude: [203.0.113.0]", "reserve: [203.0.113.1]", `10: pools[0].reserve[0]: a single value where a mapping belongs; give it the keys address, note`},
	{"reservation with bits too many", "exclude: [203.0.113.0]", "reserve: [{address: 203.0.113.1/28}]", `10: pools[0].reserve[0].address: 203.0.113.1/28 has bits beyond its length; write 203.0.113.0/28`},
	{"reservation twice", "exclude: [203.0.113.0]", "reserve: [{address: 203.0.113.1}, {address: 203.0.113.1/32}]", `10: pools[0].reserve[1].address: 203.0.113.1/32 is already at pools[0].reserve[0]; remove one`},
	{"reservation that is excluded", "exclude: [203.0.113.0]", "exclude: [203.0.113.0/28]\n    reserve: [{address: 203.0.113.1}]", `11: pools[0].reserve[0].address: 203.0.113.1/32 is excluded, too; remove one of the two`},
	{"reservation with a note of two lines", "exclude: [203.0.113.0]", "reserve: [{address: 203.0.113.1, note: \"a\\nb\"}]", `10: pools[0].reserve[0].note: "a\nb" is not one line of text; write what the address is for`},
	{"quarantine too long", "exclude: [203.0.113.0]", "quarantine: 9000h", `10: pools[0].quarantine: 9000h0m0s is out of range; give at most 8760h0m0s, or leave the key out for 10m0s`},
	{"quarantine in words", "exclude: [203.0.113.0]", "quarantine: long", `10: pools[0].quarantine: "long" is not a duration; write 9s, or 9 for seconds`},
	{"pool for a node that is none", "exclude: [203.0.113.0]", "nodes: [node1, node9]", `10: pools[0].nodes[1]: "node9" is no node of this file; correct the name, or add it under nodes`},
	{"pool for a node twice", "exclude: [203.0.113.0]", "nodes: [node1, node1]", `10: pools[0].nodes[1]: "node1" is already at pools[0].nodes[0]; remove one`},
	{"pool called auto", "name: public4", "name: auto", `8: pools[0].name: "auto" stands for the first pool of each family where a guest asks for addresses; choose another name`},
	{"two nodes with one address", "10.10.0.22", "10.10.0.21", `25: nodes[1].address: 10.10.0.21 is already at nodes[0].address; each needs an address of its own`},
	{"a name twice", "name: node2", "name: node1", `24: nodes[1].name: node "node1" is already at nodes[0].name; rename one`},
	{"a family that nodes lack", "10.10.0.12", "fd00::12", `17: reflectors[1].address: fd00::12 is IPv6 but node node1 (nodes[0]) has no IPv6 address; give the node an address6, or the reflector an address of the other family`},
}

func TestMistakes(t *testing.T) {
	for _, tt := range mistakes {
		t.Run(tt.name, func(t *testing.T) {
			assert.EqualError(t, parse(edit(t, base, tt.old, tt.new)), "cluster.yaml:"+tt.want)
		})
	}
}

// Mistakes that keep the file from being read as a mapping at all.
func TestNotAClusterFile(t *testing.T) {
	const wayOut = "; check the indentation, which is in spaces, and the brackets, and quote values with signs such as ':'"
	for _, tt := range []struct{ name, text, want string }{
		{"empty", "", "1: the file is empty; give at least the keys name, asn, community, gateway, pools, reflectors and nodes"},
		{"comments only", "# to be done\n", "1: the file is empty; give at least the keys name, asn, community, gateway, pools, reflectors and nodes"},
		{"a list", "# x\n- name: msk1\n", "2: the file is a list; begin with the keys themselves, as in 'name: msk1', without '-'"},
		{"a word", "msk1\n", "1: the file is a single value; begin with the keys, as in 'name: msk1'"},
		{"two documents", "name: a\n---\nname: b\n", "3: a second document begins here; a cluster file is one, remove the '---' between them"},
		{"tab", "gateway:\n\tipv4: 169.254.1.1\n", "2: not YAML: found a tab that cannot start any token" + wayOut},
		{"colon at the end of a value", "gateway:\n  ipv4: 1.2.3.4\n  ipv6: fe80::\n", "3: not YAML: mapping value is not allowed in this context" + wayOut},
		{"open bracket", "name: a\nrouted: [10.0.0.0/8\n", "2: not YAML: sequence end token ']' not found" + wayOut},
		{"open quote", "name: a\ncommunity: \"64512:100\n", "2: not YAML: could not find end character of double-quoted text" + wayOut},
		{"closing bracket alone", "name: ]\n", "1: ']' closes no list and no mapping; remove it, or quote it if it belongs to a value"},
		{"bad indentation", "name: a\n  asn: 1\n", "1: not YAML: mapping value is not allowed in this context" + wayOut},
		{"anchor", "name: &n a\n", "1: '&' makes an anchor or an alias, which are not allowed here; write the value out, or quote it if the sign belongs to it"},
		{"alias", "name: a\nasn: *n\n", "2: '*' makes an anchor or an alias, which are not allowed here; write the value out, or quote it if the sign belongs to it"},
		{"tag", "name: !!str 7\n", `1: "!!str" is a YAML tag, which is not allowed here; remove it`},
		{"directive", "%YAML 1.2\n---\nname: a\n", "1: '%' begins a YAML directive, which is not allowed here; remove the line"},
		{"binary", "name: a\nasn: \x00\x01", "2: has the control character U+0000; remove it, or give the right file"},
		{"Latin-1", "name: a\n# caf\xe9\n", "2: not UTF-8 text; give the right file, or save it as UTF-8"},
		{"brackets", strings.Repeat("[", 1<<16), "1: nested deeper than 16 levels; give the right file"},
		{"braces", strings.Repeat("{a: ", 1<<14), "1: nested deeper than 16 levels; give the right file"},
		{"dashes", strings.Repeat("- ", 1<<15), "1: nested deeper than 16 levels; give the right file"},
		{"question marks", strings.Repeat("? ", 1<<15), "1: nested deeper than 16 levels; give the right file"},
		{"keys", strings.Repeat("a: b\n", 1<<14), "257: more than 256 keys in one mapping; give the right file"},
		{"keys with lists", strings.Repeat("a:\n- b\n", 1<<14), "513: more than 256 keys in one mapping; give the right file"},
		{"values left out", "nodes:\n" + strings.Repeat("-\n", 1<<17), "100000: more than 100000 words and signs up to here; give the right file"},
		{"alias bomb", "a: &a [x, x]\nb: &b [*a, *a]\n", "1: '&' makes an anchor or an alias, which are not allowed here; write the value out, or quote it if the sign belongs to it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			assert.EqualError(t, parse(tt.text), "cluster.yaml:"+tt.want)
		})
	}
	t.Run("too large", func(t *testing.T) {
		assert.EqualError(t, parse(base+strings.Repeat("#", 1<<20)), "cluster.yaml: larger than 1 MiB, which no cluster file is; give the right file")
	})
	t.Run("too many items", func(t *testing.T) {
		text := edit(t, base, "[203.0.113.0]", "["+strings.Repeat("203.0.113.0, ", 4097)+"]")
		assert.EqualError(t, parse(text), "cluster.yaml:10: pools[0].exclude: 4097 items; at most 4096 are allowed")
	})
}

func TestManyMistakesAtOnce(t *testing.T) {
	text := base
	for _, e := range [][2]string{
		{"asn: 64512", "asn: 1.10"},
		{"prefix: 203.0.113.0/24", "prefix: 203.0.113.0/33"},
		{"name: public6", "name: public4"},
		{"name: rr2", "nmae: rr2"},
		{"10.10.0.12", "10.10.0.11"},
		{"10.10.0.21", "10.10.0.299"}, // and no word of the family that node1 has none of now
		{"10.10.0.22", "fe80::1"},
	} {
		text = edit(t, text, e[0], e[1])
	}
	err := parse(text)
	require.Error(t, err)
	assert.Equal(t, []string{
		`cluster.yaml:2: asn: "1.10" is in the dotted form of RFC 5396; write the plain number 65546`,
		`cluster.yaml:9: pools[0].prefix: "203.0.113.0/33" is not a prefix; write one such as 203.0.113.0/24 or "2001:db8:100::/48"`,
		`cluster.yaml:11: pools[1].name: pool "public4" is already at pools[0].name; rename one`,
		`cluster.yaml:16: reflectors[1].nmae: unknown key; did you mean name?`,
		`cluster.yaml:23: nodes[0].address: "10.10.0.299" is not an IP address; write one such as 10.10.0.21 or "2001:db8::21"`,
		`cluster.yaml:25: nodes[1].address: fe80::1 is the guests' gateway, which must be used nowhere else; change one of the two`,
	}, strings.Split(err.Error(), "\n"))

	var first *clusterfile.Error
	require.ErrorAs(t, err, &first)
	assert.Equal(t, "cluster.yaml", first.File)
	assert.Equal(t, 2, first.Line)
	assert.Equal(t, 1, first.Column)
	assert.Equal(t, "asn", first.Key)
}

func TestTooManyMistakes(t *testing.T) {
	var b strings.Builder
	b.WriteString(base)
	for i := range 30 {
		fmt.Fprintf(&b, "  - {name: bad%d, address: 300.0.0.%d}\n", i, i)
	}
	lines := strings.Split(parse(b.String()).Error(), "\n")
	require.Len(t, lines, 21)
	assert.Contains(t, lines[0], "cluster.yaml:26: nodes[2].address: ")
	assert.Contains(t, lines[19], "cluster.yaml:45: nodes[21].address: ")
	assert.Equal(t, "cluster.yaml: 10 more after these; correct these first", lines[20])
}

func TestLoadTellsWhatIsWrongWithTheFile(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "cluster.yaml")
	_, err := clusterfile.Load(missing)
	require.EqualError(t, err, missing+": no such file; create it, the same on every node, with the keys name, asn, community, gateway, pools, reflectors and nodes")
	require.ErrorIs(t, err, fs.ErrNotExist)

	_, err = clusterfile.Load(dir)
	require.EqualError(t, err, dir+": is a directory; it must be a file that this user can read")

	large := filepath.Join(dir, "large.yaml")
	require.NoError(t, os.WriteFile(large, nil, 0o600))
	require.NoError(t, os.Truncate(large, 1<<40))
	_, err = clusterfile.Load(large)
	require.EqualError(t, err, large+": larger than 1 MiB, which no cluster file is; give the right file")
}

// TestWhatOthersCouldWrite: orders of somebody else's are not taken.
func TestWhatOthersCouldWrite(t *testing.T) {
	dir := t.TempDir()
	file, key := filepath.Join(dir, "cluster.yaml"), filepath.Join(dir, "rr1.key")
	require.NoError(t, os.WriteFile(file, []byte(edit(t, base, "10.10.0.11", "10.10.0.11\n    password_file: rr1.key")), 0o644))
	require.NoError(t, os.WriteFile(key, []byte("s3cret\n"), 0o600))
	_, err := clusterfile.Load(file)
	require.NoError(t, err)

	require.NoError(t, os.Chmod(file, 0o666))
	_, err = clusterfile.Load(file)
	require.EqualError(t, err, file+": it can be written by others (mode 0666); run 'chmod go-w "+file+"'")
	require.NoError(t, os.Chmod(file, 0o644))

	if os.Geteuid() == 0 {
		require.NoError(t, os.Chown(key, 4242, 4242))
		_, err = clusterfile.Load(file)
		require.EqualError(t, err, file+":16: reflectors[0].password_file: "+key+": belongs to user 4242, who can read and change it; run 'chown root' on it, and make a new one if that user may have read it")
		require.NoError(t, os.Chown(key, 0, 0))
		require.NoError(t, os.Chown(file, 4242, 4242))
		_, err = clusterfile.Load(file)
		require.ErrorContains(t, err, file+": it belongs to user 4242")
		require.NoError(t, os.Chown(file, 0, 0))
	}

	require.NoError(t, os.Chmod(dir, 0o777))
	_, err = clusterfile.Load(file)
	require.EqualError(t, err, file+": "+dir+" on its way can be written by others (mode 0777); run 'chmod go-w "+dir+"'")
	require.NoError(t, os.Chmod(dir, 0o777|os.ModeSticky))
	_, err = clusterfile.Load(file)
	require.NoError(t, err)
}

func TestPasswordFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "cluster.yaml")
	key := filepath.Join(dir, "rr1.key")
	long := strings.Repeat("x", 80)
	for _, tt := range []struct {
		name, content string
		mode          fs.FileMode
		password      string // or
		want          string // the error
	}{
		{"plain", "s3cret", 0o600, "s3cret", ""},
		{"with a line end", "s3cret\n", 0o400, "s3cret", ""},
		{"with a Windows line end", "s3cret\r\n", 0o600, "s3cret", ""},
		{"spaces are kept", " s 3 \n", 0o600, " s 3 ", ""},
		{"as long as Linux takes", long + "\n", 0o600, long, ""},
		{"too long", long + "y\n", 0o600, "", key + " holds 81 bytes; Linux takes TCP MD5 keys of at most 80, choose a shorter password"},
		{"much too long", strings.Repeat(long, 9), 0o600, "", key + " holds 720 bytes; Linux takes TCP MD5 keys of at most 80, choose a shorter password"},
		{"empty", "", 0o600, "", key + " is empty; write the password into it, or leave the key out"},
		{"a line end alone", "\n", 0o600, "", key + " is empty; write the password into it, or leave the key out"},
		{"two lines", "a\nb\n", 0o600, "", key + " has a control character or a second line; write the password alone into it"},
		{"readable by the group", "s3cret", 0o640, "", key + ": open to others (mode 0640); run 'chmod 600' on it, and make a new one if they may have read it"},
		{"readable by all", "s3cret", 0o604, "", key + ": open to others (mode 0604); run 'chmod 600' on it, and make a new one if they may have read it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.NoError(t, os.RemoveAll(key))
			require.NoError(t, os.WriteFile(key, []byte(tt.content), 0o600))
			require.NoError(t, os.Chmod(key, tt.mode))
			for _, written := range []string{"rr1.key", key} {
				c, err := clusterfile.Parse(file, []byte(edit(t, base, "10.10.0.11", "10.10.0.11\n    password_file: "+written)))
				if tt.want != "" {
					require.EqualError(t, err, file+":16: reflectors[0].password_file: "+tt.want)
					continue
				}
				require.NoError(t, err)
				assert.Equal(t, tt.password, c.Reflectors[0].Password)
				assert.Empty(t, c.Reflectors[1].Password)
			}
		})
	}
	for _, tt := range []struct{ name, written, want string }{
		{"missing", "none.key", filepath.Join(dir, "none.key") + " does not exist; create it with the password and mode 0600, or leave the key out"},
		{"a directory", ".", dir + ": not a regular file; name the file with the password"},
		{"a device", "/dev/zero", "/dev/zero: not a regular file; name the file with the password"},
		{"no name", `""`, "empty; name the file with the password, or leave the key out"},
		{"unreadable", "cluster.yaml/x", filepath.Join(file, "x") + ": not a directory; run this as the file's owner, or correct the path"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(file, nil, 0o600))
			_, err := clusterfile.Parse(file, []byte(edit(t, base, "10.10.0.11", "10.10.0.11\n    password_file: "+tt.written)))
			require.EqualError(t, err, file+":16: reflectors[0].password_file: "+tt.want)
			assert.NotErrorIs(t, err, fs.ErrNotExist) // that is for the cluster file itself
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(base))
	for _, name := range []string{"cluster.yaml", "dualstack.yaml"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		require.NoError(f, err)
		f.Add(data)
	}
	for _, s := range []string{
		"", "- a", "a: [", "{}", "name: {", "? a\n: b", "a: &x [*x]", "nodes: [~, {}, [], x]", "community: |\n  64512:100\n",
		"timers: {hold: 1h, x: }", "0: \n0: \n0:\n0'\n0: \n0:", "pools: [{name:0,prefix:\"::/17\"}]", "{-N}", "? 0", "core:\n}", "::::\n\n:::",
		"e: 0\nasy:\n ipven: \n\ncommunity:\n\"m:0\"", "pools: [{name: \"a\\nb\", prefix: ::/1}, {name: \"a\\nb\", prefix: ::/2}]", "pools: [{prefix: 0.0.0.0/0, exclude: [::]}]", "reflectors: [{password_file: \"\\n\"}]",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := clusterfile.Parse("testdata/fuzz.yaml", data)
		if err == nil {
			assert.Empty(t, c.Validate())
			clusterfile.Warnings(c)
			return
		}
		all, ok := err.(interface{ Unwrap() []error })
		require.True(t, ok)
		require.LessOrEqual(t, len(all.Unwrap()), 21)
		line := 0
		for i, one := range all.Unwrap() {
			var e *clusterfile.Error
			require.True(t, errors.As(one, &e))
			assert.NotContains(t, e.Error(), "\n")
			if i < 20 {
				assert.GreaterOrEqual(t, e.Line, line)
				line = e.Line
			}
			assert.LessOrEqual(t, e.Line, strings.Count(string(data), "\n")+1)
		}
	})
}
