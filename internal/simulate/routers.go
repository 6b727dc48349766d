package simulate

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// The routers' times.
const (
	spread  = 5 * time.Millisecond // from a node to the core gateway
	restart = 120 * time.Second    // how long the reflectors keep the routes of a node whose sessions broke
	hold    = 9 * time.Second      // until the reflectors drop the routes of a node without power
)

// routers are the reflectors and the core gateway. They have the routes that each
// node announces.
type routers struct {
	spread time.Duration // from a node to the core gateway

	mu    sync.Mutex
	nodes []fabric.Node
	ribs  map[string]map[netip.Prefix]fabric.Route // by node
	on    map[string]*speaker                      // the speaker of each node
	last  map[string]*speaker                      // the last speaker of each node: its messages arrive even after its end
	seq   map[string]uint64                        // of the newest session, by node
}

func newRouters(all []fabric.Node, spread time.Duration) *routers {
	r := &routers{spread: spread, nodes: all, ribs: map[string]map[netip.Prefix]fabric.Route{}, on: map[string]*speaker{}, last: map[string]*speaker{}, seq: map[string]uint64{}}
	for _, n := range all {
		r.ribs[n.Name] = map[netip.Prefix]fabric.Route{}
	}
	return r
}

// best returns the node to which the core gateway sends packets for a prefix, or
// "".
func (r *routers) best(p netip.Prefix) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.first(p).Name
}

// first returns the node with the best route to a prefix, or the zero node. The
// caller holds r.mu.
func (r *routers) first(p netip.Prefix) (node fabric.Node) {
	var is fabric.Route
	for _, n := range r.nodes { // of two equal routes, that of the lower router ID is best
		route, has := r.ribs[n.Name][p]
		as, was := route.Preference.LocalPref(), is.Preference.LocalPref()
		if has && (node.Name == "" || as > was || as == was && route.First && !is.First) {
			node, is = n, route
		}
	}
	return node
}

// preference returns the preference with which a node announces a prefix, or the
// zero one.
func (r *routers) preference(node string, p netip.Prefix) fabric.Preference {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ribs[node][p].Preference
}

// several reports whether more than one node announces a prefix.
func (r *routers) several(p netip.Prefix) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, rib := range r.ribs {
		if _, has := rib[p]; has {
			n++
		}
	}
	return n > 1
}

// announcers lists the nodes that announce a prefix.
func (r *routers) announcers(p netip.Prefix) (names []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.nodes {
		if _, has := r.ribs[n.Name][p]; has {
			names = append(names, n.Name)
		}
	}
	return names
}

// open begins the sessions of a speaker. Its routes replace all earlier ones of its
// node.
func (r *routers) open(s *speaker) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq[s.node]++
	r.on[s.node], r.last[s.node] = s, s
	s.mu.Lock()
	s.opened = true
	before := r.ribs[s.node]
	r.ribs[s.node] = maps.Clone(s.routes)
	s.mu.Unlock()
	for p := range before {
		r.tell(p)
	}
	for p := range r.ribs[s.node] {
		r.tell(p)
	}
}

// lost breaks the sessions of a node. Its routes stay for restart or, if it lost
// its power, for hold.
func (r *routers) lost(node string, power bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq[node]++
	seq, after := r.seq[node], restart
	if power {
		after = hold
	}
	delete(r.on, node)
	time.AfterFunc(after, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.seq[node] != seq {
			return
		}
		gone := r.ribs[node]
		r.ribs[node] = map[netip.Prefix]fabric.Route{}
		for p := range gone {
			r.tell(p)
		}
	})
}

// take applies a speaker's message about a prefix. It ignores a message that is
// older than the last one.
func (r *routers) take(s *speaker, p netip.Prefix, route fabric.Route, has bool, seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last[s.node] != s || seq < s.taken[p] {
		return
	}
	s.taken[p] = seq
	if has {
		r.ribs[s.node][p] = route
	} else {
		delete(r.ribs[s.node], p)
	}
	r.tell(p)
}

// tell tells nodes of another node's route that is better than a normal one, as
// reflectors do. It tells only of the best route, once each time that such a route
// comes, or changes its holder.
func (r *routers) tell(p netip.Prefix) {
	first := r.first(p)
	for _, n := range r.nodes {
		s := r.on[n.Name]
		if s == nil {
			continue
		}
		for _, other := range r.nodes {
			if other.Name == n.Name {
				continue
			}
			route := r.ribs[other.Name][p]
			s.compete(p, other, route, other.Name == first.Name && route.Preference.LocalPref() > fabric.Normal.LocalPref())
		}
	}
}

