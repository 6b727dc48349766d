package agent

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/migration"
)

const (
	// forwardingGrace is how long this node forwards packets for a guest that has
	// left: until the routers have the new route, with a margin for slow ones.
	forwardingGrace = 5 * time.Second
	// recordFor is how long the dataplane records a guest's ports after the last
	// notice of the destination.
	recordFor = time.Minute
)

// departure is the move of a guest from this node to another.
type departure struct {
	state    migration.State
	to       fabric.Node // the destination; zero: not known
	heard    time.Time   // when the destination last said that the guest is to arrive there
	recorded bool        // the dataplane records the guest's ports
	since    time.Time   // when the diversion of its packets began
	// failed is a destination where the guest did not arrive, and failedAt when this
	// node knew. For a moment, that node may still say that the guest is to arrive.
	failed   string
	failedAt time.Time
}

// elsewhere reports whether the guest's packets are diverted to another node than to.
// A notice of a third node does not change the destination then.
func (d departure) elsewhere(to fabric.Node) bool {
	return d.state.Diverts() && d.to.Name != to.Name
}

// isNews reports whether to is a new destination of the guest. A late notice of a
// node where the guest did not arrive is no news.
func (d departure) isNews(to fabric.Node, now time.Time) bool {
	late := d.failed == to.Name && now.Sub(d.failedAt) < messageTime
	return d.to.Name != to.Name && !late
}

// leaves handles Arriving of another node.
func (a *Agent) leaves(ctx context.Context, to fabric.Node, n fabric.Notice) (answer fabric.Answer) {
	for _, vm := range a.concerned(n.Prefixes) {
		t, end := a.begin(vm)
		s, done := a.state.open()
		g := s.leaving(vm, n)
		var news, follows bool
		if g != nil {
			news, follows = g.departure.isNews(to, time.Now()), !g.departure.elsewhere(to)
			answer.Held, answer.Epoch = true, max(answer.Epoch, g.want.Epoch)
		}
		done()
		if follows {
			t.step(ctx, migration.DestinationReady, to, "")
		}
		if follows && news {
			a.log.Info("guest is to move", "vm", vm, "node", to.Name)
			a.signal() // its routes must rank behind those of the destination from now on
		}
		end()
	}
	return answer
}

// left handles Arrived of another node: this node diverts the guest's packets there,
// only for some seconds unless the hypervisor here says that the guest stopped.
func (a *Agent) left(ctx context.Context, to fabric.Node, n fabric.Notice) (answer fabric.Answer) {
	for _, vm := range a.concerned(n.Prefixes) {
		t, end := a.begin(vm)
		s, done := a.state.open()
		g := s.leaving(vm, n)
		here := g != nil && g.has && g.want.VM.Origin != "" && n.Epoch > g.want.Epoch && !g.departure.elsewhere(to) && g.believes(time.Now())
		if here {
			answer.Held, answer.Epoch = true, max(answer.Epoch, g.want.Epoch)
		}
		done()
		if here {
			t.step(ctx, migration.DestinationRuns, to, "")
		}
		end()
	}
	return answer
}

// leaving gives the guest vm if the notice names it and this node has it, else nil.
func (s *state) leaving(vm string, n fabric.Notice) *guest {
	g := s.guests[vm]
	if g == nil || vm != n.VM || !owned(g.want) {
		return nil
	}
	return g
}

// stays handles Cancelled of another node: the guest does not arrive there after all.
func (a *Agent) stays(ctx context.Context, at fabric.Node, n fabric.Notice) {
	for _, vm := range a.concerned(n.Prefixes) {
		t, end := a.begin(vm)
		s, done := a.state.open()
		g := s.guests[vm]
		concerned := g != nil && g.departure.to.Name == at.Name
		if g != nil && g.departure.failed == at.Name {
			g.departure.failed = "" // later notices of that node are about another attempt
		}
		done()
		if concerned {
			t.step(ctx, migration.DestinationCancelled, at, "cancelled: it did not arrive at "+at.Name)
		}
		end()
	}
}

