package endure

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// Act is what is done to a guest.
type Act string

// What is done to guests.
const (
	Rest  Act = "nothing"
	Start Act = "start"
	Stop  Act = "stop"
	Crash Act = "crash"
	Move  Act = "move"
)

// Episode is one thing that is done to a guest, and what fails meanwhile. After it there
// is calm until everything is right.
type Episode struct {
	Act    Act
	Guest  string // empty with [Rest]
	From   string // where the guest runs; empty: nowhere
	To     string // where it is to run; empty: nowhere
	Faults []Fault
}

// String tells the episode.
func (e Episode) String() string {
	var b strings.Builder
	b.WriteString(string(e.Act))
	if e.Guest != "" {
		b.WriteString(" " + e.Guest)
	}
	if e.From != "" {
		b.WriteString(" on " + e.From)
	}
	if e.To != "" {
		b.WriteString(" to " + e.To)
	}
	for _, f := range e.Faults {
		b.WriteString("; " + f.String())
	}
	return b.String()
}

// String tells the fault.
func (f Fault) String() string {
	text := f.Kind
	for _, of := range []string{f.At, f.Other, f.Guest} {
		if of != "" {
			text += " " + of
		}
	}
	text += fmt.Sprintf(" after %v", f.After)
	if f.Steps > 0 {
		text += fmt.Sprintf(" or %d lines of its log", f.Steps)
	}
	if f.Times > 1 {
		text += fmt.Sprintf(", %d times", f.Times)
	}
	if f.For > 0 {
		text += fmt.Sprintf(", for %v", f.For)
	}
	return text
}

// Right is the time from the end of an episode until everything is right.
func (e Episode) Right() time.Duration {
	right := undisturbed
	for _, f := range e.Faults {
		right = max(right, KindOf(f.Kind).Right)
	}
	return right
}

// Harmless reports whether guests to which nothing is done lose nothing.
func (e Episode) Harmless() bool {
	for _, f := range e.Faults {
		if !KindOf(f.Kind).Harmless {
			return false
		}
	}
	return true
}

// Planner makes episodes from a seed.
type Planner struct{ rnd *rand.Rand }

// NewPlanner returns the planner of a seed.
func NewPlanner(seed uint64) *Planner {
	return &Planner{rand.New(rand.NewPCG(seed, 0x656e64757265))}
}

// Next makes the next episode of a world.
func (p *Planner) Next(w World) Episode {
	e := p.act(w)
	c := choice{p.rnd, w, e, map[string]bool{}}
	for range 1 + p.rnd.IntN(10)/4 { // 1, 1, 1, 1, 2, 2, 2, 2, 3, 3
		f := Fault{After: upTo(p.rnd, 0, 4*time.Second)}
		k := pick(p.rnd)
		if f.Kind = k.Name; k.fill(&c, &f) {
			e.Faults = append(e.Faults, f)
		}
	}
	if p.rnd.IntN(10) == 0 {
		e.Faults = nil
	}
	return e
}

// act chooses what is done. Of ten guests some eight run.
func (p *Planner) act(w World) Episode {
	g := w.Guests[p.rnd.IntN(len(w.Guests))]
	if g.On == "" {
		return Episode{Act: Start, Guest: g.Name, To: g.Hosts[p.rnd.IntN(len(g.Hosts))]}
	}
	switch n := p.rnd.IntN(10); {
	case n < 4 && g.Kind != Attached && len(g.Hosts) > 1:
		to := g.On
		for to == g.On {
			to = g.Hosts[p.rnd.IntN(len(g.Hosts))]
		}
		return Episode{Act: Move, Guest: g.Name, From: g.On, To: to}
	case n == 4:
		return Episode{Act: Stop, Guest: g.Name, From: g.On}
	case n == 5 && g.Kind != Attached:
		return Episode{Act: Crash, Guest: g.Name, From: g.On}
	}
	return Episode{Act: Rest}
}

// pick chooses a kind by the weights.
func pick(rnd *rand.Rand) FaultKind {
	all := 0
	for _, k := range FaultKinds {
		all += k.Weight
	}
	n := rnd.IntN(all)
	for _, k := range FaultKinds {
		if n -= k.Weight; n < 0 {
			return k
		}
	}
	return FaultKinds[0]
}
