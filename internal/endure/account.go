package endure

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Loss is what one guest's address lost in an episode.
type Loss struct {
	Guest      string
	Sent, Lost int
	Longest    time.Duration // the longest time in which nothing was answered
}

// Change is a route of the core gateway's kernel that changed.
type Change struct {
	Prefix netip.Prefix
	By     string // the node to which it leads; empty: it was removed
}

// Outcome is what came of an episode.
type Outcome struct {
	Episode Episode
	Losses  []Loss
	Changes []Change
	Right   time.Duration // from its end until everything was right
	Stall   time.Duration // the longest time for which the machine kept a path past the fabric from an answer
	Waited  time.Duration // the longest time for which its kernel kept a question about a link waiting
	Dying   time.Duration // the longest time from the kill of a process to its end
}

// row sums up the episodes of one kind.
type row struct {
	episodes, sent, lost int
	longest, right       time.Duration
}

// Account sums up a run.
type Account struct {
	acts   map[string]int
	faults map[string]int
	kills  map[string]int
	rows   map[string]*row
}

// Killed counts a process of a kind that was killed.
func (a *Account) Killed(kind string) {
	if a.kills == nil {
		a.kills = map[string]int{}
	}
	a.kills[kind]++
}

// Add adds an episode. What guests lost counts for what was done to them, and of the
// others for the fault, if there was one kind of it.
func (a *Account) Add(o Outcome) {
	if a.rows == nil {
		a.acts, a.faults, a.rows = map[string]int{}, map[string]int{}, map[string]*row{}
	}
	kinds := map[string]bool{}
	for _, f := range o.Episode.Faults {
		a.faults[f.Kind]++
		kinds[f.Kind] = true
	}
	cause := "no fault"
	switch names := slices.Sorted(maps.Keys(kinds)); {
	case len(names) == 1:
		cause = names[0]
	case len(names) > 1:
		cause = "several faults"
	}
	a.row(cause).add(o, func(l Loss) bool { return o.Episode.Of(l.Guest).Act == "" })
	for _, d := range o.Episode.Doings {
		a.acts[string(d.Act)]++
		done := "guest: " + string(d.Act)
		if len(kinds) > 0 {
			done += " under faults"
		}
		a.row(done).add(o, func(l Loss) bool { return l.Guest == d.Guest })
	}
}

func (a *Account) row(name string) *row {
	if a.rows[name] == nil {
		a.rows[name] = &row{}
	}
	return a.rows[name]
}

func (r *row) add(o Outcome, is func(Loss) bool) {
	r.episodes++
	r.right = max(r.right, o.Right)
	for _, l := range o.Losses {
		if is(l) {
			r.sent, r.lost, r.longest = r.sent+l.Sent, r.lost+l.Lost, max(r.longest, l.Longest)
		}
	}
}

// Lost lists losses that should not be: of guests to which nothing was done, while nothing
// happened that costs packets, beyond what the machine itself kept from an answer. Some
// packets are spared, as an emulated guest loses them.
func (o Outcome) Lost(spare time.Duration) (wrong []string) {
	if !o.harmless() {
		return nil
	}
	for _, l := range o.Losses {
		if o.Episode.Of(l.Guest).Act == "" && l.Lost > 0 && l.Longest > spare+2*o.Stall {
			wrong = append(wrong, fmt.Sprintf("%s lost %d of %d, for up to %v, and the machine stalled for %v", l.Guest, l.Lost, l.Sent, l.Longest, o.Stall))
		}
	}
	return wrong
}

// connects is how long a BIRD that starts waits before it connects. If the kernel does not
// show it the routes in that time, it tells its peers that it has told all of them before
// it has, and they drop those that they kept.
const connects = time.Second

// scans is how long one question may take a kernel before a router that asks three in a
// row, as BIRD does when it looks at its links and routes, is silent for the hold time.
const scans = 2 * time.Second

// outlasts is how long a process that was killed, and still has its connections, may take
// to end before peers find it silent, for the hold time, and drop its routes.
const outlasts = 5 * time.Second

// harmless reports whether guests to which nothing is done lose nothing.
func (o Outcome) harmless() bool {
	late := o.Waited > connects && slices.ContainsFunc(o.Episode.Faults, func(f Fault) bool { return f.Kind == DaemonKilled })
	return o.Episode.Harmless() && !late && o.Waited < scans && o.Dying < outlasts
}

// Strayed lists routes of the core gateway that led where a guest neither was nor went,
// and those that it lost while nothing happened that costs a route.
func (o Outcome) Strayed(before World) (wrong []string) {
	for _, c := range o.Changes {
		g := before.owner(c.Prefix.Addr())
		d := o.Episode.Of(g.Name)
		switch {
		case c.By == "" && d.Act == "" && o.harmless():
			wrong = append(wrong, fmt.Sprintf("the core gateway lost its route to %s of %s, which is on %s", c.Prefix, g.Name, or(g.On)))
		case c.By != "" && c.By != g.On && c.By != d.To:
			wrong = append(wrong, fmt.Sprintf("the core gateway sent packets for %s of %s to %s, and it was on %s", c.Prefix, g.Name, c.By, or(g.On)))
		}
	}
	return slices.Compact(wrong)
}

// Late reports whether it took longer than stated until everything was right.
func (o Outcome) Late() bool { return o.Right > o.Bound() }

// Bound is the stated time until everything is right, on this machine: as much again for
// each half of a second for which it stalls, and three times what its kernel has others
// wait. One lock of the kernel is for the links and routes of all namespaces, also of
// those that somebody else removes.
func (o Outcome) Bound() time.Duration {
	return time.Duration(float64(o.Episode.Right())*(1+2*o.Stall.Seconds())).Round(time.Millisecond) + 3*o.Waited.Round(time.Millisecond)
}

// String sums the run up.
func (a *Account) String() string {
	var b strings.Builder
	count := func(what string, of map[string]int) {
		var all []string
		for _, name := range slices.Sorted(maps.Keys(of)) {
			all = append(all, fmt.Sprintf("%s %d", name, of[name]))
		}
		fmt.Fprintf(&b, "%s: %s\n", what, strings.Join(all, ", "))
	}
	count("acts", a.acts)
	count("faults", a.faults)
	count("processes killed", a.kills)
	fmt.Fprintf(&b, "| %-31s | episodes | probes sent | lost | longest silence | longest time to right |\n| --- | ---: | ---: | ---: | ---: | ---: |\n", "while")
	for _, name := range slices.Sorted(maps.Keys(a.rows)) {
		r := a.rows[name]
		fmt.Fprintf(&b, "| %-31s | %d | %d | %d | %v | %v |\n", name, r.episodes, r.sent, r.lost, r.longest.Round(time.Millisecond), r.right.Round(10*time.Millisecond))
	}
	return b.String()
}
