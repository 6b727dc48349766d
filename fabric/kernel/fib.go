package kernel

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
	"github.com/vmfabric/vmfabric/internal/signal"
)

// FIBConfig says which routes are those of a [FIB].
type FIBConfig struct {
	// Protocol marks them (rtm_protocol, rtnetlink(7)): every route of the main
	// table that has it is the FIB's, and none that has another.
	Protocol uint8
	Metric   uint32 // of every route (RTA_PRIORITY); not zero
	Logger   *slog.Logger
	// Netlink is shared with others that follow the kernel; nil: one of its own.
	Netlink *Netlink
}

// FIB is a part of the kernel's forwarding table: routes to prefixes through
// other routers of a common link, as somebody learns them. It is kept in step
// with what was put, in batches, and repaired when somebody changes it.
//
// A next hop that is not a neighbour on a link of this machine is refused: the
// router before it might not know the prefix, and would send it back. The
// packets then go where the kernel's other routes lead, and [FIB.Diagnose]
// says so. All methods are safe for concurrent use.
type FIB struct {
	cfg    FIBConfig
	log    *slog.Logger
	rtnl   *socket
	feed   following
	place  *rtnl.Follower
	wake   signal.Signal
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	want    map[netip.Prefix]netip.Addr
	have    map[fibKey]netip.Addr // ours in the kernel, by its notifications
	found   map[fibKey]bool       // of those: there before this process, and not put by it yet
	dirty   map[fibKey]bool       // to be compared
	refused map[netip.Prefix]error
	links   map[int32]bool // that routes of ours have led to
	loaded  bool
	stale   bool // have is to be listed anew
}

// fibKey is what tells routes of ours from each other.
type fibKey struct {
	prefix netip.Prefix
	metric uint32
}

const (
	// fibBatch is how many messages go out at once: their acknowledgements fit
	// a socket buffer of the default size.
	fibBatch = 100
	// fibRetry is the wait before refused routes are tried again. It doubles
	// up to fibRetryMost, and begins anew when one of the links changes.
	fibRetry     = time.Second
	fibRetryMost = 30 * time.Second
	// fibSettle lets the notifications of a link's change come in first.
	fibSettle = 50 * time.Millisecond
)

// NewFIB takes stock of the routes that are there already, and keeps them until
// [FIB.Settle]: what a process before this one learned serves until it is
// learned again. It works until ctx ends, or Close. It needs CAP_NET_ADMIN.
func NewFIB(ctx context.Context, cfg FIBConfig) (*FIB, error) {
	f := &FIB{
		cfg: cfg, log: cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler)), wake: signal.New(),
		want: map[netip.Prefix]netip.Addr{}, have: map[fibKey]netip.Addr{}, found: map[fibKey]bool{}, dirty: map[fibKey]bool{},
		refused: map[netip.Prefix]error{}, links: map[int32]bool{},
	}
	if err := f.open(); err != nil {
		return nil, fmt.Errorf("routes of protocol %d: %w", cfg.Protocol, err)
	}
	ctx, f.cancel = context.WithCancel(ctx)
	f.wg.Go(func() { f.work(ctx) })
	return f, nil
}

func (f *FIB) open() (err error) {
	if f.rtnl, err = dial(); err != nil {
		return err
	}
	if f.feed, err = connect(f.cfg.Netlink, f.log); err != nil {
		return errors.Join(err, f.rtnl.Close())
	}
	if f.place, err = f.feed.Join(f, f.wants()); err != nil {
		return errors.Join(err, f.feed.end(), f.rtnl.Close())
	}
	return nil
}

func (f *FIB) wants() rtnl.Wants { return rtnl.Wants{Protocols: []uint8{f.cfg.Protocol}, Often: true} }

// Put has a prefix routed through the router at via, in place of where it was
// routed before. It returns at once.
func (f *FIB) Put(p netip.Prefix, via netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	f.want[p] = via
	delete(f.refused, p)
	f.touch(f.key(p))
}

// Remove takes the route to a prefix out. It returns at once; absence is
// success.
func (f *FIB) Remove(p netip.Prefix) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	delete(f.want, p)
	delete(f.refused, p)
	delete(f.found, f.key(p))
	f.touch(f.key(p))
}

// Settle says that everything that there is has been put: routes that an
// earlier process left and that were not put again go.
func (f *FIB) Settle() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	for k := range f.found {
		f.touch(k)
	}
	clear(f.found)
}

