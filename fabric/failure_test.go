package fabric_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/fabric"
)

// TestSessionFailure: what the system and the daemons say of a session that ended
// without a NOTIFICATION.
func TestSessionFailure(t *testing.T) {
	for text, want := range map[string]fabric.SessionFailure{
		"dial tcp 10.10.0.21:0->10.10.0.11:179: connect: connection refused":     {Kind: fabric.Refused, Reason: "connection refused"},
		"dial tcp [fd00::21]:0->[fd00::11]:179: connect: connection refused":     {Kind: fabric.Refused, Reason: "connection refused"},
		"dial tcp 10.10.0.21:0->10.10.0.11:179: i/o timeout":                     {Kind: fabric.Unreachable, Reason: "no answer in time"},
		"dial tcp 10.10.0.21:0->10.10.0.11:179: connect: no route to host":       {Kind: fabric.Unreachable, Reason: "no route to host"},
		"dial tcp [fd00::21]:0->[fd00::11]:179: connect: network is unreachable": {Kind: fabric.Unreachable, Reason: "network is unreachable"},
		"Connection closed":       {Kind: fabric.Closed, Reason: "Connection closed"},       // BIRD
		"Connection refused":      {Kind: fabric.Refused, Reason: "Connection refused"},     // BIRD
		"Peer closed the session": {Kind: fabric.Closed, Reason: "Peer closed the session"}, // FRR
		"closed\u202e\x1b[2J":     {Kind: fabric.Closed, Reason: `closed\u202e\u001b[2J`},
	} {
		got := fabric.NewSessionFailure(text, time.Time{})
		if assert.NotNil(t, got, text) {
			assert.Equal(t, want, *got)
		}
	}
	for _, text := range []string{"", "Waiting for peer OPEN", "No AFI/SAFI activated for peer"} {
		assert.Nil(t, fabric.NewSessionFailure(text, time.Time{}), text)
	}
}

// TestDownReasonOfAFailure: what is known in place of a guess, beside the last
// NOTIFICATION where there was one.
func TestDownReasonOfAFailure(t *testing.T) {
	since := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	shut := fabric.NewNotification(false, 6, 2, "", since)
	const ended = "rr1 ended it with Cease, Administrative Shutdown (6/2)"
	for _, tc := range []struct {
		kind fabric.FailureKind
		n    *fabric.Notification
		want string
	}{
		{fabric.Closed, nil, "rr1 closed the connection without a NOTIFICATION, as when it is stopped; check that the reflector runs and knows this node"},
		{fabric.Closed, shut, ended + "; enable the session there again, or ask who disabled it"},
		{fabric.Refused, nil, "nothing listens for BGP at fd00::11 (why); start the reflector there, or correct its address and port in the cluster file"},
		{fabric.Refused, shut, ended + "; since then nothing listens for BGP at fd00::11 (why); start the reflector there, or correct its address and port in the cluster file"},
		{fabric.Unreachable, nil, "fd00::11 does not answer (why); check that the machine is up, that no packet filter drops TCP port 179 between the two, and that both have the same password, without which packets are dropped"},
	} {
		s := fabric.Session{Peer: "rr1", Address: "fd00::11", State: "active", Since: since, Notification: tc.n, Failure: &fabric.SessionFailure{Kind: tc.kind, Reason: "why", At: since}}
		assert.Equal(t, tc.want, s.DownReason())
	}
}
