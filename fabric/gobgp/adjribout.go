package gobgp

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/vmfabric/vmfabric/fabric"
)

// Advertisements implements [fabric.Speaker]. It reads GoBGP's Adj-RIB-Out: the
// routes that the export policy passes to a peer, of the families that the peer
// takes.
func (s *Speaker) Advertisements(ctx context.Context, prefix netip.Prefix) ([]fabric.Advertisement, error) {
	sessions, err := s.Sessions(ctx)
	if err != nil {
		return nil, err
	}
	all, err := fabric.AdvertisementsOn(prefix, s.cfg.Node.Name, sessions, func(session fabric.Session) (bool, error) {
		return s.sent(session.Address, prefix)
	})
	if err != nil {
		return nil, fmt.Errorf("bgp: %w", err)
	}
	return all, nil
}

// sent reports whether a prefix is in the Adj-RIB-Out of a peer.
func (s *Speaker) sent(peer string, prefix netip.Prefix) (bool, error) {
	found := false
	err := s.announcements.server().ListPath(apiutil.ListPathRequest{
		TableType: api.TableType_TABLE_TYPE_ADJ_OUT, Name: peer, Family: familyOf(prefix),
		Prefixes: []*apiutil.LookupPrefix{{Prefix: prefix.String()}},
	}, func(nlri bgp.NLRI, paths []*apiutil.Path) {
		p, ok := nlri.(*bgp.IPAddrPrefix)
		found = found || ok && p.Prefix == prefix && slices.ContainsFunc(paths, func(p *apiutil.Path) bool { return !p.Withdrawal })
	})
	return found, err
}
