package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// restart is one way to end and restart an agent, and its times.
type restart struct {
	name    string
	end     func(*agent) error
	ended   sample // from the signal until the process was gone
	adopted sample // from the next start until the agent answered, with all guests live
	healthy sample // from the next start until the agent was healthy, with all BGP sessions
	removed int    // routes to guests that the core gateway's kernel removed
	away    time.Duration
}

// measureRestart restarts the agent under live guests, while a client probes
// one of them.
func measureRestart(ctx context.Context, b *bench) (s section, err error) {
	l, a, err := b.newNode(ctx, "restart", 1)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	gs := guests(1, b.size.live)
	if _, err := a.askAll(ctx, hooks.Live, gs, 64); err != nil {
		return s, err
	}
	watched, err := a.plug(ctx, guestNumber(0))
	if err != nil {
		return s, err
	}
	live := len(gs) + 1
	all := append(prefixesOf(gs), watched.prefixes()...)
	if err := errors.Join(l.core.has(ctx, all...), a.ready(ctx, live)); err != nil {
		return s, err
	}
	b.quiet(ctx)

	restarts := []*restart{
		{name: "SIGTERM, started again", end: func(a *agent) error { return a.Stop() }},
		{name: "SIGKILL, started again", end: func(a *agent) error { return a.Kill() }},
	}
	probes, err := probe(l.top.Client, watched.a4, watched.a6)
	if err != nil {
		return s, err
	}
	err = b.restartAll(ctx, l, a, restarts, live)
	results := probes.stop()
	if err != nil {
		return s, err
	}
	if err := l.core.has(ctx, all...); err != nil {
		return s, err
	}
	_, err = a.askAll(ctx, hooks.Remove, gs, 64)
	return restartSection(b.size, restarts, live, results), err
}

// plug attaches a guest that is a network namespace behind the node.
func (a *agent) plug(ctx context.Context, g guest) (guest, error) {
	vm := g.vm(fabric.Veth)
	if _, err := a.ask(ctx, hooks.Wire, vm); err != nil {
		return g, err
	}
	if _, err := a.lab.AddGuest(a.node, vm, a.lab.cluster.Gateway); err != nil {
		return g, err
	}
	if _, err := a.ask(ctx, hooks.Live, vm); err != nil {
		return g, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, to := range []netip.Addr{g.a4, g.a6} {
		if _, err := a.lab.top.Client.Ping(ctx, to); err != nil {
			return g, err
		}
	}
	return g, nil
}

// restartAll makes all restarts.
func (b *bench) restartAll(ctx context.Context, l *lab, a *agent, restarts []*restart, live int) error {
	for i := range b.size.restarts {
		for k, r := range restarts {
			b.say("  %s", r.name)
			watch := b.size.watch
			if i == b.size.restarts-1 && k == len(restarts)-1 {
				watch = b.size.watchLast
			}
			if err := r.run(ctx, l, a, live, watch); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
		}
	}
	return nil
}

func (r *restart) run(ctx context.Context, l *lab, a *agent, live int, watch time.Duration) error {
	l.core.mark()
	began := time.Now()
	if err := r.end(a); err != nil {
		return err
	}
	r.ended.add(time.Since(began))
	began = time.Now()
	if err := a.start(); err != nil {
		return err
	}
	if err := a.adopted(ctx, live); err != nil {
		return err
	}
	r.adopted.add(time.Since(began))
	if err := a.ready(ctx, live); err != nil {
		return err
	}
	r.healthy.add(time.Since(began))
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(watch):
	}
	n, away := l.core.removals()
	r.removed += n
	r.away = max(r.away, away)
	return a.ready(ctx, live)
}

// probers sends requests to several addresses at once.
type probers struct {
	to  []netip.Addr
	all []*core.Prober
}

// probed is the result of the requests to one address.
type probed struct {
	to netip.Addr
	core.ProbeResult
}

// probe sends a request to each address every millisecond.
func probe(from *core.Host, to ...netip.Addr) (*probers, error) {
	return probeEvery(from, time.Millisecond, to...)
}

func probeEvery(from *core.Host, interval time.Duration, to ...netip.Addr) (*probers, error) {
	ps := &probers{to: to}
	for _, a := range to {
		p, err := from.Probe(a, interval)
		if err != nil {
			ps.stop()
			return nil, err
		}
		ps.all = append(ps.all, p)
	}
	return ps, nil
}

func (ps *probers) stop() []probed {
	var results []probed
	for i, p := range ps.all {
		results = append(results, probed{ps.to[i], p.Stop()})
	}
	return results
}

func restartSection(size size, restarts []*restart, live int, results []probed) section {
	s := section{
		title: fmt.Sprintf("A restart of the agent under %s live guests", count(live)),
		method: fmt.Sprintf(`
%d restarts of each kind, by turns, %s from one that is ready to the next. The agent has adopted what was there when it
answers, with every guest live; it is ready when its status is healthy besides, with both BGP sessions established. (GoBGP
4.8 waits 1.5 to 2 s before it first calls a reflector; what was announced stays meanwhile, what is new waits for that.)
Meanwhile a client behind the core gateway sends 1,000 echo requests a second to each address of a guest on the node, and
every route to a guest that the core gateway's kernel removes is counted. That goes on until %s after the last restart; reflectors drop the routes of a node that has not
come back after %s (graceful restart time, RFC 4724).`, size.restarts, size.watch, size.watchLast, graceful),
	}
	t := table{head: []string{"", "end p50 ms", "adopted p50 ms", "ready p50 ms", "ready longest ms", "routes removed", "longest away ms"}}
	removed, lost := 0, 0
	for _, r := range restarts {
		t.row(r.name, ms(r.ended.p50()), ms(r.adopted.p50()), ms(r.healthy.p50()), ms(r.healthy.max()), count(r.removed), ms(r.away))
		removed += r.removed
	}
	p := table{head: []string{"probed", "requests", "lost", "longest gap ms"}}
	for _, g := range results {
		p.row(map[bool]string{true: "IPv4", false: "IPv6"}[g.to.Is4()], count(g.Sent), count(g.Lost), ms(g.LongestGap))
		lost += g.Lost
	}
	s.tables = []table{t, p}
	s.targets = []target{
		none("packets lost over all restarts", lost),
		none("routes to guests removed at the core gateway", removed),
	}
	return s
}
