package gobgp

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"
)

// adjRIBIn has each reflector's routes of other nodes. GoBGP's table of the best
// routes has none of them (see ownOnly), so adjRIBIn passes every change on to the
// speaker's own table of the best routes, and to the competing routes. Without a
// learner it keeps only the routes that rank before a usual announcement, whether or
// not this node announces the prefix. It is safe for concurrent use.
type adjRIBIn struct {
	filter      atomic.Pointer[importFilter]
	outdated    atomic.Bool // the filter has changed since the routes were taken
	best        *locRIB
	competitors *competitors

	mu       sync.Mutex
	routes   map[netip.Prefix]map[netip.Addr]learnedRoute // by prefix and reflector
	updates  uint64                                       // the number of updates so far
	sessions map[netip.Addr]int                           // the number of sessions so far, by reflector
}

func newAdjRIBIn(filter importFilter, best *locRIB, c *competitors) *adjRIBIn {
	r := &adjRIBIn{
		best: best, competitors: c,
		routes: map[netip.Prefix]map[netip.Addr]learnedRoute{}, sessions: map[netip.Addr]int{},
	}
	r.filter.Store(&filter)
	return r
}

// watch sets the callbacks, and returns the options, for the events that adjRIBIn
// needs from GoBGP: updates, routes that GoBGP drops when a session ends or a peer
// does not come back, and End-of-RIB.
func (r *adjRIBIn) watch(c *server.WatchEventMessageCallbacks) []server.WatchOption {
	c.OnPathUpdate = func(paths []*apiutil.Path, _ time.Time) { r.update(paths) }
	c.OnPathEor = func(eor *apiutil.Path, _ time.Time) { r.endOfRIB(endOfRIB{eor.PeerAddress, eor.Family}) }
	return []server.WatchOption{server.WatchUpdate(false, "", ""), server.WatchAdjInWithdraw(), server.WatchEor(false)}
}

// sessionUp notes that a session is up. Routes that the reflector does not send again
// before its End-of-RIB are then gone (RFC 4724, 4.2). GoBGP drops them too, but
// emits no event.
func (r *adjRIBIn) sessionUp(peer netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sessions[peer]++
}

func (r *adjRIBIn) update(paths []*apiutil.Path) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.updates++
	r.take(paths)
}

// take handles paths, of which each is the newest of its prefix from its peer.
func (r *adjRIBIn) take(paths []*apiutil.Path) {
	for _, p := range paths {
		nlri, ok := p.Nlri.(*bgp.IPAddrPrefix)
		if !ok {
			continue
		}
		k := competing{nlri.Prefix, p.PeerAddress}
		was := r.routes[k.prefix][k.peer]
		if is, ok := r.filter.Load().accept(k.prefix, p); ok && (r.best.learner != nil || is.preferred()) {
			is.session = r.sessions[k.peer]
			if r.routes[k.prefix] == nil {
				r.routes[k.prefix] = map[netip.Addr]learnedRoute{}
			}
			r.routes[k.prefix][k.peer] = is
			r.competitors.update(k, was, is)
			r.best.update(k.prefix, r.routes[k.prefix])
		} else {
			r.drop(k)
		}
	}
}

// endOfRIB drops the routes that a reflector had in an earlier session and has not
// sent in this one.
func (r *adjRIBIn) endOfRIB(e endOfRIB) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p, routes := range r.routes {
		if familyOf(p) != e.family {
			continue
		}
		if have, ok := routes[e.peer]; ok && have.session != r.sessions[e.peer] {
			r.drop(competing{p, e.peer})
		}
	}
	r.best.received(e)
}

// drop drops a reflector's route, and passes its end on.
func (r *adjRIBIn) drop(k competing) {
	if delete(r.routes[k.prefix], k.peer); len(r.routes[k.prefix]) == 0 {
		delete(r.routes, k.prefix)
	}
	r.competitors.gone(k)
	r.best.update(k.prefix, r.routes[k.prefix])
}

// announced notes a prefix that this node announces.
func (r *adjRIBIn) announced(p netip.Prefix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.competitors.announced(p, r.routes[p])
}

// withdrawn notes the prefixes that this node no longer announces.
func (r *adjRIBIn) withdrawn(prefixes ...netip.Prefix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range prefixes {
		r.competitors.withdrawn(p, r.routes[p])
	}
}

// lookUpInterval is how often the speaker looks up whether the competing routes that
// the reader has are still there.
const lookUpInterval = time.Second

// lookUp finds, until ctx ends, the competing routes that a reflector has replaced
// without a withdrawal. FRR sends a node its own route back once that route is the
// best, in place of the other node's. GoBGP ignores such an update, as RFC 4456 (8)
// asks, drops the route that it replaces, and emits no event: only its Adj-RIB-In
// shows it.
func (r *adjRIBIn) lookUp(ctx context.Context, b *server.BgpServer) {
	tick := time.NewTicker(lookUpInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		delivered, updates := r.deliveredCompetitors()
		for _, k := range delivered {
			there, err := r.has(b, k)
			if err != nil {
				r.filter.Load().log.Debug("competing route not looked up", "prefix", k.prefix, "peer", k.peer, "err", err)
				continue
			}
			if !there {
				r.replaced(k, updates)
			}
		}
	}
}

// has reports whether GoBGP's Adj-RIB-In has another node's route from a reflector.
func (r *adjRIBIn) has(b *server.BgpServer, k competing) (there bool, err error) {
	err = received(b, k.peer.String(), k.prefix, func(p *apiutil.Path) {
		_, ok := r.filter.Load().accept(k.prefix, p)
		there = there || ok
	})
	return there, err
}

// deliveredCompetitors lists the routes that the reader has and that have not gone,
// and the number of updates so far.
func (r *adjRIBIn) deliveredCompetitors() (delivered []competing, updates uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.competitors.current(), r.updates
}

// replaced drops a route that the reflector has replaced, unless an update has come
// since the route was looked up.
func (r *adjRIBIn) replaced(k competing, updates uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.updates == updates { // an update in between may have brought it again
		r.drop(k)
	}
}
