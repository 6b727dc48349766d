package lxd

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/coder/websocket"
	"golang.org/x/sync/errgroup"

	"github.com/vmfabric/vmfabric/fabric/internal/hypervisor"
)

const (
	slots = 4 // requests about single instances at the same time
	// maxWaiting is how many instances may have unread news; a list costs less than
	// more single reads.
	maxWaiting = 64
)

// conn is a client of a running daemon, and a subscription to its events.
type conn struct {
	*client
	ws    *websocket.Conn // nil: not subscribed
	heard func(message []byte)
	reads *hypervisor.Reads[key, deleted]

	mu    sync.Mutex
	about server
}

// connect connects to the daemon behind a socket and reads its description. A
// daemon that was never used counts as absent, and one of the other product is refused.
func (s *Source) connect(ctx context.Context, socket string) (*conn, error) {
	if _, err := os.Stat(filepath.Join(filepath.Dir(socket), s.ran)); !s.given && errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	c := &conn{client: newClient(s.dialect, socket)}
	c.heard = func(message []byte) { s.hear(c, message) }
	c.reads = hypervisor.NewReads(hypervisor.Limits{Parallel: slots, Waiting: maxWaiting},
		func(ctx context.Context, k key, gone deleted) { s.follow(ctx, c, k, gone) },
		func(older, newer deleted) deleted { return slices.Concat(older, newer) })
	about, err := c.ask(ctx)
	if is := about.Environment.Product; err == nil && is != "" && is != s.name {
		// The hook names the daemon's own source, and a daemon with two sources would
		// have each guest twice.
		err = &otherProduct{is}
	}
	return c, err
}

// otherProduct is the error that the socket of a source is the other product's.
type otherProduct struct{ name string }

func (e *otherProduct) Error() string { return "it is " + e.name + "'s" }

// Subscribe opens a connection for events.
func (c *conn) Subscribe(ctx context.Context) (err error) {
	c.ws, err = c.events(ctx, c.about)
	return err
}

// Run handles the events, and reads the instances that they are about.
func (c *conn) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.reads.Run(ctx) })
	group.Go(func() error {
		for {
			_, message, err := c.ws.Read(ctx)
			if err != nil {
				return reason(err)
			}
			c.heard(message)
		}
	})
	return group.Wait()
}

// Ping asks over the connection of the events: the daemon answers only if it sends
// events, too.
func (c *conn) Ping(ctx context.Context) error {
	return reason(c.ws.Ping(ctx))
}

// Close ends the subscription.
func (c *conn) Close() {
	if c.ws != nil {
		c.ws.CloseNow()
	}
}

// request requests a read of an instance, and reports whether there was room for
// it. gone are instances that were deleted under its name.
func (c *conn) request(k key, gone deleted) bool { return c.reads.Request(k, gone) }

// holds reports whether an instance or an event is of this member.
func (c *conn) holds(location string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.about.holds(location)
}

// ask reads the daemon's description of itself again.
func (c *conn) ask(ctx context.Context) (server, error) {
	about, err := c.server(ctx)
	if err == nil {
		c.mu.Lock()
		c.about = about
		c.mu.Unlock()
	}
	return about, err
}
