package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
)

// tier has the attaches at one number of ports on the node.
type tier struct {
	ports          int
	replies, calls sample // of the agent; of bare calls on another node
	memory         usage  // of the agent
}

// own returns the agent's own share of an attach: its reply without the bare calls.
func (t tier) own() time.Duration { return t.replies.p50() - t.calls.p50() }

// atOnce is how many guests are measured before they are removed together. It is
// small, so that the number of ports on the node hardly changes.
const atOnce = 10

// aside is the pause after each attach. All namespaces share RTNL, the kernel's
// lock. On a full node, the aftermath of an attach holds it for some milliseconds:
// the kernel's work on the link's carrier, and the agent's second look.
const aside = 60 * time.Millisecond

// measureScale attaches guests to a node with few, many and very many ports,
// and looks at the agent's memory there.
func measureScale(ctx context.Context, b *bench) (s section, err error) {
	l, a, err := b.newNode(ctx, "scale", 2)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	floor, err := newBare(l.top.Nodes["node2"], l.cluster.Gateway)
	if err != nil {
		return s, err
	}
	// The kernel takes long to remove a namespace full of ports, so remove these
	// first.
	defer func() { err = errors.Join(err, floor.removeAll(), floor.close()) }()

	var tiers []tier
	empty := tier{}
	if empty.memory, err = b.memory(ctx, a); err != nil {
		return s, err
	}
	there := 0
	for _, ports := range b.size.ports {
		b.say("  %s ports", count(ports))
		if err := populate(ctx, a, floor, there, ports); err != nil {
			return s, err
		}
		there = ports
		t, err := b.measureTier(ctx, l, a, floor, ports)
		if err != nil {
			return s, err
		}
		tiers = append(tiers, t)
	}
	if _, err := a.askAll(ctx, hooks.Remove, guests(0, there), 64); err != nil {
		return s, err
	}
	return scaleSection(empty, tiers), nil
}

// populate adds ports to both nodes, from one number to a higher one.
func populate(ctx context.Context, a *agent, floor *bare, from, to int) error {
	gs := guests(from, to-from)
	if _, err := a.askAll(ctx, hooks.Live, gs, 64); err != nil {
		return err
	}
	for _, g := range gs {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if _, err := floor.add(g); err != nil {
			return err
		}
	}
	return a.ready(ctx, to)
}

func (b *bench) measureTier(ctx context.Context, l *lab, a *agent, floor *bare, ports int) (tier, error) {
	t := tier{ports: ports}
	var err error
	if t.memory, err = b.memory(ctx, a); err != nil {
		return t, err
	}
	for len(t.replies) < b.size.attaches {
		gs := guests(ports, atOnce)
		for _, g := range gs {
			if err := t.attach(ctx, a, floor, g); err != nil {
				return t, err
			}
		}
		if _, err := a.askAll(ctx, hooks.Remove, gs, atOnce); err != nil {
			return t, err
		}
		for _, g := range gs {
			if err := floor.remove(g); err != nil {
				return t, err
			}
		}
		if _, err := l.core.gone(ctx, prefixesOf(gs)...); err != nil {
			return t, err
		}
		time.Sleep(aside)
	}
	return t, nil
}

// attach measures one attach by the agent, and one by bare calls.
func (t *tier) attach(ctx context.Context, a *agent, floor *bare, g guest) error {
	x, err := a.ask(ctx, hooks.Live, g.vm(fabric.Tap))
	if err != nil {
		return err
	}
	t.replies.add(x.took)
	time.Sleep(aside)
	if x, err = floor.add(g); err != nil {
		return err
	}
	t.calls.add(x.took)
	time.Sleep(aside)
	return ctx.Err()
}

// memory returns the agent's memory after a short rest.
func (b *bench) memory(ctx context.Context, a *agent) (usage, error) {
	select {
	case <-ctx.Done():
		return usage{}, ctx.Err()
	case <-time.After(b.size.breathing):
	}
	return usageOf(a.Pid())
}

func scaleSection(empty tier, tiers []tier) section {
	s := section{
		title: "An attach on a full node",
		method: fmt.Sprintf(`
%s attaches at each number of ports on the node. The agent's own share is the difference of two medians: its reply at the
socket, less the bare netlink calls for such a port on another node with as many ports. The kernel's part grows with the
ports; the agent's must not.`, count(len(tiers[0].replies))),
	}
	t := table{head: []string{"ports on the node", "reply p50 ms", "reply p99 ms", "bare calls p50 ms", "bare calls p99 ms", "own share ms", "own share factor"}}
	m := table{head: []string{"guests", "RSS MiB", "PSS MiB", "KiB a guest"}}
	m.row("0", mib(empty.memory.rss), mib(empty.memory.pss), "–")
	for _, at := range tiers {
		t.row(count(at.ports), ms(at.replies.p50()), ms(at.replies.p99()), ms(at.calls.p50()), ms(at.calls.p99()),
			ms(at.own()), times(ratio(at.own(), tiers[0].own())))
		each := float64(at.memory.rss-empty.memory.rss) / float64(at.ports) / 1024
		m.row(count(at.ports), mib(at.memory.rss), mib(at.memory.pss), fmt.Sprintf("%.1f", each))
	}
	s.tables = []table{t, m}
	s.notes = []string{"The second table is the agent's memory as the kernel counts it. What the garbage collector has not given back yet is in it."}
	last := tiers[len(tiers)-1]
	// The share is a small difference of two large medians: half as much again is
	// noise.
	s.targets = []target{within(fmt.Sprintf("the agent's own share at %s ports against that at %s", count(last.ports), count(tiers[0].ports)),
		ratio(last.own(), tiers[0].own()), 1.5)}
	return s
}