// speaker passes an agent's announcements on to the routers, until the agent is
// killed.
type speaker struct {
	node        string
	routers     *routers
	changed     chan struct{}
	competitors chan fabric.Competitor

	mu     sync.Mutex
	routes map[netip.Prefix]fabric.Route
	told   map[competitor]fabric.Holder
	opened bool
	dead   bool
	said   uint64 // how many changes it has sent

	taken map[netip.Prefix]uint64 // the number of the last change that the routers applied; their lock guards it
}

type competitor struct {
	prefix netip.Prefix
	node   string
}

var errDead = errors.New("the process is gone")

func newSpeaker(node string, r *routers) *speaker {
	return &speaker{node: node, routers: r, changed: make(chan struct{}, 1), competitors: make(chan fabric.Competitor, 4096), routes: map[netip.Prefix]fabric.Route{}, told: map[competitor]fabric.Holder{}, taken: map[netip.Prefix]uint64{}}
}

// Actual implements [fabric.Speaker].
func (s *speaker) Actual(context.Context) ([]fabric.Route, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var routes []fabric.Route
	for _, p := range slices.SortedFunc(maps.Keys(s.routes), netip.Prefix.Compare) {
		routes = append(routes, s.routes[p])
	}
	return routes, nil
}

// Put implements [fabric.Speaker].
func (s *speaker) Put(_ context.Context, routes ...fabric.Route) error {
	return s.change(func() (all []netip.Prefix) {
		for _, r := range routes {
			if have, there := s.routes[r.Prefix]; !there || have != r {
				s.routes[r.Prefix] = r
				all = append(all, r.Prefix)
			}
		}
		return all
	})
}

// Remove implements [fabric.Speaker].
func (s *speaker) Remove(_ context.Context, prefixes ...netip.Prefix) error {
	return s.change(func() (all []netip.Prefix) {
		for _, p := range prefixes {
			if _, there := s.routes[p]; there {
				delete(s.routes, p)
				all = append(all, p)
			}
		}
		return all
	})
}

func (s *speaker) change(f func() []netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return errDead
	}
	for _, p := range f() {
		if s.opened {
			s.said++
			route, has := s.routes[p]
			seq := s.said
			time.AfterFunc(s.routers.spread, func() { s.routers.take(s, p, route, has, seq) })
		}
	}
	return nil
}

// Changed implements [fabric.Speaker].
func (s *speaker) Changed() <-chan struct{} { return s.changed }

// Sessions implements [fabric.Speaker]. It is not supported.
func (*speaker) Sessions(context.Context) ([]fabric.Session, error) {
	return nil, errors.ErrUnsupported
}

// Advertisements implements [fabric.Speaker]. It is not supported.
func (*speaker) Advertisements(context.Context, netip.Prefix) ([]fabric.Advertisement, error) {
	return nil, errors.ErrUnsupported
}

// Received implements [fabric.Speaker]. It is not supported.
func (*speaker) Received(context.Context, ...netip.Prefix) ([]fabric.ReceivedRoute, error) {
	return nil, errors.ErrUnsupported
}

// Competitors implements [fabric.Speaker].
func (s *speaker) Competitors() <-chan fabric.Competitor { return s.competitors }

// Diagnose implements [fabric.Speaker].
func (s *speaker) Diagnose(context.Context) []string { return nil }

// compete emits that another node has a better route to a prefix of this speaker,
// or has it no more.
func (s *speaker) compete(p netip.Prefix, other fabric.Node, route fabric.Route, has bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := competitor{p, other.Name}
	_, own := s.routes[p]
	was, told := s.told[k]
	switch {
	case !has && told:
		delete(s.told, k)
		s.competitors <- fabric.Competitor{Prefix: p, Via: other.Address, Reflector: "rr1", Gone: true, At: time.Now()}
	case !has:
	case own && !told, told && was != route.Holder:
		s.told[k] = route.Holder
		s.competitors <- fabric.Competitor{Prefix: p, Via: other.Address, Preference: route.Preference, Reflector: "rr1", Holder: route.Holder, At: time.Now()}
	}
}

// die ends the speaker. Later announcements of its agent fail.
func (s *speaker) die() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = true
}
