package gobgp

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/fabric"
)

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
