package lxd

import (
	"context"
	"slices"
	"sync"

	"github.com/vmfabric/vmfabric/fabric"
)

// outbox holds what is to be told until somebody listens. Of each guest it
// keeps the newest only, so it never holds more than there are guests.
type outbox struct {
	out  chan fabric.Change // unbuffered, so that what is told is the newest when it is told
	wake chan struct{}

	mu      sync.Mutex
	lost    bool
	order   []string // names of guests
	changes map[string]fabric.Desired
}

func newOutbox() *outbox {
	return &outbox{out: make(chan fabric.Change), wake: make(chan struct{}, 1), changes: map[string]fabric.Desired{}}
}

// put takes up a change of a guest.
func (o *outbox) put(d fabric.Desired) {
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

// renew takes up a guest as a list told it, if there is older news of it to be
// told: that would undo what the list said.
func (o *outbox) renew(d fabric.Desired) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if had, there := o.changes[d.VM.Name]; there && had.Since.Before(d.Since) {
		o.changes[d.VM.Name] = d
		o.poke()
	}
}

// putLost takes up that changes may have been missed.
func (o *outbox) putLost() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lost = true
	o.poke()
}

func (o *outbox) poke() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// next gives what is to be told first.
func (o *outbox) next() (c fabric.Change, any bool) {
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
func (o *outbox) told(c fabric.Change) {
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

// deliver tells what comes in until ctx ends.
func (o *outbox) deliver(ctx context.Context) {
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
