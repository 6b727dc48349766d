package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// starts has the starts of guests with one kind of registry.
type starts struct {
	name                string
	given, first, again sample // addresses by hand; of a pool, the first time; the same guest once more
	none                sample // addresses by hand, on a node without a registry
	puts                sample // bare ones into the same etcd
	rest                usage  // of the agent's memory, without a guest
}

// measureAllocate compares the start of a guest that gets its addresses from the pools
// with that of a guest which names them, by the kind of registry.
func measureAllocate(ctx context.Context, b *bench) (section, error) {
	var all []starts
	for _, members := range b.size.etcds {
		name := map[int]string{0: "a file", 1: "etcd, one member", 3: "etcd, three members"}[members]
		b.say("  %s", name)
		x, err := b.starts(ctx, name, members)
		if err != nil {
			return section{}, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, x)
	}
	return allocateSection(all), nil
}

func (b *bench) starts(ctx context.Context, name string, members int) (x starts, err error) {
	x.name = name
	l, err := b.changedLab(ctx, "allocate", 2, func(c *fabric.Cluster) {
		if members == 0 {
			for i := range c.Pools {
				c.Pools[i].Nodes = []string{"node1"}
			}
			return
		}
		addrs := endpointsOf(c.Reflectors[0].Address, c.Reflectors[1].Address, c.Core[0].Address)
		c.Registry.Etcd = &fabric.EtcdConfig{Endpoints: addrs[:members], Prefix: fabric.DefaultEtcdPrefix}
	})
	if err != nil {
		return x, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	put := func(context.Context) error { return nil }
	if members > 0 {
		hosts := []*core.Host{l.top.Reflectors["rr1"], l.top.Reflectors["rr2"], l.top.Core}[:members]
		e, err := startEtcd(ctx, hosts...)
		if err != nil {
			return x, err
		}
		c, err := e.client(l.top.Nodes["node1"])
		if err != nil {
			return x, err
		}
		defer c.Close()
		put = func(ctx context.Context) error {
			began := time.Now()
			_, err := c.Put(ctx, "bench", strings.Repeat("x", 300))
			x.puts.add(time.Since(began))
			return err
		}
	}
	a, err := b.startAgent(ctx, l, "node1")
	if err != nil {
		return x, err
	}
	without := l.cluster
	without.Registry = fabric.RegistryConfig{}
	without.Pools = []fabric.Pool{{Name: "public4", Prefix: pool4}, {Name: "public6", Prefix: pool6}}
	file := filepath.Join(l.Dir(), "without.yaml")
	if err := os.WriteFile(file, []byte(core.ClusterFile(without)), 0o600); err != nil {
		return x, err
	}
	bare, err := b.begin(ctx, l, agent{node: l.top.Nodes["node2"], baseline: true, file: file})
	if err != nil {
		return x, err
	}
	rest, err := b.memory(ctx, a)
	if err != nil {
		return x, err
	}
	for n := range b.size.guests {
		if err := x.round(ctx, a, bare, n, put); err != nil {
			return x, err
		}
		if n == 0 { // connections are made then
			x = starts{name: name, rest: rest}
		}
	}
	return x, nil
}

// round measures one of each.
func (x *starts) round(ctx context.Context, a, bare *agent, n int, put func(context.Context) error) error {
	asks := fabric.VM{
		Name: fmt.Sprintf("p%06d", n), UUID: fmt.Sprintf("aaaaaaaa-0000-4000-8000-%012d", n), Origin: "libvirt",
		NICs: []fabric.NIC{{Kind: fabric.Tap, Pools: []string{"public4", "public6"}}},
	}
	named := guestNumber(2 * n).vm(fabric.Tap)
	named.UUID, named.Origin = fmt.Sprintf("bbbbbbbb-0000-4000-8000-%012d", n), "libvirt"
	other := guestNumber(2*n + 1).vm(fabric.Tap)
	for _, start := range []struct {
		into *sample
		on   *agent
		vm   fabric.VM
	}{{&x.given, a, named}, {&x.first, a, asks}, {&x.again, a, asks}, {&x.none, bare, other}} {
		took, err := start.on.ask(ctx, hooks.Wire, start.vm)
		if err != nil {
			return err
		}
		start.into.add(took.took)
		if _, err := start.on.ask(ctx, hooks.Remove, start.vm); err != nil {
			return err
		}
		if err := put(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(aside / 3):
		}
	}
	return nil
}

func allocateSection(all []starts) section {
	s := section{
		title: "Addresses from the pools",
		method: fmt.Sprintf(`
%s guests of each kind are started by turns: one that names its addresses, one that gets an IPv4 and an IPv6 address from
the pools for the first time, the same one again, and one that names its addresses on another node whose agent has no
registry at all. The time is that of the reply to the request that makes the port, at the agent's socket. With etcd, its
members run on the reflectors and the core gateway, and a value of 300 bytes is put by a bare client on the node after each start. What a
registry adds is the difference to the node without one. All start with nothing of them on the node.`, count(len(all[0].given))),
	}
	t := table{head: []string{"registry", "start", "p50 ms", "p99 ms", "added p50 ms", "added p99 ms", "added p50 in puts"}}
	puts := table{head: []string{"a bare put", "p50 ms", "p99 ms"}}
	rest := table{head: []string{"the agent without a guest", "RSS MiB", "PSS MiB"}}
	for _, x := range all {
		row := func(what string, is sample) {
			more := is.p50() - x.none.p50()
			t.row(x.name, what, ms(is.p50()), ms(is.p99()), ms(more), ms(is.p99()-x.none.p99()), times(ratio(more, x.puts.p50())))
		}
		row("names its addresses", x.given)
		row("the first time from the pools", x.first)
		row("again from the pools", x.again)
		t.row(x.name, "no registry, names its addresses", ms(x.none.p50()), ms(x.none.p99()), "–", "–", "–")
		rest.row(x.name, mib(x.rest.rss), mib(x.rest.pss))
		if len(x.puts) > 0 {
			puts.row(x.name, ms(x.puts.p50()), ms(x.puts.p99()))
			s.targets = append(s.targets, within(fmt.Sprintf("what an address of the pools adds to a start, in bare puts, p50 (%s)", x.name), ratio(x.first.p50()-x.none.p50(), x.puts.p50()), 2))
		}
	}
	s.tables = []table{t, puts, rest}
	return s
}
