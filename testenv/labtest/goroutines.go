package labtest

import (
	"testing"

	"go.uber.org/goleak"
)

// EndsItsGoroutines fails the test if, when it and what it made have ended, a
// goroutine runs that did not when EndsItsGoroutines was called. On a busy machine they
// have some seconds to end.
func EndsItsGoroutines(t testing.TB) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		const attempts = 20 // of half a second each
		var err error
		for range attempts {
			if err = goleak.Find(before); err == nil {
				return
			}
		}
		t.Error(err)
	})
}
