package kernel

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
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

// forwarding finds out by trials whether packets of guests pass the node.
type forwarding struct {
	guests []netip.Addr // one address that a guest may have, of each family that is to pass
	links  func() ([]string, error)
	hosts  []netip.Addr // the cluster's other machines
	rtnl   *socket
	ipv6   bool
	log    *slog.Logger
	rules  *netlink.Conn // notifies of changes of nftables rules; nil without nf_tables
	kick   chan bool     // something changed; true: more than elements of sets
	stop   context.CancelFunc
	wg     sync.WaitGroup
	exempt func(on bool) // lets the throw-away port's source pass the fabric's own source checks

	try sync.Mutex // held during a trial

	mu      sync.Mutex
	faults  []fabric.ForwardingFault
	failure string         // why the last trial could not be made
	unheard bool           // an obstacle goes without a notification
	indexes map[int32]bool // of the links of the underlay, as of the last trial
	last    time.Time      // of a trial
}

// newForwarding returns a forwarding that tries with addresses that guests may
// have. Without any it makes no trials.
func newForwarding(samples []netip.Addr, ipv6 bool) *forwarding {
	f := &forwarding{}
	for _, a := range samples {
		if a.Is4() || ipv6 {
			f.guests = append(f.guests, a)
		}
	}
	if len(f.guests) > 0 {
		f.kick = make(chan bool, 1)
	}
	return f
}

// startForwarding removes the remains of an earlier process's trial, and starts the
// trials.
func (d *Dataplane) startForwarding(ctx context.Context) error {
	f := d.forwarding
	if len(f.guests) == 0 {
		return nil
	}
	f.links, f.hosts, f.ipv6, f.log, f.exempt = d.underlayLinks, d.underlay, d.ipv6, d.log, d.exemptTrial
	if err := d.rtnl.removeTrial(); err != nil {
		return err
	}
	var err error
	if f.rtnl, err = dial(); err != nil { // a trial waits for the kernel; other requests must not wait with it
		return err
	}
	f.rules, err = dialRules()
	if err != nil {
		d.log.Warn("changes of nftables rules are not heard of", "err", err)
	}
	ctx, f.stop = context.WithCancel(ctx)
	if f.rules != nil {
		f.wg.Go(f.listen)
	}
	f.wg.Go(func() { f.run(ctx) })
	return nil
}

func (f *forwarding) close() error {
	if f.stop == nil {
		return nil
	}
	f.stop()
	if f.rules != nil {
		f.rules.Close()
	}
	f.wg.Wait()
	return f.rtnl.Close()
}

// run makes trials after changes, and in intervals.
func (f *forwarding) run(ctx context.Context) {
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
		_, _ = f.check(ctx) // kept for Diagnose
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
	f.mu.Lock()
	at := f.last.Add(rest)
	f.mu.Unlock()
	timer := time.NewTimer(max(ruleSettle, time.Until(at)))
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
				f.mu.Lock()
				at = f.last.Add(rest)
				f.mu.Unlock()
				timer.Reset(max(ruleSettle, time.Until(at)))
			}
		}
	}
}

// next returns the wait before the next trial that no notification asks for.
func (f *forwarding) next() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.unheard, f.failure != "", len(f.indexes) == 0:
		return faultyEvery
	case len(f.faults) > 0, len(legacyTables(unix.AF_INET))+len(legacyTables(unix.AF_INET6)) > 0:
		return legacyEvery
	}
	return otherwise
}

// reconfigured asks for a trial if the link is one of the underlay.
func (f *forwarding) reconfigured(index int32) {
	f.mu.Lock()
	concerns := f.indexes[index]
	f.mu.Unlock()
	if concerns {
		f.changed(true)
	}
}

// changed asks for a trial. rules says that more than elements of sets changed.
func (f *forwarding) changed(rules bool) {
	if f.kick == nil {
		return // there are no trials
	}
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

// exemptTrial lets the throw-away port send from guests' addresses, which are
// routed elsewhere, or nowhere.
func (d *Dataplane) exemptTrial(on bool) {
	d.mu.Lock()
	d.trying = on
	d.mu.Unlock()
	d.keepFilter(d.arriving)
}

// lines returns the lines for [Dataplane.Diagnose].
func (f *forwarding) lines() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for _, fault := range f.faults {
		all = append(all, fault.Text)
	}
	if f.failure != "" {
		all = append(all, f.failure)
	}
	return all
}

