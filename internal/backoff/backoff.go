// Package backoff spaces the attempts at an operation that fails.
package backoff

import (
	"cmp"
	"context"
	"time"
)

// Backoff has the waits between attempts: First, then twice as long each time, at
// most Most. It is not safe for concurrent use.
type Backoff struct {
	First, Most time.Duration
	next        time.Duration // zero: First
}

// Peek returns the wait before the next attempt.
func (b *Backoff) Peek() time.Duration { return cmp.Or(b.next, b.First) }

// Next returns the wait before the next attempt, and doubles the one after it.
func (b *Backoff) Next() time.Duration {
	wait := b.Peek()
	b.next = min(2*wait, b.Most)
	return wait
}

// Wait waits for the time of Next, and reports false if ctx ended before.
func (b *Backoff) Wait(ctx context.Context) bool { return Sleep(ctx, b.Next()) }

// Reset makes the next wait First. Call it when an attempt has succeeded, or its
// success has lasted.
func (b *Backoff) Reset() { b.next = 0 }

// Sleep waits, and reports false if ctx ended before.
func Sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
