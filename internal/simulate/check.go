package simulate

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// The bounds by which the checker judges the agents.
const (
	sampleEvery = 10 * time.Millisecond   // how often the watcher looks while something is wrong
	wellEvery   = 40 * time.Millisecond   // likewise, while nothing is wrong
	idleEvery   = 200 * time.Millisecond  // likewise, while no step was under way for a while
	holeBound   = time.Second             // how long packets for a guest may be lost while its agent runs
	calmBound   = 150 * time.Millisecond  // likewise, without a failure
	aftermath   = 10 * time.Second        // from a failure until calmBound holds
	adopted     = 3 * time.Second         // from an agent's start until the bounds hold for it
	backAgain   = 1500 * time.Millisecond // from an agent's start until the wrong announcements of the one before it are gone
	seniority   = 10 * time.Second        // from a guest's start to that of another one that certainly has its addresses later
	silent      = 20 * time.Second        // until the agents give up a node that took a guest over and died
	laterHas    = 5 * time.Second         // from the start of a guest on a second node until that node has its packets
	askedAgain  = 3 * time.Second         // from when a node is reachable again until the others have asked it
	expected    = 6 * time.Minute         // until an agent does not expect an announced guest any more
	rest        = 3 * time.Minute         // from the last failure until everything is right
)

// watcher checks all the time whether packets find each guest that runs.
type watcher struct {
	world   *world
	reach   links
	holes   map[*guest]*hole
	several map[netip.Prefix]time.Duration // how long more than one node has announced a prefix
	told    map[*guest]time.Time           // when the watcher last reported the wrong holder of a guest's addresses
	askers  askers
}

// hole is a time in which packets for a guest are lost.
type hole struct {
	lasts time.Duration
	told  bool
}

// watch checks the world until stop is closed.
func (w *world) watch(stop <-chan struct{}) {
	v := watcher{w, links{}, map[*guest]*hole{}, map[netip.Prefix]time.Duration{}, map[*guest]time.Time{}, askers{unheard: map[*guest]bool{}}}
	last := time.Now()
	for {
		wait := wellEvery
		switch {
		case len(v.holes) > 0:
			wait = sampleEvery
		case w.isIdle():
			wait = idleEvery
		}
		select {
		case <-stop:
			return
		case <-time.After(wait):
		}
		passed := time.Since(last)
		last = time.Now()
		v.reach.look(w)
		v.askers.look(w)
		for _, g := range w.guests {
			v.lookHolders(g, passed)
			v.lookPackets(g, passed)
		}
	}
}

// lookHolders checks which nodes announce a guest's addresses.
func (v *watcher) lookHolders(g *guest, passed time.Duration) {
	for _, prefix := range g.prefixes {
		who := v.world.holders(prefix)
		if len(who) < 2 {
			delete(v.several, prefix)
			continue
		}
		if v.several[prefix] += passed; v.several[prefix] > silent && v.several[prefix]-passed <= silent {
			v.world.fail("%s of %s is announced by %s, and the agents of all are there for %v", prefix, g.vm.Name, strings.Join(who, " and "), silent)
		}
	}
	why := cmp.Or(v.world.wrongHolder(g), v.wrongStart(g))
	if why != "" && time.Since(v.told[g]) > silent {
		v.told[g] = time.Now()
		v.world.fail("%s", why)
	}
}

// lookPackets checks whether packets for a guest end at it.
func (v *watcher) lookPackets(g *guest, passed time.Duration) {
	w, p := v.world, g.now()
	if p.at == nil || p.paused || w.disputed(g) || !p.orphan.IsZero() && time.Since(p.orphan) < silent+w.spread {
		delete(v.holes, g)
		return
	}
	l := p.at.alive()
	if l == nil || time.Since(l.since) < adopted {
		return // the agent does not make it worse, but may not have repaired it yet
	}
	why := cmp.Or(w.astray(g, p.at), v.askers.why(g))
	if why == "" || v.reach.doubts(p.at, g) || p.at.ignorant(l.since) || w.stuck(g, p.at) || w.waiting(g, p) || p.untold || p.restarted() {
		delete(v.holes, g)
		return
	}
	h, bound := v.holes[g], w.bound(p)
	if h == nil { // it began after the last look
		h = &hole{lasts: sampleEvery - passed}
		v.holes[g] = h
	}
	if h.lasts += passed; h.lasts > bound && !h.told && time.Since(p.since) > bound {
		h.told = true
		w.fail("%s runs on %s, and packets for it are lost for more than %v: %s", g.vm.Name, p.at.self.Name, bound, why)
	}
}

