package peering

import (
	"cmp"
	"slices"

	"github.com/osrg/gobgp/v4/api"

	"github.com/vmfabric/vmfabric/fabric"
)

var states = map[api.PeerState_SessionState]string{
	api.PeerState_SESSION_STATE_IDLE: "idle", api.PeerState_SESSION_STATE_CONNECT: "connect",
	api.PeerState_SESSION_STATE_ACTIVE: "active", api.PeerState_SESSION_STATE_OPENSENT: "opensent",
	api.PeerState_SESSION_STATE_OPENCONFIRM: "openconfirm", api.PeerState_SESSION_STATE_ESTABLISHED: "established",
}

// State returns the state of a peer's session by its name in RFC 4271 (8.2.2), in
// lower case; idle if there is no peer.
func State(p *api.Peer) string {
	return cmp.Or(states[p.GetState().GetSessionState()], "idle")
}

// Negotiated returns the families of an established session: those of the peer's
// OPEN, since this side offers both. A peer without the multiprotocol capability
// speaks IPv4 (RFC 4760, 8); GoBGP lists that too.
func Negotiated(p *api.Peer) []fabric.Family {
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

// FamilyOf returns the family of one of a peer's counters.
func FamilyOf(f *api.AfiSafi) fabric.Family {
	if f.GetState().GetFamily().GetAfi() == api.Family_AFI_IP6 {
		return fabric.IPv6
	}
	return fabric.IPv4
}
