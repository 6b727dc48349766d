package routingd

import (
	"context"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/backoff"
)

const (
	firstRetry = time.Second
	mostRetry  = 30 * time.Second
)

// Run follows the NOTIFICATIONs of a daemon whose sessions do not keep the last
// one, until ctx ends, and returns nil then. If the daemon is absent or refuses,
// Run tries again. Everything else works without Run.
func (s *Speaker) Run(ctx context.Context) error {
	if s.cfg.Follow == nil {
		<-ctx.Done()
		return nil
	}
	retry := backoff.Backoff{First: firstRetry, Most: mostRetry}
	for {
		began := time.Now()
		err := s.cfg.Follow(ctx, s.last.note)
		if ctx.Err() != nil {
			return nil
		}
		s.log.Debug("NOTIFICATIONs are not followed", "daemon", s.cfg.Name, "err", err)
		if time.Since(began) > mostRetry {
			retry.Reset()
		}
		if !retry.Wait(ctx) {
			return nil
		}
	}
}

// notifications has the last NOTIFICATION of each session, by the session's name.
// The zero value has none.
type notifications struct {
	mu     sync.Mutex
	byPeer map[string]*fabric.Notification
}

func (ns *notifications) note(peer string, n *fabric.Notification) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if ns.byPeer == nil {
		ns.byPeer = map[string]*fabric.Notification{}
	}
	ns.byPeer[peer] = n
}

// complete adds the followed NOTIFICATIONs to the sessions. If a session has
// another one, that is newer than the followed one and stays.
func (ns *notifications) complete(sessions []fabric.Session) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	for i, s := range sessions {
		seen := ns.byPeer[s.Peer]
		if n := s.Notification; seen != nil && (n == nil || n.Sent == seen.Sent && n.Code == seen.Code && n.Subcode == seen.Subcode) {
			sessions[i].Notification = seen
		}
	}
}
