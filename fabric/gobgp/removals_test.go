package gobgp

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/fabric"
)

func TestRemovals(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	one, two, three := netip.MustParsePrefix("203.0.113.1/32"), netip.MustParsePrefix("2001:db8:100::2/128"), netip.MustParsePrefix("203.0.113.3/32")
	var rs removals
	rs.add(now, one)
	rs.add(now.Add(time.Second), two, one)
	assert.Equal(t, []netip.Prefix{one, two}, rs.since(now))
	assert.Equal(t, []netip.Prefix{two, one}, rs.since(now.Add(time.Second)))
	assert.Empty(t, rs.since(now.Add(time.Minute)))
	rs.add(now.Add(time.Minute), three)
	assert.Equal(t, []netip.Prefix{three}, rs.since(now), "the others are forgotten")
}

// TestCountedNotifications: one that GoBGP counts and does not log is that which
// was heard, or one of which no more is known.
func TestCountedNotifications(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	peer := netip.MustParseAddr("10.10.0.11")
	note := func(sent bool, code, subcode uint8, ago time.Duration) *fabric.Notification {
		return fabric.NewNotification(sent, code, subcode, "", at.Add(-ago))
	}
	ns := newNotifications()
	ns.counted(peer, 0, at)
	assert.Nil(t, ns.of(peer))
	ns.hear(peer, note(false, 2, 2, 0))
	ns.counted(peer, 0, at)
	assert.Nil(t, ns.of(peer), "hearsay")
	ns.note(peer, note(true, 5, 1, 0)) // GoBGP's answer to it
	ns.counted(peer, 1, at)
	assert.Equal(t, note(false, 2, 2, 0), ns.of(peer))
	ns.counted(peer, 1, at)
	assert.Equal(t, note(false, 2, 2, 0), ns.of(peer))
	ns.counted(peer, 2, at)
	assert.Equal(t, note(false, 0, 0, 0), ns.of(peer), "nobody heard it")
	ns.note(peer, note(false, 6, 2, -time.Second))
	ns.counted(peer, 3, at)
	assert.Equal(t, note(false, 6, 2, -time.Second), ns.of(peer), "logged and counted once")
	ns.counted(peer, 0, at) // it has no such peer any more
	assert.Equal(t, note(false, 6, 2, -time.Second), ns.of(peer))
	ns.keep(func(netip.Addr) bool { return false })
	assert.Nil(t, ns.of(peer))
}

func TestNotificationIn(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	marker := "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"
	tcp := "\x00\xb3\x12\x34" + "\x00\x00\x00\x01\x00\x00\x00\x01" + "\x80\x18" + "\x00\x00\x00\x00\x00\x00" + "\x01\x01\x08\x0a\x00\x00\x00\x00\x00\x00\x00\x00"
	keepalive := marker + "\x00\x13\x04"
	shutdown := marker + "\x00\x1a\x03\x06\x02\x04work"
	for _, tc := range []struct {
		name, segment string
		want          *fabric.Notification
	}{
		{"one", tcp + shutdown, fabric.NewNotification(false, 6, 2, "work", at)},
		{"after another message", tcp + keepalive + shutdown, fabric.NewNotification(false, 6, 2, "work", at)},
		{"with a length that lies", tcp + marker + "\x00\x1a\x03\x06\x02\xffwork", fabric.NewNotification(false, 6, 2, "work", at)},
		{"without data", tcp + marker + "\x00\x15\x03\x04\x00", fabric.NewNotification(false, 4, 0, "", at)},
		{"another message", tcp + keepalive, nil},
		{"from another port", "\x00\xb4" + tcp[2:] + shutdown, nil},
		{"cut", tcp + shutdown[:24], nil},
		{"too short a length", tcp + marker + "\x00\x00\x03\x06\x02", nil},
		{"no marker", tcp + "GET / HTTP/1.1\r\n\r\n", nil},
		{"no data", tcp, nil},
		{"no header", tcp[:19], nil},
		{"a header that lies", tcp[:12] + "\xf0" + tcp[13:], nil},
		{"nothing", "", nil},
	} {
		assert.Equal(t, tc.want, notificationIn([]byte(tc.segment), 179, at), tc.name)
	}
}

func FuzzNotificationIn(f *testing.F) {
	f.Add([]byte("\x00\xb3\x12\x34\x00\x00\x00\x01\x00\x00\x00\x01\x50\x18\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x15\x03\x06\x02"))
	f.Fuzz(func(t *testing.T, segment []byte) {
		if n := notificationIn(segment, 179, time.Time{}); n != nil {
			assert.False(t, n.Sent)
			assert.LessOrEqual(t, len(n.Communication), 255)
		}
	})
}
