package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
)

const asHook = "VMFABRIC_TEST_AS_HOOK"

// TestMain runs the hook itself in place of the tests where a test asks for it.
func TestMain(m *testing.M) {
	if os.Getenv(asHook) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// fake is an agent that writes down what it was asked, and answers err.
type fake struct {
	hooks.Guests
	hooks.Hypervisors
	hooks.Node
	hooks.Registry
	hooks.Cluster

	mu    sync.Mutex
	asked []string
	err   error
}

func (f *fake) note(what, source, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, fmt.Sprintf("%s of %s %s", name, source, what))
	return f.err
}

func (f *fake) Starting(_ context.Context, source, name string) error {
	return f.note("starting", source, name)
}

func (f *fake) Ended(_ context.Context, source, name string) error {
	return f.note("ended", source, name)
}

func serve(t *testing.T, agent hooks.Agent) (socket string) {
	socket = filepath.Join(t.TempDir(), "agent.sock")
	l, err := hooks.Listen(t.Context(), socket)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- hooks.Serve(ctx, l, agent, nil) }()
	t.Cleanup(func() { cancel(); assert.NoError(t, <-done) })
	return socket
}

// hook runs the hook as LXC does.
func hook(t *testing.T, env ...string) (output string, code int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append([]string{asHook + "=1", "LXC_HOOK_SECTION=lxc", "LXC_HOOK_VERSION=1"}, env...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func TestHook(t *testing.T) {
	boom := fmt.Errorf("guest web refused: no (%w); choose another address", fabric.ErrRefused)
	lost := errors.New("guest web: LXD does not answer; restart it")
	for _, tt := range []struct {
		name, kind string
		err        error
		asked      []string
		output     string
		code       int
	}{
		{"web", "start-host", nil, []string{"web of lxd starting"}, "", 0},
		{"shop_web", "start-host", nil, []string{"shop_web of lxd starting"}, "", 0},
		{"web", "start-host", boom, []string{"web of lxd starting"}, "vmfabric: " + boom.Error() + "\n", 1},
		{"web", "start-host", lost, []string{"web of lxd starting"}, "vmfabric: " + lost.Error() + "\n", 0}, // it has no port
		{"web", "post-stop", nil, []string{"web of lxd ended"}, "", 0},
		{"web", "post-stop", boom, []string{"web of lxd ended"}, "vmfabric: " + boom.Error() + "\n", 0},
		{"web", "mount", boom, nil, "", 0},
	} {
		t.Run(tt.name+" "+tt.kind, func(t *testing.T) {
			agent := &fake{err: tt.err}
			output, code := hook(t, "VMFABRIC_SOCKET="+serve(t, agent), "LXC_NAME="+tt.name, "LXC_HOOK_TYPE="+tt.kind)
			assert.Equal(t, tt.asked, agent.asked)
			assert.Equal(t, tt.output, output)
			assert.Equal(t, tt.code, code)
		})
	}
}

// TestDaemonOfAnInstance: which daemon runs an instance says the place of its configuration,
// whatever the instance's name.
func TestDaemonOfAnInstance(t *testing.T) {
	for config, asked := range map[string]string{
		"":                        "lxd",
		"/run/lxd/web/lxc.conf":   "lxd",
		"/run/lxd/incus/lxc.conf": "lxd",
		"/run/incus/web/lxc.conf": "incus",
		"/run/incus/lxd/lxc.conf": "incus",
		"/var/snap/lxd/common/lxd/logs/web/lxc.conf": "lxd",
		"/var/lib/incus/run/web/lxc.conf":            "incus",
	} {
		agent := &fake{}
		_, code := hook(t, "VMFABRIC_SOCKET="+serve(t, agent), "LXC_NAME=web", "LXC_HOOK_TYPE=start-host", "LXC_CONFIG_FILE="+config)
		assert.Zero(t, code)
		assert.Equal(t, []string{"web of " + asked + " starting"}, agent.asked, config)
	}
}

// TestReasonIsInTheLog of the instance, where lxc sends its user.
func TestReasonIsInTheLog(t *testing.T) {
	dir := t.TempDir()
	log, config := filepath.Join(dir, "lxc.log"), filepath.Join(dir, "lxc.conf")
	require.NoError(t, os.WriteFile(log, []byte("before\n"), 0o600))
	require.NoError(t, os.WriteFile(config, []byte("lxc.log.level = warn\nlxc.log.file = "+log+"\n"), 0o600))
	socket := serve(t, &fake{err: fmt.Errorf("%w; choose another address", fabric.ErrRefused)})
	for kind, lines := range map[string]int{"post-stop": 1, "start-host": 2} {
		require.NoError(t, os.WriteFile(log, []byte("before\n"), 0o600))
		hook(t, "VMFABRIC_SOCKET="+socket, "LXC_NAME=web", "LXC_HOOK_TYPE="+kind, "LXC_CONFIG_FILE="+config)
		text, err := os.ReadFile(log)
		require.NoError(t, err)
		assert.Equal(t, lines, strings.Count(string(text), "\n"), "%s", text)
		assert.Equal(t, lines == 2, strings.Contains(string(text), "ERROR    vmfabric - "+fabric.ErrRefused.Error()+"; choose another address"))
	}
	_, code := hook(t, "VMFABRIC_SOCKET="+socket, "LXC_NAME=web", "LXC_HOOK_TYPE=start-host", "LXC_CONFIG_FILE="+dir+"/none")
	assert.Equal(t, 1, code)
}

func TestWithoutAnAgent(t *testing.T) {
	none := "VMFABRIC_SOCKET=" + filepath.Join(t.TempDir(), "none.sock")
	for _, kind := range []string{"start-host", "post-stop"} {
		output, code := hook(t, none, "LXC_NAME=nobody", "LXC_HOOK_TYPE="+kind)
		assert.Zero(t, code, "an instance without a port is none of ours")
		assert.Empty(t, output)
	}
}

func TestByHand(t *testing.T) {
	output, code := hook(t)
	assert.Equal(t, 2, code)
	assert.Contains(t, output, "lxc.hook.start-host")
}

func TestPortOfAnInstance(t *testing.T) {
	for _, name := range []string{"lo", "shop_lo", "", "nobody"} {
		assert.False(t, hasPort(name), name)
	}
}
