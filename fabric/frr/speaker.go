package frr

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/peering"
	"github.com/vmfabric/vmfabric/fabric/kernel"
)

// Config is what a [Speaker] cannot do without.
type Config struct {
	Cluster fabric.Cluster
	Node    fabric.Node
	Client  Client // how FRR is asked
}

// Option changes a [Speaker] at its making.
type Option func(*options)

type options struct{ announcer []kernel.AnnouncerOption }

// WithLogger sets where the speaker logs; it is silent without.
func WithLogger(l *slog.Logger) Option {
	return func(o *options) { o.announcer = append(o.announcer, kernel.WithAnnouncerLogger(l)) }
}

// Speaker announces through the kernel and FRR. Its announcements are a
// [kernel.Announcer]'s, with the laws of that: they need no FRR, and wait for
// one that is down.
type Speaker struct {
	*kernel.Announcer
	daemon peering.Daemon
}

// New takes up the announcements that are in the kernel of this network
// namespace. FRR need not run.
func New(cfg Config, opts ...Option) (*Speaker, error) {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	a, err := kernel.NewAnnouncer(o.announcer...)
	if err != nil {
		return nil, fmt.Errorf("frr: %w", err)
	}
	return &Speaker{
		Announcer: a,
		daemon: peering.Daemon{
			Name: fabric.SpeakerFRR, Node: cfg.Node.Name, Cluster: cfg.Cluster, Ask: cfg.Client.Sessions, Sent: cfg.Client.sent,
			Learns: fmt.Sprintf("redistribute kernel in each family, with a route map that takes metrics below %d", fabric.PortMetric),
		},
	}, nil
}

// Sessions implements [fabric.Speaker], in the order of the cluster's
// reflectors. One with which FRR has no session is not among them; Diagnose
// names it. An error, after five seconds at the latest, says that FRR does not
// answer.
func (s *Speaker) Sessions(ctx context.Context) ([]fabric.Session, error) {
	return s.daemon.Sessions(ctx)
}

// Advertisements implements [fabric.Speaker] with FRR's own word. An
// error, after five seconds at the latest, says that FRR does not answer.
func (s *Speaker) Advertisements(ctx context.Context, prefix netip.Prefix) ([]fabric.Advertisement, error) {
	return s.daemon.Advertisements(ctx, prefix)
}

// Rivals implements [fabric.Speaker]: the daemon's routes of other nodes are not
// followed, so there are none.
func (*Speaker) Rivals() <-chan fabric.Rival { return nil }

// Diagnose implements [fabric.Diagnoser]: that FRR does not answer, has no
// session with a reflector, or does not send what has been announced for some
// seconds. It returns after two seconds at the latest.
func (s *Speaker) Diagnose() []string { return s.daemon.Diagnose(s.Announcer) }

var (
	_ fabric.Speaker   = (*Speaker)(nil)
	_ fabric.Diagnoser = (*Speaker)(nil)
)
