package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/fabric/disk"
	"github.com/vmfabric/vmfabric/fabric/gobgp"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/hooks"
)

// deaf is a dataplane that does not notice the end of a guest's process, which
// vmfabric's notices long before libvirt calls its hook.
type deaf struct{ fabric.Dataplane }

func (d deaf) Actual(ctx context.Context) ([]fabric.PortState, error) {
	ports, err := d.Dataplane.Actual(ctx)
	for i := range ports {
		ports[i].Carrier, ports[i].Lost = true, false
	}
	return ports, err
}

// serve runs vmfabric's agent with nothing but its hooks.
func serve(config, nodeName, state, socket string) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	cluster, err := clusterfile.Load(config)
	if err != nil {
		return err
	}
	node, err := cluster.Node(nodeName)
	if err != nil {
		return err
	}
	listener, err := hooks.Listen(ctx, socket)
	if err != nil {
		return err
	}
	store, err := disk.Open(state)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	dataplane, err := kernel.New(ctx, kernel.Config{Cluster: cluster.Name}, kernel.WithLogger(log))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dataplane.Close()) }()
	speaker, err := gobgp.New(gobgp.Config{Cluster: cluster, Node: node})
	if err != nil {
		return err
	}
	agent, err := agent.New(agent.Config{
		Cluster: cluster, Node: node.Name, Dataplane: deaf{dataplane}, Speaker: speaker, Store: store,
	}, agent.WithLogger(log), agent.WithBoot(kernel.BootID()))
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return dataplane.Run(ctx) })
	if err := agent.Adopt(ctx); err != nil {
		return err
	}
	group.Go(func() error { return speaker.Run(ctx) })
	group.Go(func() error { return agent.Run(ctx) })
	group.Go(func() error { return hooks.Serve(ctx, listener, agent, log) })
	return group.Wait()
}
