package agent

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/migration"
)

const (
	tellEvery   = time.Second      // what is not settled yet is told again
	tellRetry   = 2 * time.Second  // after a node did not answer
	messageTime = 30 * time.Second // for a notice that is told once; claims are told for ever
)

// WithNodes lets the agent talk to those of the cluster's other nodes. Without,
// it moves no traffic to where a guest goes, and does not know who else has one.
func WithNodes(n fabric.Nodes) Option { return func(a *Agent) { a.nodes = n } }

// others gives the names of the nodes that the agent talks to.
func (a *Agent) others() []string {
	if a.nodes == nil {
		return nil
	}
	return a.nodes.Names()
}

// peerQueues carry notices to the other nodes, one for each: a node that does not
// answer holds up what is for it alone.
type peerQueues struct {
	mu     sync.Mutex
	wakes  map[string]chan struct{}
	queues map[string][]message
}

// message is a notice that is told to one node, once.
type message struct {
	fabric.Notice
	until time.Time
}

// stillDue reports whether what was due still is.
func (a *Agent) stillDue(d due) bool {
	s, done := a.state.open()
	defer done()
	g := s.guests[d.notice.VM]
	return g != nil && g.unsettled() && (d.notice.Kind != fabric.Arriving || g.arrival == migration.Ready)
}

// due is what is to be told again and again, and what is done with the answer.
type due struct {
	notice fabric.Notice
	heard  func(context.Context, fabric.Answer)
}

// serve answers the other nodes, and carries what they are to be told, until ctx ends.
func (a *Agent) serve(ctx context.Context) {
	if a.nodes == nil {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { a.reconsider(ctx) })
	wg.Go(func() {
		if err := a.nodes.Serve(ctx, a.noticed); err != nil {
			a.conditions.set("nodes", err)
		}
	})
	look := time.NewTicker(tellEvery)
	defer look.Stop()
	for {
		for _, node := range a.nodes.Names() {
			if wake, fresh := a.peerQueues.start(node); fresh {
				wg.Go(func() { a.deliver(ctx, node, wake) })
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
	}
}

// start gives what wakes a node's peer queue; fresh is true of one that is new.
func (c *peerQueues) start(node string) (wake chan struct{}, fresh bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if wake = c.wakes[node]; wake != nil {
		return wake, false
	}
	if c.wakes == nil {
		c.wakes, c.queues = map[string]chan struct{}{}, map[string][]message{}
	}
	wake = make(chan struct{}, 1)
	wake <- struct{}{}
	c.wakes[node] = wake
	return wake, true
}

// kick has everybody look for what is to be told.
func (c *peerQueues) kick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, wake := range c.wakes {
		signal(wake)
	}
}

// send has a notice told to nodes.
func (c *peerQueues) send(n fabric.Notice, nodes ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, node := range nodes {
		if wake := c.wakes[node]; wake != nil {
			c.queues[node] = append(c.queues[node], message{n, time.Now().Add(messageTime)})
			signal(wake)
		}
	}
}

// next gives the message that is to be run first.
func (c *peerQueues) next(node string) (fabric.Notice, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queues[node] = slices.DeleteFunc(c.queues[node], func(e message) bool { return time.Now().After(e.until) })
	if len(c.queues[node]) == 0 {
		return fabric.Notice{}, false
	}
	return c.queues[node][0].Notice, true
}

// delivered takes the first message away.
func (c *peerQueues) delivered(node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queues[node]) > 0 {
		c.queues[node] = c.queues[node][1:]
	}
}

// deliver tells a node what it is to be told.
func (a *Agent) deliver(ctx context.Context, node string, wake <-chan struct{}) {
	for ctx.Err() == nil {
		wait, answers := a.round(ctx, node)
		news := wake
		if !answers {
			news = nil // there is always some, and it would be called for each
		}
		again := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-news:
		case <-again.C:
		}
		again.Stop()
	}
}

// round tells a node everything that is due, and gives how long to wait before
// the next round if there is no news; and whether the node answers.
func (a *Agent) round(ctx context.Context, node string) (wait time.Duration, answers bool) {
	for {
		n, some := a.peerQueues.next(node)
		if !some {
			break
		}
		if !a.isPast(n) {
			if _, err := a.tellNode(ctx, node, n); err != nil {
				return tellRetry, false
			}
		}
		a.peerQueues.delivered(node)
	}
	lasting := a.lasting(node)
	for _, d := range lasting {
		if !a.stillDue(d) {
			continue
		}
		answer, err := a.tellNode(ctx, node, d.notice)
		if err != nil {
			return tellRetry, false
		}
		d.heard(ctx, answer)
	}
	if len(a.lasting(node)) > 0 {
		return tellEvery, true
	}
	return passEvery, true
}

