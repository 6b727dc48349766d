package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/mdlayher/netlink"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
	"github.com/vmfabric/vmfabric/internal/backoff"
	"github.com/vmfabric/vmfabric/internal/signal"
)

// FIBConfig defines which routes are those of a [FIB].
type FIBConfig struct {
	// Protocol marks the FIB's routes (rtm_protocol, rtnetlink(7)): all routes of
	// this protocol in the main table are the FIB's, and no others.
	Protocol uint8
	Metric   uint32 // of every route (RTA_PRIORITY); not zero
	Logger   *slog.Logger
	// Netlink is shared with others that follow the kernel. If it is nil, the FIB
	// opens its own.
	Netlink *Netlink
}

// FIB is a part of the kernel's forwarding table: learned routes to prefixes
// through other routers of a common link. It brings the kernel in step with the
// routes that were put, in batches, and repairs what somebody else changes.
//
// The kernel refuses a next hop that is not a neighbour on a link of this machine.
// Otherwise a router in between might not know the prefix, and send the packet
// back. The packets then go where the kernel's other routes lead, and
// [FIB.Diagnose] says so. All methods are safe for concurrent use.
type FIB struct {
	cfg   FIBConfig
	log   *slog.Logger
	rtnl  *socket
	feed  following
	place *rtnl.Follower
	wake  signal.Signal
	life  *lifetime

	mu     sync.Mutex
	routes fibRoutes
}

// open locks the routes for the caller, until it calls done.
func (f *FIB) open() (r *fibRoutes, done func()) {
	f.mu.Lock()
	return &f.routes, f.mu.Unlock
}

const (
	// fibBatch is how many messages go out at once: their acknowledgements fit
	// a socket buffer of the default size.
	fibBatch = 100
	// fibRetry is the wait before the FIB tries refused routes again. It doubles up
	// to fibRetryMost, and begins anew when the routes are listed anew, as after a
	// change of a link.
	fibRetry     = time.Second
	fibRetryMost = 30 * time.Second
	// fibSettle is the wait for all notifications of a link's change.
	fibSettle = 50 * time.Millisecond
)

// NewFIB adopts the routes that are there already, and keeps them until
// [FIB.Settle]: the routes of an earlier process serve until they are learned
// again. [FIB.Run] does the work. It needs CAP_NET_ADMIN.
func NewFIB(ctx context.Context, cfg FIBConfig) (*FIB, error) {
	f := &FIB{cfg: cfg, log: cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler)), wake: signal.New(), life: newLifetime()}
	f.routes = newFIBRoutes(cfg.Protocol, cfg.Metric, f.wake)
	if err := f.connect(ctx); err != nil {
		return nil, fmt.Errorf("routes of protocol %d: %w", cfg.Protocol, err)
	}
	return f, nil
}

func (f *FIB) connect(ctx context.Context) (err error) {
	if f.rtnl, err = dial(); err != nil {
		return err
	}
	if f.feed, err = connect(f.cfg.Netlink, f.log); err != nil {
		return errors.Join(err, f.rtnl.Close())
	}
	if f.place, err = f.feed.Join(ctx, f, f.wants()); err != nil {
		return errors.Join(err, f.feed.end(), f.rtnl.Close())
	}
	return nil
}

func (f *FIB) wants() rtnl.Wants { return rtnl.Wants{Protocols: []uint8{f.cfg.Protocol}, Often: true} }

// Run keeps the kernel in step until ctx ends, or Close, and returns nil then.
func (f *FIB) Run(ctx context.Context) error {
	f.life.run(ctx, f.feed.run, f.work)
	return nil
}

// Put routes a prefix through the router at via, and replaces its former route. It
// returns at once; [FIB.Run] tells the kernel.
func (f *FIB) Put(p netip.Prefix, via netip.Addr) {
	r, done := f.open()
	defer done()
	r.put(p, via)
}

// Remove removes the route to a prefix, like Put. Absence is success.
func (f *FIB) Remove(p netip.Prefix) {
	r, done := f.open()
	defer done()
	r.remove(p)
}

// Settle ends the initial phase: the caller has put all routes that it has learned.
// The FIB then removes the routes of an earlier process that were not put again.
func (f *FIB) Settle() {
	r, done := f.open()
	defer done()
	r.settle()
}

// Diagnose implements [fabric.Diagnoser]: it names the routes that the kernel
// refuses.
func (f *FIB) Diagnose(context.Context) []string {
	r, done := f.open()
	defer done()
	return r.refusals()
}

// Close ends Run, and removes all routes of the FIB.
func (f *FIB) Close() error {
	r, done := f.open()
	closed := r.close()
	done()
	if closed {
		return nil
	}
	f.life.close()
	f.place.Leave()
	// List the routes once more: notifications do not come any more.
	l, err := f.feed.List(f.wants())
	r, done = f.open()
	r.drop()
	if err == nil {
		r.load(l.Routes[f.cfg.Protocol])
	}
	r.touchAll()
	done()
	for f.step() {
	}
	r, done = f.open()
	defer done()
	for p, refusal := range r.refused {
		err = errors.Join(err, fmt.Errorf("remove route %s: %w", p, refusal))
	}
	return errors.Join(err, f.feed.end(), f.rtnl.Close())
}

// work keeps the kernel in step until ctx ends.
func (f *FIB) work(ctx context.Context) {
	retry := fibRetry
	again := time.NewTimer(retry)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		case <-again.C:
			r, done := f.open()
			r.retry()
			done()
			retry = min(2*retry, fibRetryMost)
			again.Reset(retry)
		}
		if f.refresh(ctx) {
			retry = fibRetry
			again.Reset(retry)
		}
		for f.feed.CatchUp(ctx) == nil && f.step() {
		}
	}
}

// refresh lists the routes anew if they are stale, and reports whether they were.
func (f *FIB) refresh(ctx context.Context) bool {
	r, done := f.open()
	stale := r.stale
	r.stale = false
	done()
	if !stale {
		return false
	}
	if !backoff.Sleep(ctx, fibSettle) {
		return true
	}
	if err := f.place.Relist(ctx); err != nil && ctx.Err() == nil {
		f.log.Warn("list routes", "protocol", f.cfg.Protocol, "err", err)
	}
	return true
}

// Load implements [rtnl.View].
func (f *FIB) Load(l rtnl.Listing) {
	r, done := f.open()
	defer done()
	r.load(l.Routes[f.cfg.Protocol])
	r.touchAll()
}

// Apply implements [rtnl.View].
func (f *FIB) Apply(msgs []netlink.Message) {
	r, done := f.open()
	defer done()
	for _, m := range msgs {
		r.apply(m)
	}
}

// step sends a batch of changes to the kernel, and reports whether there may be
// more. One goroutine at a time calls it, when the routes are up to date.
func (f *FIB) step() bool {
	r, done := f.open()
	changes := r.differences()
	done()
	if len(changes) == 0 {
		return false
	}
	msgs := make([]netlink.Message, len(changes))
	for i, c := range changes {
		msgs[i] = c.message
	}
	errs, err := f.rtnl.Batch(msgs...)
	r, done = f.open()
	defer done()
	if err != nil {
		f.log.Warn("routes", "protocol", f.cfg.Protocol, "err", err)
		r.markStale()
		return false
	}
	for i, c := range changes {
		if r.note(c, errs[i]) {
			f.log.Warn("route refused", "prefix", c.prefix, "via", r.want[c.prefix], "err", errs[i])
		}
	}
	return true
}

var _ fabric.Diagnoser = (*FIB)(nil)
