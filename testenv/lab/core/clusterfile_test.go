package core_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

func TestClusterFileIsRead(t *testing.T) {
	changed := core.SmallCluster(2)
	changed.AgentPort = 7148
	changed.Pools[0].Nodes, changed.Pools[1].Quarantine = []string{"node2"}, time.Hour
	changed.Pools[1].NoAddress = true
	changed.Pools[1].PerGuest, changed.Labels = 64, map[string][]string{"node1": {"rack1", "ssd"}}
	changed.Pools = append(changed.Pools, fabric.Pool{
		Name: "more4", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/28")}, NodeLabels: []string{"ssd"},
		Ranges: []fabric.AddressRange{{First: netip.MustParseAddr("192.0.2.20"), Last: netip.MustParseAddr("192.0.2.29")}},
	})
	changed.Moves = fabric.Moves{Rate: 4000, Pause: 1500 * time.Millisecond}
	changed.Guests = fabric.Guests{
		Reach: []netip.Prefix{netip.MustParsePrefix("169.254.169.253/32"), netip.MustParsePrefix("fd00:10:10::35/128")}, NodePorts: []fabric.Service{{Protocol: "udp", Port: 53}},
		NoDHCP: true, NoRA: true, Metadata: true, Isolate: true, DNS: []netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("2620:fe::fe")}, Search: []string{"example.net", "lan"},
		NTP: []netip.Addr{netip.MustParseAddr("192.0.2.123")}, MTU: 1400,
	}
	half := core.SmallCluster(1)
	half.Moves.Pause = 2 * time.Second
	for name, c := range map[string]fabric.Cluster{"plain": core.SmallCluster(3), "changed": changed, "half": half} {
		got, err := clusterfile.Parse(name, []byte(core.ClusterFile(c)))
		require.NoError(t, err, name)
		want := c.WithDefaults()
		assert.Equal(t, want.AgentPort, got.AgentPort, name)
		assert.Equal(t, want.Moves, got.Moves, name)
		assert.Equal(t, want.Guests, got.Guests, name)
		assert.Equal(t, want.Nodes, got.Nodes, name)
		assert.Equal(t, want.Labels, got.Labels, name)
		assert.Equal(t, want.Pools, got.Pools, name)
	}
}
