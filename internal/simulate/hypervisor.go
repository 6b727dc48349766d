package simulate

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
)

// How long a hook waits for an agent before a guest runs, and after.
const (
	waitBefore = 4 * time.Second
	waitAfter  = time.Second
)

// delays draws the times of the parts of an operation.
type delays struct{ rnd *rand.Rand }

func (d delays) sleep(least, most time.Duration) { time.Sleep(between(d.rnd, least, most)) }

func (g *guest) port() string { return fabric.PortName(g.vm.Name, 0) }

func (g *guest) carrier(n *node, up bool) {
	if k := n.links(); k != nil {
		k.SetCarrier(g.port(), up)
	}
}

func (n *node) apply(g *guest, s fabric.State, wait time.Duration) error {
	return n.hook(wait, func(ctx context.Context, a *agent.Agent) error { return a.Apply(ctx, g.vm, s) })
}

// start runs the hooks and the events of virsh start. It reports whether the
// guest runs.
func (g *guest) start(n *node, d delays) bool {
	if !n.on() {
		return false
	}
	if !g.plug(n, d) {
		return false
	}
	g.set(func(g *guest) {
		g.at, g.paused, g.settled, g.moved, g.refused, g.started = n, false, false, false, "", time.Now()
	})
	d.sleep(0, 5*time.Millisecond)
	err := n.hook(waitAfter, func(ctx context.Context, a *agent.Agent) error { return a.Started(ctx, g.vm) })
	n.tell(g, fabric.Live)
	if n.on() {
		g.set(func(g *guest) { g.settled = err == nil })
	}
	return n.on()
}

// on reports whether the node has power.
func (n *node) on() bool { return n.links() != nil }

// end ends the guest, and runs libvirt's hooks after that.
func (g *guest) end(n *node, d delays) {
	g.set(func(g *guest) { g.at, g.paused, g.settled = nil, false, false })
	g.release(n, d)
}

// crashes ends the guest's process. The hypervisor's daemon may be away; it runs
// the hooks and emits the event when it is back.
func (g *guest) crashes(n *node, d delays) {
	g.set(func(g *guest) { g.at, g.paused, g.settled = nil, false, false })
	g.carrier(n, false)
	if d.rnd.IntN(2) == 0 {
		d.sleep(time.Second, 20*time.Second)
	}
	g.release(n, d)
}

// release runs the hooks stopped and release after the guest's process ended, and
// emits the event. The kernel's notification may come later than the hook.
func (g *guest) release(n *node, d delays) {
	if !n.on() {
		return
	}
	late := d.rnd.IntN(3) == 0
	if !late {
		g.carrier(n, false)
	}
	d.sleep(0, 20*time.Millisecond)
	_ = n.hook(waitAfter, func(ctx context.Context, a *agent.Agent) error {
		err := a.Withdraw(ctx, g.vm.Name)
		if err == nil {
			n.withdrew(g)
		}
		return err
	})
	if late {
		g.carrier(n, false)
	}
	d.sleep(0, 20*time.Millisecond)
	_ = n.apply(g, fabric.Absent, waitAfter)
	n.tell(g, fabric.Absent)
}

