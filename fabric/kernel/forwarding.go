package kernel

import (
	"context"
	"encoding/binary"
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
)

const (
	// ruleSettle is the wait after a first change: programs load rule sets in
	// pieces.
	ruleSettle = 200 * time.Millisecond
	// A program that changes rules, or elements of sets, all the time costs the
	// node no more than one trial in rulesEvery, or elementsEvery.
	rulesEvery    = 3 * time.Second
	elementsEvery = time.Minute
	// Some changes come without a notification: those of the rules of
	// iptables-legacy, and of other obstacles. These are the intervals of trials
	// that find them.
	legacyEvery = time.Minute
	faultyEvery = 10 * time.Second
	otherwise   = 10 * time.Minute

	trialBound = 10 * time.Second // for a whole trial
)

// trialMAC is the MAC of the throw-away port. By it removeTrialLink recognises a
// half-made one.
var trialMAC = fabric.MAC{0x02, 0x00, 0x5e, 0x00, 0x01, 0x93}

// forwarding finds out by trials whether packets of guests pass the node. It makes
// one after changes and in intervals, and keeps the findings of the last one.
type forwarding struct {
	trials trials
	log    *slog.Logger
	rules  *netlink.Conn // notifies of changes of nftables rules; nil without nf_tables
	kick   chan bool     // something changed; true: more than elements of sets

	try sync.Mutex // held during a trial

	mu    sync.Mutex
	found findings
	links map[int32]bool // the links of the underlay, as of the last trial
	ended time.Time      // when the last trial ended
}

// findings is the result of a trial, which stays until the next one.
type findings struct {
	faults     []fabric.ForwardingFault
	failure    string // why the last trial could not be made
	unnotified bool   // an obstacle comes and goes without a notification
}

// newForwarding returns a forwarding that tries with addresses that guests may
// have. Without any it makes no trials.
func newForwarding(samples []netip.Addr, ipv6 bool) *forwarding {
	f := &forwarding{kick: make(chan bool, 1)}
	f.trials.guests.set(samplesOf(samples, ipv6))
	return f
}

// samplesOf gives the addresses of the families that this node has.
func samplesOf(samples []netip.Addr, ipv6 bool) (all []netip.Addr) {
	for _, a := range samples {
		if a.Is4() || ipv6 {
			all = append(all, a)
		}
	}
	return all
}

// openForwarding removes the remains of an earlier process's trial, and opens the
// sockets for those to come.
func (d *Dataplane) openForwarding() error {
	f := d.forwarding
	f.log, f.trials.underlay, f.trials.ipv6 = d.log, d.host.underlay, d.host.ipv6
	f.trials.filter = func() { d.host.keepFilter(d.arriving) }
	// A setting that the agent itself repairs is no obstacle, so repair it first. If
	// that fails, the watcher says so.
	f.trials.repair = func() { _ = enableForwarding() }
	if err := d.rtnl.removeTrial(); err != nil {
		return err
	}
	var err error
	if f.trials.rtnl, err = dial(); err != nil { // a trial waits for the kernel; other requests must not wait with it
		return err
	}
	f.rules, err = dialRules()
	if err != nil {
		d.log.Warn("no notifications of changes of nftables rules", "err", err)
	}
	return nil
}

func (f *forwarding) close() error {
	if f.trials.rtnl == nil {
		return nil
	}
	if f.rules != nil {
		f.rules.Close()
	}
	return f.trials.rtnl.Close()
}

// run makes trials after changes, and in intervals, until ctx ends.
func (f *forwarding) run(ctx context.Context) {
	if f.trials.rtnl == nil {
		return
	}
	// Wait until the agent has put again the guests that were about to arrive when
	// an earlier process ended: until then the fabric's own table has the chains of
	// that process.
	start := time.NewTimer(verifyEvery)
	defer start.Stop()
	select {
	case <-ctx.Done():
	case <-start.C:
	}
	for ctx.Err() == nil {
		if len(f.trials.guests.get()) > 0 {
			_, _ = f.check(ctx) // kept for Diagnose
		}
		round := time.NewTimer(f.next())
		rest := rulesEvery
		select {
		case <-ctx.Done():
		case <-round.C:
		case rules := <-f.kick:
			if !rules {
				rest = elementsEvery
			}
			f.settle(ctx, rest)
		}
		round.Stop()
	}
}

// settle waits until a program has loaded its rules, and until the last trial is
// long enough ago. A change of rules shortens the wait that a change of elements
// began.
func (f *forwarding) settle(ctx context.Context, rest time.Duration) {
	timer := time.NewTimer(f.untilRested(rest))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case rules := <-f.kick:
			if rules && rest == elementsEvery {
				rest = rulesEvery
				timer.Reset(f.untilRested(rest))
			}
		}
	}
}

// untilRested returns the wait until the last trial is long enough ago.
func (f *forwarding) untilRested(rest time.Duration) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return max(ruleSettle, time.Until(f.ended.Add(rest)))
}

// next returns the wait before the next trial that no notification asks for.
func (f *forwarding) next() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.found.unnotified, f.found.failure != "", len(f.links) == 0:
		return faultyEvery
	case len(f.found.faults) > 0, len(legacyTables(unix.AF_INET))+len(legacyTables(unix.AF_INET6)) > 0:
		return legacyEvery
	}
	return otherwise
}

