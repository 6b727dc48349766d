package gobgp

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/vmfabric/vmfabric/fabric"
)

// How GoBGP words, in its log, that it sent or received a NOTIFICATION. It tells
// what is in one nowhere else: a peer's event has the code of some, and the
// words of none (RFC 9003).
const (
	loggedSent     = "sent notification"
	loggedReceived = "received notification"
)

// notifications keeps the last NOTIFICATION of each peer.
type notifications struct {
	mu    sync.Mutex
	peers map[netip.Addr]noticed
}

// noticed is what is known of the NOTIFICATIONs of one peer.
type noticed struct {
	last   *fabric.Notification // that GoBGP logged, or that it counted
	heard  *fabric.Notification // from the wire; hearsay until GoBGP counts it
	logged uint64               // received ones that GoBGP logged
	others uint64               // and those that it counted beside them
}

func newNotifications() *notifications {
	return &notifications{peers: map[netip.Addr]noticed{}}
}

// of gives the last of a peer; nil where there was none.
func (n *notifications) of(peer netip.Addr) *fabric.Notification {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.peers[peer].last
}

// counted takes how many GoBGP has received from a peer. One more than it has
// logged came while the session opened.
func (n *notifications) counted(peer netip.Addr, received uint64, at time.Time) {
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

// hear takes one that came from a peer's machine.
func (n *notifications) hear(peer netip.Addr, one *fabric.Notification) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.peers[peer]
	p.heard = one
	n.peers[peer] = p
}

// keep forgets the peers that are not kept.
func (n *notifications) keep(kept func(netip.Addr) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.peers, func(a netip.Addr, _ noticed) bool { return !kept(a) })
}

// note takes one that GoBGP logged.
func (n *notifications) note(peer netip.Addr, one *fabric.Notification) {
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

// through gives a logger that passes what GoBGP logs on to another, whatever
// level that has, once the notifications among it are noted.
func (n *notifications) through(log *slog.Logger) *slog.Logger {
	return slog.New(noting{log.Handler(), n, netip.Addr{}})
}

// noting is the handler of GoBGP's log.
type noting struct {
	slog.Handler
	notes *notifications
	peer  netip.Addr // whom the records are about, where they are about one
}

// Enabled implements [slog.Handler]: GoBGP logs notifications as information.
func (h noting) Enabled(ctx context.Context, level slog.Level) bool {
	return level == slog.LevelInfo || h.Handler.Enabled(ctx, level)
}

// Handle implements [slog.Handler].
func (h noting) Handle(ctx context.Context, r slog.Record) error {
	if h.peer.IsValid() && (r.Message == loggedSent || r.Message == loggedReceived) {
		h.notes.note(h.peer, notified(r))
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
	at := r.Time
	if at.IsZero() {
		at = time.Now()
	}
	return fabric.NewNotification(r.Message == loggedSent, uint8(code), uint8(subcode), communication, at)
}