// isPast reports whether a guest that arrived here has gone on since: the node that it
// came from, where it may be again, is to hear of that no more.
func (a *Agent) isPast(n fabric.Notice) bool {
	s, done := a.state.open()
	defer done()
	g := s.guests[n.VM]
	return n.Kind == fabric.Arrived && (g == nil || !g.has || g.want.Epoch != n.Epoch || g.departure.state.Stops())
}

// tellNode tells a node something.
func (a *Agent) tellNode(ctx context.Context, node string, n fabric.Notice) (fabric.Answer, error) {
	answer, err := a.nodes.Ask(ctx, node, n)
	if err != nil {
		a.log.Debug("not told", "node", node, "notice", string(n.Kind), "vm", n.VM, "err", err)
		a.unanswered(node)
		return answer, err
	}
	a.meet(fabric.Node{Name: node})
	return a.believable(node, n.VM, answer), nil
}

// meet notes that a node has an agent, which can be reached, or reaches this one.
func (a *Agent) meet(node fabric.Node) {
	s, done := a.state.open()
	defer done()
	s.peers.met[node.Name] = true
	s.peers.heard(node)
}

// lasting lists what a node is told until it is not so any more: that guests
// arrive, and who has them.
func (a *Agent) lasting(node string) (all []due) {
	s, done := a.state.open()
	defer done()
	for _, name := range sortedKeys(s.unsettled) {
		g := s.guests[name]
		if g == nil || !g.unsettled() {
			delete(s.unsettled, name)
			continue
		}
		switch d := g.want; {
		case g.arrival == migration.Ready:
			all = append(all, due{a.notice(fabric.Arriving, d), func(_ context.Context, answer fabric.Answer) { a.awaitedBy(name, node, answer) }})
		case owned(d) && (slices.Contains(d.Unreleased, node) || g.has && slices.Contains(g.unasked, node) || g.contested == node || g.contests[node].byRoute):
			all = append(all, due{a.notice(fabric.Claimed, d), func(ctx context.Context, answer fabric.Answer) { a.claimAnswered(ctx, name, node, d.Epoch, answer) }})
		case d.State == fabric.Live && d.Lost == node: // perhaps it has let go
			all = append(all, due{a.notice(fabric.Claimed, d), func(ctx context.Context, answer fabric.Answer) { a.reclaimFrom(ctx, name, node, answer) }})
		}
	}
	return all
}

// unsettled reports whether other nodes are still to be told something of the guest.
func (g *guest) unsettled() bool {
	d := g.want
	return g.arrival.Awaits() || d.State == fabric.Live && (d.Lost != "" || len(d.Unreleased) > 0 || len(g.unasked) > 0 || len(g.competing) > 0 || !g.defended.IsZero() || g.onHearsay())
}

// onHearsay reports whether a route says that another guest wants an address, and
// its node's agent has not been heard since.
func (g *guest) onHearsay() bool {
	for _, r := range g.contests {
		if r.byRoute {
			return true
		}
	}
	return false
}

func (a *Agent) notice(kind fabric.NoticeKind, d fabric.Desired) fabric.Notice {
	return fabric.Notice{
		Kind: kind, VM: d.VM.Name, UUID: d.VM.UUID, Prefixes: d.VM.Prefixes(), Epoch: d.Epoch,
		Identity: d.VM.Identity(), Acquired: d.Acquired,
	}
}

// noticed answers another node.
func (a *Agent) noticed(ctx context.Context, from fabric.Node, n fabric.Notice) fabric.Answer {
	a.meet(from)
	a.log.Debug("told", "node", from.Name, "notice", string(n.Kind), "vm", n.VM, "generation", n.Epoch)
	n.Epoch = a.plausible(from.Name, n.VM, n.Epoch)
	another := a.isAnother(n)
	switch {
	case n.Kind == fabric.Acquiring:
		return a.holder(n)
	case n.Kind == fabric.Claimed:
		return a.claimed(ctx, from, n)
	case n.Kind == fabric.Released:
		if !another {
			a.released(ctx, n.VM, from.Name, n.Move)
		}
		a.letGo(from.Name, n)
	case another: // a guest of the same name that is not this one is on its way
	case n.Kind == fabric.Arriving:
		return a.identified(n, a.leaves(ctx, from, n))
	case n.Kind == fabric.Arrived:
		return a.identified(n, a.left(ctx, from, n))
	case n.Kind == fabric.Cancelled:
		a.stays(ctx, from, n)
	}
	return fabric.Answer{}
}

// concerned lists the guests here that have any of the prefixes.
func (a *Agent) concerned(ps []netip.Prefix) []string {
	s, done := a.state.open()
	defer done()
	var vms []string
	for _, p := range ps {
		if vm, taken := s.reserved.Holder(p); taken && !slices.Contains(vms, vm) {
			vms = append(vms, vm)
		}
	}
	return vms
}

// signal makes a wake-up that is taken once, whenever.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
