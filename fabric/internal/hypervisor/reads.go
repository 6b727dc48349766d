package hypervisor

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmfabric/vmfabric/internal/signal"
)

// Limits bound the reads of one connection.
type Limits struct {
	Parallel int // guests that are read at the same time
	Waiting  int // guests that are read or wait; 0: any number
	// Patience is how long a guest may wait for its turn. After that Run ends with
	// Stuck. 0: for ever.
	Patience time.Duration
	Stuck    error
}

// Reads reads the guests of which there is news. It makes one read of a guest at a
// time; news that comes meanwhile causes one more read. Guests do not wait for one
// another, except for a slot. K names a guest, N is the news of it.
//
// Reads serves one connection. It drops what it has not read when Run ends; the
// list after the next connection makes up for that.
type Reads[K comparable, N any] struct {
	limits Limits
	read   func(context.Context, K, N)
	merge  func(older, newer N) N
	slots  chan struct{}
	wake   signal.Signal

	mu     sync.Mutex
	guests map[K]*guest[N]
	start  []K // guests for which Run must start a goroutine
}

// guest is a guest that is being read, or waits for its turn.
type guest[N any] struct {
	news  N
	again bool // there is news that came after the last read began
}

// NewReads makes reads. read must return when its context ends. merge combines two
// pieces of news for one read; nil: the newer one counts.
func NewReads[K comparable, N any](limits Limits, read func(context.Context, K, N), merge func(older, newer N) N) *Reads[K, N] {
	if merge == nil {
		merge = func(_, newer N) N { return newer }
	}
	return &Reads[K, N]{
		limits: limits, read: read, merge: merge,
		slots: make(chan struct{}, limits.Parallel), wake: signal.New(), guests: map[K]*guest[N]{},
	}
}

// Request requests a read of a guest. It never waits, and reports whether there was
// room.
func (r *Reads[K, N]) Request(k K, news N) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.guests[k]
	switch {
	case g != nil && g.again:
		g.news = r.merge(g.news, news)
	case g != nil:
		g.news, g.again = news, true
	case r.limits.Waiting > 0 && len(r.guests) >= r.limits.Waiting:
		return false
	default:
		r.guests[k] = &guest[N]{news: news, again: true}
		r.start = append(r.start, k)
		r.wake.Send()
	}
	return true
}

// Run reads guests until ctx ends, or a guest waits too long for its turn.
func (r *Reads[K, N]) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for {
		for _, k := range r.starting() {
			group.Go(func() error { return r.follow(ctx, k) })
		}
		select {
		case <-r.wake:
		case <-ctx.Done():
			return group.Wait()
		}
	}
}

// starting takes the guests that need a goroutine.
func (r *Reads[K, N]) starting() []K {
	r.mu.Lock()
	defer r.mu.Unlock()
	start := r.start
	r.start = nil
	return start
}

// follow reads a guest as long as there is news of it.
func (r *Reads[K, N]) follow(ctx context.Context, k K) error {
	for {
		if err := r.turn(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		r.read(ctx, k, r.begin(k))
		<-r.slots
		if !r.end(k) {
			return nil
		}
	}
}

// turn waits for a slot. If ctx ends first, it returns nil without one.
func (r *Reads[K, N]) turn(ctx context.Context) error {
	var expired <-chan time.Time
	if r.limits.Patience > 0 {
		timer := time.NewTimer(r.limits.Patience)
		defer timer.Stop()
		expired = timer.C
	}
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
	case <-expired:
		return r.limits.Stuck
	}
	return nil
}

// begin takes the news that a read serves.
func (r *Reads[K, N]) begin(k K) N {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.guests[k]
	g.again = false
	return g.news
}

// end reports whether more news came during the read.
func (r *Reads[K, N]) end(k K) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.guests[k]
	if !g.again {
		delete(r.guests, k)
	}
	return g.again
}
