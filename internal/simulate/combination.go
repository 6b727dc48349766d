package simulate

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"
)

// The times around a combination.
const (
	calm   = 30 * time.Second // from the last step to a combination
	placed = 25 * time.Second // the longest move to the node where a combination begins
)

// combination writes a few steps that are about one guest, which runs on the node from
// when they begin.
type combination struct {
	guests int // the first of all guests that it can be about
	write  func(w *writer, guest, from, to, third int)
}

// combinations are failures that come together seldom by chance, and that each showed
// a fault.
var combinations = []combination{{domains, standsStill}, {guests, laterClock}, {guests, fullDisk}, {domains, movesOn}, {guests, cameBack}, {domains, speaksForAMoment}}

// Combined adds one combination of failures to the end of a history, which is that of
// the same seed otherwise.
func Combined(seed uint64, h History) History {
	w := writer{rnd: rand.New(rand.NewPCG(seed, 0x636f6d62696e6500)), history: slices.Clone(h)}
	c, all := combinations[w.rnd.IntN(len(combinations))], w.rnd.Perm(nodes)
	guest, from, to, third := w.rnd.IntN(c.guests), all[0], all[1], all[2]
	w.at = h.Length() + calm
	w.add(Step{Kind: Start, Guest: guest, Node: from})
	w.at += 3 * time.Second
	w.add(Step{Kind: Migrate, Guest: guest, Node: from})
	w.at += placed
	before := len(w.history)
	c.write(&w, guest, from, to, third)
	slices.SortStableFunc(w.history[before:], func(a, b Step) int { return cmp.Compare(a.At, b.At) })
	return w.history
}

// standsStill: the agent that a guest leaves dies before the guest stops. It comes back
// while the guest's process stands still, and the other node cannot tell it that the
// guest is there.
func standsStill(w *writer, guest, from, to, _ int) {
	s := Step{Kind: Migrate, Guest: guest, Node: to, Seed: w.rnd.Uint64()}
	for !remains(s.Seed) {
		s.Seed = w.rnd.Uint64()
	}
	w.add(s)
	stops := copied(s.Seed)
	dies := between(w.rnd, stops/4, stops)
	w.add(Step{Kind: Kill, Node: from, At: w.at + dies, For: stops - dies + between(w.rnd, 100*time.Millisecond, time.Second)})
	w.add(Step{Kind: Cut, Node: from, Other: to, At: w.at + dies, For: stops - dies + between(w.rnd, time.Second, 20*time.Second)})
}

// laterClock: a guest runs on two nodes. The clock of the later one is behind.
func laterClock(w *writer, guest, _, to, _ int) {
	w.add(Step{Kind: SetClock, Node: to, By: -between(w.rnd, time.Minute, 14*time.Hour).Round(time.Millisecond)})
	w.at += time.Second
	w.add(Step{Kind: Twice, Guest: guest, Node: to, For: between(w.rnd, 10*time.Second, time.Minute)})
}

// fullDisk: a guest runs on two nodes. The earlier one cannot write that, and its agent
// dies.
func fullDisk(w *writer, guest, from, to, _ int) {
	w.add(Step{Kind: Full, Node: from, For: between(w.rnd, 10*time.Second, 30*time.Second)})
	w.at += time.Second
	w.add(Step{Kind: Twice, Guest: guest, Node: to, For: between(w.rnd, 30*time.Second, time.Minute)})
	w.add(Step{Kind: Kill, Node: from, At: w.at + between(w.rnd, 2*time.Second, 8*time.Second), For: between(w.rnd, 50*time.Millisecond, 3*time.Second)})
}

// movesOn: the agent that a guest leaves dies, and its route stays at the reflectors.
// The guest moves on to a third node meanwhile.
func movesOn(w *writer, guest, from, to, third int) {
	s := Step{Kind: Migrate, Guest: guest, Node: to, Seed: w.rnd.Uint64()}
	w.add(s)
	stops := copied(s.Seed)
	dies := between(w.rnd, stops/4, stops+50*time.Millisecond)
	w.add(Step{Kind: Kill, Node: from, At: w.at + dies, For: between(w.rnd, 30*time.Second, time.Minute)})
	w.add(Step{Kind: Migrate, Guest: guest, Node: third, At: w.at + stops + between(w.rnd, 12*time.Second, 20*time.Second)})
}

// cameBack: a guest that ran on a second node for a time is where it was again, and a
// copy of it is started on the second node, which does not reach the first.
func cameBack(w *writer, guest, from, to, _ int) {
	s := Step{Kind: Twice, Guest: guest, Node: to, For: between(w.rnd, time.Second, 20*time.Second)}
	w.add(s)
	w.at += s.For + between(w.rnd, 3*time.Second, 10*time.Second)
	c := Step{Kind: Copy, Guest: guest, Node: to, For: between(w.rnd, 5*time.Second, time.Minute)}
	w.add(Step{Kind: Cut, Node: from, Other: to, For: c.For})
	w.at += between(w.rnd, 0, 2*time.Second)
	w.add(c)
}

// speaksForAMoment: a guest that ran on a second node, too, is where it was, and the
// second node cannot say so. The agents reach each other for moments, in which the second
// speaks of another guest.
func speaksForAMoment(w *writer, guest, from, to, third int) {
	other := (guest + 1 + w.rnd.IntN(guests-1)) % guests
	w.add(Step{Kind: Start, Guest: other, Node: third})
	w.at += 3 * time.Second
	w.add(Step{Kind: Migrate, Guest: other, Node: third})
	w.at += placed
	s := Step{Kind: Twice, Guest: guest, Node: to, Seed: w.rnd.Uint64(), For: between(w.rnd, 20*time.Second, 30*time.Second)}
	for !staysFirst(s.Seed) {
		s.Seed = w.rnd.Uint64()
	}
	w.add(s)
	w.add(Step{Kind: Kill, Node: from, At: w.at + 5*time.Second, For: time.Second}) // it does not know the second node's route any more
	w.at += 10 * time.Second
	w.add(Step{Kind: Migrate, Guest: other, Node: to, At: w.at + time.Second})
	for range 4 {
		s := Step{Kind: Cut, Node: from, Other: to, At: w.at, For: between(w.rnd, 40*time.Second, 50*time.Second)}
		w.add(s)
		w.at += s.For + between(w.rnd, 50*time.Millisecond, 1500*time.Millisecond)
	}
}