// Diagnose says, in words for people, which routes the kernel refuses.
func (f *FIB) Diagnose(context.Context) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.refused) == 0 {
		return nil
	}
	var first netip.Prefix
	for p := range f.refused {
		if !first.IsValid() || p.Compare(first) < 0 {
			first = p
		}
	}
	more := ""
	if n := len(f.refused) - 1; n > 0 {
		more = fmt.Sprintf(" (and %d more)", n)
	}
	return []string{fmt.Sprintf("route %s via %s%s is not in the kernel: %v; its packets go by the node's other routes", first, f.want[first], more, f.refused[first])}
}

// Close takes all routes out and ends the work.
func (f *FIB) Close() error {
	f.mu.Lock()
	closed := f.closed
	f.closed = true
	f.mu.Unlock()
	if closed {
		return nil
	}
	f.cancel()
	f.place.Leave()
	f.wg.Wait()
	f.mu.Lock()
	clear(f.want)
	clear(f.found)
	f.mu.Unlock()
	// What is there is asked once more: nobody listens now.
	l, err := f.feed.List(f.wants())
	if err == nil {
		f.Load(l)
	}
	f.mu.Lock()
	clear(f.refused)
	f.touchAll()
	f.mu.Unlock()
	for f.step() {
	}
	for p, refusal := range f.refused {
		err = errors.Join(err, fmt.Errorf("remove route %s: %w", p, refusal))
	}
	return errors.Join(err, f.feed.end(), f.rtnl.Close())
}

func (f *FIB) key(p netip.Prefix) fibKey { return fibKey{p, f.cfg.Metric} }

// touch has a route compared soon. f.mu is held.
func (f *FIB) touch(k fibKey) {
	f.dirty[k] = true
	f.wake.Send()
}

// touchAll has every route compared. f.mu is held.
func (f *FIB) touchAll() {
	for p := range f.want {
		f.touch(f.key(p))
	}
	for k := range f.have {
		f.touch(k)
	}
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
			f.mu.Lock()
			for p := range f.refused {
				f.dirty[f.key(p)] = true
			}
			f.mu.Unlock()
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

// refresh lists the routes anew where it is not certain what is there, and
// reports whether it did.
func (f *FIB) refresh(ctx context.Context) bool {
	f.mu.Lock()
	stale := f.stale
	f.stale = false
	f.mu.Unlock()
	if !stale {
		return false
	}
	if pause(ctx, fibSettle) != nil {
		return true
	}
	if err := f.place.Relist(ctx); err != nil && ctx.Err() == nil {
		f.log.Warn("list routes", "protocol", f.cfg.Protocol, "err", err)
	}
	return true
}

// Load implements [rtnl.View].
func (f *FIB) Load(l rtnl.Listing) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.have = map[fibKey]netip.Addr{}
	for _, m := range l.Routes[f.cfg.Protocol] {
		if r, err := parseRoute(m.Data); err == nil {
			k := fibKey{r.prefix, r.metric}
			f.have[k] = r.via
			f.links[r.index] = true
			if !f.loaded {
				f.found[k] = true
			}
		}
	}
	f.loaded = true
	f.touchAll()
}

