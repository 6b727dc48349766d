// Package backoff spaces attempts at something that fails.
package backoff

import (
	"cmp"
	"context"
	"time"
)

// Backoff gives the waits between attempts: First, then twice as long each time,
// Most at the longest. It is not safe for concurrent use.
type Backoff struct {
	First, Most time.Duration
	next        time.Duration // zero for First
}

// Peek gives the wait before the next attempt.
func (b *Backoff) Peek() time.Duration { return cmp.Or(b.next, b.First) }

// Next is Peek, and makes the wait after it longer.
func (b *Backoff) Next() time.Duration {
	wait := b.Peek()
	b.next = min(2*wait, b.Most)
	return wait
}

// Wait waits for Next, and reports false when ctx ended before.
func (b *Backoff) Wait(ctx context.Context) bool { return Sleep(ctx, b.Next()) }

// Reset makes the next wait First: an attempt succeeded, or its success lasted.
func (b *Backoff) Reset() { b.next = 0 }

// Sleep waits, and reports false when ctx ended before.
func Sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
