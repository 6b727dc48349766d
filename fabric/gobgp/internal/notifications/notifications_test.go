package notifications

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/fabric"
)

// TestCountedNotifications: a NOTIFICATION that GoBGP counts and does not log is the
// captured one, or one of which nothing else is known.
func TestCountedNotifications(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	peer := netip.MustParseAddr("10.10.0.11")
	note := func(sent bool, code, subcode uint8, ago time.Duration) *fabric.Notification {
		return fabric.NewNotification(sent, code, subcode, "", at.Add(-ago))
	}
	ns := New()
	ns.Counted(peer, 0, at)
	assert.Nil(t, ns.Of(peer))
	ns.Captured(peer, note(false, 2, 2, 0))
	ns.Counted(peer, 0, at)
	assert.Nil(t, ns.Of(peer), "GoBGP has not counted it")
	ns.record(peer, note(true, 5, 1, 0)) // GoBGP's answer to it
	ns.Counted(peer, 1, at)
	assert.Equal(t, note(false, 2, 2, 0), ns.Of(peer))
	ns.Counted(peer, 1, at)
	assert.Equal(t, note(false, 2, 2, 0), ns.Of(peer))
	ns.Counted(peer, 2, at)
	assert.Equal(t, note(false, 0, 0, 0), ns.Of(peer), "it was not captured")
	ns.record(peer, note(false, 6, 2, -time.Second))
	ns.Counted(peer, 3, at)
	assert.Equal(t, note(false, 6, 2, -time.Second), ns.Of(peer), "logged and counted once")
	ns.Counted(peer, 0, at) // it has no such peer any more
	assert.Equal(t, note(false, 6, 2, -time.Second), ns.Of(peer))
	ns.Keep(func(netip.Addr) bool { return false })
	assert.Nil(t, ns.Of(peer))
}
