package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/fabric/disk"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/fabric/nodes"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/trusted"
)

// agentParts are what the process of an agent is made of.
type agentParts struct {
	flags   agentFlags
	cluster fabric.Cluster
	node    fabric.Node
	log     *slog.Logger
	read    content          // of the cluster file, of which cluster is
	hangup  <-chan os.Signal // see [reloader]

	listener   *hooks.Listener
	metrics    net.Listener // nil: there are none
	store      *disk.Store
	registry   addressRegistry
	netlink    *kernel.Netlink
	dataplane  *kernel.Dataplane
	peers      *kernel.FIB
	extensions *extensions
	speaker    speaker
	nodes      *nodes.Nodes

	closers []io.Closer // of those that are open
}

// close closes what is open, the last first.
func (p *agentParts) close() (err error) {
	for _, c := range slices.Backward(p.closers) {
		err = errors.Join(err, ignoreClosed(c.Close()))
	}
	return err
}

// open opens the parts. What is open after an error is for close.
func (p *agentParts) open(ctx context.Context, socket string) (err error) {
	// The process that holds the socket is the agent, so take it before anything
	// changes.
	if p.listener, err = hooks.Listen(ctx, socket); err != nil {
		return err
	}
	p.closers = append(p.closers, p.listener)
	if p.metrics, err = listenMetrics(p.flags.metricsAddress(&p.cluster), "127.0.0.1:9178 or [::1]:9178"); err != nil {
		return err
	}
	if p.metrics != nil {
		p.closers = append(p.closers, p.metrics)
	}
	counted, err := p.openState()
	if err != nil {
		return err
	}
	if err := p.openKernel(ctx, counted); err != nil {
		return err
	}
	if p.extensions, err = p.flags.openExtensions(ctx, &p.cluster, p.node, p.log); err != nil {
		return err
	}
	p.closers = append(p.closers, p.extensions)
	p.speaker, err = p.flags.openSpeaker(ctx, p.cluster, p.node, p.extensions, p.peers)
	return err
}

// openState opens what is in the state directory, which is this process's alone.
func (p *agentParts) openState() (counted accounting, err error) {
	state := p.flags.state
	lock, err := disk.Lock(state)
	if err != nil {
		return counted, err
	}
	p.closers = append(p.closers, lock)
	if p.store, err = disk.Open(state); err != nil {
		return counted, err
	}
	p.closers = append(p.closers, p.store)
	if err := trusted.Check(state); err != nil {
		return counted, fmt.Errorf("state: %w", err)
	}
	if p.registry, err = openRegistry(state, &p.cluster, p.node.Name); err != nil {
		return counted, err
	}
	p.closers = append(p.closers, p.registry)
	if counted, err = openAccounting(state, &p.cluster); err != nil {
		return counted, err
	}
	p.closers = append(p.closers, counted)
	return counted, nil
}

// openKernel adopts what is in the kernel.
func (p *agentParts) openKernel(ctx context.Context, counted accounting) (err error) {
	if p.netlink, err = kernel.Open(p.log); err != nil {
		return err
	}
	p.closers = append(p.closers, p.netlink)
	config := kernelConfig(&p.cluster, p.node)
	config.Netlink, config.Known, config.Accounting = p.netlink, guarded(ctx, p.store, &p.cluster), counted.Accounting
	if p.dataplane, err = kernel.New(ctx, config, kernel.WithLogger(p.log)); err != nil {
		return err
	}
	p.closers = append(p.closers, p.dataplane)
	p.peers, err = kernel.NewFIB(ctx, kernel.FIBConfig{Protocol: fabric.PeerProtocol, Metric: fabric.PeerMetric, Logger: p.log, Netlink: p.netlink})
	if err != nil {
		return err
	}
	p.closers = append(p.closers, p.peers)
	return nil
}

