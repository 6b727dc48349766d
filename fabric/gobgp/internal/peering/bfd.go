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

// BFD is the configuration of BFD with a peer.
func BFD() *api.BfdPeerConfig {
	return &api.BfdPeerConfig{
		Enabled: true, DesiredMinimumTxInterval: bfdInterval, RequiredMinimumReceive: bfdInterval, DetectionMultiplier: 3,
	}
}

const (
	// bfdPace keeps changes to GoBGP's BFD peers apart: many at a time, while one
	// of them asks for the end of its session, would wait for each other.
	bfdPace = 5 * time.Millisecond
	// BFDRest is longer than a BFD session takes to end, and shorter than GoBGP
	// leaves a peer in peace whose session ended (5 s).
	BFDRest = time.Second
)

// ownReset is how GoBGP words that it ended a session itself, as BFD has it do.
const ownReset = "notification-sent code 6(cease) subcode 4"

// Broke reports whether a session ended with its connection, as when the
// peer's process was killed, or by our own BFD, and not by a word of the peer.
//
// BFD then has to rest, for BFDRest. Its session would end by itself, a little
// later, and leave a reset behind in GoBGP that ends the next BGP session, and
// graceful restart with it; and BIRD begins BFD anew with each session, which
// ends ours once more. After a word of the peer it must not: the peer's own
// BFD would miss it, and end the next session in its turn.
func Broke(e *apiutil.WatchEventMessage_PeerEvent) bool {
	switch e.Peer.State.DisconnectReason {
	case api.PeerState_DISCONNECT_REASON_GRACEFUL_RESTART, api.PeerState_DISCONNECT_REASON_READ_FAILED, api.PeerState_DISCONNECT_REASON_WRITE_FAILED:
		return true
	}
	return strings.Contains(e.Peer.State.DisconnectMessage, ownReset)
}

// SetBFD changes a peer, which must have no session: GoBGP forgets what that
// negotiated.
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
