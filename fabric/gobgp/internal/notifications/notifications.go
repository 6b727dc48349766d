// Package notifications knows the last NOTIFICATION of each peer of a GoBGP server,
// which GoBGP tells in its log alone, and why a session ended without one.
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

// How GoBGP words, in its log, that it sent or received a NOTIFICATION. It tells
// what is in one nowhere else: a peer's event has the code of some, and the
// words of none (RFC 9003).
const (
	loggedSent     = "sent notification"
	loggedReceived = "received notification"
	// And that it could not connect, which it logs for who debugs, and tells nowhere
	// else.
	loggedUnconnected = "failed to connect"
)

// Tracker keeps the last NOTIFICATION of each peer. It is safe for concurrent use.
type Tracker struct {
	mu    sync.Mutex
	peers map[netip.Addr]noticed
}

// noticed is what is known of the NOTIFICATIONs of one peer.
type noticed struct {
	last   *fabric.Notification // that GoBGP logged, or that it counted
	heard  *fabric.Notification // from the wire; hearsay until GoBGP counts it
	logged uint64               // received ones that GoBGP logged
	others uint64               // and those that it counted beside them

	up      bool                   // its session is established
	failure *fabric.SessionFailure // what ended it, or the last attempt, without one
}

// New gives a tracker that knows of none.
func New() *Tracker {
	return &Tracker{peers: map[netip.Addr]noticed{}}
}

// Of gives the last of a peer; nil where there was none.
func (n *Tracker) Of(peer netip.Addr) *fabric.Notification {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.peers[peer].last
}

// Failure gives how the session with a peer, or the last attempt at one, ended
// without a NOTIFICATION; nil where it is up, or that is not known.
func (n *Tracker) Failure(peer netip.Addr) *fabric.SessionFailure {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.peers[peer].failure
}

// down tells whether a peer has no session.
func (n *Tracker) down(peer netip.Addr) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.peers[peer].up
}

// State takes over how the session of a peer stands.
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

// brokenOff are the reasons of GoBGP for a connection that ended by itself. The
// last is in the place of the others where the peer's routes are kept meanwhile.
var brokenOff = []api.PeerState_DisconnectReason{
	api.PeerState_DISCONNECT_REASON_READ_FAILED, api.PeerState_DISCONNECT_REASON_WRITE_FAILED,
	api.PeerState_DISCONNECT_REASON_GRACEFUL_RESTART,
}

// unconnected takes over why GoBGP could not connect.
func (n *Tracker) unconnected(peer netip.Addr, text string, at time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.peers[peer]
	if f := fabric.NewSessionFailure(text, at); f != nil && !p.up {
		p.failure = f
	}
	n.peers[peer] = p
}

// Counted takes how many GoBGP has received from a peer. One more than it has
// logged came while the session opened.
func (n *Tracker) Counted(peer netip.Addr, received uint64, at time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.peers[peer] = n.peers[peer].count(received, at)
}

func (p noticed) count(received uint64, at time.Time) noticed {
	if received < p.logged+p.others { // GoBGP has begun anew
		p.logged, p.others = received, 0
	}
	if received == p.logged+p.others {
		return p
	}
	p.others = received - p.logged
	one := p.heard
	if p.heard = nil; one == nil {
		one = fabric.NewNotification(false, 0, 0, "", at)
	}
	// GoBGP answers one that it did not expect with one of its own, that it was
	// not expected.
	answer := p.last != nil && p.last.Sent && p.last.Code == bgp.BGP_ERROR_FSM_ERROR
	if p.last == nil || answer || !one.At.Before(p.last.At) {
		p.last = one
	}
	return p
}

// Hear takes one that came from a peer's machine.
func (n *Tracker) Hear(peer netip.Addr, one *fabric.Notification) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.peers[peer]
	p.heard = one
	n.peers[peer] = p
}

// Keep forgets the peers that are not kept.
func (n *Tracker) Keep(kept func(netip.Addr) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.peers, func(a netip.Addr, _ noticed) bool { return !kept(a) })
}

// note takes one that GoBGP logged.
func (n *Tracker) note(peer netip.Addr, one *fabric.Notification) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.peers[peer]
	p.last = one
	if !one.Sent {
		p.logged++
		p.heard = nil
	}
	n.peers[peer] = p
}

// Through gives a logger that passes what GoBGP logs on to another, whatever
// level that has, once the notifications among it are noted.
func (n *Tracker) Through(log *slog.Logger) *slog.Logger {
	return slog.New(noting{log.Handler(), n, netip.Addr{}})
}

// noting is the handler of GoBGP's log.
type noting struct {
	slog.Handler
	notes *Tracker
	peer  netip.Addr // whom the records are about, where they are about one
}

// Enabled implements [slog.Handler]: GoBGP logs notifications as information. What
// it logs for who debugs is of interest while a peer has no session: of one that
// has, that is each update.
func (h noting) Enabled(ctx context.Context, level slog.Level) bool {
	return level == slog.LevelInfo || h.Handler.Enabled(ctx, level) ||
		level == slog.LevelDebug && h.peer.IsValid() && h.notes.down(h.peer)
}

// Handle implements [slog.Handler].
func (h noting) Handle(ctx context.Context, r slog.Record) error {
	if h.peer.IsValid() && (r.Message == loggedSent || r.Message == loggedReceived) {
		h.notes.note(h.peer, notified(r))
	}
	if h.peer.IsValid() && r.Message == loggedUnconnected {
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "Error" {
				h.notes.unconnected(h.peer, a.Value.String(), dated(r))
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
func (h noting) WithAttrs(attrs []slog.Attr) slog.Handler {
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
func (h noting) WithGroup(name string) slog.Handler {
	h.Handler = h.Handler.WithGroup(name)
	return h
}

func notified(r slog.Record) *fabric.Notification {
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
	return fabric.NewNotification(r.Message == loggedSent, uint8(code), uint8(subcode), communication, dated(r))
}

func dated(r slog.Record) time.Time {
	if r.Time.IsZero() {
		return time.Now()
	}
	return r.Time
}
