package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sync/errgroup"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/ledger"
	"github.com/vmfabric/vmfabric/internal/signal"
)

// Accounting makes a [Dataplane] count the packets of guests.
type Accounting struct {
	// Internal lists the prefixes of the cluster: its pools, what is routed to guests,
	// and the underlay. What guests exchange with an address in none of them is external.
	Internal []netip.Prefix
	Keep     Keeper
}

// Keeper keeps a value over restarts of the program. One of package disk is a Keeper.
type Keeper interface {
	Get(into any) (found bool, err error) // what was put last
	Put(is any) error
}

const (
	// keepEvery is how often the totals are read from the kernel and kept. A power cut, and
	// somebody who flushes the kernel's tables, take what was counted since.
	keepEvery = 30 * time.Second
	// accountEvery is how often the accounting looks whether its tables are intact, and
	// whether what it keeps says no more whose the kernel's counters are.
	accountEvery = time.Second
	// keepShare bounds the time that keeping takes while ports come and go: one part in as
	// many.
	keepShare = 20
)

// accounting counts the packets that the node forwards for guests, by address, in tables
// of nftables of its own ([counterTable]). An attach waits for none of its work: one
// goroutine makes the counters of new ports, all of those that have come together. The
// kernel has the counters while no agent runs. A ledger adds up what they say.
type accounting struct {
	internal   atomic.Pointer[[]netip.Prefix]
	ports      *ports
	keep       Keeper
	conditions *conditions
	log        *slog.Logger
	wake       signal.Signal // a port came, went or changed

	again *resent
	books guardedBooks
}

// guardedBooks are the books of an accounting, and their lock.
type guardedBooks struct {
	mu sync.Mutex
	is books
}

func (b *guardedBooks) open() (is *books, done func()) {
	b.mu.Lock()
	return &b.is, b.mu.Unlock
}

// changed reports whether what was kept last lacks an owner, or packets that were sent
// again.
func (b *guardedBooks) changed() bool {
	is, done := b.open()
	defer done()
	return is.changed || is.again.pending()
}

// newAccounting returns nil if there is nothing to count for.
func newAccounting(d *Dataplane, cfg *Accounting) *accounting {
	if cfg == nil {
		return nil
	}
	a := &accounting{
		ports: d.ports, keep: cfg.Keep, conditions: d.conditions, log: d.log,
		wake: signal.New(), again: &resent{},
	}
	a.internal.Store(&cfg.Internal)
	a.books.is.held, a.books.is.again, a.books.is.log = d.replayed, a.again, d.log
	for _, f := range []family{ipv4, ipv6} {
		if f.proto == ipv4.proto || d.host.ipv6 {
			a.books.is.tables = append(a.books.is.tables, newCounterTable(f, cfg.Internal))
		}
	}
	return a
}

// reconfigure counts from now on by other prefixes of the cluster. What was counted stays.
func (a *accounting) reconfigure(internal []netip.Prefix) error {
	a.internal.Store(&internal)
	is, done := a.books.open()
	defer done()
	return is.reconfigure(internal)
}

// open takes over what an earlier process counted, and makes the tables. If there is
// nothing to count for, packets are not to pay for it.
func (a *accounting) open() error {
	if a == nil {
		return removeCounters()
	}
	is, done := a.books.open()
	defer done()
	if _, err := a.keep.Get(&is.ledger); err != nil {
		is.ledger = ledger.Ledger{}
		a.conditions.set("accounting kept", fmt.Sprintf("accounting: what was counted until now is lost: %v", err))
	}
	a.report(is.ensure())
	return nil
}

// removeCounters removes the tables that a process with accounting left.
func removeCounters() error {
	c, err := openTables()
	if unknownTo(err, noTables...) != nil {
		return nil // there are none
	}
	if err != nil {
		return err
	}
	for _, of := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		t, err := c.ListTableOfFamily(accountingTable, of)
		if err == nil && t != nil {
			c.DelTable(t)
		}
	}
	return c.Flush()
}

// close keeps what was counted. The kernel goes on counting.
func (a *accounting) close() error {
	if a == nil {
		return nil
	}
	is, done := a.books.open()
	defer done()
	err := is.settle()
	if errors.Is(err, errNoCounters) { // they were never made, and a condition says why
		err = nil
	}
	return errors.Join(err, a.put(is))
}

