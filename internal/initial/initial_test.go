package initial_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/internal/initial"
)

func addrs(all ...string) (as []netip.Addr) {
	for _, s := range all {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

// TestFile: what init writes is a good cluster file, as soon as it has pools and
// reflectors, and has what it was given.
func TestFile(t *testing.T) {
	whole := initial.Cluster{
		Name: "msk1", ASN: 4200000001,
		Pools: []netip.Prefix{
			netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:100::/48"),
			netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:200::/48"),
		},
		Reflectors: []initial.Machine{{Name: "rr1", Address: netip.MustParseAddr("10.10.0.11")}, {Name: "rr2", Address: netip.MustParseAddr("fd00:10:10::12")}},
		Core:       []initial.Machine{{Name: "core1", Address: netip.MustParseAddr("10.10.0.1")}},
		DNS:        addrs("9.9.9.9", "2620:fe::fe"),
		Node:       "node1", Address: netip.MustParseAddr("10.10.0.21"), Address6: netip.MustParseAddr("fd00:10:10::21"),
	}
	alone := whole
	alone.ASN = 64512
	alone.Reflectors = []initial.Machine{{Name: "rr1", Address: netip.MustParseAddr("fd00:10:10::11")}, whole.Reflectors[1]}
	alone.Address, alone.Address6, alone.Core, alone.DNS = whole.Address6, whole.Address6, nil, nil
	for name, c := range map[string]initial.Cluster{"both families": whole, "IPv6 alone, no core": alone} {
		t.Run(name, func(t *testing.T) {
			assert.Empty(t, c.Missing())
			text, err := c.File()
			require.NoError(t, err)
			dir := t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(dir, "cluster.key"), []byte("the key of the cluster\n"), 0o600))
			got, err := clusterfile.Parse(filepath.Join(dir, "cluster.yaml"), []byte(text))
			require.NoError(t, err, text)
			assert.Equal(t, c.Name, got.Name)
			assert.Equal(t, c.ASN, got.ASN)
			var pools []string
			for _, p := range got.Pools {
				pools = append(pools, p.Name+" "+p.Prefix.String())
			}
			assert.Equal(t, []string{"public4 203.0.113.0/24", "public6 2001:db8:100::/48", "public4-2 198.51.100.0/24", "public6-2 2001:db8:200::/48"}, pools)
			require.Len(t, got.Reflectors, 2)
			assert.Equal(t, c.Reflectors[1].Address, got.Reflectors[1].Address)
			assert.Len(t, got.Core, len(c.Core))
			assert.Equal(t, c.DNS, got.Guests.DNS)
			require.Len(t, got.Nodes, 1)
			assert.Contains(t, []netip.Addr{got.Nodes[0].Address, got.Nodes[0].Address6}, c.Address)
			assert.Equal(t, "the key of the cluster", got.Key)
		})
	}
}

// TestFileToFillIn: what nobody said is a comment, whose lines are good once they are
// none, and the errors of check name it until then.
func TestFileToFillIn(t *testing.T) {
	c := initial.Cluster{Name: "c", ASN: 64512, Node: "node1", Address: netip.MustParseAddr("10.10.0.21")}
	assert.Equal(t, []string{"pools", "reflectors"}, c.Missing())
	text, err := c.File()
	require.NoError(t, err)
	_, err = clusterfile.Parse("cluster.yaml", []byte(text), clusterfile.WithoutKey())
	require.ErrorContains(t, err, "pools: missing")
	require.ErrorContains(t, err, "reflectors: missing")
	for _, key := range []string{"#pools:\n#  - {name: public4, prefix: 203.0.113.0/24}", "#reflectors:\n#  - {name: rr1, address: 10.10.0.11}", "#core:\n#  - {name: core1, address: 10.10.0.1}"} {
		assert.Contains(t, text, key)
	}
}

func TestUnderlay(t *testing.T) {
	const none = "invalid IP"
	eth0 := initial.Interface{Name: "eth0", Addresses: addrs("fe80::1", "198.51.100.7", "2001:db8::7")}
	eth1 := initial.Interface{Name: "eth1", Addresses: addrs("10.10.0.21", "fe80::2", "10.10.0.99", "fd00:10:10::21")}
	eth2 := initial.Interface{Name: "eth2", Addresses: addrs("192.168.1.5")}
	down := initial.Interface{Name: "eth3", Addresses: addrs("fe80::3", "169.254.7.7")}
	six := initial.Interface{Name: "eth6", Addresses: addrs("fd00:10:10::21")}
	for _, tt := range []struct {
		name       string
		interfaces []initial.Interface
		leads      string
		want, six  string
		err        string
	}{
		{name: "one private", interfaces: []initial.Interface{eth0, down, eth1}, want: "10.10.0.21", six: "fd00:10:10::21"},
		{name: "one that is public", interfaces: []initial.Interface{down, eth0}, want: "198.51.100.7", six: "2001:db8::7"},
		{name: "IPv6 alone", interfaces: []initial.Interface{six}, want: "fd00:10:10::21", six: "fd00:10:10::21"},
		{name: "two private", interfaces: []initial.Interface{eth0, eth1, eth2}, err: "eth1 (10.10.0.21) or eth2 (192.168.1.5); name"},
		{name: "two private, the reflector decides", interfaces: []initial.Interface{eth1, eth2}, leads: "192.168.1.5", want: "192.168.1.5", six: none},
		{name: "the reflector decides for a public one", interfaces: []initial.Interface{eth0, eth1}, leads: "198.51.100.7", want: "198.51.100.7", six: "2001:db8::7"},
		{name: "and for a second address", interfaces: []initial.Interface{eth1}, leads: "10.10.0.99", want: "10.10.0.99", six: "fd00:10:10::21"},
		{name: "none", interfaces: []initial.Interface{down}, err: "no interface has an address"},
		{name: "the way to the reflector has none", interfaces: []initial.Interface{eth1}, leads: "127.0.0.1", err: "no interface has an address"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var leads netip.Addr
			if tt.leads != "" {
				leads = netip.MustParseAddr(tt.leads)
			}
			got, got6, err := initial.Underlay(tt.interfaces, leads)
			if tt.err != "" {
				require.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, tt.want, got.String())
			assert.Equal(t, tt.six, got6.String())
		})
	}
}

func TestParseMachine(t *testing.T) {
	m, err := initial.ParseMachine("rr1=10.10.0.11")
	require.NoError(t, err)
	assert.Equal(t, initial.Machine{Name: "rr1", Address: netip.MustParseAddr("10.10.0.11")}, m)
	for _, bad := range []string{"", "rr1", "=10.10.0.11", "rr1=", "rr1=rr1"} {
		_, err := initial.ParseMachine(bad)
		require.ErrorContains(t, err, "write one such as rr1=10.10.0.11")
	}
}
