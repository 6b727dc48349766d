// Package text writes values the way people write them.
package text

import (
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Prefix writes a host prefix as its address, and any other as it is.
func Prefix(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// Shown makes a text from outside fit to be shown: what cannot be printed, or reorders
// the text around it, becomes '?', and it has at most so many characters.
func Shown(s string, most int) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n++; n > most {
			return b.String() + "..."
		}
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			r = '?'
		}
		b.WriteRune(r)
	}
	return b.String()
}
