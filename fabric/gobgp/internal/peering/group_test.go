package peering

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

// TestAfterEndsWithItsContext: After calls its function in time, or not at all once
// the context has ended. Wait does not wait for the time.
func TestAfterEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		var g Group
		began := time.Now()
		var called []time.Duration
		note := func() { called = append(called, time.Since(began)) }
		g.After(ctx, time.Minute, note)
		g.After(ctx, time.Hour, note)
		time.AfterFunc(2*time.Minute, end)
		g.Wait()
		assert.Equal(t, []time.Duration{time.Minute}, called)
		assert.Equal(t, 2*time.Minute, time.Since(began))
	})
}

// TestClosedGroup: a closed group starts nothing, so that Wait has an end.
func TestClosedGroup(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var g Group
		g.Close()
		g.Go(func() { assert.Fail(t, "called") })
		g.After(t.Context(), 0, func() { assert.Fail(t, "called") })
		g.Wait()
		synctest.Wait()
	})
}
