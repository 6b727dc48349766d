package agent

import (
	"context"
	"maps"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/plan"
)

// awaitedBy takes up what a node answered that was told of an arrival.
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

// ready notes that the ports of an arriving guest take packets for it, and has
// the other nodes told.
func (t *task) ready(d fabric.Desired) {
	s, done := t.state.open()
	g := s.guests[d.VM.Name]
	news := !g.ready
	g.ready = true
	done()
	if news {
		t.moves.arrive(d.VM, t.node, func(m *fabric.Move, now time.Time) { m.PortReady = now })
	}
	t.peerQueues.kick()
}

// heardAt takes up that a frame came out of a port whose guest was to arrive, or
// was started: it runs here, whatever its hypervisor has said.
func (a *Agent) heardAt(ctx context.Context, port string) {
	s, done := a.state.open()
	name, _ := s.reserved.PortHolder(port)
	g := s.guests[name]
	arriving := g != nil && g.want.State == fabric.Wired && g.want.Incoming
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

// answers takes up that a guest which was started was heard: traffic comes here
// from now on.
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

// run brings an arriving guest live; by is who says that it runs.
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

// arrived has the node that a guest came from told that it runs here.
func (t *task) hasArrived(d fabric.Desired) {
	if t.nodes == nil {
		return
	}
	s, done := t.state.open()
	g := s.guests[d.VM.Name]
	to := t.nodes.Names()
	if g != nil && g.from != "" {
		to = []string{g.from}
	}
	done()
	t.peerQueues.send(t.notice(fabric.Arrived, d), to...)
}

// cancel has the others told that a guest does not arrive.
func (t *task) cancel(d fabric.Desired) {
	if t.nodes == nil || !d.Incoming {
		return
	}
	s, done := t.state.open()
	if g := s.guests[d.VM.Name]; g != nil {
		g.ready = false // nothing is told of its arrival after this
	}
	done()
	t.moves.end(d.VM.Name, "it did not arrive here")
	t.peerQueues.send(t.notice(fabric.Cancelled, d), t.nodes.Names()...)
}

// portsOf lists the ports of a guest as they are to be.
func (t *task) portsOf(d fabric.Desired) []fabric.Port {
	ports := d.VM.Ports(&t.cluster)
	s, done := t.state.open()
	came := d.Incoming
	if g := s.guests[d.VM.Name]; g != nil {
		came = came || g.came
	}
	done()
	for i := range ports {
		ports[i].Listen = t.restarts[d.VM.Origin]
		ports[i].Incoming = d.Incoming && d.State == fabric.Wired
		if came {
			ports[i].Queue = t.cluster.Moves.Queue()
		}
	}
	return ports
}

// tellMoved notes that a guest which arrived is announced, and has the others told.
func (t *task) tellMoved(d fabric.Desired) {
	s, done := t.state.open()
	came := s.guests[d.VM.Name].came && d.State == fabric.Live
	done()
	if !came {
		t.restarted()
		return
	}
	first := false
	t.moves.at(d.VM.Name, func(m *fabric.Move, now time.Time) {
		if m.Announced.IsZero() {
			m.Announced, first = now, true
		}
	})
	if first {
		t.hasArrived(d)
	}
}