// run makes the counters of ports, and keeps the totals, until ctx ends. The kernel has the
// counters, but not whose they are: so the totals are kept sooner when a port came or went,
// or a guest's packets were sent again. Who kills the program then takes no count of a
// guest that has moved.
func (a *accounting) run(ctx context.Context) {
	if a == nil {
		return
	}
	tick := time.NewTicker(accountEvery)
	defer tick.Stop()
	kept, took := time.Now(), time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
			a.follow(true)
		case <-tick.C:
			a.follow(false)
			since := time.Since(kept)
			if since >= keepEvery || a.books.changed() && since >= keepShare*took {
				kept = time.Now()
				a.keepTotals(since >= keepEvery)
				took = time.Since(kept)
			}
		}
	}
}

// keepTotals reads the counters, and keeps the totals. With tidy it removes the counters
// that no port has any more.
func (a *accounting) keepTotals(tidy bool) {
	is, done := a.books.open()
	defer done()
	err := is.settle()
	if err == nil && tidy {
		err = is.drop(a.wanted())
	}
	a.report(err)
	if err := a.put(is); err != nil {
		a.log.Warn("accounting not kept", "err", err)
	}
}

// follow makes the counters of the ports as they are now, if some may lack theirs.
func (a *accounting) follow(changed bool) {
	is, done := a.books.open()
	defer done()
	is.behind = is.behind || changed
	err := is.ensure()
	if err == nil && is.behind {
		err = is.follow(a.wanted())
		is.behind = err != nil
	}
	a.report(err)
}

// notice wakes the accounting: a port came, went or changed.
func (a *accounting) notice() {
	if a != nil {
		a.wake.Send()
	}
}

// sentAgain leaves a packet to a guest out that was counted here, and then sent again to
// another node, which counts it.
func (a *accounting) sentAgain(prefixes []netip.Prefix, source, destination netip.Addr, bytes int) {
	i := slices.IndexFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(destination) })
	if a == nil || i < 0 {
		return
	}
	which := ledger.ReceivedExternal
	if slices.ContainsFunc(*a.internal.Load(), func(p netip.Prefix) bool { return p.Contains(source) }) {
		which = ledger.ReceivedInternal
	}
	a.again.add(prefixes[i].Masked(), which, bytes)
}

// resent has what was sent again since it was last taken. Who adds to it waits for no
// reading of counters.
type resent struct {
	mu  sync.Mutex
	all map[netip.Prefix]ledger.Counts
}

func (r *resent) add(p netip.Prefix, which ledger.Counter, bytes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = map[netip.Prefix]ledger.Counts{}
	}
	counts := r.all[p]
	counts[which] = counts[which].Plus(fabric.Count{Packets: 1, Bytes: uint64(bytes)})
	r.all[p] = counts
}

func (r *resent) pending() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.all) > 0
}

func (r *resent) take() map[netip.Prefix]ledger.Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.all
	r.all = nil
	return all
}

// wanted lists the prefixes behind the ports, and whose they are.
func (a *accounting) wanted() map[netip.Prefix]string {
	all := map[netip.Prefix]string{}
	for _, name := range a.ports.names() {
		if p, wanted := a.ports.get(name); wanted {
			for _, prefix := range p.NIC.Prefixes() {
				all[prefix.Masked()] = p.VM
			}
		}
	}
	return all
}

func (a *accounting) put(is *books) error {
	err := a.keep.Put(&is.ledger)
	is.changed = is.changed && err != nil
	text := ""
	if err != nil {
		text = fmt.Sprintf("accounting: what is counted is lost with a boot: %v", err)
	} else {
		a.conditions.set("accounting kept", "")
	}
	a.conditions.set("accounting put", text)
	return err
}

// report makes a condition of an error.
func (a *accounting) report(err error) {
	text := ""
	if err != nil {
		text = fmt.Sprintf("accounting: packets of guests are not counted: %v; load nf_tables, or leave accounting out of the cluster file", err)
	}
	a.conditions.set("accounting", text)
}

// Traffic returns what this node has forwarded for guests, for those that have left it,
// too. With an error it is as it was when it was last known. The error is
// [errors.ErrUnsupported] if the dataplane does not count.
func (d *Dataplane) Traffic(context.Context) ([]fabric.Traffic, error) {
	if d.accounting == nil {
		return nil, fmt.Errorf("packets of guests are not counted: %w", errors.ErrUnsupported)
	}
	is, done := d.accounting.books.open()
	defer done()
	err := is.ensure() // somebody may have flushed the tables
	if err == nil {
		err = is.settle()
	}
	return is.ledger.Traffic(), err
}

