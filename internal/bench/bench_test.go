package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

func TestFlags(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, says string
		args       []string
	}{
		{"no such measurement", "--only nonsense: no such measurement; give one of attach, hook, scale, packets, peers, storm, boots, restart", []string{"--only", "nonsense"}},
		{"no flag", `"attach" is not a flag; see --help`, []string{"attach"}},
		{"no nodes", `"0" is not a number of nodes`, []string{"--only", "crowd", "--addresses", "10", "--nodes", "10,0"}},
		{"addresses of nothing", "--addresses 10: it is for --only crowd", []string{"--addresses", "10"}},
		{"a part of nothing", "--part web: it is for --only packets", []string{"--part", "web"}},
		{"no such part", "--part web: no node of --only packets has that in its name", []string{"--only", "packets", "--part", "web"}},
		{"nobody", "--guests 0: nothing to measure", []string{"--guests", "0"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var said bytes.Buffer
			assert.Equal(t, 2, run(t.Context(), tc.args, io.Discard, &said))
			assert.Contains(t, said.String(), tc.says)
		})
	}
}

// TestQuick runs everything in small numbers.
func TestQuick(t *testing.T) {
	if testing.Short() {
		t.Skip("two minutes of laboratories")
	}
	labtest.Need(t, "bird")
	out := filepath.Join(t.TempDir(), "performance.md")
	var printed, said bytes.Buffer
	require.Zero(t, run(t.Context(), []string{"--quick", "--out", out}, &printed, &said), "%s", &said)
	written, err := os.ReadFile(out)
	require.NoError(t, err)
	assert.Equal(t, printed.String(), string(written))
	for _, want := range []string{
		"vmfabric: request to the agent", "floor: netlink calls, BIRD learns", "the hook, the agent makes the port", "KiB a guest",
		"from the guest, IPv6", "tap, 1,400 bytes", "20 guests: vmfabric's", "20 guests: eBPF at the port", "1,400 bytes: of vmfabric's, off", "accounting on: vmfabric's", "a stateful firewall: vmfabric's",
		"shell hook, BIRD with 100 routes in a file", "30 guests at once", "SIGKILL, started again",
		"packets lost over all restarts: none", "routes to guests removed at the core gateway: none",
	} {
		assert.Contains(t, printed.String(), want)
	}
	if routers.Available(t.Context(), "frr") == nil {
		assert.Contains(t, printed.String(), "shell hook, FRR by vtysh")
	}
	if hypervisors.Available(t.Context(), "qemu") == nil {
		for _, want := range []string{"hook only, to the ", "when virsh returns", "100 a second", "live migrations, core BIRD, IPv6: never more than 10 lost"} {
			assert.Contains(t, printed.String(), want)
		}
	}
	if hypervisors.Available(t.Context(), "lxd") == nil {
		assert.Contains(t, printed.String(), "`lxc move --stateless`")
	}
	assert.NotContains(t, printed.String(), "NaN")
}
