package gobgp

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/backoff"
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

// ribIn has each reflector's routes of other nodes. GoBGP's table of the best
// routes has none of them (see ownOnly), so ribIn chooses the best among the
// learned ones. Without a learner it keeps only the routes that rank before a usual
// announcement, whether or not this node announces the prefix.
type ribIn struct {
	learner     Learner // nil: none
	competitors *competitors
	log         *slog.Logger
	cluster     fabric.Cluster
	node        fabric.Node
	allowed     []fabric.PrefixRange
	barred      []netip.Prefix
	plain       []uint32
	large       []bgp.LargeCommunity

	mu       sync.Mutex
	routes   map[netip.Prefix]map[netip.Addr]heard // by prefix and reflector
	updates  uint64                                // the number of updates so far
	reported map[netip.Prefix]netip.Addr
	sessions map[netip.Addr]int // the number of sessions so far, by reflector
	awaited  map[awaited]bool   // the End-of-RIBs that must come before Settle
	settled  bool
}

// heard is one reflector's route to a prefix.
type heard struct {
	via        netip.Addr
	localPref  uint32
	originator netip.Addr
	holder     fabric.Holder
	session    int // the session in which it came last
}

// awaited is the End-of-RIB of a reflector for a family.
type awaited struct {
	peer   netip.Addr
	family bgp.Family
}

func newRIBIn(l Learner, c fabric.Cluster, n fabric.Node, log *slog.Logger) *ribIn {
	r := &ribIn{
		learner: l, competitors: newCompetitors(c), log: log, cluster: c, node: n,
		allowed: slices.Concat(c.Announceable(false), c.Announceable(true)),
		barred:  slices.Concat(c.Excluded(false), c.Excluded(true)),
		routes:  map[netip.Prefix]map[netip.Addr]heard{}, reported: map[netip.Prefix]netip.Addr{},
		sessions: map[netip.Addr]int{}, awaited: map[awaited]bool{},
	}
	for _, community := range c.Communities {
		if community.Large {
			r.large = append(r.large, bgp.LargeCommunity{ASN: community.A, LocalData1: community.B, LocalData2: community.C})
		} else {
			r.plain = append(r.plain, community.A<<16|community.B)
		}
	}
	for _, rr := range c.Reflectors {
		for _, family := range []bgp.Family{bgp.RF_IPv4_UC, bgp.RF_IPv6_UC} {
			r.awaited[awaited{rr.Address, family}] = true
		}
	}
	return r
}

// watch sets the callbacks, and returns the options, for the events that ribIn
// needs from GoBGP: updates, routes that GoBGP drops when a session ends or a peer
// does not come back, and End-of-RIB.
func (r *ribIn) watch(c *server.WatchEventMessageCallbacks) []server.WatchOption {
	c.OnPathUpdate = func(paths []*apiutil.Path, _ time.Time) { r.update(paths) }
	c.OnPathEor = func(eor *apiutil.Path, _ time.Time) { r.endOfRIB(eor.PeerAddress, eor.Family) }
	return []server.WatchOption{server.WatchUpdate(false, "", ""), server.WatchAdjInWithdraw(), server.WatchEor(false)}
}

// settleAfter settles after a time even if a reflector sends no End-of-RIB.
func (r *ribIn) settleAfter(ctx context.Context, most time.Duration) {
	if backoff.Sleep(ctx, most) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.settle()
	}
}

// end prevents a later Settle.
func (r *ribIn) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settled = true
}

// opened notes that a session is up. Routes that the reflector does not send again
// before its End-of-RIB are then gone (RFC 4724, 4.2). GoBGP drops them too, but
// emits no event.
func (r *ribIn) opened(peer netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sessions[peer]++
}

func (r *ribIn) update(paths []*apiutil.Path) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.updates++
	for _, p := range paths {
		nlri, ok := p.Nlri.(*bgp.IPAddrPrefix)
		if !ok {
			continue
		}
		was := r.routes[nlri.Prefix][p.PeerAddress]
		if h, ok := r.hear(nlri.Prefix, p); ok && (r.learner != nil || h.better()) {
			if r.routes[nlri.Prefix] == nil {
				r.routes[nlri.Prefix] = map[netip.Addr]heard{}
			}
			r.routes[nlri.Prefix][p.PeerAddress] = h
			r.compete(nlri.Prefix, p.PeerAddress, was, h)
			if !h.better() {
				r.competitors.retract(nlri.Prefix, p.PeerAddress)
			}
		} else {
			r.drop(nlri.Prefix, p.PeerAddress)
		}
		r.tell(nlri.Prefix)
	}
}

// endOfRIB drops the routes that a reflector had in an earlier session and has not
// sent in this one.
func (r *ribIn) endOfRIB(peer netip.Addr, family bgp.Family) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p, routes := range r.routes {
		if p.Addr().Is4() != (family == bgp.RF_IPv4_UC) {
			continue
		}
		if h, ok := routes[peer]; ok && h.session != r.sessions[peer] {
			r.drop(p, peer)
			r.tell(p)
		}
	}
	if delete(r.awaited, awaited{peer, family}); len(r.awaited) == 0 {
		r.settle()
	}
}

