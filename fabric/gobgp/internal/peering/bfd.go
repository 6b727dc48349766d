package peering

import (
	"context"
	"strings"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/vmfabric/vmfabric/internal/backoff"
)

const bfdInterval = 100_000 // µs (RFC 5880)

// BFD returns the configuration of BFD with a peer.
func BFD() *api.BfdPeerConfig {
	return &api.BfdPeerConfig{
		Enabled: true, DesiredMinimumTxInterval: bfdInterval, RequiredMinimumReceive: bfdInterval, DetectionMultiplier: 3,
	}
}

const (
	// bfdPace is the pause before each change of GoBGP's BFD peers. Many changes at
	// a time would deadlock with a BFD peer that asks for the end of its session.
	bfdPace = 5 * time.Millisecond
	// BFDRest is longer than a BFD session takes to end, and shorter than the time
	// that GoBGP waits before it connects again to a peer whose session ended (5
	// s).
	BFDRest = time.Second
)

// ownReset is GoBGP's disconnect message for a session that it ended itself, as it
// does when BFD fails.
const ownReset = "notification-sent code 6(cease) subcode 4"

// Broke reports whether a session ended with its connection, for example because
// the peer's process was killed, or by this side's BFD, and not by a message of the
// peer.
//
// BFD then has to rest for BFDRest. Otherwise its session ends by itself a little
// later and leaves a reset behind in GoBGP. That reset ends the next BGP session,
// and graceful restart with it. BIRD also starts BFD anew with each session, which
// ends this side's once more. After a message of the peer BFD must not rest: the
// peer's own BFD would miss it, and end the next session.
func Broke(e *apiutil.WatchEventMessage_PeerEvent) bool {
	switch e.Peer.State.DisconnectReason {
	case api.PeerState_DISCONNECT_REASON_GRACEFUL_RESTART, api.PeerState_DISCONNECT_REASON_READ_FAILED, api.PeerState_DISCONNECT_REASON_WRITE_FAILED:
		return true
	}
	return strings.Contains(e.Peer.State.DisconnectMessage, ownReset)
}

// SetBFD turns BFD with a peer on or off. The peer must have no session: GoBGP
// drops what a session negotiated.
func SetBFD(ctx context.Context, b *server.BgpServer, p *api.Peer, on bool) error {
	if !backoff.Sleep(ctx, bfdPace) {
		return ctx.Err()
	}
	p.Bfd = nil
	if on {
		p.Bfd = BFD()
	}
	_, err := b.UpdatePeer(ctx, &api.UpdatePeerRequest{Peer: p})
	return err
}
