// Package resend makes up for the changes that GoBGP loses while a session is being
// established. GoBGP first sends the peer its table, and marks the session as
// established after that. A change between the two is in neither. So the table is
// sent once more when GoBGP has marked the session as established. A table does not
// have the withdrawn prefixes, so these are withdrawn once more, too.
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
	stateInterval = time.Millisecond
	// Wait is far longer than GoBGP takes from the event of an established session
	// to the mark.
	Wait = 10 * time.Second
)

// Established waits until GoBGP marks a session as established after its event said
// so, and returns the peer; nil if ctx or the session ends before.
func Established(ctx context.Context, b *server.BgpServer, address string) *api.Peer {
	ctx, cancel := context.WithTimeout(ctx, Wait)
	defer cancel()
	tick := time.NewTicker(stateInterval)
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

// Table sends a peer the whole table again.
func Table(ctx context.Context, b *server.BgpServer, address string) error {
	return b.ResetPeer(ctx, &api.ResetPeerRequest{Address: address, Soft: true, Direction: api.ResetPeerRequest_DIRECTION_OUT})
}

// Removals has the prefixes that were withdrawn lately, the oldest first.
type Removals []removal

type removal struct {
	prefix netip.Prefix
	at     time.Time
}

// Add notes prefixes that are withdrawn now. It drops those older than Wait: every
// session that is being established now began later.
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

// Since returns the prefixes that were withdrawn at or after a time.
func (rs Removals) Since(from time.Time) []netip.Prefix {
	var all []netip.Prefix
	for _, r := range rs {
		if !r.at.Before(from) && !slices.Contains(all, r.prefix) {
			all = append(all, r.prefix)
		}
	}
	return all
}

// placeholderPref is the LOCAL_PREF of placeholders: routes that the export policy
// sends to no peer. No other route has it.
const placeholderPref = 1

// RejectPlaceholders returns the statement of the export policy that sends no
// placeholder.
func RejectPlaceholders() *api.Statement {
	return peering.Statement("placeholders", &api.Conditions{LocalPrefEq: &api.LocalPrefEq{Value: placeholderPref}}, peering.Reject)
}

// Withdraw sends every peer a withdrawal of the prefixes. GoBGP withdraws only a
// prefix that its table had, and does not apply the policy to a withdrawal. So
// Withdraw adds a placeholder for each prefix and removes it at once. Any other
// route to the prefix ranks before it and stays as it is.
func Withdraw(b *server.BgpServer, prefixes []netip.Prefix) error {
	var add, remove []*apiutil.Path
	for _, prefix := range prefixes {
		for _, paths := range []*[]*apiutil.Path{&add, &remove} {
			p, err := placeholder(prefix)
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

// placeholder returns a route that ranks after every other one: GoBGP compares first
// whether a route is stale (RFC 9494), then LOCAL_PREF.
func placeholder(prefix netip.Prefix) (*apiutil.Path, error) {
	nlri, err := bgp.NewIPAddrPrefix(prefix)
	if err != nil {
		return nil, err
	}
	attrs := []bgp.PathAttributeInterface{
		bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP), bgp.NewPathAttributeLocalPref(placeholderPref),
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

// IsPlaceholder reports whether a path is one of those that Withdraw adds and removes.
func IsPlaceholder(p *apiutil.Path) bool {
	return slices.ContainsFunc(p.Attrs, func(a bgp.PathAttributeInterface) bool {
		pref, ok := a.(*bgp.PathAttributeLocalPref)
		return ok && pref.Value == placeholderPref
	})
}
