package endure

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Act is what is done to a guest.
type Act string

// What is done to guests.
const (
	Start Act = "start"
	Stop  Act = "stop"
	Crash Act = "crash"
	Move  Act = "move"
)

// Doing is one thing that is done to a guest.
type Doing struct {
	Act   Act
	Guest string
	From  string // where the guest runs; empty: nowhere
	To    string // where it is to run; empty: nowhere
}

// String tells what is done.
func (d Doing) String() string {
	text := string(d.Act) + " " + d.Guest
	if d.From != "" {
		text += " on " + d.From
	}
	if d.To != "" {
		text += " to " + d.To
	}
	return text
}

// Episode is what is done to guests at one time, to each one thing, and what fails
// meanwhile. After it there is calm until everything is right.
type Episode struct {
	Doings []Doing
	Faults []Fault
}

// String tells the episode.
func (e Episode) String() string {
	var all []string
	for _, d := range e.Doings {
		all = append(all, d.String())
	}
	for _, f := range e.Faults {
		all = append(all, f.String())
	}
	if len(all) == 0 {
		return "nothing"
	}
	return strings.Join(all, "; ")
}

// Of returns what is done to a guest; the zero Doing: nothing.
func (e Episode) Of(guest string) Doing {
	for _, d := range e.Doings {
		if d.Guest == guest {
			return d
		}
	}
	return Doing{}
}

// on reports whether something is done to a guest on a node, of that kind if it is not
// empty.
func (e Episode) on(w World, node string, kind Kind) bool {
	return slices.ContainsFunc(e.Doings, func(d Doing) bool {
		return (d.From == node || d.To == node) && (kind == "" || w.Guest(d.Guest).Kind == kind)
	})
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

// Next makes the next episode of a world: up to three things that are done, and up to
// four faults. One in ten has none.
func (p *Planner) Next(w World) Episode {
	var e Episode
	for _, n := range p.rnd.Perm(len(w.Guests))[:min(len(w.Guests), p.rnd.IntN(4))] {
		if d := p.doing(w.Guests[n]); d.Act != "" {
			e.Doings = append(e.Doings, d)
		}
	}
	c := choice{p.rnd, w, e, map[string]bool{}}
	for range 1 + p.rnd.IntN(4) {
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

// doing chooses what is done to a guest. Of ten guests some eight run.
func (p *Planner) doing(g Guest) Doing {
	if g.On == "" {
		return Doing{Start, g.Name, "", g.Hosts[p.rnd.IntN(len(g.Hosts))]}
	}
	switch n := p.rnd.IntN(10); {
	case n < 6 && g.Kind != Attached && len(g.Hosts) > 1:
		to := g.On
		for to == g.On {
			to = g.Hosts[p.rnd.IntN(len(g.Hosts))]
		}
		return Doing{Move, g.Name, g.On, to}
	case n == 6:
		return Doing{Stop, g.Name, g.On, ""}
	case n == 7 && g.Kind != Attached:
		return Doing{Crash, g.Name, g.On, ""}
	}
	return Doing{}
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
