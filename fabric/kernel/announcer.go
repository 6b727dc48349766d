package kernel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
	"github.com/vmfabric/vmfabric/internal/signal"
)

// Announcer is a [fabric.Speaker] for a routing daemon on the node that takes its
// routes from the kernel, such as BIRD (learn) and FRR (redistribute kernel).
// Beside the route to a guest's port it puts a second one to the same prefix by the
// same way, of protocol [fabric.Protocol]. The metric of that route is the
// LOCAL_PREF of the announcement; the daemon's filter turns it into the attribute.
// Forwarding does not change.
//
// So Put needs the port's route, which a [Dataplane] makes, and the kernel removes
// the announcement with the port. [Announcer.Run] removes at once an announcement
// that leads elsewhere than its port's route. The announcer does not talk to the
// daemon: announcements wait in the kernel until one starts.
//
// It acts in the network namespace of the thread that makes it, and needs
// CAP_NET_ADMIN there. All methods are safe for concurrent use.
type Announcer struct {
	log     *slog.Logger
	rtnl    *socket
	netlink *Netlink
	feed    following
	place   *rtnl.Follower
	changed signal.Signal
	repair  signal.Signal
	life    *lifetime

	change sync.Mutex // held during a change of announcements

	mu    sync.Mutex
	known announcements
}

// open locks what is known of the announcements for the caller, until it calls
// done.
func (a *Announcer) open() (known *announcements, done func()) {
	a.mu.Lock()
	return &a.known, a.mu.Unlock
}

// AnnouncerOption sets an option of a new [Announcer].
type AnnouncerOption func(*Announcer)

// WithAnnouncerLogger sets the announcer's logger. By default it logs nothing.
func WithAnnouncerLogger(l *slog.Logger) AnnouncerOption { return func(a *Announcer) { a.log = l } }

// WithNetlink lets the announcer follow the kernel by a [Netlink] that it shares
// with others. By default it has its own.
func WithNetlink(n *Netlink) AnnouncerOption { return func(a *Announcer) { a.netlink = n } }

// NewAnnouncer adopts the announcements that are in the kernel. [Announcer.Run] watches
// them.
func NewAnnouncer(ctx context.Context, opts ...AnnouncerOption) (*Announcer, error) {
	a := &Announcer{log: slog.New(slog.DiscardHandler), changed: signal.New(), repair: signal.New(), life: newLifetime()}
	a.known = newAnnouncements(a.changed, a.repair)
	for _, o := range opts {
		o(a)
	}
	if !mayAdministrate() {
		return nil, errors.New("announcer: no right to make routes (CAP_NET_ADMIN); run as root, or give the service AmbientCapabilities=CAP_NET_ADMIN")
	}
	var err error
	if a.rtnl, err = dial(); err != nil {
		return nil, fmt.Errorf("announcer: %w", err)
	}
	if a.feed, err = connect(a.netlink, a.log); err != nil {
		return nil, fmt.Errorf("announcer: %w", errors.Join(err, a.rtnl.Close()))
	}
	if a.place, err = a.feed.Join(ctx, a, rtnl.Wants{Addresses: true, Protocols: []uint8{routeProtocol}, Often: true}); err != nil {
		return nil, fmt.Errorf("announcer: list routes: %w", errors.Join(err, a.feed.end(), a.rtnl.Close()))
	}
	return a, nil
}

// Run watches the announcements until ctx ends, or Close, and returns nil then: it
// signals their changes, and repairs what somebody else does to them.
func (a *Announcer) Run(ctx context.Context) error {
	a.life.run(ctx, a.feed.run, a.attend)
	return nil
}

// Close ends Run. The announcements stay.
func (a *Announcer) Close() error {
	a.life.close()
	a.place.Leave()
	return errors.Join(a.feed.end(), a.rtnl.Close())
}

// Changed implements [fabric.Speaker].
func (a *Announcer) Changed() <-chan struct{} { return a.changed }

// LastChange returns when an announcement, or a route to a port, last came or went.
func (a *Announcer) LastChange() time.Time {
	known, done := a.open()
	defer done()
	return known.last
}

// Actual implements [fabric.Speaker], in the order of the prefixes. A prefix can be
// announced twice for a moment while its preference changes; Actual returns the
// route that daemons take.
func (a *Announcer) Actual(ctx context.Context) ([]fabric.Route, error) {
	if err := a.catchUp(ctx); err != nil {
		return nil, err
	}
	known, done := a.open()
	defer done()
	return known.routes(), nil
}

// Put implements [fabric.Speaker]. A prefix to which no port of this node has a
// route is an error; Put still announces the others.
func (a *Announcer) Put(ctx context.Context, routes ...fabric.Route) error {
	want := make(map[netip.Prefix]uint32, len(routes))
	var prefixes []netip.Prefix
	for _, r := range routes {
		m := r.Preference.LocalPref()
		if m >= fabric.PortMetric {
			return fmt.Errorf("announce %s: preference %d is no metric that comes before the port's; take one below %d", r.Prefix, m, fabric.PortMetric)
		}
		if _, twice := want[r.Prefix]; !twice {
			prefixes = append(prefixes, r.Prefix)
		}
		want[r.Prefix] = m
	}
	return a.whileChanging(ctx, prefixes, func() error { return a.put(ctx, prefixes, want) })
}

// Remove implements [fabric.Speaker].
func (a *Announcer) Remove(ctx context.Context, prefixes ...netip.Prefix) error {
	return a.whileChanging(ctx, prefixes, func() error {
		known, done := a.open()
		doomed := known.of(prefixes)
		done()
		err := a.withdraw(doomed)
		if err == nil {
			known, done = a.open()
			defer done()
			known.removed(prefixes)
		}
		return err
	})
}

