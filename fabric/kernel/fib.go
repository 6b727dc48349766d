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
	have    map[fibKey]netip.Addr // the FIB's routes in the kernel, by its notifications
	found   map[fibKey]bool       // routes in have of an earlier process, not put again yet
	dirty   map[fibKey]bool       // routes to compare
	refused map[netip.Prefix]error
	links   map[int32]bool // to which routes of the FIB have led
	loaded  bool
	stale   bool // have must be listed anew
}

// fibKey identifies a route of the FIB.
type fibKey struct {
	prefix netip.Prefix
	metric uint32
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
// again. The FIB works until ctx ends, or Close. It needs CAP_NET_ADMIN.
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

// Put routes a prefix through the router at via, and replaces its former route. It
// returns at once.
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

// Remove removes the route to a prefix. It returns at once. Absence is success.
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

// Settle ends the initial phase: the caller has put all routes that it has learned.
// The FIB then removes the routes of an earlier process that were not put again.
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

// Diagnose implements [fabric.Diagnoser]: it names the routes that the kernel
// refuses.
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

// Close removes all routes of the FIB and stops it.
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
	// List the routes once more: notifications do not come any more.
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

// touch queues a route for comparison. The caller holds f.mu.
func (f *FIB) touch(k fibKey) {
	f.dirty[k] = true
	f.wake.Send()
}

// touchAll queues every route for comparison. The caller holds f.mu.
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

// refresh lists the routes anew if have is stale, and reports whether it was.
func (f *FIB) refresh(ctx context.Context) bool {
	f.mu.Lock()
	stale := f.stale
	f.stale = false
	f.mu.Unlock()
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

// step sends a batch of changes to the kernel, and reports whether there may be
// more. One goroutine at a time calls it, when have is up to date.
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

// differences takes a batch of routes out of dirty, and returns the messages for
// those that differ.
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

// difference returns the message that brings one route in step. The caller holds
// f.mu.
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
		// Replace alone leaves no moment without a route. Without Create the kernel
		// refuses if the FIB's route has gone, and somebody else's may have come.
		return f.message(unix.RTM_NEWROUTE, netlink.Replace, k, via), true
	}
	return f.message(unix.RTM_NEWROUTE, netlink.Create|netlink.Excl, k, via), true
}

// note handles the kernel's answer to one message: it records or forgets a refusal.
// have changes only with the notification. The caller holds f.mu.
func (f *FIB) note(k fibKey, m netlink.Message, err error) {
	errno := rtnl.Errno(err)
	if err == nil || m.Header.Type == unix.RTM_DELROUTE && errno == unix.ESRCH {
		delete(f.refused, k.prefix)
		return
	}
	if _, known := f.refused[k.prefix]; !known {
		f.log.Warn("route refused", "prefix", k.prefix, "via", f.want[k.prefix], "err", err)
		if errno == unix.EEXIST || errno == unix.ENOENT {
			f.mistrust() // only at the first refusal: have may have missed a route of the FIB
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

// message makes a request about one of the FIB's routes.
func (f *FIB) message(typ netlink.HeaderType, flags netlink.HeaderFlags, k fibKey, via netip.Addr) netlink.Message {
	family, scope, kind := uint8(unix.AF_INET), uint8(unix.RT_SCOPE_UNIVERSE), uint8(unix.RTN_UNICAST)
	if k.prefix.Addr().Is6() {
		family = unix.AF_INET6
	}
	if typ == unix.RTM_DELROUTE {
		scope, kind = unix.RT_SCOPE_NOWHERE, unix.RTN_UNSPEC // of any scope and type
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

// mistrust makes have stale, so that the routes are listed anew. The caller holds
// f.mu.
func (f *FIB) mistrust() {
	f.stale = true
	f.wake.Send()
}

// apply updates have by one notification. The caller holds f.mu.
func (f *FIB) apply(m netlink.Message) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR, unix.RTM_DELADDR:
		// The kernel drops the IPv4 routes of a link that goes down without a
		// notification. The link's index is at the same place in ifinfomsg and
		// ifaddrmsg.
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
			f.touch(k) // perhaps the route that was in the way
			return
		case m.Header.Flags&netlink.Replace != 0:
			delete(f.have, k) // somebody else's route replaced it
		default:
			return
		}
		if _, differs := f.difference(k); differs {
			f.touch(k)
		}
	}
}

var _ fabric.Diagnoser = (*FIB)(nil)
