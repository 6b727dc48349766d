package routingd

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
)

// Client asks a routing daemon. Its methods are safe for concurrent use, and return
// when ctx ends.
type Client interface {
	// Sessions lists the daemon's BGP sessions; Peer is the daemon's name for each.
	Sessions(ctx context.Context) ([]fabric.Session, error)
	// Sent reports whether the daemon has sent a prefix on one of these sessions.
	Sent(ctx context.Context, s fabric.Session, prefix netip.Prefix) (bool, error)
	// Received gives the next hops of the routes to a prefix that the daemon has
	// received on one of these sessions and has kept, used or not.
	Received(ctx context.Context, s fabric.Session, prefix netip.Prefix) ([]netip.Addr, error)
}

// Config has what a [Speaker] needs. Only Follow may be nil.
type Config struct {
	Cluster fabric.Cluster
	Node    fabric.Node
	Name    string // the daemon's name in errors
	Learns  string // the part of its configuration with which it takes routes up
	Client  Client
	// Follow passes on the NOTIFICATIONs that the daemon receives and sends, with
	// the Peer of their session, until ctx or the daemon ends. It is nil if the
	// daemon's sessions have their last one.
	Follow func(ctx context.Context, heard func(peer string, n *fabric.Notification)) error
}

// Option changes a [Speaker] at its making.
type Option func(*options)

type options struct {
	announcer []kernel.AnnouncerOption
	log       *slog.Logger
	printed   string
}

// WithPrinted sets the command that prints the configuration of this node's daemon.
// The errors for people then end with it.
func WithPrinted(command string) Option { return func(o *options) { o.printed = command } }

// WithLogger sets the speaker's logger; without it the speaker logs nothing.
func WithLogger(l *slog.Logger) Option {
	return func(o *options) { o.announcer, o.log = append(o.announcer, kernel.WithAnnouncerLogger(l)), l }
}

// Speaker announces through the kernel and a routing daemon. Its announcements are
// those of a [kernel.Announcer]: they need no running daemon, and a daemon that
// starts later takes them up. Close ends Run; the announcements stay.
type Speaker struct {
	*kernel.Announcer
	cfg     Config
	log     *slog.Logger
	printed string // see [WithPrinted]
	last    notifications
}

// New takes up the announcements that are in the kernel of this network namespace.
// The daemon need not run.
func New(ctx context.Context, cfg Config, opts ...Option) (*Speaker, error) {
	o := options{log: slog.New(slog.DiscardHandler)}
	for _, opt := range opts {
		opt(&o)
	}
	a, err := kernel.NewAnnouncer(ctx, o.announcer...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.Name, err)
	}
	return &Speaker{Announcer: a, cfg: cfg, log: o.log, printed: o.printed}, nil
}

// Competitors implements [fabric.Speaker]: it has none, because the speaker does
// not follow the daemon's routes of other nodes.
func (*Speaker) Competitors() <-chan fabric.Competitor { return nil }

var (
	_ fabric.Speaker   = (*Speaker)(nil)
	_ fabric.Diagnoser = (*Speaker)(nil)
)
