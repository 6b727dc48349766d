package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// registrar is a process of internal/bench/registrar.
type registrar struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
	stdin io.WriteCloser
	said  strings.Builder // on its standard error
}

// registrarTime is how long a registrar has to end when the run is broken off.
const registrarTime = 10 * time.Second

// newRegistrar makes one that ends with ctx, at the latest: a run that is broken off waits
// for its next line in vain otherwise.
func newRegistrar(ctx context.Context, program string, args ...string) (r *registrar, err error) {
	r = &registrar{cmd: exec.CommandContext(ctx, program, args...)}
	r.cmd.Cancel = func() error { return r.cmd.Process.Signal(syscall.SIGTERM) }
	r.cmd.WaitDelay = registrarTime
	r.cmd.Stderr = &r.said
	if r.stdin, err = r.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := r.cmd.StdoutPipe()
	r.lines = bufio.NewScanner(out)
	r.lines.Buffer(nil, 16<<20)
	return r, err
}

func (b *bench) registrar(ctx context.Context, h *core.Host, what string, e *etcd, numbers ...int) (*registrar, error) {
	args := []string{what, strings.Join(e.endpoints, ",")}
	for _, n := range numbers {
		args = append(args, fmt.Sprint(n))
	}
	r, err := newRegistrar(ctx, b.bin.registrar, args...)
	if err == nil {
		err = h.Start(r.cmd)
	}
	if err == nil {
		err = h.Lab().OwnProcess(r.cmd.Process.Pid)
	}
	return r, err
}

// says reads the next line.
func (r *registrar) says(into any) error {
	if !r.lines.Scan() {
		err := errors.Join(r.lines.Err(), r.cmd.Wait()) // after that all is said
		return errors.Join(errors.New("the registrar ended: "+strings.TrimSpace(r.said.String())), err)
	}
	return json.Unmarshal(r.lines.Bytes(), into)
}

// end ends a registrar and reads its last line, if into is not nil.
func (r *registrar) end(into any) error {
	err := r.cmd.Process.Signal(syscall.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) { // says has said it
		return nil
	}
	if err == nil && into != nil {
		err = r.says(into)
	}
	return errors.Join(err, r.cmd.Wait())
}

// known, crowded and changed are what a registrar says.
type known struct {
	Addresses int
	Took      time.Duration
	Heap      int64
	rss       int64
}

type crowded struct {
	Nodes       int
	Took, First time.Duration
	Events      int64
	Bytes       int64
	Heap        int64
	copies      int
	copied      time.Duration // until the last of the copies was whole
	rss         int64         // of the processes that have the copies
}

type changed struct {
	Allocate, Release, Put sample
	Failed                 int
	CPU                    time.Duration
	what                   string
}

// crowdSize is how large the crowd is.
type crowdSize struct {
	addresses int
	agents    []int // numbers of nodes, which begin at once
	copies    int   // how many of them, if there are so many, keep what they list, as agents do
	changes   int
}

// crowdRun is what was measured of a crowd.
type crowdRun struct {
	empty, full      [2]known // before and after it listed all
	stampede         []crowded
	changes          []changed
	rest, most, last int64 // memory of the largest member: full, at most until the nodes had started, at the end
	size             crowdSize
}

// atOnceIn is how many nodes of a crowd are in one process.
const atOnceIn = 125

// measureCrowd measures the registry in etcd with many addresses and many nodes.
func measureCrowd(ctx context.Context, b *bench) (section, error) {
	var runs []crowdRun
	for _, size := range b.size.crowds {
		run, err := b.crowdOf(ctx, size)
		if err != nil {
			return section{}, err
		}
		runs = append(runs, run)
	}
	return crowdSection(runs), nil
}

