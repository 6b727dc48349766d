// Package oneline makes one line of texts that may have several: log lines, answers
// and errors for people have one line each.
package oneline

import "strings"

// Of joins the lines of a text with semicolons, for example of an error that joins
// several.
func Of(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

// Words joins the words of a text with single spaces, for example of a program's
// output.
func Words(s string) string { return strings.Join(strings.Fields(s), " ") }
