package kernel

import (
	"context"
	"sync"
)

// lifetime has the Run of a part that a Close ends, too.
type lifetime struct {
	running sync.Mutex // held by run
	over    chan struct{}
	end     func() // closes over
}

func newLifetime() *lifetime {
	l := &lifetime{over: make(chan struct{})}
	l.end = sync.OnceFunc(func() { close(l.over) })
	return l
}

// run calls all parts, each in a goroutine, with a context that ends with ctx or with
// close, and returns when they have returned. After close it calls none.
func (l *lifetime) run(ctx context.Context, parts ...func(context.Context)) {
	l.running.Lock()
	defer l.running.Unlock()
	select {
	case <-l.over:
		return
	default:
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	for _, part := range parts {
		running.Go(func() { part(ctx) })
	}
	select {
	case <-ctx.Done():
	case <-l.over:
	}
	cancel()
	running.Wait()
}

// close ends run, and waits for it.
func (l *lifetime) close() {
	l.end()
	l.running.Lock()
	defer l.running.Unlock()
}
