// Package allocator decides which addresses of the pools a guest gets. It is pure:
// the caller passes the time and the randomness in, and carries the decision out.
package allocator

import (
	"cmp"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/text"
)

// Table has the allocations of a cluster's pools. The zero value is empty.
type Table struct {
	// UntilDeleted says that a quarantine lasts until it is deleted, whatever its end:
	// the clock of another machine decides.
	UntilDeleted bool
	// Least is the lowest epoch that an owner gets.
	Least uint64

	rows    rows
	lengths map[length]int        // how many prefixes there are of each length
	kept    map[netip.Prefix]bool // the prefixes in quarantine
	parts   map[string]*parts     // of the pools that gave prefixes, by their names
}

// length is that of prefixes of a family.
type length struct {
	bits int
	v6   bool
}

func lengthOf(p netip.Prefix) length { return length{p.Bits(), p.Addr().Is6()} }

// Put adds an allocation, or replaces that of its prefix.
func (t *Table) Put(a fabric.Allocation) {
	if t.lengths == nil {
		t.lengths, t.kept = map[length]int{}, map[netip.Prefix]bool{}
	}
	t.Delete(a.Prefix)
	if is, known := t.rows.owner(a.Guest); known && a.State == fabric.Allocated {
		a.Node, a.Epoch = is.Node, is.Epoch
	}
	t.rows.put(a)
	for _, of := range t.parts {
		of.add(a.Prefix)
	}
	t.lengths[lengthOf(a.Prefix)]++
	if a.State == fabric.Quarantined {
		t.kept[a.Prefix] = true
	}
}

// Delete removes the allocation of a prefix, if there is one.
func (t *Table) Delete(p netip.Prefix) {
	a, there := t.rows.get(p)
	if !there {
		return
	}
	t.rows.delete(a)
	delete(t.kept, p)
	for _, of := range t.parts {
		of.remove(p)
	}
	if t.lengths[lengthOf(p)]--; t.lengths[lengthOf(p)] == 0 {
		delete(t.lengths, lengthOf(p))
	}
}

// Get gives the allocation of a prefix, if there is one.
func (t *Table) Get(p netip.Prefix) (fabric.Allocation, bool) {
	return t.rows.get(p)
}

// Apply carries a change out.
func (t *Table) Apply(c Change) {
	for _, p := range c.Delete {
		t.Delete(p)
	}
	for _, a := range c.Put {
		t.Put(a)
	}
}

// List lists the allocations that a filter selects, in the order of their prefixes.
func (t *Table) List(f fabric.AllocationFilter) []fabric.Allocation { return Sort(t.Select(f)) }

// Select is List in no order, which takes a fraction of the time: the caller can
// [Sort] what it got while others use the table.
func (t *Table) Select(f fabric.AllocationFilter) []fabric.Allocation {
	switch {
	case f.Guest != "":
		return slices.DeleteFunc(t.Of(f.Guest), func(a fabric.Allocation) bool { return !f.Selects(a) })
	case f.Prefix.IsValid():
		return t.sharing(f.Prefix)
	}
	return slices.AppendSeq(make([]fabric.Allocation, 0, t.rows.all.Len()), t.rows.values())
}

// Sort puts allocations into the order of their prefixes.
func Sort(all []fabric.Allocation) []fabric.Allocation {
	slices.SortFunc(all, func(a, b fabric.Allocation) int { return a.Prefix.Compare(b.Prefix) })
	return all
}

// Of lists the allocations of a guest in the order of their prefixes.
func (t *Table) Of(guest fabric.Identity) []fabric.Allocation {
	var all []fabric.Allocation
	for _, p := range t.rows.of(guest) {
		a, _ := t.rows.get(p)
		all = append(all, a)
	}
	return all
}

// Expired returns the change that ends the quarantines that are over.
func (t *Table) Expired(now time.Time) (c Change) {
	for p := range t.kept {
		if a, _ := t.rows.get(p); t.over(a, now) {
			c.Delete = append(c.Delete, p)
		}
	}
	slices.SortFunc(c.Delete, netip.Prefix.Compare)
	return c
}

