// Package notifications keeps the last NOTIFICATION of each peer of a GoBGP server,
// and why a session ended without one. GoBGP writes both to its log only.
package notifications

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/vmfabric/vmfabric/fabric"
)

// The messages with which GoBGP logs a NOTIFICATION that it sent or received. Only
// the log has its contents: a peer's event has the code of some, and the text of
// none (RFC 9003).
const (
	loggedSent     = "sent notification"
	loggedReceived = "received notification"
	// GoBGP logs a failed connection attempt at debug level, and reports it nowhere
	// else.
	loggedUnconnected = "failed to connect"
)

// Tracker keeps the last NOTIFICATION of each peer. It is safe for concurrent use.
type Tracker struct {
	mu    sync.Mutex
	peers map[netip.Addr]peerState
}

// peerState has the NOTIFICATIONs of one peer, and the state of its session.
type peerState struct {
	last     *fabric.Notification // that GoBGP logged or counted
	captured *fabric.Notification // read from the wire; anybody can forge it, so it counts only when GoBGP counts it
	logged   uint64               // how many received ones GoBGP logged
	unlogged uint64               // how many more GoBGP counted without logging them

	up      bool                   // its session is established
	failure *fabric.SessionFailure // why it, or the last attempt, ended without a NOTIFICATION
}

// New returns a tracker without peers.
func New() *Tracker {
	return &Tracker{peers: map[netip.Addr]peerState{}}
}

// Of returns the last NOTIFICATION of a peer; nil if there was none.
func (n *Tracker) Of(peer netip.Addr) *fabric.Notification {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.peers[peer].last
}

// Failure returns why the session with a peer, or the last attempt at one, ended
// without a NOTIFICATION; nil if the session is up or the reason is unknown.
func (n *Tracker) Failure(peer netip.Addr) *fabric.SessionFailure {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.peers[peer].failure
}

// down reports whether a peer has no session.
func (n *Tracker) down(peer netip.Addr) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.peers[peer].up
}

// State takes over the state of a peer's session.
func (n *Tracker) State(p apiutil.PeerState, at time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	one := n.peers[p.NeighborAddress]
	one.up = p.SessionState == bgp.BGP_FSM_ESTABLISHED
	switch {
	case one.up:
		one.failure = nil
	case p.SessionState != bgp.BGP_FSM_IDLE:
	case slices.Contains(brokenOff, p.DisconnectReason):
		one.failure = &fabric.SessionFailure{Kind: fabric.Closed, Reason: "connection closed", At: at}
	}
	n.peers[p.NeighborAddress] = one
}

// brokenOff has GoBGP's reasons for a connection that ended without a NOTIFICATION.
// GoBGP gives the last one in place of the others if it keeps the peer's routes for
// graceful restart.
var brokenOff = []api.PeerState_DisconnectReason{
	api.PeerState_DISCONNECT_REASON_READ_FAILED, api.PeerState_DISCONNECT_REASON_WRITE_FAILED,
	api.PeerState_DISCONNECT_REASON_GRACEFUL_RESTART,
}

// unconnected notes why GoBGP could not connect.
func (n *Tracker) unconnected(peer netip.Addr, text string, at time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.peers[peer]
	if f := fabric.NewSessionFailure(text, at); f != nil && !p.up {
		p.failure = f
	}
	n.peers[peer] = p
}

// Counted takes the number of NOTIFICATIONs that GoBGP has received from a peer. If
// GoBGP counted one that it did not log, it came while the session opened.
func (n *Tracker) Counted(peer netip.Addr, received uint64, at time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.peers[peer] = n.peers[peer].count(received, at)
}

