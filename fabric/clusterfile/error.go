package clusterfile

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// maxErrors is how many mistakes of one file are reported one by one.
const maxErrors = 20

// Error is one mistake in a cluster file.
type Error struct {
	File   string // as Load or Parse got it
	Line   int    // from 1; 0: the mistake is the file as a whole
	Column int    // from 1, in characters; 0 if Line is
	Key    string // such as pools[1].prefix; empty: the mistake is at no key
	Text   string // the reason and the way out

	cause error
}

// Error returns one line, such as
//
//	cluster.yaml:14: pools[1].prefix: missing; for example 203.0.113.0/24
func (e *Error) Error() string {
	at := e.File
	if e.Line > 0 {
		at += ":" + strconv.Itoa(e.Line)
	}
	if e.Key != "" {
		at += ": " + e.Key
	}
	return at + ": " + e.Text
}

// Unwrap returns the error of the operating system behind it, if any.
func (e *Error) Unwrap() error { return e.cause }

// join joins the mistakes of one file, at least one.
func join(errs []*Error) error {
	slices.SortStableFunc(errs, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	shown := make([]error, 0, maxErrors+1)
	for _, e := range errs[:min(len(errs), maxErrors)] {
		shown = append(shown, e)
	}
	if more := len(errs) - maxErrors; more > 0 {
		shown = append(shown, &Error{File: errs[0].File, Text: fmt.Sprintf("%d more after these; correct these first", more)})
	}
	return errors.Join(shown...)
}

// quote makes text from the file fit for an error: in quotes, on one line, short.
func quote(s string) string {
	const most = 64
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "..."
	}
	return strconv.Quote(s)
}

// bare quotes text only if it has other characters than the letters, digits and
// signs of keys and paths.
func bare(s string) string {
	plain := func(r rune) bool {
		return unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("_-./", r)
	}
	if s == "" || len(s) > 255 || strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return quote(s)
	}
	return s
}
