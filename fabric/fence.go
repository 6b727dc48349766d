package fabric

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric/internal/ownership"
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
		has = has || d.owned() && st[n] != down && st[n] != arriving
	}
	had := g.has
	g.has = has
	switch {
	case had && !has:
		g.restart = restart{left: time.Now()}
	case has && !had:
		g.restart = restart{heard: g.restart.heard}
	}
	if !has || had || a.nodes == nil {
		return false
	}
	g.claimed, g.kept = time.Now(), false
	d.Generation = ownership.Next(g.claimed, g.heard, d.Generation)
	if d.Acquired.IsZero() {
		d.Acquired = g.claimed
	}
	if !g.inherited.IsZero() && g.inherited.Before(d.Acquired) {
		d.Acquired = g.inherited
	}
	if d.Unreleased = slices.Clone(a.nodes.Names()); len(d.Unreleased) == 0 {
		time.AfterFunc(freshAtLeast, a.poke)
	}
	g.stand = stands{} // also where nobody has looked at its ports since the agent began
	maps.Copy(g.stand, st)
	for n := range d.VM.NICs {
		if g.stand[n] == settled && d.VM.Origin != "" {
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
	for _, vm := range a.overlapping(n.Prefixes) {
		unlock := a.guestLocks.lock(vm)
		one := a.yield(ctx, vm, from, n)
		unlock()
		one.Generation = max(answer.Generation, one.Generation)
		if answer.Held {
			answer.Generation = one.Generation
			continue
		}
		answer = one
	}
	return answer
}

// yield gives a guest up if the other node has it later, or another guest had
// its address before.
func (a *Agent) yield(ctx context.Context, vm string, from Node, n Notice) Answer {
	a.mu.Lock()
	g := a.guests[vm]
	if g == nil || g.want.State != Live {
		a.mu.Unlock()
		return Answer{}
	}
	d := g.want
	another := !ownership.Same(string(d.VM.Identity()), string(n.Identity))
	verdict, why := ownership.Decide(d.claim(a.node), n.claim(from.Name))
	switch {
	case d.Lost != "" && another && d.Lost == from.Name && verdict == ownership.Keep:
		a.mu.Unlock()
		a.reclaim(ctx, vm) // it was withdrawn while nobody could say for what
		return Answer{Held: true, Generation: d.Generation}.of(n, d)
	case d.Lost != "":
		if !another && n.Generation > g.heard { // it went from there to a third
			g.heard, g.want.Lost, g.want.LostGuest = n.Generation, from.Name, ""
		}
		a.mu.Unlock()
		return Answer{}
	case !g.has:
		left := g.restart.left
		g.restart.left = time.Time{}
		a.mu.Unlock()
		if !left.IsZero() && !another && n.Generation > d.Generation {
			a.wentTo(d, from.Name, time.Now(), left)
		}
		return Answer{}
	}
	answer := Answer{Held: true, Generation: d.Generation}.of(n, d)
	g.claimants = add(g.claimants, from.Name)
	if another {
		if verdict == ownership.Keep {
			g.wantedBy(a.node, from.Name, n.VM)
		}
		a.mu.Unlock()
		if verdict == ownership.Relinquish {
			a.log.Warn("an address is another guest's", "vm", vm, "node", from.Name, "guest", n.VM, "why", string(why))
			a.lose(ctx, vm, from.Name, n.VM)
			return Answer{}
		}
		return answer
	}
	g.heard = max(g.heard, n.Generation)
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
	case verdict == ownership.Keep:
		return answer // by hand it came, and by hand it goes; or it is the other node that is late
	}
	a.lose(ctx, vm, from.Name, "")
	return Answer{}.of(n, d)
}

// lose withdraws a guest that another node has later, or whose address another
// guest has had longer.
func (a *Agent) lose(ctx context.Context, vm, to, guest string) {
	began := time.Now()
	a.mu.Lock()
	g := a.guests[vm]
	g.want.Lost, g.want.LostGuest, g.want.Standby, g.want.Unreleased = to, guest, false, nil
	g.has, g.contested, g.routeGone = false, "", false
	d := g.want
	a.mu.Unlock()
	a.log.Warn("another node has it; withdrawn here", "vm", vm, "node", to, "guest", cmp.Or(guest, vm))
	err := a.withdraw(ctx, vm, d.VM.Prefixes())
	if err == nil && guest == "" {
		a.wentTo(d, to, began, time.Now())
	}
	if stored := a.keepState(ctx, d); err == nil {
		err = stored
	}
	a.settle(d, false, err)
	a.couriers.hurry() // the other node is to know who waits for it
	if err != nil {
		a.poke()
	}
}

