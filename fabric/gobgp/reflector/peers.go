package reflector

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/osrg/gobgp/v4/api"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/peering"
	"github.com/vmfabric/vmfabric/internal/plural"
)

// Counts are numbers of prefixes of one family.
type Counts struct {
	Received   uint64 // that the peer sent, accepted or not
	Accepted   uint64 // of these, those that the policy accepts
	Advertised uint64 // sent to the peer, or about to be
}

// Peer is a node or a core gateway, as a [Reflector] reports it.
type Peer struct {
	fabric.Session
	IPv4, IPv6 Counts
	Named      bool           // the cluster file lists it
	BFD        string         // state of RFC 5880, in lower case; empty without
	Held       bool           // refused, because it announced too many prefixes
	Refused    []netip.Prefix // a few of the prefixes that the policy refuses
}

// refused counts the prefixes that the policy refuses. While many arrive, Accepted
// may be newer than Received, and higher.
func (p Peer) refused() uint64 {
	if p.Accepted > p.Received {
		return 0
	}
	return p.Received - p.Accepted
}

// Peers lists the core gateways and nodes of the cluster in its order, and then the
// nodes that it does not list, for as long as they have a session or the reflector
// keeps their routes.
//
// It has a cost: GoBGP counts the routes that it advertises, and the accepted ones
// if there are new ones, by running the policy over all of them. That takes some 3
// µs a route each time, and GoBGP does nothing else meanwhile.
func (r *Reflector) Peers(ctx context.Context) ([]Peer, error) {
	if err := r.started(); err != nil {
		return nil, err
	}
	return r.peers.list(ctx, true)
}

// list lists as [Reflector.Peers] does, on request without the counts of advertised
// prefixes.
func (t *peerTable) list(ctx context.Context, advertised bool) ([]Peer, error) {
	found := map[netip.Addr]*api.Peer{}
	list := func(p *api.Peer) {
		if a, err := netip.ParseAddr(p.GetState().GetNeighborAddress()); err == nil {
			found[a] = p
		}
	}
	if err := t.bgp.ListPeer(ctx, &api.ListPeerRequest{}, list); err != nil {
		return nil, fmt.Errorf("bgp: %w", err)
	}
	for _, n := range t.named {
		if advertised && t.getsAll(n) {
			if err := t.bgp.ListPeer(ctx, &api.ListPeerRequest{Address: n.address.String(), EnableAdvertised: true}, list); err != nil {
				return nil, fmt.Errorf("bgp: %w", err)
			}
		}
	}
	peers := make([]Peer, 0, len(found))
	for _, n := range t.named {
		peers = append(peers, t.describe(n, found[n.address]))
	}
	for _, a := range slices.SortedFunc(maps.Keys(found), netip.Addr.Compare) {
		if !t.isNamed(a) {
			peers = append(peers, t.describe(t.neighbour(a), found[a]))
		}
	}
	t.forget(ctx, found)
	return peers, nil
}

// describe reports a peer; p may be nil while the reflector replaces it.
func (t *peerTable) describe(n neighbour, p *api.Peer) Peer {
	st := t.stateOf(n.address)
	out := Peer{Named: t.isNamed(n.address), Held: st.held, Session: fabric.Session{
		Peer: n.name, Address: n.address.String(), Role: n.role, Since: st.since,
		State: peering.State(p), Families: peering.Negotiated(p), Notification: t.notifications.Of(n.address), Failure: t.notifications.Failure(n.address),
	}}
	if b := p.GetState().GetBfdState(); n.bfd && b != nil {
		out.BFD = strings.ToLower(strings.TrimPrefix(b.GetSessionState().String(), "BFD_SESSION_STATE_"))
	}
	for _, f := range p.GetAfiSafis() {
		c := &out.IPv4
		if f.GetState().GetFamily().GetAfi() == api.Family_AFI_IP6 {
			c = &out.IPv6
		}
		c.Received, c.Advertised = f.GetState().GetReceived(), f.GetState().GetAdvertised()
	}
	accepted := t.counts.of(n.address, p, [2]uint64{out.IPv4.Received, out.IPv6.Received})
	out.IPv4.Accepted, out.IPv6.Accepted, out.Refused = accepted.accepted[0], accepted.accepted[1], accepted.refused
	out.Received = out.IPv4.Received + out.IPv6.Received
	out.Accepted = out.IPv4.Accepted + out.IPv6.Accepted
	out.Advertised = out.IPv4.Advertised + out.IPv6.Advertised
	return out
}

