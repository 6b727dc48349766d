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

// Learner is told where the guests of other nodes are. Calls come one at a
// time, and are not to wait for anything. The kernel's FIB is one.
type Learner interface {
	// Put says that a prefix is behind the node at via, and not any more where
	// it was before.
	Put(p netip.Prefix, via netip.Addr)
	Remove(p netip.Prefix) // nobody announces it any more
	// Settle says, once, that everything has been told that there was to learn
	// at the start: all reflectors have sent End-of-RIB (RFC 4724) for both
	// families, or the restart time is over.
	Settle()
}

// WithLearner has the speaker tell l the routes that the reflectors have of
// other nodes: of each prefix the best one, by LOCAL_PREF, then the lowest
// originator. It takes only what a node may announce in the cluster, with all
// of its communities. The speaker's own routes are not told, and make no
// difference to those that are: which of the two counts is for l to know.
// Where l is a [fabric.Diagnoser], so is the speaker for it.
func WithLearner(l Learner) Option { return func(s *Speaker) { s.learner = l } }

// Diagnose implements [fabric.Diagnoser]: it says what ails the learner.
func (s *Speaker) Diagnose(ctx context.Context) []string {
	if d, ok := s.learner.(fabric.Diagnoser); ok {
		return d.Diagnose(ctx)
	}
	return nil
}

// ribIn is what each reflector has said of other nodes' routes. GoBGP's own
// table of the best has none of them (see ownOnly): the choice is made here,
// among the learned alone. Without a learner it has only the routes that come
// before what this node announces, whether it announces them or not.
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
	routes   map[netip.Prefix]map[netip.Addr]heard // by reflector
	updates  uint64                                // how many there were
	told     map[netip.Prefix]netip.Addr
	sessions map[netip.Addr]int // how many there have been, by reflector
	awaited  map[awaited]bool   // what is to come before all is told
	settled  bool
}

// heard is one reflector's route to a prefix.
type heard struct {
	via        netip.Addr
	localPref  uint32
	originator netip.Addr
	holder     fabric.Holder
	session    int // in which it was heard last
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
		routes:  map[netip.Prefix]map[netip.Addr]heard{}, told: map[netip.Prefix]netip.Addr{},
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

// watch gives what GoBGP is to tell: what comes in, what it drops itself when a
// session ends or a peer does not come back, and End-of-RIB.
func (r *ribIn) watch(c *server.WatchEventMessageCallbacks) []server.WatchOption {
	c.OnPathUpdate = func(paths []*apiutil.Path, _ time.Time) { r.update(paths) }
	c.OnPathEor = func(eor *apiutil.Path, _ time.Time) { r.endOfRIB(eor.PeerAddress, eor.Family) }
	return []server.WatchOption{server.WatchUpdate(false, "", ""), server.WatchAdjInWithdraw(), server.WatchEor(false)}
}

// settleAfter bounds the wait for the reflectors.
func (r *ribIn) settleAfter(ctx context.Context, most time.Duration) {
	if backoff.Sleep(ctx, most) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.settle()
	}
}

// end stops the telling.
func (r *ribIn) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settled = true
}

// opened notes that a session is up: what the reflector does not tell again
// before its End-of-RIB is not so any more (RFC 4724, 4.2). GoBGP drops it too,
// without a word to those who watch what comes in.
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

// endOfRIB drops what a reflector had in an earlier session and has no more.
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

// settle is said once. r.mu is held.
func (r *ribIn) settle() {
	if !r.settled && r.learner != nil {
		r.settled = true
		r.learner.Settle()
	}
}

// drop forgets a reflector's route. r.mu is held.
func (r *ribIn) drop(p netip.Prefix, peer netip.Addr) {
	if delete(r.routes[p], peer); len(r.routes[p]) == 0 {
		delete(r.routes, p)
	}
	r.competitors.retract(p, peer)
}

// tell tells the learner where a prefix is now, if that is news. r.mu is held.
func (r *ribIn) tell(p netip.Prefix) {
	if r.learner == nil {
		return
	}
	via := best(r.routes[p])
	switch {
	case via == r.told[p]:
	case via.IsValid():
		r.told[p] = via
		r.learner.Put(p, via)
	default:
		delete(r.told, p)
		r.learner.Remove(p)
	}
}

// best chooses among what the reflectors say of a prefix, by what RFC 4271
// (9.1.2.2) and RFC 4456 (9) leave to choose by in one AS: LOCAL_PREF, the
// originator, the reflector. Most often they say the same.
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

// hear reads a path; ok is false for one that is withdrawn or not acceptable.
// r.mu is held.
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
	case h.via.Is4In6(): // of a node without an IPv6 address, which no kernel can use
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

// communitiesOf gives large communities in the terms of the cluster.
func communitiesOf(large []*bgp.LargeCommunity) []fabric.Community {
	all := make([]fabric.Community, len(large))
	for i, c := range large {
		all[i] = fabric.Community{Large: true, A: c.ASN, B: c.LocalData1, C: c.LocalData2}
	}
	return all
}

// defaultLocalPref is that of a path which came without (RFC 4271, 9.1.1).
const defaultLocalPref = 100

// announceable reports whether a node of the cluster may announce the prefix.
func (r *ribIn) announceable(p netip.Prefix) bool {
	return slices.ContainsFunc(r.allowed, func(a fabric.PrefixRange) bool { return a.Contains(p) }) &&
		!slices.ContainsFunc(r.barred, func(x netip.Prefix) bool { return x.Bits() <= p.Bits() && x.Contains(p.Addr()) })
}

// marked reports whether all of the cluster's communities are there.
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
