package rtnl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// relistEvery is how often views that want it (Wants.Often) load a new listing,
	// which has changes without a notification, too.
	relistEvery = time.Minute
	// relistAgain is the wait after a listing that failed, or a socket that did.
	relistAgain = time.Second
)

// View keeps a part of the kernel's state. A [Feed] calls its methods one after
// another.
type View interface {
	// Apply updates the view by notifications, in their order.
	Apply(msgs []netlink.Message)
	// Load replaces the view's state by a listing: at first, when notifications
	// were lost, when the view asked for it, and in rounds if it wants them.
	Load(l Listing)
}

// Wants is the part of a listing that a view needs.
type Wants struct {
	Links, Addresses bool
	Protocols        []uint8 // of routes, in all tables
	Often            bool    // load in rounds, not only when notifications were lost
}

// Listing is the kernel's state at one moment.
type Listing struct {
	Links, Addresses []netlink.Message
	Routes           map[uint8][]netlink.Message // by protocol
}

// Feed follows the kernel for several views. They share one subscription, the
// goroutine that receives, the barrier, and the listings.
//
// Run receives what the kernel notifies as it comes. While nobody runs the feed, who
// waits in CatchUp receives what there is.
type Feed struct {
	log       *slog.Logger
	conn      *Conn // for listings
	events    *Events
	receiving chan struct{} // has room for the one that receives

	turn sync.Mutex // held during calls of views

	mu    sync.Mutex
	views []*Follower
}

// Follower is the place of one view in a feed.
type Follower struct {
	feed  *Feed
	view  View
	wants Wants

	loading
}

// loading says whether a view must load a listing before it gets notifications, and
// how the last one went. It is safe for concurrent use.
type loading struct {
	mu  sync.Mutex
	due bool
	err error // of the last listing
}

// ask makes a listing due.
func (l *loading) ask() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.due = true
}

// isDue reports whether a listing is due.
func (l *loading) isDue() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.due
}

// take reports whether a listing is due, for a caller that makes it.
func (l *loading) take() (due bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	due, l.due = l.due, false
	return due
}

// loaded notes how a listing went. It is due again if it failed.
func (l *loading) loaded(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err, l.due = err, l.due || err != nil
}

// last returns the error of the last listing.
func (l *loading) last() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Open subscribes to what the kernel notifies in the network namespace of the calling
// thread.
func Open(log *slog.Logger) (*Feed, error) {
	f := &Feed{log: log, receiving: make(chan struct{}, 1)}
	var err error
	if f.conn, err = Dial(); err != nil {
		return nil, err
	}
	f.events, err = Subscribe(unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		return nil, errors.Join(err, f.conn.Close())
	}
	return f, nil
}

// Close ends the subscription, [Feed.Run], and the waits in [Feed.CatchUp].
func (f *Feed) Close() error {
	err := f.events.Close()
	f.receiving <- struct{}{} // nobody calls the views any more
	<-f.receiving
	return errors.Join(err, f.conn.Close())
}

// Run delivers notifications to the views as they come, and makes views load new
// listings, until ctx ends or the feed is closed. It returns nil then.
func (f *Feed) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var reminding sync.WaitGroup
	reminding.Go(func() { f.remind(ctx) })
	defer reminding.Wait()
	defer cancel()
	select {
	case <-ctx.Done():
	case f.receiving <- struct{}{}:
		f.receive(ctx, nil)
		<-f.receiving
	}
	return nil
}

// Join adds a view, and returns when the view has loaded a listing.
func (f *Feed) Join(ctx context.Context, v View, w Wants) (*Follower, error) {
	m := &Follower{feed: f, view: v, wants: w}
	m.ask()
	f.mu.Lock()
	f.views = append(f.views, m)
	f.mu.Unlock()
	err := f.CatchUp(ctx)
	if err == nil {
		err = m.last()
	}
	if err != nil {
		m.Leave()
		return nil, err
	}
	return m, nil
}

// CatchUp waits until all views have applied every notification that the kernel has
// sent by now. The views may be called by this goroutine.
func (f *Feed) CatchUp(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	caught, err := f.events.Ask()
	if err != nil {
		return err
	}
	for {
		select {
		case <-caught:
			return nil
		case <-f.events.Closed():
			return os.ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		case f.receiving <- struct{}{}: // nobody runs the feed
			f.receive(ctx, caught)
			<-f.receiving
		}
	}
}

// Relist makes the view load a new listing, and returns when it has.
func (m *Follower) Relist(ctx context.Context) error {
	m.ask()
	if err := m.feed.CatchUp(ctx); err != nil {
		return err
	}
	return m.last()
}

