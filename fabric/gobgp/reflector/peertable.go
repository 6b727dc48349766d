package reflector

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/notifications"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/peering"
)

// peerTable has the states of the peers, and makes all changes of GoBGP's peers, one
// at a time. It is safe for concurrent use.
type peerTable struct {
	*settings
	bgp           *server.BgpServer
	group         *peering.Group
	notifications *notifications.Tracker
	counts        *routeCounts

	mu     sync.Mutex
	states map[netip.Addr]*peerState // of the listed peers, and of all others that were seen and have not gone
	closed bool                      // Run is ending; no peer changes any more
}

// peerState is the state of a peer.
type peerState struct {
	up       bool
	since    time.Time // when its session last came up or went down
	everUp   bool      // it had a session since the start
	notified uint64    // the number of NOTIFICATIONs sent to it, as counted when the last session came up
	held     bool      // refused for too many prefixes
	admitted bool      // the cluster does not list it, and it has statements in the policy
}

func newPeerTable(s *settings, b *server.BgpServer, g *peering.Group, n *notifications.Tracker) *peerTable {
	return &peerTable{
		settings: s, bgp: b, group: g, notifications: n, counts: &routeCounts{bgp: b, byPeer: map[netip.Addr]routeCount{}},
		states: map[netip.Addr]*peerState{},
	}
}

// state returns the state of a peer, which is new if the peer is.
func (t *peerTable) state(a netip.Addr) *peerState {
	st := t.states[a]
	if st == nil {
		st = &peerState{}
		t.states[a] = st
	}
	return st
}

// stateOf returns a copy of a peer's state.
func (t *peerTable) stateOf(a netip.Addr) peerState {
	t.mu.Lock()
	defer t.mu.Unlock()
	if st := t.states[a]; st != nil {
		return *st
	}
	return peerState{}
}

// close ends the changes of peers.
func (t *peerTable) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
}

// addAll adds the nodes and core gateways. The events of their sessions wait until
// all are there.
func (t *peerTable) addAll(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	resumes := t.resumes()
	for _, n := range t.named {
		t.state(n.address).since = time.Now()
		p := t.peer(n, n.bfd, resumes)
		if resumes && n.role == RoleCore {
			p = t.shut(n)
		}
		if err := t.bgp.AddPeer(ctx, &api.AddPeerRequest{Peer: p}); err != nil {
			return fmt.Errorf("%s %s (%s): %w", n.role, n.name, n.address, err)
		}
	}
	return t.addRanges(ctx)
}

// addRanges adds the ranges from which nodes connect that the cluster does not list.
func (t *peerTable) addRanges(ctx context.Context) error {
	group := t.peer(neighbour{role: RoleNode, asn: t.cluster.ASN}, false, false)
	err := t.bgp.AddPeerGroup(ctx, &api.AddPeerGroupRequest{PeerGroup: &api.PeerGroup{
		Conf:   &api.PeerGroupConf{PeerGroupName: nodeGroup, PeerAsn: group.Conf.PeerAsn, AuthPassword: group.Conf.AuthPassword},
		Timers: group.Timers, Transport: group.Transport, RouteReflector: group.RouteReflector,
		GracefulRestart: group.GracefulRestart, AfiSafis: group.AfiSafis, TtlSecurity: group.TtlSecurity,
	}})
	if err != nil {
		return fmt.Errorf("nodes by address: %w", err)
	}
	for _, p := range t.cluster.NodeRanges() {
		if p.Addr().Is4() != t.rr.Address.Is4() {
			continue
		}
		err := t.bgp.AddDynamicNeighbor(ctx, &api.AddDynamicNeighborRequest{
			DynamicNeighbor: &api.DynamicNeighbor{Prefix: p.String(), PeerGroup: nodeGroup},
		})
		if err != nil {
			return fmt.Errorf("nodes by address: %s: %w", p, err)
		}
	}
	return nil
}

// sessionChanged takes the state of a session, and reports whether the session has
// come up.
func (t *peerTable) sessionChanged(ctx context.Context, e *apiutil.WatchEventMessage_PeerEvent) (cameUp bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, up := t.neighbour(e.Peer.State.NeighborAddress), e.Peer.State.SessionState == bgp.BGP_FSM_ESTABLISHED
	was := t.states[n.address]
	if t.closed || up == (was != nil && was.up) {
		return false
	}
	st := t.state(n.address)
	st.up, st.since = up, time.Now()
	log := t.log.With("peer", n.name, "address", n.address, "role", n.role)
	if up {
		st.everUp, st.notified = true, t.notificationsTo(ctx, n.address)
		log.Info("session up")
		t.admit(ctx, n)
		return true
	}
	log.Warn("session down", "reason", e.Peer.State.DisconnectMessage)
	switch {
	case e.Peer.State.AdminState == api.PeerState_ADMIN_STATE_PFX_CT:
		log.Warn("more prefixes than max_prefixes; the node is refused for a while", "max_prefixes", t.cluster.MaxPrefixes, "for", t.pause)
		t.hold(ctx, n)
	case n.role == RoleNode && t.notificationsTo(ctx, n.address) > st.notified:
		// This side ended the session, so the node has not merely restarted: GoBGP
		// would keep its routes for the restart time after the hold time as well.
		t.replace(ctx, n, t.peer(n, n.bfd, false))
	case n.bfd && peering.Broke(e):
		t.restBFD(ctx, n)
	}
	return false
}

