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
// that began to run the guest last announces it as Fresh until every other node has
// released it, so that no older announcement wins, neither a late nor a returning
// one. Among the agents, the node that has the guest sends Claimed to all others,
// with an epoch higher than all that it has heard of. A node whose own epoch is lower
// withdraws the guest.

// freshAtLeast is how long an announcement stays Fresh even if all nodes release the
// guest at once: the reflectors may get the withdrawal of the other node later than
// this agent gets its answer.
const freshAtLeast = time.Second

// unmetFor is how long an agent waits for the answer of a node that it has never
// met. Perhaps no agent runs there, and the announcement must not stay Fresh for
// ever. The agent goes on sending Claimed to that node.
const unmetFor = time.Minute

// freshFor is how long after a start an announcement stays Fresh if no other node
// can be asked: so long it ranks before the route of the node that the guest has
// left. It ends with the first pass after that time.
const freshFor = 30 * time.Second

// takeOwnership decides whether this node has a guest from now on. If the node did
// not have it before, takeOwnership gives it a new epoch, lists all other nodes as
// unreleased, and reports true: d has changed. An agent without other nodes has no
// epochs. nics are the known states of the guest's NICs.
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
	g.claimed, g.kept, g.sentOn = time.Now(), false, false
	d.Epoch = s.nextEpoch(g, d.Epoch)
	g.taken = d.Epoch
	if d.Acquired.IsZero() {
		d.Acquired = s.clock()
	}
	if !g.inherited.IsZero() && g.inherited.Before(d.Acquired) {
		d.Acquired = g.inherited
	}
	if d.Unreleased = slices.Clone(others); len(d.Unreleased) == 0 {
		s.later(freshAtLeast)
	}
	g.nics = plan.NICStates{} // a copy: nics may be shared, or nil before the first pass
	maps.Copy(g.nics, nics)
	for n := range d.VM.NICs {
		if g.nics[n] == plan.Settled && d.VM.Origin != "" {
			g.nics[n] = plan.Arrived
		}
	}
	return true
}

