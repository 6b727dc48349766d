// Package outbox keeps the news of a source until the agent listens.
package outbox

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/vmfabric/vmfabric/fabric"
)

// Box holds what is to be told until somebody listens. Of each guest it
// keeps the newest only, so it never holds more than there are guests.
type Box struct {
	out  chan fabric.Change // unbuffered, so that what is told is the newest when it is told
	wake chan struct{}

	mu      sync.Mutex
	lost    bool
	order   []string // names of guests
	changes map[string]fabric.Desired
}

// New makes an empty box.
func New() *Box {
	return &Box{out: make(chan fabric.Change), wake: make(chan struct{}, 1), changes: map[string]fabric.Desired{}}
}

// Out is where the news comes out.
func (o *Box) Out() <-chan fabric.Change { return o.out }

// Waiting gives the guests whose news is still to be told, by name.
func (o *Box) Waiting() map[string]fabric.Desired {
	o.mu.Lock()
	defer o.mu.Unlock()
	return maps.Clone(o.changes)
}

// Put takes up a change of a guest.
func (o *Box) Put(d fabric.Desired) {
	o.mu.Lock()
	defer o.mu.Unlock()
	name := d.VM.Name
	switch had, there := o.changes[name]; {
	case !there:
		o.order = append(o.order, name)
	case had.Since.After(d.Since):
		return
	}
	o.changes[name] = d
	o.poke()
}

// Renew takes up a guest as a list told it, if there is older news of it to be
// told: that would undo what the list said.
func (o *Box) Renew(d fabric.Desired) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if had, there := o.changes[d.VM.Name]; there && had.Since.Before(d.Since) {
		o.changes[d.VM.Name] = d
		o.poke()
	}
}

// PutLost takes up that changes may have been missed.
func (o *Box) PutLost() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lost = true
	o.poke()
}

func (o *Box) poke() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// next gives what is to be told first.
func (o *Box) next() (c fabric.Change, any bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.lost:
		return fabric.Change{Lost: true}, true
	case len(o.order) > 0:
		return fabric.Change{Guest: o.changes[o.order[0]]}, true
	}
	return c, false
}

// told notes that a change has a listener.
func (o *Box) told(c fabric.Change) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c.Lost {
		o.lost = false
		return
	}
	name := c.Guest.VM.Name
	if !o.changes[name].Since.After(c.Guest.Since) {
		delete(o.changes, name)
		o.order = slices.DeleteFunc(o.order, func(n string) bool { return n == name })
	}
}

// Deliver tells what comes in until ctx ends.
func (o *Box) Deliver(ctx context.Context) {
	for {
		c, some := o.next()
		out := o.out
		if !some {
			out = nil
		}
		select {
		case out <- c:
			o.told(c)
		case <-o.wake:
		case <-ctx.Done():
			return
		}
	}
}