// settle calls the learner's Settle once. The caller holds r.mu.
func (r *ribIn) settle() {
	if !r.settled && r.learner != nil {
		r.settled = true
		r.learner.Settle()
	}
}

// drop drops a reflector's route. The caller holds r.mu.
func (r *ribIn) drop(p netip.Prefix, peer netip.Addr) {
	if delete(r.routes[p], peer); len(r.routes[p]) == 0 {
		delete(r.routes, p)
	}
	r.competitors.retract(p, peer)
}

// tell passes the best route to a prefix to the learner if it has changed. The
// caller holds r.mu.
func (r *ribIn) tell(p netip.Prefix) {
	if r.learner == nil {
		return
	}
	via := best(r.routes[p])
	switch {
	case via == r.reported[p]:
	case via.IsValid():
		r.reported[p] = via
		r.learner.Put(p, via)
	default:
		delete(r.reported, p)
		r.learner.Remove(p)
	}
}

// best chooses among the reflectors' routes to a prefix by the criteria of RFC 4271
// (9.1.2.2) and RFC 4456 (9) that can differ within one AS: LOCAL_PREF, the
// originator, the reflector. Mostly the reflectors agree.
func best(routes map[netip.Addr]heard) netip.Addr {
	var chosen heard
	var from netip.Addr
	for peer, h := range routes {
		if !from.IsValid() || cmp.Or(cmp.Compare(chosen.localPref, h.localPref),
			h.originator.Compare(chosen.originator), peer.Compare(from)) < 0 {
			chosen, from = h, peer
		}
	}
	return chosen.via
}

// hear reads a path; ok is false for a withdrawal or a route that is not
// acceptable. The caller holds r.mu.
func (r *ribIn) hear(prefix netip.Prefix, p *apiutil.Path) (h heard, ok bool) {
	if p.Withdrawal {
		return heard{}, false
	}
	h = heard{localPref: defaultLocalPref, originator: p.PeerID, session: r.sessions[p.PeerAddress]}
	var plain []uint32
	var large []*bgp.LargeCommunity
	for _, a := range p.Attrs {
		switch a := a.(type) {
		case *bgp.PathAttributeNextHop:
			h.via = a.Value
		case *bgp.PathAttributeMpReachNLRI:
			h.via = a.Nexthop
		case *bgp.PathAttributeLocalPref:
			h.localPref = a.Value
		case *bgp.PathAttributeOriginatorId:
			h.originator = a.Value
		case *bgp.PathAttributeCommunities:
			plain = a.Value
		case *bgp.PathAttributeLargeCommunities:
			large = a.Values
		}
	}
	why := ""
	switch {
	case !r.announceable(prefix):
		why = "not of the cluster"
	case !h.via.IsValid() || h.via.IsUnspecified() || h.via == r.node.Address || h.via == r.node.Address6:
		why = "next hop"
	case h.via.Is4In6(): // from a node without an IPv6 address; no kernel can use it
		why = "IPv4-mapped next hop"
	case !r.marked(plain, large):
		why = "a community is missing"
	default:
		h.holder = r.cluster.HolderOf(communitiesOf(large))
		return h, true
	}
	r.log.Debug("route not taken", "prefix", prefix, "via", h.via, "peer", p.PeerAddress, "why", why)
	return heard{}, false
}

// communitiesOf returns large communities in the terms of the cluster.
func communitiesOf(large []*bgp.LargeCommunity) []fabric.Community {
	all := make([]fabric.Community, len(large))
	for i, c := range large {
		all[i] = fabric.Community{Large: true, A: c.ASN, B: c.LocalData1, C: c.LocalData2}
	}
	return all
}

// defaultLocalPref is the LOCAL_PREF of a path that came without one (RFC 4271,
// 9.1.1).
const defaultLocalPref = 100

// announceable reports whether a node of the cluster may announce the prefix.
func (r *ribIn) announceable(p netip.Prefix) bool {
	return slices.ContainsFunc(r.allowed, func(a fabric.PrefixRange) bool { return a.Contains(p) }) &&
		!slices.ContainsFunc(r.barred, func(x netip.Prefix) bool { return x.Bits() <= p.Bits() && x.Contains(p.Addr()) })
}

// marked reports whether a route has all of the cluster's communities.
func (r *ribIn) marked(plain []uint32, large []*bgp.LargeCommunity) bool {
	for _, c := range r.plain {
		if !slices.Contains(plain, c) {
			return false
		}
	}
	for _, c := range r.large {
		if !slices.ContainsFunc(large, func(have *bgp.LargeCommunity) bool { return *have == c }) {
			return false
		}
	}
	return true
}
