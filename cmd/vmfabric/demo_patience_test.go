package main

import (
	"context"
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestWhileWorking: who works is waited for, who does not is given up.
func TestWhileWorking(t *testing.T) {
	for name, c := range map[string]struct {
		works time.Duration // for so long
		ready time.Duration // after so long
		gives time.Duration // up, or 0
	}{
		"quick":                   {time.Hour, time.Second, 0},
		"slow, but it works":      {time.Hour, 150 * time.Second, 0},
		"it hangs from the start": {0, time.Hour, window},
		"it hangs after a while":  {50 * time.Second, time.Hour, 4 * window},
		"it works for ever":       {24 * time.Hour, 24 * time.Hour, windows * window},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				now := func() effort { return effort{processor: min(time.Since(began), c.works) / 10} }
				err := whileWorking(t.Context(), now, func(context.Context) error {
					if time.Since(began) < c.ready {
						return errors.New("not yet")
					}
					return nil
				})
				if c.gives == 0 {
					require.NoError(t, err)
					assert.InDelta(t, c.ready, time.Since(began), float64(100*time.Millisecond))
					return
				}
				require.ErrorContains(t, err, "not yet")
				assert.InDelta(t, c.gives, time.Since(began), float64(100*time.Millisecond))
			})
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.Error(t, whileWorking(ctx, func() effort { return effort{} }, func(context.Context) error { return errors.New("not yet") }))
}

func TestProcessorTime(t *testing.T) {
	before := processorTime(os.Getpid())
	require.Eventually(t, func() bool { return processorTime(os.Getpid()) > before }, time.Minute, time.Microsecond)
	assert.Zero(t, processorTime(1<<30))
}
