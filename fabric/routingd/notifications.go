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
// one, until ctx ends, and returns nil then. A daemon that is not there, or does
// not let us, is tried again. Without Run all else works.
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

// notifications are the last of the sessions, by their names. The zero value has
// none.
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

// complete adds to the sessions what was followed of their last NOTIFICATIONs.
// Where they say another, that is newer than any that was followed.
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
