package frr

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/routingd"
)

// Config has what a [Speaker] cannot do without.
type Config struct {
	Cluster fabric.Cluster
	Node    fabric.Node
	Client  Client // of FRR
}

// Option changes a [Speaker] at its making.
type Option = routingd.Option

// WithLogger sets the speaker's logger; without it the speaker logs nothing.
func WithLogger(l *slog.Logger) Option { return routingd.WithLogger(l) }

// Speaker announces through the kernel and FRR, which keeps each session's last
// NOTIFICATION.
type Speaker = routingd.Speaker

// New takes up the announcements that are in the kernel of this network
// namespace. FRR need not run.
func New(ctx context.Context, cfg Config, opts ...Option) (*Speaker, error) {
	return routingd.New(ctx, routingd.Config{
		Cluster: cfg.Cluster, Node: cfg.Node, Name: fabric.SpeakerFRR, Client: cfg.Client,
		Learns: fmt.Sprintf("redistribute kernel in each family, with a route map that takes metrics below %d", fabric.PortMetric),
	}, opts...)
}
