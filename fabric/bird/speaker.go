package bird

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

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

type options struct {
	announcer []kernel.AnnouncerOption
	log       *slog.Logger
}

// WithLogger sets where the speaker logs; it is silent without.
func WithLogger(l *slog.Logger) Option {
	return func(o *options) { o.announcer, o.log = append(o.announcer, kernel.WithAnnouncerLogger(l)), l }
}

// Speaker announces through the kernel and BIRD. Its announcements are a
// [kernel.Announcer]'s, with the laws of that: they need no BIRD, and wait for
// one that is down.
type Speaker struct {
	*kernel.Announcer
	daemon    peering.Daemon
	unfollow  context.CancelFunc
	following sync.WaitGroup
}

// New takes up the announcements that are in the kernel of this network
// namespace. BIRD need not run.
func New(cfg Config, opts ...Option) (*Speaker, error) {
	o := options{log: slog.New(slog.DiscardHandler)}
	for _, opt := range opts {
		opt(&o)
	}
	a, err := kernel.NewAnnouncer(o.announcer...)
	if err != nil {
		return nil, fmt.Errorf("bird: %w", err)
	}
	j := &journal{client: Client{Socket: cfg.Socket}, log: o.log, last: map[string]*fabric.Notification{}}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Speaker{
		Announcer: a, unfollow: cancel,
		daemon: peering.Daemon{
			Name: fabric.SpeakerBIRD, Node: cfg.Node.Name, Cluster: cfg.Cluster, Ask: j.sessions, Sent: j.client.sent,
			Learns: fmt.Sprintf("a kernel protocol of each family that learns routes of protocol %d with metrics below %d", fabric.Protocol, fabric.PortMetric),
		},
	}
	s.following.Go(func() { j.follow(ctx) })
	return s, nil
}

// Close ends what [New] began. What is announced stays.
func (s *Speaker) Close() error {
	s.unfollow()
	s.following.Wait()
	return s.Announcer.Close()
}

// Sessions implements [fabric.Speaker], in the order of the cluster's
// reflectors. One with which BIRD has no session is not among them; Diagnose
// names it. An error, after five seconds at the latest, says that BIRD does not
// answer.
func (s *Speaker) Sessions(ctx context.Context) ([]fabric.Session, error) {
	return s.daemon.Sessions(ctx)
}

// Advertisements implements [fabric.Speaker] with BIRD's own word. An
// error, after five seconds at the latest, says that BIRD does not answer.
func (s *Speaker) Advertisements(ctx context.Context, prefix netip.Prefix) ([]fabric.Advertisement, error) {
	return s.daemon.Advertisements(ctx, prefix)
}

// Rivals implements [fabric.Speaker]: the daemon's routes of other nodes are not
// followed, so there are none.
func (*Speaker) Rivals() <-chan fabric.Rival { return nil }

// Diagnose implements [fabric.Diagnoser]: that BIRD does not answer, has no
// session with a reflector, or does not send what has been announced for some
// seconds. It returns after two seconds at the latest.
func (s *Speaker) Diagnose() []string { return s.daemon.Diagnose(s.Announcer) }

var (
	_ fabric.Speaker   = (*Speaker)(nil)
	_ fabric.Diagnoser = (*Speaker)(nil)
)
