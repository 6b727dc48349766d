package gobgp

import (
	"net/netip"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// sessions has the states of the sessions with the reflectors. It is safe for
// concurrent use.
type sessions struct {
	mu     sync.Mutex
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
}

func newSessions(reflectors []fabric.RR) *sessions {
	s := &sessions{byPeer: map[netip.Addr]session{}}
	for _, rr := range reflectors {
		s.byPeer[rr.Address] = session{since: time.Now()}
	}
	return s
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