// step sends a batch of what differs to the kernel, and reports whether there
// may be more. It is called by one goroutine at a time, when have is up to date.
func (f *FIB) step() bool {
	msgs, keys := f.differences()
	if len(msgs) == 0 {
		return false
	}
	errs, err := f.rtnl.Batch(msgs...)
	if err != nil {
		f.log.Warn("routes", "protocol", f.cfg.Protocol, "err", err)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.mistrust()
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, err := range errs {
		f.note(keys[i], msgs[i], err)
	}
	return true
}

// differences takes a batch of those to be compared, and gives the messages of
// what differs.
func (f *FIB) differences() (msgs []netlink.Message, keys []fibKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k := range f.dirty {
		if len(msgs) == fibBatch {
			break
		}
		delete(f.dirty, k)
		if m, differs := f.difference(k); differs {
			msgs, keys = append(msgs, m), append(keys, k)
		}
	}
	return msgs, keys
}

// difference gives the message that makes one route what it is to be. f.mu is
// held.
func (f *FIB) difference(k fibKey) (netlink.Message, bool) {
	have, there := f.have[k]
	via, wanted := f.want[k.prefix]
	wanted = wanted && k.metric == f.cfg.Metric
	switch {
	case !wanted && there && !f.found[k]:
		return f.message(unix.RTM_DELROUTE, 0, k, netip.Addr{}), true
	case !wanted, there && have == via:
		return netlink.Message{}, false
	case there:
		// Without a moment between the old and the new, and without making one
		// where ours has gone and somebody's may have come.
		return f.message(unix.RTM_NEWROUTE, netlink.Replace, k, via), true
	}
	return f.message(unix.RTM_NEWROUTE, netlink.Create|netlink.Excl, k, via), true
}

// note takes the kernel's refusal, or its consent, whose effect is notified.
// f.mu is held.
func (f *FIB) note(k fibKey, m netlink.Message, err error) {
	errno := rtnl.Errno(err)
	if err == nil || m.Header.Type == unix.RTM_DELROUTE && errno == unix.ESRCH {
		delete(f.refused, k.prefix)
		return
	}
	if _, known := f.refused[k.prefix]; !known {
		f.log.Warn("route refused", "prefix", k.prefix, "via", f.want[k.prefix], "err", err)
		if errno == unix.EEXIST || errno == unix.ENOENT {
			f.mistrust() // once: perhaps it is ours
		}
	}
	switch errno {
	case unix.EEXIST:
		err = fmt.Errorf("there is one of metric %d already, and it is not ours; see ip route show %s", k.metric, k.prefix)
	case unix.ENETUNREACH, unix.EHOSTUNREACH:
		err = fmt.Errorf("%w; the next hop must be a neighbour on one of the node's links", err)
	}
	f.refused[k.prefix] = err
}

// message makes a request about one of our routes.
func (f *FIB) message(typ netlink.HeaderType, flags netlink.HeaderFlags, k fibKey, via netip.Addr) netlink.Message {
	family, scope, kind := uint8(unix.AF_INET), uint8(unix.RT_SCOPE_UNIVERSE), uint8(unix.RTN_UNICAST)
	if k.prefix.Addr().Is6() {
		family = unix.AF_INET6
	}
	if typ == unix.RTM_DELROUTE {
		scope, kind = unix.RT_SCOPE_NOWHERE, unix.RTN_UNSPEC // whatever it is
	}
	head := make([]byte, unix.SizeofRtMsg)
	head[0], head[1] = family, uint8(k.prefix.Bits())
	head[4], head[5], head[6], head[7] = unix.RT_TABLE_MAIN, f.cfg.Protocol, scope, kind
	return rtnl.Message(typ, flags|netlink.Acknowledge, head, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.RTA_DST, k.prefix.Addr().AsSlice())
		ae.Uint32(unix.RTA_PRIORITY, k.metric)
		switch {
		case !via.IsValid():
		case via.Is4() == k.prefix.Addr().Is4():
			ae.Bytes(unix.RTA_GATEWAY, via.AsSlice())
		default: // of the other family (RFC 8950); Linux 5.2 and newer
			ae.Bytes(unix.RTA_VIA, append(binary.NativeEndian.AppendUint16(nil, unix.AF_INET6), via.AsSlice()...))
		}
	})
}

// Apply implements [rtnl.View].
func (f *FIB) Apply(msgs []netlink.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range msgs {
		f.apply(m)
	}
}

// mistrust has the routes listed anew. f.mu is held.
func (f *FIB) mistrust() {
	f.stale = true
	f.wake.Send()
}

// apply takes a notification over. f.mu is held.
func (f *FIB) apply(m netlink.Message) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR, unix.RTM_DELADDR:
		// The kernel drops the IPv4 routes of a link that goes down without a
		// word. The number is at the same place in ifinfomsg and ifaddrmsg.
		if len(m.Data) >= 8 && f.links[int32(binary.NativeEndian.Uint32(m.Data[4:]))] {
			f.mistrust()
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		r, err := parseRoute(m.Data)
		if err != nil {
			return
		}
		k := fibKey{r.prefix, r.metric}
		ours, gone := r.proto == f.cfg.Protocol, m.Header.Type == unix.RTM_DELROUTE
		switch {
		case ours && gone:
			delete(f.have, k)
			delete(f.found, k)
		case ours:
			f.have[k] = r.via
			f.links[r.index] = true
		case gone && f.refused[r.prefix] != nil:
			f.touch(k) // of what was in the way, perhaps
			return
		case m.Header.Flags&netlink.Replace != 0:
			delete(f.have, k) // theirs took its place
		default:
			return
		}
		if _, differs := f.difference(k); differs {
			f.touch(k)
		}
	}
}

var _ fabric.Diagnoser = (*FIB)(nil)
