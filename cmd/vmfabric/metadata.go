package main

import (
	"context"
	"log/slog"

	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/internal/metadata"
)

// serveMetadata serves the guests of this node their metadata, if the cluster file says so.
func serveMetadata(ctx context.Context, dataplane *kernel.Dataplane, agent *agent.Agent, log *slog.Logger) error {
	return metadata.Serve(ctx, metadata.Config{
		Cluster: agent.Cluster, Listeners: dataplane.MetadataListeners(), PortOf: kernel.PortOf,
		Guest: agent.Guest, UserData: agent.UserData, Logger: log,
	})
}