func over(a fabric.Allocation, now time.Time) bool {
	return a.State == fabric.Quarantined && !now.Before(a.Until)
}

func (t *Table) over(a fabric.Allocation, now time.Time) bool {
	return !t.UntilDeleted && over(a, now)
}

// Change is what has to be recorded. A prefix occurs once.
type Change struct {
	Put    []fabric.Allocation
	Delete []netip.Prefix
}

// Empty reports whether there is nothing to record.
func (c Change) Empty() bool { return len(c.Put)+len(c.Delete) == 0 }

// around gives an allocation that has all of p, if there is one. Quarantines that are
// over do not count.
func (t *Table) around(p netip.Prefix, now time.Time) (fabric.Allocation, bool) {
	for l := range t.lengths {
		if l.bits > p.Bits() || l.v6 != p.Addr().Is6() {
			continue
		}
		around := netip.PrefixFrom(p.Addr(), l.bits).Masked()
		if a, there := t.rows.get(around); there && !t.over(a, now) {
			return a, true
		}
	}
	return fabric.Allocation{}, false
}

// sharing lists the allocations that have an address in common with p, also quarantines
// that are over. It looks at all allocations only if p has room for one inside.
func (t *Table) sharing(p netip.Prefix) (all []fabric.Allocation) {
	for l := range t.lengths {
		if l.bits <= p.Bits() && l.v6 == p.Addr().Is6() {
			if a, there := t.rows.get(netip.PrefixFrom(p.Addr(), l.bits).Masked()); there {
				all = append(all, a)
			}
		}
	}
	for a := range t.longer(lengthOf(p), time.Time{}) {
		if holds(p, a.Prefix) {
			all = append(all, a)
		}
	}
	return all
}

// HasLength reports whether there are allocations of prefixes of the family and length
// of p.
func (t *Table) HasLength(p netip.Prefix) bool { return t.lengths[lengthOf(p)] > 0 }

// longer iterates over the allocations of the prefixes of a family that are longer.
// Quarantines that are over do not count.
func (t *Table) longer(than length, now time.Time) iter.Seq[fabric.Allocation] {
	is := func(l length) bool { return l.v6 == than.v6 && l.bits > than.bits }
	return func(yield func(fabric.Allocation) bool) {
		some := false
		for l := range t.lengths {
			some = some || is(l)
		}
		if !some {
			return
		}
		for a := range t.rows.values() {
			if is(lengthOf(a.Prefix)) && !t.over(a, now) && !yield(a) {
				return
			}
		}
	}
}

// Allocate decides what a guest gets: everything that it asks for, or nothing. What
// the guest had and does not ask for any more goes into quarantine. The allocations
// are in the order of the wants. An address inside of a prefix that the guest gets, too,
// is not recorded for itself. mayGive says why the caller gives no address from a
// pool; nil: it may.
func (t *Table) Allocate(c *fabric.Cluster, a fabric.AllocationRequest, now time.Time, rnd *rand.Rand, mayGive func(fabric.Pool) error) ([]fabric.Allocation, Change, error) {
	d := decision{
		table: t, cluster: c, asking: a, now: now, rnd: rnd, mayGive: mayGive,
		wanted: map[netip.Prefix]bool{}, given: make([]fabric.Allocation, len(a.Wants)),
	}
	for _, w := range a.Wants {
		if w.Prefix.IsValid() {
			d.wanted[w.Prefix] = true // no other want of the guest gets it
		}
	}
	for _, i := range inOrder(a.Wants) {
		given, err := d.want(a.Wants[i])
		if err != nil {
			err.NIC = a.Wants[i].NIC
			return nil, Change{}, err
		}
		d.given[i] = given
	}
	if err := d.unrouted(); err != nil {
		return nil, Change{}, err
	}
	change := d.change()
	for i, a := range d.given {
		had, there := t.rows.get(a.Prefix)
		recorded := slices.ContainsFunc(d.gets, func(g fabric.Allocation) bool { return g.Prefix == a.Prefix })
		d.given[i].New = recorded && (!there || had.State != a.State || had.Guest != a.Guest)
	}
	return d.given, change, nil
}

