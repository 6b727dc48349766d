package gobgp

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/vmfabric/vmfabric/fabric"
)

// Competitors implements [fabric.Speaker]. The channel is never closed, and a slow
// reader holds up nobody. For each prefix and reflector only the newest competing
// route waits for the reader. A waiting one is dropped if it goes, or if this node
// withdraws the prefix. If a route that the reader has received goes, the reader
// gets that too, whether or not this node still announces the prefix.
func (s *Speaker) Competitors() <-chan fabric.Competitor { return s.in.competitors.out }

// competitors has the better routes of other nodes to prefixes that this node
// announces, until the reader of Competitors receives them. The mutex of the ribIn
// guards it.
type competitors struct {
	names   map[netip.Addr]string // reflectors by address
	out     chan fabric.Competitor
	wake    chan struct{}
	own     map[netip.Prefix]bool // the prefixes that this node announces
	waiting []competing           // the order in which the news are handed out
	news    map[competing]fabric.Competitor
	given   map[competing]fabric.Competitor // the last ones that the reader received, unless they have gone
}

// competing names a competing route by its prefix and the reflector that has it.
type competing struct {
	prefix netip.Prefix
	peer   netip.Addr
}

func newCompetitors(c fabric.Cluster) *competitors {
	v := &competitors{
		names: map[netip.Addr]string{}, out: make(chan fabric.Competitor), wake: make(chan struct{}, 1),
		own: map[netip.Prefix]bool{}, news: map[competing]fabric.Competitor{}, given: map[competing]fabric.Competitor{},
	}
	for _, rr := range c.Reflectors {
		v.names[rr.Address] = rr.Name
	}
	return v
}

// better reports whether a route ranks before the routes that nodes usually
// announce.
func (h heard) better() bool { return h.localPref > fabric.Normal.LocalPref() }

// emit queues a route for the reader. It replaces an earlier one of the same
// reflector.
func (v *competitors) emit(p netip.Prefix, peer netip.Addr, h heard) {
	v.put(competing{p, peer}, fabric.Competitor{
		Prefix: p, Via: h.via, Preference: fabric.Preference(h.localPref), Reflector: v.names[peer], Holder: h.holder, At: time.Now(),
	})
}

// put queues news for the reader.
func (v *competitors) put(k competing, r fabric.Competitor) {
	if _, waits := v.news[k]; !waits {
		v.waiting = append(v.waiting, k)
	}
	v.news[k] = r
	v.signal()
}

// retract drops a route that waits for the reader. If the reader has it, retract
// queues that it has gone.
func (v *competitors) retract(p netip.Prefix, peer netip.Addr) {
	k := competing{p, peer}
	if r, reported := v.given[k]; reported {
		r.Gone, r.At = true, time.Now()
		v.put(k, r)
		return
	}
	v.drop(k)
}

// drop drops a route that waits for the reader, unless the news are that it has
// gone.
func (v *competitors) drop(k competing) {
	if r, waits := v.news[k]; waits && !r.Gone {
		delete(v.news, k)
		v.signal()
	}
}

// emitted notes that the reader received a competitor.
func (v *competitors) emitted(k competing, r fabric.Competitor) {
	newer, waits := v.news[k]
	if waits && newer == r {
		delete(v.news, k)
	}
	if r.Gone {
		delete(v.given, k)
		return
	}
	if v.given[k] = r; !waits { // it was dropped while the reader received it
		v.retract(k.prefix, k.peer)
	}
}

func (v *competitors) signal() {
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// next returns the oldest news that wait for the reader.
func (v *competitors) next() (fabric.Competitor, bool) {
	for len(v.waiting) > 0 {
		if r, there := v.news[v.waiting[0]]; there {
			return r, true
		}
		v.waiting = v.waiting[1:]
	}
	v.waiting = nil
	return fabric.Competitor{}, false
}

// emitCompetitors hands the waiting news to the reader until ctx ends.
func (r *ribIn) emitCompetitors(ctx context.Context) {
	v := r.competitors
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
			v.emitted(v.waiting[0], next)
			r.mu.Unlock()
		}
	}
}

// lookEvery is how often the speaker looks up whether the emitted routes are still
// there.
const lookEvery = time.Second

// lookUpCompetitors finds, until ctx ends, the competing routes that a reflector
// has replaced without a withdrawal. FRR sends a node its own route back once that
// route is the best, in place of the other node's. GoBGP ignores such an update, as
// RFC 4456 (8) asks, drops the route that it replaces, and emits no event: only its
// Adj-RIB-In shows it.
func (s *Speaker) lookUpCompetitors(ctx context.Context, b *server.BgpServer) {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		reported, updates := s.in.emittedCompetitors()
		for _, k := range reported {
			there, err := s.has(b, k)
			if err != nil {
				s.log.Debug("competing route not looked up", "prefix", k.prefix, "peer", k.peer, "err", err)
				continue
			}
			if !there {
				s.in.replaced(k, updates)
			}
		}
	}
}

// has reports whether GoBGP's Adj-RIB-In has another node's route from a reflector.
func (s *Speaker) has(b *server.BgpServer, k competing) (there bool, err error) {
	family := bgp.RF_IPv4_UC
	if k.prefix.Addr().Is6() {
		family = bgp.RF_IPv6_UC
	}
	err = b.ListPath(apiutil.ListPathRequest{
		TableType: api.TableType_TABLE_TYPE_ADJ_IN, Name: k.peer.String(), Family: family,
		Prefixes: []*apiutil.LookupPrefix{{Prefix: k.prefix.String()}},
	}, func(nlri bgp.NLRI, paths []*apiutil.Path) {
		p, ok := nlri.(*bgp.IPAddrPrefix)
		there = there || ok && p.Prefix == k.prefix && slices.ContainsFunc(paths, func(p *apiutil.Path) bool {
			s.in.mu.Lock()
			defer s.in.mu.Unlock()
			_, ok := s.in.hear(k.prefix, p)
			return ok
		})
	})
	return there, err
}

// emittedCompetitors lists the routes that the reader has and that have not gone,
// and the number of updates so far.
func (r *ribIn) emittedCompetitors() (reported []competing, updates uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.competitors.given)), r.updates
}

// replaced drops a route that the reflector has replaced, unless an update has come
// since the route was looked up.
func (r *ribIn) replaced(k competing, updates uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.updates == updates { // an update in between may have brought it again
		r.drop(k.prefix, k.peer)
		r.tell(k.prefix)
	}
}

// announcing notes the prefixes that this node announces from now on, and emits the
// better routes to them.
func (r *ribIn) announcing(prefixes ...netip.Prefix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range prefixes {
		if r.competitors.own[p] {
			continue
		}
		r.competitors.own[p] = true
		for peer, h := range r.routes[p] {
			if h.better() {
				r.competitors.emit(p, peer, h)
			}
		}
	}
}

// withdrawn notes the prefixes that this node no longer announces.
func (r *ribIn) withdrawn(prefixes ...netip.Prefix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range prefixes {
		delete(r.competitors.own, p)
		for peer := range r.routes[p] {
			r.competitors.drop(competing{p, peer})
		}
	}
}

// compete emits a new or changed route if it is better and this node announces the
// prefix, or if the reader has an earlier route of the same reflector. The caller
// holds r.mu.
func (r *ribIn) compete(p netip.Prefix, peer netip.Addr, was, is heard) {
	_, reported := r.competitors.given[competing{p, peer}]
	if is.better() && (r.competitors.own[p] || reported) && (was.via != is.via || was.localPref != is.localPref || was.holder != is.holder) {
		r.competitors.emit(p, peer, is)
	}
}
