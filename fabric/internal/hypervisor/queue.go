package hypervisor

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/signal"
)

// Queue is the coalescing queue of a source: it holds changes until the agent takes
// them. It keeps only the newest change of each guest, so it never holds more than
// there are guests. Of a guest that is gone for good it keeps that: another guest may
// have the name by now.
type Queue struct {
	out  chan fabric.Change // unbuffered, so that a change is the newest when it is taken
	wake signal.Signal

	mu sync.Mutex
	// How often changes may have been missed; up to which of these times the agent is
	// offered that, and up to which it took it.
	lost, offered, told uint64

	order   []string // names of guests
	changes map[string]fabric.Desired
	gone    []fabric.Desired // guests that are gone for good; the first one is the next to be taken
}

// NewQueue makes an empty queue.
func NewQueue() *Queue {
	return &Queue{out: make(chan fabric.Change), wake: signal.New(), changes: map[string]fabric.Desired{}}
}

// Out returns the channel from which the agent takes changes. It is never closed.
func (q *Queue) Out() <-chan fabric.Change { return q.out }

// Waiting returns the changes that the agent has not taken yet, by the guest's
// name.
func (q *Queue) Waiting() map[string]fabric.Desired {
	q.mu.Lock()
	defer q.mu.Unlock()
	return maps.Clone(q.changes)
}

// Put adds a change of a guest, unless a newer one waits.
func (q *Queue) Put(d fabric.Desired) {
	q.mu.Lock()
	defer q.mu.Unlock()
	name := d.VM.Name
	switch had, there := q.changes[name]; {
	case !there:
		q.order = append(q.order, name)
	case had.Since.After(d.Since):
		return
	}
	q.changes[name] = d
	q.wake.Send()
}

// PutGone adds that a guest is gone for good. That replaces older changes of it.
func (q *Queue) PutGone(d fabric.Desired) {
	q.mu.Lock()
	defer q.mu.Unlock()
	id, name := d.VM.Identity(), d.VM.Name
	if had, there := q.changes[name]; there && had.VM.Identity() == id && !had.Since.After(d.Since) {
		q.drop(name)
	}
	q.gone = slices.DeleteFunc(q.gone, func(g fabric.Desired) bool { return g.VM.Identity() == id })
	q.gone = append(q.gone, d)
	q.wake.Send()
}

// drop removes the change of a guest.
func (q *Queue) drop(name string) {
	delete(q.changes, name)
	q.order = slices.DeleteFunc(q.order, func(n string) bool { return n == name })
}

// Refresh replaces an older change of a guest by its state in a list. Taken after
// the list, the older change would undo it.
func (q *Queue) Refresh(d fabric.Desired) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if had, there := q.changes[d.VM.Name]; there && had.Since.Before(d.Since) {
		q.changes[d.VM.Name] = d
		q.wake.Send()
	}
}

// PutLost queues that changes may have been missed, so that the agent lists the
// guests.
func (q *Queue) PutLost() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lost++
	q.wake.Send()
}

// next returns the change that the agent takes next.
func (q *Queue) next() (c fabric.Change, any bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.lost > q.told:
		q.offered = q.lost
		return fabric.Change{Lost: true}, true
	case len(q.gone) > 0: // before the changes of a guest that has its name now
		return fabric.Change{Guest: q.gone[0], Gone: true}, true
	case len(q.order) > 0:
		return fabric.Change{Guest: q.changes[q.order[0]]}, true
	}
	return c, false
}

// taken removes a change that the agent took, unless a newer one has replaced it. Lost
// is replaced, too: the list that the agent makes may be older than another one.
func (q *Queue) taken(c fabric.Change) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch name := c.Guest.VM.Name; {
	case c.Lost:
		q.told = q.offered
	case c.Gone:
		q.gone = slices.DeleteFunc(q.gone, func(g fabric.Desired) bool {
			return g.VM.Identity() == c.Guest.VM.Identity() && g.Since.Equal(c.Guest.Since)
		})
	case !q.changes[name].Since.After(c.Guest.Since):
		q.drop(name)
	}
}

// Run offers the changes until ctx ends, and returns nil then.
func (q *Queue) Run(ctx context.Context) error {
	for {
		c, some := q.next()
		out := q.out
		if !some {
			out = nil
		}
		select {
		case out <- c:
			q.taken(c)
		case <-q.wake:
		case <-ctx.Done():
			return nil
		}
	}
}
