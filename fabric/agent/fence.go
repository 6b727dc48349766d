package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/migration"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/ownership"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/plan"
)

// Two mechanisms decide which node has a guest; either suffices. In BGP, the node
// that began to run it last announces it as Fresh until every other node has let
// go, so that no older announcement wins, late or returning. Among the agents, the
// node that has it claims it of all others under an epoch higher than any that it
// heard of; a node whose own epoch is older withdraws the guest.

// freshAtLeast is how long an announcement stays Fresh although all let go at
// once: the reflectors hear of that from the other node, and on their own time.
const freshAtLeast = time.Second

// unmetFor is how long a node is waited for that this agent has not met: it may
// be one that no agent can be reached on, and no announcement is to stay Fresh
// for ever over that. It is told all the same.
const unmetFor = time.Minute

// freshFor is how long after its start on a node a guest's announcement goes
// before that of another node, which is the one that the guest has left, where
// nobody can say when that has let go. It ends with the next pass.
const freshFor = 30 * time.Second

// takeOwnership notes that a guest is about to be announced by this node, if it was not:
// it is this node's from now on, and the others are to let go of it. nics is what is
// known of its NICs. It reports whether d is new.
func (s *state) takeOwnership(g *guest, d *fabric.Desired, nics plan.NICStates, others []string) bool {
	has := false
	for n := range d.VM.NICs {
		has = has || owned(*d) && nics[n] != plan.Down && nics[n] != plan.Arriving
	}
	had := g.has
	g.has = has
	switch {
	case had && !has:
		g.restart = restart{left: time.Now()}
	case has && !had:
		g.restart = restart{heard: g.restart.heard}
	}
	if !has || had || s.alone {
		return false
	}
	g.claimed, g.kept = time.Now(), false
	d.Epoch = ownership.Next(s.clock(), g.heard, d.Epoch)
	if d.Acquired.IsZero() {
		d.Acquired = s.clock()
	}
	if !g.inherited.IsZero() && g.inherited.Before(d.Acquired) {
		d.Acquired = g.inherited
	}
	if d.Unreleased = slices.Clone(others); len(d.Unreleased) == 0 {
		s.later(freshAtLeast)
	}
	g.nics = plan.NICStates{} // also where nobody has looked at its ports since the agent began
	maps.Copy(g.nics, nics)
	for n := range d.VM.NICs {
		if g.nics[n] == plan.Settled && d.VM.Origin != "" {
			g.nics[n] = plan.Arrived
		}
	}
	return true
}

// fresh tells whether a guest is announced before others: it began to run here,
// and not everybody else has let go. Of one that was attached by hand, it is its
// user who knows where else it is. It comes first only while a node is silent,
// which may have another guest with an address of it: only so do the reflectors
// tell that node of the route.
func (s *state) fresh(g *guest, now time.Time) bool {
	switch {
	case s.alone:
		return g.want.VM.Origin != "" && now.Sub(g.want.Since) < freshFor
	case g.departure.to.Name != "": // it is about to go on to another node, which then comes first
		return slices.ContainsFunc(g.want.Unreleased, func(n string) bool {
			_, silent := s.peers.silent[n]
			return silent && n != g.departure.to.Name && s.awaits(g, n, now)
		})
	case g.want.VM.Origin == "":
		return slices.ContainsFunc(g.want.Unreleased, func(n string) bool {
			_, silent := s.peers.silent[n]
			return silent && (s.peers.met[n] || g.kept)
		})
	default:
		awaited := slices.ContainsFunc(g.want.Unreleased, func(n string) bool { return s.awaits(g, n, now) })
		return awaited || now.Sub(g.claimed) < freshAtLeast
	}
}

// awaits reports whether a node that has not let go of a guest may announce it yet.
func (s *state) awaits(g *guest, node string, now time.Time) bool {
	return s.peers.met[node] || g.kept || now.Sub(g.claimed) < unmetFor
}

