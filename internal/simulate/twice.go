package simulate

import (
	"context"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
)

// fails starts the guest on a node; the start fails before the guest runs.
func (g *guest) fails(n *node, d delays) {
	switch {
	case !n.on():
	case g.instance():
		if g.boot(n, d) {
			d.sleep(0, time.Second)
			g.unplug(n, d)
		}
	case g.plug(n, d):
		g.release(n, d)
	}
}

// plug runs the hooks before a guest's process runs. It reports whether none of
// them refused, and the node still has power.
func (g *guest) plug(n *node, d delays) bool {
	g.begins(n)
	defer g.begins(nil)
	if err := n.apply(g, fabric.Wired, waitBefore); err != nil { // prepare
		g.refuse(err)
		g.release(n, d)
		return false
	}
	d.sleep(time.Millisecond, 100*time.Millisecond) // QEMU starts
	if !n.on() {
		return false
	}
	g.carrier(n, true)
	if err := n.apply(g, fabric.Wired, waitBefore); err != nil { // start
		g.refuse(err)
		g.release(n, d)
		return false
	}
	return n.on()
}

// begins notes the node on which the guest is being started. From then on its
// hypervisor lists it.
func (g *guest) begins(n *node) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.starting = n
}

// twiceOn runs the guest on a second node, too, as an operator does who takes the
// first one for dead. After a time it ends on one of them.
func (g *guest) twiceOn(n *node, d time.Duration, ds delays) {
	from := g.now().at
	if from == n || !n.on() {
		return
	}
	arrived, known := g.aging(from, n), from.hasEpoch(g)
	also := func() bool {
		if !n.on() || g.now().at != from {
			return false
		}
		g.set(func(g *guest) { g.also, g.later = n, known })
		return true
	}
	if g.instance() {
		if !g.boot(n, ds) {
			return
		}
		if !also() {
			g.unplug(n, ds)
			return
		}
		g.speak(n, ds)
	} else {
		if !g.plug(n, ds) {
			return
		}
		if !also() {
			g.release(n, ds)
			return
		}
		ds.sleep(0, 5*time.Millisecond)
		_ = n.hook(waitAfter, func(ctx context.Context, a *agent.Agent) error { return a.Started(ctx, g.vm) })
		n.tell(g, fabric.Live)
	}
	arrived()
	time.Sleep(d)
	if p := g.now(); p.also == nil || p.at == nil { // one of them lost its power
		return
	}
	ends, stays := from, n
	if ds.rnd.IntN(3) == 0 {
		ends, stays = n, from
	}
	g.once(stays)
	if g.instance() {
		g.unplug(ends, ds)
		return
	}
	g.release(ends, ds)
}