// inOrder gives the order in which wants are decided: what pools give before what may lie
// in it, and of what is named a prefix before what may lie in it.
func inOrder(wants []fabric.Want) []int {
	order := make([]int, len(wants))
	rank := make([]int, len(wants))
	for i, w := range wants {
		order[i] = i
		if w.Pool == "" {
			rank[i] = 1 + w.Prefix.Bits()
		}
	}
	slices.SortStableFunc(order, func(x, y int) int { return cmp.Compare(rank[x], rank[y]) })
	return order
}

// decision is an answer in the making.
type decision struct {
	table   *Table
	cluster *fabric.Cluster
	asking  fabric.AllocationRequest
	now     time.Time
	rnd     *rand.Rand
	mayGive func(fabric.Pool) error

	wanted map[netip.Prefix]bool // the prefixes that wants name, or got
	gets   []fabric.Allocation   // what is to be recorded
	given  []fabric.Allocation   // in the order of the wants
}

// want decides one want.
func (d *decision) want(w fabric.Want) (fabric.Allocation, *fabric.AllocationError) {
	a := fabric.Allocation{
		State: fabric.Allocated, Guest: d.asking.Guest, VM: d.asking.VM, NIC: w.NIC, N: w.N,
		Dynamic: w.Pool != "", Node: d.asking.Node, Note: w.Note, Since: d.now,
	}
	if d.asking.Guest == "" {
		a.State = fabric.Reserved
	} else if is, owned := d.table.Owner(d.asking.Guest); is.Epoch > 0 || owned && !d.asking.Starts {
		a.Node, a.Epoch = is.Node, is.Epoch // only Acquire changes it
	} else if d.asking.Starts {
		a.Epoch = max(1, d.table.Least)
	}
	var bad *fabric.AllocationError
	if w.Prefix.IsValid() {
		a.Prefix, a.NoAddress = w.Prefix, w.NoAddress && a.Dynamic
		if i := slices.IndexFunc(d.gets, func(g fabric.Allocation) bool { return holds(g.Prefix, a.Prefix) }); i >= 0 {
			a.Pool, a.Since = d.gets[i].Pool, d.gets[i].Since
			return a, nil
		}
		bad = d.name(&a)
	} else if had, there := d.before(w); there {
		a.Prefix, a.NoAddress, a.Pool, a.Since, a.Note = had.Prefix, had.NoAddress, had.Pool, had.Since, had.Note
	} else {
		bad = d.pick(&a, w)
	}
	if bad != nil {
		return a, bad
	}
	d.wanted[a.Prefix] = true
	d.gets = append(d.gets, a)
	return a, nil
}

// unrouted refuses a prefix without an address in it if the NIC has no other address of the
// family, through which it is routed: on the link itself anybody could fill the node's
// neighbour table, which all guests share, with addresses of the prefix that nothing has.
func (d *decision) unrouted() *fabric.AllocationError {
	if d.asking.From != "" { // the guest's other addresses are not in this request
		return nil
	}
	for _, a := range d.given {
		via := func(o fabric.Allocation) bool {
			return o.NIC == a.NIC && o.Prefix.Addr().Is6() == a.Prefix.Addr().Is6() && (o.Dynamic || o.Prefix.IsSingleIP()) && o.Address().IsValid()
		}
		if !a.NoAddress || slices.ContainsFunc(d.given, via) {
			continue
		}
		family := map[bool]string{false: "IPv4", true: "IPv6"}[a.Prefix.Addr().Is6()]
		return &fabric.AllocationError{
			Reason: fabric.RuleBroken, NIC: a.NIC, Pool: a.Pool,
			Text: fmt.Sprintf("pool %s gives a prefix without an address in it, and the NIC has no other %s address to route it through; name one or ask a pool that gives one, or set guest_address of the pool to true", a.Pool, family),
		}
	}
	return nil
}

