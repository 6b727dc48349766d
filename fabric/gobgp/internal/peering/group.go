package peering

import (
	"context"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/internal/backoff"
)

// Group has the goroutines that a part's Run waits for. Events of GoBGP come from
// goroutines that are not in it, and may come while Run ends. The zero Group is
// ready, and all methods are safe for concurrent use.
type Group struct {
	running sync.WaitGroup

	mu     sync.Mutex
	closed bool
}

// Go calls f in a goroutine, unless the group is closed.
func (g *Group) Go(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.running.Go(f)
	}
}

// After calls f in a goroutine after a time, unless ctx ends before.
func (g *Group) After(ctx context.Context, d time.Duration, f func()) {
	g.Go(func() {
		if backoff.Sleep(ctx, d) {
			f()
		}
	})
}

// Close makes Go start nothing any more. Call it before Wait.
func (g *Group) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

// Wait waits for all goroutines.
func (g *Group) Wait() { g.running.Wait() }
