package gobgp

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/server"
	"github.com/vmfabric/vmfabric/fabric"
)

// GoBGP loses a change that comes while a session is being established. It first
// sends the peer what is in the table, as part of telling the change of state,
// and takes the session for established after that: what changes between the
// two is in neither. So the table is sent once more when GoBGP has the session
// for established.

const (
	stateLook = time.Millisecond
	stateWait = 10 * time.Second // far longer than GoBGP takes
)

// established waits until GoBGP takes a session for established, of which it has
// told that it is, and gives the peer then; nil when ctx ends, or the session.
func established(ctx context.Context, b *server.BgpServer, address string) *api.Peer {
	ctx, cancel := context.WithTimeout(ctx, stateWait)
	defer cancel()
	tick := time.NewTicker(stateLook)
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

// resend sends a peer the whole table.
func resend(b *server.BgpServer, address string) error {
	return b.ResetPeer(context.Background(), &api.ResetPeerRequest{Address: address, Soft: true, Direction: api.ResetPeerRequest_DIRECTION_OUT})
}

// removals are the last prefixes that were withdrawn, the oldest first.
type removals []removal

type removal struct {
	prefix netip.Prefix
	at     time.Time
}

// add notes prefixes that are withdrawn now, and forgets those that no session
// which is being established can have missed.
func (rs *removals) add(now time.Time, prefixes ...netip.Prefix) {
	old := slices.IndexFunc(*rs, func(r removal) bool { return now.Sub(r.at) < stateWait })
	if old < 0 {
		old = len(*rs)
	}
	*rs = slices.Delete(*rs, 0, old)
	for _, p := range prefixes {
		*rs = append(*rs, removal{p, now})
	}
}

// since gives those that were withdrawn from a time on, and are not announced.
func (rs removals) since(from time.Time, announced map[netip.Prefix]fabric.Route) []netip.Prefix {
	var all []netip.Prefix
	for _, r := range rs {
		if _, is := announced[r.prefix]; !is && !r.at.Before(from) && !slices.Contains(all, r.prefix) {
			all = append(all, r.prefix)
		}
	}
	return all
}
