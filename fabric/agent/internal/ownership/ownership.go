// Package ownership decides which guest has an address, and on which node. It is
// pure: the caller passes the time in, and carries the decision out.
package ownership

import (
	"math"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// Claim describes a guest that has an address on a node, or is about to start
// there with it.
type Claim struct {
	Identity string    // of the guest; empty: its node does not say
	Acquired time.Time // since when the guest has had the address without a break, on any node
	Epoch    uint64    // of two claims to one guest, the higher is that of the later start
	Node     string
	Starting bool // the guest does not run yet
	Manual   bool // the guest was attached by hand: only its user ends it in favour of the same guest elsewhere
}

// Verdict says what happens to a guest of this node when another claim is known.
type Verdict uint8

// The verdicts.
const (
	Keep       Verdict = iota + 1 // the guest keeps the address
	Relinquish                    // the guest is withdrawn: the other one has the address
	Refuse                        // the guest is not started
	Ask                           // only the other node's agent knows
)

// String gives "keep", "relinquish", "refuse" or "ask".
func (v Verdict) String() string {
	return [...]string{Keep: "keep", Relinquish: "relinquish", Refuse: "refuse", Ask: "ask"}[v]
}

// Reason says why, in words about the other claim.
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
	OneEpoch    Reason = "the same guest with the same epoch, on the node whose name sorts first"
	NoEpoch     Reason = "the same guest, as far as the route says, which has no epoch"
)

// Same reports whether two identities can be those of one guest. An empty identity
// can be that of any guest.
func Same(a, b string) bool { return a == "" || b == "" || a == b }

// Decide says what happens to mine, given theirs. Two nodes that decide about the
// same two running guests come to opposite verdicts. If both claims are to one
// guest, the later start wins; with equal epochs, which two nodes give that could ask
// nobody, the node whose name sorts first. Of two guests, the one that has had the address
// longer wins; with equal times, the node whose name sorts first wins.
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
	case same && theirs.Epoch == mine.Epoch && theirs.Node < mine.Node:
		return Relinquish, OneEpoch
	case same:
		return Keep, RunsLater
	case before(mine, theirs):
		return Keep, HadEarlier
	}
	return Relinquish, CameLater
}

// DecideByRoute says what happens to mine when a reflector prefers a route of
// theirs. A route carries a hash of the identity and Acquired, but no epoch. So it
// does not say which node began to run the guest later, if the guest is the same or
// the route does not name it: the verdict is Ask. It suffices to decide between two
// guests, attached by hand or not.
func DecideByRoute(mine, theirs Claim) (Verdict, Reason) {
	if Same(mine.Identity, theirs.Identity) {
		return Ask, NoEpoch
	}
	return Decide(mine, theirs)
}

// before reports whether a had the address first. A claim without a time is the
// later one.
func before(a, b Claim) bool {
	switch {
	case a.Acquired.IsZero() != b.Acquired.IsZero():
		return b.Acquired.IsZero()
	case !a.Acquired.Equal(b.Acquired):
		return a.Acquired.Before(b.Acquired)
	}
	return a.Node < b.Node
}

// Ahead is how far the clock of another node may be ahead before its epochs are
// ignored. Clocks that are wrong by a time zone or a day occur in practice, so they
// pass. An epoch from further ahead would outrank all later starts until the clocks
// have caught up.
const Ahead = 36 * time.Hour

// MostAdoptions bounds the epochs of registries: it is how often one registry can have
// been adopted after it was restored.
const MostAdoptions = 1 << 16

// ByRegistry reports whether an epoch is one of a registry. All others are those of
// clocks, and lower.
func ByRegistry(epoch uint64) bool { return epoch >= fabric.RegistryEpoch }

// Plausible reports whether another node can have the epoch by now.
func Plausible(epoch uint64, now time.Time) bool {
	if ByRegistry(epoch) {
		return epoch/fabric.RegistryEpoch <= MostAdoptions
	}
	return epoch <= of(now.Add(Ahead))
}

// Next gives the epoch of a start: that of now, or one more than the highest of
// heard and own. It ignores implausible epochs, so the result never wraps.
func Next(now time.Time, heard, own uint64) uint64 {
	next := of(now)
	for _, earlier := range []uint64{heard, own} {
		if Plausible(earlier, now) && earlier < math.MaxUint64 {
			next = max(next, earlier+1)
		}
	}
	return next
}

// Following gives the epoch of a start on a node with a registry: the one that the
// registry granted, or, if it granted none or something later was heard of, the one
// after the highest of heard and own. The registry is told of that one. No clock takes
// part, and the result is above the epochs of all clocks.
func Following(granted, heard, own uint64) uint64 {
	return max(granted, fabric.RegistryEpoch, heard+1, own+1)
}

// of gives the epoch of a time, in milliseconds since 1970.
func of(t time.Time) uint64 { return uint64(max(0, t.UnixMilli())) }

// Preemption describes a guest that was withdrawn because another node has it.
type Preemption struct {
	Answered  bool          // the other node's agent has just answered
	Held      bool          // in that answer, the node has the address
	Competing bool          // a reflector has a better route of another node
	RouteGone bool          // the guest had a competing route, and it is gone
	Silent    time.Duration // for how long the other node's agent has not answered; 0: it answers
	Behind    bool          // the guest is a standby already, and the other node has not answered about it since
}

// Stance is how a preempted guest is announced.
type Stance uint8

// The stances.
const (
	Withdrawn Stance = iota + 1 // not at all: the other node has the guest
	Standby                     // behind all other nodes: nobody knows whether the other node still has the guest
	Announced                   // as before: the other node does not have the guest
)

// String gives "withdrawn", "standby" or "announced".
func (s Stance) String() string {
	return [...]string{Withdrawn: "withdrawn", Standby: "standby", Announced: "announced"}[s]
}

// SilentFor is how long the agent of the node that has a guest may be silent
// before the guest is announced behind it.
const SilentFor = 15 * time.Second

// Stance says how a preempted guest is announced. Only an answer of the other node
// gives the guest back for good. A node that does not answer may still run the
// guest; its route ranks before that of a standby.
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