// up lists the peers that have a session.
func (t *peerTable) up() (all []neighbour) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for a, st := range t.states {
		if st.up {
			all = append(all, t.neighbour(a))
		}
	}
	return all
}

// notificationsTo counts the notifications sent to a peer.
func (t *peerTable) notificationsTo(ctx context.Context, a netip.Addr) (sent uint64) {
	err := t.bgp.ListPeer(ctx, &api.ListPeerRequest{Address: a.String()}, func(p *api.Peer) {
		sent = p.GetState().GetMessages().GetSent().GetNotification()
	})
	if err != nil {
		t.log.Debug("peer not read", "peer", a, "err", err)
	}
	return sent
}

// restBFD ends the BFD session of a peer for a moment, see [peering.Broke].
func (t *peerTable) restBFD(ctx context.Context, n neighbour) {
	t.setBFD(ctx, n, false)
	t.after(ctx, peering.BFDRest, func() {
		if st := t.state(n.address); !st.up && !st.held {
			t.setBFD(ctx, n, true)
		}
	})
}

// after makes a change of peers after a time, unless Run ends before.
func (t *peerTable) after(ctx context.Context, d time.Duration, change func()) {
	t.group.After(ctx, d, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if !t.closed {
			change()
		}
	})
}

func (t *peerTable) setBFD(ctx context.Context, n neighbour, on bool) {
	if err := peering.SetBFD(ctx, t.bgp, t.peer(n, on, false), on); err != nil {
		t.log.Warn("BFD not changed", "peer", n.name, "on", on, "err", err)
	}
}

// hold removes a peer that exceeded the limit, with its routes, which GoBGP would
// keep as for a graceful restart. It refuses the peer's connections for the pause.
func (t *peerTable) hold(ctx context.Context, n neighbour) {
	shut := t.shut(n)
	t.replace(ctx, n, shut)
	if !t.isNamed(n.address) {
		t.add(ctx, n, shut)
	}
	t.state(n.address).held = true
	t.after(ctx, t.pause, func() { t.release(ctx, n) })
}

func (t *peerTable) release(ctx context.Context, n neighbour) {
	t.state(n.address).held = false
	t.replace(ctx, n, t.peer(n, n.bfd, false))
	t.log.Info("the node may connect again", "peer", n.name, "address", n.address)
}

// replace removes a peer with all its routes, and adds it anew if the cluster lists
// it. Any other peer comes back when it connects.
func (t *peerTable) replace(ctx context.Context, n neighbour, p *api.Peer) {
	err := t.bgp.DeletePeer(ctx, &api.DeletePeerRequest{Address: n.address.String()})
	if err != nil {
		// A peer that the cluster does not list may be gone already.
		t.log.Debug("peer not removed", "peer", n.name, "err", err)
	}
	t.state(n.address).notified = 0
	t.counts.drop(n.address)
	if t.isNamed(n.address) {
		t.add(ctx, n, p)
	}
}

func (t *peerTable) add(ctx context.Context, n neighbour, p *api.Peer) {
	if err := t.bgp.AddPeer(ctx, &api.AddPeerRequest{Peer: p}); err != nil {
		t.log.Error("peer not added; restart the reflector", "peer", n.name, "address", n.address, "err", err)
	}
}

// admitCores makes the core gateways peers whose connections GoBGP accepts. It adds
// the nodes anew that had no session yet: one that comes later must not wait for
// those that do not come.
func (t *peerTable) admitCores(ctx context.Context) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	for _, n := range t.named {
		st := t.state(n.address)
		switch {
		case n.role == RoleCore:
			t.replace(ctx, n, t.peer(n, n.bfd, true))
		case !st.everUp && !st.held:
			t.replace(ctx, n, t.peer(n, n.bfd, false))
		}
	}
}

// forget drops the nodes that GoBGP does not have any more and that the cluster does
// not list.
func (t *peerTable) forget(ctx context.Context, found map[netip.Addr]*api.Peer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	kept := func(a netip.Addr) bool {
		st := t.states[a]
		return found[a] != nil || t.isNamed(a) || st != nil && st.held
	}
	t.notifications.Keep(kept)
	t.counts.keep(kept)
	for a, st := range t.states {
		if !kept(a) && !st.up {
			t.dismiss(ctx, a)
			delete(t.states, a)
		}
	}
}
