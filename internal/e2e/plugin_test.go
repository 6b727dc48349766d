package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/executable"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

var startedPlugin = regexp.MustCompile(`msg="plugin started[^\n]* plugin=mine [^\n]*pid=(\d+)`)

// pluginPID is the process number of the plugin that the agent has started last.
func (a *agent) pluginPID() int {
	all := startedPlugin.FindAllStringSubmatch(a.Log(), -1)
	if len(all) == 0 {
		return 0
	}
	pid, err := strconv.Atoi(all[len(all)-1][1])
	require.NoError(a.s.t, err)
	return pid
}

// ended waits until a process has ended.
func (s *system) ended(pid int) {
	s.t.Helper()
	require.NotZero(s.t, pid)
	s.eventually("the plugin ends", func() error {
		if err := syscall.Kill(pid, 0); err == nil {
			if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); len(b) > 0 { // else a zombie
				return fmt.Errorf("process %d runs: %q", pid, b)
			}
		}
		return nil
	})
}

// TestPluginSpeaker has the example's plugin announce, die, and be told all of
// it again; and go with its agent.
func TestPluginSpeaker(t *testing.T) {
	t.Parallel()
	s := start(t, options{noAgent: true, noRR: true})
	a, dir := s.agents["node1"], t.TempDir()
	files := filepath.Join(dir, "files")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", files, "../../examples/plugin").CombinedOutput()
	require.NoError(t, err, "%s", out)
	routes := filepath.Join(dir, "routes")
	script := filepath.Join(dir, "mine")
	require.NoError(t, executable.Write(script, []byte("#!/bin/sh\nROUTES_DIR="+routes+" ROUTES_RELOAD=true exec "+files+"\n")))
	a.args = append(a.args, "--speaker", script, "--observer", filepath.Join(dir, "not-there"))
	v4, v6 := filepath.Join(routes, "203.0.113.10_32.v4"), filepath.Join(routes, "2001:db8:100::10_128.v6")
	announced := func() {
		t.Helper()
		s.eventually("the routes are in files", func() error {
			for _, f := range []string{v4, v6} {
				if _, err := os.Stat(f); err != nil {
					return err
				}
			}
			return nil
		})
	}

	a.start()
	assert.Contains(t, a.Log(), "plugin not-there", "an observer that is missing keeps no agent from its work")
	web := veth("web", "203.0.113.10", "2001:db8:100::10")
	s.run("node1", web)
	announced()

	pid := a.pluginPID()
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	require.NoError(t, os.Remove(v4))
	require.NoError(t, os.Remove(v6))
	announced()
	second := a.pluginPID()
	assert.NotEqual(t, pid, second)
	s.ended(pid)
	s.eventually("the agent is well again", func() error {
		for _, p := range a.status().Problems {
			if !strings.Contains(p, "not-there") { // which stays away
				return fmt.Errorf("%q", p)
			}
		}
		return nil
	})

	a.restart(a.Kill)
	s.ended(second)
	third := a.pluginPID()
	assert.NotEqual(t, second, third)
	announced()
	a.ask(hooks.Remove, web)
	assert.NoFileExists(t, v4)
	assert.NoFileExists(t, v6)
	require.NoError(t, a.Stop())
	s.ended(third)

	require.NoError(t, os.Remove(script))
	d, err := a.node.StartDaemon("agent", exec.Command(program, a.args...))
	require.NoError(t, err)
	require.NoError(t, core.Until(soon(t), func() error {
		if d.Running() {
			return fmt.Errorf("the agent runs")
		}
		return nil
	}))
	assert.Contains(t, d.Log(), "vmfabric: speaker: plugin mine ("+script+"): there is no such file; install it, or correct the path\n")
}

// TestPluginInventory has the agent ask one plugin what a guest has, and tell
// another what becomes of it; neither is there when the guest needs it no more.
func TestPluginInventory(t *testing.T) {
	t.Parallel()
	s := start(t, options{noAgent: true})
	a, dir := s.agents["node1"], t.TempDir()
	program := filepath.Join(dir, "testplugin")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../../plugins/internal/testplugin/program").CombinedOutput()
	require.NoError(t, err, "%s", out)
	plugin := func(kind string) (script, control string) {
		of := filepath.Join(dir, kind+".d")
		require.NoError(t, os.Mkdir(of, 0o700))
		script = filepath.Join(dir, kind)
		require.NoError(t, executable.Write(script, []byte("#!/bin/sh\nTESTPLUGIN_DIR="+of+" TESTPLUGIN_IS="+kind+" exec "+program+"\n")))
		return script, filepath.Join(of, "control")
	}
	resolver, inventory := plugin("resolver")
	observer, news := plugin("observer")
	a.args = append(a.args, "--resolver", resolver, "--observer", observer)
	a.start()
	a.established()

	asked := fabric.VM{Name: "web", UUID: "6a6f0a53-6d8c-4d8e-9d0a-6c3f5a3f0001", Resolve: true, NICs: []fabric.NIC{{Kind: fabric.Veth}}}
	_, err = a.try(hooks.Request{Op: hooks.Wire, VM: asked})
	require.ErrorIs(t, err, fabric.ErrRefused, "nobody knows it yet")
	assert.Contains(t, err.Error(), "web")
	told(t, inventory, map[string]any{"Do": "know", "Query": fabric.Query{VM: "web"}, "NICs": []fabric.NIC{nic("203.0.113.10", "2001:db8:100::10")}})
	vm := veth("web", "203.0.113.10", "2001:db8:100::10")
	a.ask(hooks.Wire, asked)
	_, err = s.lab.AddGuest(a.node, vm, s.cluster.Gateway)
	require.NoError(t, err)

	// It goes, and nobody who runs depends on it.
	pid, err := os.ReadFile(filepath.Join(filepath.Dir(inventory), "pid"))
	require.NoError(t, err)
	require.NoError(t, executable.Write(resolver, []byte("#!/bin/sh\nexit 1\n")))
	n, err := strconv.Atoi(string(pid))
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(n, syscall.SIGKILL))
	a.ask(hooks.Live, asked)
	s.coreHas(a.node, vm.Prefixes()...)
	a.restart(a.Kill)
	a.established()
	a.ask(hooks.Started, asked)
	s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10")
	s.eventually("status says that the resolver is gone", func() error {
		if st := a.status(); !strings.Contains(strings.Join(st.Problems, "\n"), resolver) {
			return fmt.Errorf("%v", st.Problems)
		}
		return nil
	})
	a.ask(hooks.Remove, vm)

	s.eventually("the observer was told of the end", func() error {
		var kinds []fabric.EventKind
		for _, e := range told(t, news, map[string]any{"Do": "events"}) {
			if e.VM == "web" {
				kinds = append(kinds, e.Kind)
				assert.Equal(t, []string{"lab", "node1", asked.UUID}, []string{e.Cluster, e.Node, e.UUID})
			}
		}
		if !slices.Equal(kinds, []fabric.EventKind{fabric.Withdrawn, fabric.Detached}) { // the agent before told of the rest
			return fmt.Errorf("%v", kinds)
		}
		return nil
	})
}

// told gives a command to a plugin of the tests, and what it says of events.
func told(t *testing.T, control string, command map[string]any) []fabric.Event {
	t.Helper()
	conn, err := net.Dial("unix", control)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, json.NewEncoder(conn).Encode(command))
	var answer struct{ Events []fabric.Event }
	require.NoError(t, json.NewDecoder(conn).Decode(&answer))
	return answer.Events
}