// fresh reports whether a guest is announced as Fresh: it began to run here, and not
// all other nodes have released it. For a guest that was attached by hand, only its
// user knows where else it runs. It is Fresh only while a node does not answer that
// may have another guest with an address of it: reflectors pass a route to that node
// only if it ranks first.
func (s *state) fresh(g *guest, now time.Time) bool {
	switch {
	case s.alone:
		return g.want.VM.Origin != "" && now.Sub(g.want.Since) < freshFor
	case g.sentOn: // it is first where its packets went
		return false
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

// awaits reports whether a node that has not released a guest may still announce it.
func (s *state) awaits(g *guest, node string, now time.Time) bool {
	return s.peers.met[node] || g.kept || now.Sub(g.claimed) < unmetFor
}

// claimed answers a Claimed notice, for every guest here that overlaps its prefixes.
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

// relinquish answers a Claimed notice for one guest. It withdraws the guest if the
// other node began to run it later, or if the other node's guest had the address
// before.
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

// response is the answer to a Claimed notice, and the action that this node takes
// before it answers. At most one of the actions is set.
type response struct {
	answer fabric.Answer
	guest  fabric.Desired
	why    ownership.Reason

	reclaim bool      // announce the guest here again
	follows bool      // ask the other node from now on whether it still has the guest
	left    time.Time // report the move: the guest is there now, and was announced here until this time
	moves   bool      // the guest was stopped here to run there: divert its packets
	loss    loss      // withdraw the guest
}

// respond decides the response to a Claimed notice for a guest of this node. The
// notice names the same guest, or another one with an address of it.
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
		r.answer, r.reclaim = held, true // it was withdrawn while nobody could say which guest the other node has
		return r
	case d.Lost != "" && another && d.Lost == from: // only a route said so before, without the name
		lostAs(&g.want, fabric.Desired{Lost: from, LostGuest: n.VM, Standby: d.Standby})
		return r
	case d.Lost != "":
		if !another && n.Epoch > g.heard { // the guest went on to a third node
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
	g.waitingNodes = add(g.waitingNodes, from)
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
		r.answer = held // the routers must get the other node's route first; that node asks again
	case g.departure.state.Stops(): // the hook withdraws it when the hypervisor drops it
		r.answer, r.moves = held, g.departure.to.Name != from
	case verdict == ownership.Keep: // attached by hand, or this node began to run it later
		r.answer = held
	default:
		r.answer, r.loss = naming(fabric.Answer{}, n, d), loss{node: from}
	}
	return r
}

// preempt withdraws a guest that another node began to run later, or whose address
// another guest has had longer.
func (t *task) preempt(ctx context.Context, l loss) {
	began := time.Now()
	s, done := t.state.open()
	d := s.guests[t.vm].recordLoss(l)
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
	t.peerQueues.kick() // tell the other node at once that this one waits for it to release the guest
	if err != nil {
		t.signal()
	}
}

// recordLoss sets the node that preempted this one.
func (g *guest) recordLoss(l loss) fabric.Desired {
	lostAs(&g.want, fabric.Desired{Lost: l.node, LostGuest: l.guest, LostOther: l.other && l.guest == "", LostRoute: l.reflector})
	g.want.Unreleased = nil
	g.has, g.contested, g.routeGone, g.defended = false, "", false, time.Time{}
	delete(g.contests, l.node)
	return g.want
}

// claimAnswered handles a node's answer to Claimed with an epoch.
func (a *Agent) claimAnswered(ctx context.Context, vm, node string, epoch uint64, answer fabric.Answer) {
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
	if a.keeps(vm, node, epoch, answer) {
		return
	}
	t, end := a.begin(vm)
	defer end()
	if a.keeps(vm, node, epoch, answer) {
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

// keeps reports whether a guest stays announced although a node answered Claimed
// with Held: the node has the guest too, or another guest with its address.
func (a *Agent) keeps(vm, node string, epoch uint64, answer fabric.Answer) bool {
	s, done := a.state.open()
	defer done()
	g := s.guests[vm]
	if g == nil || !owned(g.want) || g.want.Epoch != epoch {
		return true
	}
	verdict, why := ownership.Decide(claimOf(g.want, a.node), claimOfAnswer(answer, node))
	delete(g.contests, node) // the answer replaces what a route said
	switch {
	case !ownership.Same(string(g.want.VM.Identity()), string(answer.Identity)):
		if verdict == ownership.Keep {
			g.wantedBy(a.node, node, answer.VM, "")
		}
	case why == ownership.ByHand: // its user attached it on both nodes
		g.want.Unreleased = without(g.want.Unreleased, []string{node})
	default:
		g.heard = max(g.heard, answer.Epoch)
	}
	return verdict == ownership.Keep
}

// reclaimFrom handles the answer of the node that preempted this one. If that node
// does not have the guest any more, this node announces it again.
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
		t.applyStandby(ctx, false)
	default:
		a.log.Info("the other node has let go; announced here again", "vm", vm, "node", node)
		t.reclaim(ctx)
	}
}

// stillLost notes that the other node answered and still has the guest. It reports
// whether this node announces the guest as standby, which must end.
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

// reclaim announces a guest again that was withdrawn in favour of another node.
func (t *task) reclaim(ctx context.Context) {
	s, done := t.state.open()
	g := s.guests[t.vm]
	if g.reflectorOf(g.want.Lost) != "" {
		g.denied = g.want.Lost // the node's answer outweighs its route, which is still there
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

// released notes that a node does not announce a guest. seen is that node's report
// of the guest's move; nil: none.
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

// keepState stores the wanted state of a guest. It stores nothing for an orphan: if
// there is a file of it that cannot be read, that file stays as it is until a request
// describes the guest.
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

// keep stores the wanted state of a guest. It stores nothing while another task
// works on the guest: that task stores the guest itself, and after a restart the
// agent finds out anew what the file lacks.
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

// lostText says in words for people which node preempted this one, for which guest,
// and the way out.
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

// add appends a name unless the list has it.
func add(names []string, name string) []string {
	if slices.Contains(names, name) {
		return names
	}
	return append(names, name)
}