// holders lists the nodes that announce a prefix for a guest that runs there. It
// lists only nodes whose agent runs and is not slow, and none at all if two of them
// do not reach each other.
func (w *world) holders(p netip.Prefix) (names []string) {
	if !w.routers.several(p) {
		return nil
	}
	for _, name := range w.routers.announcers(p) {
		n := w.node(name)
		l := n.alive()
		if l != nil && time.Since(l.since) > adopted && n.slowness() == 1 && w.routers.preference(name, p) != fabric.Standby {
			names = append(names, name)
		}
	}
	for _, one := range names {
		for _, other := range names {
			if w.node(one).isCut(other) {
				return nil
			}
		}
	}
	return names
}

// wrongHolder describes a wrong announcement at a time when nothing disturbed an
// agent for a while: a node announces a guest that does not run, or of two guests
// with one address, both running for a while, the one that had it later has it. It
// returns "" if there is none.
func (w *world) wrongHolder(g *guest) string {
	p := g.now()
	if p.at == nil && p.also == nil && p.to == nil && time.Since(p.since) > holeBound+w.spread && w.isQuiet(aftermath) && !w.copied(g) {
		for _, prefix := range g.prefixes {
			for _, name := range w.routers.announcers(prefix) {
				if l := w.node(name).alive(); l != nil && time.Since(l.since) > adopted && w.routers.preference(name, prefix) != fabric.Standby {
					return fmt.Sprintf("%s does not run, and %s is announced by %s", g.vm.Name, prefix, name)
				}
			}
		}
	}
	if w.unsure() || !w.isQuiet(silent) {
		return ""
	}
	for _, c := range w.all()[len(w.guests):] {
		o := c.now()
		if c.prefixes[0] != g.prefixes[0] || o.at == nil || p.at == nil || o.at == p.at || p.to != nil || p.also != nil || p.ageless {
			continue
		}
		if min(time.Since(p.since), time.Since(o.since)) < silent || time.Since(p.twice) < 2*silent || p.first.Sub(o.first).Abs() < adopted {
			continue
		}
		has := p
		if o.first.Before(p.first) {
			has = o
		}
		for _, prefix := range g.prefixes {
			if end, way := w.way(prefix); end != has.at {
				return fmt.Sprintf("%s and %s run, and packets for %s come to another node than %s, where it was first: %s", g.vm.Name, c.vm.Name, prefix, has.at.self.Name, way)
			}
		}
	}
	return ""
}

// wrongStart describes packets for a guest that runs on two nodes, and that come to the
// one where it was started first. It returns "" if they do not, or if the agents may not
// know the later start.
func (v *watcher) wrongStart(g *guest) string {
	w, p := v.world, g.now()
	if p.at == nil || p.also == nil || !p.later || time.Since(p.since) < laterHas+w.spread || w.cloned(g) || w.garbles() || w.hasLostDisk() {
		return ""
	}
	if p.ageless && (w.unsure() || w.shared != nil) { // the later node may not have heard of the epoch of the first
		return ""
	}
	for _, n := range []*node{p.at, p.also} {
		if l := n.alive(); l == nil || time.Since(l.since) < adopted || n.slowness() > 1 {
			return ""
		}
	}
	if k := v.reach.between(p.at, p.also); !k.up || time.Since(k.since) < laterHas {
		return ""
	}
	for _, prefix := range g.prefixes {
		if end, way := w.way(prefix); end == p.at {
			return fmt.Sprintf("%s was started on %s, and then on %s, and packets for %s come to the first: %s", g.vm.Name, p.at.self.Name, p.also.self.Name, prefix, way)
		}
	}
	return ""
}

// unsure reports whether the agents may not know which of two guests had an address
// first: a node lost its disk, or a clock was wrong.
func (w *world) unsure() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost.clocks || !w.lost.last.IsZero() && time.Since(w.lost.last) < time.Hour
}

// garbles reports whether messages come late, twice or out of order, or did lately.
func (w *world) garbles() bool {
	for _, n := range w.nodes {
		if n.garbledWithin(askedAgain) {
			return true
		}
	}
	return false
}

// forgetful reports whether a node lost its disk within a time.
func (w *world) forgetful(within time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.lost.last.IsZero() && time.Since(w.lost.last) < within
}

