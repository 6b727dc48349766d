package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/fabric/gobgp/reflector"
	"github.com/vmfabric/vmfabric/hooks"
)

const reflectorSocket = "/run/vmfabric/reflector.sock"

type reflectorFlags struct {
	config, name, socket, metrics, logLevel, logFormat string
}

func reflectorCommand() *cobra.Command {
	var f reflectorFlags
	cmd := &cobra.Command{
		Use:   "reflector",
		Short: "Run an embedded route reflector, for laboratories and small clusters",
		Long: `The reflector takes guests' routes from the nodes and hands them to the core
gateways: from nodes the pools' host routes and what is inside routed prefixes,
with all of the cluster's communities, and nothing else; from core gateways
nothing. Nodes are told of guests that have just begun to run elsewhere, or of
all with east_west.

It reads the cluster file when it starts: after a change to pools, communities,
core gateways or passwords restart it, one reflector after the other. A new node
needs none where its address is in the underlay.

How it fares: vmfabric status --socket /run/vmfabric/reflector.sock`,
		Example: `  vmfabric reflector --name rr1
  vmfabric reflector --name rr1 --metrics 127.0.0.1:9179`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(cmd.ErrOrStderr(), f.logLevel, f.logFormat)
			if err != nil {
				return usageError{err}
			}
			return runReflector(cmd.Context(), f, log)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.config, "config", defaultConfig, "the cluster file")
	fl.StringVar(&f.name, "name", "", "which of the cluster's reflectors this is")
	fl.StringVar(&f.socket, "socket", reflectorSocket, "the reflector's own socket, for its status")
	fl.StringVar(&f.metrics, "metrics", "", "the address and port to serve Prometheus metrics on; none when empty")
	fl.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	fl.StringVar(&f.logFormat, "log-format", "text", "text or json")
	_ = cmd.MarkFlagRequired("name")
	return cmd
}

func runReflector(ctx context.Context, f reflectorFlags, log *slog.Logger) (err error) {
	cluster, err := clusterfile.Load(f.config, clusterfile.WithoutKey())
	if err != nil {
		return err
	}
	rr, err := cluster.RR(f.name)
	if err != nil {
		return err
	}
	closing := func(c io.Closer) { err = errors.Join(err, ignoreClosed(c.Close())) }
	listener, err := hooks.Listen(ctx, f.socket)
	if err != nil {
		return err
	}
	defer closing(listener)
	metrics, err := listenMetrics(f.metrics, "127.0.0.1:9179 or [::1]:9179")
	if err != nil {
		return err
	}
	if metrics != nil {
		defer closing(metrics)
	}
	r, err := reflector.New(reflector.Config{Cluster: cluster, RR: rr}, reflector.WithLogger(log))
	if err != nil {
		return err
	}

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return r.Run(ctx) })
	select {
	case <-r.Ready():
	case <-ctx.Done():
		return group.Wait()
	}
	group.Go(func() error {
		return hooks.ServeStatus(ctx, listener, "reflector "+rr.Name, r, log)
	})
	if metrics != nil {
		group.Go(func() error { return serveMetrics(ctx, metrics, reflectorMetrics(r, log), log) })
	}
	log.Info("ready", "cluster", cluster.Name, "reflector", rr.Name, "address", fmt.Sprint(rr.Address), "socket", f.socket, "version", version)
	notify(log, daemon.SdNotifyReady)
	<-ctx.Done()
	notify(log, daemon.SdNotifyStopping)
	log.Info("stopping; core gateways keep the routes for the graceful restart time")
	return group.Wait()
}
