package bird

import (
	"context"
	"io"
	"os"
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

// TestFollows reads a log over the control socket until BIRD ends; one that
// refuses says why.
func TestFollows(t *testing.T) {
	t.Parallel()
	const greeting = "0001 BIRD 2.0.12 ready.\n"
	var got []string
	follow := func(answer string) error {
		return Client{Socket: listen(t, answer, false)}.follow(t.Context(), func(protocol string, n *fabric.Notification) {
			got = append(got, protocol+" "+n.Reason)
		})
	}
	require.ErrorIs(t, follow(greeting+"0000 \n+Started\n+to_rr1: Received: Bad peer AS: 65000\n0000 \n+to_rr2: Error: Hold timer expired\n"), io.EOF)
	assert.Equal(t, []string{
		"to_rr1 " + fabric.NewNotification(false, 2, 2, "", time.Time{}).Reason,
		"to_rr2 " + fabric.NewNotification(true, 4, 0, "", time.Time{}).Reason,
	}, got)
	require.EqualError(t, follow(greeting+"8007 Access denied\n"), "Access denied")
}

// TestFollowingEndsWithContext: a BIRD that logs nothing holds nobody up.
func TestFollowingEndsWithContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	client := Client{Socket: listen(t, "0001 BIRD 2.0.12 ready.\n0000 \n+to_rr1: Received: Bad peer AS: 65000\n", true)}
	require.ErrorIs(t, client.follow(ctx, func(string, *fabric.Notification) { cancel() }), os.ErrDeadlineExceeded)
}
