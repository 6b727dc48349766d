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

	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/resend"
)

// peerChanged handles the events of sessions, one after the other.
func (r *Reflector) peerChanged(ctx context.Context, e *apiutil.WatchEventMessage_PeerEvent, at time.Time) {
	if e.Type != apiutil.PEER_EVENT_STATE {
		return
	}
	r.notifications.State(e.Peer.State, at)
	n := r.neighbour(e.Peer.State.NeighborAddress)
	if e.Peer.State.SessionState == bgp.BGP_FSM_OPENCONFIRM && r.getsAll(n) {
		r.openings.began(n.address, at)
	}
	if r.peers.sessionChanged(ctx, e) && r.getsAll(n) {
		r.group.Go(func() { r.resend(ctx, n) })
	}
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
	r.withdrawAgain(r.openings.established(n.address))
}

func (r *Reflector) withdrawAgain(prefixes []netip.Prefix) {
	if len(prefixes) == 0 {
		return
	}
	if err := resend.Withdraw(r.bgp, prefixes); err != nil {
		r.log.Warn("routes not withdrawn once more", "prefixes", prefixes, "err", err)
	}
}

// bestChanged handles the changes of best routes.
func (r *Reflector) bestChanged(paths []*apiutil.Path, at time.Time) {
	r.order.note(paths, at)
	if late := r.openings.withdrawn(paths, at); len(late) > 0 {
		r.group.Go(func() { r.withdrawAgain(late) })
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
	tick := time.NewTicker(resumeInterval)
	defer tick.Stop()
	for late := false; !late && !r.nodesHaveSent(ctx); {
		select {
		case <-ctx.Done():
			return
		case <-bound.C:
			late = true
		case <-tick.C:
		}
	}
	r.peers.admitCores(ctx)
}

// resumeInterval is how often resume checks whether the nodes have sent their routes.
const resumeInterval = 50 * time.Millisecond

// nodesHaveSent reports whether all listed nodes have sent all of their routes: each
// has a session, and each that announced graceful restart has sent End-of-RIB (RFC
// 4724).
func (r *Reflector) nodesHaveSent(ctx context.Context) bool {
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

// refusedInterval is how often logRefused counts the refused prefixes.
const refusedInterval = 10 * time.Second

// logRefused logs, until ctx ends, which peers announce refused prefixes: when their
// number changes, not route by route.
func (r *Reflector) logRefused(ctx context.Context) {
	tick := time.NewTicker(refusedInterval)
	defer tick.Stop()
	logged := map[string]uint64{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		peers, err := r.peers.list(ctx, false)
		if err != nil {
			r.log.Debug("peers not read", "err", err)
			continue
		}
		for _, p := range peers {
			if n := p.refused(); n != logged[p.Address] {
				logged[p.Address] = n
				r.log.Warn("prefixes refused by the policy", "peer", p.Peer, "address", p.Address, "refused", n, "among them", fmt.Sprint(p.Refused))
			}
		}
	}
}
