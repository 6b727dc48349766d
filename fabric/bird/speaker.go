package bird

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/peering"
	"github.com/vmfabric/vmfabric/fabric/kernel"
)

// Config is what a [Speaker] cannot do without.
type Config struct {
	Cluster fabric.Cluster
	Node    fabric.Node
	Socket  string // BIRD's control socket; [DefaultSocket] when empty
}

// Option changes a [Speaker] at its making.
type Option func(*options)

type options struct{ announcer []kernel.AnnouncerOption }

// WithLogger sets where the speaker logs; it is silent without.
func WithLogger(l *slog.Logger) Option {
	return func(o *options) { o.announcer = append(o.announcer, kernel.WithAnnouncerLogger(l)) }
}

// Speaker announces through the kernel and BIRD. Its announcements are a
// [kernel.Announcer]'s, with the laws of that: they need no BIRD, and wait for
// one that is down.
type Speaker struct {
	*kernel.Announcer
	daemon peering.Daemon
}

// New takes up the announcements that are in the kernel of this network
// namespace. BIRD need not run.
func New(cfg Config, opts ...Option) (*Speaker, error) {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	a, err := kernel.NewAnnouncer(o.announcer...)
	if err != nil {
		return nil, fmt.Errorf("bird: %w", err)
	}
	return &Speaker{
		Announcer: a,
		daemon: peering.Daemon{
			Name: fabric.SpeakerBIRD, Node: cfg.Node.Name, Cluster: cfg.Cluster, Ask: Client{Socket: cfg.Socket}.Sessions,
			Learns: fmt.Sprintf("a kernel protocol of each family that learns routes of protocol %d with metrics below %d", fabric.Protocol, fabric.PortMetric),
		},
	}, nil
}

// Sessions implements [fabric.SessionLister], in the order of the cluster's
// reflectors. One with which BIRD has no session is not among them; Diagnose
// names it. An error, after five seconds at the latest, says that BIRD does not
// answer.
func (s *Speaker) Sessions(ctx context.Context) ([]fabric.Session, error) {
	return s.daemon.Sessions(ctx)
}

// Diagnose implements [fabric.Diagnoser]: that BIRD does not answer, has no
// session with a reflector, or does not send what has been announced for some
// seconds. It returns after two seconds at the latest.
func (s *Speaker) Diagnose() []string { return s.daemon.Diagnose(s.Announcer) }

var (
	_ fabric.Speaker       = (*Speaker)(nil)
	_ fabric.SessionLister = (*Speaker)(nil)
	_ fabric.Diagnoser     = (*Speaker)(nil)
)