// stopped handles the news that the hypervisor had stopped a guest at asOf, to run it
// on another node. Diverting its packets comes before anything else that takes time.
func (a *Agent) stopped(ctx context.Context, vm string, asOf time.Time) {
	t, end := a.begin(vm)
	defer end()
	s, done := a.state.open()
	g := s.guests[vm]
	if s.outdated(vm, asOf) || g == nil || g.want.State != fabric.Live {
		done()
		return
	}
	s.handled[vm] = asOf
	to := g.departure.to
	done()
	a.moves.at(vm, func(m *fabric.Move, now time.Time) { m.Stopped = now })
	if to.Name == "" {
		a.log.Warn("guest stopped to run elsewhere, and no agent says where; its packets wait here", "vm", vm)
		a.signal() // wherever that is, it comes first there
	}
	t.step(ctx, migration.SourceStopped, to, "")
}

// resumed handles the news that a guest goes on here which was stopped to run on
// another node. First its packets come here again. Then this node acquires the
// guest anew, if the other node has sent a higher epoch, so that the other node
// withdraws it.
func (a *Agent) resumed(ctx context.Context, vm string, asOf time.Time) {
	t, end := a.begin(vm)
	defer end()
	s, done := a.state.open()
	if s.outdated(vm, asOf) {
		done()
		return
	}
	s.handled[vm] = asOf
	g := s.guests[vm]
	var claimed bool
	var to string
	if g != nil {
		to = g.departure.to.Name
		claimed = g.heard > g.want.Epoch
		if claimed {
			g.has = false // reconcile acquires it anew, with a higher epoch
		}
	}
	done()
	t.step(ctx, migration.SourceResumed, fabric.Node{}, "it went on here")
	s, done = a.state.open()
	if g = s.guests[vm]; g != nil {
		g.departure.failed, g.departure.failedAt = to, time.Now()
	}
	done()
	if claimed {
		if err := t.reconcile(ctx, nil); err != nil {
			a.signal()
		}
	}
}

// step passes an event of a guest's move to another node to the state machine, and
// carries out the effects. to is the node that the event is about; outcome says why
// the move ends, if it does.
func (t *task) step(ctx context.Context, e migration.Event, to fabric.Node, outcome string) {
	now := time.Now()
	s, done := t.state.open()
	g := s.guests[t.vm]
	if g == nil {
		done()
		return
	}
	d, was, defended := g.want, g.departure, g.defends(now)
	effects := g.move(e, to, now)
	confirmed := g.departure.state == migration.Confirmed
	if defended && !g.defends(now) {
		t.signal() // wherever it is to run, it ranks first there
	}
	done()
	if e == migration.DestinationReady && was.to.Name != to.Name {
		t.moves.leave(d.VM, t.node, to.Name)
	}
	for _, effect := range effects {
		switch effect {
		case migration.Record:
			if !was.recorded {
				t.record(ctx, true)
			}
		case migration.Divert:
			t.divert(ctx, d, to, now, confirmed)
		case migration.Confirm:
			t.diverted.confirm(t.vm)
		case migration.Return:
			t.log.Warn("the guest did not leave; its packets come here again", "vm", t.vm, "node", was.to.Name)
			t.endDiversion(ctx, d.VM.Prefixes(), outcome)
		case migration.Restore:
			t.restore(ctx, d, was, outcome)
		}
	}
}

// move passes an event to the state machine of the guest's move to another node,
// takes the new state, and gives the effects to carry out.
func (g *guest) move(e migration.Event, to fabric.Node, now time.Time) []migration.Effect {
	next := migration.Next(g.departure.state, e)
	g.departure.state = next.To
	if e == migration.DestinationReady {
		g.departure.to, g.departure.heard = to, now
	}
	for _, effect := range next.Effects {
		switch effect {
		case migration.Divert:
			g.departure.to, g.departure.since = to, now
		case migration.Return:
			g.doubted = now
		case migration.Restore:
			g.departure = departure{}
		}
	}
	return next.Effects
}

// divert forwards the packets for a guest to another node.
func (t *task) divert(ctx context.Context, d fabric.Desired, to fabric.Node, since time.Time, confirmed bool) {
	vm := d.VM.Name
	t.diverted.begin(fabric.DiversionStatus{VM: vm, Node: to.Name, Prefixes: d.VM.Prefixes(), Since: since, Confirmed: confirmed})
	if !confirmed {
		t.alarm.after(unconfirmedFor)
	}
	done, err := t.dataplane.Divert(ctx, d.VM.Ports(t.cluster()), to)
	if err != nil {
		t.log.Warn("packets not all sent on", "vm", vm, "node", to.Name, "err", err)
	}
	t.moves.leave(d.VM, t.node, to.Name)
	t.moves.at(vm, func(m *fabric.Move, _ time.Time) {
		m.Diverted, m.Resent, m.ResentAt = done.At, m.Resent+done.Resent, done.Done
	})
	t.log.Info("packets go on", "vm", vm, "node", to.Name, "resent", done.Resent)
}