// claimed answers the node that says that it has a guest.
func (a *Agent) claimed(ctx context.Context, from fabric.Node, n fabric.Notice) (answer fabric.Answer) {
	for _, vm := range a.overlapping(n.Prefixes) {
		t, end := a.begin(vm)
		one := t.relinquish(ctx, from, n)
		end()
		one.Epoch = max(answer.Epoch, one.Epoch)
		if answer.Held {
			answer.Epoch = one.Epoch
			continue
		}
		answer = one
	}
	return answer
}

// relinquish gives a guest up if the other node has it later, or another guest had
// its address before.
func (t *task) relinquish(ctx context.Context, from fabric.Node, n fabric.Notice) fabric.Answer {
	s, done := t.state.open()
	r := s.respond(t.vm, from.Name, n)
	done()
	switch {
	case r.reclaim:
		t.reclaim(ctx)
	case r.follows:
		t.peerQueues.kick()
	case !r.left.IsZero():
		t.wentTo(r.guest, from.Name, time.Now(), r.left)
	case r.moves:
		t.step(ctx, migration.DestinationClaims, from, "")
	case r.loss.node != "":
		if r.loss.other {
			t.log.Warn("an address is another guest's", "vm", t.vm, "node", from.Name, "guest", n.VM, "why", string(r.why))
		}
		t.preempt(ctx, r.loss)
	}
	return r.answer
}

// response is the answer to a node that claims a guest, and what is done here
// before it is given.
type response struct {
	answer fabric.Answer
	guest  fabric.Desired
	why    ownership.Reason

	reclaim bool      // the guest is announced here again
	follows bool      // it is asked from now on whether it has the guest yet
	left    time.Time // it is there now, and was announced here until then
	moves   bool      // it was stopped here to run there
	loss    loss      // it is withdrawn here
}

// respond takes up that a node claims a guest, or another one with an address of it.
func (s *state) respond(vm, from string, n fabric.Notice) (r response) {
	g := s.guests[vm]
	if g == nil || g.want.State != fabric.Live {
		return r
	}
	d := g.want
	r.guest = d
	another := !ownership.Same(string(d.VM.Identity()), string(n.Identity))
	verdict, why := ownership.Decide(claimOf(d, s.node), claimOfNotice(n, from))
	r.why = why
	held := naming(fabric.Answer{Held: true, Epoch: d.Epoch}, n, d)
	switch {
	case d.Lost != "" && another && d.Lost == from && verdict == ownership.Keep:
		r.answer, r.reclaim = held, true // it was withdrawn while nobody could say for what
		return r
	case d.Lost != "" && another && d.Lost == from: // which a route may have said without a name
		lostAs(&g.want, fabric.Desired{Lost: from, LostGuest: n.VM, Standby: d.Standby})
		return r
	case d.Lost != "":
		if !another && n.Epoch > g.heard { // it went from there to a third
			g.heard = n.Epoch
			lostAs(&g.want, fabric.Desired{Lost: from, Standby: d.Standby})
			r.follows = true
		}
		return r
	case !g.has:
		left := g.restart.left
		g.restart.left = time.Time{}
		if !another && n.Epoch > d.Epoch {
			r.left = left
		}
		return r
	}
	g.claimants = add(g.claimants, from)
	if another {
		if verdict == ownership.Relinquish {
			r.loss = loss{node: from, guest: n.VM, other: true}
			return r
		}
		g.wantedBy(s.node, from, n.VM, "")
		r.answer = held
		return r
	}
	g.heard = max(g.heard, n.Epoch)
	switch {
	case g.departure.state.Diverts() && time.Since(g.departure.since) < freshAtLeast:
		r.answer = held // the routers have to hear of the other node first, which asks again
	case g.departure.state.Stops(): // it is withdrawn when the hypervisor drops it
		r.answer, r.moves = held, g.departure.to.Name != from
	case verdict == ownership.Keep: // by hand it came, and by hand it goes; or it is the other node that is late
		r.answer = held
	default:
		r.answer, r.loss = naming(fabric.Answer{}, n, d), loss{node: from}
	}
	return r
}

