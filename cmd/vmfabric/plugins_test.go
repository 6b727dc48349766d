package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/plugins"
)

func TestShippedPlugin(t *testing.T) {
	dir := t.TempDir()
	exe := filepath.Join(dir, "sbin", "vmfabric")
	beside, installed := filepath.Join(dir, "sbin", "vmfabric-plugin-bird"), filepath.Join(dir, "lib", "vmfabric", "plugin-bird")
	_, err := shippedPlugin(exe, "bird")
	require.EqualError(t, err, "speaker bird: its plugin is neither "+beside+" nor "+installed+"; install it, or choose speaker gobgp")
	for _, path := range []string{installed, beside} { // the second is preferred, though both are there
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		got, err := shippedPlugin(exe, "bird")
		require.NoError(t, err)
		assert.Equal(t, path, got)
	}
}

func TestSpeakerOfTheFlagOrTheCluster(t *testing.T) {
	x := &extensions{log: slog.New(slog.DiscardHandler), place: plugins.Place{Config: "/etc/vmfabric/cluster.yaml", Node: "node1"}}
	for _, tc := range []struct{ flag, cluster, says string }{
		{"birdd", "", `speaker "birdd" is not one of gobgp, bird, frr, nor the path of a plugin; write one with a slash for that, such as /usr/local/lib/vmfabric/birdd`},
		{"", "other", `speaker "other" is not one of`},
		{"frr", "gobgp", "speaker frr: its plugin is neither"},
		{"/nowhere/mine", "frr", "speaker: plugin mine (/nowhere/mine): there is no such file; install it, or correct the path"},
		{"", "/bin/true", "speaker: plugin true (/bin/true): it ended without a word; is it a plugin of vmfabric?"},
	} {
		_, err := agentFlags{speaker: tc.flag}.openSpeaker(t.Context(), fabric.Cluster{Speaker: tc.cluster}, fabric.Node{}, x, nil)
		require.ErrorContains(t, err, tc.says)
	}
}

// TestExtensionsThatCannotStart are no reason not to start the agent.
func TestExtensionsThatCannotStart(t *testing.T) {
	f := agentFlags{config: "cluster.yaml", observers: []string{"/nowhere/two"}}
	c := &fabric.Cluster{Resolver: "/nowhere/one", Observers: []string{"/nowhere/three", "/nowhere/four"}}
	x, err := f.openExtensions(t.Context(), c, fabric.Node{Name: "node1"}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	assert.True(t, filepath.IsAbs(x.place.Config))
	assert.Equal(t, "node1", x.place.Node)
	require.Len(t, x.observers, 1, "the flags come before the cluster file")
	require.NotNil(t, x.resolver)
	require.Len(t, x.diagnosers, 2)
	for i, says := range []string{"plugin one (/nowhere/one) is down", "plugin two (/nowhere/two) is down"} {
		problems := x.diagnosers[i].Diagnose(t.Context())
		require.Len(t, problems, 1)
		assert.Contains(t, problems[0], says)
	}
	require.NoError(t, x.Close())

	x, err = agentFlags{}.openExtensions(t.Context(), &fabric.Cluster{}, fabric.Node{}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	assert.Nil(t, x.resolver)
	assert.Empty(t, x.observers)
	assert.Empty(t, x.diagnosers)
	require.NoError(t, x.Close())
}
