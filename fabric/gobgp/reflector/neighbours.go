package reflector

import (
	"net/netip"
	"slices"
	"time"

	"github.com/osrg/gobgp/v4/api"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/peering"
)

// nodeGroup is the peer group of nodes that the cluster does not list.
const nodeGroup = "nodes"

// neighbour is a peer of the reflector.
type neighbour struct {
	name, role string
	address    netip.Addr
	asn        uint32
	bfd        bool
}

// resumes reports whether the reflector waits for the nodes before it admits the
// core gateways.
func (s *settings) resumes() bool { return s.deferral >= time.Second }

// neighbours lists the cluster's nodes and core gateways that have a session with a
// reflector: those with another address of its family. In small clusters the
// reflector runs on a node or a core gateway.
func neighbours(c *fabric.Cluster, rr fabric.RR) []neighbour {
	var all []neighbour
	add := func(n neighbour) {
		known := slices.ContainsFunc(all, func(o neighbour) bool { return o.address == n.address })
		if n.address.IsValid() && n.address.Is4() == rr.Address.Is4() && n.address != rr.Address && !known {
			all = append(all, n)
		}
	}
	// A machine that is both is a core gateway: the reflector accepts nothing from
	// it.
	for _, g := range c.Core {
		add(neighbour{g.Name, RoleCore, g.Address, g.ASN, g.BFD})
	}
	for _, n := range c.Nodes {
		add(neighbour{n.Name, RoleNode, n.Source(rr.Address), c.ASN, rr.BFD})
	}
	return all
}

// shut returns a neighbour whose connections GoBGP refuses.
func (s *settings) shut(n neighbour) *api.Peer {
	p := s.peer(n, false, false)
	p.Conf.AdminDown, p.Transport.PassiveMode = true, true
	return p
}

// peer returns a neighbour in GoBGP's terms. If it resumes, its OPEN says so.
func (s *settings) peer(n neighbour, bfd, resumes bool) *api.Peer {
	t := s.cluster.Timers
	deferral := max(s.deferral, time.Second)
	if n.role == RoleCore {
		deferral = coreDeferral // the reflector admits it when the nodes are there
	}
	p := &api.Peer{
		Conf:      &api.PeerConf{PeerAsn: n.asn, AuthPassword: s.rr.Password, Description: n.name},
		Timers:    peering.Timers(t),
		Transport: &api.Transport{LocalAddress: s.rr.Address.String(), PassiveMode: n.role == RoleNode, TcpMss: peering.Segment},
		GracefulRestart: &api.GracefulRestart{
			Enabled: true, RestartTime: uint32(t.Restart.Seconds()),
			LocalRestarting: resumes, DeferralTime: uint32(deferral / time.Second),
		},
		AfiSafis: peering.BothFamilies(),
	}
	if n.address.IsValid() {
		p.Conf.NeighborAddress = n.address.String()
	}
	peering.LongLived(p, t)
	for _, f := range p.AfiSafis {
		if n.role == RoleNode {
			f.PrefixLimits = &api.PrefixLimit{Family: f.Config.Family, MaxPrefixes: uint32(s.cluster.MaxPrefixes), ShutdownThresholdPct: warnAt}
		}
	}
	if n.asn == s.cluster.ASN {
		p.RouteReflector = &api.RouteReflector{RouteReflectorClient: true, RouteReflectorClusterId: s.id}
	}
	switch {
	case s.rr.GTSM:
		p.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: 255}
	case n.asn != s.cluster.ASN:
		p.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: 255}
	}
	if bfd {
		p.Bfd = peering.BFD()
	}
	return p
}

// getsAll reports whether a peer gets every route. Without east-west a node gets
// only Fresh routes, and the agents also inform it of these moves: to send each node
// its table once more would delay the others.
func (s *settings) getsAll(n neighbour) bool { return n.role == RoleCore || s.cluster.EastWest }

// neighbour returns the peer at an address: one that the cluster lists, or a node
// whose name is its address.
func (s *settings) neighbour(a netip.Addr) neighbour {
	if i := slices.IndexFunc(s.named, func(n neighbour) bool { return n.address == a }); i >= 0 {
		return s.named[i]
	}
	return neighbour{name: a.String(), role: RoleNode, address: a, asn: s.cluster.ASN}
}

func (s *settings) isNamed(a netip.Addr) bool {
	return slices.ContainsFunc(s.named, func(n neighbour) bool { return n.address == a })
}
