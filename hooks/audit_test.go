package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// records are the log records of a server, one JSON object a line.
type records struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (r *records) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.Write(p)
}

// take returns the records so far, and forgets them.
func (r *records) take(t *testing.T) (all []map[string]any) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for line := range strings.Lines(r.b.String()) {
		var one map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &one), line)
		all = append(all, one)
	}
	r.b.Reset()
	return all
}

// serveLogged serves an agent with a logger that leaves out all but errors.
func serveLogged(t *testing.T, agent Agent) (socket string, log *records) {
	t.Helper()
	log = &records{}
	socket = filepath.Join(t.TempDir(), "agent.sock")
	l, err := Listen(t.Context(), socket)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, l, agent, slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelError})))
	}()
	t.Cleanup(func() { cancel(); assert.NoError(t, <-done) })
	return socket, log
}

// TestAuditNamesCallerAndOutcome: a request that may change something leaves one record,
// by the credentials that the kernel has of who asked.
func TestAuditNamesCallerAndOutcome(t *testing.T) {
	comm, err := os.ReadFile("/proc/self/comm")
	require.NoError(t, err)
	for name, c := range map[string]struct {
		err     error
		outcome string
	}{
		"done":    {nil, "done"},
		"refused": {refusal{"is in no pool"}, "refused"},
		"failed":  {errors.New("no such device"), "failed"},
	} {
		t.Run(name, func(t *testing.T) {
			socket, log := serveLogged(t, &fake{err: func(context.Context) error { return c.err }})
			_, err := Call(within(t, time.Minute), socket, Request{Op: Reassign, VM: fabric.VM{Name: "web"}, Prefix: netip.MustParsePrefix("2001:db8:100::10/128")})
			assert.Equal(t, c.err == nil, err == nil)
			all := log.take(t)
			require.Len(t, all, 1)
			r := all[0]
			assert.Equal(t, "request", r["msg"])
			assert.Equal(t, "reassign", r["op"])
			assert.Equal(t, "web", r["vm"])
			assert.Equal(t, "2001:db8:100::10/128", r["prefix"])
			assert.EqualValues(t, os.Getuid(), r["uid"])
			assert.EqualValues(t, os.Getgid(), r["gid"])
			assert.EqualValues(t, os.Getpid(), r["pid"])
			assert.Equal(t, strings.TrimSpace(string(comm)), r["command"])
			assert.Equal(t, c.outcome, r["outcome"])
			assert.Equal(t, c.err != nil, r["err"] != nil)
		})
	}
}

// TestAuditHasChangesAlone: every op is either one that only reads, or in the log.
func TestAuditHasChangesAlone(t *testing.T) {
	socket, log := serveLogged(t, &fake{})
	for _, op := range append(append([]Op{}, guestOps...), nodeOps...) {
		req := Request{Op: op, VM: guest, Prefix: allocation.Prefix}
		_, err := Call(within(t, time.Minute), socket, req)
		require.NoError(t, err, op)
		assert.Len(t, log.take(t), map[bool]int{true: 1}[req.changes()], op)
	}
	for _, op := range []Op{Import, AdoptRegistry} {
		assert.False(t, Request{Op: op}.changes(), op)
		assert.True(t, Request{Op: op, Write: true}.changes(), op)
	}
	for _, op := range []Op{Wire, Live, Started, Withdraw, Remove, Expect, Drain, Undrain, Reserve, Release, Blackhole, Lift} {
		assert.True(t, Request{Op: op}.changes(), op)
	}
}

// TestAuditIsBounded: what a caller sends can neither fill the journal nor forge a line
// of it, and user data or keys are not in it.
func TestAuditIsBounded(t *testing.T) {
	long := strings.Repeat("x\n", 1<<18)
	socket, log := serveLogged(t, &fake{err: func(context.Context) error { return errors.New(long) }})
	_, err := Call(within(t, time.Minute), socket, Request{Op: Release, Guest: fabric.Identity("libvirt \x1b[2J" + long), Note: "a secret", VM: fabric.VM{Name: long}})
	require.Error(t, err)
	r := log.take(t)
	require.Len(t, r, 1)
	for key, v := range r[0] {
		text, _ := v.(string)
		assert.LessOrEqual(t, len(text), maxAudited+len("..."), key)
		assert.NotContains(t, text, "\x1b", key)
		assert.NotContains(t, text, "\n", key)
		assert.NotContains(t, text, "secret", key)
	}
	assert.Equal(t, "é", bounded("é"))
	assert.Equal(t, "??", bounded("\x00\u202e"))
	assert.Len(t, bounded(strings.Repeat("é", maxAudited)), maxAudited+len("..."))
}
