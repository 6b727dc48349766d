package bird

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/fabric"
)

func TestLogged(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		line, protocol string
		want           *fabric.Notification
	}{
		// As BIRD 2.0.12 writes them.
		{`to_rr1: Received: Administrative shutdown: "planned work"`, "to_rr1", fabric.NewNotification(false, 6, 2, "planned work", at)},
		{`to_rr1: Received: Administrative shutdown`, "to_rr1", fabric.NewNotification(false, 6, 2, "", at)},
		{`to_rr1: Received: Administrative reset: "a: "b""`, "to_rr1", fabric.NewNotification(false, 6, 4, `a: "b"`, at)},
		{`to_rr1: Received: Maximum number of prefixes reached`, "to_rr1", fabric.NewNotification(false, 6, 1, "", at)},
		{`to_rr1: Error: Bad peer AS: 65000`, "to_rr1", fabric.NewNotification(true, 2, 2, "", at)},
		{`to_rr1: Error: Hold timer expired`, "to_rr1", fabric.NewNotification(true, 4, 0, "", at)},
		{`to_rr1: Received: Something new`, "to_rr1", fabric.NewNotification(false, 0, 0, "", at)},
		{`to_rr1: Route limit exceeded, shutting down`, "", nil},
		{`Disabling protocol to_rr1`, "", nil},
		{``, "", nil},
	} {
		protocol, n := logged(tc.line, at)
		assert.Equal(t, tc.protocol, protocol, tc.line)
		assert.Equal(t, tc.want, n, tc.line)
	}
}

// TestJournal: what the log said stays known when the session's last error is of
// another kind, and gives way to a NOTIFICATION that it did not have.
func TestJournal(t *testing.T) {
	t.Parallel()
	j := &journal{log: slog.New(slog.DiscardHandler), last: map[string]*fabric.Notification{}}
	j.note(`to_rr1: Received: Administrative shutdown: "planned work"`)
	j.note("Reconfigured")
	session := func(n *fabric.Notification) []fabric.Session {
		return []fabric.Session{{Peer: "to_rr1", Notification: n}}
	}
	want := j.last["to_rr1"]
	require.NotNil(t, want)
	assert.False(t, want.At.IsZero())
	assert.Equal(t, session(want), j.add(session(nil)))
	assert.Equal(t, session(want), j.add(session(fabric.NewNotification(false, 6, 2, "planned work", time.Time{}))), "with its time")
	other := fabric.NewNotification(true, 2, 2, "", time.Time{})
	assert.Equal(t, session(other), j.add(session(other)))
	assert.Equal(t, []fabric.Session{{Peer: "to_rr2"}}, j.add([]fabric.Session{{Peer: "to_rr2"}}))
}

// TestFollows reads a log over the control socket, and again when BIRD is
// started anew; one that refuses is no harm.
func TestFollows(t *testing.T) {
	t.Parallel()
	greeting := "0001 BIRD 2.0.12 ready.\n"
	follow := func(answer string) *journal {
		j := &journal{client: Client{Socket: listen(t, answer, true)}, log: slog.New(slog.DiscardHandler), last: map[string]*fabric.Notification{}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); j.follow(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
		return j
	}
	j := follow(greeting + "0000 \n+Started\n+to_rr1: Received: Bad peer AS: 65000\n")
	require.Eventually(t, func() bool {
		s := j.add([]fabric.Session{{Peer: "to_rr1"}})
		return s[0].Notification != nil && strings.HasPrefix(s[0].Notification.Reason, "OPEN")
	}, time.Minute, time.Millisecond)
	follow(greeting + "8007 Access denied\n")
}
