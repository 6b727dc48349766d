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

// negotiated gives the families of an established session: those that the peer
// offered in its OPEN, of which this side offers both. A peer that has no
// multiprotocol capability speaks IPv4 (RFC 4760, 8); GoBGP lists that too.
func negotiated(p *api.Peer) []fabric.Family {
	if p.GetState().GetSessionState() != api.PeerState_SESSION_STATE_ESTABLISHED {
		return nil
	}
	all := []fabric.Family{}
	for _, c := range p.GetState().GetRemoteCap() {
		f := c.GetMultiProtocol().GetFamily()
		if f.GetSafi() != api.Family_SAFI_UNICAST {
			continue
		}
		switch f.GetAfi() {
		case api.Family_AFI_IP:
			all = append(all, fabric.IPv4)
		case api.Family_AFI_IP6:
			all = append(all, fabric.IPv6)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// familyOf gives the family of one of a peer's counts.
func familyOf(f *api.AfiSafi) fabric.Family {
	if f.GetState().GetFamily().GetAfi() == api.Family_AFI_IP6 {
		return fabric.IPv6
	}
	return fabric.IPv4
}

// Advertisements implements [fabric.Speaker] with GoBGP's
// Adj-RIB-Out: what the policy lets out to a peer, of families that it takes.
func (s *Speaker) Advertisements(ctx context.Context, prefix netip.Prefix) ([]fabric.Advertisement, error) {
	sessions, err := s.Sessions(ctx)
	if err != nil {
		return nil, err
	}
	all, err := fabric.AdvertisementsOn(prefix, s.node.Name, sessions, func(session fabric.Session) (bool, error) {
		return s.sent(session.Address, prefix)
	})
	if err != nil {
		return nil, fmt.Errorf("bgp: %w", err)
	}
	return all, nil
}

// sent reports whether a prefix is in the Adj-RIB-Out of a peer.
func (s *Speaker) sent(peer string, prefix netip.Prefix) (bool, error) {
	family := bgp.RF_IPv4_UC
	if prefix.Addr().Is6() {
		family = bgp.RF_IPv6_UC
	}
	found := false
	err := s.bgp.ListPath(apiutil.ListPathRequest{
		TableType: api.TableType_TABLE_TYPE_ADJ_OUT, Name: peer, Family: family,
		Prefixes: []*apiutil.LookupPrefix{{Prefix: prefix.String()}},
	}, func(nlri bgp.NLRI, paths []*apiutil.Path) {
		p, ok := nlri.(*bgp.IPAddrPrefix)
		found = found || ok && p.Prefix == prefix && slices.ContainsFunc(paths, func(p *apiutil.Path) bool { return !p.Withdrawal })
	})
	return found, err
}
