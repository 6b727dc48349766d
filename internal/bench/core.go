package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"golang.org/x/sys/unix"
)

// quietAfter is how long a route must stay unchanged to count as settled: a second
// reflector sends the same as the first a moment later, and BIRD replaces an IPv6
// route by removing and adding it.
const quietAfter = 25 * time.Millisecond

// routes notes when the kernel of a host adds and removes routes to guests, by the
// clock of this process.
type routes struct {
	fd      int
	running sync.WaitGroup
	stop    chan struct{}

	mu      sync.Mutex
	seen    map[netip.Prefix]*history
	woken   chan struct{} // closed and renewed with every change
	broken  error         // notifications were lost
	removed int           // removals of all prefixes, since mark
	longest time.Duration // longest absence of a route that came back, since mark
}

// history has the changes of a prefix since it was armed.
type history struct {
	there       bool
	first, last time.Time // first addition, last removal
}

// watchRoutes listens in the host's namespace until close.
func watchRoutes(h *core.Host) (*routes, error) {
	r := &routes{stop: make(chan struct{}), seen: map[netip.Prefix]*history{}, woken: make(chan struct{})}
	err := h.Do(func() (err error) {
		r.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		return err
	})
	if err == nil {
		err = errors.Join(
			unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			// So that the blocked reader notices the end of the watch.
			unix.SetsockoptTimeval(r.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
			unix.Bind(r.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE}))
	}
	if err != nil {
		return nil, fmt.Errorf("watch the routes of %s: %w", h.Name(), err)
	}
	r.running.Go(r.receive)
	return r, nil
}

func (r *routes) close() {
	close(r.stop)
	r.running.Wait()
	unix.Close(r.fd)
}

// receive reads in a blocking call rather than through Go's poller, which would
// delay the times that it notes.
func (r *routes) receive() {
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(r.fd, buf, 0)
		now := time.Now()
		select {
		case <-r.stop:
			return
		default:
		}
		switch {
		case err == nil:
			r.take(buf[:n], now)
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			r.mu.Lock()
			r.broken = fmt.Errorf("route notifications of the core gateway: %w", err)
			r.wake()
			r.mu.Unlock()
		}
	}
}

func (r *routes) take(b []byte, now time.Time) {
	msgs, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range msgs {
		if p, ok := guestPrefix(m); ok {
			r.note(p, m.Header.Type == unix.RTM_NEWROUTE, now)
		}
	}
	r.wake()
}

// note records one change. The caller holds r.mu.
func (r *routes) note(p netip.Prefix, added bool, now time.Time) {
	h := r.of(p)
	switch {
	case added:
		if h.first.IsZero() {
			h.first = now
		}
		if !h.there && !h.last.IsZero() {
			r.longest = max(r.longest, now.Sub(h.last))
		}
	case h.there:
		h.last = now
		r.removed++
	}
	h.there = added
}

// of returns the history of a prefix. The caller holds r.mu.
func (r *routes) of(p netip.Prefix) *history {
	h := r.seen[p]
	if h == nil {
		h = &history{}
		r.seen[p] = h
	}
	return h
}

// wake wakes all waits. The caller holds r.mu.
func (r *routes) wake() {
	close(r.woken)
	r.woken = make(chan struct{})
}

// arm forgets the times of the prefixes, before a measurement.
func (r *routes) arm(prefixes ...netip.Prefix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range prefixes {
		h := r.of(p)
		h.first, h.last = time.Time{}, time.Time{}
	}
}

// mark starts the count of removals anew.
func (r *routes) mark() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removed, r.longest = 0, 0
	for _, h := range r.seen {
		h.last = time.Time{}
	}
}

// removals returns how many routes to guests the kernel has removed since mark, and
// the longest absence of one that came back.
func (r *routes) removals() (n int, longest time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.removed, r.longest
}

// come waits until each prefix has got a route since it was armed, and returns the
// time when the last one first got it.
func (r *routes) come(ctx context.Context, prefixes ...netip.Prefix) (time.Time, error) {
	at, err := r.wait(ctx, prefixes, func(h *history) (bool, time.Time) { return !h.first.IsZero(), h.first })
	if err != nil {
		return at, fmt.Errorf("%w to have a route", err)
	}
	return at, nil
}

// has waits until all prefixes have a route.
func (r *routes) has(ctx context.Context, prefixes ...netip.Prefix) error {
	_, err := r.wait(ctx, prefixes, func(h *history) (bool, time.Time) { return h.there, h.first })
	if err != nil {
		return fmt.Errorf("%w to have a route", err)
	}
	return nil
}

// empty waits until no guest has a route any more.
func (r *routes) empty(ctx context.Context) error {
	r.mu.Lock()
	var left []netip.Prefix
	for p, h := range r.seen {
		if h.there {
			left = append(left, p)
		}
	}
	r.mu.Unlock()
	_, err := r.gone(ctx, left...)
	return err
}

// gone waits until none of the prefixes has a route any more, and returns the time
// when the last one went.
func (r *routes) gone(ctx context.Context, prefixes ...netip.Prefix) (time.Time, error) {
	for {
		at, err := r.wait(ctx, prefixes, func(h *history) (bool, time.Time) { return !h.there, h.last })
		if err != nil {
			return at, fmt.Errorf("%w to have none", err)
		}
		if left := quietAfter - time.Since(at); left > 0 {
			time.Sleep(left)
			continue // it may have come back meanwhile
		}
		return at, nil
	}
}

// wait waits until done is true for all prefixes, and returns the latest of its
// times.
func (r *routes) wait(ctx context.Context, prefixes []netip.Prefix, done func(*history) (bool, time.Time)) (time.Time, error) {
	next := 0
	for {
		r.mu.Lock()
		var latest time.Time
		for next < len(prefixes) {
			if ok, _ := done(r.of(prefixes[next])); !ok {
				break
			}
			next++
		}
		if next == len(prefixes) {
			for i, p := range prefixes { // an earlier prefix may have changed again
				ok, at := done(r.of(p))
				if !ok {
					next = i
					break
				}
				if at.After(latest) {
					latest = at
				}
			}
		}
		woken, broken := r.woken, r.broken
		r.mu.Unlock()
		if broken != nil || next == len(prefixes) {
			return latest, broken
		}
		select {
		case <-woken:
		case <-ctx.Done():
			return latest, fmt.Errorf("%w: waited for %s at the core gateway", context.Cause(ctx), prefixes[next])
		}
	}
}

// guestPrefix returns the destination of a route of the main table that is a
// guest's; ok is false for any other message.
func guestPrefix(m syscall.NetlinkMessage) (p netip.Prefix, ok bool) {
	if t := m.Header.Type; t != unix.RTM_NEWROUTE && t != unix.RTM_DELROUTE || len(m.Data) < unix.SizeofRtMsg {
		return p, false
	}
	bits, table, kind := int(m.Data[1]), m.Data[4], m.Data[7]
	if table != unix.RT_TABLE_MAIN || kind != unix.RTN_UNICAST { // the route of a whole pool is unreachable
		return p, false
	}
	for b := m.Data[unix.SizeofRtMsg:]; len(b) >= unix.SizeofRtAttr; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return p, false
		}
		if binary.NativeEndian.Uint16(b[2:]) == unix.RTA_DST {
			a, valid := netip.AddrFromSlice(b[unix.SizeofRtAttr:size])
			return netip.PrefixFrom(a, bits), valid && (pool4.Contains(a) || pool6.Contains(a))
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return p, false
}