// preempt withdraws a guest that another node has later, or whose address another
// guest has had longer.
func (t *task) preempt(ctx context.Context, l loss) {
	began := time.Now()
	s, done := t.state.open()
	d := s.guests[t.vm].lose(l)
	done()
	t.log.Warn("withdrawn here", "vm", t.vm, "why", lostText(d, t.node))
	err := t.withdraw(ctx, d.VM.Prefixes())
	if err == nil && !l.other {
		t.wentTo(d, l.node, began, time.Now())
	}
	if stored := t.keepState(ctx, d); err == nil {
		err = stored
	}
	t.settle(d, false, err)
	t.peerQueues.kick() // the other node is to know who waits for it
	if err != nil {
		t.signal()
	}
}

// lose notes to which node the guest was lost.
func (g *guest) lose(l loss) fabric.Desired {
	lostAs(&g.want, fabric.Desired{Lost: l.node, LostGuest: l.guest, LostOther: l.other && l.guest == "", LostRoute: l.reflector})
	g.want.Unreleased = nil
	g.has, g.contested, g.routeGone, g.defended = false, "", false, time.Time{}
	delete(g.contests, l.node)
	return g.want
}

// claimAnswered takes up what a node said to the claim of an epoch.
func (a *Agent) claimAnswered(ctx context.Context, vm, node string, generation uint64, answer fabric.Answer) {
	a.inherit(vm, answer)
	s, done := a.state.open()
	if g := s.guests[vm]; g != nil {
		g.unasked = without(g.unasked, []string{node})
		if !answer.Held {
			if g.contested == node {
				g.contested, g.denied = "", node
			}
			delete(g.contests, node)
		}
	}
	done()
	if !answer.Held {
		a.released(ctx, vm, node, nil)
		return
	}
	if a.keeps(vm, node, generation, answer) {
		return
	}
	t, end := a.begin(vm)
	defer end()
	if a.keeps(vm, node, generation, answer) {
		return
	}
	l := loss{node: node}
	s, done = a.state.open()
	if d := s.guests[vm].want; !ownership.Same(string(d.VM.Identity()), string(answer.Identity)) {
		l.guest, l.other = answer.VM, true
	}
	done()
	t.preempt(ctx, l)
}

// keeps reports whether a guest stays announced although a node has answered the
// claim of an epoch that it has it, or another guest with its address.
func (a *Agent) keeps(vm, node string, generation uint64, answer fabric.Answer) bool {
	s, done := a.state.open()
	defer done()
	g := s.guests[vm]
	if g == nil || !owned(g.want) || g.want.Epoch != generation {
		return true
	}
	verdict, why := ownership.Decide(claimOf(g.want, a.node), claimOfAnswer(answer, node))
	delete(g.contests, node) // what a route said there is known better now
	switch {
	case !ownership.Same(string(g.want.VM.Identity()), string(answer.Identity)):
		if verdict == ownership.Keep {
			g.wantedBy(a.node, node, answer.VM, "")
		}
	case why == ownership.ByHand: // its user has it on both
		g.want.Unreleased = without(g.want.Unreleased, []string{node})
	default:
		g.heard = max(g.heard, answer.Epoch)
	}
	return verdict == ownership.Keep
}

// reclaimFrom takes a guest back that another node had later, and has no more.
func (a *Agent) reclaimFrom(ctx context.Context, vm, node string, answer fabric.Answer) {
	if answer.Held && !a.stillLost(vm, node, answer) {
		return
	}
	t, end := a.begin(vm)
	defer end()
	s, done := a.state.open()
	g := s.guests[vm]
	lost := g != nil && g.want.State == fabric.Live && g.want.Lost == node
	done()
	switch {
	case !lost:
	case answer.Held:
		t.redoStandby(ctx, false)
	default:
		a.log.Info("the other node has let go; announced here again", "vm", vm, "node", node)
		t.reclaim(ctx)
	}
}

// stillLost takes up that a node has a guest yet, and reports whether it is
// announced here, in case the node has it no more.
func (a *Agent) stillLost(vm, node string, answer fabric.Answer) (announced bool) {
	s, done := a.state.open()
	defer done()
	g := s.guests[vm]
	if g == nil || g.want.Lost != node {
		return false
	}
	g.routeGone, g.want.LostRoute = false, ""
	if answer.Identity != "" {
		g.want.LostGuest, g.want.LostOther = "", false
		if answer.Identity != g.want.VM.Identity() {
			g.want.LostGuest = answer.VM
		}
	}
	return g.want.Standby
}