// bound is how long packets for a guest may be lost. A live migration waits for
// no router: the source sends packets on.
func (w *world) bound(p place) time.Duration {
	switch {
	case p.at.slowness() > 1, w.garbles(), w.forgetful(aftermath):
		// Several slow effects come one after the other, or agents repeat messages;
		// or a node without its disk takes a guest for new, and gives it up.
		return 5*holeBound + w.spread
	case !w.isCalm():
		return holeBound + w.spread
	case p.moved:
		return calmBound
	}
	return calmBound + w.spread
}

// astray returns the reason why packets do not find a guest on a node, or "".
func (w *world) astray(g *guest, at *node) string {
	for _, prefix := range g.prefixes {
		switch end, way := w.way(prefix); {
		case end == nil:
			return fmt.Sprintf("%s: %s", prefix, way)
		case end != at && (!g.instance() || end != g.now().to || g.now().quiet):
			return fmt.Sprintf("%s: it is brought to %s (%s)", prefix, end.self.Name, way)
		}
	}
	return ""
}

// stuck reports whether a guest's packets go to a node whose agent died just after
// the guest began to run there, and has not come back: the reflectors keep the
// route with the highest preference there is, which no other node can exceed. The
// same holds for a node that had the guest later, and died before the guest ended
// there; and for one that the guest left just after it began to run there, if its agent
// began after that, and nobody and nothing can tell it that the guest is gone.
func (w *world) stuck(g *guest, at *node) bool {
	for _, prefix := range g.prefixes {
		name := w.routers.best(prefix)
		if name == "" || name == at.self.Name {
			continue
		}
		l := w.node(name).alive()
		if p := g.now(); l != nil && p.left == w.node(name) && p.away && p.waited && p.left.isCut(at.self.Name) && l.since.After(p.since) && !l.diverted[g] {
			return true
		}
		if l == nil || time.Since(l.since) < backAgain {
			// Its full disk does not record that another node has the guest.
			return w.routers.preference(name, prefix) == fabric.Fresh || at.lostTo(g) != "" || at.broken()
		}
	}
	return false
}

// links records for each pair of nodes whether their agents reach each other, and
// since when.
type links map[[2]string]link

type link struct {
	up    bool
	since time.Time
	out   time.Time // since when it is not up, but for moments
}

// look updates the links.
func (l links) look(w *world) {
	for i, one := range w.nodes {
		for _, other := range w.nodes[i+1:] {
			k := [2]string{one.self.Name, other.self.Name}
			up := one.alive() != nil && other.alive() != nil && !one.isCut(other.self.Name)
			if was, known := l[k]; !known || was.up != up {
				is := link{up, time.Now(), was.out}
				if !up && (!known || is.since.Sub(was.since) > askedAgain) {
					is.out = is.since
				}
				l[k] = is
			}
		}
	}
}

// between gives the link of two nodes.
func (l links) between(one, other *node) link {
	return l[[2]string{min(one.self.Name, other.self.Name), max(one.self.Name, other.self.Name)}]
}

// doubts reports whether the node's agent believes that another node has the guest,
// and cannot know better yet. The agent asks that node. Until it answers, or was
// silent for long enough, the agent does not announce the guest.
func (l links) doubts(n *node, g *guest) bool {
	other := n.lostTo(g)
	if other == "" || !n.world.mayBeOn(g, other) {
		return false
	}
	k := l.between(n, n.world.node(other))
	if k.up {
		// Only the other node's answer counts, which can be lost any number of times
		// while messages are garbled. It has the guest as long as its hypervisor says
		// nothing, if it could not be asked for its epoch, and clocks are wrong.
		p := g.now()
		unasked := n.world.unsure() && p.left == n.world.node(other) && p.ageless
		return time.Since(k.since) < askedAgain || unasked || n.world.garbles()
	}
	since := k.since
	if !n.world.node(other).keeps(g) {
		since = k.out // it cannot have said that it has the guest
	}
	if life := n.alive(); life != nil && life.since.After(since) {
		since = life.since
	}
	// The agent then announces it as standby, behind another guest's route, too, or
	// as far as an expected one.
	return time.Since(since) < silent || n.world.copied(g) || g.now().to != nil || n.world.unsure() && g.now().left == n.world.node(other)
}

// mayBeOn reports whether the agents may believe that a node has the guest: the
// guest ran there, or a copy ran there that has had the addresses as long, or no
// agent may know since when the guest has them.
func (w *world) mayBeOn(g *guest, name string) bool {
	g.mu.Lock()
	there, ageless, started := g.ran[w.node(name)], g.ageless, g.started
	g.mu.Unlock()
	if there || ageless || w.unsure() || g.wasUntold() {
		return true
	}
	return slices.ContainsFunc(w.all()[len(w.guests):], func(c *guest) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.ran[w.node(name)] && c.prefixes[0] == g.prefixes[0] && c.started.Sub(started) <= seniority
	})
}

