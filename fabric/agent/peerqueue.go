package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/migration"
)

const (
	repeatEvery = time.Second      // between rounds, while a node has lasting notices
	askRetry    = 2 * time.Second  // before the next round, after a node did not answer
	messageTime = 30 * time.Second // a message expires so long after send; lasting notices do not
)

// WithNodes lets the agent talk to the agents of the cluster's other nodes. Without
// it, the agent does not divert the packets of guests that leave, and does not
// learn which other node has a guest.
func WithNodes(n fabric.Nodes) Option { return func(a *Agent) { a.nodes = n } }

// others lists the nodes that the agent talks to.
func (a *Agent) others() []string {
	if a.nodes == nil {
		return nil
	}
	return a.nodes.Names()
}

// peerQueues are the queues of messages to the other nodes, one for each node: a node
// that does not answer delays only its own messages.
type peerQueues struct {
	mu     sync.Mutex
	wakes  map[string]chan struct{}
	queues map[string][]message
}

// message is a notice that is delivered to one node once.
type message struct {
	fabric.Notice
	until time.Time
}

// stillDue reports whether a lasting notice is still true: an answer to an earlier
// one may have settled it.
func (a *Agent) stillDue(d due) bool {
	s, done := a.state.open()
	defer done()
	g := s.guests[d.notice.VM]
	return g != nil && g.unsettled() && (d.notice.Kind != fabric.Arriving || g.arrival == migration.Ready)
}

// due is a lasting notice, which is sent again and again, and the function that
// handles the answer.
type due struct {
	notice fabric.Notice
	heard  func(context.Context, fabric.Answer)
}

// serve answers the other nodes, and delivers notices to them, until ctx ends.
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
	look := time.NewTicker(repeatEvery)
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

// start gives the channel that wakes the delivery to a node, and makes its queue if
// there is none; fresh reports that.
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

// kick wakes the delivery to all nodes.
func (c *peerQueues) kick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, wake := range c.wakes {
		signal(wake)
	}
}

// send queues a notice for nodes. It drops the notice for a node without a queue.
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

// next gives the first message for a node that has not expired.
func (c *peerQueues) next(node string) (fabric.Notice, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queues[node] = slices.DeleteFunc(c.queues[node], func(e message) bool { return time.Now().After(e.until) })
	if len(c.queues[node]) == 0 {
		return fabric.Notice{}, false
	}
	return c.queues[node][0].Notice, true
}

// delivered removes the first message.
func (c *peerQueues) delivered(node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queues[node]) > 0 {
		c.queues[node] = c.queues[node][1:]
	}
}

