package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/internal/doctor"
)

// TestDoctor: beside real agents, reflectors and guests nothing is wrong, nor without the
// agent of this node; then what is broken is named.
func TestDoctor(t *testing.T) {
	t.Parallel()
	s := start(t, options{nodes: 2})
	a := s.agents["node1"]
	_, errs, code := a.cli("attach", "web", "--address", "203.0.113.10,2001:db8:100::10")
	require.Zero(t, code, errs)
	looks := func() (doctor.Report, int) {
		t.Helper()
		// The rest is about the machine of the test.
		out, errs, code := a.cli("doctor", "cluster", "address", "kernel", "forwarding", "rp_filter", "table", "reflectors", "nodes", "port", "clock", "registry", "agent",
			"--config", s.file, "--node", "node1", "--json")
		var r doctor.Report
		require.NoError(t, json.Unmarshal([]byte(out), &r), errs)
		return r, code
	}
	wrong := func(r doctor.Report) (all []string) {
		for _, f := range r.Findings {
			if f.State == doctor.Wrong || f.State == doctor.Unknown {
				all = append(all, f.Check+": "+f.What)
			}
		}
		return all
	}
	r, code := looks()
	assert.Empty(t, wrong(r))
	assert.Zero(t, code)

	_, err := a.node.Run(t.Context(), "nft", "add table inet own; add chain inet own in { type filter hook input priority 0; policy accept; }; add rule inet own in tcp dport 7147 drop; add chain inet own forward { type filter hook forward priority 0; policy drop; }")
	require.NoError(t, err)
	r, code = looks()
	assert.Equal(t, 1, code)
	assert.Contains(t, strings.Join(wrong(r), "\n"), "forwarding: IPv4 packets to and from guests do not pass this node: table inet own chain forward (policy drop) drops them")

	require.NoError(t, a.Stop())
	r, _ = looks()
	all := strings.Join(wrong(r), "\n")
	assert.Contains(t, all, "table inet own chain forward (policy drop) drops them", "the same words")
	assert.Contains(t, all, "to TCP port 7147 of this node (10.10.0.21) do not come in: table inet own chain in drops them")
	assert.Contains(t, all, "agent: no agent answers on "+a.socket)
	assert.Contains(t, all, ", and 1 port of a guest is here")
	_, err = a.node.Run(t.Context(), "nft", "delete", "table", "inet", "own")
	require.NoError(t, err)
	r, _ = looks()
	for _, text := range wrong(r) {
		assert.Contains(t, text, "agent: no agent answers on ", "all else is well")
	}
}
