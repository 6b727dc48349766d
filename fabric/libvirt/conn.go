package libvirt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
	"golang.org/x/sync/errgroup"

	"github.com/vmfabric/vmfabric/fabric/internal/hypervisor"
)

// libvirtd serves five calls of one connection at a time (max_client_requests) and
// then stops reading from it. A call about a domain blocks while a hook of that
// domain runs; listing the domains blocks while any hook runs. So the source bounds
// the calls that may block, and one of the five stays free for the ping that tells
// a busy libvirtd from a dead one.
const (
	domainSlots = 3
	listSlots   = 1
)

var errHooks = errors.New("hooks of several domains hold it up")

// conn is a connection to libvirtd. Calls on it have no timeout of their own:
// closing it ends them. A call whose caller gives up goes on at libvirtd, where it
// holds one of the 20 workers for all connections. To give up and ask again would
// occupy more of them, so a conn waits and asks nothing twice.
type conn struct {
	lv    *golibvirt.Libvirt
	raw   *watchedConn
	path  string
	lists chan struct{}
	reads *hypervisor.Reads[golibvirt.UUID, news]
	wg    sync.WaitGroup // every goroutine that uses the conn

	events <-chan golibvirt.DomainEventLifecycleMsg // nil: not subscribed
	heard  func(golibvirt.DomainEventLifecycleMsg)

	version atomic.Uint64 // libvirt's version; 9,000,000 is 9.0.0; zero: not known yet

	mu     sync.Mutex
	closed bool
	asked  map[*question]time.Time // the questions without an answer yet
}

// question is the subject of a call, in words for people.
type question struct {
	about string // such as "all domains"; empty: do not report that it takes long
	whose string // "of it ": the hooks of this domain may hold the call up
}

// connect opens a connection.
func (s *Source) connect(ctx context.Context, path string) (*conn, error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, hypervisor.Reason(err)
	}
	watched := &watchedConn{Conn: raw, gone: make(chan struct{})}
	c := &conn{
		lv: golibvirt.NewWithDialer(dialers.NewAlreadyConnected(watched)), raw: watched, path: path,
		lists: make(chan struct{}, listSlots), asked: map[*question]time.Time{},
	}
	c.heard = func(e golibvirt.DomainEventLifecycleMsg) { s.hear(c, e) }
	c.reads = hypervisor.NewReads(hypervisor.Limits{Parallel: domainSlots, Patience: s.daemon.Times.Call, Stuck: errHooks},
		func(ctx context.Context, _ golibvirt.UUID, n news) { s.read(ctx, c, n) }, merge)
	if err := c.call(ctx, question{}, c.lv.Connect); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// call runs f until ctx ends or the connection goes. f may go on after that, until
// the connection is closed; Close waits for it.
func (c *conn) call(ctx context.Context, q question, f func() error) error {
	done := make(chan error, 1)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return c.raw.why
	}
	c.asked[&q] = time.Now()
	c.wg.Go(func() {
		err := f()
		c.mu.Lock()
		delete(c.asked, &q)
		c.mu.Unlock()
		done <- err
	})
	c.mu.Unlock()
	select {
	case err := <-done:
		return err
	case <-c.raw.gone:
		return c.raw.why
	case <-ctx.Done():
		return hypervisor.Reason(ctx.Err())
	}
}

// Close ends the connection and all calls on it.
func (c *conn) Close() {
	c.raw.Close()
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.wg.Wait()
	if c.events != nil {
		for range c.events { // the library's goroutine blocks until they are taken
		}
	}
}

// diagnose reports the questions that are older than patience.
func (c *conn) diagnose(patience time.Duration) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var problems []string
	for q, asked := range c.asked {
		if q.about != "" && time.Since(asked) > patience {
			problems = append(problems, fmt.Sprintf(
				"libvirt: no answer about %s since %s; look for a hook %sthat hangs", q.about, asked.Format(time.TimeOnly), q.whose))
		}
	}
	slices.Sort(problems)
	return problems
}

// Subscribe asks for lifecycle events. They come until the connection ends, even if
// ctx ends before.
func (c *conn) Subscribe(ctx context.Context) error {
	return c.call(ctx, question{}, func() (err error) {
		c.events, err = c.lv.LifecycleEvents(context.WithoutCancel(ctx))
		return err
	})
}

// Run passes the events to heard, one after the other, and reads the domains that
// they are about.
func (c *conn) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		err := c.reads.Run(ctx)
		if errors.Is(err, errHooks) {
			// As many domains as there are slots hang in their hooks, and others
			// must not wait for that.
			c.raw.end(err)
		}
		return err
	})
	group.Go(func() error {
		for {
			select {
			case e, some := <-c.events:
				if !some {
					c.raw.end(hypervisor.ErrClosed)
					return c.raw.why
				}
				c.heard(e)
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	return group.Wait()
}

// Ping makes a call that every libvirtd answers if it works.
func (c *conn) Ping(ctx context.Context) error {
	return c.call(ctx, question{}, func() error {
		version, err := c.lv.ConnectGetLibVersion()
		c.version.Store(version)
		return err
	})
}

// watchedConn closes gone when the connection cannot be read any more. The
// library's own signal of that is not reliable while it connects.
type watchedConn struct {
	net.Conn
	once sync.Once
	gone chan struct{}
	why  error // set before gone is closed
}

// end notes why the connection ends, unless it has ended.
func (w *watchedConn) end(why error) {
	w.once.Do(func() {
		w.why = why
		close(w.gone)
		w.Conn.Close()
	})
}

func (w *watchedConn) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if err != nil {
		w.end(hypervisor.ErrClosed)
	}
	return n, err
}

func (w *watchedConn) Close() error {
	w.end(net.ErrClosed)
	return nil
}

// isNoDomain reports that libvirt does not know the domain, or no longer does.
func isNoDomain(err error) bool { return err != nil && golibvirt.IsNotFound(err) }
