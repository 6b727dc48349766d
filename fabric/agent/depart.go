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
	// forwardingGrace is how long packets for a guest that has left are sent on: until
	// the routers know, with a margin for slow ones.
	forwardingGrace = 5 * time.Second
	// recordFor is how long what goes into a port is kept after the last word of
	// the node that the guest is to go to.
	recordFor = time.Minute
)

// departure is the move of a guest from this node to another, as far as it has
// come.
type departure struct {
	state    migration.State
	to       fabric.Node // zero: nobody has said
	heard    time.Time   // when it last said so
	recorded bool        // what goes into the ports is kept
	since    time.Time   // when its packets were diverted
	// failed is the node where it did not arrive, and since when that is known
	// here: the node itself says for a moment that it does.
	failed   string
	failedAt time.Time
}

// elsewhere reports whether the guest's packets go to another node than that: no
// word of a third one changes where.
func (d departure) elsewhere(to fabric.Node) bool {
	return d.state.Diverts() && d.to.Name != to.Name
}

// isNews reports whether a node that the guest is about to arrive at was not known
// for that: one where it did not arrive may say so for a moment more.
func (d departure) isNews(to fabric.Node, now time.Time) bool {
	late := d.failed == to.Name && now.Sub(d.failedAt) < messageTime
	return d.to.Name != to.Name && !late
}

// leaves takes up that a guest is about to arrive at another node.
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
			a.signal() // it is announced after the other node's from now on
		}
		end()
	}
	return answer
}

// left takes up that a guest runs on another node: its packets go there, for a
// moment if its hypervisor does not say that it stopped.
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

// leaving gives the guest that a notice about a move from here names; nil: this
// node does not have it.
func (s *state) leaving(vm string, n fabric.Notice) *guest {
	g := s.guests[vm]
	if g == nil || vm != n.VM || !owned(g.want) {
		return nil
	}
	return g
}

// stays takes up that a guest does not arrive at another node after all.
func (a *Agent) stays(ctx context.Context, at fabric.Node, n fabric.Notice) {
	for _, vm := range a.concerned(n.Prefixes) {
		t, end := a.begin(vm)
		s, done := a.state.open()
		g := s.guests[vm]
		concerned := g != nil && g.departure.to.Name == at.Name
		if g != nil && g.departure.failed == at.Name {
			g.departure.failed = "" // what it says from now on is of another attempt
		}
		done()
		if concerned {
			t.step(ctx, migration.DestinationCancelled, at, "cancelled: it did not arrive at "+at.Name)
		}
		end()
	}
}

