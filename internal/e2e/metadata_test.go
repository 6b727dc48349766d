package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestMetadata: guests read their metadata from the agent of their node, if the cluster
// file says so.
func TestMetadata(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "curl", "busybox")
	s := start(t, options{change: func(c *fabric.Cluster) { c.Guests.Metadata = true }})
	const url4, url6 = "http://169.254.169.254/meta-data", "http://[fe80::a9fe:a9fe%25eth0]/meta-data"
	for _, vm := range []fabric.VM{veth("web", "203.0.113.10", "2001:db8:100::10"), veth("db", "203.0.113.11", "2001:db8:100::11")} {
		g := s.run("node1", vm)
		s.coreHas(s.top.Nodes["node1"], vm.Prefixes()...)
		want := fmt.Sprintf("instance-id: \"attached-%s\"\nlocal-hostname: \"%[1]s\"\n", vm.Name)
		for _, ask := range [][]string{
			{"curl", "-sfg", url4},
			{"curl", "-sfg", url6},
			{"busybox", "wget", "-qO-", url4},
			{"curl", "-sfg", "--interface", vm.NICs[0].Addresses[1].String(), url6},
		} {
			s.eventually(strings.Join(ask, " "), func() error {
				out, err := g.Run(soon(t), ask[0], ask[1:]...)
				if err == nil && out != want {
					err = fmt.Errorf("%q", out)
				}
				return err
			})
		}
		out, err := g.Run(soon(t), "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", "X-Forwarded-For: 192.0.2.1", url4)
		require.NoError(t, err, out)
		assert.Equal(t, "403", out)
	}
	_, err := s.top.Nodes["node1"].Run(soon(t), "curl", "-sf", "--max-time", "1", url4)
	assert.Error(t, err, "the node itself is no guest")
}