// before gives the allocation that answered the same want before, also one that the
// guest gave back and that nobody else has got since.
func (d *decision) before(w fabric.Want) (fabric.Allocation, bool) {
	if d.asking.Guest == "" {
		return fabric.Allocation{}, false
	}
	for _, a := range d.table.Of(d.asking.Guest) {
		if w.Answers(a) && !d.wanted[a.Prefix] {
			return a, true
		}
	}
	for p := range d.table.kept {
		if a, _ := d.table.rows.get(p); a.Guest == d.asking.Guest && w.Answers(a) && !d.wanted[p] {
			a.Since = d.now
			return a, true
		}
	}
	return fabric.Allocation{}, false
}

// name decides about an address that the guest's description names, or that is to be
// reserved. It takes the address out of its quarantine or reservation, but from no
// guest except the one that the request names.
func (d *decision) name(a *fabric.Allocation) *fabric.AllocationError {
	if pool, in := d.cluster.PoolOf(a.Prefix.Addr()); in {
		a.Pool = pool.Name
		if r, reserved := pool.Reserved(a.Prefix.Addr()); reserved {
			a.Note = cmp.Or(a.Note, r.Note)
		}
	}
	held, taken := d.held(a.Prefix)
	if i := slices.IndexFunc(d.gets, func(g fabric.Allocation) bool { return holds(a.Prefix, g.Prefix) }); i >= 0 {
		held, taken = d.gets[i], true // which a pool gave to the same guest
	}
	from, same := d.asking.From, held.Prefix == a.Prefix && held.State == a.State
	switch {
	case from != "" && !taken:
		return &fabric.AllocationError{
			Reason: fabric.RuleBroken, Pool: a.Pool, Prefix: a.Prefix,
			Text: fmt.Sprintf("%s is not allocated to %s any more, nor to another guest; see who is to have it, and ask again", text.Prefix(a.Prefix), from),
		}
	case !taken:
	case from != "" && same && held.Guest == from && held.Epoch != d.asking.FromEpoch:
		return &fabric.AllocationError{
			Reason: fabric.AddressHeld, Pool: a.Pool, Prefix: a.Prefix, Holder: held,
			Text: fmt.Sprintf("%s is that of guest %s, which node %s acquired in the meantime; see whether it runs there, then try again", text.Prefix(a.Prefix), held.VM, held.Node),
		}
	case from != "" && same && held.Guest == from:
		a.Note = cmp.Or(a.Note, held.Note)
	case same && held.Guest == a.Guest:
		a.Since, a.Note = held.Since, cmp.Or(a.Note, held.Note)
	case from == "" && held.Prefix == a.Prefix && held.State == fabric.Quarantined && a.State == fabric.Allocated:
	case from == "" && held.Prefix == a.Prefix && held.State == fabric.Reserved && a.State == fabric.Allocated:
		a.Note, a.Reserved = held.Note, true
	default:
		return &fabric.AllocationError{Reason: fabric.AddressHeld, Pool: a.Pool, Prefix: a.Prefix, Holder: held, Text: heldText(a.Prefix, held)}
	}
	if held.Prefix == a.Prefix && held.Reserved {
		a.Reserved = true
	}
	return nil
}

// held gives the allocation of a prefix, or else one that has an address in common with
// it and is not the guest's own: what the guest has there is replaced.
func (d *decision) held(p netip.Prefix) (fabric.Allocation, bool) {
	if a, there := d.table.rows.get(p); there && !d.table.over(a, d.now) {
		return a, true
	}
	if a, there := d.table.around(p, d.now); there && !d.replaces(a) {
		return a, true
	}
	for a := range d.table.longer(lengthOf(p), d.now) {
		if holds(p, a.Prefix) && !d.replaces(a) {
			return a, true
		}
	}
	return fabric.Allocation{}, false
}

// replaces reports whether an allocation is the guest's own, or was.
func (d *decision) replaces(a fabric.Allocation) bool {
	return d.asking.Guest != "" && a.Guest == d.asking.Guest && a.State != fabric.Reserved && !a.Reserved
}

// holds reports whether all of q is in p.
func holds(p, q netip.Prefix) bool { return p.Bits() <= q.Bits() && p.Overlaps(q) }

