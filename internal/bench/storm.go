package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmfabric/vmfabric/hooks"
)

// storm has the times of many guests at once, over several rounds.
type storm struct {
	name       string
	atOnce     int
	up, down   sample        // until all replies
	come, gone sample        // until the core gateway has all routes, or none of them
	worst      time.Duration // reply to an attach
}

// measureStorm attaches and detaches many guests at once.
func measureStorm(ctx context.Context, b *bench) (s section, err error) {
	l, a, err := b.newNode(ctx, "storm", 2)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	storms := []*storm{{name: "64 at a time", atOnce: 64}, {name: "all at once", atOnce: b.size.storm}}
	for range b.size.storms {
		for _, st := range storms {
			b.say("  %s", st.name)
			if err := st.blow(ctx, b, l, a, guests(0, b.size.storm)); err != nil {
				return s, fmt.Errorf("%s: %w", st.name, err)
			}
		}
	}
	b.say("  one by one, by netlink")
	floor, err := newBare(l.top.Nodes["node2"], l.cluster.Gateway)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, floor.removeAll(), floor.close()) }()
	add, oneByOne, together, err := removals(ctx, floor, b.size.storm)
	if err != nil {
		return s, err
	}
	return stormSection(b.size, storms, add, oneByOne, together), nil
}

// blow attaches the guests and detaches them again.
func (st *storm) blow(ctx context.Context, b *bench, l *lab, a *agent, gs []guest) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	all := prefixesOf(gs)
	l.core.arm(all...)
	began := time.Now()
	took, err := a.askAll(ctx, hooks.Live, gs, st.atOnce)
	if err != nil {
		return err
	}
	st.up.add(time.Since(began))
	st.worst = max(st.worst, took.max())
	at, err := l.core.come(ctx, all...)
	if err != nil {
		return err
	}
	st.come.add(at.Sub(began))
	if err := a.ready(ctx, len(gs)); err != nil {
		return err
	}
	b.quiet(ctx)

	began = time.Now()
	if _, err = a.askAll(ctx, hooks.Remove, gs, st.atOnce); err != nil {
		return err
	}
	st.down.add(time.Since(began))
	if at, err = l.core.gone(ctx, all...); err != nil {
		return err
	}
	st.gone.add(at.Sub(began))
	b.quiet(ctx)
	return nil
}

// removals makes bare ports and removes them one by one, then makes them again and
// removes them all together.
func removals(ctx context.Context, floor *bare, n int) (add, oneByOne, together time.Duration, err error) {
	gs := guests(0, n)
	fill := func() (took time.Duration, err error) {
		for _, g := range gs {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			x, err := floor.add(g)
			if err != nil {
				return 0, err
			}
			took += x.took
		}
		return took, nil
	}
	if add, err = fill(); err != nil {
		return 0, 0, 0, err
	}
	began := time.Now()
	for _, g := range gs {
		if ctx.Err() != nil {
			return 0, 0, 0, ctx.Err()
		}
		if err := floor.remove(g); err != nil {
			return 0, 0, 0, err
		}
	}
	oneByOne = time.Since(began)
	if _, err := fill(); err != nil {
		return 0, 0, 0, err
	}
	began = time.Now()
	err = floor.removeAll()
	return add, oneByOne, time.Since(began), err
}

func stormSection(size size, storms []*storm, add, oneByOne, together time.Duration) section {
	n := count(size.storm)
	s := section{
		title: fmt.Sprintf("%s guests at once", n),
		method: fmt.Sprintf(`
%s requests, each over a connection of its own, so many of them in flight; then the same to detach. Every time is from
before the first request: until all replies are there, and until the core gateway has all %s routes, or none of them.
Medians of %d.`, n, count(2*size.storm), size.storms),
	}
	t := table{head: []string{"in flight", "attach: replies ms", "attach: core ms", "a guest ms", "slowest reply ms", "detach: replies ms", "detach: core ms"}}
	for _, st := range storms {
		t.row(st.name, ms(st.up.p50()), ms(st.come.p50()), ms(st.come.p50()/time.Duration(size.storm)), ms(st.worst), ms(st.down.p50()), ms(st.gone.p50()))
	}
	bare := table{head: []string{"bare netlink, one node, no BGP", "ms", "a port ms"}}
	for _, r := range []struct {
		what string
		took time.Duration
	}{
		{"make " + n + " ports, one by one", add},
		{"remove " + n + " links, one by one", oneByOne},
		{"remove " + n + " links by their group, in one call", together},
	} {
		bare.row(r.what, ms(r.took), ms(r.took/time.Duration(size.storm)))
	}
	s.tables = []table{t, bare}
	return s
}
