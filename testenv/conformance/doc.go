// Package conformance tests that the implementations of the interfaces of package
// fabric obey their laws: the same suite runs on the fakes, on a directory, on the
// kernel and on a BGP speaker.
//
// A suite gets a function that makes a new implementation for each case, with
// [Controls], functions that act on the state behind it: they make a second
// instance, as after a restart, and break things from outside. A suite leaves out
// the laws whose control is nil.
package conformance

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	patience = 20 * time.Second       // for events that must come
	quiet    = 150 * time.Millisecond // for events that must not come; silence this long counts as rest
)

// eventually polls until ok is true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, patience, 10*time.Millisecond, what)
}

// signalled waits for a wake-up.
func signalled(t *testing.T, c <-chan struct{}, after string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		require.FailNow(t, "Changed did not fire after "+after)
	}
}

// rest answers each wake-up as an agent would, until none comes any more, and
// returns their number.
func rest(t *testing.T, c <-chan struct{}, answer func()) (wakeUps int) {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case <-c:
			wakeUps++
			answer()
		case <-time.After(quiet):
			return wakeUps
		case <-deadline:
			require.FailNow(t, "Changed does not come to rest")
		}
	}
}
