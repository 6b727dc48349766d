package nodes

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// Questions are rare, and each is about a guest that moves: a node that does not
// answer, or has another key, must be known before. So each node is greeted when
// the agent starts, every greetEvery, and when its last connection to this node
// ends: the connections of an agent that is killed end with it.
const (
	greetEvery  = 40 * time.Second // less than keepFor, so that a connection always stays open
	greetAgain  = 2 * time.Second  // after no answer or a disagreement; twice as long each time
	greetMost   = 15 * time.Second
	greetAtOnce = 8
	// silentFor is how long a node may not answer before that is reported: it may
	// be busy. goneFor is that time if no agent listens there: systemd restarts an
	// agent after a second, and it listens a moment later.
	silentFor = 10 * time.Second
	goneFor   = 5 * time.Second
	// forgetAfter is how long a node that the cluster file lacks may be silent
	// before this one forgets it.
	forgetAfter = time.Hour
)

// watch greets the nodes that are due until ctx ends.
func (n *Nodes) watch(ctx context.Context) {
	var under sync.WaitGroup
	defer under.Wait()
	slots := make(chan struct{}, greetAtOnce)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		now := time.Now()
		n.tally.flush(now)
		n.forgetCallers(now)
		for _, name := range n.Names() {
			if !n.takeUp(name, now) {
				continue
			}
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			under.Go(func() {
				defer func() { <-slots }()
				n.greet(ctx, name)
				n.verify(ctx, name)
			})
		}
		select {
		case <-tick.C:
		case <-n.look:
		case <-ctx.Done():
			return
		}
	}
}

// takeUp reports whether a node is due to be greeted, and sets when it is due next.
func (n *Nodes) takeUp(name string, now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.peerOf(name)
	if now.Before(p.due) {
		return false
	}
	p.due = now.Add(greetEvery)
	return true
}

// greet sends a node a question without a notice, to see whether it answers.
func (n *Nodes) greet(ctx context.Context, name string) {
	to, err := n.node(name)
	if err == nil {
		_, err = n.say(ctx, to, nil)
	}
	if err != nil && ctx.Err() == nil {
		n.log.Debug("greeted in vain", "node", name, "err", err)
	}
}

// verify greets a node at an address that it says it has and that nothing confirms
// yet.
func (n *Nodes) verify(ctx context.Context, name string) {
	n.mu.Lock()
	c := n.callers[name]
	n.mu.Unlock()
	if !c.says.IsValid() || !n.self.Source(c.says).IsValid() {
		return
	}
	err := n.greetAt(ctx, c.node, c.says)
	n.mu.Lock()
	defer n.mu.Unlock()
	now, there := n.callers[name]
	switch {
	case !there || now.says != c.says:
	case err == nil:
		now.node, now.says = with(now.node, c.says), netip.Addr{}
		n.callers[name] = now
		n.log.Info("node answers at an address that the cluster file does not give it", "node", name, "address", c.says)
	default:
		n.log.Debug("node does not answer at an address that it says it has", "node", name, "address", c.says, "err", err)
	}
}

// greetAt greets a node at one address, on a connection for this alone.
func (n *Nodes) greetAt(ctx context.Context, to fabric.Node, at netip.Addr) error {
	body, err := n.request(to.Name, nil)
	if err != nil {
		return err
	}
	c, err := n.call(ctx, n.self.Source(at), at)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := n.agrees(c.hello, to); err != nil {
		return err
	}
	if c.hello.First == 0 { // an older agent, which has no greetings
		return nil
	}
	_, err = c.ask(ctx, n, body)
	return err
}

// left makes a node due to be greeted at once when its last connection to this node
// has ended.
func (n *Nodes) left(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.peerOf(name); p.silent.IsZero() { // otherwise its retries greet it
		p.due = time.Time{}
		n.look.Send()
	}
}

// doubt makes a node due to be greeted soon: something about it is odd. The pauses
// of a node that disagrees grow all the same, even if each side doubts the other.
func (n *Nodes) doubt(name string) {
	if _, err := n.node(name); err != nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.peerOf(name)
	if soon := time.Now().Add(p.pauses.Peek()); p.due.After(soon) {
		p.due = soon
	}
}

// heard notes that a node called, and was understood: if it did not answer, or
// refused to, it may now.
func (n *Nodes) heard(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.peerOf(name)
	p.refusal, p.calledAt = nil, time.Now()
	if !p.silent.IsZero() || p.refuses {
		p.due = time.Time{}
		p.pauses.Reset()
		n.look.Send()
	}
}

// answered notes that a node answers.
func (n *Nodes) answered(name string) {
	n.mu.Lock()
	p := n.peerOf(name)
	since := p.silent
	p.refusal, p.calledAt = nil, time.Now()
	p.met, p.silent, p.why, p.refuses, p.due = true, time.Time{}, "", false, time.Now().Add(greetEvery)
	p.pauses.Reset()
	n.mu.Unlock()
	if !since.IsZero() && time.Since(since) >= goneFor {
		n.log.Info("node answers again", "node", name)
	}
}

// refuses notes that a node answers but disagrees, for example because it has
// another key. Somebody may correct that at any time.
func (n *Nodes) refuses(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.peerOf(name)
	p.met, p.silent, p.why, p.refuses = true, time.Time{}, "", true
	p.due = time.Now().Add(p.pauses.Next())
}

// unanswered notes that a node does not answer, and why. A node on which no agent
// ever answered, and none listens, counts as not set up yet, and nothing is
// reported about it.
func (n *Nodes) unanswered(name string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, now := n.peerOf(name), time.Now()
	if p.silent.IsZero() {
		p.silent = now
		p.pauses.Reset()
	}
	p.grace = silentFor
	if refused(err) {
		p.grace = goneFor
	}
	if again := now.Add(p.pauses.Next()); p.due.After(again) || p.due.Before(now) {
		p.due = again
	}
	p.why = ""
	if p.met || !refused(err) {
		p.why = fmt.Sprintf("%v (no answer since %s)", err, p.silent.Format(time.TimeOnly))
	}
}

// silences lists the nodes that do not answer. The caller holds n.mu.
func (n *Nodes) silences(now time.Time) (lines []string) {
	for name, p := range n.peers {
		_, called := n.callers[name]
		if _, err := n.cluster.Node(name); err != nil && !called {
			continue // it has another name now
		}
		if p.why != "" && now.Sub(p.silent) >= p.grace {
			lines = append(lines, p.why)
		}
	}
	return lines
}

// forgetCallers drops the nodes that the cluster file lacks and that have been
// silent for forgetAfter.
func (n *Nodes) forgetCallers(now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, c := range n.callers {
		p := n.peers[name]
		if _, err := n.cluster.Node(name); err == nil || p == nil || p.silent.IsZero() {
			continue
		}
		if now.Sub(p.silent) > forgetAfter && now.Sub(c.at) > forgetAfter {
			delete(n.callers, name)
			delete(n.peers, name)
			n.log.Info("node that is not in the cluster file forgotten: it is silent for long", "node", name)
		}
	}
}
