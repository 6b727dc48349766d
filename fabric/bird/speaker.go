package bird

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
	Socket  string // BIRD's control socket; [DefaultSocket] when empty
}

// Option changes a [Speaker] at its making.
type Option = routingd.Option

// WithLogger sets the speaker's logger; without it the speaker logs nothing.
func WithLogger(l *slog.Logger) Option { return routingd.WithLogger(l) }

// Speaker announces through the kernel and BIRD. Its Run also reads the contents and
// the times of NOTIFICATIONs from BIRD's log.
type Speaker = routingd.Speaker

// New takes up the announcements that are in the kernel of this network
// namespace. BIRD need not run.
func New(ctx context.Context, cfg Config, opts ...Option) (*Speaker, error) {
	client := Client{Socket: cfg.Socket}
	return routingd.New(ctx, routingd.Config{
		Cluster: cfg.Cluster, Node: cfg.Node, Name: fabric.SpeakerBIRD, Client: client, Follow: client.follow,
		Learns: fmt.Sprintf("a kernel protocol of each family that learns routes of protocol %d with metrics below %d", fabric.Protocol, fabric.PortMetric),
	}, opts...)
}