// Leave removes the view. The feed does not call it any more once Leave returns.
func (m *Follower) Leave() {
	f := m.feed
	f.turn.Lock()
	defer f.turn.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.views = slices.DeleteFunc(f.views, func(v *Follower) bool { return v == m })
}

// receive delivers notifications to the views until ctx ends, enough is closed, or the
// feed is.
func (f *Feed) receive(ctx context.Context, enough <-chan struct{}) {
	defer f.events.Until(ctx)()
	for {
		select {
		case <-enough: // perhaps before it was this goroutine's turn
			return
		default:
		}
		msgs, err := f.events.Receive()
		if errors.Is(err, os.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		f.deliver(msgs, err != nil)
		if err != nil {
			msgs = nil // also the answers, so that nobody waits for one
		}
		f.events.Pass(msgs)
		if err != nil && Errno(err) != unix.ENOBUFS {
			f.log.Error("rtnetlink notifications", "err", err)
			f.pause(ctx, relistAgain)
		}
	}
}

// pause waits for d, or until ctx ends or the feed is closed, and reports whether one
// of these happened.
func (f *Feed) pause(ctx context.Context, d time.Duration) (over bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false
	case <-ctx.Done():
		return true
	case <-f.events.Closed():
		return true
	}
}

// deliver makes the views apply notifications, and those that are stale load a
// listing.
func (f *Feed) deliver(msgs []netlink.Message, lost bool) {
	f.turn.Lock()
	defer f.turn.Unlock()
	var stale []*Follower
	for _, m := range f.followers() {
		if m.take() || lost {
			stale = append(stale, m)
		} else {
			m.view.Apply(msgs)
		}
	}
	if len(stale) == 0 {
		return
	}
	// A listing that begins now includes these notifications.
	l, err := f.List(union(stale))
	if err != nil {
		f.log.Warn("list what the kernel has", "err", err)
	} else {
		for _, m := range stale {
			m.view.Load(l)
		}
	}
	for _, m := range stale {
		m.loaded(err)
	}
}

// followers lists the views that have joined.
func (f *Feed) followers() []*Follower {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.views)
}

// remind makes views load a new listing: in rounds if they want it, and again if
// the last listing failed.
func (f *Feed) remind(ctx context.Context) {
	for last := time.Now(); !f.pause(ctx, relistAgain); {
		round := time.Since(last) >= relistEvery
		if round {
			last = time.Now()
		}
		due := false
		for _, m := range f.followers() {
			if round && m.wants.Often {
				m.ask()
			}
			due = due || m.isDue()
		}
		if due {
			_, _ = f.events.Ask() // its answer wakes receive
		}
	}
}

func union(views []*Follower) (w Wants) {
	for _, m := range views {
		w.Links, w.Addresses = w.Links || m.wants.Links, w.Addresses || m.wants.Addresses
		for _, p := range m.wants.Protocols {
			if !slices.Contains(w.Protocols, p) {
				w.Protocols = append(w.Protocols, p)
			}
		}
	}
	return w
}

// List lists the wanted part of the kernel's state.
func (f *Feed) List(w Wants) (l Listing, err error) {
	if w.Links {
		l.Links, err = f.conn.Do(Message(unix.RTM_GETLINK, netlink.Dump, IfInfoMsg(0, 0, 0), func(ae *netlink.AttributeEncoder) { ae.Uint32(unix.IFLA_EXT_MASK, skipStats) }))
		if err != nil {
			return l, fmt.Errorf("links: %w", err)
		}
	}
	if w.Addresses {
		if l.Addresses, err = f.conn.Do(Message(unix.RTM_GETADDR, netlink.Dump, IfAddrMsg(unix.AF_UNSPEC, 0, 0), nil)); err != nil {
			return l, fmt.Errorf("addresses: %w", err)
		}
	}
	l.Routes = map[uint8][]netlink.Message{}
	for _, p := range w.Protocols {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			routes, err := f.conn.Do(Message(unix.RTM_GETROUTE, netlink.Dump, RoutesOf(family, p), nil))
			if err != nil && Errno(err) != unix.ENOENT { // no such table yet
				return l, fmt.Errorf("routes: %w", err)
			}
			for _, m := range routes {
				// A kernel before 5.0 lists routes of all protocols.
				if len(m.Data) >= unix.SizeofRtMsg && m.Data[5] == p {
					l.Routes[p] = append(l.Routes[p], m)
				}
			}
		}
	}
	return l, nil
}

// RoutesOf makes the fixed header of a request for all routes of a protocol.
func RoutesOf(family, protocol uint8) []byte {
	b := make([]byte, unix.SizeofRtMsg)
	b[0], b[5] = family, protocol
	return b
}