// crowdOf measures the registry in an etcd of its own.
func (b *bench) crowdOf(ctx context.Context, size crowdSize) (run crowdRun, err error) {
	run.size = size
	l, err := core.New(ctx, core.Options{Name: "benchcrowd"})
	if err != nil {
		return run, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	var hosts []*core.Host
	for n := range byte(4) {
		h, err := l.AddReflector(fmt.Sprintf("h%d", n), core.Underlay4(11+n))
		if err != nil {
			return run, err
		}
		hosts = append(hosts, h)
	}
	e, err := startEtcd(ctx, hosts[:3]...)
	if err != nil {
		return run, err
	}
	at := hosts[3]
	if run.empty, err = b.knows(ctx, at, e); err != nil {
		return run, err
	}
	b.say("  %s addresses", count(run.size.addresses))
	fills, err := b.registrar(ctx, at, "fill", e, run.size.addresses)
	if err != nil {
		return run, err
	}
	if err := fills.says(&known{}); err != nil {
		return run, err
	}
	if err := fills.cmd.Wait(); err != nil {
		return run, err
	}
	if run.full, err = b.knows(ctx, at, e); err != nil {
		return run, err
	}
	if run.rest, err = e.memory(); err != nil {
		return run, err
	}
	for _, agents := range run.size.agents {
		if err := b.crowded(ctx, at, e, agents, &run); err != nil {
			return run, err
		}
	}
	run.last, err = e.memory()
	return run, err
}

// knows looks at the memory of a node that knows all that etcd has, before it lists all and
// afterwards.
func (b *bench) knows(ctx context.Context, h *core.Host, e *etcd) (ks [2]known, err error) {
	r, err := b.registrar(ctx, h, "know", e)
	if err != nil {
		return ks, err
	}
	for i := range ks {
		if err := r.says(&ks[i]); err != nil {
			return ks, err
		}
		select {
		case <-ctx.Done():
			return ks, ctx.Err()
		case <-time.After(2 * b.size.breathing):
		}
		u, err := usageOf(r.cmd.Process.Pid)
		if err != nil {
			return ks, err
		}
		ks[i].rss = u.rss
		_ = r.stdin.Close()
	}
	return ks, r.end(nil)
}

// crowded has so many nodes begin, and makes changes while they watch.
func (b *bench) crowded(ctx context.Context, h *core.Host, e *etcd, agents int, run *crowdRun) (err error) {
	b.say("  %s nodes", count(agents))
	all := crowded{Nodes: agents, copies: min(agents, run.size.copies)}
	var crowds []*registrar
	defer func() {
		for _, r := range crowds {
			var is crowded
			err = errors.Join(err, r.end(&is))
		}
	}()
	gather := func(what string, nodes int) error {
		for left := nodes; left > 0; left -= atOnceIn {
			r, err := b.registrar(ctx, h, what, e, min(left, atOnceIn))
			if err != nil {
				return err
			}
			crowds = append(crowds, r)
			if err := r.says(&crowded{}); err != nil {
				return err
			}
		}
		return nil
	}
	if err := gather("copies", all.copies); err != nil {
		return err
	}
	copying := len(crowds)
	if err := gather("crowd", agents-all.copies); err != nil {
		return err
	}
	for _, r := range crowds {
		_ = r.stdin.Close()
	}
	began := time.Now()
	for i, r := range crowds {
		if err := all.add(r, i < copying); err != nil {
			return err
		}
	}
	all.Took = time.Since(began)
	run.stampede = append(run.stampede, all)
	most, err := e.peak()
	if err != nil {
		return err
	}
	run.most = max(run.most, most)
	b.say("    the first knows all after %.1f s, all after %.1f s, the copies after %.1f s; the largest member had %s MiB", all.First.Seconds(), all.Took.Seconds(), all.copied.Seconds(), mib(most))
	return b.changesIn(ctx, h, e, agents, run)
}

// add adds the nodes of a process, when they know all.
func (c *crowded) add(r *registrar, copying bool) error {
	var is crowded
	if err := r.says(&is); err != nil {
		return err
	}
	if c.First == 0 || is.First < c.First {
		c.First = is.First
	}
	c.Bytes, c.Heap = c.Bytes+is.Bytes, c.Heap+is.Heap
	if !copying {
		return nil
	}
	c.copied = max(c.copied, is.Took)
	u, err := usageOf(r.cmd.Process.Pid)
	c.rss += u.rss
	return err
}

// changesIn makes ten changes a second: at rest, while the leader is killed, and while
// etcd compacts and defragments.
func (b *bench) changesIn(ctx context.Context, h *core.Host, e *etcd, agents int, run *crowdRun) error {
	for _, at := range []struct {
		what    string
		disturb func(context.Context) error
	}{
		{"ten changes a second", nil},
		{"the leader is killed", func(ctx context.Context) error { return e.failOver(ctx, h) }},
		{"compaction, defragmentation", func(ctx context.Context) error { return e.compact(ctx, h) }},
	} {
		r, err := b.registrar(ctx, h, "change", e, run.size.changes, 100)
		if err != nil {
			return err
		}
		if err := r.says(&known{}); err != nil {
			return err
		}
		var disturbed error
		var disturbing sync.WaitGroup
		if at.disturb != nil {
			disturbing.Go(func() { disturbed = at.disturb(ctx) })
		}
		is := changed{what: fmt.Sprintf("%s nodes: %s", count(agents), at.what)}
		err = errors.Join(r.says(&is), r.cmd.Wait())
		disturbing.Wait()
		if err := errors.Join(err, disturbed); err != nil {
			return fmt.Errorf("%s: %w", at.what, err)
		}
		run.changes = append(run.changes, is)
		b.say("    %s: put %s ms, allocate %s ms, longest %s ms, %d failed", at.what, ms(is.Put.p50()), ms(is.Allocate.p50()), ms(max(is.Allocate.max(), is.Release.max())), is.Failed)
	}
	return nil
}

// failOver kills the leader, and starts it again.
func (e *etcd) failOver(ctx context.Context, h *core.Host) error {
	c, err := e.client(h)
	if err != nil {
		return err
	}
	defer c.Close()
	for i, endpoint := range e.endpoints {
		is, err := c.Status(ctx, endpoint)
		if err != nil {
			return err
		}
		if is.Leader != is.Header.MemberId {
			continue
		}
		if err := e.members[i].Kill(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(3 * time.Second):
		}
		e.members[i], err = e.begin(i)
		return err
	}
	return errors.New("etcd has no leader")
}

// compact has etcd forget its history, and give the space back.
func (e *etcd) compact(ctx context.Context, h *core.Host) error {
	c, err := e.client(h)
	if err != nil {
		return err
	}
	defer c.Close()
	now, err := c.Get(ctx, "bench")
	if err != nil {
		return err
	}
	if _, err := c.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		return err
	}
	for _, endpoint := range e.endpoints {
		if _, err := c.Defragment(ctx, endpoint); err != nil {
			return err
		}
	}
	return nil
}

