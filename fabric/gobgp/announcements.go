package gobgp

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/resend"
	"github.com/vmfabric/vmfabric/internal/backoff"
)

// announcements has the routes that the node announces. It passes each change on to
// GoBGP once that runs, and to the Adj-RIB-In, which compares the reflectors' routes
// with them. It is safe for concurrent use.
type announcements struct {
	cfg Config
	log *slog.Logger
	in  *adjRIBIn

	mu       sync.Mutex
	bgp      *server.BgpServer // nil before Run
	routes   map[netip.Prefix]fabric.Route
	removals resend.Removals
	settled  time.Time // when GoBGP stops to hold updates back; until then it loses withdrawals
}

func newAnnouncements(cfg Config, log *slog.Logger, in *adjRIBIn) *announcements {
	return &announcements{cfg: cfg, log: log, in: in, routes: map[netip.Prefix]fabric.Route{}}
}

// begin gives GoBGP the routes that were put, and passes changes on to it from now
// on. It reports whether there were any: the speaker then resumes.
func (a *announcements) begin(b *server.BgpServer) (resumed bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var paths []*apiutil.Path
	for _, r := range a.routes {
		p, err := a.cfg.path(r)
		if err != nil {
			return false, fmt.Errorf("route %s: %w", r.Prefix, err)
		}
		paths = append(paths, p)
	}
	if len(paths) > 0 {
		if _, err := b.AddPath(apiutil.AddPathRequest{Paths: paths}); err != nil {
			return false, err
		}
	}
	a.bgp = b
	return len(paths) > 0, nil
}

// server returns the server that gets the changes; nil before begin.
func (a *announcements) server() *server.BgpServer {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bgp
}

// all lists the routes in the order of their prefixes.
func (a *announcements) all() []fabric.Route {
	a.mu.Lock()
	defer a.mu.Unlock()
	routes := make([]fabric.Route, 0, len(a.routes))
	for _, r := range a.routes {
		routes = append(routes, r)
	}
	slices.SortFunc(routes, func(a, b fabric.Route) int {
		return a.Prefix.Compare(b.Prefix)
	})
	return routes
}

// put announces routes.
func (a *announcements) put(routes []fabric.Route) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var paths []*apiutil.Path
	for _, r := range routes {
		if have, there := a.routes[r.Prefix]; there && have == r {
			continue
		}
		p, err := a.cfg.path(r)
		if err != nil {
			return fmt.Errorf("route %s: %w", r.Prefix, err)
		}
		paths = append(paths, p)
	}
	if len(paths) == 0 {
		return nil
	}
	if a.bgp != nil {
		if _, err := a.bgp.AddPath(apiutil.AddPathRequest{Paths: paths}); err != nil {
			return fmt.Errorf("bgp: %w", err)
		}
	}
	for _, r := range routes {
		a.routes[r.Prefix] = r
		a.in.announced(r.Prefix)
	}
	return nil
}

// remove withdraws prefixes. As long as GoBGP would lose the withdrawals, it waits.
func (a *announcements) remove(ctx context.Context, prefixes []netip.Prefix) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for wait := time.Until(a.settled); wait > 0; wait = time.Until(a.settled) {
		a.mu.Unlock()
		backoff.Sleep(ctx, wait)
		a.mu.Lock()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	var paths []*apiutil.Path
	for _, prefix := range prefixes {
		r, there := a.routes[prefix]
		if !there {
			continue
		}
		p, err := a.cfg.path(r)
		if err != nil {
			return fmt.Errorf("route %s: %w", prefix, err)
		}
		p.Withdrawal = true
		paths = append(paths, p)
	}
	if len(paths) == 0 {
		return nil
	}
	if a.bgp != nil {
		if err := a.bgp.DeletePath(apiutil.DeletePathRequest{Paths: paths}); err != nil {
			return fmt.Errorf("bgp: %w", err)
		}
	}
	a.in.withdrawn(prefixes...)
	for _, prefix := range prefixes {
		delete(a.routes, prefix)
	}
	a.removals.Add(time.Now(), prefixes...)
	return nil
}