// replayed lists the prefixes of the ports that have a replay buffer.
func (d *Dataplane) replayed() map[netip.Prefix]bool {
	open, done := d.moves.open()
	names := slices.Collect(maps.Keys(open.buffers))
	done()
	all := map[netip.Prefix]bool{}
	for _, name := range names {
		p, _ := d.ports.get(name)
		for _, prefix := range p.NIC.Prefixes() {
			all[prefix.Masked()] = true
		}
	}
	return all
}

// books are what is known of the kernel's counters, and the ledger. Who has them has
// them alone; their methods wait for the kernel.
type books struct {
	tables []*counterTable
	ledger ledger.Ledger
	made   string                // which making of the tables there is; empty: not known
	seen   uint32                // generation of the ruleset at which the tables were intact
	have   map[netip.Prefix]bool // the prefixes that have counters
	behind bool                  // a port may lack its counters

	changed bool // the ledger has owners, or packets that were sent again, that are not kept

	held  func() map[netip.Prefix]bool // prefixes of which packets may be sent again to another node
	again *resent
	log   *slog.Logger
}

// madePrefix begins the name of an empty chain, in which the tables say when they were
// made: the counters of others began at zero.
const madePrefix = "made_"

// ensure makes the tables, if they are missing or not as they should be. What they had
// counted is settled before.
func (b *books) ensure() error {
	generation, err := rulesGeneration()
	if err != nil {
		return err
	}
	if b.made != "" && generation == b.seen && generation != 0 {
		return nil
	}
	c, err := openTables(nftables.AsLasting(), nftables.WithSockOptions(roomForAnswers))
	if err != nil {
		return err
	}
	defer func() { _ = c.CloseLasting() }()
	if made := b.intact(c); made != "" {
		if made != b.made {
			b.made = made
			if err := b.recognise(); err != nil {
				return err
			}
		}
		b.seen = generation
		return nil
	}
	// An earlier process may have made other tables. What they have counted stays.
	if b.made = b.madeNow(c); b.made != "" {
		if err := b.settleWith(c); err != nil {
			b.log.Warn("what was counted since it was last read is lost", "err", err)
		}
	}
	made := fmt.Sprintf("%s%x", madePrefix, time.Now().UnixNano())
	for _, t := range b.tables {
		if err := t.rebuild(c); err != nil {
			return err
		}
		c.AddChain(&nftables.Chain{Name: made, Table: t.table})
	}
	if err := c.Flush(); err != nil {
		b.made = ""
		return err
	}
	b.made, b.have, b.seen, b.behind = made, map[netip.Prefix]bool{}, 0, true
	return nil
}

// reconfigure changes the tables, which count on meanwhile. If that cannot be, ensure
// makes them anew.
func (b *books) reconfigure(internal []netip.Prefix) error {
	c, err := openTables(nftables.AsLasting(), nftables.WithSockOptions(roomForAnswers))
	if err != nil {
		return err
	}
	defer func() { _ = c.CloseLasting() }()
	there := b.intact(c) != ""
	b.seen = 0
	for i, was := range b.tables {
		b.tables[i] = newCounterTable(was.family, internal)
		if !there || bytes.Equal(was.mark, b.tables[i].mark) {
			continue
		}
		if err := b.tables[i].replace(c, was.ruleset); err != nil {
			return err
		}
	}
	return c.Flush()
}

// intact returns which making of the tables is there; empty: one is missing or not as it
// should be.
func (b *books) intact(c *nftables.Conn) (made string) {
	for _, t := range b.tables {
		if rules, err := listRules(t.table); err != nil || !t.intact(c, rules) {
			return ""
		}
	}
	return b.madeNow(c)
}

// recognise takes over the counters that an earlier process made.
func (b *books) recognise() error {
	b.have, b.behind = map[netip.Prefix]bool{}, true
	read, err := b.read()
	for p := range read {
		b.have[p] = true
	}
	return err
}

