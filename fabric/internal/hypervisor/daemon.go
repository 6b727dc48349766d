// Package hypervisor has what every source of a hypervisor's guests needs: a
// connection to the hypervisor's daemon that is made again when it is lost
// ([Daemon]), at most one read at a time of each guest with news ([Reads]), and the
// queue of changes that the agent takes ([Queue]).
//
// It does not know what a daemon's states, events and answers mean: a source adapts
// its hypervisor to this package.
package hypervisor

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/backoff"
)

// Connection is a connection to a hypervisor's daemon.
type Connection interface {
	// Subscribe asks the daemon for events.
	Subscribe(ctx context.Context) error
	// Run handles the events until ctx ends or the connection is lost, and returns
	// why. The connection must be subscribed.
	Run(ctx context.Context) error
	// Ping returns nil if the daemon answers. Daemon calls it while Run runs.
	Ping(ctx context.Context) error
	// Close ends the connection, and returns when nothing uses it any more.
	Close()
}

// Times bounds how long things may take.
type Times struct {
	Call     time.Duration // a call about one guest, or none
	Ping     time.Duration // between two pings
	RetryMin time.Duration // between attempts to connect, at first
	RetryMax time.Duration
}

// Config describes a daemon and what the source does about it.
type Config[C Connection] struct {
	Name    string // of the source
	Sockets []string
	Logger  *slog.Logger
	Queue   *Queue
	// Dial connects. Its error is the reason alone, and [fs.ErrNotExist] if there
	// is no daemon.
	Dial func(ctx context.Context, socket string) (C, error)
	// Unreachable makes an error of a reason.
	Unreachable func(socket string, err error) *Unreachable
	// Connected is called with a new connection, before any other part gets it.
	Connected func(C)
	// Alive is called after each ping but the first of a connection. It may be nil.
	Alive func()
}

// Daemon is a hypervisor's daemon on this node. All methods are safe for
// concurrent use; neither Config nor Times may change after the first call.
type Daemon[C Connection] struct {
	Config[C]
	Times Times

	mu          sync.Mutex
	conn        C
	connected   bool
	since       time.Time // of the connection, or since when there is none
	lastEvent   time.Time
	served      string // the socket of the last connection; empty: there was none
	unreachable string // the condition; empty while there is a connection
}

// NewDaemon makes a daemon, which does not connect before Run or Borrow.
func NewDaemon[C Connection](cfg Config[C]) *Daemon[C] {
	times := Times{Call: 10 * time.Second, Ping: 5 * time.Second, RetryMin: 500 * time.Millisecond, RetryMax: 5 * time.Second}
	return &Daemon[C]{Config: cfg, Times: times, since: time.Now()}
}

// Run delivers the queue, connects, and connects again whenever the connection is
// lost, until ctx ends; then it returns nil. If there never was a daemon, Run waits
// for it without a warning. The parts run beside it, and end with ctx too. Call it
// once.
func (d *Daemon[C]) Run(ctx context.Context, parts ...func(context.Context) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, part := range append(parts, d.Queue.Run, d.keepConnected) {
		group.Go(func() error { return part(ctx) })
	}
	return group.Wait()
}

func (d *Daemon[C]) keepConnected(ctx context.Context) error {
	retry := backoff.Backoff{First: d.Times.RetryMin, Most: d.Times.RetryMax}
	for {
		why := d.follow(ctx, &retry)
		if ctx.Err() != nil {
			return nil
		}
		d.setUnreachable(why)
		retry.Wait(ctx)
	}
}

// follow connects and handles the events until the connection is lost.
func (d *Daemon[C]) follow(ctx context.Context, retry *backoff.Backoff) *Unreachable {
	c, socket, why := d.dial(ctx)
	if why != nil {
		return why
	}
	defer c.Close()
	subscribing, cancel := context.WithTimeout(ctx, d.Times.Call)
	defer cancel()
	if err := c.Subscribe(subscribing); err != nil {
		return d.Unreachable(socket, err)
	}
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { return c.Run(running) })
	group.Go(func() error {
		if err := d.ping(running, c); err != nil {
			return err
		}
		retry.Reset()
		d.attach(c, socket)
		defer d.detach()
		return d.watch(running, c)
	})
	return d.Unreachable(socket, group.Wait())
}