// restore ends the diversion and recording of a guest that does not leave; outcome
// says why.
func (t *task) restore(ctx context.Context, d fabric.Desired, was departure, outcome string) {
	vm := d.VM.Name
	if was.state.Diverts() {
		t.endDiversion(ctx, d.VM.Prefixes(), outcome)
	}
	if was.recorded {
		t.record(ctx, false)
	}
	t.moves.end(vm, outcome)
	t.log.Info("guest does not move", "vm", vm, "why", outcome)
	t.signal()
}

// record switches the recording of a guest's ports.
func (t *task) record(ctx context.Context, on bool) {
	s, done := t.state.open()
	g := s.guests[t.vm]
	if g == nil {
		done()
		return
	}
	names := portNames(g.want.VM)
	g.departure.recorded = on
	done()
	for _, name := range names {
		if err := t.dataplane.Record(ctx, name, on); err != nil {
			t.log.Debug("port not recorded", "port", name, "err", err)
		}
	}
}

// endDiversion ends the diversion of prefixes; outcome says why.
func (a *Agent) endDiversion(ctx context.Context, ps []netip.Prefix, outcome string) {
	s, done := a.state.open()
	for _, p := range ps {
		delete(s.forwarding, p)
	}
	done()
	if err := a.dataplane.Return(ctx, ps...); err != nil {
		a.log.Warn("packets still go to another node", "prefix", ps[0], "err", err)
		a.signal()
		return
	}
	a.diverted.end(ps, outcome, time.Now())
}

// stopForwarding ends the diversion of a guest that came back within the forwarding
// grace.
func (t *task) stopForwarding(ctx context.Context, vm fabric.VM) {
	var ps []netip.Prefix
	s, done := t.state.open()
	for _, p := range vm.Prefixes() {
		if _, forwarded := s.forwarding[p]; forwarded {
			ps = append(ps, p)
		}
	}
	done()
	if len(ps) > 0 {
		t.endDiversion(ctx, ps, "it comes here again")
	}
}

// runsHere handles the news that the hypervisor had a guest running here at asOf. It
// ends a diversion that an earlier agent left, and one that this agent began before
// asOf because another node said that the guest runs there.
func (a *Agent) runsHere(ctx context.Context, vm string, asOf time.Time) {
	contradicts := func(g *guest) bool {
		return g != nil && g.departure.state == migration.Diverted && asOf.After(g.departure.since)
	}
	s, done := a.state.open()
	diverted := len(s.forwarding) > 0 || contradicts(s.guests[vm]) || s.guests[vm] != nil && s.guests[vm].sentOn
	done()
	if !diverted {
		return
	}
	t, end := a.begin(vm)
	defer end()
	s, done = a.state.open()
	g := s.guests[vm]
	here, contradicted := g != nil && !g.departure.state.Stops() && !g.departure.state.Diverts(), contradicts(g)
	var is fabric.VM
	if here {
		is = g.want.VM
		if g.sentOn {
			g.sentOn = false
			a.signal() // it may come first again
		}
	}
	done()
	switch {
	case contradicted:
		t.step(ctx, migration.WordUnconfirmed, fabric.Node{}, runsOn)
	case here:
		t.stopForwarding(ctx, is)
	}
}

// recallDiversions notes the guests whose packets an agent before this one sent to
// another node: they run there, as far as that one knew.
func (a *Agent) recallDiversions() {
	s, done := a.state.open()
	defer done()
	for p := range s.forwarding {
		if vm, held := s.reserved.Holder(p); held && s.guests[vm] != nil {
			s.guests[vm].sentOn = true
		}
	}
}

// gone keeps the diversion of a guest that has left for the forwarding grace. It
// reports whether there is one.
func (s *state) gone(g *guest) (diverted bool) {
	if !g.departure.state.Diverts() {
		return false
	}
	for _, p := range g.want.VM.Prefixes() {
		s.forwarding[p] = time.Now().Add(forwardingGrace)
	}
	s.later(forwardingGrace)
	return true
}