// lostTo returns the node to which this node's agent has lost the guest, or "".
func (n *node) lostTo(g *guest) string {
	if d, known := n.storage.lastTried(g.vm.Name); known {
		return d.Lost
	}
	all, _ := n.storage.current().All(context.Background())
	for _, d := range all {
		if d.VM.Name == g.vm.Name {
			return d.Lost
		}
	}
	return ""
}

// restarted reports whether an instance moves to a node whose agent began after the
// instance's start there. That agent assumes that the instance already answers.
func (p place) restarted() bool {
	return p.quiet && p.to != nil && p.to.alive() != p.taker
}

// waiting reports whether packets wait for a guest that moves again just after it
// arrived: the routers still have the route to the node to which it now moves.
func (w *world) waiting(g *guest, p place) bool {
	if p.to == nil || time.Since(p.since) > w.spread+calmBound {
		return false
	}
	for _, prefix := range g.prefixes {
		if end, _ := w.way(prefix); end != p.at && end != p.to {
			return false
		}
	}
	return true
}

// copied reports whether another guest with the addresses of g may have them.
func (w *world) copied(g *guest) bool { return w.cloned(g) || w.disputed(g) }

// cloned reports whether another guest with the addresses of g runs, or did a moment ago.
func (w *world) cloned(g *guest) bool {
	for _, other := range w.all()[len(w.guests):] {
		if other.prefixes[0] == g.prefixes[0] {
			if p := other.now(); p.at != nil || time.Since(p.since) < adopted {
				return true
			}
		}
	}
	return false
}

// disputed reports whether another guest with the addresses of g runs, or did a
// moment ago, and the agents still have to find out which has them. One that was
// started long after g is not in dispute once a reflector has told the agents of
// it, even if they do not reach each other.
func (w *world) disputed(g *guest) bool {
	if p := g.now(); p.also != nil || !p.twice.IsZero() && time.Since(p.twice) < silent {
		return true
	}
	p := g.now()
	drained := p.at != nil && p.at.isDrained() // a drained node does not defend its guests' addresses
	g.mu.Lock()
	started, ageless := g.started, g.ageless
	g.mu.Unlock()
	for _, other := range w.all()[len(w.guests):] {
		if other.prefixes[0] != g.prefixes[0] {
			continue
		}
		other.mu.Lock()
		at, since, began := other.at, other.since, other.started
		other.mu.Unlock()
		newcomer := !w.unsure() && !ageless && !drained && began.Sub(started) > seniority && time.Since(began) > adopted+3*w.spread
		if at != nil && !newcomer || time.Since(since) < adopted {
			return true
		}
	}
	return false
}

// settled checks everything, long after the last failure. With well, it also checks
// that the nodes report themselves healthy. That takes longer than diversionMemory,
// for which a node reports a guest that ran on two nodes.
func (w *world) settled(well bool) {
	for _, g := range w.all() {
		p := g.now()
		for _, prefix := range g.prefixes {
			who := w.routers.announcers(prefix)
			var should []string
			if p.at != nil {
				should = []string{p.at.self.Name}
			} else if w.heldByAnother(prefix, g) {
				continue
			}
			if !slices.Equal(who, should) {
				w.fail("at rest: %s of %s is announced by [%s], not by [%s]", prefix, g.vm.Name, strings.Join(who, " "), strings.Join(should, " "))
			}
		}
		if p.at == nil {
			continue
		}
		if why := w.astray(g, p.at); why != "" {
			w.fail("at rest: %s runs on %s, and packets for it are lost: %s", g.vm.Name, p.at.self.Name, why)
		}
	}
	for _, n := range w.nodes {
		w.settledNode(n, well)
	}
	w.settledRegistry()
}

func (w *world) heldByAnother(prefix netip.Prefix, g *guest) bool {
	for _, other := range w.all() {
		if other != g && other.now().at != nil && slices.Contains(other.prefixes, prefix) {
			return true
		}
	}
	return false
}

