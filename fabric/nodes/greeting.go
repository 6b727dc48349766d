package nodes

import (
	"context"
	"fmt"
	"time"
)

// Greeting is what the agent of another node showed of itself.
type Greeting struct {
	// Ahead is how much its clock is ahead of this node's, give or take Within; both are
	// zero if it does not say, as an older agent.
	Ahead, Within time.Duration
}

// Greet asks nothing of a node's agent, on a connection of its own, to see whether it
// answers and agrees. It works without [Nodes.Serve], and [Nodes.Diagnose] does not
// report what it finds. The error of a node on which no agent listens is
// ECONNREFUSED.
func (n *Nodes) Greet(ctx context.Context, node string) (Greeting, error) {
	to, err := n.directory.node(node)
	if err != nil {
		return Greeting{}, err
	}
	body, err := n.request(to.Name, nil)
	if err != nil {
		return Greeting{}, fmt.Errorf("node %s: %w", to.Name, err)
	}
	began := time.Now()
	c, err := n.dial(ctx, to)
	if err == nil {
		defer c.Close()
		if !c.hello.older() {
			_, err = c.ask(ctx, n, body)
		}
	}
	if err != nil {
		return Greeting{}, fmt.Errorf("node %s%w", to.Name, n.explain(err, to, time.Since(began)))
	}
	return c.greeting, nil
}

// greetingOf compares a node's clock with this one's: the node wrote its hello between
// two moments here.
func greetingOf(h hello, from, to time.Time) Greeting {
	if h.Now.IsZero() {
		return Greeting{}
	}
	half := to.Sub(from) / 2
	return Greeting{Ahead: h.Now.Sub(from.Add(half)).Round(time.Millisecond), Within: half}
}