// newAgent makes the agent of the parts, and has it adopt what there is.
func (p *agentParts) newAgent(ctx context.Context, sources []source) (*agent.Agent, error) {
	p.nodes = nodes.New(nodes.Config{Cluster: p.cluster, Node: p.node, Logger: p.log})
	options := []agent.Option{
		agent.WithLogger(p.log), agent.WithBoot(kernel.BootID()), agent.WithRemedies(hooks.Remedy),
		agent.WithObservers(p.extensions.observers...), agent.WithDiagnosers(p.extensions.diagnosers...), agent.WithTraffic(p.dataplane.Traffic),
		agent.WithRegistry(p.registry.Registry), agent.WithAdoption(p.registry.adoption), agent.WithEpochs(p.registry.epoch),
		agent.WithRegistryIdentity(p.registry.identity), agent.WithNodes(p.nodes),
	}
	if p.extensions.resolver != nil {
		options = append(options, agent.WithResolver(p.extensions.resolver))
	}
	for _, s := range sources {
		options = append(options, agent.WithSources(s))
	}
	a, err := agent.New(agent.Config{
		Cluster: p.cluster, Node: p.node.Name, Dataplane: p.dataplane, Speaker: p.speaker, Store: p.store,
	}, options...)
	if err == nil {
		err = a.Adopt(ctx)
	}
	return a, err
}

// run runs the agent and its parts until ctx ends, or one of them fails.
func (p *agentParts) run(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	// The speaker ends after the parts that announce routes, so it still sends what
	// they withdraw at their end. So does the dataplane, which serves guests until then.
	serving, endServing := context.WithCancel(context.WithoutCancel(ctx))
	var last errgroup.Group
	defer func() {
		cancel()
		err = errors.Join(err, group.Wait())
		endServing()
		err = errors.Join(err, last.Wait())
	}()
	last.Go(func() error { return p.netlink.Run(serving) })
	last.Go(func() error { return p.dataplane.Run(serving) })
	group.Go(func() error { return p.peers.Run(ctx) })
	group.Go(func() error { return p.registry.run(ctx) })
	sources := p.flags.sources(p.dataplane, p.log)
	for _, s := range sources {
		group.Go(func() error { return s.Run(ctx) })
	}
	a, err := p.newAgent(ctx, sources)
	if err != nil {
		return err
	}
	last.Go(func() error {
		defer cancel() // without a speaker the agent is of no use
		return p.speaker.Run(serving)
	})
	group.Go(func() error { return a.Run(ctx) })
	group.Go(func() error { return serveMetadata(ctx, p.dataplane, a, p.log) })
	if p.metrics != nil {
		of := measured{p.node.Name, a.Status, a.Statistics, p.dataplane.Requests, p.dataplane.Drops, p.dataplane.Traffic, p.log}
		group.Go(func() error { return serveMetrics(ctx, p.metrics, of.metrics, p.log) })
	}
	reload := &reloader{
		file: p.flags.config, load: p.flags.load, node: p.node.Name, now: a.Cluster, log: p.log, read: p.read,
		take: func(c fabric.Cluster) error { return p.take(c, a) },
	}
	group.Go(func() error {
		return hooks.Serve(ctx, p.listener, reloadable{heard(a, sources), reload, p.dataplane}, p.log)
	})
	awaitWell(ctx, a.Status)
	if ctx.Err() == nil {
		p.log.Info("ready", "cluster", p.cluster.Name, "node", p.node.Name, "socket", p.listener.Addr().String(), "version", version)
		notify(p.log, daemon.SdNotifyReady)
		group.Go(func() error {
			keepAlive(ctx, watchdogInterval(p.log), func() { a.Guest("") }, func() { notify(p.log, daemon.SdNotifyWatchdog) })
			return nil
		})
	}
	reload.run(ctx, p.hangup) // until ctx ends
	notify(p.log, daemon.SdNotifyStopping)
	p.log.Info("stopping; ports and routes stay")
	return nil
}
