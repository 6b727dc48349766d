package kernel

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"

	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
)

// Netlink follows the changes in a network namespace. A [Dataplane], a [FIB] and an
// [Announcer] that get the same one share a subscription to rtnetlink(7), and see
// changes in the same order. Close them before it.
type Netlink struct{ feed *rtnl.Feed }

// Open subscribes to the changes in the namespace of the calling thread. It logs errors
// to log, if that is not nil.
func Open(log *slog.Logger) (*Netlink, error) {
	feed, err := rtnl.Open(cmp.Or(log, slog.New(slog.DiscardHandler)))
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	return &Netlink{feed}, nil
}

// Run tells those that share the subscription of changes as they come, until ctx ends,
// and returns nil then. Without it they learn of changes when they are asked.
func (n *Netlink) Run(ctx context.Context) error { return n.feed.Run(ctx) }

// Close ends the subscription, and Run.
func (n *Netlink) Close() error { return n.feed.Close() }

// following is the feed of a view, which it shares or owns.
type following struct {
	*rtnl.Feed
	own bool
}

func connect(n *Netlink, log *slog.Logger) (following, error) {
	if n != nil {
		return following{n.feed, false}, nil
	}
	feed, err := rtnl.Open(log)
	return following{feed, true}, err
}

// run runs the feed if the view owns it.
func (f following) run(ctx context.Context) {
	if f.own {
		_ = f.Run(ctx) // nil
	}
}

// end closes the feed if the view owns it.
func (f following) end() error {
	if !f.own {
		return nil
	}
	return f.Close()
}