// mostGrowth is how much an agent may grow by the addresses of a full run.
const mostGrowth = 30 << 20

func crowdSection(runs []crowdRun) section {
	s := section{
		title: "The registry at many nodes",
		method: fmt.Sprintf(`
An etcd of three members has many addresses, two of each guest. One process has the registry of one node, as the agent does. A
crowd of nodes, each with a connection of its own, %d in a process, lists all addresses and watches them, all at once, as when all agents start;
what they list they do not keep, since the copies of that many nodes would not fit into this machine, except for those that have copies: these are registries as agents have them. Then another node makes
ten changes a second, by turns an allocation and a release, and a bare client on it puts a value of 300 bytes before each. All processes,
members and nodes, share this machine's processors.`, atOnceIn),
	}
	m := table{head: []string{"one node", "heap MiB", "RSS MiB", "took ms"}}
	st := table{head: []string{"nodes that start at once", "the first knows all after s", "the last s", "MiB listed without copies", "copies", "the last copy s", "heap MiB each", "RSS MiB each"}}
	ch := table{head: []string{"changes", "put p50 ms", "put p99 ms", "allocate p50 ms", "allocate p99 ms", "in puts p50", "release p50 ms", "longest ms", "failed", "CPU ms a change"}}
	for _, r := range runs {
		addresses := count(r.size.addresses) + " addresses"
		for _, is := range []struct {
			what string
			known
		}{
			{"it knows that there are none", r.empty[0]},
			{"it knows " + addresses, r.full[0]},
			{"it has listed " + addresses + " for somebody", r.full[1]},
		} {
			m.row(is.what, mib(is.Heap), mib(is.rss), ms(is.Took))
		}
		for _, c := range r.stampede {
			each := int64(max(1, c.copies))
			st.row(count(c.Nodes)+", "+addresses, fmt.Sprintf("%.1f", c.First.Seconds()), fmt.Sprintf("%.1f", c.Took.Seconds()), mib(c.Bytes),
				count(c.copies), fmt.Sprintf("%.1f", c.copied.Seconds()), mib(c.Heap/each), mib(c.rss/each))
		}
		for _, c := range r.changes {
			n := len(c.Allocate) + len(c.Release)
			ch.row(addresses+", "+c.what, ms(c.Put.p50()), ms(c.Put.p99()), ms(c.Allocate.p50()), ms(c.Allocate.p99()), times(ratio(c.Allocate.p50(), c.Put.p50())), ms(c.Release.p50()),
				ms(max(c.Allocate.max(), c.Release.max())), count(c.Failed), ms(c.CPU/time.Duration(max(1, n))))
		}
		s.notes = append(s.notes, fmt.Sprintf("With %s the largest member of etcd had %s MiB, at most %s MiB while the nodes started, and %s MiB at the end.", addresses, mib(r.rest), mib(r.most), mib(r.last)))
		grown := r.full[0].rss - r.empty[0].rss
		s.targets = append(s.targets, target{promise: fmt.Sprintf("an agent grows by %s: at most %s MiB", addresses, mib(mostGrowth)), result: mib(grown) + " MiB", kept: grown <= mostGrowth})
	}
	s.tables = []table{m, st, ch}
	return s
}