// CheckForwarding implements [fabric.Dataplane].
func (d *Dataplane) CheckForwarding(ctx context.Context) ([]fabric.ForwardingFault, error) {
	if len(d.forwarding.guests) == 0 {
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
	ctx, cancel := context.WithTimeout(ctx, trialBound)
	defer cancel()
	began := time.Now()
	found, err := f.trial(ctx)
	if ctx.Err() != nil && err != nil {
		return nil, fmt.Errorf("forwarding not tried: %w", err) // the caller went away, or the trial took too long
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = time.Now()
	if err != nil {
		f.failure = fmt.Sprintf("whether guests' packets pass this node could not be tried: %v", err)
		return nil, fmt.Errorf("%s", f.failure)
	}
	if !slices.Equal(found, f.faults) || f.failure != "" {
		for _, fault := range found {
			f.log.Warn("forwarding", "fault", fault.Text)
		}
		if len(found) == 0 {
			f.log.Info("guests' packets pass this node", "took", time.Since(began))
		}
	}
	f.faults, f.failure = found, ""
	return slices.Clone(found), nil
}

// trial tries every way of every link and family.
func (f *forwarding) trial(ctx context.Context) (found []fabric.ForwardingFault, err error) {
	names, err := f.links()
	if err != nil {
		return nil, fmt.Errorf("underlay: %w", err)
	}
	var links []link
	indexes := map[int32]bool{}
	for _, name := range names {
		if l, err := f.rtnl.linkByName(name); err == nil && l.up() {
			links = append(links, l)
			indexes[l.index] = true
		}
	}
	f.mu.Lock()
	f.indexes = indexes
	f.mu.Unlock()
	if len(links) == 0 {
		return nil, nil // no link leads anywhere; the BGP sessions say so
	}
	// A setting that the agent itself repairs is no obstacle, so repair it first.
	// If that fails, the watcher says so.
	_ = enableForwarding()
	f.exempt(true)
	defer f.exempt(false)
	t, err := openTrial(f.rtnl, f.ipv6)
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := t.close(); err == nil {
			err = cerr
		}
	}()
	var all []lost
	for _, l := range links {
		for _, guest := range f.guests {
			some, err := f.course(ctx, t, l, guest)
			if err != nil {
				return nil, err
			}
			all = append(all, some...)
		}
	}
	f.mu.Lock()
	f.unheard = slices.ContainsFunc(all, func(l lost) bool { return l.unheard })
	f.mu.Unlock()
	return faults(all, len(links)), nil
}

// course tries the ways of one family over one link. It sends a packet that seems
// lost a second time.
func (f *forwarding) course(ctx context.Context, t *trial, l link, guest netip.Addr) ([]lost, error) {
	c := course{family: familyOf(guest), link: l, guest: guest}
	c.remote = remotes[c.family]
	c.sender = f.sender(c)
	evidence := evidence{legacy: legacyTables(c.family), setting: func(path string) string { v, _ := readSysctl(path); return v }}
	ways := func(do func(w way) error) error {
		for _, inbound := range []bool{true, false} {
			for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
				if err := do(way{c.family, inbound, proto, l.name}); err != nil {
					return err
				}
			}
		}
		return nil
	}
	var all []lost
	if o, off := settingObstacle(way{family: c.family, link: l.name}, evidence); off {
		// All ways of the family are closed; a trial is not needed.
		err := ways(func(w way) error { all = append(all, lost{w, o, true}); return nil })
		return all, err
	}
	if err := t.prepare(c); err != nil {
		return nil, err
	}
	err := ways(func(w way) error {
		o, err := t.send(ctx, c, w, trialWait)
		if err == nil && !o.passed {
			if o.dropper().table == tableName {
				// The fabric's own table was made anew meanwhile, by the watcher or
				// after somebody flushed all rules.
				f.exempt(true)
			}
			if o, err = t.send(ctx, c, w, t.patience); err == nil && !o.passed && o.dropper().table == "" {
				t.patience = trialWait
			}
		}
		if err != nil || o.passed {
			return err
		}
		if evidence.chains == nil {
			if evidence.chains, err = listChains(); err != nil {
				return err
			}
		}
		all = append(all, lost{w, explain(w, o, evidence), o.dropper().table == ""})
		return nil
	})
	return all, err
}

// sender returns a source that passes the link's own reverse path filter: a host of
// the Internet if its route is by this link, else a machine of the underlay.
func (f *forwarding) sender(c course) netip.Addr {
	for _, a := range append([]netip.Addr{c.remote}, f.hosts...) {
		if familyOf(a) != c.family {
			continue
		}
		replies, err := f.rtnl.Do(routeRequest(a, 0))
		if err != nil {
			continue
		}
		for _, reply := range replies {
			if slices.Contains(routeLinks(reply.Data), c.link.index) {
				return a
			}
		}
	}
	return c.remote
}

// legacyTables lists the tables of a family that iptables-legacy has made.
func legacyTables(family uint8) []string {
	path := "/proc/thread-self/net/ip_tables_names"
	if family == unix.AF_INET6 {
		path = "/proc/thread-self/net/ip6_tables_names"
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

func listChains() ([]chain, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	all, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("nftables chains: %w", err)
	}
	chains := make([]chain, 0, len(all))
	for _, c := range all {
		chains = append(chains, chain{uint8(c.Table.Family), c.Table.Name, c.Name})
	}
	return chains, nil
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

// listen asks for a trial after each change of rules of others.
func (f *forwarding) listen() {
	for {
		msgs, err := f.rules.Receive()
		switch {
		case err == nil:
		case rtnl.Errno(err) == unix.ENOBUFS:
			f.changed(true)
			continue
		default:
			return // closed
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
