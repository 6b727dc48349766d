// Package ownership decides which guest has an address, and on which node. It
// looks at plain values alone: time comes in with them, and nothing is done here.
package ownership

import (
	"math"
	"time"
)

// Claim is what is known of a guest that has an address on a node, or is about
// to be started there with it.
type Claim struct {
	Identity string    // which guest it is; empty: its node does not say
	Acquired time.Time // since when the guest has the address without a break, on whichever node it ran
	Epoch    uint64    // orders what several nodes say of the same guest: the higher began to run it later
	Node     string
	Starting bool // it does not run yet
	Manual   bool // attached by hand: only its user ends it in favour of the same guest elsewhere
}

// Verdict is what is to be done with a guest of which another claim is heard.
type Verdict uint8

// The verdicts.
const (
	Keep       Verdict = iota + 1 // it has the address
	Relinquish                    // it is withdrawn: the other one has it
	Refuse                        // it is not started
	Ask                           // only the other node's agent knows
)

// String gives "keep", "relinquish", "refuse" or "ask".
func (v Verdict) String() string {
	return [...]string{Keep: "keep", Relinquish: "relinquish", Refuse: "refuse", Ask: "ask"}[v]
}

// Reason is why.
type Reason string

// The reasons.
const (
	RunsLater   Reason = "the same guest, which began to run here later"
	RanEarlier  Reason = "the same guest, which began to run there later"
	ByHand      Reason = "the same guest, which was attached here by hand"
	Moves       Reason = "the same guest, which is started here anew"
	HadEarlier  Reason = "another guest, which got the address later"
	CameLater   Reason = "another guest, which had the address before"
	HeldByOther Reason = "another guest has the address"
	NoEpoch     Reason = "the same guest, as far as the route says, which has no epoch"
)

// Same reports whether two identities are one guest's, as far as is known: that
// of an agent which does not tell is taken for any.
func Same(a, b string) bool { return a == "" || b == "" || a == b }

// Decide says what becomes of mine, now that theirs is heard of. Two nodes that
// decide about the same two running guests come to opposite verdicts. Of one
// guest the later start counts, of two guests the one that has had the address
// longer; where the clocks do not tell, the names of the nodes do.
func Decide(mine, theirs Claim) (Verdict, Reason) {
	same := Same(mine.Identity, theirs.Identity)
	switch {
	case mine.Starting && same:
		return Keep, Moves
	case mine.Starting:
		return Refuse, HeldByOther
	case same && mine.Manual:
		return Keep, ByHand
	case same && theirs.Epoch > mine.Epoch:
		return Relinquish, RanEarlier
	case same:
		return Keep, RunsLater
	case before(mine, theirs):
		return Keep, HadEarlier
	}
	return Relinquish, CameLater
}

// DecideByRoute says what becomes of mine, now that a reflector has a route of
// theirs that comes before it. A route has room for a hash of the identity and
// for Acquired, and for no epoch: of the same guest, or of one that the route
// does not name, it does not say who began to run it later. Of two guests it
// says enough, whether they were attached by hand or not.
func DecideByRoute(mine, theirs Claim) (Verdict, Reason) {
	if Same(mine.Identity, theirs.Identity) {
		return Ask, NoEpoch
	}
	return Decide(mine, theirs)
}

// before reports whether a had the address first. A claim without a time is the later one.
func before(a, b Claim) bool {
	switch {
	case a.Acquired.IsZero() != b.Acquired.IsZero():
		return b.Acquired.IsZero()
	case !a.Acquired.Equal(b.Acquired):
		return a.Acquired.Before(b.Acquired)
	}
	return a.Node < b.Node
}

// Ahead is how far the clock of another node may be ahead before what it says
// of epochs is not believed. Clocks that are wrong by a time zone, or a day, are
// found; an epoch beyond that would outrank every later start for as long.
const Ahead = 36 * time.Hour

// Plausible reports whether another node can have given an epoch by now.
func Plausible(epoch uint64, now time.Time) bool { return epoch <= of(now.Add(Ahead)) }

// Next gives the epoch of a start: that of now, or one more than the highest
// that was heard of or had before. What cannot be is left out, so it never wraps.
func Next(now time.Time, heard, own uint64) uint64 {
	next := of(now)
	for _, earlier := range []uint64{heard, own} {
		if Plausible(earlier, now) && earlier < math.MaxUint64 {
			next = max(next, earlier+1)
		}
	}
	return next
}

// of gives the epoch of a time: milliseconds since 1970.
func of(t time.Time) uint64 { return uint64(max(0, t.UnixMilli())) }

// Preemption is what is known of a guest that was withdrawn because another node has it.
type Preemption struct {
	Answered  bool          // the other node's agent has just answered
	Held      bool          // and says that it has the address
	Competing bool          // a reflector has a better route of another node
	RouteGone bool          // such a route was the reason, and is not there any more
	Silent    time.Duration // since when the other node's agent does not answer; 0: it does
	Behind    bool          // it is announced behind already, and the other node has not answered about it since
}

// Stance is how a preempted guest is announced.
type Stance uint8

// The stances.
const (
	Withdrawn Stance = iota + 1 // the other node has it
	Standby                     // behind whoever has it: nobody knows whether the other node still does
	Announced                   // as before: the other node does not have it
)

// String gives "withdrawn", "standby" or "announced".
func (s Stance) String() string {
	return [...]string{Withdrawn: "withdrawn", Standby: "standby", Announced: "announced"}[s]
}

// SilentFor is how long the agent of the node that has a guest may be silent
// before the guest is announced behind it.
const SilentFor = 15 * time.Second

// Stance says how a preempted guest is announced. Only the other node's word
// gives it back for good: one that is silent may still run it, with a route that
// comes before that of a standby.
func (p Preemption) Stance() Stance {
	switch {
	case p.Answered && !p.Held:
		return Announced
	case p.Answered || p.Silent == 0 || p.Competing:
		return Withdrawn
	case p.RouteGone || p.Behind || p.Silent >= SilentFor:
		return Standby
	}
	return Withdrawn
}
