package kernel

import (
	"cmp"
	"fmt"
	"log/slog"

	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
)

// Netlink follows what changes in the kernel of a network namespace, for the
// [Dataplane], the [FIB] and the [Announcer] that are given it: they share one
// subscription to rtnetlink(7), and see what happens in the same order. Close
// them before it.
type Netlink struct{ feed *rtnl.Feed }

// Open begins to follow, in the namespace of the calling thread. It logs what
// goes wrong; nil: it is silent.
func Open(log *slog.Logger) (*Netlink, error) {
	feed, err := rtnl.Open(cmp.Or(log, slog.New(slog.DiscardHandler)))
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	return &Netlink{feed}, nil
}

// Close ends the following.
func (n *Netlink) Close() error { return n.feed.Close() }

// following is how a view follows: with others, or on its own.
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

// end closes what is nobody else's.
func (f following) end() error {
	if !f.own {
		return nil
	}
	return f.Close()
}