// reclaim has a guest announced again that another node had.
func (t *task) reclaim(ctx context.Context) {
	s, done := t.state.open()
	g := s.guests[t.vm]
	if g.reflectorOf(g.want.Lost) != "" {
		g.denied = g.want.Lost // its word counts, and not the route that is there yet
	}
	was := g.departure
	returned := was.to.Name != "" && was.to.Name == g.want.Lost && !was.state.Stops()
	lostAs(&g.want, fabric.Desired{})
	g.routeGone = false
	done()
	if returned {
		t.step(ctx, migration.DestinationCancelled, was.to, "it does not run at "+was.to.Name+" any more")
	}
	if err := t.reconcile(ctx, nil); err != nil {
		t.signal()
	}
}

// released notes that a node does not announce a guest, and what it saw of its move.
func (a *Agent) released(ctx context.Context, vm, node string, seen *fabric.Move) {
	s, done := a.state.open()
	last := false
	if g := s.guests[vm]; g != nil {
		left := without(g.want.Unreleased, []string{node})
		last = len(left) == 0 && len(g.want.Unreleased) > 0
		g.want.Unreleased = left
		if last {
			s.later(max(0, time.Until(g.claimed.Add(freshAtLeast))))
		}
	}
	done()
	a.moves.merge(vm, seen)
	a.cameFrom(vm, seen)
	if last {
		a.keep(ctx, vm)
	}
}

// keepState stores what was found out of a guest. That of one which is here, and
// of which no state can be read, stays as it is on the disk until somebody says
// what the guest is.
func (t *task) keepState(ctx context.Context, d fabric.Desired) error {
	s, done := t.state.open()
	g := s.guests[d.VM.Name]
	orphan := g != nil && g.orphan
	done()
	if orphan {
		return nil
	}
	return t.store.Put(ctx, d)
}

// keep stores a guest as it is wanted. Somebody who is at work on it does so
// himself; what he misses is found out anew after a restart.
func (a *Agent) keep(ctx context.Context, vm string) {
	t, end, free := a.tryBegin(vm)
	if !free {
		return
	}
	defer end()
	s, done := a.state.open()
	g := s.guests[vm]
	if g == nil || g.want.State == fabric.Absent {
		done()
		return
	}
	d := g.want
	done()
	if err := t.keepState(ctx, d); err != nil {
		a.log.Warn("state not kept", "vm", vm, "err", err)
	}
}

// lostText says, for people, that another node has a guest, or an address of it,
// as far as that is known.
func lostText(d fabric.Desired, self string) string {
	text := fmt.Sprintf("%s has it, and began to run it later, so it is not announced here", d.Lost)
	out := "stop the guest here, or start it anew to take it back"
	switch {
	case d.LostGuest != "":
		text = fmt.Sprintf("guest %s on %s has an address of it, and has had it longer, so %s is not announced on %s", d.LostGuest, d.Lost, d.VM.Name, self)
	case d.LostOther:
		text = fmt.Sprintf("another guest on %s has an address of it, and has had it longer, as its route at %s says, so %s is not announced on %s", d.Lost, d.LostRoute, d.VM.Name, self)
	case d.LostRoute != "":
		text = fmt.Sprintf("%s has a route to it via %s with a higher LOCAL_PREF, and the agent of %[2]s does not answer, so it is not announced here", d.LostRoute, d.Lost)
		out = fmt.Sprintf("see what runs on %s, and stop the guest on one of the two, or start it anew to take it back", d.Lost)
	}
	if d.LostGuest != "" || d.LostOther {
		out = "stop one of the two, or give it another address"
	}
	if d.Standby {
		text += fmt.Sprintf("; %s does not answer now, so it is announced with LOCAL_PREF %d, in case nobody else has it", d.Lost, fabric.Standby)
	}
	return text + "; " + out
}

// add gives the list with a name in it.
func add(names []string, name string) []string {
	if slices.Contains(names, name) {
		return names
	}
	return append(names, name)
}
