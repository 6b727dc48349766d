package nodes

import (
	"context"
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
			if !n.peers.takeUp(name, now) {
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
		case <-n.peers.look:
		case <-ctx.Done():
			return
		}
	}
}

// greet sends a node a question without a notice, to see whether it answers.
func (n *Nodes) greet(ctx context.Context, name string) {
	to, err := n.directory.node(name)
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
	to, says := n.directory.unconfirmed(name)
	if !says.IsValid() || !n.self.Source(says).IsValid() {
		return
	}
	if err := n.greetAt(ctx, to, says); err != nil {
		n.log.Debug("node does not answer at an address that it says it has", "node", name, "address", says, "err", err)
		return
	}
	n.directory.confirm(name, says)
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

// doubt makes a node due to be greeted soon, if there is a node of that name.
func (n *Nodes) doubt(name string) {
	if _, err := n.directory.node(name); err == nil {
		n.peers.doubt(name)
	}
}

// forgetCallers drops the nodes that the cluster file lacks and that have been
// silent for forgetAfter.
func (n *Nodes) forgetCallers(now time.Time) {
	for _, name := range n.directory.quiet(now) {
		if n.peers.forget(name, now) {
			n.directory.forget(name, now)
		}
	}
}
