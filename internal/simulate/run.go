package simulate

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric/agent"
)

// Run runs a history, and returns its faults: a line each, with the time. Call it
// in a bubble of package testing/synctest. Nothing that it started still runs when
// it returns.
func Run(seed uint64, h History) []string {
	rnd := rand.New(rand.NewPCG(seed, 0x64656c6179000000))
	w := newWorld(seed, between(rnd, 0, 20*time.Millisecond), between(rnd, time.Millisecond, 400*time.Millisecond))
	if slices.ContainsFunc(h, func(s Step) bool { return s.Kind == Share }) {
		w.share()
	}
	for _, n := range w.nodes {
		n.begin()
	}
	time.Sleep(time.Second)
	stop := make(chan struct{})
	var watching, steps sync.WaitGroup
	watching.Go(func() { w.watch(stop) })
	began := time.Now()
	for _, s := range h {
		time.Sleep(time.Until(began.Add(s.At)))
		steps.Go(func() { w.do(s) })
	}
	steps.Wait()
	for _, n := range w.nodes {
		if err := n.hook(time.Minute, func(ctx context.Context, a *agent.Agent) error { return a.Undrain(ctx) }); err != nil {
			w.fail("%s: undrain: %v", n.self.Name, err)
		}
	}
	time.Sleep(rest)
	w.settled(false)
	w.act(1)
	w.works(rnd)
	w.act(-1)
	time.Sleep(rest)
	w.settled(true)
	close(stop)
	watching.Wait()
	for _, n := range w.nodes {
		n.kill()
	}
	time.Sleep(restart + time.Minute) // until everything under way has ended
	return w.failed()
}

// do carries out a step, from its beginning to its end.
func (w *world) do(s Step) {
	w.act(1)
	defer w.act(-1)
	if !s.Kind.ordinary() {
		w.disturb(s.Kind, 1)
		defer w.disturb(s.Kind, -1)
	}
	d := delays{rand.New(rand.NewPCG(s.Seed, stepDelays))}
	g, n := w.guests[s.Guest], w.nodes[s.Node]
	switch s.Kind {
	case Start, Stop, Crash, Migrate, Abort, Return, Twice, Fail:
		if !g.busy.TryLock() {
			return
		}
		defer g.busy.Unlock()
		at := g.now().at
		switch {
		case s.Kind == Start && at == nil:
			g.starts(n, d)
		case s.Kind == Fail && at != n:
			g.fails(n, d)
		case at == nil || s.Kind == Start || s.Kind == Fail:
		case s.Kind == Twice:
			g.twiceOn(n, s.For, d)
		case s.Kind == Crash && !g.instance():
			g.crashes(at, d)
		case s.Kind == Stop || s.Kind == Crash:
			g.ends(at, d)
		case g.instance():
			g.move(n, s.Kind, d)
		default:
			g.migrate(n, s.Kind, d)
		}
	case Kill:
		n.down(s.For)
	case Cut:
		n.cut(w.nodes[s.Other], 1)
		time.Sleep(s.For)
		n.cut(w.nodes[s.Other], -1)
	case Deafen:
		n.deafen(s.For)
	case Copy:
		w.copy(s, d)
	case Damage:
		if at := g.now().at; at != nil && at.links() != nil {
			at.links().Break(g.port(), fmt.Sprint("no route ", g.prefixes[0]))
		}
	case Slow:
		n.during(&n.slow, s.For)
	case Full:
		n.during(&n.full, s.For)
	case Forget:
		n.forget(s.For)
	case SetClock:
		n.setClock(s.By)
	case Garble:
		n.garble(s.For)
	case Share: // before the nodes begin
	case Unreach:
		n.unreach(s.For, w.allocations())
	case Away:
		w.away(s.For)
	case PowerOff:
		n.powerOff(s.For)
	case DrainNode:
		// A second drain would wait on a mutex, and the bubble's time stands still
		// meanwhile.
		if !n.drain.TryLock() {
			return
		}
		defer n.drain.Unlock()
		_ = n.hook(waitAfter, func(ctx context.Context, a *agent.Agent) error { return a.Drain(ctx) })
		time.Sleep(s.For)
		_ = n.hook(waitAfter, func(ctx context.Context, a *agent.Agent) error { return a.Undrain(ctx) })
	}
}

// another makes a further guest with the addresses of guest number.
func (w *world) another(number int) *guest {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := len(w.guests) + len(w.copies)
	vm := domain(fmt.Sprintf("copy%d", id), id, number)
	if number >= domains {
		vm = instance(vm)
	}
	c := w.describe(vm)
	w.copies = append(w.copies, c)
	return c
}

// copy starts a further guest with the addresses of the step's guest, and ends it
// after a time.
func (w *world) copy(s Step, d delays) {
	c := w.another(s.Guest)
	held := w.guests[s.Guest].now()
	taken := w.isQuiet(silent) && held.at != nil && held.to == nil && held.also == nil && held.settled && time.Since(held.since) > aftermath
	if !c.starts(w.nodes[s.Node], d) {
		return
	}
	if now := w.guests[s.Guest].now(); taken && w.isQuiet(silent) && now.at == held.at {
		w.fail("%s was started on %s beside %s, which runs on %s", c.vm.Name, w.nodes[s.Node].self.Name, w.guests[s.Guest].vm.Name, held.at.self.Name)
	}
	time.Sleep(s.For)
	if at := c.now().at; at != nil {
		c.ends(at, d)
	}
}
