package reflector

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

// TestLaterEndsWithRun: what is to be done later is done in its time, and not any
// more once Run ends, which waits for no timer.
func TestLaterEndsWithRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		r, began := &Reflector{}, time.Now()
		var done []time.Duration
		note := func() { done = append(done, time.Since(began)) }
		r.later(ctx, time.Minute, note)
		r.later(ctx, time.Hour, note)
		time.Sleep(2 * time.Minute)
		end()
		r.serving.Wait()
		assert.Equal(t, []time.Duration{time.Minute}, done)
		assert.Equal(t, 2*time.Minute, time.Since(began))
	})
}