// resend sends a peer everything, and End-of-RIB, and withdraws once more what was
// withdrawn since its session opened (see [resend]). deferred says that GoBGP holds
// updates to the peer back, for resumeWait at most.
func (a *announcements) resend(ctx context.Context, peer netip.Addr, opened time.Time, deferred bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if deferred {
		a.settled = time.Now().Add(resumeWait*time.Second + resumeSlack)
	}
	if err := resend.Table(ctx, a.bgp, peer.String()); err != nil {
		a.log.Warn("routes not sent at once", "peer", peer, "err", err)
	}
	again := slices.DeleteFunc(a.removals.Since(opened), func(p netip.Prefix) bool {
		_, announced := a.routes[p]
		return announced
	})
	if len(again) > 0 {
		if err := resend.Withdraw(a.bgp, again); err != nil {
			a.log.Warn("routes not withdrawn once more", "peer", peer, "err", err)
		}
	}
}

// freshMED is the MED of a Fresh route, unless it is [fabric.Route.First]. Of two
// Fresh routes the first has no MED, which counts as zero and is better (RFC 4271,
// 9.1.2.2). The reflectors accept no LOCAL_PREF above that of Fresh, and without
// the MED the lower router id would decide.
const freshMED = 1

// path returns a route in GoBGP's terms: origin IGP, the node as next hop,
// LOCAL_PREF, which an eBGP session leaves out, and the communities of the cluster,
// of the preference and of the holder.
func (c Config) path(r fabric.Route) (*apiutil.Path, error) {
	nlri, err := bgp.NewIPAddrPrefix(r.Prefix)
	if err != nil {
		return nil, err
	}
	attrs := []bgp.PathAttributeInterface{
		bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP), bgp.NewPathAttributeLocalPref(r.Preference.LocalPref()),
	}
	if r.Preference == fabric.Fresh && !r.First {
		attrs = append(attrs, bgp.NewPathAttributeMultiExitDisc(freshMED))
	}
	family, hop := bgp.RF_IPv4_UC, cmp.Or(c.Node.Address, c.Node.Address6)
	if r.Prefix.Addr().Is6() {
		family, hop = bgp.RF_IPv6_UC, c.Node.Address6
		if !hop.IsValid() {
			hop = netip.AddrFrom16(c.Node.Address.As16()) // IPv4-mapped (RFC 4291 2.5.5.2)
		}
	}
	if family == bgp.RF_IPv4_UC && hop.Is4() {
		a, err := bgp.NewPathAttributeNextHop(hop)
		if err != nil {
			return nil, err
		}
		attrs = append(attrs, a)
	} else {
		a, err := bgp.NewPathAttributeMpReachNLRI(family, []bgp.PathNLRI{{NLRI: nlri}}, hop)
		if err != nil {
			return nil, err
		}
		attrs = append(attrs, a)
	}
	attrs = append(attrs, communityAttributes(slices.Concat(c.Cluster.Communities, r.Preference.Communities(), r.Holder.Communities(c.Cluster.ASN)))...)
	return &apiutil.Path{Family: family, Nlri: nlri, Attrs: attrs, Age: time.Now().Unix()}, nil
}

// communityAttributes returns the attributes that carry communities.
func communityAttributes(all []fabric.Community) (attrs []bgp.PathAttributeInterface) {
	plain, large := splitCommunities(all)
	if len(plain) > 0 {
		attrs = append(attrs, bgp.NewPathAttributeCommunities(plain))
	}
	if len(large) > 0 {
		attrs = append(attrs, bgp.NewPathAttributeLargeCommunities(large))
	}
	return attrs
}

// splitCommunities returns communities in GoBGP's terms.
func splitCommunities(all []fabric.Community) (plain []uint32, large []*bgp.LargeCommunity) {
	for _, c := range all {
		if c.Large {
			large = append(large, bgp.NewLargeCommunity(c.A, c.B, c.C))
		} else {
			plain = append(plain, c.A<<16|c.B)
		}
	}
	return plain, large
}
