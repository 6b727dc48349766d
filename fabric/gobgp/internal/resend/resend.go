// Package resend makes up for what GoBGP loses while a session is being
// established. It first sends the peer what is in the table, as part of telling the
// change of state, and takes the session for established after that: what changes
// between the two is in neither. So the table is sent once more when GoBGP has the
// session for established. A table does not say what was withdrawn: that is
// withdrawn once more, too.
package resend

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/peering"
)

const (
	stateLook = time.Millisecond
	// Wait is far longer than GoBGP takes from one of the two to the other.
	Wait = 10 * time.Second
)

// Established waits until GoBGP takes a session for established, of which it has
// told that it is, and gives the peer then; nil when ctx ends, or the session.
func Established(ctx context.Context, b *server.BgpServer, address string) *api.Peer {
	ctx, cancel := context.WithTimeout(ctx, Wait)
	defer cancel()
	tick := time.NewTicker(stateLook)
	defer tick.Stop()
	for {
		var peer *api.Peer
		err := b.ListPeer(ctx, &api.ListPeerRequest{Address: address}, func(p *api.Peer) { peer = p })
		if err != nil || peer == nil {
			return nil
		}
		if peer.GetState().GetSessionState() == api.PeerState_SESSION_STATE_ESTABLISHED {
			return peer
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Table sends a peer the whole table.
func Table(ctx context.Context, b *server.BgpServer, address string) error {
	return b.ResetPeer(ctx, &api.ResetPeerRequest{Address: address, Soft: true, Direction: api.ResetPeerRequest_DIRECTION_OUT})
}

// Removals are the last prefixes that were withdrawn, the oldest first.
type Removals []removal

type removal struct {
	prefix netip.Prefix
	at     time.Time
}

// Add notes prefixes that are withdrawn now, and forgets those that no session
// which is being established can have missed.
func (rs *Removals) Add(now time.Time, prefixes ...netip.Prefix) {
	old := slices.IndexFunc(*rs, func(r removal) bool { return now.Sub(r.at) < Wait })
	if old < 0 {
		old = len(*rs)
	}
	*rs = slices.Delete(*rs, 0, old)
	for _, p := range prefixes {
		*rs = append(*rs, removal{p, now})
	}
}

// Since gives those that were withdrawn from a time on.
func (rs Removals) Since(from time.Time) []netip.Prefix {
	var all []netip.Prefix
	for _, r := range rs {
		if !r.at.Before(from) && !slices.Contains(all, r.prefix) {
			all = append(all, r.prefix)
		}
	}
	return all
}

// unsaid is the LOCAL_PREF of routes that the export policy keeps from every
// peer (KeptBack). Nothing else has it.
const unsaid = 1

// KeptBack is the export policy's statement that keeps unsaid routes here.
func KeptBack() *api.Statement {
	return peering.Statement("kept back", &api.Conditions{LocalPrefEq: &api.LocalPrefEq{Value: unsaid}}, peering.Reject)
}

// Withdraw tells every peer that the prefixes are withdrawn. GoBGP withdraws
// only what its table had, and takes no policy into account then: so each prefix
// gets a route that no peer is told of, which is removed at once. Any other route
// to the prefix comes before it, and is not touched.
func Withdraw(b *server.BgpServer, prefixes []netip.Prefix) error {
	var add, remove []*apiutil.Path
	for _, prefix := range prefixes {
		for _, paths := range []*[]*apiutil.Path{&add, &remove} {
			p, err := unsaidPath(prefix)
			if err != nil {
				return fmt.Errorf("route %s: %w", prefix, err)
			}
			*paths = append(*paths, p)
		}
		remove[len(remove)-1].Withdrawal = true
	}
	_, err := b.AddPath(apiutil.AddPathRequest{Paths: add})
	return errors.Join(err, b.DeletePath(apiutil.DeletePathRequest{Paths: remove}))
}

// unsaidPath is a route that comes after every other one: GoBGP compares whether
// a route is stale (RFC 9494) first, then LOCAL_PREF.
func unsaidPath(prefix netip.Prefix) (*apiutil.Path, error) {
	nlri, err := bgp.NewIPAddrPrefix(prefix)
	if err != nil {
		return nil, err
	}
	attrs := []bgp.PathAttributeInterface{
		bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP), bgp.NewPathAttributeLocalPref(unsaid),
		bgp.NewPathAttributeCommunities([]uint32{uint32(bgp.COMMUNITY_LLGR_STALE)}),
	}
	family := bgp.RF_IPv4_UC
	var hop bgp.PathAttributeInterface
	if prefix.Addr().Is6() {
		family = bgp.RF_IPv6_UC
		hop, err = bgp.NewPathAttributeMpReachNLRI(family, []bgp.PathNLRI{{NLRI: nlri}}, netip.IPv6Unspecified())
	} else {
		hop, err = bgp.NewPathAttributeNextHop(netip.IPv4Unspecified())
	}
	if err != nil {
		return nil, err
	}
	return &apiutil.Path{Family: family, Nlri: nlri, Attrs: append(attrs, hop), Age: time.Now().Unix()}, nil
}

// IsUnsaid reports whether a path stands for a withdrawal.
func IsUnsaid(p *apiutil.Path) bool {
	return slices.ContainsFunc(p.Attrs, func(a bgp.PathAttributeInterface) bool {
		pref, ok := a.(*bgp.PathAttributeLocalPref)
		return ok && pref.Value == unsaid
	})
}