// claimAnswered takes up what a node said to the claim of a generation.
func (a *Agent) claimAnswered(vm, node string, generation uint64, answer Answer) {
	a.inherit(vm, answer)
	if !answer.Held {
		a.mu.Lock()
		if g := a.guests[vm]; g != nil && g.contested == node {
			g.contested, g.denied = "", node
		}
		a.mu.Unlock()
		a.released(vm, node, nil)
		return
	}
	if a.keeps(vm, node, generation, answer) {
		return
	}
	defer a.guestLocks.lock(vm)()
	if a.keeps(vm, node, generation, answer) {
		return
	}
	guest := ""
	a.mu.Lock()
	if d := a.guests[vm].want; !ownership.Same(string(d.VM.Identity()), string(answer.Identity)) {
		guest = answer.VM
	}
	a.mu.Unlock()
	a.lose(context.Background(), vm, node, guest)
}

// keeps reports whether a guest stays announced although a node has answered the
// claim of a generation that it has it, or another guest with its address.
func (a *Agent) keeps(vm, node string, generation uint64, answer Answer) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	g := a.guests[vm]
	if g == nil || !g.want.owned() || g.want.Generation != generation {
		return true
	}
	verdict, why := ownership.Decide(g.want.claim(a.node), answer.claim(node))
	switch {
	case !ownership.Same(string(g.want.VM.Identity()), string(answer.Identity)):
		if verdict == ownership.Keep {
			g.wantedBy(a.node, node, answer.VM)
		}
	case why == ownership.ByHand: // its user has it on both
		g.want.Unreleased = without(g.want.Unreleased, []string{node})
	default:
		g.heard = max(g.heard, answer.Generation)
	}
	return verdict == ownership.Keep
}

// regain takes a guest back that another node had later, and has no more.
func (a *Agent) regain(vm, node string, answer Answer) {
	if answer.Held && !a.stillLost(vm, node, answer) {
		return
	}
	defer a.guestLocks.lock(vm)()
	a.mu.Lock()
	g := a.guests[vm]
	lost := g != nil && g.want.State == Live && g.want.Lost == node
	a.mu.Unlock()
	switch {
	case !lost:
	case answer.Held:
		a.redoStandby(context.Background(), vm, false)
	default:
		a.log.Info("the other node has let go; announced here again", "vm", vm, "node", node)
		a.reclaim(context.Background(), vm)
	}
}

// stillLost takes up that a node has a guest yet, and reports whether it is
// announced here, in case the node has it no more.
func (a *Agent) stillLost(vm, node string, answer Answer) (announced bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	g := a.guests[vm]
	if g == nil || g.want.Lost != node {
		return false
	}
	g.routeGone = false
	if answer.Identity != "" {
		g.want.LostGuest = ""
		if answer.Identity != g.want.VM.Identity() {
			g.want.LostGuest = answer.VM
		}
	}
	return g.want.Standby
}

// reclaim has a guest announced again that another node had.
func (a *Agent) reclaim(ctx context.Context, vm string) {
	a.mu.Lock()
	g := a.guests[vm]
	g.want.Lost, g.want.LostGuest, g.want.Standby, g.routeGone = "", "", false, false
	a.mu.Unlock()
	if err := a.redo(ctx, vm, nil); err != nil {
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

// keepState stores what was found out of a guest. That of one which is here, and
// of which no state can be read, stays as it is on the disk until somebody says
// what the guest is.
func (a *Agent) keepState(ctx context.Context, d Desired) error {
	a.mu.Lock()
	g := a.guests[d.VM.Name]
	orphan := g != nil && g.orphan
	a.mu.Unlock()
	if orphan {
		return nil
	}
	return a.store.Put(ctx, d)
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
	if err := a.keepState(context.Background(), d); err != nil {
		a.log.Warn("state not kept", "vm", vm, "err", err)
	}
}

// lostText says, for people, that another node has a guest.
func lostText(d Desired, self string) string {
	text := fmt.Sprintf("%s has it, and began to run it later, so it is not announced here", d.Lost)
	if d.LostGuest != "" {
		text = fmt.Sprintf("guest %s on %s has an address of it, and has had it longer, so %s is not announced on %s", d.LostGuest, d.Lost, d.VM.Name, self)
	}
	if d.Standby {
		text += fmt.Sprintf("; %s does not answer now, so it is announced with LOCAL_PREF %d, in case nobody else has it", d.Lost, Standby)
	}
	if d.LostGuest != "" {
		return text + "; stop one of the two, or give it another address"
	}
	return text + "; stop the guest here, or start it anew to take it back"
}

// add gives the list with a name in it.
func add(names []string, name string) []string {
	if slices.Contains(names, name) {
		return names
	}
	return append(names, name)
}
