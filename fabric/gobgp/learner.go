package gobgp

import (
	"cmp"
	"context"
	"net/netip"
	"sync"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/vmfabric/vmfabric/fabric"
)

// Learner learns where the guests of other nodes are. The speaker makes one call at
// a time, and no call may block. The kernel's FIB is one.
type Learner interface {
	// Put says that a prefix is behind the node at via now, and no longer where it
	// was before.
	Put(p netip.Prefix, via netip.Addr)
	Remove(p netip.Prefix) // no node announces it any more
	// The speaker calls Settle once, when the learner has all routes of the start:
	// all reflectors have sent End-of-RIB (RFC 4724) for both families, or the
	// restart time is over.
	Settle()
}

// WithLearner passes the other nodes' routes from the reflectors to l: for each
// prefix the best one, by LOCAL_PREF, then the lowest originator. The speaker
// passes only routes that a node may announce in the cluster, with all communities
// of the cluster. It neither passes its own routes nor compares the others with
// them: l decides which of the two counts. If l is a [fabric.Diagnoser], the
// speaker reports its problems.
func WithLearner(l Learner) Option { return func(s *Speaker) { s.learner = l } }

// Diagnose implements [fabric.Diagnoser] with the learner's problems.
func (s *Speaker) Diagnose(ctx context.Context) []string {
	if d, ok := s.learner.(fabric.Diagnoser); ok {
		return d.Diagnose(ctx)
	}
	return nil
}

// locRIB has the best routes of other nodes, as the learner has them. Without a
// learner it has none. It is safe for concurrent use.
type locRIB struct {
	learner Learner // nil: none

	mu      sync.Mutex
	via     map[netip.Prefix]netip.Addr
	awaited map[endOfRIB]bool // these must come before Settle
	settled bool
}

// endOfRIB is the End-of-RIB of a reflector for a family.
type endOfRIB struct {
	peer   netip.Addr
	family bgp.Family
}

func newLocRIB(l Learner, reflectors []fabric.RR) *locRIB {
	r := &locRIB{learner: l, via: map[netip.Prefix]netip.Addr{}, awaited: map[endOfRIB]bool{}}
	for _, rr := range reflectors {
		for _, family := range []bgp.Family{bgp.RF_IPv4_UC, bgp.RF_IPv6_UC} {
			r.awaited[endOfRIB{rr.Address, family}] = true
		}
	}
	return r
}

// update chooses the best of the reflectors' routes to a prefix, and passes it to the
// learner if it has changed.
func (r *locRIB) update(p netip.Prefix, routes map[netip.Addr]learnedRoute) {
	if r.learner == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	via := best(routes)
	switch {
	case via == r.via[p]:
	case via.IsValid():
		r.via[p] = via
		r.learner.Put(p, via)
	default:
		delete(r.via, p)
		r.learner.Remove(p)
	}
}

// best chooses among the reflectors' routes to a prefix by the criteria of RFC 4271
// (9.1.2.2) and RFC 4456 (9) that can differ within one AS: LOCAL_PREF, the
// originator, the reflector. Mostly the reflectors agree.
func best(routes map[netip.Addr]learnedRoute) netip.Addr {
	var chosen learnedRoute
	var from netip.Addr
	for peer, r := range routes {
		if !from.IsValid() || cmp.Or(cmp.Compare(chosen.localPref, r.localPref),
			r.originator.Compare(chosen.originator), peer.Compare(from)) < 0 {
			chosen, from = r, peer
		}
	}
	return chosen.via
}

// received notes that an End-of-RIB has come. After the last one the learner
// settles.
func (r *locRIB) received(e endOfRIB) {
	r.mu.Lock()
	delete(r.awaited, e)
	all := len(r.awaited) == 0
	r.mu.Unlock()
	if all {
		r.settle()
	}
}

// settle calls the learner's Settle once.
func (r *locRIB) settle() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.settled && r.learner != nil {
		r.settled = true
		r.learner.Settle()
	}
}

// end prevents a later Settle.
func (r *locRIB) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settled = true
}
