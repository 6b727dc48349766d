package gobgp

import (
	"log/slog"
	"net/netip"
	"slices"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/vmfabric/vmfabric/fabric"
)

// importFilter accepts the routes of other nodes that a node may announce in the
// cluster. It does not change, and is safe for concurrent use.
type importFilter struct {
	cfg      Config
	log      *slog.Logger
	allowed  []fabric.PrefixRange
	excluded []netip.Prefix
	plain    []uint32 // the cluster's communities
	large    []*bgp.LargeCommunity
}

func newImportFilter(cfg Config, log *slog.Logger) importFilter {
	c := cfg.Cluster
	plain, large := splitCommunities(c.Communities)
	return importFilter{
		cfg: cfg, log: log,
		allowed:  slices.Concat(c.Announceable(false), c.Announceable(true)),
		excluded: slices.Concat(c.Excluded(false), c.Excluded(true)),
		plain:    plain, large: large,
	}
}

// learnedRoute is one reflector's route to a prefix.
type learnedRoute struct {
	via        netip.Addr
	localPref  uint32
	originator netip.Addr
	holder     fabric.Holder
	session    int // the session in which it came last
}

// preferred reports whether a route ranks before the routes that nodes usually
// announce.
func (r learnedRoute) preferred() bool { return r.localPref > fabric.Normal.LocalPref() }

// defaultLocalPref is the LOCAL_PREF of a path that came without one (RFC 4271,
// 9.1.1).
const defaultLocalPref = 100

// accept reads a path; ok is false for a withdrawal or a route that is not
// acceptable.
func (f *importFilter) accept(prefix netip.Prefix, p *apiutil.Path) (r learnedRoute, ok bool) {
	if p.Withdrawal {
		return learnedRoute{}, false
	}
	r = learnedRoute{via: nextHop(p), localPref: defaultLocalPref, originator: p.PeerID}
	var plain []uint32
	var large []*bgp.LargeCommunity
	for _, a := range p.Attrs {
		switch a := a.(type) {
		case *bgp.PathAttributeLocalPref:
			r.localPref = a.Value
		case *bgp.PathAttributeOriginatorId:
			r.originator = a.Value
		case *bgp.PathAttributeCommunities:
			plain = a.Value
		case *bgp.PathAttributeLargeCommunities:
			large = a.Values
		}
	}
	why := ""
	switch {
	case !f.announceable(prefix):
		why = "not of the cluster"
	case !r.via.IsValid() || r.via.IsUnspecified() || r.via == f.cfg.Node.Address || r.via == f.cfg.Node.Address6:
		why = "next hop"
	case r.via.Is4In6(): // from a node without an IPv6 address; no kernel can use it
		why = "IPv4-mapped next hop"
	case !f.hasCommunities(plain, large):
		why = "a community is missing"
	default:
		r.holder = f.cfg.Cluster.HolderOf(communitiesOf(large))
		return r, true
	}
	f.log.Debug("route not accepted", "prefix", prefix, "via", r.via, "peer", p.PeerAddress, "why", why)
	return learnedRoute{}, false
}

// announceable reports whether a node of the cluster may announce the prefix.
func (f *importFilter) announceable(p netip.Prefix) bool {
	return slices.ContainsFunc(f.allowed, func(a fabric.PrefixRange) bool { return a.Contains(p) }) &&
		!slices.ContainsFunc(f.excluded, func(x netip.Prefix) bool { return x.Bits() <= p.Bits() && x.Contains(p.Addr()) })
}

// hasCommunities reports whether a route has all of the cluster's communities.
func (f *importFilter) hasCommunities(plain []uint32, large []*bgp.LargeCommunity) bool {
	for _, c := range f.plain {
		if !slices.Contains(plain, c) {
			return false
		}
	}
	for _, c := range f.large {
		if !slices.ContainsFunc(large, func(have *bgp.LargeCommunity) bool { return *have == *c }) {
			return false
		}
	}
	return true
}

// communitiesOf returns large communities in the terms of the cluster.
func communitiesOf(large []*bgp.LargeCommunity) []fabric.Community {
	all := make([]fabric.Community, len(large))
	for i, c := range large {
		all[i] = fabric.Community{Large: true, A: c.ASN, B: c.LocalData1, C: c.LocalData2}
	}
	return all
}
