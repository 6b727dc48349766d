package fabric

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Which node has a guest is settled in two ways that hold for each other. In
// BGP, whoever began to run it last announces it as Fresh, so that no older
// announcement wins, late or returning, until every other node has let go. And
// among the agents, whoever has it claims it of all others under a generation
// higher than any that was heard of; one that finds its own to be older
// announces the guest no more.

// freshAtLeast is how long an announcement stays Fresh although all let go at
// once: the reflectors hear of that from the other node, and on their own time.
const freshAtLeast = time.Second

// unmetFor is how long a node is waited for that this agent has not met: it may
// be one that no agent can be reached on, and no announcement is to stay Fresh
// for ever over that. It is told all the same.
const unmetFor = time.Minute

// claim notes that a guest is about to be announced by this node, if it was not:
// it is this node's from now on. stand is how its NICs stand. It reports whether
// d is new. a.mu is held.
func (a *Agent) claim(g *guest, d *Desired, st stands) bool {
	has := false
	for n := range d.VM.NICs {
		has = has || d.announced() && st[n] != down && st[n] != arriving
	}
	had := g.has
	g.has = has
	switch {
	case had && !has:
		g.restart = restart{left: time.Now()}
	case has && !had:
		g.restart = restart{heard: g.restart.heard}
	}
	if !has || had || a.nodes == nil || d.VM.Origin == "" {
		return false
	}
	g.claimed, g.kept = time.Now(), false
	d.Generation = max(uint64(time.Now().UnixMilli()), g.heard+1, d.Generation+1)
	if d.Unreleased = slices.Clone(a.nodes.Names()); len(d.Unreleased) == 0 {
		time.AfterFunc(freshAtLeast, a.poke)
	}
	g.stand = maps.Clone(st)
	for n := range d.VM.NICs {
		if g.stand[n] == settled {
			g.stand[n] = arrived
		}
	}
	return true
}

// fresh tells whether a guest is announced before others: it began to run here,
// and not everybody else has let go.
func (a *Agent) fresh(g *guest, now time.Time) bool {
	switch {
	case a.nodes == nil:
		return now.Sub(g.want.Since) < freshFor
	case g.departure.to.Name != "": // it is about to go on to another node, which then comes first
		return false
	default:
		since := now.Sub(g.claimed)
		awaited := slices.ContainsFunc(g.want.Unreleased, func(n string) bool { return a.met[n] || g.kept || since < unmetFor })
		return awaited || since < freshAtLeast
	}
}

// claimed answers the node that says that it has a guest.
func (a *Agent) claimed(ctx context.Context, from Node, n Notice) (answer Answer) {
	for _, vm := range a.concerned(n.Prefixes) {
		unlock := a.guestLocks.lock(vm)
		one := a.yield(ctx, vm, from, n)
		unlock()
		answer.Held = answer.Held || one.Held
		answer.Generation = max(answer.Generation, one.Generation)
	}
	return answer
}

// yield gives a guest up if the other node has it later. The guest's lock is held.
func (a *Agent) yield(ctx context.Context, vm string, from Node, n Notice) Answer {
	a.mu.Lock()
	g := a.guests[vm]
	if g == nil || g.want.State != Live {
		a.mu.Unlock()
		return Answer{}
	}
	d := g.want
	if d.Lost == "" && !g.has {
		left := g.restart.left
		g.restart.left = time.Time{}
		a.mu.Unlock()
		if !left.IsZero() && n.Generation > d.Generation {
			a.wentTo(d, from.Name, time.Now(), left)
		}
		return Answer{}
	}
	if d.Lost != "" {
		if n.Generation > g.heard { // it went from there to a third
			g.heard, g.want.Lost = n.Generation, from.Name
		}
		a.mu.Unlock()
		return Answer{}
	}
	answer := Answer{Held: true, Generation: d.Generation}
	g.heard = max(g.heard, n.Generation)
	g.claimants = add(g.claimants, from.Name)
	leaving, unknown := d.Leaving, g.departure.to.Name != from.Name
	soon := g.departure.diverted && time.Since(g.departure.since) < freshAtLeast
	a.mu.Unlock()
	switch {
	case soon: // the routers have to hear of the other node first, which asks again
		return answer
	case leaving: // it is withdrawn when the hypervisor drops it
		if unknown {
			a.depart(ctx, vm, from)
		}
		return answer
	case d.VM.Origin == "" || n.Generation <= d.Generation:
		return answer // by hand it came, and by hand it goes; or it is the other node that is late
	}
	a.lose(ctx, vm, from.Name)
	return Answer{}
}