// migrate runs the hooks and the events of virsh migrate --live. An Abort or a
// Return fails on its way.
func (g *guest) migrate(to *node, kind Kind, d delays) {
	from := g.now().at
	if from == nil || from == to || !to.on() {
		return
	}
	arrived, boot, waited := g.aging(from, to), to.boots(), from.waits(g)
	var told *agent.Agent
	_ = to.hook(waitAfter, func(ctx context.Context, a *agent.Agent) error {
		told = a
		return a.Expect(ctx, g.vm.Name)
	})
	defer func() {
		g.mu.Lock()
		if g.untold {
			g.told, g.ran[to] = time.Now(), true
		}
		g.to, g.untold = nil, false
		g.mu.Unlock()
	}()
	err := to.hook(waitBefore, func(ctx context.Context, a *agent.Agent) error {
		reached := to.reaches(from) && !to.keeps(g)
		err := a.Apply(ctx, g.vm, fabric.Wired)
		g.mu.Lock()
		g.untold = a != told && !(reached && to.reaches(from))
		g.mu.Unlock()
		return err
	})
	if err != nil {
		g.refuse(err)
		g.release(to, d)
		return
	}
	d.sleep(time.Millisecond, 100*time.Millisecond)
	g.carrier(to, true)
	g.mu.Lock()
	g.to = to
	g.mu.Unlock()
	to.tell(g, fabric.Wired)
	_ = to.hook(waitAfter, func(ctx context.Context, a *agent.Agent) error { return a.Started(ctx, g.vm) })
	d.sleep(10*time.Millisecond, longest(d.rnd)) // the copy
	if kind == Abort || g.now().at != from || to.boots() != boot {
		g.release(to, d)
		return
	}
	from.world.asksAll(g, from)
	g.set(func(g *guest) { g.paused = true })
	d.sleep(0, 5*time.Millisecond)
	from.leaves(g)
	d.sleep(5*time.Millisecond, 80*time.Millisecond) // the last of the copy
	if kind == Return || to.boots() != boot || g.now().at != from {
		if g.now().at == from {
			g.set(func(g *guest) { g.paused = false })
			from.tell(g, fabric.Live)
		}
		g.release(to, d)
		return
	}
	g.set(func(g *guest) {
		g.at, g.to, g.paused, g.settled, g.moved = to, nil, false, true, time.Since(g.started) > time.Second
	})
	to.world.asksAll(g, to)
	arrived()
	d.sleep(0, 3*time.Millisecond)
	if links := to.links(); links != nil {
		links.Hear(g.port())
	}
	d.sleep(0, 20*time.Millisecond)
	to.tell(g, fabric.Live)
	d.sleep(0, 50*time.Millisecond)
	if d.rnd.IntN(2) == 0 { // the source's daemon hangs or is away, and the process remains until it is back
		g.remains(from, waited)
		d.sleep(time.Second, 10*time.Second)
		g.remains(nil, false)
	}
	g.release(from, d)
}

// keeps reports whether the node still has the guest on its disk, as after an agent
// that was away when the guest left.
func (n *node) keeps(g *guest) bool {
	all, _ := n.storage.current().All(context.Background())
	return slices.ContainsFunc(all, func(d fabric.Desired) bool { return d.VM.Name == g.vm.Name && d.State == fabric.Live })
}

// reaches reports whether the node's agent can ask another node's. An agent that
// was not there when its hypervisor announced a guest's arrival takes the move for
// a start if it cannot ask.
func (n *node) reaches(other *node) bool {
	return other.alive() != nil && !n.isCut(other.self.Name) && !n.isGarbled() && !other.isGarbled()
}

// wasUntold reports whether an agent lately took a move of the guest for a start.
func (g *guest) wasUntold() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.untold || !g.told.IsZero() && time.Since(g.told) < silent
}

// longest draws the longest time for the copy of a live migration.
func longest(rnd *rand.Rand) time.Duration {
	if rnd.IntN(4) == 0 {
		return 10 * time.Second
	}
	return 3 * time.Second
}

// waits reports whether the node's agent still waits for another node to let go of the
// guest.
func (n *node) waits(g *guest) bool {
	all, _ := n.storage.current().All(context.Background())
	return slices.ContainsFunc(all, func(d fabric.Desired) bool { return d.VM.Name == g.vm.Name && len(d.Unreleased) > 0 })
}

// remains notes the node on which the process of a guest that left still stands. In half
// of the cases the hypervisor's daemon there is away, so that the agent hears of nothing.
func (g *guest) remains(n *node, waited bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left, g.waited, g.away = n, waited, n != nil && time.Since(n.world.began)/time.Microsecond%2 == 0
}

// withdrew checks that the node announces nothing of a guest whose stopped hook has
// succeeded.
func (n *node) withdrew(g *guest) {
	l := n.alive()
	if l == nil || l.mortal.err() != nil {
		return
	}
	routes, _ := l.speaker.Actual(context.Background())
	for _, r := range routes {
		if slices.Contains(g.prefixes, r.Prefix) && !n.world.heldByAnother(r.Prefix, g) {
			n.world.fail("%s withdrew %s, and announces %s", n.self.Name, g.vm.Name, r.Prefix)
		}
	}
}
