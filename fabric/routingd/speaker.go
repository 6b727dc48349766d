package routingd

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
)

// Client asks a routing daemon. Its methods are safe for concurrent use, and
// return when ctx ends.
type Client interface {
	// Sessions lists the daemon's BGP sessions, with Peer as the daemon has it.
	Sessions(ctx context.Context) ([]fabric.Session, error)
	// Sent reports whether a prefix was sent on one of those.
	Sent(ctx context.Context, s fabric.Session, prefix netip.Prefix) (bool, error)
}

// Config is what a [Speaker] needs; all but Follow is required.
type Config struct {
	Cluster fabric.Cluster
	Node    fabric.Node
	Name    string // of the daemon, as errors have it
	Learns  string // what must be in its configuration for it to take routes up
	Client  Client
	// Follow hands on the NOTIFICATIONs of the daemon's sessions as they come or
	// go, with the sessions' Peer, until ctx ends or the daemon does. It is nil
	// for a daemon whose sessions say which was the last.
	Follow func(ctx context.Context, heard func(peer string, n *fabric.Notification)) error
}

// Option changes a [Speaker] at its making.
type Option func(*options)

type options struct {
	announcer []kernel.AnnouncerOption
	log       *slog.Logger
	printed   string
}

// WithPrinted says by which command people have the configuration printed that the
// daemon of this node is to have; what they are told ends with it then.
func WithPrinted(command string) Option { return func(o *options) { o.printed = command } }

// WithLogger sets where the speaker logs; it is silent without.
func WithLogger(l *slog.Logger) Option {
	return func(o *options) { o.announcer, o.log = append(o.announcer, kernel.WithAnnouncerLogger(l)), l }
}

// Speaker announces through the kernel and a routing daemon. Its announcements
// are a [kernel.Announcer]'s, with the laws of that: they need no daemon, and
// wait for one that is down. Close ends the announcer; what is announced stays.
type Speaker struct {
	*kernel.Announcer
	cfg     Config
	log     *slog.Logger
	printed string // see [WithPrinted]
	last    notifications
}

// New takes up the announcements that are in the kernel of this network
// namespace. The daemon need not run.
func New(cfg Config, opts ...Option) (*Speaker, error) {
	o := options{log: slog.New(slog.DiscardHandler)}
	for _, opt := range opts {
		opt(&o)
	}
	a, err := kernel.NewAnnouncer(o.announcer...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.Name, err)
	}
	return &Speaker{Announcer: a, cfg: cfg, log: o.log, printed: o.printed}, nil
}

// Competitors implements [fabric.Speaker]: the routes that the daemon hears of other
// nodes are not followed, so there are none.
func (*Speaker) Competitors() <-chan fabric.Competitor { return nil }

var (
	_ fabric.Speaker   = (*Speaker)(nil)
	_ fabric.Diagnoser = (*Speaker)(nil)
)