// watch pings the daemon until it does not answer, and returns why.
func (d *Daemon[C]) watch(ctx context.Context, c C) error {
	ticker := time.NewTicker(d.Times.Ping)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		if err := d.ping(ctx, c); err != nil {
			return err
		}
		if d.Alive != nil {
			d.Alive()
		}
	}
}

func (d *Daemon[C]) ping(ctx context.Context, c C) error {
	ctx, cancel := context.WithTimeout(ctx, d.Times.Call)
	defer cancel()
	return c.Ping(ctx)
}

// dial connects to the first socket that answers.
func (d *Daemon[C]) dial(ctx context.Context) (c C, socket string, why *Unreachable) {
	for _, socket = range d.Sockets {
		dialing, cancel := context.WithTimeout(ctx, d.Times.Call)
		c, err := d.Dial(dialing, socket)
		cancel()
		if err == nil {
			return c, socket, nil
		}
		if why == nil && !errors.Is(err, fs.ErrNotExist) {
			why = d.Unreachable(socket, err)
		}
	}
	if why == nil {
		// The one that served is away, not another that never was.
		why = d.Unreachable(cmp.Or(d.lastServed(), socket), fs.ErrNotExist)
	}
	return c, "", why
}

// lastServed gives the socket of the last connection; empty: there was none.
func (d *Daemon[C]) lastServed() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.served
}

// attach gives the connection to all parts, and makes the agent list the guests:
// events come only from here on.
func (d *Daemon[C]) attach(c C, socket string) {
	d.Connected(c)
	d.mu.Lock()
	d.conn, d.connected, d.since, d.unreachable, d.served = c, true, time.Now(), "", socket
	d.mu.Unlock()
	d.Logger.Info(d.Name+" connected", "socket", socket)
	d.Queue.PutLost()
}

func (d *Daemon[C]) detach() {
	var none C
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conn, d.connected, d.since = none, false, time.Now()
}

// setUnreachable sets the condition that the daemon is unreachable, unless there
// never was one.
func (d *Daemon[C]) setUnreachable(why *Unreachable) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, stat := os.Stat(why.Socket); d.served == "" && errors.Is(stat, fs.ErrNotExist) {
		d.unreachable = ""
		return
	}
	if d.unreachable == "" {
		d.Logger.Warn(d.Name+" does not answer", "err", why)
	}
	d.unreachable = why.since(" since " + d.since.Format(time.TimeOnly))
}

// Conn returns the connection of Run, if there is one.
func (d *Daemon[C]) Conn() (c C, connected bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.conn, d.connected
}

// Borrow returns the connection of Run, or else a new one for the caller, without
// events. Call release after use.
func (d *Daemon[C]) Borrow(ctx context.Context) (c C, release func(), err error) {
	if c, connected := d.Conn(); connected {
		return c, func() {}, nil
	}
	c, _, why := d.dial(ctx)
	if why != nil {
		return c, nil, why
	}
	return c, c.Close, nil
}

// Heard notes the time of an event.
func (d *Daemon[C]) Heard() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lastEvent = time.Now()
}

// Condition says that the daemon is unreachable, since when, and the way out. It is
// empty while there is a connection, and if there never was a daemon.
func (d *Daemon[C]) Condition() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.unreachable
}

// Status returns the status of a source with a number of guests.
func (d *Daemon[C]) Status(guests int) fabric.SourceStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	return fabric.SourceStatus{Name: d.Name, Connected: d.connected, Since: d.since, LastEvent: d.lastEvent, Guests: guests}
}
