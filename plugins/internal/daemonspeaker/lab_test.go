package daemonspeaker

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
	"github.com/vmfabric/vmfabric/testenv/conformance"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

type daemon interface{ Stop() error }

// kind is a plugin, and the daemon that it is over.
type kind struct {
	name  string
	needs []string
	// start starts the daemon on the lab's node; env tells the plugin which it is.
	start func(t *testing.T, lab *labtest.Announcing) (d daemon, env []string)
	gone  string // what the plugin says when it has ended
}

var kinds = []kind{
	{"bird", []string{"bird", "nsenter"}, func(t *testing.T, lab *labtest.Announcing) (daemon, []string) {
		t.Helper()
		b, err := routers.StartBird(t.Context(), lab.Node, lab.BirdConf())
		require.NoError(t, err)
		return b, []string{"VMFABRIC_BIRD_SOCKET=" + b.Socket()}
	}, "BIRD has no control socket at "},
	{"frr", []string{"bird", "frr", "nsenter"}, func(t *testing.T, lab *labtest.Announcing) (daemon, []string) {
		t.Helper()
		f, err := routers.StartFRR(t.Context(), lab.Node, lab.FRRConf())
		require.NoError(t, err)
		return f, []string{"VMFABRIC_FRR_VTYSH=" + f.Client().Vtysh, "VMFABRIC_FRR_PATHSPACE=" + f.Client().Pathspace}
	}, "vtysh reaches no daemon of FRR"},
}

func each(t *testing.T, test func(t *testing.T, k kind)) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) { test(t, k) })
	}
}

// build builds the plugin, and writes the cluster's file.
func (k kind) build(t *testing.T) (program, config string) {
	t.Helper()
	dir := t.TempDir()
	program = filepath.Join(dir, "plugin-"+k.name)
	out, err := exec.Command("go", "build", "-o", program, "../../"+k.name).CombinedOutput()
	require.NoError(t, err, string(out))
	return program, clusterFile(t)
}

// clusterFile writes the file of a cluster with one node.
func clusterFile(t *testing.T) string {
	t.Helper()
	c := core.SmallCluster(1)
	c.Reflectors = c.Reflectors[:1]
	file := filepath.Join(t.TempDir(), "cluster.yaml")
	require.NoError(t, os.WriteFile(file, []byte(core.ClusterFile(c)), 0o600))
	return file
}

// opener gives what starts the plugin on the lab's node, as its agent would.
func opener(program, config string, lab *labtest.Announcing, env []string) func(t *testing.T) *plugins.Speaker {
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

// TestConformance runs the speaker's laws on the plugins, as the agent has them,
// with a real daemon and a reflector that hears.
func TestConformance(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		labtest.Need(t, k.needs...)
		program, config := k.build(t)
		conformance.Speaker(t, func(t *testing.T) (fabric.Speaker, conformance.SpeakerControls) {
			lab := labtest.NewAnnouncing(t)
			_, env := k.start(t, lab)
			open := opener(program, config, lab, env)
			return open(t), lab.Controls(func(t *testing.T) fabric.Speaker { return open(t) })
		})
	})
}

// TestSessions: what the daemon says of itself comes through the plugin, and
// what the plugin announces outlasts it.
func TestSessions(t *testing.T) {
	each(t, func(t *testing.T, k kind) {
		labtest.Need(t, k.needs...)
		program, config := k.build(t)
		lab := labtest.NewAnnouncing(t)
		d, env := k.start(t, lab)
		require.NoError(t, d.Stop())
		s := opener(program, config, lab, env)(t)
		_, err := s.Sessions(t.Context())
		require.ErrorContains(t, err, k.gone)
		require.Len(t, s.Diagnose(t.Context()), 1)

		d, _ = k.start(t, lab)
		guest := []netip.Prefix{netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128")}
		require.ErrorContains(t, s.Put(t.Context(), fabric.Route{Prefix: guest[0]}), "no port of this node has a route to it; attach the guest first")
		lab.Prepare(t, guest)
		require.NoError(t, s.Put(t.Context(), fabric.Route{Prefix: guest[0]}, fabric.Route{Prefix: guest[1]}))
		lab.Hears(t, guest...)
		require.Eventually(t, func() bool {
			all, err := s.Sessions(t.Context())
			return err == nil && len(all) == 1 && all[0].Peer == "rr1" && all[0].State == "established" && all[0].Advertised == 2
		}, time.Minute, 10*time.Millisecond)
		assert.Empty(t, s.Diagnose(t.Context()))

		// Why a session ended, with the time: it is in BIRD's log alone.
		lab.EndIsTold(t, func() fabric.Session {
			all, err := s.Sessions(t.Context())
			require.NoError(t, err)
			require.Len(t, all, 1)
			return all[0]
		})
		lab.StartReflector(t)
		lab.Hears(t, guest...)
		require.NoError(t, s.Close())
		lab.Hears(t, guest...)

		// A reflector that hears anew hears it too, with no plugin there.
		require.NoError(t, d.Stop())
		k.start(t, lab)
		lab.Hears(t, guest...)
	})
}

// TestByHand: started by somebody else than an agent, the programs say what they
// are for.
func TestByHand(t *testing.T) {
	labtest.Long(t) // it compiles the programs
	each(t, func(t *testing.T, k kind) {
		program, _ := k.build(t)
		cmd := exec.Command(program)
		cmd.Env = []string{}
		out, err := cmd.CombinedOutput()
		require.Error(t, err)
		assert.Regexp(t, "^plugin "+k.name+": the vmfabric agent starts this program.*\n$", string(out))
	})
}
