package simulate

import (
	"cmp"
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

// Kind is the kind of a step of a [History].
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
	Deafen                // the node's hypervisor emits no event for a time, then that some were lost
	Copy                  // another guest with the addresses of this one runs on the node for a time
	Damage                // somebody removes a route of the guest's port
	PowerOff              // the node loses power for a time, and its guests with it
	Twice                 // the guest is started on a second node while it runs on the first, then ends on one of them
	Fail                  // a start of the guest on the node fails in the middle, whether it runs elsewhere or not
	Forget                // the node's agent is killed, and the node loses its disk
	Slow                  // the node's kernel and disk take 300 times as long, for a time
	Full                  // the node's disk is full for a time
	DrainNode             // the node is drained for a time
	SetClock              // the node's clock is set, and wrong from then on
	Garble                // messages from and to the node's agent come late, twice or out of order for a time
	Share                 // the nodes share a registry from the beginning
	Unreach               // the registry does not answer the node for a time
	Away                  // the registry answers no node for a time
	kinds
)

var kindNames = [...]string{
	Start: "start", Stop: "stop", Crash: "crash", Migrate: "migrate", Abort: "abort", Return: "return", Kill: "kill",
	Twice: "run twice", Fail: "fail to start", Forget: "lose the disk of", Cut: "cut", Deafen: "deafen", Copy: "copy", Damage: "damage", PowerOff: "power off", Slow: "slow down", Full: "fill the disk of", DrainNode: "drain",
	SetClock: "set the clock of", Garble: "garble the messages of",
	Share: "share a registry", Unreach: "cut off from the registry", Away: "take the registry away",
}

// String returns the step's word.
func (k Kind) String() string {
	if k < 0 || k >= kinds {
		return fmt.Sprintf("Kind(%d)", int(k))
	}
	return kindNames[k]
}

// ordinary reports whether the step is neither a failure nor a disturbance of the
// agents.
func (k Kind) ordinary() bool {
	return slices.Contains([]Kind{Start, Stop, Crash, Migrate, Abort, Return, Fail}, k)
}

// weights are the relative frequencies of the kinds.
var weights = [kinds]int{
	Start: 8, Stop: 4, Crash: 2, Migrate: 12, Abort: 3, Return: 3, Twice: 6, Fail: 4, Kill: 5, Cut: 3, Deafen: 2, Copy: 4, Damage: 2, PowerOff: 2, Forget: 1, DrainNode: 2, Slow: 2, Full: 2,
}

// Step is one event of a history.
type Step struct {
	At    time.Duration // since the beginning
	Kind  Kind
	Guest int           // the number of the guest
	Node  int           // the number of the node
	Other int           // the other node of a cut
	For   time.Duration // how long
	By    time.Duration // by how much a clock is ahead
	Seed  uint64        // of the delays within
}

// String describes the step in a sentence.
func (s Step) String() string {
	at := fmt.Sprintf("%8.3fs  ", s.At.Seconds())
	guest, node := guestName(s.Guest), nodeName(s.Node)
	span := s.For.Round(time.Millisecond)
	switch s.Kind {
	case Start, Migrate, Abort, Return, Fail:
		return fmt.Sprintf("%s%s %s, node %s", at, s.Kind, guest, node)
	case Stop, Crash, Damage:
		return fmt.Sprintf("%s%s %s", at, s.Kind, guest)
	case Cut:
		return fmt.Sprintf("%scut %s and %s off from each other for %v", at, node, nodeName(s.Other), span)
	case Twice:
		return fmt.Sprintf("%srun %s on %s too for %v", at, guest, node, span)
	case SetClock:
		return fmt.Sprintf("%s%s %s %+v off", at, s.Kind, node, s.By)
	case Share:
		return at + s.Kind.String()
	case Away:
		return fmt.Sprintf("%s%s for %v", at, s.Kind, span)
	case Copy:
		return fmt.Sprintf("%sa copy of %s runs on %s for %v", at, guest, node, span)
	default:
		return fmt.Sprintf("%s%s %s for %v", at, s.Kind, node, span)
	}
}

// History is a list of steps in the order of their times.
type History []Step

// String tells the history as a story, a line for each step.
func (h History) String() string {
	var b strings.Builder
	for _, s := range h {
		fmt.Fprintln(&b, s)
	}
	return b.String()
}

