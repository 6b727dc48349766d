package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmfabric/vmfabric/testenv/lab/routers"
)

// bench is one run.
type bench struct {
	root  string // of the module
	size  size
	quick bool
	bin   programs
	log   io.Writer

	mu sync.Mutex // of log
}

// size has the numbers of a run.
type size struct {
	guests    int           // attaches and detaches; hooks as often
	ports     []int         // on the node during the attaches
	attaches  int           // at each of these
	file      []int         // routes in the file of a BIRD without an agent
	peers     int           // hooks at each of these
	frr       int           // hooks of an FRR
	instances int           // starts and ends of an LXD instance, of each kind
	combined  int           // guests of each speaker behind each kind of reflector
	bulk      []int         // routes at once into each kind of reflector
	storm     int           // guests at once
	storms    int           // how often
	live      int           // guests over a restart
	restarts  int           // of each kind
	moves     int           // live migrations with each kind of core gateway; baselines half as many
	fastMoves int           // of each family at the higher rate
	moveRate  int           // requests a second to each address during a move
	fastRate  int           // requests a second in the fast series
	lineEvery time.Duration // of the TCP sessions during a move
	stalls    int           // moves of a guest that may stall, and are repeated
	stills    int           // measurements without a move
	still     time.Duration // how long each of these is
	instMoves int           // of an LXD instance
	bursts    int           // of packets through a port, with each filter
	ported    []int         // guests of the nodes through which they go
	part      string        // of the names of these nodes; those without it are left out
	burst     time.Duration // the processor time of each
	watch     time.Duration // how long a restart is watched
	watchLast time.Duration // likewise, the last one
	breathing time.Duration // before a look at the agent's memory
	etcds     []int         // members of the registries with which starts are measured
	crowds    []crowdSize
}

var (
	fullSize = size{
		guests: 200, ports: []int{10, 1000, 5000}, attaches: 200,
		file: []int{100, 1000, 10000}, peers: 60, frr: 40, instances: 20, combined: 100, bulk: []int{1000, 10_000, 100_000},
		storm: 1000, storms: 3, live: 1000, restarts: 3, moves: 40, fastMoves: 6, moveRate: 1000, fastRate: 4000, lineEvery: 10 * time.Millisecond, stills: 5, still: 4 * time.Second, instMoves: 20, bursts: 9, burst: 25 * time.Millisecond, ported: []int{2, 100, 1000}, watch: 3 * time.Second, watchLast: graceful + 2*time.Second, breathing: 3 * time.Second,
		etcds: []int{0, 1, 3}, crowds: []crowdSize{{addresses: 100_000, agents: []int{10, 100}, copies: 10, changes: 200}, {addresses: 10_000, agents: []int{10, 1000}, copies: 10, changes: 200}},
	}
	// An emulated guest without a processor of its own answers few packets. A smoke
	// run sends few, and repeats a move that such a guest does not bring to its end.
	quickSize = size{
		guests: 10, ports: []int{10, 50}, attaches: 10,
		file: []int{100}, peers: 3, frr: 2, instances: 1, combined: 2, bulk: []int{100},
		storm: 30, storms: 1, live: 20, restarts: 1, moves: 1, fastMoves: 1, moveRate: 50, fastRate: 100, lineEvery: 100 * time.Millisecond, stalls: 2, stills: 1, still: time.Second, instMoves: 1, bursts: 1, burst: 2 * time.Millisecond, ported: []int{2, 6, 20}, watch: 2 * time.Second, watchLast: 2 * time.Second, breathing: 100 * time.Millisecond,
		etcds: []int{1}, crowds: []crowdSize{{addresses: 100, agents: []int{3}, copies: 1, changes: 10}},
	}
)

// longest bounds a run; a full one takes about forty minutes.
const longest = time.Hour

var errTooLong = errors.New("it took longer than an hour; run it on a quiet machine")

// measurement is a part of a run, which has a name for --only.
type measurement struct {
	name string
	run  func(ctx context.Context, b *bench) (section, error)
}

func all() []measurement {
	return []measurement{
		{"attach", measureAttach},
		{"hook", measureHook},
		{"scale", measureScale},
		{"packets", measurePackets},
		{"peers", measurePeers},
		{"storm", measureStorm},
		{"boots", measureBoots},
		{"restart", measureRestart},
		{"moves", measureMoves},
		{"lxd", measureLXD},
		{"routers", measureRouters},
		{"allocate", measureAllocate},
		{"crowd", measureCrowd},
	}
}

func names() []string {
	var ns []string
	for _, m := range all() {
		ns = append(ns, m.name)
	}
	return ns
}

func find(name string) *measurement {
	for _, m := range all() {
		if m.name == name {
			return &m
		}
	}
	return nil
}

// measure makes one measurement, or all when only is empty.
func (b *bench) measure(ctx context.Context, only string) (report, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, longest, errTooLong)
	defer cancel()
	if err := routers.Available(ctx, "bird"); err != nil {
		return report{}, err
	}
	dir, err := os.MkdirTemp("", "vmfabric-bench-")
	if err != nil {
		return report{}, err
	}
	defer os.RemoveAll(dir)
	b.say("building")
	if b.bin, err = b.build(ctx, dir); err != nil {
		return report{}, err
	}
	r := report{machine: machine(ctx, b.bin), quick: b.quick}
	var wanted []measurement
	for _, m := range all() {
		if only == "" || m.name == only {
			wanted = append(wanted, m)
		}
	}
	r.sections = make([]section, len(wanted))
	group, inGroup := errgroup.WithContext(ctx)
	group.SetLimit(1)
	if b.quick {
		group.SetLimit(quickAtOnce)
	}
	for i, m := range wanted {
		group.Go(func() (err error) {
			if inGroup.Err() == nil { // no other measurement has failed
				r.sections[i], err = b.section(inGroup, m)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("not finished: %w", context.Cause(ctx))
		}
		return r, err
	}
	r.took = time.Since(began)
	return r, nil
}

// quickAtOnce is how many measurements of a smoke run go on at the same time. They
// wait more than they work.
const quickAtOnce = 3

// section makes one measurement.
func (b *bench) section(ctx context.Context, m measurement) (section, error) {
	idle := b.quiet(ctx)
	b.say("%s (machine %.0f %% idle)", m.name, 100*idle)
	s, err := m.run(ctx, b)
	if err != nil {
		return s, fmt.Errorf("%s: %w", m.name, err)
	}
	if idle < quietEnough {
		s.notes = append(s.notes, fmt.Sprintf("The machine was only %.0f %% idle before this: others were using it.", 100*idle))
	}
	return s, nil
}

func (b *bench) say(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fmt.Fprintf(b.log, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}
