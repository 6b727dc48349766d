// Package oneline makes one line of texts that may have several: a log line, an
// answer and an error for people are a line each.
package oneline

import "strings"

// Of joins the lines of a text with semicolons, as for an error that holds several.
func Of(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

// Words joins the words of a text with single spaces, as for what a program wrote.
func Words(s string) string { return strings.Join(strings.Fields(s), " ") }
