package gobgp

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

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
	mu   sync.Mutex
	last map[netip.Addr]*fabric.Notification
}

func newNotifications() *notifications {
	return &notifications{last: map[netip.Addr]*fabric.Notification{}}
}

// of gives the last of a peer; nil where there was none.
func (n *notifications) of(peer netip.Addr) *fabric.Notification {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.last[peer]
}

// keep forgets the peers that are not kept.
func (n *notifications) keep(kept func(netip.Addr) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.last, func(a netip.Addr, _ *fabric.Notification) bool { return !kept(a) })
}

func (n *notifications) note(peer netip.Addr, one *fabric.Notification) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.last[peer] = one
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
