package reflector

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/peering"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/resend"
	"github.com/vmfabric/vmfabric/internal/backoff"
)

// peerChanged handles the events of sessions, one after the other.
func (r *Reflector) peerChanged(ctx context.Context, e *apiutil.WatchEventMessage_PeerEvent, at time.Time) {
	if e.Type != apiutil.PEER_EVENT_STATE {
		return
	}
	r.notes.State(e.Peer.State, at)
	r.mu.Lock()
	defer r.mu.Unlock()
	a, up := e.Peer.State.NeighborAddress, e.Peer.State.SessionState == bgp.BGP_FSM_ESTABLISHED
	if n := r.neighbour(a); e.Peer.State.SessionState == bgp.BGP_FSM_OPENCONFIRM && r.getsAll(n) {
		r.opening[a] = opening{from: at}
	}
	if r.closed || r.up[a] == up {
		return
	}
	r.up[a], r.since[a] = up, time.Now()
	n := r.neighbour(a)
	log := r.log.With("peer", n.name, "address", a, "role", n.role)
	if up {
		r.been[a], r.sent[a] = true, r.notificationsTo(ctx, a)
		log.Info("session up")
		r.admit(ctx, n)
		if r.getsAll(n) {
			r.serving.Go(func() { r.resend(ctx, n) })
		}
		return
	}
	log.Warn("session down", "reason", e.Peer.State.DisconnectMessage)
	switch {
	case e.Peer.State.AdminState == api.PeerState_ADMIN_STATE_PFX_CT:
		log.Warn("more prefixes than max_prefixes; the node is refused for a while", "max_prefixes", r.cluster.MaxPrefixes, "for", r.pause)
		r.hold(ctx, n)
	case n.role == RoleNode && r.notificationsTo(ctx, a) > r.sent[a]:
		// This side ended the session, so the node has not merely restarted: GoBGP
		// would keep its routes for the restart time after the hold time as well.
		r.replace(ctx, n, r.peer(n, n.bfd, false))
	case n.bfd && peering.Broke(e):
		r.restBFD(ctx, n)
	}
}

// getsAll reports whether a peer gets every route. Without east-west a node gets
// only Fresh routes, and the agents also tell it of these moves: to send each node
// its table once more would hold up the others.
func (r *Reflector) getsAll(n neighbour) bool { return n.role == RoleCore || r.cluster.EastWest }

// opening is a session that is being established, or was not long ago.
type opening struct {
	from time.Time // when it reached OpenConfirm
	seen time.Time // when GoBGP had marked it as established; zero: not yet
}

// resend sends a peer whose session is up the changes that it may have missed
// ([resend]).
func (r *Reflector) resend(ctx context.Context, n neighbour) {
	p := resend.Established(ctx, r.bgp, n.address.String())
	if p == nil {
		return
	}
	// GoBGP sends everything later to a peer towards which this side resumes.
	if !p.GetGracefulRestart().GetLocalRestarting() {
		if err := resend.Table(ctx, r.bgp, n.address.String()); err != nil {
			r.log.Warn("routes not sent again", "peer", n.name, "address", n.address, "err", err)
		}
	}
	r.mu.Lock()
	o := r.opening[n.address]
	o.seen = time.Now()
	r.opening[n.address] = o
	again := r.removals.Since(o.from)
	r.mu.Unlock()
	r.withdrawAgain(again)
}

func (r *Reflector) withdrawAgain(prefixes []netip.Prefix) {
	if len(prefixes) == 0 {
		return
	}
	if err := resend.Withdraw(r.bgp, prefixes); err != nil {
		r.log.Warn("routes not withdrawn once more", "prefixes", prefixes, "err", err)
	}
}

// bestChanged notes the prefixes that are withdrawn while a session is being
// established. An event may come after the session's resend: such prefixes are
// withdrawn once more at once.
func (r *Reflector) bestChanged(paths []*apiutil.Path, at time.Time) {
	r.order.note(paths, at)
	r.mu.Lock()
	defer r.mu.Unlock()
	for a, o := range r.opening {
		if at.Sub(o.from) > 2*resend.Wait {
			delete(r.opening, a)
		}
	}
	if r.closed || len(r.opening) == 0 {
		r.removals = nil
		return
	}
	var late []netip.Prefix
	for _, p := range paths {
		nlri, ok := p.Nlri.(*bgp.IPAddrPrefix)
		if !ok || !p.Withdrawal || resend.IsUnsaid(p) {
			continue
		}
		r.removals.Add(at, nlri.Prefix)
		for _, o := range r.opening {
			if !at.Before(o.from) && !o.seen.IsZero() && !at.After(o.seen) {
				late = append(late, nlri.Prefix)
				break
			}
		}
	}
	if len(late) > 0 {
		r.serving.Go(func() { r.withdrawAgain(late) })
	}
}

// neighbour returns the peer at an address: one that the cluster lists, or a node
// whose name is its address.
func (r *Reflector) neighbour(a netip.Addr) neighbour {
	if i := slices.IndexFunc(r.named, func(n neighbour) bool { return n.address == a }); i >= 0 {
		return r.named[i]
	}
	return neighbour{name: a.String(), role: RoleNode, address: a, asn: r.cluster.ASN}
}

func (r *Reflector) isNamed(a netip.Addr) bool {
	return slices.ContainsFunc(r.named, func(n neighbour) bool { return n.address == a })
}

// notificationsTo counts the notifications sent to a peer.
func (r *Reflector) notificationsTo(ctx context.Context, a netip.Addr) (sent uint64) {
	err := r.bgp.ListPeer(ctx, &api.ListPeerRequest{Address: a.String()}, func(p *api.Peer) {
		sent = p.GetState().GetMessages().GetSent().GetNotification()
	})
	if err != nil {
		r.log.Debug("peer not read", "peer", a, "err", err)
	}
	return sent
}

