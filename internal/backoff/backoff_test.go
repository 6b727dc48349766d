package backoff

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestWaitsDoubleUpToMost(t *testing.T) {
	t.Parallel()
	b := Backoff{First: time.Second, Most: 5 * time.Second}
	for range 2 {
		for _, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second} {
			assert.Equal(t, want, b.Peek())
			assert.Equal(t, want, b.Peek(), "a look changes nothing")
			assert.Equal(t, want, b.Next())
		}
		b.Reset()
	}
}

func TestWaitEndsWithContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := Backoff{First: time.Second, Most: time.Hour}
		began := time.Now()
		assert.True(t, b.Wait(t.Context()))
		assert.Equal(t, time.Second, time.Since(began))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		assert.False(t, b.Wait(ctx))
		assert.Equal(t, 3*time.Second/2, time.Since(began))
	})
}
