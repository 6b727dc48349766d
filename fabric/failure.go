package fabric

import (
	"cmp"
	"fmt"
	"strings"
	"time"
)

// FailureKind is how a BGP session, or an attempt at one, ended without a
// NOTIFICATION.
type FailureKind string

// The kinds of [SessionFailure].
const (
	Closed      FailureKind = "closed"      // the peer, or its kernel, ended the connection
	Refused     FailureKind = "refused"     // nothing listens at the peer's port
	Unreachable FailureKind = "unreachable" // the peer does not answer
)

// SessionFailure is how a session, or an attempt at one, ended without a
// NOTIFICATION.
type SessionFailure struct {
	Kind   FailureKind `json:"kind"`
	Reason string      `json:"reason"`      // in the words of the system or the daemon
	At     time.Time   `json:"at,omitzero"` // zero: not known
}

// NewSessionFailure makes one from an error text of a daemon or the system; nil if
// the text is of none of the kinds.
func NewSessionFailure(text string, at time.Time) *SessionFailure {
	// Package net puts the addresses before the reason.
	if _, last, ok := strings.Cut(text, "connect: "); ok {
		text = last
	}
	f := SessionFailure{Reason: escape(text, maxCommunication), At: at}
	lower := strings.ToLower(text)
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(lower, w) {
				return true
			}
		}
		return false
	}
	switch {
	case has("refused"):
		f.Kind = Refused
	case has("closed", "reset by peer", "broken pipe", "eof"):
		f.Kind = Closed
	case has("timeout"):
		f.Kind, f.Reason = Unreachable, "no answer in time"
	case has("timed out", "no route to host", "unreachable", "host is down"):
		f.Kind = Unreachable
	default:
		return nil
	}
	return &f
}

// from says how the session ended, and the way out.
func (f SessionFailure) from(s Session) string {
	roles := s.roles()
	switch f.Kind {
	case Closed:
		return fmt.Sprintf("%s closed the connection without a NOTIFICATION, as when it is stopped; check that the %s runs and knows this %s", s.Peer, roles[0], roles[1])
	case Refused:
		return fmt.Sprintf("nothing listens for BGP at %s (%s); start the %s there, or correct its address and port in the cluster file", s.Address, f.Reason, roles[0])
	}
	return fmt.Sprintf("%s does not answer (%s); check that the machine is up, that no packet filter drops TCP port 179 between the two, and that both have the same password, without which packets are dropped", cmp.Or(s.Address, s.Peer), f.Reason)
}
