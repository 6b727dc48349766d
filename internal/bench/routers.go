package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
)

// reflectorKinds are the kinds of reflectors and their names.
var reflectorKinds = []struct{ kind, name string }{
	{"bird", "BIRD"}, {"frr", "FRR"}, {"embedded", "embedded"},
}

// measureRouters measures every speaker behind every kind of reflector, with one
// guest after the other, and then with very many routes at once.
func measureRouters(ctx context.Context, b *bench) (section, error) {
	s := section{title: "Every speaker behind every reflector"}
	if err := routers.Available(ctx, "frr"); err != nil {
		s.method = fmt.Sprintf("Not measured: %v.", err)
		return s, nil
	}
	up := table{head: []string{"attach", "reflectors", "p50 ms", "p99 ms", "detach p50 ms", "p99 ms"}}
	bulk := table{head: []string{"reflectors", "routes", "add: routes/s", "remove: routes/s", "memory MiB", "bytes a route"}}
	for _, k := range reflectorKinds {
		b.say("  %s", k.name)
		if err := b.combine(ctx, k.kind, k.name, &up); err != nil {
			return s, fmt.Errorf("%s: %w", k.name, err)
		}
		if err := b.flood(ctx, k.kind, k.name, &bulk); err != nil {
			return s, fmt.Errorf("%s: %w", k.name, err)
		}
	}
	s.method = fmt.Sprintf(`
A tap with an IPv4 and an IPv6 address is attached and detached %s times by turns on each of three nodes: one whose agent
speaks itself, one with BIRD and one with FRR, which read the kernel. Two reflectors of each kind, a BIRD core gateway, all from
what `+"`vmfabric render`"+` gives. From just before the line is written to the agent's socket until the core gateway's kernel
has both routes, or neither.

Below, ten nodes announce routes without ports, half of each family, up to a thousand in each call of the agent's speaker,
until the core gateway's kernel has all of them, and take them back until it has none. Memory is what one reflector has then
(FRR: bgpd and zebra), and by how much it grew for a route.`, count(b.size.combined))
	s.tables = []table{up, bulk}
	return s, nil
}

// combine measures the three speakers behind reflectors of one kind.
func (b *bench) combine(ctx context.Context, kind, name string, t *table) (err error) {
	l, err := b.newLabOf(ctx, "combine", 3, kind)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	if _, err := l.startBird(ctx, l.top.Nodes["node2"]); err != nil {
		return err
	}
	if _, err := l.startFRR(ctx, l.top.Nodes["node3"]); err != nil {
		return err
	}
	var methods []*method
	for _, n := range []struct{ node, speaker, name string }{
		{"node1", "", "GoBGP, in the agent"}, {"node2", "bird", "BIRD"}, {"node3", "frr", "FRR"},
	} {
		a, err := b.startSpeaker(ctx, l, n.node, n.speaker)
		if err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
		methods = append(methods, a.method(n.name))
	}
	b.quiet(ctx)
	if err := l.race(ctx, methods, 0, b.size.combined); err != nil {
		return err
	}
	for _, m := range methods {
		t.row(m.name, name, ms(m.ups.p50()), ms(m.ups.p99()), ms(m.downs.p50()), ms(m.downs.p99()))
	}
	return nil
}

// flood announces and withdraws very many routes through reflectors of one kind.
func (b *bench) flood(ctx context.Context, kind, name string, t *table) (err error) {
	l, err := b.newLabOf(ctx, "flood", floodNodes, kind)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	var nodes []*bulkNode
	for _, node := range l.top.Nodes {
		n, err := b.startBulk(l, node)
		if err != nil {
			return err
		}
		defer n.close()
		if err := n.say("ready"); err != nil {
			return err
		}
		nodes = append(nodes, n)
	}
	// Wait until the core gateway has its sessions.
	time.Sleep(time.Second)
	idle, err := l.memory()
	if err != nil {
		return err
	}
	for _, routes := range b.size.bulk {
		b.say("    %s routes", count(routes))
		all := prefixesOf(guests(0, routes/2))
		for i, n := range nodes {
			if err := n.take(all[i*routes/floodNodes : (i+1)*routes/floodNodes]); err != nil {
				return err
			}
		}
		add, err := l.timed(ctx, nodes, "put", all, l.core.come)
		if err != nil {
			return err
		}
		full, err := l.memory()
		if err != nil {
			return err
		}
		b.quiet(ctx)
		remove, err := l.timed(ctx, nodes, "remove", all, l.core.gone)
		if err != nil {
			return err
		}
		b.quiet(ctx)
		rate := func(d time.Duration) string { return count(int(float64(routes) / d.Seconds())) }
		t.row(name, count(routes), rate(add), rate(remove), mib(full), fmt.Sprint(max(0, full-idle)/int64(routes)))
	}
	return nil
}

// floodNodes is how many nodes share the routes of a flood. With ten, no node has
// more routes than max_prefixes allows by default.
const floodNodes = 10

// timed sends a command to all nodes, waits until the core gateway has followed,
// and returns how long that took.
func (l *lab) timed(ctx context.Context, nodes []*bulkNode, command string, prefixes []netip.Prefix, until func(context.Context, ...netip.Prefix) (time.Time, error)) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	l.core.arm(prefixes...)
	began := time.Now()
	errs := make([]error, len(nodes))
	var saying sync.WaitGroup
	for i, n := range nodes {
		saying.Go(func() { errs[i] = n.say(command + " " + n.file) })
	}
	saying.Wait()
	if err := errors.Join(errs...); err != nil {
		return 0, err
	}
	at, err := until(ctx, prefixes...)
	return at.Sub(began), err
}

// memory returns the resident memory of the first reflector, in bytes.
func (l *lab) memory() (int64, error) {
	var sum int64
	for _, pid := range l.rr[0].pids {
		u, err := usageOf(pid)
		if err != nil {
			return 0, err
		}
		sum += u.rss
	}
	return sum, nil
}

// bulkNode is the program bulk on a node.
type bulkNode struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner

	file string // of the prefixes that it announces
}

// take writes the prefixes that the node shall announce into its file.
func (n *bulkNode) take(ps []netip.Prefix) error { return writePrefixes(n.file, ps) }

func (b *bench) startBulk(l *lab, node *core.Host) (*bulkNode, error) {
	n := &bulkNode{cmd: exec.Command(b.bin.bulk, l.file, node.Name()), file: filepath.Join(node.Dir(), "routes")}
	n.cmd.Stderr = os.Stderr
	var err error
	if n.in, err = n.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	n.out = bufio.NewScanner(out)
	return n, node.Do(n.cmd.Start)
}

func (n *bulkNode) say(line string) error {
	if _, err := fmt.Fprintln(n.in, line); err != nil {
		return err
	}
	if !n.out.Scan() {
		return fmt.Errorf("the announcer ended: %w", errors.Join(n.out.Err(), io.ErrUnexpectedEOF))
	}
	if answer := n.out.Text(); answer != "ok" {
		return errors.New(answer)
	}
	return nil
}

func (n *bulkNode) close() error { return errors.Join(n.in.Close(), n.cmd.Wait()) }

func writePrefixes(file string, ps []netip.Prefix) error {
	var text []byte
	for _, p := range ps {
		text = append(p.AppendTo(text), '\n')
	}
	return os.WriteFile(file, text, 0o644)
}
