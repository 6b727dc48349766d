package libvirt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
	"golang.org/x/sync/errgroup"

	"github.com/vmfabric/vmfabric/fabric/internal/hypervisor"
)

// libvirtd serves five calls of one connection at a time (max_client_requests)
// and then stops reading from it. A call about a domain blocks while a hook of
// that domain runs, for as long as that takes; listing the domains blocks
// while any hook runs. So some calls may block, and one is always left for the
// ping that tells a busy libvirtd from a dead one.
const (
	domainSlots = 3
	listSlots   = 1
)

var errHooks = errors.New("hooks of several domains hold it up")

// conn is a connection to libvirtd. Calls on it have no timeout of their own:
// closing it ends them. A call that is given up goes on at libvirtd, where it
// holds one of the 20 workers that serve everybody, so giving up and asking
// again would make a slow libvirtd a dead one; a conn waits instead, and asks
// nothing twice.
type conn struct {
	lv    *golibvirt.Libvirt
	raw   *watchedConn
	path  string
	gone  <-chan struct{} // closed when the connection is
	lists chan struct{}
	heard func(golibvirt.DomainEventLifecycleMsg)
	reads *hypervisor.Reads[golibvirt.UUID, news]
	wg    sync.WaitGroup // of every goroutine that uses the conn

	version atomic.Uint64 // of libvirt: 9,000,000 is 9.0.0; zero: not known yet

	mu     sync.Mutex
	why    error // that it was dropped
	closed bool
	listed time.Time // when the list was asked for that is not there yet; or zero
}

// connect opens a connection.
func (s *Source) connect(ctx context.Context, path string) (*conn, error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, reason(err)
	}
	watched := &watchedConn{Conn: raw, gone: make(chan struct{})}
	c := &conn{
		lv: golibvirt.NewWithDialer(dialers.NewAlreadyConnected(watched)), raw: watched, path: path, gone: watched.gone,
		lists: make(chan struct{}, listSlots),
	}
	c.heard = func(e golibvirt.DomainEventLifecycleMsg) { s.hear(c, e) }
	c.reads = hypervisor.NewReads(hypervisor.Limits{Parallel: domainSlots, Patience: s.daemon.Times.Call, Stuck: errHooks},
		func(ctx context.Context, _ golibvirt.UUID, n news) { s.read(ctx, c, n) }, merge)
	if err := c.call(ctx, c.lv.Connect); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// call runs f until ctx ends or the connection goes. An f that was not waited
// for goes on until the connection is closed.
func (c *conn) call(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	if !c.start(func() { done <- f() }) {
		return c.reason()
	}
	select {
	case err := <-done:
		return err
	case <-c.gone:
		return c.reason()
	case <-ctx.Done():
		return ended(ctx)
	}
}

// ended is why ctx did.
func ended(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return hypervisor.ErrTimeout
	}
	return ctx.Err()
}

// start runs f in a goroutine that Close waits for; not after Close.
func (c *conn) start(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wg.Go(f)
	return true
}

// drop cuts the connection. Whoever uses it gets why for an error.
func (c *conn) drop(why error) {
	c.mu.Lock()
	if c.why == nil {
		c.why = why
	}
	c.mu.Unlock()
	c.raw.Close()
}

// Close ends the connection and all that goes on over it.
func (c *conn) Close() {
	c.drop(net.ErrClosed)
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.wg.Wait()
}

// reason tells why the connection is gone.
func (c *conn) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why != nil {
		return c.why
	}
	return errors.New("it closed the connection")
}

// acquire takes a slot and gives the function that frees it.
func (c *conn) acquire(ctx context.Context, slots chan struct{}) (release func(), err error) {
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-c.gone:
		return nil, c.reason()
	case <-ctx.Done():
		return nil, ended(ctx)
	}
}

// listing notes since when a list is waited for.
func (c *conn) listing(since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listed = since
}

// diagnose tells what was asked longer ago than patience.
func (c *conn) diagnose(patience time.Duration) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var problems []string
	late := func(asked time.Time, what, whose string) {
		problems = append(problems, fmt.Sprintf(
			"libvirt: no answer about %s since %s; look for a hook %sthat hangs", what, asked.Format(time.TimeOnly), whose))
	}
	if !c.listed.IsZero() && time.Since(c.listed) > patience {
		late(c.listed, "all domains", "")
	}
	c.reads.Late(patience, func(n news, asked time.Time) { late(asked, "domain "+n.dom.Name, "of it ") })
	slices.Sort(problems)
	return problems
}

// Subscribe passes the lifecycle events to heard, one after the other. They
// come as long as the connection lasts, and not only as long as ctx.
func (c *conn) Subscribe(ctx context.Context) error {
	return c.call(ctx, func() error {
		events, err := c.lv.LifecycleEvents(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		pump := func() {
			for e := range events {
				c.heard(e)
			}
		}
		if !c.start(pump) {
			pump() // nobody waits any more; the channel is closed soon
		}
		return nil
	})
}

// Run reads the domains that events are about.
func (c *conn) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		err := c.reads.Run(ctx)
		if errors.Is(err, errHooks) {
			// As many domains as there are slots hang in their hooks. Others
			// must not wait for that.
			c.drop(err)
		}
		return err
	})
	group.Go(func() error {
		select {
		case <-c.gone:
			return c.reason()
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return group.Wait()
}

// Ping asks for what any libvirtd that is alive answers.
func (c *conn) Ping(ctx context.Context) error {
	return c.call(ctx, func() error {
		version, err := c.lv.ConnectGetLibVersion()
		c.version.Store(version)
		return err
	})
}

// watchedConn closes gone when the connection cannot be read any more. The
// library's own signal of that is not reliable while it connects.
type watchedConn struct {
	net.Conn
	gone chan struct{}
	once sync.Once
}

func (w *watchedConn) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if err != nil {
		w.once.Do(func() { close(w.gone) })
	}
	return n, err
}

func (w *watchedConn) Close() error {
	w.once.Do(func() { close(w.gone) })
	return w.Conn.Close()
}

// reason shortens an error of dial to what its reader does not know yet.
func reason(err error) error {
	var errno syscall.Errno
	var op *net.OpError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return hypervisor.ErrTimeout
	case errors.As(err, &errno):
		return fmt.Errorf("connect: %w", errno)
	case errors.As(err, &op):
		return fmt.Errorf("connect: %w", op.Err)
	}
	return err
}

// isNoDomain reports that libvirt does not know the domain (any more).
func isNoDomain(err error) bool { return err != nil && golibvirt.IsNotFound(err) }
