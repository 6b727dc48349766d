package simulate

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// The size of a simulated cluster.
const (
	nodes   = 3
	guests  = 5
	domains = 3 // of the guests, those of libvirt; the others are LXD's
)

// Kind is what happens in a step of a [History].
type Kind int

// The kinds of step.
const (
	Start     Kind = iota // the guest is started on the node
	Stop                  // the guest is shut off
	Crash                 // the guest's process dies
	Migrate               // the guest moves live to the node
	Abort                 // a move that fails before the guest stopped
	Return                // a move that fails after it stopped: it goes on where it was
	Kill                  // the node's agent is killed, and started again after a time
	Cut                   // the agents of two nodes do not reach each other for a time
	Deafen                // the node's hypervisor tells no event for a time, then that some were lost
	Copy                  // a copy of the guest, another one with its addresses, runs on the node for a time
	Damage                // somebody takes a route out of the guest's port
	PowerOff              // the node loses power for a time, and its guests with it
	Slow                  // the node's kernel and disk take 300 times as long, for a time
	Full                  // nothing can be written to the node's disk for a time
	DrainNode             // the node is drained for a time
	kinds
)

var kindNames = [...]string{
	Start: "start", Stop: "stop", Crash: "crash", Migrate: "migrate", Abort: "abort", Return: "return", Kill: "kill",
	Cut: "cut", Deafen: "deafen", Copy: "copy", Damage: "damage", PowerOff: "power off", Slow: "slow down", Full: "fill the disk of", DrainNode: "drain",
}

// String gives the step's word.
func (k Kind) String() string {
	if k < 0 || k >= kinds {
		return fmt.Sprintf("Kind(%d)", int(k))
	}
	return kindNames[k]
}

// ordinary reports whether the step is nothing that breaks, or disturbs the agents.
func (k Kind) ordinary() bool {
	return slices.Contains([]Kind{Start, Stop, Crash, Migrate, Abort, Return}, k)
}

// weights say how often a kind is drawn.
var weights = [kinds]int{
	Start: 10, Stop: 4, Crash: 2, Migrate: 12, Abort: 3, Return: 3, Kill: 6, Cut: 4, Deafen: 2, Copy: 4, Damage: 2, PowerOff: 1, DrainNode: 1, Slow: 3, Full: 2,
}

// Step is one thing that happens.
type Step struct {
	At    time.Duration // since the beginning
	Kind  Kind
	Guest int           // whom it is about
	Node  int           // where
	Other int           // the other node of a cut
	For   time.Duration // how long
	Seed  uint64        // of the delays within
}

// String tells the step as a sentence.
func (s Step) String() string {
	at := fmt.Sprintf("%8.3fs  ", s.At.Seconds())
	guest, node := guestName(s.Guest), nodeName(s.Node)
	span := s.For.Round(time.Millisecond)
	switch s.Kind {
	case Start, Migrate, Abort, Return:
		return fmt.Sprintf("%s%s %s, node %s", at, s.Kind, guest, node)
	case Stop, Crash, Damage:
		return fmt.Sprintf("%s%s %s", at, s.Kind, guest)
	case Cut:
		return fmt.Sprintf("%scut %s and %s off from each other for %v", at, node, nodeName(s.Other), span)
	case Copy:
		return fmt.Sprintf("%sa copy of %s runs on %s for %v", at, guest, node, span)
	default:
		return fmt.Sprintf("%s%s %s for %v", at, s.Kind, node, span)
	}
}

// History is what happens, in its order.
type History []Step

// String tells the history as a story, a line for each step.
func (h History) String() string {
	var b strings.Builder
	for _, s := range h {
		fmt.Fprintln(&b, s)
	}
	return b.String()
}

// Length is when the last step ends.
func (h History) Length() (end time.Duration) {
	for _, s := range h {
		end = max(end, s.At+s.For)
	}
	return end
}

// NewHistory makes a history from a seed. The same seed gives the same history.
func NewHistory(seed uint64) History {
	rnd := rand.New(rand.NewPCG(seed, 0x6661627269630000))
	var total int
	for _, w := range weights {
		total += w
	}
	var h History
	var at time.Duration
	for g := range guests { // a cluster that has something to lose
		h = append(h, Step{At: at, Kind: Start, Guest: g, Node: rnd.IntN(nodes), Seed: rnd.Uint64()})
		at += between(rnd, 0, 50*time.Millisecond)
	}
	for range 6 + rnd.IntN(20) {
		// Half of the steps come while the one before is still under way.
		if rnd.IntN(2) == 0 {
			at += between(rnd, 0, time.Second)
		} else {
			at += between(rnd, time.Second, 30*time.Second)
		}
		s := Step{At: at, Guest: rnd.IntN(guests), Node: rnd.IntN(nodes), Seed: rnd.Uint64()}
		s.Other = (s.Node + 1 + rnd.IntN(nodes-1)) % nodes
		pick := rnd.IntN(total)
		for s.Kind = 0; pick >= weights[s.Kind]; s.Kind++ {
			pick -= weights[s.Kind]
		}
		switch s.Kind {
		case Kill:
			s.For = between(rnd, 50*time.Millisecond, 20*time.Second)
		case Deafen: // until the connection is seen to be broken, and made anew
			s.For = between(rnd, 50*time.Millisecond, 2*time.Second)
		case Cut, DrainNode, Slow, Full:
			s.For = between(rnd, 100*time.Millisecond, time.Minute)
		case Copy:
			s.For = between(rnd, time.Second, time.Minute)
		case PowerOff:
			s.For = between(rnd, 5*time.Second, time.Minute)
		}
		h = append(h, s)
	}
	return h
}

func between(rnd *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(rnd.Int64N(int64(most-least)))
}

// Shrink leaves out steps as long as what is left still fails.
func Shrink(h History, fails func(History) bool) History {
	for size := len(h) / 2; size > 0; size /= 2 {
		for from := 0; from+size <= len(h); {
			less := slices.Concat(h[:from], h[from+size:])
			if fails(less) {
				h = less
			} else {
				from += size
			}
		}
	}
	return h
}

func nodeName(n int) string  { return fmt.Sprintf("node%d", n+1) }
func guestName(g int) string { return fmt.Sprintf("guest%d", g+1) }
