package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/endure"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
)

// wait waits for a time, or until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// fail makes a fault, and returns when it is over.
func (e *endurance) fail(ctx context.Context, f endure.Fault) error {
	switch f.Kind {
	case endure.AgentKilled:
		return e.killAgent(ctx, f)
	case endure.NodesApart:
		return e.part(ctx, f)
	}
	wait(ctx, f.After)
	e.tell("%s: %s %s", f.Kind, f.At, f.Guest)
	defer e.tell("%s is over: %s %s", f.Kind, f.At, f.Guest)
	still := func(p interface{ Signal(os.Signal) error }) error {
		err := p.Signal(syscall.SIGSTOP)
		wait(ctx, f.For)
		return errors.Join(err, p.Signal(syscall.SIGCONT))
	}
	switch f.Kind {
	case endure.AgentStopped:
		a := e.agents[f.At]
		return errors.Join(e.dies(a.Stop), a.launch(), a.answers(ctx))
	case endure.AgentStill, endure.AgentStillLong:
		return still(e.agents[f.At])
	case endure.ReflectorKilled:
		e.killed("reflector")
		return e.bounce(ctx, f.For, (*routers.Bird).Kill, e.routers[f.At])
	case endure.ReflectorStopped:
		return e.bounce(ctx, f.For, (*routers.Bird).Stop, e.routers[f.At])
	case endure.ReflectorsKilled:
		var all []*speaking
		for _, name := range e.world.Reflectors {
			e.killed("reflector")
			all = append(all, e.routers[name])
		}
		return e.bounce(ctx, f.For, (*routers.Bird).Kill, all...)
	case endure.DaemonKilled:
		e.killed("routing daemon")
		return e.bounce(ctx, f.For, (*routers.Bird).Kill, e.routers[f.At])
	case endure.ReflectorStill:
		return still(e.routers[f.At].Bird)
	case endure.NodeCut:
		err := e.lab.Disconnect(e.top.Nodes[f.At])
		wait(ctx, f.For)
		return errors.Join(err, e.lab.Reconnect(e.top.Nodes[f.At]))
	case endure.RegistryKilled, endure.RegistryStill:
		return e.failRegistry(ctx, f)
	case endure.LibvirtKilled:
		e.killed("libvirtd")
		err := e.lv[f.At].Kill()
		wait(ctx, f.For)
		return errors.Join(err, e.lv[f.At].Start(ctx))
	case endure.LibvirtStopped:
		return e.lv[f.At].Restart(ctx)
	case endure.LXDKilled:
		e.killed("lxd")
		err := e.lx[f.At].Kill()
		wait(ctx, f.For)
		return errors.Join(err, e.lx[f.At].Start(ctx))
	case endure.LXDStopped:
		return e.lx[f.At].Restart(ctx)
	}
	return e.damage(ctx, f)
}

// damage takes away what a node's agent has made in the kernel.
func (e *endurance) damage(ctx context.Context, f endure.Fault) error {
	node := e.top.Nodes[f.At]
	port := fabric.PortName(f.Guest, 0)
	switch f.Kind {
	case endure.RulesetFlushed:
		_, err := node.Run(ctx, "nft", "flush", "ruleset")
		return err
	case endure.TableDeleted:
		_, err := node.Run(ctx, "nft", "delete", "table", "inet", "vmfabric")
		return absent(err)
	case endure.RulesTaken:
		return takeRules(node)
	case endure.RouteTaken:
		var errs []error
		for _, p := range e.world.Guest(f.Guest).Prefixes {
			errs = append(errs, absent(node.DeleteRoute(p)))
		}
		return errors.Join(errs...)
	case endure.PortDown:
		return absent(node.SetDown(port))
	case endure.PortStripped:
		l, err := node.Link(port)
		if err != nil {
			return absent(err)
		}
		return errors.Join(absent(e.delAddress(node, l, e.cluster.Gateway.IPv4.String())), absent(e.delAddress(node, l, e.cluster.Gateway.IPv6.String())))
	}
	return fmt.Errorf("no such fault: %s", f.Kind)
}

// absent is nil if something was not there: its guest may have ended just before, or
// another fault came first.
func absent(err error) error {
	if err == nil {
		return nil
	}
	for _, text := range []string{"no such", "No such", "not found", "no address"} {
		if strings.Contains(err.Error(), text) {
			return nil
		}
	}
	return err
}

// takeRules removes the fabric's routing rules.
func takeRules(node *core.Host) error {
	rules, err := node.Netlink().RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, r := range rules {
		if r.Table >= fabric.ArrivingTable && r.Table <= fabric.MetadataTable {
			err = errors.Join(err, absent(node.Netlink().RuleDel(&r)))
		}
	}
	return err
}

