package simulate

import (
	"context"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
)

// instance reports whether the guest is one of LXD.
func (g *guest) instance() bool { return g.vm.Origin == "lxd" }

// starts starts the guest as its hypervisor does. It reports whether it runs.
func (g *guest) starts(n *node, d delays) bool {
	if !g.instance() {
		return g.start(n, d)
	}
	if !g.boot(n, d) {
		return false
	}
	g.set(func(g *guest) { g.at, g.paused, g.settled = n, false, true })
	g.speak(n, d)
	return n.on()
}

// ends ends the guest as its hypervisor does.
func (g *guest) ends(n *node, d delays) {
	if !g.instance() {
		g.end(n, d)
		return
	}
	g.set(func(g *guest) { g.at, g.settled = nil, false })
	g.unplug(n, d)
}

// boot runs LXD's hook before a start, and makes the link. It reports whether
// the instance is there, with carrier.
func (g *guest) boot(n *node, d delays) bool {
	if !n.on() {
		return false
	}
	if l := n.alive(); l != nil {
		l.sources["lxd"].Know(g.vm.Name, g.vm)
	}
	err := n.hook(waitBefore, func(ctx context.Context, a *agent.Agent) error {
		g.mu.Lock()
		g.taker = n.alive()
		g.mu.Unlock()
		return a.Starting(ctx, "lxd", g.vm.Name)
	})
	if err != nil {
		g.refuse(err)
		g.unplug(n, d)
		return false
	}
	k := n.links()
	if k == nil {
		return false
	}
	k.AddLinkDown(g.port())
	d.sleep(50*time.Millisecond, 500*time.Millisecond)
	if n.links() != k {
		return false
	}
	g.carrier(n, true)
	return true
}

// speak makes the instance answer for its addresses, and LXD emit that it runs.
func (g *guest) speak(n *node, d delays) {
	d.sleep(time.Millisecond, 50*time.Millisecond)
	for range 10 { // the node asks again and again
		if k := n.links(); k != nil {
			k.Hear(g.port())
		}
		d.sleep(10*time.Millisecond, 60*time.Millisecond) // LXD emits the event late
	}
	n.tell(g, fabric.Live)
}

// unplug removes the link of an instance, then runs LXD's hook and emits the event.
func (g *guest) unplug(n *node, d delays) {
	g.carrier(n, false)
	d.sleep(0, 20*time.Millisecond)
	k := n.links()
	if k == nil {
		return
	}
	k.RemoveLink(g.port())
	d.sleep(0, 50*time.Millisecond)
	_ = n.hook(waitAfter, func(ctx context.Context, a *agent.Agent) error { return a.Ended(ctx, "lxd", g.vm.Name) })
	n.tell(g, fabric.Absent)
}

// move starts the instance on another node before it ends it on this one, where the
// instance answers until then.
func (g *guest) move(to *node, kind Kind, d delays) {
	from := g.now().at
	if from == nil || from == to || !to.on() {
		return
	}
	arrived := g.aging(from, to)
	if !g.boot(to, d) {
		return
	}
	if kind != Migrate { // the move fails before the instance sends a frame there
		d.sleep(0, time.Second)
		g.unplug(to, d)
		return
	}
	g.mu.Lock()
	g.to, g.quiet = to, true
	g.ran[to] = true
	g.mu.Unlock()
	if d.rnd.IntN(2) == 0 { // the instance takes a while to answer
		d.sleep(500*time.Millisecond, 4*time.Second)
	}
	g.mu.Lock()
	g.quiet = false
	if g.at == to { // the node that it left lost its power meanwhile
		g.paused, g.since = false, time.Now()
	}
	g.mu.Unlock()
	g.speak(to, d)
	d.sleep(10*time.Millisecond, 500*time.Millisecond)
	switch p := g.now(); {
	case p.at == to: // the other one lost its power
		return
	case !to.on() || p.at != from:
		g.mu.Lock()
		g.to = nil
		g.since = time.Now()
		g.mu.Unlock()
		g.unplug(to, d)
		return
	}
	g.set(func(g *guest) { g.at, g.to = to, nil })
	arrived()
	g.unplug(from, d)
}