// deliver sends a node its messages and lasting notices, round by round, until ctx
// ends.
func (a *Agent) deliver(ctx context.Context, node string, wake <-chan struct{}) {
	var compare time.Time // when the node is asked again which registry it has
	for ctx.Err() == nil {
		wait, answers := a.round(ctx, node)
		if now := time.Now(); answers && !now.Before(compare) {
			compare = now.Add(compareEvery)
			if !a.compareRegistry(ctx, node) {
				compare = now.Add(registerEvery)
			}
		}
		news := wake
		if !answers {
			news = nil // wait out askRetry: each new message would call the silent node again
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

// round sends a node everything that is due. It gives how long to wait for the next
// round unless the queue is kicked, and whether the node answers.
func (a *Agent) round(ctx context.Context, node string) (wait time.Duration, answers bool) {
	for {
		n, some := a.peerQueues.next(node)
		if !some {
			break
		}
		if !a.isPast(n) {
			if _, err := a.askNode(ctx, node, n); err != nil && !errors.Is(err, errors.ErrUnsupported) {
				return askRetry, false
			}
		}
		a.peerQueues.delivered(node)
	}
	lasting := a.lasting(node)
	for _, d := range lasting {
		if !a.stillDue(d) {
			continue
		}
		answer, err := a.askNode(ctx, node, d.notice)
		if err != nil {
			return askRetry, false
		}
		d.heard(ctx, answer)
	}
	if len(a.lasting(node)) > 0 {
		return repeatEvery, true
	}
	return passEvery, true
}

// isPast reports whether a notice says that a guest arrived here which has gone on
// since. The node that it came from must not hear that any more: the guest may be
// there again. Until the task that brought the guest up has settled it, the agent has
// it with an older epoch than the notice.
func (a *Agent) isPast(n fabric.Notice) bool {
	s, done := a.state.open()
	defer done()
	g := s.guests[n.VM]
	return n.Kind == fabric.Arrived && (g == nil || !g.has || g.want.Epoch > n.Epoch || g.departure.state.Stops())
}

// askNode sends a notice to a node, and notes whether the node answers.
func (a *Agent) askNode(ctx context.Context, node string, n fabric.Notice) (fabric.Answer, error) {
	answer, err := a.nodes.Ask(ctx, node, n)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		a.log.Debug("not told", "node", node, "notice", string(n.Kind), "vm", n.VM, "err", err)
		a.unanswered(node)
		return answer, err
	}
	a.meet(fabric.Node{Name: node})
	return a.believable(node, n.VM, answer), err
}

// meet notes that the agent of a node answered, or called.
func (a *Agent) meet(node fabric.Node) {
	s, done := a.state.open()
	defer done()
	s.peers.met[node.Name] = true
	s.peers.heard(node)
}

// lasting lists the notices that a node gets again and again while they are true:
// Arriving, and Claimed until the node has released the guest or while it has
// preempted this node.
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
		case d.State == fabric.Live && d.Lost == node: // asks whether the node still has the guest
			all = append(all, due{a.notice(fabric.Claimed, d), func(ctx context.Context, answer fabric.Answer) { a.reclaimFrom(ctx, name, node, answer) }})
		}
	}
	return all
}

// unsettled reports whether there may be lasting notices about the guest.
func (g *guest) unsettled() bool {
	d := g.want
	return g.arrival.Awaits() || d.State == fabric.Live && (d.Lost != "" || len(d.Unreleased) > 0 || len(g.unasked) > 0 || len(g.competing) > 0 || !g.defended.IsZero() || g.onHearsay())
}

// onHearsay reports whether only a route shows that another guest wants an address:
// the agent of its node has not confirmed it since.
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

// noticed answers a notice of another node.
func (a *Agent) noticed(ctx context.Context, from fabric.Node, n fabric.Notice) fabric.Answer {
	if n.Kind == fabric.Comparing { // it says nothing of a guest, and each node asks
		return a.compares(from.Name, n)
	}
	a.meet(from)
	a.log.Debug("told", "node", from.Name, "notice", string(n.Kind), "vm", n.VM, "epoch", n.Epoch)
	n.Epoch = a.plausible(from.Name, n.VM, n.Epoch)
	another := a.isAnother(n)
	switch {
	case n.Kind == fabric.Listing:
		guests, more := a.page(ctx, n.VM)
		return fabric.Answer{Guests: guests, More: more}
	case n.Kind == fabric.Explaining:
		return a.explains(ctx, n.Prefixes[0].Addr())
	case n.Kind == fabric.Acquiring:
		return a.holder(n)
	case n.Kind == fabric.Describing:
		return a.describes(ctx, from.Name, n)
	case n.Kind == fabric.Forgotten:
		a.forgottenAt(ctx, from.Name, n)
	case n.Kind == fabric.Claimed:
		return a.claimed(ctx, from, n)
	case n.Kind == fabric.Released:
		if !another {
			a.released(ctx, n.VM, from.Name, n.Move)
		}
		a.letGo(from.Name, n)
	case another: // another guest of the same name is on its way
	case n.Kind == fabric.Arriving:
		return a.identified(n, a.leaves(ctx, from, n))
	case n.Kind == fabric.Arrived:
		return a.identified(n, a.left(ctx, from, n))
	case n.Kind == fabric.Cancelled:
		a.stays(ctx, from, n)
	}
	return fabric.Answer{}
}

// concerned lists the guests here that have one of the prefixes.
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

// signal wakes the receiver of a one-slot channel, now or when it next receives.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