// reconfigured asks for a trial if the link is one of the underlay.
func (f *forwarding) reconfigured(index int32) {
	f.mu.Lock()
	concerns := f.links[index]
	f.mu.Unlock()
	if concerns {
		f.changed(true)
	}
}

// changed asks for a trial. rules says that more than elements of sets changed.
func (f *forwarding) changed(rules bool) {
	for {
		select {
		case f.kick <- rules:
			return
		default:
		}
		if !rules {
			return
		}
		select { // make room: a change of elements may be there
		case <-f.kick:
		default:
		}
	}
}

// lines returns the lines for [Dataplane.Diagnose].
func (f *forwarding) lines() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for _, fault := range f.found.faults {
		all = append(all, fault.Text)
	}
	if f.found.failure != "" {
		all = append(all, f.found.failure)
	}
	return all
}

// CheckForwarding implements [fabric.Dataplane].
func (d *Dataplane) CheckForwarding(ctx context.Context) ([]fabric.ForwardingFault, error) {
	if len(d.forwarding.trials.guests.get()) == 0 {
		return nil, nil
	}
	d.waysOut.look()
	faults, err := d.forwarding.check(ctx)
	return append(d.waysOut.list(), faults...), err
}

// check makes a trial and keeps its result.
func (f *forwarding) check(ctx context.Context) ([]fabric.ForwardingFault, error) {
	f.try.Lock()
	defer f.try.Unlock()
	began := time.Now()
	found, err := inTime(ctx, f.attempt)
	if brokenOff(err) {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = time.Now()
	if err != nil {
		f.found.failure = err.Error()
		return nil, err
	}
	if !slices.Equal(found.faults, f.found.faults) || f.found.failure != "" {
		for _, fault := range found.faults {
			f.log.Warn("forwarding", "fault", fault.Text)
		}
		if len(found.faults) == 0 {
			f.log.Info("guests' packets pass this node", "took", time.Since(began))
		}
	}
	f.found = found
	return slices.Clone(found.faults), nil
}

// inTime makes a trial within trialBound. The error says why it could not be made, or that
// it was broken off.
func inTime(ctx context.Context, try func(context.Context) (findings, error)) (findings, error) {
	bound, cancel := context.WithTimeout(ctx, trialBound)
	defer cancel()
	found, err := try(bound)
	switch {
	case err == nil:
		return found, nil
	case !brokenOff(err) || bound.Err() == nil:
		return found, fmt.Errorf("whether guests' packets pass this node could not be tried: %w", err)
	case ctx.Err() == nil:
		return found, fmt.Errorf("whether guests' packets pass this node was not tried: %w after %v; try again when the machine is less busy", err, trialBound)
	}
	return found, fmt.Errorf("whether guests' packets pass this node was not tried: %w", err)
}

// brokenOff reports whether a trial ended because its time was over, or because whoever
// asked for it went away.
func brokenOff(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// attempt makes a trial over the links of the underlay. From its beginning on,
// changes of the settings of these links ask for another.
func (f *forwarding) attempt(ctx context.Context) (findings, error) {
	links, err := f.trials.links()
	if err != nil {
		return findings{}, fmt.Errorf("underlay: %w", err)
	}
	f.mu.Lock()
	f.links = map[int32]bool{}
	for _, l := range links {
		f.links[l.index] = true
	}
	f.mu.Unlock()
	return f.trials.run(ctx, links)
}

// dialRules opens a socket for notifications of changes of nftables rules.
func dialRules() (*netlink.Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("nfnetlink: %w", err)
	}
	if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		conn.Close()
		return nil, fmt.Errorf("nfnetlink: %w; load nf_tables", err)
	}
	return conn, nil
}

// listen asks for a trial after each change of rules of others, until ctx ends.
func (f *forwarding) listen(ctx context.Context) {
	if f.rules == nil {
		return
	}
	defer context.AfterFunc(ctx, func() { _ = f.rules.SetReadDeadline(time.Unix(1, 0)) })()
	for {
		msgs, err := f.rules.Receive()
		switch {
		case err == nil:
		case rtnl.Errno(err) == unix.ENOBUFS:
			f.changed(true)
			continue
		default:
			return // ctx has ended
		}
		for _, m := range msgs {
			if concerns, rules := ruleChange(m); concerns {
				f.changed(rules)
			}
		}
	}
}

// ruleChange reports whether a notification is about a table that is not the
// fabric's, and about more than elements of a set.
func ruleChange(m netlink.Message) (concerns, rules bool) {
	const sizeofNfgenmsg, attrTable = 4, 1 // NFTA_*_TABLE of every kind of object
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < sizeofNfgenmsg {
		return false, false
	}
	kind := uint16(m.Header.Type) & 0xff
	if kind == unix.NFT_MSG_NEWGEN || kind == unix.NFT_MSG_TRACE {
		return false, false
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[sizeofNfgenmsg:])
	if err != nil {
		return false, false
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		if ad.Type() == attrTable {
			name := ad.String()
			return name != tableName && name != trialName, kind != unix.NFT_MSG_NEWSETELEM && kind != unix.NFT_MSG_DELSETELEM
		}
	}
	return false, false
}