// Routes counts the prefixes of a family that the reflector has accepted.
func (r *Reflector) Routes(ctx context.Context, v6 bool) (uint64, error) {
	if err := r.started(); err != nil {
		return 0, err
	}
	family := &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}
	if v6 {
		family.Afi = api.Family_AFI_IP6
	}
	t, err := r.bgp.GetTable(ctx, &api.GetTableRequest{TableType: api.TableType_TABLE_TYPE_GLOBAL, Family: family})
	if err != nil {
		return 0, fmt.Errorf("bgp: %w", err)
	}
	return t.GetNumDestination(), nil
}

// Sessions lists the sessions, in the order of [Reflector.Peers].
func (r *Reflector) Sessions(ctx context.Context) ([]fabric.Session, error) {
	peers, err := r.Peers(ctx)
	sessions := make([]fabric.Session, 0, len(peers))
	for _, p := range peers {
		sessions = append(sessions, p.Session)
	}
	return sessions, err
}

// Status reports the health of the reflector. A core gateway without a session is a
// problem. A node without one is not: nodes are switched off for good reasons, and
// a node's own agent reports its problems. It is a problem that no node has a
// session.
func (r *Reflector) Status(ctx context.Context) (fabric.Status, error) {
	st := fabric.Status{
		Cluster: r.cluster.Name, Node: r.rr.Name, Role: "reflector", Since: r.began,
		Sessions: []fabric.Session{}, Sources: []fabric.SourceStatus{}, Problems: []string{},
	}
	peers, err := r.Peers(ctx)
	if err != nil {
		st.Problems = append(st.Problems, err.Error())
		return st, err
	}
	for _, p := range peers {
		st.Sessions = append(st.Sessions, p.Session)
	}
	st.Problems = append(st.Problems, r.problems(peers)...)
	st.Healthy = len(st.Problems) == 0
	return st, nil
}

func (r *Reflector) problems(peers []Peer) []string {
	var all []string
	say := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	var cores, nodes, up int
	for _, p := range peers {
		established := p.State == "established"
		switch {
		case p.Role == RoleCore:
			cores++
			if !established {
				say("core gateway %s (%s) has no session since %s; %s", p.Peer, p.Address, p.Since.Format(time.TimeOnly), p.DownReason())
			}
			for _, f := range r.cluster.Families() {
				if p.Lacks(f) {
					say("core gateway %s (%s) takes no %s: its session was negotiated without that family; add an %s channel or address family to it there, as it is rendered from the cluster file",
						p.Peer, p.Address, f, f)
				}
			}
		case established:
			up++
		}
		if p.Role == RoleNode {
			nodes++
		}
		if p.Held {
			say("node %s (%s) announced more than %d prefixes of a family and is refused for %s; see what it announces, or raise max_prefixes",
				p.Peer, p.Address, r.cluster.MaxPrefixes, r.pause)
		}
		if n := max(p.IPv4.Received, p.IPv6.Received); n*100 > uint64(r.cluster.MaxPrefixes)*warnAt {
			say("node %s (%s) announces %d prefixes of a family, and %d is the most; raise max_prefixes", p.Peer, p.Address, n, r.cluster.MaxPrefixes)
		}
		if n := p.refused(); n > 0 && p.Role == RoleNode {
			say("node %s (%s) announces %s refused, such as %s; stop it, or name their pool, their community and the node with its address6 in the cluster file, and restart the reflector",
				p.Peer, p.Address, plural.Of(n, "prefix that is", "prefixes that are"), joined(p.Refused))
		}
	}
	if nodes > 0 && up == 0 {
		say("no node has a session; check that the agents run, and that they reach %s", r.rr.Address)
	}
	if cores == 0 && len(r.cluster.Core) > 0 {
		say("no core gateway of the cluster has an address of the family of %s; give one such an address", r.rr.Address)
	}
	return all
}

func joined(ps []netip.Prefix) string { return strings.Join(texts(ps), ", ") }
