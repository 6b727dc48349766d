package gobgp

import (
	"context"
	"net/netip"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// Rivals implements [fabric.RivalTeller]. The channel is never closed. One who
// does not read holds up nobody: of each prefix and reflector the newest waits,
// and none that has gone or that concerns a prefix withdrawn here meanwhile.
func (s *Speaker) Rivals() <-chan fabric.Rival { return s.in.rivals.out }

// rivals are the better routes of other nodes to prefixes that this one
// announces, on their way to whoever listens. The mutex of the ribIn guards it.
type rivals struct {
	names   map[netip.Addr]string // of the reflectors
	out     chan fabric.Rival
	wake    chan struct{}
	own     map[netip.Prefix]bool // announced here
	waiting []rivalry             // in their order
	news    map[rivalry]fabric.Rival
}

// rivalry is who says that somebody has a better route, and to what.
type rivalry struct {
	prefix netip.Prefix
	peer   netip.Addr
}

func newRivals(c fabric.Cluster) *rivals {
	v := &rivals{
		names: map[netip.Addr]string{}, out: make(chan fabric.Rival), wake: make(chan struct{}, 1),
		own: map[netip.Prefix]bool{}, news: map[rivalry]fabric.Rival{},
	}
	for _, rr := range c.Reflectors {
		v.names[rr.Address] = rr.Name
	}
	return v
}

// better reports whether a route comes before those that nodes announce usually.
func (h heard) better() bool { return h.localPref > fabric.Normal.LocalPref() }

// tell has a route told, in the place of an earlier one of the same reflector.
func (v *rivals) tell(p netip.Prefix, peer netip.Addr, h heard) {
	k := rivalry{p, peer}
	if _, waits := v.news[k]; !waits {
		v.waiting = append(v.waiting, k)
	}
	v.news[k] = fabric.Rival{
		Prefix: p, Via: h.via, Preference: fabric.Preference(h.localPref), Reflector: v.names[peer], At: time.Now(),
	}
	v.poke()
}

// untell takes back what has not been told yet.
func (v *rivals) untell(p netip.Prefix, peer netip.Addr) {
	k := rivalry{p, peer}
	if _, waits := v.news[k]; waits {
		delete(v.news, k)
		v.poke()
	}
}

func (v *rivals) poke() {
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// next gives what is to be told next, of which only the newest counts.
func (v *rivals) next() (fabric.Rival, bool) {
	for len(v.waiting) > 0 {
		if r, there := v.news[v.waiting[0]]; there {
			return r, true
		}
		v.waiting = v.waiting[1:]
	}
	v.waiting = nil
	return fabric.Rival{}, false
}

// tellRivals hands out what is to be told until ctx ends.
func (r *ribIn) tellRivals(ctx context.Context) {
	v := r.rivals
	for {
		r.mu.Lock()
		next, any := v.next()
		r.mu.Unlock()
		out := v.out
		if !any {
			out = nil
		}
		select {
		case <-ctx.Done():
			return
		case <-v.wake:
		case out <- next:
			r.mu.Lock()
			// A newer one that came at this very moment stays.
			if k := v.waiting[0]; v.news[k] == next {
				delete(v.news, k)
			}
			r.mu.Unlock()
		}
	}
}

// announcing notes what this node announces from now on, and tells who has a
// better route to it.
func (r *ribIn) announcing(prefixes ...netip.Prefix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range prefixes {
		if r.rivals.own[p] {
			continue
		}
		r.rivals.own[p] = true
		for peer, h := range r.routes[p] {
			if h.better() {
				r.rivals.tell(p, peer, h)
			}
		}
	}
}

// withdrawn notes what this node announces no more.
func (r *ribIn) withdrawn(prefixes ...netip.Prefix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range prefixes {
		delete(r.rivals.own, p)
		for peer := range r.routes[p] {
			r.rivals.untell(p, peer)
		}
	}
}

// compete tells a route that has come, or is not as it was, where it is better
// than what this node announces. r.mu is held.
func (r *ribIn) compete(p netip.Prefix, peer netip.Addr, was, is heard) {
	if is.better() && r.rivals.own[p] && (was.via != is.via || was.localPref != is.localPref) {
		r.rivals.tell(p, peer, is)
	}
}

var _ fabric.RivalTeller = (*Speaker)(nil)
