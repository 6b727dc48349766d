package gobgp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/vmfabric/vmfabric/fabric"
)

// Received implements [fabric.Speaker] with GoBGP's Adj-RIB-In. It has what the import
// filter does not accept, too. It returns an error before [Speaker.Run]: reflectors may
// have routes of which nothing is known yet.
func (s *Speaker) Received(ctx context.Context, prefixes ...netip.Prefix) ([]fabric.ReceivedRoute, error) {
	sessions, err := s.Sessions(ctx)
	if err != nil {
		return nil, err
	}
	b := s.announcements.server()
	if b == nil {
		return nil, errors.New("bgp: the speaker does not run yet")
	}
	own := []netip.Addr{s.cfg.Node.Address, s.cfg.Node.Address6}
	var all []fabric.ReceivedRoute
	for _, session := range sessions {
		for _, prefix := range prefixes {
			err := received(b, session.Address, prefix, func(p *apiutil.Path) {
				if via := nextHop(p); via.IsValid() && !slices.Contains(own, via) {
					all = append(all, fabric.ReceivedRoute{Prefix: prefix, Via: via, Peer: session.Peer})
				}
			})
			if err != nil {
				return nil, fmt.Errorf("bgp: %w", err)
			}
		}
	}
	return all, nil
}

// received gives the paths of a prefix in the Adj-RIB-In of a peer.
func received(b *server.BgpServer, peer string, prefix netip.Prefix, path func(*apiutil.Path)) error {
	return b.ListPath(apiutil.ListPathRequest{
		TableType: api.TableType_TABLE_TYPE_ADJ_IN, Name: peer, Family: familyOf(prefix),
		Prefixes: []*apiutil.LookupPrefix{{Prefix: prefix.String()}},
	}, func(nlri bgp.NLRI, paths []*apiutil.Path) {
		if p, ok := nlri.(*bgp.IPAddrPrefix); !ok || p.Prefix != prefix {
			return
		}
		for _, p := range paths {
			if !p.Withdrawal {
				path(p)
			}
		}
	})
}

func familyOf(p netip.Prefix) bgp.Family {
	if p.Addr().Is6() {
		return bgp.RF_IPv6_UC
	}
	return bgp.RF_IPv4_UC
}

// nextHop gives the next hop of a path; the zero Addr: it has none.
func nextHop(p *apiutil.Path) (via netip.Addr) {
	for _, a := range p.Attrs {
		switch a := a.(type) {
		case *bgp.PathAttributeNextHop:
			via = a.Value
		case *bgp.PathAttributeMpReachNLRI:
			via = a.Nexthop
		}
	}
	return via
}