func (p peerState) count(received uint64, at time.Time) peerState {
	if received < p.logged+p.unlogged { // GoBGP counts from zero again
		p.logged, p.unlogged = received, 0
	}
	if received == p.logged+p.unlogged {
		return p
	}
	p.unlogged = received - p.logged
	one := p.captured
	if p.captured = nil; one == nil {
		one = fabric.NewNotification(false, 0, 0, "", at)
	}
	// GoBGP answers a NOTIFICATION that it did not expect with one of its own, an
	// FSM error.
	answer := p.last != nil && p.last.Sent && p.last.Code == bgp.BGP_ERROR_FSM_ERROR
	if p.last == nil || answer || !one.At.Before(p.last.At) {
		p.last = one
	}
	return p
}

// Captured takes a NOTIFICATION that was captured from the wire.
func (n *Tracker) Captured(peer netip.Addr, one *fabric.Notification) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.peers[peer]
	p.captured = one
	n.peers[peer] = p
}

// Keep drops the peers for which kept is false.
func (n *Tracker) Keep(kept func(netip.Addr) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.peers, func(a netip.Addr, _ peerState) bool { return !kept(a) })
}

// record takes a NOTIFICATION that GoBGP logged.
func (n *Tracker) record(peer netip.Addr, one *fabric.Notification) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.peers[peer]
	p.last = one
	if !one.Sent {
		p.logged++
		p.captured = nil
	}
	n.peers[peer] = p
}

// Through returns a logger that notes the notifications in GoBGP's log, whatever
// the level of the given logger, and passes the records on to it.
func (n *Tracker) Through(log *slog.Logger) *slog.Logger {
	return slog.New(handler{log.Handler(), n, netip.Addr{}})
}

// handler is the handler of GoBGP's log.
type handler struct {
	slog.Handler
	tracker *Tracker
	peer    netip.Addr // the peer that the records are about, if there is one
}

// Enabled implements [slog.Handler]. GoBGP logs notifications at info level, so the
// handler takes that always. It takes debug records only while the peer has no
// session: with a session GoBGP logs each update.
func (h handler) Enabled(ctx context.Context, level slog.Level) bool {
	return level == slog.LevelInfo || h.Handler.Enabled(ctx, level) ||
		level == slog.LevelDebug && h.peer.IsValid() && h.tracker.down(h.peer)
}

// Handle implements [slog.Handler].
func (h handler) Handle(ctx context.Context, r slog.Record) error {
	if h.peer.IsValid() && (r.Message == loggedSent || r.Message == loggedReceived) {
		h.tracker.record(h.peer, notificationIn(r))
	}
	if h.peer.IsValid() && r.Message == loggedUnconnected {
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "Error" {
				h.tracker.unconnected(h.peer, a.Value.String(), timeOf(r))
			}
			return true
		})
	}
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements [slog.Handler].
func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		if a.Key != "Key" || a.Value.Kind() != slog.KindString {
			continue
		}
		if peer, err := netip.ParseAddr(a.Value.String()); err == nil {
			h.peer = peer
		}
	}
	h.Handler = h.Handler.WithAttrs(attrs)
	return h
}

// WithGroup implements [slog.Handler].
func (h handler) WithGroup(name string) slog.Handler {
	h.Handler = h.Handler.WithGroup(name)
	return h
}

// notificationIn returns the NOTIFICATION that a record is about.
func notificationIn(r slog.Record) *fabric.Notification {
	var code, subcode int64
	var communication string
	r.Attrs(func(a slog.Attr) bool {
		switch {
		case a.Key == "Code" && a.Value.Kind() == slog.KindInt64:
			code = a.Value.Int64()
		case a.Key == "Subcode" && a.Value.Kind() == slog.KindInt64:
			subcode = a.Value.Int64()
		case a.Key == "Communicated-Reason" && a.Value.Kind() == slog.KindString:
			communication = a.Value.String()
		}
		return true
	})
	return fabric.NewNotification(r.Message == loggedSent, uint8(code), uint8(subcode), communication, timeOf(r))
}

// timeOf returns the time of a record; now if it has none.
func timeOf(r slog.Record) time.Time {
	if r.Time.IsZero() {
		return time.Now()
	}
	return r.Time
}
