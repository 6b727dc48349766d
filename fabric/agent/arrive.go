package agent

import (
	"context"
	"maps"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/migration"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/plan"
)

// awaitedBy handles a node's answer to Arriving: with Held, the guest comes from that
// node.
func (a *Agent) awaitedBy(vm, node string, answer fabric.Answer) {
	if !answer.Held {
		return
	}
	a.inherit(vm, answer)
	s, done := a.state.open()
	if g := s.guests[vm]; g != nil {
		g.heard = max(g.heard, answer.Epoch)
		g.from = node
	}
	done()
	a.moves.at(vm, func(m *fabric.Move, _ time.Time) { m.From = node })
}

// arrive passes an event of a guest's move to this node to the state machine, and
// carries out the effects.
func (t *task) arrive(d fabric.Desired, e migration.ArrivalEvent) {
	s, done := t.state.open()
	g := s.guests[t.vm]
	if g == nil {
		done()
		return
	}
	next := migration.NextArrival(g.arrival, e)
	g.arrival = next.To
	done()
	for _, effect := range next.Effects {
		switch effect {
		case migration.TellArriving:
			t.moves.arrive(d.VM, t.node, func(m *fabric.Move, now time.Time) { m.PortReady = now })
		case migration.TellArrived:
			t.hasArrived(d)
		case migration.TellCancelled:
			t.cancel(d)
		case migration.Report:
			t.moves.settled(t.vm)
		}
	}
}

// heardAt handles the first frame from a port whose guest was arriving, or had just
// been started: the guest runs here, whatever its hypervisor has reported.
func (a *Agent) heardAt(ctx context.Context, port string) {
	s, done := a.state.open()
	name, _ := s.reserved.PortHolder(port)
	g := s.guests[name]
	arriving := g != nil && g.arrival.Awaits()
	var vm fabric.VM
	if arriving {
		vm = g.want.VM
	}
	done()
	switch {
	case arriving:
		a.run(ctx, vm, time.Now(), "frame")
	case g != nil:
		a.answers(ctx, name, port)
	}
}

// answers handles the first frame of a guest that was started: its routes must draw
// the traffic here from now on.
func (a *Agent) answers(ctx context.Context, vm, port string) {
	t, end := a.begin(vm)
	defer end()
	s, done := a.state.open()
	g := s.guests[vm]
	if g == nil || g.want.State != fabric.Live {
		done()
		return
	}
	st, news := maps.Clone(g.nics), false
	g.restart.heard = true
	for n := range g.want.VM.NICs {
		if fabric.PortName(vm, n) != port || st[n] != plan.Arriving {
			continue
		}
		news = true
		if delete(st, n); s.fresh(g, time.Now()) {
			st[n] = plan.Arrived
		}
	}
	done()
	if !news {
		return
	}
	if err := t.reconcile(ctx, st); err != nil {
		a.log.Warn("guest not as wanted yet", "vm", vm, "err", err)
		a.signal()
	}
}

// run brings an arriving guest live; by says how the agent knows that it runs:
// "frame", or the name of a source.
func (a *Agent) run(ctx context.Context, vm fabric.VM, asOf time.Time, by string) {
	a.moves.at(vm.Name, func(m *fabric.Move, now time.Time) {
		if m.Running.IsZero() {
			m.Running, m.RunningBy = now, by
		}
	})
	if err := a.ensure(ctx, vm, request{asOf: asOf, settle: func(fabric.Desired, bool, bool) (fabric.State, bool) { return fabric.Live, false }}); err != nil {
		a.log.Warn("guest not as wanted yet", "vm", vm.Name, "err", err)
	}
}

// hasArrived sends Arrived to the node that a guest came from, or to all if that is
// not known. It sends nothing if an agent before a restart has done so.
func (t *task) hasArrived(d fabric.Desired) {
	first := false
	t.moves.at(t.vm, func(m *fabric.Move, now time.Time) {
		if m.Announced.IsZero() {
			m.Announced, first = now, true
		}
	})
	if !first || t.nodes == nil {
		return
	}
	s, done := t.state.open()
	g := s.guests[t.vm]
	to := t.nodes.Names()
	if g != nil && g.from != "" {
		to = []string{g.from}
	}
	done()
	t.peerQueues.send(t.notice(fabric.Arrived, d), to...)
}

// cancel tells all other nodes that a guest does not arrive here.
func (t *task) cancel(d fabric.Desired) {
	t.moves.end(t.vm, "it did not arrive here")
	if t.nodes == nil {
		return
	}
	t.peerQueues.send(t.notice(fabric.Cancelled, d), t.nodes.Names()...)
}

// arrivalOf gives the state of a guest's move to this node from the stored state of
// an earlier agent.
func arrivalOf(d fabric.Desired) migration.Arrival {
	switch {
	case d.Incoming:
		return migration.Arriving
	case d.VM.Origin != "" && len(d.Unreleased) > 0:
		return migration.Running
	}
	return migration.NoArrival
}

// portsOf lists the ports that the dataplane must have for a guest wanted as in d.
func (s *state) portsOf(g *guest, d fabric.Desired) []fabric.Port {
	ports := d.VM.Ports(s.cluster())
	for i := range ports {
		ports[i].Listen = s.restarts[d.VM.Origin]
		ports[i].Incoming = d.Incoming && d.State == fabric.Wired
		if d.Incoming || g.arrival != migration.NoArrival {
			ports[i].Queue = s.cluster().Moves.Queue()
		}
	}
	return ports
}