// follow makes the counters of the wanted prefixes that have none, and hands those over
// that went from one guest to another.
func (b *books) follow(wanted map[netip.Prefix]string) error {
	var fresh []netip.Prefix
	changed := map[netip.Prefix]string{}
	handed := false
	for p, vm := range wanted {
		owner, known := b.ledger.Owner(p)
		if !b.have[p] {
			fresh = append(fresh, p)
		}
		if owner != vm || !known {
			changed[p] = vm
			handed = handed || known
		}
	}
	if handed {
		if err := b.settle(); err != nil {
			return err
		}
	}
	if err := b.change(fresh, (*nftables.Conn).SetAddElements); err != nil {
		return err
	}
	for _, p := range fresh {
		b.have[p] = true
	}
	for p, vm := range changed {
		b.ledger.Own(p, vm, time.Now())
	}
	b.changed = b.changed || len(changed) > 0 || len(b.have) > len(wanted)
	return nil
}

// drop removes the counters that no port has any more. They have been settled.
func (b *books) drop(wanted map[netip.Prefix]string) error {
	var gone []netip.Prefix
	for p := range b.have {
		if _, still := wanted[p]; !still {
			gone = append(gone, p)
		}
	}
	if err := b.change(gone, (*nftables.Conn).SetDeleteElements); err != nil {
		b.made = "" // so that ensure looks what is there
		return err
	}
	for _, p := range gone {
		delete(b.have, p)
		b.ledger.Forget(p)
	}
	return nil
}

// change adds prefixes to the sets of their families, or removes them, in one transaction.
func (b *books) change(prefixes []netip.Prefix, do func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error) error {
	if len(prefixes) == 0 {
		return nil
	}
	c, err := openTables(nftables.AsLasting(), nftables.WithSockOptions(roomForAnswers))
	if err != nil {
		return err
	}
	defer func() { _ = c.CloseLasting() }()
	for _, t := range b.tables {
		for _, routed := range []bool{false, true} {
			elements := t.elementsOf(prefixes, routed)
			for _, s := range t.sets(routed) {
				for some := range slices.Chunk(elements, elementsAtOnce) {
					if err := do(c, s, some); err != nil {
						return err
					}
				}
			}
		}
	}
	b.seen = 0
	return c.Flush()
}

// settle reads the counters, and adds what they have counted to the totals.
func (b *books) settle() error {
	c, err := openTables(nftables.AsLasting(), nftables.WithSockOptions(roomForAnswers))
	if err != nil {
		return err
	}
	defer func() { _ = c.CloseLasting() }()
	return b.settleWith(c)
}

func (b *books) settleWith(c *nftables.Conn) error {
	if b.made == "" {
		return errNoCounters
	}
	// Somebody may have put other tables in their place since.
	if made := b.madeNow(c); made != b.made {
		return errNoCounters
	}
	// In this order: a guest whose replay buffer is gone has had its packets sent again.
	held := b.held()
	for p, counts := range b.again.take() {
		b.ledger.SentAgain(p, counts)
		b.changed = true
	}
	read, err := b.read()
	if err != nil {
		return err
	}
	b.ledger.Settle(b.made, read, held, time.Now())
	return nil
}

// madeNow returns which making of the tables there is; empty: one is missing.
func (b *books) madeNow(c *nftables.Conn) (made string) {
	for i, t := range b.tables {
		found := ""
		chains, err := c.ListChainsOfTableFamily(t.table.Family)
		if err != nil {
			return ""
		}
		for _, chain := range chains {
			if chain.Table.Name == accountingTable && strings.HasPrefix(chain.Name, madePrefix) {
				found = chain.Name
			}
		}
		if i > 0 && found != made {
			return ""
		}
		made = found
	}
	return made
}

var errNoCounters = errors.New("the tables of nftables are not there")

// read reads all counters, those of both families at once: most of the time is the kernel's.
func (b *books) read() (map[netip.Prefix]ledger.Counts, error) {
	of := make([]map[netip.Prefix]ledger.Counts, len(b.tables))
	var g errgroup.Group
	for i, t := range b.tables {
		of[i] = make(map[netip.Prefix]ledger.Counts, len(b.have)/(i+1)) // the first one gets all
		g.Go(func() error {
			d, err := openSetDump()
			if err != nil {
				return err
			}
			defer d.close()
			return t.read(d, of[i])
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, more := range of[1:] {
		maps.Copy(of[0], more)
	}
	return of[0], nil
}
