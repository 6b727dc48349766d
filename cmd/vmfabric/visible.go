package main

import (
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// visibleWriter writes text for people and for programs so that every character is
// visible. Everybody who may define a guest chooses its name, and a name can
// reverse a terminal's line, or hide what follows it. Characters that show nothing
// become \uXXXX, as in JSON. Each write has whole characters.
type visibleWriter struct{ w io.Writer }

func (v visibleWriter) Write(p []byte) (int, error) {
	if text := string(p); strings.ContainsFunc(text, unseen) {
		_, err := io.WriteString(v.w, visible(text))
		return len(p), err
	}
	return v.w.Write(p)
}

// unseen reports control characters other than a text's white space, format
// characters such as U+200B and U+202E, separators and spaces other than the plain
// one, and fillers. By category U+2800 is a symbol, and yet a filler.
func unseen(r rune) bool {
	switch r {
	case '\n', '\t', ' ', utf8.RuneError:
		return false
	case '\u2800':
		return true
	}
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Z, unicode.Other_Default_Ignorable_Code_Point)
}

func visible(text string) string {
	const digits = "0123456789abcdef"
	var b strings.Builder
	escape := func(u uint16) {
		b.WriteString(`\u`)
		for shift := 12; shift >= 0; shift -= 4 {
			b.WriteByte(digits[u>>shift&0xf])
		}
	}
	for _, r := range text {
		switch {
		case !unseen(r):
			b.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			escape(uint16(high))
			escape(uint16(low))
		default:
			escape(uint16(r))
		}
	}
	return b.String()
}
