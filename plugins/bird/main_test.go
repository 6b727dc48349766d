package main

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/plugins"
	"github.com/vmfabric/vmfabric/testenv"
	"github.com/vmfabric/vmfabric/testenv/conformance"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// build builds the plugin, and writes the cluster's file beside it.
func build(t *testing.T) (program, config string) {
	t.Helper()
	dir := t.TempDir()
	program = filepath.Join(dir, "plugin-bird")
	out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, string(out))
	c := testenv.SmallCluster(1)
	c.Reflectors = c.Reflectors[:1]
	config = filepath.Join(dir, "cluster.yaml")
	require.NoError(t, os.WriteFile(config, []byte(testenv.ClusterFile(c)), 0o600))
	return program, config
}

// opener gives what starts the plugin on the lab's node, as its agent would.
func opener(program, config string, lab *labtest.Announcing, env ...string) func(t *testing.T) *plugins.Speaker {
	return func(t *testing.T) *plugins.Speaker {
		s, err := plugins.OpenSpeaker(t.Context(), plugins.Program{
			Path: "/usr/bin/nsenter", Args: []string{"--net=" + lab.Node.NamespacePath(), program},
			Env: env, Place: plugins.Place{Config: config, Node: "node1"},
		})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, s.Close()) })
		return s
	}
}

// TestConformance runs the speaker's laws on the plugin, as the agent has it,
// with a real BIRD and a reflector that hears.
func TestConformance(t *testing.T) {
	labtest.Need(t, "bird", "nsenter")
	program, config := build(t)
	conformance.Speaker(t, func(t *testing.T) (fabric.Speaker, conformance.SpeakerControls) {
		lab := labtest.NewAnnouncing(t)
		b, err := lab.Node.StartBird(t.Context(), lab.BirdConf())
		require.NoError(t, err)
		open := opener(program, config, lab, "VMFABRIC_BIRD_SOCKET="+b.Socket())
		return open(t), lab.Controls(func(t *testing.T) fabric.Speaker { return open(t) })
	})
}

// TestSessions: what BIRD says of itself comes through the plugin, and what the
// plugin announces outlasts it.
func TestSessions(t *testing.T) {
	labtest.Need(t, "bird", "nsenter")
	program, config := build(t)
	lab := labtest.NewAnnouncing(t)
	socket := filepath.Join(lab.Node.Dir(), "bird.ctl")
	open := opener(program, config, lab, "VMFABRIC_BIRD_SOCKET="+socket)
	s := open(t)
	_, err := s.Sessions(t.Context())
	require.ErrorContains(t, err, "BIRD has no control socket at "+socket)
	require.Len(t, s.Diagnose(), 1)

	b, err := lab.Node.StartBird(t.Context(), lab.BirdConf())
	require.NoError(t, err)
	guest := []netip.Prefix{netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128")}
	require.ErrorContains(t, s.Put(t.Context(), fabric.Route{Prefix: guest[0]}), "no port of this node has a route to it; attach the guest first")
	lab.Prepare(t, guest)
	require.NoError(t, s.Put(t.Context(), fabric.Route{Prefix: guest[0]}, fabric.Route{Prefix: guest[1]}))
	lab.Hears(t, guest...)
	require.Eventually(t, func() bool {
		all, err := s.Sessions(t.Context())
		return err == nil && len(all) == 1 && all[0].Peer == "rr1" && all[0].State == "established" && all[0].Advertised == 2
	}, time.Minute, 10*time.Millisecond)
	assert.Empty(t, s.Diagnose())
	require.NoError(t, s.Close())
	lab.Hears(t, guest...)

	// A reflector that hears anew hears it too, with no plugin there.
	require.NoError(t, b.Stop())
	_, err = lab.Node.StartBird(t.Context(), lab.BirdConf())
	require.NoError(t, err)
	lab.Hears(t, guest...)
}

// TestByHand: started by somebody else than an agent, the program says what it
// is for.
func TestByHand(t *testing.T) {
	program, config := build(t)
	for _, tc := range []struct {
		env  []string
		want string
	}{
		{nil, "write speaker: bird into the cluster file and restart the agent"},
		{[]string{"VMFABRIC_CONFIG=" + config, "VMFABRIC_NODE=node9"}, `node "node9" is not in cluster lab (it has node1); add it under nodes, or name another`},
		{[]string{"VMFABRIC_CONFIG=" + config + ".gone", "VMFABRIC_NODE=node1"}, config + ".gone"},
	} {
		cmd := exec.Command(program)
		cmd.Env = append([]string{}, tc.env...)
		out, err := cmd.CombinedOutput()
		require.Error(t, err)
		assert.Contains(t, string(out), tc.want)
	}
}
