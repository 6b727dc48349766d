// Package conformance holds the implementations of the interfaces of package
// fabric to their laws: the same suite runs on the fakes, on a directory, on
// the kernel and on a BGP speaker.
//
// A suite gets a function that makes the thing under test, fresh for each
// case, and [Controls] of what lies behind it: how to look at it as after a
// restart, and how to break it from outside. A control that is nil leaves out
// the laws that need it.
package conformance

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	patience = 20 * time.Second       // for what must happen
	quiet    = 150 * time.Millisecond // for what must not; silence this long counts as rest
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
// gives their number.
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