// works checks that nothing hinders the guests: each one that does not run starts,
// and each moves to every node. After the end of a guest, another guest can have
// its addresses.
func (w *world) works(rnd *rand.Rand) {
	d := delays{rnd}
	for _, g := range w.guests {
		if g.now().at == nil && !g.starts(w.nodes[rnd.IntN(nodes)], d) {
			w.fail("at rest: %s cannot be started: %s", g.vm.Name, g.refused)
			continue
		}
		for _, n := range w.nodes {
			switch {
			case g.now().at == n:
				continue
			case g.instance():
				g.move(n, Migrate, d)
			default:
				g.migrate(n, Migrate, d)
			}
			if at := g.now().at; at != n {
				w.fail("at rest: %s cannot be moved to %s: %s", g.vm.Name, n.self.Name, g.refused)
			}
		}
	}
	number := rnd.IntN(guests)
	if g := w.guests[number]; g.asks() { // its address is its own also while it does not run
		number = (number + 1) % guests
	}
	g := w.guests[number]
	if at := g.now().at; at != nil {
		g.ends(at, d)
		time.Sleep(time.Second)
	}
	for _, n := range w.nodes {
		c := w.another(number)
		if !c.starts(n, d) {
			w.fail("at rest: %s has ended, and %s with its addresses cannot be started on %s: %s", g.vm.Name, c.vm.Name, n.self.Name, c.refused)
			continue
		}
		c.ends(n, d)
		time.Sleep(time.Second) // until the hypervisor has reported the end
	}
	if n := w.nodes[rnd.IntN(nodes)]; !g.starts(n, d) {
		w.fail("at rest: %s cannot be started again on %s: %s", g.vm.Name, n.self.Name, g.refused)
	}
}

// settledNode checks that a node has the ports and the state of its guests, and
// nothing else.
func (w *world) settledNode(n *node, well bool) {
	ctx := context.Background()
	var should, have, kept []string
	for _, g := range w.all() {
		if g.now().at == n {
			should = append(should, g.vm.Name)
		}
	}
	ports, err := n.links().Actual(ctx)
	if err != nil {
		w.fail("at rest: %s: %v", n.self.Name, err)
	}
	for _, p := range ports {
		have = append(have, p.VM)
		if len(p.Faults) > 0 {
			w.fail("at rest: %s: port %s: %s", n.self.Name, p.Name, strings.Join(p.Faults, ", "))
		}
	}
	stored, err := n.storage.current().All(ctx)
	if err != nil {
		w.fail("at rest: %s: %v", n.self.Name, err)
	}
	for _, d := range stored {
		kept = append(kept, d.VM.Name)
		if d.State != fabric.Live {
			w.fail("at rest: %s keeps %s as %v", n.self.Name, d.VM.Name, d.State)
		}
	}
	for what, names := range map[string][]string{"has ports of": have, "keeps the state of": kept} {
		slices.Sort(names)
		slices.Sort(should)
		if !slices.Equal(names, should) {
			w.fail("at rest: %s %s %v, and %v run there", n.self.Name, what, names, should)
		}
	}
	if diverted, err := n.links().Diverted(ctx); err != nil || len(diverted) > 0 {
		w.fail("at rest: %s diverts %v (%v)", n.self.Name, diverted, err)
	}
	if recorded := n.links().Recorded(); len(recorded) > 0 {
		w.fail("at rest: %s records %v", n.self.Name, recorded)
	}
	l := n.alive()
	if l == nil {
		w.fail("at rest: %s has no agent", n.self.Name)
		return
	}
	st, err := l.agent.Status(ctx)
	if err != nil || well && !st.Healthy {
		w.fail("at rest: %s is not well: %s (%v)", n.self.Name, strings.Join(st.Problems, "; "), err)
	}
	w.settledMoves(n, l)
	routes, _ := l.speaker.Actual(ctx)
	for _, r := range routes {
		if r.Preference != fabric.Normal {
			w.fail("at rest: %s announces %s as %v", n.self.Name, r.Prefix, r.Preference)
		}
	}
}

// settledMoves checks that every report of a move to a node has ended, and every one of
// a move from it, unless it lost touch with the destination since, which knows the end.
func (w *world) settledMoves(n *node, l *life) {
	moves, _ := l.agent.Moves(context.Background(), "")
	for _, m := range moves {
		began, over := m.Learned, false
		if m.From != n.self.Name {
			began, over = m.Expected, !m.PortReady.IsZero() || time.Since(m.Expected) > expected
		} else if to := w.node(m.To); to != nil {
			t := to.alive()
			over = t != nil && t.since.Before(began) && n.reachedSince(m.To, began) && to.reachedSince(n.self.Name, began)
		}
		if m.Outcome == "under way" && l.since.Before(began) && over {
			w.fail("at rest: by %s the move of %s from %s to %s is under way", n.self.Name, m.VM, m.From, m.To)
		}
	}
}
