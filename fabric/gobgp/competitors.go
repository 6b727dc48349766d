package gobgp

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/signal"
)

// Competitors implements [fabric.Speaker]. The channel is never closed, and a slow
// reader holds up nobody. For each prefix and reflector only the newest competing
// route waits for the reader. A waiting one is dropped if it goes, or if this node
// withdraws the prefix. If a route that the reader has received goes, the reader
// gets that too, whether or not this node still announces the prefix.
func (s *Speaker) Competitors() <-chan fabric.Competitor { return s.competitors.out }

// competitors has the preferred routes of other nodes to prefixes that this node
// announces, until the reader of Competitors receives them. It is safe for
// concurrent use. Its owner makes the calls that are about routes one at a time, in
// the order of the events.
type competitors struct {
	names map[netip.Addr]string // reflectors by address
	out   chan fabric.Competitor
	wake  signal.Signal

	mu        sync.Mutex
	own       map[netip.Prefix]bool // the prefixes that this node announces
	queue     []competing           // the order in which the reader gets the changes
	pending   map[competing]fabric.Competitor
	delivered map[competing]fabric.Competitor // the last ones that the reader received, unless they have gone
}

// competing names a competing route by its prefix and the reflector that has it.
type competing struct {
	prefix netip.Prefix
	peer   netip.Addr
}

func newCompetitors(reflectors []fabric.RR) *competitors {
	c := &competitors{
		names: map[netip.Addr]string{}, out: make(chan fabric.Competitor), wake: signal.New(),
		own: map[netip.Prefix]bool{}, pending: map[competing]fabric.Competitor{}, delivered: map[competing]fabric.Competitor{},
	}
	for _, rr := range reflectors {
		c.names[rr.Address] = rr.Name
	}
	return c
}

// update takes a new or changed route. It is a competitor if it is preferred and this
// node announces the prefix, or if the reader has an earlier route of the same
// reflector.
func (c *competitors) update(k competing, was, is learnedRoute) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, delivered := c.delivered[k]
	switch {
	case !is.preferred():
		c.retract(k)
	case (c.own[k.prefix] || delivered) && (was.via != is.via || was.localPref != is.localPref || was.holder != is.holder):
		c.emit(k, is)
	}
}

// gone takes the end of a route.
func (c *competitors) gone(k competing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retract(k)
}

// announced notes a prefix that this node announces from now on, and emits the
// preferred ones of the reflectors' routes to it.
func (c *competitors) announced(p netip.Prefix, routes map[netip.Addr]learnedRoute) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.own[p] {
		return
	}
	c.own[p] = true
	for peer, r := range routes {
		if r.preferred() {
			c.emit(competing{p, peer}, r)
		}
	}
}

// withdrawn notes a prefix that this node no longer announces.
func (c *competitors) withdrawn(p netip.Prefix, routes map[netip.Addr]learnedRoute) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.own, p)
	for peer := range routes {
		c.drop(competing{p, peer})
	}
}

// current lists the routes that the reader has and that have not gone.
func (c *competitors) current() []competing {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.delivered))
}

// emit queues a route for the reader. It replaces an earlier one of the same
// reflector.
func (c *competitors) emit(k competing, r learnedRoute) {
	c.put(k, fabric.Competitor{
		Prefix: k.prefix, Via: r.via, Preference: fabric.Preference(r.localPref), Reflector: c.names[k.peer], Holder: r.holder, At: time.Now(),
	})
}

// put queues a change for the reader.
func (c *competitors) put(k competing, r fabric.Competitor) {
	if _, waits := c.pending[k]; !waits {
		c.queue = append(c.queue, k)
	}
	c.pending[k] = r
	c.wake.Send()
}

// retract drops a route that waits for the reader. If the reader has it, retract
// queues that it has gone.
func (c *competitors) retract(k competing) {
	if r, delivered := c.delivered[k]; delivered {
		r.Gone, r.At = true, time.Now()
		c.put(k, r)
		return
	}
	c.drop(k)
}

// drop drops a route that waits for the reader, unless the change is that it has
// gone.
func (c *competitors) drop(k competing) {
	if r, waits := c.pending[k]; waits && !r.Gone {
		delete(c.pending, k)
		c.wake.Send()
	}
}

// next returns the oldest change that waits for the reader.
func (c *competitors) next() (k competing, r fabric.Competitor, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) > 0 {
		k = c.queue[0]
		if r, ok = c.pending[k]; ok {
			return k, r, true
		}
		c.queue = c.queue[1:]
	}
	c.queue = nil
	return competing{}, fabric.Competitor{}, false
}

// received notes that the reader received a change.
func (c *competitors) received(k competing, r fabric.Competitor) {
	c.mu.Lock()
	defer c.mu.Unlock()
	newer, waits := c.pending[k]
	if waits && newer == r {
		delete(c.pending, k)
	}
	if r.Gone {
		delete(c.delivered, k)
		return
	}
	if c.delivered[k] = r; !waits { // it was dropped while the reader received it
		c.retract(k)
	}
}

// deliver hands the waiting changes to the reader until ctx ends.
func (c *competitors) deliver(ctx context.Context) {
	for {
		k, next, waits := c.next()
		out := c.out
		if !waits {
			out = nil
		}
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case out <- next:
			c.received(k, next)
		}
	}
}