// lose withdraws a guest that another node has later. The guest's lock is held.
func (a *Agent) lose(ctx context.Context, vm, to string) {
	began := time.Now()
	a.mu.Lock()
	d := a.guests[vm].want
	d.Lost, d.Unreleased = to, nil
	a.guests[vm].has = false
	a.mu.Unlock()
	a.log.Warn("another node has the guest later; withdrawn here", "vm", vm, "node", to)
	err := a.withdraw(ctx, vm, d.VM.Prefixes())
	if err == nil {
		a.wentTo(d, to, began, time.Now())
	}
	if stored := a.store.Put(ctx, d); err == nil {
		err = stored
	}
	a.settle(d, false, err)
	if err != nil {
		a.poke()
	}
}

// claimAnswered takes up what a node said to the claim of a generation.
func (a *Agent) claimAnswered(vm, node string, generation uint64, answer Answer) {
	if !answer.Held {
		a.released(vm, node, nil)
		return
	}
	a.mu.Lock()
	g := a.guests[vm]
	late := g != nil && g.want.announced() && g.want.Generation == generation && answer.Generation > generation
	if late {
		g.heard = max(g.heard, answer.Generation)
	}
	a.mu.Unlock()
	if !late {
		return
	}
	defer a.guestLocks.lock(vm)()
	a.mu.Lock()
	g = a.guests[vm]
	late = g != nil && g.want.announced() && g.want.Generation == generation
	a.mu.Unlock()
	if late {
		a.lose(context.Background(), vm, node)
	}
}

// regain takes a guest back that another node had later, and has no more.
func (a *Agent) regain(vm, node string, answer Answer) {
	if answer.Held {
		return
	}
	defer a.guestLocks.lock(vm)()
	a.mu.Lock()
	g := a.guests[vm]
	lost := g != nil && g.want.State == Live && g.want.Lost == node
	if lost {
		g.want.Lost = ""
	}
	a.mu.Unlock()
	if !lost {
		return
	}
	a.log.Info("the other node has let go; announced here again", "vm", vm, "node", node)
	if err := a.redo(context.Background(), vm, nil); err != nil {
		a.poke()
	}
}

// released notes that a node does not announce a guest, and what it saw of its move.
func (a *Agent) released(vm, node string, seen *Move) {
	a.mu.Lock()
	last := false
	if g := a.guests[vm]; g != nil {
		left := without(g.want.Unreleased, []string{node})
		last = len(left) == 0 && len(g.want.Unreleased) > 0
		g.want.Unreleased = left
		if last {
			time.AfterFunc(max(0, time.Until(g.claimed.Add(freshAtLeast))), a.poke)
		}
	}
	a.mu.Unlock()
	a.moves.merge(vm, seen)
	a.cameFrom(vm, seen)
	if last {
		a.keep(vm)
	}
}

// keep stores a guest as it is wanted. Somebody who is at work on it does so
// himself; what he misses is found out anew after a restart.
func (a *Agent) keep(vm string) {
	unlock, free := a.guestLocks.tryLock(vm)
	if !free {
		return
	}
	defer unlock()
	a.mu.Lock()
	g := a.guests[vm]
	if g == nil || g.want.State == Absent {
		a.mu.Unlock()
		return
	}
	d := g.want
	a.mu.Unlock()
	if err := a.store.Put(context.Background(), d); err != nil {
		a.log.Warn("state not kept", "vm", vm, "err", err)
	}
}

// rival takes up that a reflector has another node's better route to a prefix of ours.
func (a *Agent) rival(ctx context.Context, r Rival) {
	for _, vm := range a.concerned([]netip.Prefix{r.Prefix}) {
		a.moves.saw(vm, r.Reflector, r.At)
		unlock := a.guestLocks.lock(vm)
		a.mu.Lock()
		g := a.guests[vm]
		yields := g != nil && g.want.announced() && g.has && !g.want.Leaving && g.want.VM.Origin != "" && !a.fresh(g, time.Now())
		a.mu.Unlock()
		if yields {
			a.lose(ctx, vm, a.nodeAt(r.Via))
		}
		unlock()
	}
}

// nodeAt names the node that has an address.
func (a *Agent) nodeAt(addr netip.Addr) string {
	for _, n := range a.cluster.Nodes {
		if addr == n.Address || addr == n.Address6 {
			return n.Name
		}
	}
	return addr.String()
}

// lostText says, for people, that another node has a guest.
func lostText(d Desired) string {
	return fmt.Sprintf("%s has it, and began to run it later, so it is not announced here; stop the guest here, or start it anew to take it back", d.Lost)
}

// add gives the list with a name in it.
func add(names []string, name string) []string {
	if slices.Contains(names, name) {
		return names
	}
	return append(names, name)
}
