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

// Competitors implements [fabric.Speaker]. The channel is never closed. One who
// does not read holds up nobody: of each prefix and reflector the newest waits,
// and none that has gone or that concerns a prefix withdrawn here meanwhile. Of
// one that was handed out it is told that it has gone, whatever is announced here.
func (s *Speaker) Competitors() <-chan fabric.Competitor { return s.in.competitors.out }

// competitors are the better routes of other nodes to prefixes that this one
// announces, on their way to whoever listens. The mutex of the ribIn guards it.
type competitors struct {
	names   map[netip.Addr]string // of the reflectors
	out     chan fabric.Competitor
	wake    chan struct{}
	own     map[netip.Prefix]bool // announced here
	waiting []competing           // in their order
	news    map[competing]fabric.Competitor
	given   map[competing]fabric.Competitor // handed out last, and not gone since
}

// competing is who says that somebody has a better route, and to what.
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

// better reports whether a route comes before those that nodes announce usually.
func (h heard) better() bool { return h.localPref > fabric.Normal.LocalPref() }

// emit has a route told, in the place of an earlier one of the same reflector.
func (v *competitors) emit(p netip.Prefix, peer netip.Addr, h heard) {
	v.put(competing{p, peer}, fabric.Competitor{
		Prefix: p, Via: h.via, Preference: fabric.Preference(h.localPref), Reflector: v.names[peer], Holder: h.holder, At: time.Now(),
	})
}

// put has something told.
func (v *competitors) put(k competing, r fabric.Competitor) {
	if _, waits := v.news[k]; !waits {
		v.waiting = append(v.waiting, k)
	}
	v.news[k] = r
	v.signal()
}

// retract takes back what has not been told yet, and has it told that what was
// told has gone.
func (v *competitors) retract(p netip.Prefix, peer netip.Addr) {
	k := competing{p, peer}
	if r, told := v.given[k]; told {
		r.Gone, r.At = true, time.Now()
		v.put(k, r)
		return
	}
	v.drop(k)
}

// drop takes back what has not been told yet, unless that is that something has gone.
func (v *competitors) drop(k competing) {
	if r, waits := v.news[k]; waits && !r.Gone {
		delete(v.news, k)
		v.signal()
	}
}

// emitted notes that a competitor was handed out.
func (v *competitors) emitted(k competing, r fabric.Competitor) {
	newer, waits := v.news[k]
	if waits && newer == r {
		delete(v.news, k)
	}
	if r.Gone {
		delete(v.given, k)
		return
	}
	if v.given[k] = r; !waits { // it was taken back at this very moment
		v.retract(k.prefix, k.peer)
	}
}

func (v *competitors) signal() {
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// next gives what is to be told next, of which only the newest counts.
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

// emitCompetitors hands out what is to be told until ctx ends.
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

// lookEvery is how often it is looked up whether what was told is still there.
const lookEvery = time.Second

// lookUpCompetitors finds out, until ctx ends, that a reflector has a better route no
// more, where it did not say so. FRR sends a node its own route back, once that is
// the best, in the place of the other node's. GoBGP ignores it, as RFC 4456 (8)
// asks, with all that it replaces, and tells nobody: its Adj-RIB-In alone shows it.
func (s *Speaker) lookUpCompetitors(ctx context.Context, b *server.BgpServer) {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		told, updates := s.in.emittedCompetitors()
		for _, k := range told {
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

// has reports whether a reflector has another node's route, as far as it has said.
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

// emittedCompetitors lists what was told and has not gone, and how many updates there were.
func (r *ribIn) emittedCompetitors() (told []competing, updates uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.competitors.given)), r.updates
}

// replaced forgets a route that a reflector has no more, as of a number of updates.
func (r *ribIn) replaced(k competing, updates uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.updates == updates { // else it may have come again
		r.drop(k.prefix, k.peer)
		r.tell(k.prefix)
	}
}

// announcing notes what this node announces from now on, and tells who has a
// better route to it.
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

// withdrawn notes what this node announces no more.
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

// compete tells a route that has come, or is not as it was, where it is better
// than what this node announces, or takes the place of one that was told. r.mu is held.
func (r *ribIn) compete(p netip.Prefix, peer netip.Addr, was, is heard) {
	_, told := r.competitors.given[competing{p, peer}]
	if is.better() && (r.competitors.own[p] || told) && (was.via != is.via || was.localPref != is.localPref || was.holder != is.holder) {
		r.competitors.emit(p, peer, is)
	}
}
