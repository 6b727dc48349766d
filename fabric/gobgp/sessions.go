package gobgp

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// sessions has the states of the sessions with the reflectors. It is safe for
// concurrent use.
type sessions struct {
	mu     sync.Mutex
	wanted []fabric.RR // in the order of the cluster
	byPeer map[netip.Addr]session
}

// session is the state of a session with a reflector.
type session struct {
	up    bool
	since time.Time // when it last came up or went down
	opens time.Time // when it last reached OpenConfirm
	// resuming says that the session has not been up since the speaker took up
	// earlier routes.
	resuming bool
	// end ends what goes with GoBGP's peer; nil: GoBGP has no such peer.
	end context.CancelFunc
}

func newSessions(reflectors []fabric.RR) *sessions {
	s := &sessions{byPeer: map[netip.Addr]session{}}
	s.want(reflectors)
	return s
}

// want says with which reflectors there are to be sessions.
func (s *sessions) want(reflectors []fabric.RR) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted = reflectors
	for _, rr := range reflectors {
		if _, known := s.byPeer[rr.Address]; !known {
			s.byPeer[rr.Address] = session{since: time.Now()}
		}
	}
}

// reflectors lists those with which there are to be sessions.
func (s *sessions) reflectors() []fabric.RR {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wanted
}

// opened notes that GoBGP has a peer.
func (s *sessions) opened(peer netip.Addr, end context.CancelFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.byPeer[peer]
	one.end = end
	s.byPeer[peer] = one
}

// missing lists the wanted reflectors that are no peers of GoBGP's yet.
func (s *sessions) missing() (all []fabric.RR) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, rr := range s.wanted {
		if s.byPeer[rr.Address].end == nil {
			all = append(all, rr)
		}
	}
	return all
}

// superfluous lists the peers of GoBGP's that are not wanted any more, and how long ago
// the oldest of the wanted sessions came up; ok is false if none is up.
func (s *sessions) superfluous(now time.Time) (peers []netip.Addr, replacedFor time.Duration, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for peer, one := range s.byPeer {
		wanted := slices.ContainsFunc(s.wanted, func(rr fabric.RR) bool { return rr.Address == peer })
		switch {
		case !wanted && one.end != nil:
			peers = append(peers, peer)
		case wanted && one.up:
			replacedFor, ok = max(replacedFor, now.Sub(one.since)), true
		}
	}
	return peers, replacedFor, ok
}

// closed forgets a peer that is not wanted.
func (s *sessions) closed(peer netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one := s.byPeer[peer]; one.end != nil {
		one.end()
	}
	delete(s.byPeer, peer)
}

// of returns the state of a peer's session.
func (s *sessions) of(peer netip.Addr) session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byPeer[peer]
}

// update takes the state of a session and reports whether it changed: a session
// that is down goes through several states over and over.
func (s *sessions) update(peer netip.Addr, up bool) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.byPeer[peer]
	if one.up == up {
		return false
	}
	one.up, one.since = up, time.Now()
	s.byPeer[peer] = one
	return true
}

// opening notes that a session has reached OpenConfirm.
func (s *sessions) opening(peer netip.Addr, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.byPeer[peer]
	one.opens = at
	s.byPeer[peer] = one
}

// resume notes that the next session with a peer is to resume.
func (s *sessions) resume(peer netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.byPeer[peer]
	one.resuming = true
	s.byPeer[peer] = one
}

// resumed returns the state of a session, which does not resume any more if it is
// up.
func (s *sessions) resumed(peer netip.Addr) session {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.byPeer[peer]
	if is := was; was.up {
		is.resuming = false
		s.byPeer[peer] = is
	}
	return was
}

// whileDown calls f unless there is a session with the peer. Calls of f come one at
// a time.
func (s *sessions) whileDown(peer netip.Addr, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.byPeer[peer].up {
		f()
	}
}
