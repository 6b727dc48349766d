package text

import (
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/assert"
)

func TestShown(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ text, want string }{
		{"", ""},
		{"systemd-networkd", "systemd-networkd"},
		{"веб сервер", "веб сервер"},
		{"a\x1b[31m\r\nb\tc\x00", "a?[31m??b?c?"},
		{"bad \xff\xfe utf-8", "bad ?? utf-8"},
		{"over\u202eturned\u200b\u2028", "over?turned??"},
		{strings.Repeat("ж", 20), strings.Repeat("ж", 20)},
		{strings.Repeat("ж", 21), strings.Repeat("ж", 20) + "..."},
	} {
		assert.Equal(t, tc.want, Shown(tc.text, 20), "%q", tc.text)
	}
}

func FuzzShown(f *testing.F) {
	f.Add("a\x1b[31m\xff\u202e")
	f.Fuzz(func(t *testing.T, s string) {
		got := Shown(s, 8)
		assert.LessOrEqual(t, len([]rune(got)), 8+3)
		assert.False(t, strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }), "%q", got)
	})
}
