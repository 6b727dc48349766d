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
type Feed struct {
	log     *slog.Logger
	conn    *Conn // for listings
	events  *Events
	running sync.WaitGroup

	turn sync.Mutex // held during calls of views

	mu    sync.Mutex
	views []*Follower
}

// Follower is the place of one view in a feed.
type Follower struct {
	feed  *Feed
	view  View
	wants Wants

	// The lock of the feed guards these.
	stale bool  // the view must load a listing before it gets notifications
	err   error // of the last listing
}

// Open begins to follow the kernel in the network namespace of the calling thread.
func Open(log *slog.Logger) (*Feed, error) {
	f := &Feed{log: log}
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
	f.running.Go(f.receive)
	f.running.Go(f.remind)
	return f, nil
}

// Close ends the subscription, and the waits in [Feed.CatchUp].
func (f *Feed) Close() error {
	err := f.events.Close()
	f.running.Wait()
	return errors.Join(err, f.conn.Close())
}

// Join adds a view, and returns when the view has loaded a listing.
func (f *Feed) Join(v View, w Wants) (*Follower, error) {
	m := &Follower{feed: f, view: v, wants: w, stale: true}
	f.mu.Lock()
	f.views = append(f.views, m)
	f.mu.Unlock()
	err := f.events.await()
	if err == nil {
		f.mu.Lock()
		err = m.err
		f.mu.Unlock()
	}
	if err != nil {
		m.Leave()
		return nil, err
	}
	return m, nil
}

// CatchUp waits until all views have applied every notification that the kernel has
// sent by now.
func (f *Feed) CatchUp(ctx context.Context) error { return f.events.CatchUp(ctx) }

// Relist makes the view load a new listing, and returns when it has.
func (m *Follower) Relist(ctx context.Context) error {
	m.feed.mu.Lock()
	m.stale = true
	m.feed.mu.Unlock()
	if err := m.feed.CatchUp(ctx); err != nil {
		return err
	}
	m.feed.mu.Lock()
	defer m.feed.mu.Unlock()
	return m.err
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

// receive delivers notifications to the views until the feed is closed.
func (f *Feed) receive() {
	for {
		msgs, err := f.events.Receive()
		if errors.Is(err, os.ErrClosed) {
			return
		}
		f.deliver(msgs, err != nil)
		if err == nil {
			f.events.Pass(msgs)
			continue
		}
		f.events.Pass(nil)
		if Errno(err) != unix.ENOBUFS {
			f.log.Error("rtnetlink notifications", "err", err)
			f.pause(relistAgain)
		}
	}
}

// pause waits for d, or until the feed is closed, and reports whether it is.
func (f *Feed) pause(d time.Duration) (closed bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false
	case <-f.events.Closed():
		return true
	}
}

// deliver makes the views apply notifications, and those that are stale load a
// listing.
func (f *Feed) deliver(msgs []netlink.Message, lost bool) {
	f.turn.Lock()
	defer f.turn.Unlock()
	f.mu.Lock()
	var stale, fresh []*Follower
	for _, m := range f.views {
		if m.stale = m.stale || lost; m.stale {
			stale = append(stale, m)
			m.stale = false
		} else {
			fresh = append(fresh, m)
		}
	}
	f.mu.Unlock()
	for _, m := range fresh {
		m.view.Apply(msgs)
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
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range stale {
		m.err = err
		m.stale = m.stale || err != nil
	}
}

// remind makes views load a new listing: in rounds if they want it, and again if
// the last listing failed.
func (f *Feed) remind() {
	for last := time.Now(); !f.pause(relistAgain); {
		round := time.Since(last) >= relistEvery
		if round {
			last = time.Now()
		}
		f.mu.Lock()
		due := false
		for _, m := range f.views {
			m.stale = m.stale || round && m.wants.Often
			due = due || m.stale
		}
		f.mu.Unlock()
		if due {
			_ = f.events.ask(nil) // its answer wakes receive
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
