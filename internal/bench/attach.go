package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// measureAttach compares a request at the agent's socket with the floor: bare
// netlink calls, and a BIRD that notices them.
func measureAttach(ctx context.Context, b *bench) (s section, err error) {
	l, a, err := b.newNode(ctx, "attach", 3)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	methods := []*method{a.method("vmfabric: request to the agent")}
	for _, peer := range []struct {
		node, source, name string
		direct             bool
	}{
		{"node2", birdLearns, "floor: netlink calls, BIRD learns the kernel's routes", false},
		{"node3", birdReads, "floor: netlink calls, BIRD `direct` reads peer addresses", true},
	} {
		if _, err := l.startNodeBird(ctx, l.top.Nodes[peer.node], peer.source); err != nil {
			return s, err
		}
		floor, err := newBare(l.top.Nodes[peer.node], l.cluster.Gateway)
		if err != nil {
			return s, err
		}
		defer floor.close()
		floor.peer = peer.direct
		methods = append(methods, floor.method(peer.name))
	}
	if err := l.race(ctx, methods, 0, b.size.guests); err != nil {
		return s, err
	}
	return attachSection(methods), nil
}

// method is the floor as a way to bring guests up and down.
func (b *bare) method(name string) *method {
	return &method{
		name: name,
		up:   func(_ context.Context, g guest) (span, error) { return b.add(g) },
		down: func(_ context.Context, g guest) (span, error) {
			x, err := b.unroute(g)
			return x, errors.Join(err, b.remove(g))
		},
	}
}

func attachSection(methods []*method) section {
	ours, floors := methods[0], methods[1:]
	s := section{
		title: "One guest: from the request to the core gateway",
		method: fmt.Sprintf(`
A tap with an IPv4 and an IPv6 address is attached and detached %s times by turns on each of three nodes. The clock starts
just before the line is written to the agent's socket, or before the first call of the floor, and stops when a rtnetlink
socket in the core gateway's namespace receives the route, the later of the two families. The floor is the fewest calls
that make a reachable port (tap; then MAC, up, addresses and routes in one netlink batch) and a BIRD on the node that
notices them, with nothing kept, checked or marked; on the way down it only takes the routes away. Factors are against the
faster of the two floors.`, count(len(ours.ups))),
	}
	up := table{head: []string{"attach", "p50 ms", "p99 ms", "p50 factor", "p99 factor"}}
	down := table{head: []string{"detach", "p50 ms", "p99 ms", "p50 factor", "p99 factor"}}
	best := func(samples func(*method) sample, q float64) time.Duration {
		least := samples(floors[0]).quantile(q)
		for _, m := range floors[1:] {
			least = min(least, samples(m).quantile(q))
		}
		return least
	}
	ups, downs := func(m *method) sample { return m.ups }, func(m *method) sample { return m.downs }
	for _, m := range methods {
		up.row(m.name, ms(m.ups.p50()), ms(m.ups.p99()), times(ratio(m.ups.p50(), best(ups, .5))), times(ratio(m.ups.p99(), best(ups, .99))))
		down.row(m.name, ms(m.downs.p50()), ms(m.downs.p99()), times(ratio(m.downs.p50(), best(downs, .5))), times(ratio(m.downs.p99(), best(downs, .99))))
	}
	parts := table{head: []string{"parts", "p50 ms", "p99 ms"}}
	parts.row("the agent's reply to an attach", ms(ours.upCalls.p50()), ms(ours.upCalls.p99()))
	parts.row("the agent's reply to a detach, port removed", ms(ours.downCalls.p50()), ms(ours.downCalls.p99()))
	parts.row("the floor's calls for a port", ms(floors[0].upCalls.p50()), ms(floors[0].upCalls.p99()))
	s.tables = []table{up, down, parts}
	s.notes = []string{`Reflectors and core gateway acknowledge at once here (route attribute ` + "`quickack`" + `). BIRD sends an update for each family
and leaves Nagle's algorithm on, so that with delayed acknowledgements the second family of a guest that comes within some
200 ms of another waits 40 ms more, at the floor as behind the reflectors.`}
	s.targets = []target{
		within("attach to core gateway against the floor, p50", ratio(ours.ups.p50(), best(ups, .5)), 2),
		within("attach to core gateway against the floor, p99", ratio(ours.ups.p99(), best(ups, .99)), 2),
	}
	return s
}
