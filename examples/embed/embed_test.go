package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestEmbed runs the program on a node of a lab, and looks for its routes in
// the core gateway's kernel.
func TestEmbed(t *testing.T) {
	labtest.Need(t, "bird")
	program := filepath.Join(t.TempDir(), "embed")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)

	cluster := core.SmallCluster(1)
	lab, top := labtest.Build(t, cluster)
	gateway := routers.CoreGateway{BGP: routers.BGPOf(cluster), RouterID: top.Core.Addr4()}
	for _, h := range top.Reflectors {
		_, err := routers.StartBird(labtest.Soon(t), h, routers.Reflector{BGP: routers.BGPOf(cluster), RouterID: h.Addr4(), Cores: []netip.Addr{top.Core.Addr4()}}.Bird())
		require.NoError(t, err)
		gateway.Reflectors = append(gateway.Reflectors, h.Addr4())
	}
	_, err = routers.StartBird(labtest.Soon(t), top.Core, gateway.Bird())
	require.NoError(t, err)
	file := filepath.Join(lab.Dir(), "cluster.yaml")
	require.NoError(t, os.WriteFile(file, []byte(core.ClusterFile(cluster)), 0o600))
	node := top.Nodes["node1"]
	d, err := node.StartDaemon("embed", exec.Command(program, "--config", file, "--state", filepath.Join(node.Dir(), "state")))
	require.NoError(t, err)

	prefixes := []netip.Prefix{netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128")}
	await := func(there bool) {
		for _, p := range prefixes {
			require.NoError(t, core.Until(labtest.Soon(t), func() error {
				if _, ok, err := top.Core.Route(p); err != nil || ok != there {
					return fmt.Errorf("route to %s in the core gateway: %v %w; %s", p, ok, err, d.Log())
				}
				return nil
			}))
		}
	}
	await(true)
	assert.True(t, node.HasLink("web_net0"))
	require.NoError(t, d.Signal(syscall.SIGTERM))
	await(false)
	require.NoError(t, d.Wait(), d.Log())
	assert.False(t, node.HasLink("web_net0"))
	assert.Contains(t, d.Log(), "web is gone")
}