// heldText says for people who has an address.
func heldText(p netip.Prefix, held fabric.Allocation) string {
	what := text.Prefix(p)
	if held.Prefix != p {
		what = fmt.Sprintf("%s has %s in common with it, which", what, text.Prefix(held.Prefix))
	}
	if held.Flaw != "" {
		return what + " may be another guest's: " + held.Flaw
	}
	switch held.State {
	case fabric.Reserved:
		if held.Note != "" {
			return fmt.Sprintf("%s is reserved (%s); end the reservation, or choose another", what, held.Note)
		}
		return what + " is reserved; end the reservation, or choose another"
	case fabric.Quarantined:
		return fmt.Sprintf("%s was given back by guest %s, and is kept until %s; wait, or choose another", what, held.VM, held.Until.UTC().Format(time.RFC3339))
	}
	return fmt.Sprintf("%s is allocated to guest %s (%s), which got it on %s; give that one another address, or choose another", what, held.VM, held.Guest, held.Node)
}

// change gives what the answer changes in the table. What the guest had and does not
// get any more is given back; what overlaps with something that it gets is in that.
func (d *decision) change() (c Change) {
	gets, wide := map[netip.Prefix]bool{}, []netip.Prefix{}
	for _, a := range d.gets {
		gets[a.Prefix] = true
		if !a.Prefix.IsSingleIP() {
			wide = append(wide, a.Prefix)
		}
		if had, there := d.table.rows.get(a.Prefix); !there || had != a {
			c.Put = append(c.Put, a)
		}
	}
	if d.asking.Guest == "" {
		return c
	}
	replaced := func(p netip.Prefix) bool {
		if p.IsSingleIP() {
			return slices.ContainsFunc(wide, p.Overlaps)
		}
		return slices.ContainsFunc(d.gets, func(g fabric.Allocation) bool { return g.Prefix.Overlaps(p) })
	}
	for _, a := range d.table.Of(d.asking.Guest) {
		switch {
		case gets[a.Prefix]:
		case replaced(a.Prefix):
			c.Delete = append(c.Delete, a.Prefix)
		case d.asking.From != "" && !d.answersAnew(a): // it keeps what it has besides
		default:
			c.release(d.cluster, a, d.now, false)
		}
	}
	for p := range d.table.kept {
		if a, _ := d.table.rows.get(p); a.Guest == d.asking.Guest && !gets[p] && replaced(p) {
			c.Delete = append(c.Delete, p)
		}
	}
	return c
}

// answersAnew reports whether a pool gave the guest something for a want that has another
// answer now.
func (d *decision) answersAnew(had fabric.Allocation) bool {
	return had.Dynamic && slices.ContainsFunc(d.gets, func(a fabric.Allocation) bool { return a.Dynamic && a.NIC == had.NIC && a.N == had.N })
}

// Release decides what ends the allocations that r names. The released ones are as
// they were before.
func (t *Table) Release(cluster *fabric.Cluster, r fabric.ReleaseRequest, now time.Time) (released []fabric.Allocation, c Change) {
	if !r.Prefix.IsValid() {
		released = t.Of(r.Guest)
	} else if a, there := t.rows.get(r.Prefix); there && (r.Guest == "" || a.Guest == r.Guest) && !t.over(a, now) && (a.State != fabric.Quarantined || r.Now) {
		released = []fabric.Allocation{a}
	}
	for _, a := range released {
		c.release(cluster, a, now, r.Now)
	}
	return released, c
}

// release adds the end of an allocation to a change: a reserved address is reserved
// again, one of a guest is quarantined, and the others are free.
func (c *Change) release(cluster *fabric.Cluster, a fabric.Allocation, now time.Time, at bool) {
	if a.Reserved {
		c.Put = append(c.Put, fabric.Allocation{Prefix: a.Prefix, Pool: a.Pool, State: fabric.Reserved, Note: a.Note, Since: now})
		return
	}
	pool, in := cluster.PoolOf(a.Prefix.Addr())
	if at || a.State != fabric.Allocated || !in {
		c.Delete = append(c.Delete, a.Prefix)
		return
	}
	a.State, a.Since, a.Until, a.Flaw = fabric.Quarantined, now, now.Add(pool.Quarantine), ""
	c.Put = append(c.Put, a)
}