// restBFD ends the BFD session of a peer for a moment, see [peering.Broke].
func (r *Reflector) restBFD(ctx context.Context, n neighbour) {
	r.setBFD(ctx, n, false)
	r.later(ctx, peering.BFDRest, func() {
		if !r.up[n.address] && !r.held[n.address] {
			r.setBFD(ctx, n, true)
		}
	})
}

// later calls f after a time, with r.mu locked, unless ctx ends before.
func (r *Reflector) later(ctx context.Context, after time.Duration, f func()) {
	r.serving.Go(func() {
		if !backoff.Sleep(ctx, after) {
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if !r.closed {
			f()
		}
	})
}

func (r *Reflector) setBFD(ctx context.Context, n neighbour, on bool) {
	if err := peering.SetBFD(ctx, r.bgp, r.peer(n, on, false), on); err != nil {
		r.log.Warn("BFD not changed", "peer", n.name, "on", on, "err", err)
	}
}

// hold removes a peer that exceeded the limit, with its routes, which GoBGP would
// keep as for a graceful restart. It refuses the peer's connections for r.pause.
func (r *Reflector) hold(ctx context.Context, n neighbour) {
	shut := r.shut(n)
	r.replace(ctx, n, shut)
	if !r.isNamed(n.address) {
		r.add(ctx, n, shut)
	}
	r.held[n.address] = true
	r.later(ctx, r.pause, func() { r.release(ctx, n) })
}

func (r *Reflector) release(ctx context.Context, n neighbour) {
	delete(r.held, n.address)
	r.replace(ctx, n, r.peer(n, n.bfd, false))
	r.log.Info("the node may connect again", "peer", n.name, "address", n.address)
}

// replace removes a peer with all its routes, and adds it anew if the cluster lists
// it. Any other peer comes back when it connects.
func (r *Reflector) replace(ctx context.Context, n neighbour, p *api.Peer) {
	err := r.bgp.DeletePeer(ctx, &api.DeletePeerRequest{Address: n.address.String()})
	if err != nil {
		// A peer that the cluster does not list may be gone already.
		r.log.Debug("peer not removed", "peer", n.name, "err", err)
	}
	delete(r.sent, n.address)
	delete(r.counted, n.address)
	if r.isNamed(n.address) {
		r.add(ctx, n, p)
	}
}

func (r *Reflector) add(ctx context.Context, n neighbour, p *api.Peer) {
	if err := r.bgp.AddPeer(ctx, &api.AddPeerRequest{Peer: p}); err != nil {
		r.log.Error("peer not added; restart the reflector", "peer", n.name, "address", n.address, "err", err)
	}
}

// resume admits the core gateways of a started reflector when all listed nodes have
// sent their routes, or when the deferral ends. Until then a core gateway keeps the
// routes that it had.
//
// GoBGP can hold updates to a peer back itself. But it answers a route refresh (RFC
// 2918) meanwhile, and loses a withdrawal of the routes in that answer.
func (r *Reflector) resume(ctx context.Context) {
	bound := time.NewTimer(r.deferral)
	defer bound.Stop()
	tick := time.NewTicker(resumeLook)
	defer tick.Stop()
	for late := false; !late && !r.nodesAreIn(ctx); {
		select {
		case <-ctx.Done():
			return
		case <-bound.C:
			late = true
		case <-tick.C:
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	for _, n := range r.named {
		switch {
		case n.role == RoleCore:
			r.replace(ctx, n, r.peer(n, n.bfd, true))
		case !r.been[n.address] && !r.held[n.address]:
			// A node that comes later must not wait for those that do not come.
			r.replace(ctx, n, r.peer(n, n.bfd, false))
		}
	}
}

// resumeLook is how often resume looks whether the nodes are there.
const resumeLook = 50 * time.Millisecond

// nodesAreIn reports whether all listed nodes have sent all of their routes: each
// has a session, and each that announced graceful restart has sent End-of-RIB (RFC
// 4724).
func (r *Reflector) nodesAreIn(ctx context.Context) bool {
	in := map[string]bool{}
	err := r.bgp.ListPeer(ctx, &api.ListPeerRequest{}, func(p *api.Peer) {
		waits := slices.ContainsFunc(p.GetAfiSafis(), func(f *api.AfiSafi) bool {
			st := f.GetMpGracefulRestart().GetState()
			return st.GetEnabled() && st.GetReceived() && !st.GetEndOfRibReceived()
		})
		established := p.GetState().GetSessionState() == api.PeerState_SESSION_STATE_ESTABLISHED
		in[p.GetState().GetNeighborAddress()] = established && !waits
	})
	return err == nil && !slices.ContainsFunc(r.named, func(n neighbour) bool { return n.role == RoleNode && !in[n.address.String()] })
}

// lookInterval is how often lookAfter counts the refused prefixes.
const lookInterval = 10 * time.Second

// lookAfter logs, until ctx ends, which peers announce refused prefixes: when their
// number changes, not route by route.
func (r *Reflector) lookAfter(ctx context.Context) {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	said := map[string]uint64{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		peers, err := r.peers(ctx, false)
		if err != nil {
			r.log.Debug("peers not read", "err", err)
			continue
		}
		for _, p := range peers {
			if n := p.refused(); n != said[p.Address] {
				said[p.Address] = n
				r.log.Warn("prefixes refused by the policy", "peer", p.Peer, "address", p.Address, "refused", n, "among them", fmt.Sprint(p.Refused))
			}
		}
	}
}