// settleDiversions ends diversions and recordings whose time is over. The pass calls
// it.
func (a *Agent) settleDiversions(ctx context.Context) {
	diverted, err := a.dataplane.Diverted(ctx)
	a.conditions.set("diversions", err)
	now := time.Now()
	s, done := a.state.open()
	unknown, over := s.overdue(diverted, now)
	untrue, idle := s.unconfirmed(now), s.idleRecords(now)
	done()
	for _, p := range unknown {
		if !a.diverted.known(p) {
			a.diverted.begin(fabric.DiversionStatus{Prefixes: []netip.Prefix{p}, Since: now})
		}
	}
	if len(over) > 0 {
		a.endDiversion(ctx, over, "the routers know where it is")
	}
	for _, vm := range untrue {
		if t, end, free := a.tryBegin(vm); free {
			t.disbelieve(ctx)
			end()
		} else {
			a.alarm.after(passBusy)
		}
	}
	for _, vm := range idle {
		a.endUnheard(ctx, vm)
		if t, end, free := a.tryBegin(vm); free {
			t.record(ctx, false)
			end()
		}
	}
}

// overdue lists the diverted prefixes that no guest on its way from here holds
// (ofNone), and those of them whose forwarding grace is over.
func (s *state) overdue(diverted []netip.Prefix, now time.Time) (ofNone, over []netip.Prefix) {
	for _, p := range diverted {
		holder, _ := s.reserved.Holder(p)
		if g := s.guests[holder]; g != nil && (g.departure.state.Stops() || g.departure.state.Diverts()) {
			continue
		}
		ofNone = append(ofNone, p)
		switch until, known := s.forwarding[p]; {
		case !known: // an earlier agent began it
			s.forwarding[p] = now.Add(forwardingGrace)
			s.later(forwardingGrace)
		case !now.Before(until):
			over = append(over, p)
		}
	}
	maps.DeleteFunc(s.forwarding, func(p netip.Prefix, _ time.Time) bool { return !slices.Contains(diverted, p) })
	return ofNone, over
}

// idleRecords lists the guests whose ports are still recorded although no node has
// said for recordFor that they are to arrive there.
func (s *state) idleRecords(now time.Time) (vms []string) {
	for vm, g := range s.guests {
		if g.departure.recorded && !g.departure.state.Stops() && now.Sub(g.departure.heard) > recordFor {
			vms = append(vms, vm)
		}
	}
	return vms
}

// endUnheard ends a move of which nothing was heard for long, if its destination says
// that the guest is not to arrive there: its word was about an attempt that is over.
func (a *Agent) endUnheard(ctx context.Context, vm string) {
	s, done := a.state.open()
	var was departure
	var is fabric.VM
	if g := s.guests[vm]; g != nil {
		was, is = g.departure, g.want.VM
	}
	done()
	if was.state != migration.Awaited || !a.letGoOf(ctx, was.to.Name, is) {
		return
	}
	t, end, free := a.tryBegin(vm)
	if !free {
		return
	}
	defer end()
	s, done = a.state.open()
	g := s.guests[vm]
	still := g != nil && g.departure.state == migration.Awaited && g.departure.heard.Equal(was.heard)
	done()
	if still {
		t.step(ctx, migration.DestinationCancelled, was.to, "not heard of any more")
	}
}

// departs reports whether the guest is on its way to another node.
func (g *guest) departs() bool { return g.departure.to.Name != "" || g.departure.state.Stops() }

// release sends Released to the nodes that wait until this node does not announce a
// guest any more.
func (t *task) release(d fabric.Desired) {
	vm := d.VM.Name
	s, done := t.state.open()
	g := s.guests[vm]
	if g == nil {
		done()
		return
	}
	to := g.waitingNodes
	if g.departure.to.Name != "" {
		to = add(to, g.departure.to.Name)
	}
	if d.Lost != "" { // its Status may list the contest with this guest
		to = add(to, d.Lost)
	}
	left := g.departs()
	g.waitingNodes, g.has = nil, false
	done()
	n := t.notice(fabric.Released, d)
	if left {
		t.moves.at(vm, func(m *fabric.Move, now time.Time) { m.Withdrawn = now })
		n.Move = t.moves.end(vm, moved)
	}
	t.peerQueues.send(n, to...)
}