// Length returns the time when the last step ends.
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
	w := writer{rnd: rnd}
	clocks, garbles := rnd.IntN(4) == 0, rnd.IntN(4) == 0
	if clocks {
		for n := range nodes {
			w.add(Step{Kind: SetClock, Node: n, By: w.wrong()})
		}
		w.at += time.Millisecond
	}
	for g := range guests { // start all guests first
		w.add(Step{Kind: Start, Guest: g, Node: rnd.IntN(nodes)})
		w.at += between(rnd, 0, 50*time.Millisecond)
	}
	for range 4 + rnd.IntN(14) {
		// Half of the steps come while the one before is still under way.
		if rnd.IntN(2) == 0 {
			w.at += between(rnd, 0, time.Second)
		} else {
			w.at += between(rnd, time.Second, 30*time.Second)
		}
		pick := rnd.IntN(total)
		kind := Kind(0)
		for ; pick >= weights[kind]; kind++ {
			pick -= weights[kind]
		}
		w.scene(kind)
	}
	end := w.at
	for range rnd.IntN(4) {
		w.at = between(rnd, 0, end)
		if clocks {
			w.add(Step{Kind: SetClock, Node: rnd.IntN(nodes), By: w.wrong()})
		}
		if w.at = between(rnd, 0, end); garbles {
			w.add(Step{Kind: Garble, Node: rnd.IntN(nodes)})
		}
	}
	slices.SortStableFunc(w.history, func(a, b Step) int { return cmp.Compare(a.At, b.At) })
	return w.history
}

// Shared gives a history in which the nodes share a registry, which is away at times. It
// is the history of the same seed otherwise.
func Shared(seed uint64, h History) History {
	w := writer{rnd: rand.New(rand.NewPCG(seed, 0x7265676973740000))}
	end := h.Length()
	w.add(Step{Kind: Share, At: 1})
	for range 1 + w.rnd.IntN(4) {
		w.at = between(w.rnd, 2, end)
		s := Step{Kind: Away, Node: w.rnd.IntN(nodes), For: between(w.rnd, 100*time.Millisecond, 2*time.Minute)}
		if w.rnd.IntN(2) == 0 {
			s.Kind = Unreach
		}
		w.add(s)
	}
	all := slices.Concat(w.history, h)
	slices.SortStableFunc(all, func(a, b Step) int { return cmp.Compare(a.At, b.At) })
	return all
}

// writer writes a history. It knows where each guest is if all goes well.
type writer struct {
	rnd     *rand.Rand
	history History
	at      time.Duration
	where   [guests]int
}

// add writes a step, at the writer's present time unless the step has one. It draws
// the values that the step lacks.
func (w *writer) add(s Step) {
	if s.At == 0 {
		s.At = w.at
	}
	if s.Seed == 0 {
		s.Seed = w.rnd.Uint64()
	}
	if s.Other == s.Node {
		s.Other = (s.Node + 1 + w.rnd.IntN(nodes-1)) % nodes
	}
	if s.For == 0 {
		s.For = w.span(s.Kind)
	}
	if s.Kind == Start || s.Kind == Migrate {
		w.where[s.Guest] = s.Node
	}
	w.history = append(w.history, s)
}

// span draws how long a step of a kind takes. It is zero for a step that ends by
// itself.
func (w *writer) span(k Kind) time.Duration {
	switch k {
	case Kill, Forget:
		return between(w.rnd, 50*time.Millisecond, 20*time.Second)
	case Deafen: // until the agent notices the broken connection, and makes a new one
		return between(w.rnd, 50*time.Millisecond, 2*time.Second)
	case Cut, DrainNode, Slow, Full, Garble:
		return between(w.rnd, 100*time.Millisecond, time.Minute)
	case Copy, Twice:
		return between(w.rnd, time.Second, time.Minute)
	case PowerOff:
		return between(w.rnd, 5*time.Second, time.Minute)
	}
	return 0
}

// wrong draws by how much a clock is wrong: by a second at most, by seconds, by
// minutes, or by as much as another time zone.
func (w *writer) wrong() time.Duration {
	most := [...]time.Duration{time.Second, 10 * time.Second, 10 * time.Minute, 14 * time.Hour}[w.rnd.IntN(4)]
	return between(w.rnd, -most, most).Round(time.Millisecond)
}

// copied returns how long a live migration takes until its guest stands still,
// without its hooks.
func copied(seed uint64) time.Duration {
	d := delays{rand.New(rand.NewPCG(seed, stepDelays))}
	return between(d.rnd, time.Millisecond, 100*time.Millisecond) + between(d.rnd, 10*time.Millisecond, longest(d.rnd))
}

// remains reports whether the process of a guest that moves live stands still at its
// source for a while, if nothing else happens. It draws what guest.migrate draws.
func remains(seed uint64) bool {
	d := delays{rand.New(rand.NewPCG(seed, stepDelays))}
	between(d.rnd, time.Millisecond, 100*time.Millisecond)
	longest := longest(d.rnd)
	for _, most := range []time.Duration{longest, 5 * time.Millisecond, 80 * time.Millisecond, 3 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond} {
		between(d.rnd, 0, most)
	}
	return d.rnd.IntN(2) == 0
}

// staysFirst reports whether a guest of libvirt that runs on two nodes stays on the first,
// if nothing else happens. It draws what guest.twiceOn draws.
func staysFirst(seed uint64) bool {
	d := delays{rand.New(rand.NewPCG(seed, stepDelays))}
	between(d.rnd, 0, 99*time.Millisecond)
	between(d.rnd, 0, 5*time.Millisecond)
	return d.rnd.IntN(3) == 0
}

// stepDelays makes the random delays within a step independent of those of the
// history.
const stepDelays = 0x7374657000000000

