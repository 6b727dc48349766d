package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
)

// hidden is a name as a node can have had it from before such were refused.
const hidden = "web\u202egpj\u200b\u2028\u00a0\u2800\U000e0001\x1b[2J"

type oddAgent struct{ hooks.Agent }

func (oddAgent) List(context.Context) ([]fabric.PortEntry, error) {
	return []fabric.PortEntry{{VM: hidden, Port: "web_net0", Kind: fabric.Tap, State: fabric.Live, Trouble: "guest " + hidden + ": boom", Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10")}}}, nil
}

func (oddAgent) Apply(_ context.Context, vm fabric.VM, _ fabric.State) error {
	return fmt.Errorf("guest %s: boom", vm.Name)
}

func (oddAgent) Status(context.Context) (fabric.Status, error) {
	return fabric.Status{Node: "node1", Healthy: true, Problems: []string{"guest " + hidden + ": boom"}}, nil
}

// TestNamesAreVisible: nothing that a guest is called changes how a line looks
// on a terminal, and programs get the name as it is.
func TestNamesAreVisible(t *testing.T) {
	socket := serveAgent(t, oddAgent{})
	const shown = `web\u202egpj\u200b\u2028\u00a0\u2800\udb40\udc01\u001b[2J`
	for _, command := range []string{"list", "status", "attach"} {
		args := []string{command, "--socket", socket}
		if command == "attach" {
			args = append(args, hidden, "--address", "203.0.113.10")
		}
		out, errs, _ := try(args...)
		assert.False(t, containsUnseen(out+errs), "%s: %q %q", command, out, errs)
		if command != "attach" {
			assert.Contains(t, out, shown, command)
		}
	}
	out, _, code := try("list", "--json", "--socket", socket)
	assert.Zero(t, code)
	assert.False(t, containsUnseen(out), "%q", out)
	var ports []fabric.PortEntry
	require.NoError(t, json.Unmarshal([]byte(out), &ports))
	assert.Equal(t, hidden, ports[0].VM)
}

// serveAgent has an agent answer on a socket until the test ends.
func serveAgent(t *testing.T, a hooks.Agent) (socket string) {
	socket = filepath.Join(t.TempDir(), "agent.sock")
	l, err := hooks.Listen(t.Context(), socket)
	require.NoError(t, err)
	log, err := newLogger(t.Output(), "error", "text")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- hooks.Serve(ctx, l, a, log) }()
	t.Cleanup(func() { cancel(); <-done })
	return socket
}

func containsUnseen(s string) bool { return visible(s) != s }

// TestNameThatNoLineCarries: JSON would make another name of it.
func TestNameThatNoLineCarries(t *testing.T) {
	out, errs, code := try("attach", "x\xffy", "--address", "203.0.113.10", "--socket", filepath.Join(t.TempDir(), "none.sock"))
	assert.Equal(t, 1, code)
	assert.Empty(t, out)
	assert.Equal(t, "vmfabric: guest x\ufffdy refused: VM name \"x\\xffy\" is not UTF-8\n", errs)
}