// stopped takes up that the hypervisor stopped a guest that is about to run
// elsewhere, as of a time. Nothing comes before sending its packets on.
func (a *Agent) stopped(ctx context.Context, vm string, asOf time.Time) {
	t, end := a.begin(vm)
	defer end()
	if a.outdated(vm, asOf) {
		return
	}
	s, done := a.state.open()
	g := s.guests[vm]
	if g == nil || g.want.State != fabric.Live {
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

// resumed takes up that a guest which was stopped to run elsewhere goes on here.
// Its route is first. Then, whoever began to announce it is to stop.
func (a *Agent) resumed(ctx context.Context, vm string, asOf time.Time) {
	t, end := a.begin(vm)
	defer end()
	if a.outdated(vm, asOf) {
		return
	}
	s, done := a.state.open()
	s.handled[vm] = asOf
	g := s.guests[vm]
	var rivalled bool
	var to string
	if g != nil {
		to = g.departure.to.Name
		rivalled = g.heard > g.want.Epoch
		if rivalled {
			g.has = false // it is claimed anew
		}
	}
	done()
	t.step(ctx, migration.SourceResumed, fabric.Node{}, "it went on here")
	s, done = a.state.open()
	if g = s.guests[vm]; g != nil {
		g.departure.failed, g.departure.failedAt = to, time.Now()
	}
	done()
	if rivalled {
		if err := t.reconcile(ctx, nil); err != nil {
			a.signal()
		}
	}
}

// step takes an event of a guest's move to another node through the state
// machine, and does what follows. to is the
// node that the event is about; outcome is why the move ends, if it does.
func (t *task) step(ctx context.Context, e migration.Event, to fabric.Node, outcome string) {
	now := time.Now()
	s, done := t.state.open()
	g := s.guests[t.vm]
	if g == nil {
		done()
		return
	}
	d, was := g.want, g.departure
	effects := g.move(e, to, now)
	confirmed := g.departure.state == migration.Confirmed
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

// move takes an event of the guest's move to another node up, and gives what is to
// be done about it.
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

// divert sends what comes for a guest to another node.
func (t *task) divert(ctx context.Context, d fabric.Desired, to fabric.Node, since time.Time, confirmed bool) {
	vm := d.VM.Name
	t.diverted.begin(fabric.DiversionStatus{VM: vm, Node: to.Name, Prefixes: d.VM.Prefixes(), Since: since, Confirmed: confirmed})
	if !confirmed {
		t.alarm.after(unconfirmedFor)
	}
	done, err := t.dataplane.Divert(ctx, d.VM.Ports(&t.cluster), to)
	if err != nil {
		t.log.Warn("packets not all sent on", "vm", vm, "node", to.Name, "err", err)
	}
	t.moves.leave(d.VM, t.node, to.Name)
	t.moves.at(vm, func(m *fabric.Move, _ time.Time) {
		m.Diverted, m.Resent, m.ResentAt = done.At, m.Resent+done.Resent, done.Done
	})
	t.log.Info("packets go on", "vm", vm, "node", to.Name, "resent", done.Resent)
}

// restore puts a guest that was to leave back as it was; outcome is why.
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

// record keeps, or does not keep any more, what goes into a guest's ports.
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

// endDiversion ends the sending on of packets; outcome is why.
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

// stopForwarding ends the sending on of packets for a guest that is to be here, because
// it went away and comes back soon.
func (t *task) stopForwarding(ctx context.Context, vm fabric.VM) {
	var ps []netip.Prefix
	s, done := t.state.open()
	for _, p := range vm.Prefixes() {
		if _, lingers := s.forwarding[p]; lingers {
			ps = append(ps, p)
		}
	}
	done()
	if len(ps) > 0 {
		t.endDiversion(ctx, ps, "it comes here again")
	}
}

// runsHere takes up that the hypervisor says of a guest that it runs here, as of a
// time: what an agent before this one sends on for it comes back, and so does what
// this one does on the word of another node that is older.
func (a *Agent) runsHere(ctx context.Context, vm string, asOf time.Time) {
	contradicts := func(g *guest) bool {
		return g != nil && g.departure.state == migration.Diverted && asOf.After(g.departure.since)
	}
	s, done := a.state.open()
	diverted := len(s.forwarding) > 0 || contradicts(s.guests[vm])
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
	}
	done()
	switch {
	case contradicted:
		t.step(ctx, migration.WordUnconfirmed, fabric.Node{}, runsOn)
	case here:
		t.stopForwarding(ctx, is)
	}
}

// gone has packets for a guest that has left sent on for a while, if they are.
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

// settleDiversions ends what was sent on long enough. The pass calls it.
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
		if t, end, free := a.tryBegin(vm); free {
			t.record(ctx, false)
			end()
		}
	}
}

// overdue takes up which prefixes are diverted, and gives those of no guest that is
// here, and of them those that were sent on long enough.
func (s *state) overdue(diverted []netip.Prefix, now time.Time) (ofNone, over []netip.Prefix) {
	for _, p := range diverted {
		holder, _ := s.reserved.Holder(p)
		if g := s.guests[holder]; g != nil && (g.departure.state.Stops() || g.departure.state.Diverts()) {
			continue
		}
		ofNone = append(ofNone, p)
		switch until, known := s.forwarding[p]; {
		case !known: // of an agent before this one
			s.forwarding[p] = now.Add(forwardingGrace)
			s.later(forwardingGrace)
		case !now.Before(until):
			over = append(over, p)
		}
	}
	maps.DeleteFunc(s.forwarding, func(p netip.Prefix, _ time.Time) bool { return !slices.Contains(diverted, p) })
	return ofNone, over
}

// idleRecords lists the guests that nobody expects any more, and whose ports are
// recorded yet.
func (s *state) idleRecords(now time.Time) (vms []string) {
	for vm, g := range s.guests {
		if g.departure.recorded && !g.departure.state.Stops() && now.Sub(g.departure.heard) > recordFor {
			vms = append(vms, vm)
		}
	}
	return vms
}

// departs reports whether the guest is on its way to another node.
func (g *guest) departs() bool { return g.departure.to.Name != "" || g.departure.state.Stops() }

// release tells those who wait for it that a guest is not announced any more.
func (t *task) release(d fabric.Desired) {
	vm := d.VM.Name
	s, done := t.state.open()
	g := s.guests[vm]
	if g == nil {
		done()
		return
	}
	to := g.claimants
	if g.departure.to.Name != "" {
		to = add(to, g.departure.to.Name)
	}
	if d.Lost != "" { // which tells of this one meanwhile
		to = add(to, d.Lost)
	}
	left := g.departs()
	g.claimants, g.has = nil, false
	done()
	n := t.notice(fabric.Released, d)
	if left {
		t.moves.at(vm, func(m *fabric.Move, now time.Time) { m.Withdrawn = now })
		n.Move = t.moves.end(vm, "moved")
	}
	t.peerQueues.send(n, to...)
}
