package fabric

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestNotificationsAreSafeToPrint(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, given, want string }{
		{"plain", "planned work, back at 14:00", "planned work, back at 14:00"},
		{"another script", "плановые работы", "плановые работы"},
		{"a terminal's", "a\x1b[2Jb\x00\x7f\r\n\tc", `a\u001b[2Jb\u0000\u007f\u000d\u000a\u0009c`},
		{"the other way around", "a\u202eb\u2066c\u200fd", `a\u202eb\u2066c\u200fd`},
		{"invisible", "a\u200bb\u2028c\U000e0041d\u00a0e\u2800f\u3164", `a\u200bb\u2028c\U000e0041d\u00a0e\u2800f\u3164`},
		{"no UTF-8", "a\xff\xfeb", `a\xff\xfeb`},
		{"of the greatest length", strings.Repeat("x", 255), strings.Repeat("x", 255)},
		{"too long", strings.Repeat("x", 300), strings.Repeat("x", 252) + "..."},
		{"too long when escaped", strings.Repeat("\x1b", 255), strings.Repeat(`\u001b`, 42) + "..."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			n := NewNotification(false, 6, 2, tc.given, time.Time{})
			assert.Equal(t, tc.want, n.Communication)
			assert.Equal(t, n, NewNotification(false, 6, 2, n.Communication, time.Time{}), "what is escaped stays so")
		})
	}
}

func FuzzNotification(f *testing.F) {
	f.Add("planned work", uint8(6), uint8(2))
	f.Add("\u202e\x1b\xff", uint8(0), uint8(0))
	f.Fuzz(func(t *testing.T, text string, code, subcode uint8) {
		n := NewNotification(true, code, subcode, text, time.Time{})
		assert.LessOrEqual(t, len(n.Communication), 255)
		for _, r := range n.String() {
			assert.True(t, r >= ' ' && r != 0x7f && r != 0x202e && r != 0x2028, "%q", r)
		}
	})
}

func TestNotificationReasons(t *testing.T) {
	t.Parallel()
	at := time.Time{}
	for _, tc := range []struct {
		n    *Notification
		want string
	}{
		{NewNotification(false, 6, 2, "planned work", at), `Cease, Administrative Shutdown (6/2), "planned work"`},
		{NewNotification(true, 2, 2, "", at), "OPEN Message Error, Bad Peer AS (2/2)"},
		{NewNotification(true, 4, 0, "", at), "Hold Timer Expired (4/0)"},
		{NewNotification(true, 6, 99, "", at), "Cease (6/99)"},
		{NewNotification(true, 99, 1, "", at), "unknown error (99/1)"},
		{NewNotification(false, 0, 0, "", at), "a NOTIFICATION"},
	} {
		assert.Equal(t, tc.want, tc.n.String())
	}
	for reason, want := range map[string][2]uint8{
		"Administrative shutdown": {6, 2}, "Maximum number of prefixes reached": {6, 1}, "Bad peer AS": {2, 2},
		"Hold timer expired": {4, 0}, "Cease/Administrative Shutdown": {6, 2}, "OPEN Message Error, Bad Peer AS": {2, 2}, "Peer de-configured": {6, 3},
	} {
		code, subcode, known := NotificationCode(reason)
		assert.True(t, known, reason)
		assert.Equal(t, want, [2]uint8{code, subcode}, reason)
	}
	_, _, known := NotificationCode("Connection refused")
	assert.False(t, known)
}