// whileChanging calls f to change the announcements of some prefixes. The cache is
// up to date before f, and the changes that f makes do not count as drift.
func (a *Announcer) whileChanging(ctx context.Context, prefixes []netip.Prefix, f func() error) error {
	if len(prefixes) == 0 {
		return nil
	}
	a.change.Lock()
	defer a.change.Unlock()
	known, done := a.open()
	known.begin(prefixes)
	done()
	err := a.catchUp(ctx)
	if err == nil {
		err = errors.Join(f(), a.catchUp(context.WithoutCancel(ctx)))
	}
	known, done = a.open()
	defer done()
	known.end(prefixes, err)
	return err
}

// catchUp waits until the cache has every change that the kernel has made by now.
func (a *Announcer) catchUp(ctx context.Context) error {
	if err := a.feed.CatchUp(ctx); err != nil {
		return fmt.Errorf("announcer: %w", err)
	}
	return nil
}

// put adds the missing announcements before it removes those of another preference,
// so that a daemon sees one change and no withdrawal.
func (a *Announcer) put(ctx context.Context, prefixes []netip.Prefix, want map[netip.Prefix]uint32) error {
	failed := prefixErrors{verb: "announce"}
	known, done := a.open()
	steps := known.plan(prefixes, want)
	done()
	for _, p := range steps.portless {
		failed.add(p, errors.New("no port of this node has a route to it; attach the guest first"))
	}
	if err := a.withdraw(steps.astray); err != nil {
		return err
	}
	errs, err := a.each(unix.RTM_NEWROUTE, netlink.Create|netlink.Excl, steps.missing)
	if err != nil {
		return err
	}
	stale := steps.stale
	for i, r := range steps.missing {
		if rtnl.Errno(errs[i]) == unix.EEXIST {
			errs[i] = a.settle(ctx, r)
		}
		if errs[i] != nil {
			failed.add(r.prefix, errs[i])
			stale = slices.DeleteFunc(stale, func(s route) bool { return s.prefix == r.prefix })
			continue
		}
		known, done := a.open()
		known.added(r)
		done()
	}
	return errors.Join(failed.err(), a.withdraw(stale))
}

// settle handles a refused announcement: the kernel already has a route in its
// place that the cache did not have. It is no error if that route is the
// announcement itself.
func (a *Announcer) settle(ctx context.Context, r route) error {
	if err := a.place.Relist(ctx); err != nil {
		return err
	}
	known, done := a.open()
	there := known.has(r)
	done()
	if there {
		return nil
	}
	have, err := a.rtnl.lookup(r.prefix)
	if err == nil && have.proto != routeProtocol {
		return foreign(have)
	}
	return fmt.Errorf("there is one already with metric %d, %w; see ip route show %s", r.metric, fabric.ErrForeign, r.prefix)
}

// withdraw removes announcements. One that is gone already is no error.
func (a *Announcer) withdraw(rs []route) error {
	errs, err := a.each(unix.RTM_DELROUTE, 0, rs)
	if err != nil {
		return err
	}
	failed := prefixErrors{verb: "announce"}
	for i, r := range rs {
		if n := rtnl.Errno(errs[i]); errs[i] != nil && n != unix.ESRCH && n != unix.ENODEV {
			failed.add(r.prefix, errs[i])
		}
	}
	return failed.err()
}

// each sends one request per route, and returns one error per route.
func (a *Announcer) each(typ netlink.HeaderType, flags netlink.HeaderFlags, rs []route) ([]error, error) {
	msgs := make([]netlink.Message, len(rs))
	for i, r := range rs {
		msgs[i] = routeMessage(typ, flags, r)
	}
	errs, err := a.rtnl.Batch(msgs...)
	if err != nil {
		return nil, fmt.Errorf("announcer: %w", err)
	}
	return errs, nil
}

// Apply implements [rtnl.View].
func (a *Announcer) Apply(msgs []netlink.Message) {
	known, done := a.open()
	defer done()
	known.apply(msgs)
}

// Load implements [rtnl.View].
func (a *Announcer) Load(l rtnl.Listing) {
	known, done := a.open()
	defer done()
	known.load(l)
}

// attend removes announcements that lead astray, and makes the kernel notify
// daemons of those that it dropped silently.
func (a *Announcer) attend(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.repair:
			a.straighten()
			a.notifyDaemons()
		}
	}
}

// straighten removes the announcements that lead elsewhere than to their ports:
// the kernel would send the guests' packets there.
func (a *Announcer) straighten() {
	a.change.Lock()
	defer a.change.Unlock()
	known, done := a.open()
	astray := known.astray()
	done()
	for _, r := range astray {
		a.log.Warn("announcement does not lead to its port, removed", "prefix", r.prefix)
	}
	if err := a.withdraw(astray); err != nil {
		a.log.Warn("remove announcements", "err", err)
	}
}

// notifyDaemons makes the kernel notify daemons of announcements that it dropped silently,
// by adding and removing each. A daemon that was not notified would go on
// announcing them: BIRD until its next scan, FRR for ever.
func (a *Announcer) notifyDaemons() {
	a.change.Lock()
	defer a.change.Unlock()
	known, done := a.open()
	unnotified := known.takeUnnotified()
	done()
	errs, err := a.each(unix.RTM_NEWROUTE, netlink.Create|netlink.Excl, unnotified)
	var added []route
	for i, r := range unnotified {
		if err == nil && errs[i] == nil {
			added = append(added, r)
		}
	}
	if err = errors.Join(err, a.withdraw(added)); err != nil {
		a.log.Warn("notify daemons of announcements that are gone", "err", err)
	}
}

var _ fabric.Announcer = (*Announcer)(nil)