// scene writes a step, and often failures of its nodes while it is under way.
func (w *writer) scene(k Kind) {
	s := Step{Kind: k, Guest: w.rnd.IntN(guests), Node: w.rnd.IntN(nodes), Seed: w.rnd.Uint64()}
	from := w.where[s.Guest]
	between2 := k == Migrate || k == Abort || k == Return || k == Twice || k == Fail
	if between2 && s.Node == from {
		s.Node = (from + 1 + w.rnd.IntN(nodes-1)) % nodes
	}
	if k == Twice && w.rnd.IntN(2) == 0 { // the guest's first node is off the network
		s.For = between(w.rnd, 5*time.Second, 40*time.Second)
		for n := range nodes {
			if n != from {
				w.add(Step{Kind: Cut, Node: from, Other: n, For: s.For + between(w.rnd, 0, 20*time.Second)})
			}
		}
		w.at += between(w.rnd, time.Millisecond, 5*time.Second)
	}
	if k == Copy && w.rnd.IntN(2) == 0 { // its node does not reach the guest's, before or after its start
		s.Node = (from + 1 + w.rnd.IntN(nodes-1)) % nodes
		s.For = between(w.rnd, 5*time.Second, time.Minute)
		w.add(Step{Kind: Cut, Node: from, Other: s.Node, At: max(1, w.at+between(w.rnd, -2*time.Second, 5*time.Second)), For: s.For})
	}
	if between2 && w.rnd.IntN(4) == 0 { // the hooks find no agent at first
		at := max(1, w.at-between(w.rnd, 0, time.Second))
		w.add(Step{Kind: Kill, Node: s.Node, At: at, For: w.at + between(w.rnd, time.Second, 4*time.Second) - at})
	}
	if k != Start && (between2 || k == Stop || k == Crash) && w.rnd.IntN(5) == 0 { // an agent starts at that moment and lists the guests
		down := between(w.rnd, 50*time.Millisecond, 3*time.Second)
		w.add(Step{Kind: Kill, Node: from, At: max(1, w.at-down-between(w.rnd, 0, 600*time.Millisecond)), For: down})
	}
	w.add(s)
	if k == PowerOff { // some of its guests are started elsewhere
		for g, at := range w.where {
			if at == s.Node && w.rnd.IntN(3) > 0 {
				w.add(Step{Kind: Start, Guest: g, Node: (at + 1 + w.rnd.IntN(nodes-1)) % nodes, At: w.at + between(w.rnd, time.Second, 20*time.Second)})
			}
		}
	}
	if k == DrainNode { // its guests move away
		for g, at := range w.where {
			if at == s.Node && w.rnd.IntN(3) > 0 {
				w.add(Step{Kind: Migrate, Guest: g, Node: (at + 1 + w.rnd.IntN(nodes-1)) % nodes, At: w.at + between(w.rnd, 100*time.Millisecond, 10*time.Second)})
			}
		}
	}
	if k == Return && w.rnd.IntN(2) == 0 { // its packets are on their way to the other node
		w.add(Step{Kind: Kill, Node: from, At: w.at + copied(s.Seed) + between(w.rnd, 0, 100*time.Millisecond), For: between(w.rnd, 50*time.Millisecond, 2*time.Second)})
		return
	}
	if k == Migrate && w.rnd.IntN(4) == 0 { // the guest runs there, and its process may remain here
		at := w.at + copied(s.Seed) + between(w.rnd, 200*time.Millisecond, 2*time.Second)
		w.add(Step{Kind: Kill, Node: from, At: at, For: between(w.rnd, 50*time.Millisecond, time.Second)})
		if w.rnd.IntN(2) == 0 { // and its agent does not hear which node has the guest now
			w.add(Step{Kind: Cut, Node: from, Other: s.Node, At: at, For: between(w.rnd, 5*time.Second, 20*time.Second)})
		}
		return
	}
	if !between2 && k != Start || w.rnd.IntN(2) == 0 {
		return
	}
	trouble := []Kind{Kill, Kill, Kill, Kill, Cut, Deafen, Crash, PowerOff, Forget, Full, Slow}
	t := Step{Kind: trouble[w.rnd.IntN(len(trouble))], Guest: s.Guest, Node: s.Node, Other: from, At: w.at + between(w.rnd, time.Millisecond, 3*time.Second)}
	if k != Start && w.rnd.IntN(2) == 0 { // while the guest stands still, or a little later
		t.At = w.at + copied(s.Seed) + between(w.rnd, 0, 200*time.Millisecond)
	}
	if w.rnd.IntN(2) == 0 {
		t.Node, t.Other = from, s.Node
	}
	if t.Kind == Kill && w.rnd.IntN(2) == 0 { // the agent is back before the move is over
		t.For = between(w.rnd, 50*time.Millisecond, time.Second)
	}
	w.add(t)
}

func between(rnd *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(rnd.Int64N(int64(most-least)))
}

// Shrink leaves out steps as long as the remaining history still fails.
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
