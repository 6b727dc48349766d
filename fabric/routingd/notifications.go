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

// Run runs the announcer, and follows the NOTIFICATIONs of a daemon whose sessions do
// not keep the last one, until ctx ends, or Close, and returns nil then. If the daemon is
// absent or refuses, Run tries again.
func (s *Speaker) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var following sync.WaitGroup
	following.Go(func() { s.follow(ctx) })
	defer following.Wait()
	defer cancel()
	return s.Announcer.Run(ctx)
}

// follow follows the daemon's NOTIFICATIONs until ctx ends.
func (s *Speaker) follow(ctx context.Context) {
	if s.cfg.Follow == nil {
		return
	}
	retry := backoff.Backoff{First: firstRetry, Most: mostRetry}
	for {
		began := time.Now()
		err := s.cfg.Follow(ctx, s.last.note)
		if ctx.Err() != nil {
			return
		}
		s.log.Debug("NOTIFICATIONs are not followed", "daemon", s.cfg.Name, "err", err)
		if time.Since(began) > mostRetry {
			retry.Reset()
		}
		if !retry.Wait(ctx) {
			return
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
