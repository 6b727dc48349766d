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

// maxErrors is how many mistakes of one file are told one by one.
const maxErrors = 20

// Error is one mistake in a cluster file.
type Error struct {
	File   string // as it was given to Load or Parse
	Line   int    // from 1; 0 where the mistake is the file as a whole
	Column int    // from 1, in characters; 0 where Line is
	Key    string // such as pools[1].prefix; empty where no key is concerned
	Text   string // the reason and the way out

	cause error
}

// Error gives one line, such as
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

// Unwrap gives the error of the operating system behind it, if any.
func (e *Error) Unwrap() error { return e.cause }

// join makes one error of the mistakes of one file, at least one.
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

// quote makes foreign text fit for an error: in quotes, on one line, not long.
func quote(s string) string {
	const most = 64
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "..."
	}
	return strconv.Quote(s)
}

// bare is quote where it is needed: not for the letters, digits and signs of
// keys and paths.
func bare(s string) string {
	plain := func(r rune) bool {
		return unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("_-./", r)
	}
	if s == "" || len(s) > 255 || strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return quote(s)
	}
	return s
}