// killAgent kills an agent, and those that are started after it while they start. The
// first of them stays away for a time.
func (e *endurance) killAgent(ctx context.Context, f endure.Fault) error {
	a := e.agents[f.At]
	for n := 0; n < f.Times && ctx.Err() == nil; n++ { // on a slow machine an agent may take long to die
		after := f.After
		if n > 0 {
			after = f.After * time.Duration(n) / time.Duration(4*f.Times) // each at a later moment of its start
		}
		e.meanwhile(ctx, a, after, f.Steps)
		if a.Running() {
			e.killed("agent")
		}
		if err := e.dies(a.Kill); err != nil {
			return err
		}
		e.tell("agent killed on %s (%d of %d)", f.At, n+1, f.Times)
		if n == 0 {
			wait(ctx, f.For)
		}
		if err := a.launch(); err != nil {
			return err
		}
	}
	answers, cancel := context.WithTimeout(e.t.Context(), actBound)
	defer cancel()
	return a.answers(answers)
}

// dies kills a process, and notes how long that takes: one that waits in the kernel ends
// when that is over.
func (e *endurance) dies(kill func() error) error {
	began := time.Now()
	err := kill()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dying = max(e.dying, time.Since(began))
	return err
}

// meanwhile waits for a time, or until an agent has written so many lines to its log.
func (e *endurance) meanwhile(ctx context.Context, a *agent, d time.Duration, lines int) {
	if lines == 0 {
		wait(ctx, d)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	log, err := os.Open(a.LogPath())
	if err != nil {
		return
	}
	defer log.Close()
	_, _ = log.Seek(0, 2)
	b := make([]byte, 1<<16)
	_ = core.Until(ctx, func() error {
		for {
			n, err := log.Read(b)
			if lines -= strings.Count(string(b[:n]), "\n"); lines <= 0 {
				return nil
			}
			if n == 0 || err != nil {
				return errors.New("not yet")
			}
		}
	})
}

// speaking is a BIRD that is started anew with what it had.
type speaking struct {
	*routers.Bird
	args []string
}

// bounce ends routers, and starts them after a time.
func (e *endurance) bounce(ctx context.Context, away time.Duration, end func(*routers.Bird) error, all ...*speaking) (err error) {
	for _, b := range all {
		err = errors.Join(err, e.dies(func() error { return end(b.Bird) }))
	}
	wait(ctx, away)
	for _, b := range all {
		conf, failed := os.ReadFile(b.ConfPath())
		if failed == nil {
			b.Bird, failed = routers.StartBird(ctx, b.Host(), string(conf), b.args...)
		}
		err = errors.Join(err, failed)
	}
	return err
}

// part has two nodes' own packets to each other dropped.
func (e *endurance) part(ctx context.Context, f endure.Fault) (err error) {
	wait(ctx, f.After)
	one, other := e.top.Nodes[f.At], e.top.Nodes[f.Other]
	e.tell("%s and %s are apart", f.At, f.Other)
	for _, way := range [][2]*core.Host{{one, other}, {other, one}} {
		at, of := way[0], way[1]
		var rules strings.Builder
		for chain, field := range map[string]string{"input": "saddr", "output": "daddr"} {
			fmt.Fprintf(&rules, "chain %s { type filter hook %s priority -300; ip %s %s drop; ip6 %s %s drop; }; ", chain, chain, field, of.Addr4(), field, of.Addr6())
		}
		_, failed := at.Run(ctx, "nft", "table inet apart { "+rules.String()+"}")
		err = errors.Join(err, failed)
	}
	wait(ctx, f.For)
	for _, h := range []*core.Host{one, other} {
		_, failed := h.Run(ctx, "nft", "delete", "table", "inet", "apart")
		err = errors.Join(err, absent(failed)) // a flush of all rules ends it early
	}
	e.tell("%s and %s are together again", f.At, f.Other)
	return err
}

// failRegistry kills the leader of the registry's etcd, or has it stand still.
func (e *endurance) failRegistry(ctx context.Context, f endure.Fault) error {
	n := max(0, e.etcd.Leader())
	if f.Kind == endure.RegistryStill {
		e.etcd.Pause(n)
		wait(ctx, f.For)
		e.etcd.Continue(n)
		return nil
	}
	e.killed("registry")
	e.etcd.Kill(n)
	wait(ctx, f.For)
	e.etcd.Start(n)
	e.etcd.Ready(n)
	return nil
}

// addressOf gives a host's address of a family.
func addressOf(h *core.Host, v6 bool) netip.Addr {
	if v6 {
		return h.Addr6()
	}
	return h.Addr4()
}
