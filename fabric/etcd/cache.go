package etcd

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/allocator"
	"github.com/vmfabric/vmfabric/fabric/internal/packed"
)

// cache is a node's copy of the keys. It has everything up to the revision known, and
// of later revisions what this node wrote or happened to read.
type cache struct {
	keys    keys
	cluster atomic.Pointer[fabric.Cluster]

	mu      sync.Mutex
	table   allocator.Table
	random  *rand.Rand
	known   int64            // zero: nothing was read yet
	revs    revisions        // the revision of each key
	deleted map[string]int64 // when keys were deleted, if that was after known
	damage  damage
	lengths map[length]bool // those of prefixes of several addresses that are in use, or were
	owned   uint64          // the highest epoch of an owner, also in a registry before
	changed bool            // something of this node, since ownChanged
}

func newCache(c *fabric.Cluster) *cache {
	is := &cache{
		keys: keysOf(c), changed: true, table: allocator.Table{UntilDeleted: true},
		random: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		revs:   revisions{keys: keysOf(c)}, deleted: map[string]int64{}, damage: newDamage(), lengths: map[length]bool{},
	}
	is.cluster.Store(c)
	return is
}

// reset forgets all keys: they are of another registry.
func (c *cache) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.table, c.known, c.changed = allocator.Table{UntilDeleted: true}, 0, true
	c.revs.clear()
	clear(c.deleted)
	c.damage = newDamage()
	clear(c.lengths)
}

// load takes all keys as they were at a revision.
func (c *cache) load(all []*mvccpb.KeyValue, rev int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if rev <= c.known {
		return // what is known is later
	}
	var there packed.Map
	for _, kv := range all {
		there.Put(c.revs.pack(string(kv.Key)), nil)
		c.put(string(kv.Key), kv.Value, kv.ModRevision)
	}
	var gone []string
	for key, at := range c.revs.each() {
		if _, is := there.Get(key); !is && at <= rev {
			gone = append(gone, c.revs.unpack(key))
		}
	}
	for _, key := range gone {
		c.forget(key)
	}
	c.advance(rev)
}

// watched takes what a watch delivered: all that followed what is known, in order.
func (c *cache) watched(kvs []change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, kv := range kvs {
		c.change(kv)
	}
	if len(kvs) > 0 {
		c.advance(kvs[len(kvs)-1].rev)
	}
}

// learn takes single keys that were written or read.
func (c *cache) learn(kvs []change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, kv := range kvs {
		c.change(kv)
	}
}

// change is a key with its new value, or its absence, at a revision.
type change struct {
	key    string
	value  []byte
	absent bool
	rev    int64
}

func (c *cache) change(kv change) {
	switch {
	case kv.rev <= c.known: // the watch was faster
	case !kv.absent:
		c.put(kv.key, kv.value, kv.rev)
	case kv.rev > max(c.revs.of(kv.key), c.deleted[kv.key]):
		c.forget(kv.key)
		c.deleted[kv.key] = kv.rev
	}
}

func (c *cache) advance(rev int64) {
	c.known = max(c.known, rev)
	maps.DeleteFunc(c.deleted, func(_ string, at int64) bool { return at <= c.known })
}

func (c *cache) put(key string, value []byte, rev int64) {
	if rev <= max(c.revs.of(key), c.deleted[key]) {
		return
	}
	c.revs.set(key, rev)
	delete(c.deleted, key)
	delete(c.damage.flaws, key)
	if guest, ok := c.keys.guestOf(key); ok {
		was, _ := c.table.Owner(guest)
		is, err := c.keys.owner(key, value)
		c.flawed(key, err)
		c.table.SetOwner(guest, is)
		c.changes(was.Node)
		c.changes(is.Node)
		c.owned = max(c.owned, is.Epoch)
	}
	if l, is := c.keys.readLength(key); is {
		c.lengths[l] = true
	}
	if !strings.HasPrefix(key, c.keys.root+"addr/") {
		return
	}
	p, err := c.keys.prefixOf(key)
	if err == nil {
		var a fabric.Allocation
		a, err = c.keys.allocation(p, value)
		was, _ := c.table.Get(p)
		c.loses(p, was, err)
		c.table.Put(a)
		is, _ := c.table.Get(p)
		c.changes(was.Node)
		c.changes(is.Node)
	}
	c.flawed(key, err)
}

// flawed notes why a key cannot be read; nil: it can.
func (c *cache) flawed(key string, err error) {
	if err != nil {
		c.damage.flaws[key] = err
	}
}

func (c *cache) forget(key string) {
	c.revs.delete(key)
	delete(c.damage.flaws, key)
	if guest, ok := c.keys.guestOf(key); ok {
		c.table.SetOwner(guest, fabric.Owner{})
	}
	if l, is := c.keys.readLength(key); is {
		delete(c.lengths, l)
	}
	if p, err := c.keys.prefixOf(key); err == nil {
		was, _ := c.table.Get(p)
		c.loses(p, was, nil)
		c.changes(was.Node)
		c.table.Delete(p)
	}
}

// list lists the allocations that a filter selects, and says whether anything was read
// yet.
func (c *cache) list(f fabric.AllocationFilter) ([]fabric.Allocation, bool) {
	c.mu.Lock()
	all, known := c.table.Select(f), c.known > 0
	c.mu.Unlock()
	return allocator.Sort(all), known
}

// revision gives the revision up to which everything is known; zero: nothing was read
// yet.
func (c *cache) revision() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known
}

// highest gives the highest epoch of an owner.
func (c *cache) highest() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.owned
}

// problems lists the keys that cannot be read.
func (c *cache) problems() (texts []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(c.damage.flaws)) {
		texts = append(texts, c.damage.flaws[key].Error())
	}
	return texts
}

// request is what a decision is asked for: exactly one of them is set.
type request struct {
	allocate *fabric.AllocationRequest
	release  *fabric.ReleaseRequest
	acquire  *fabric.AcquireRequest

	incarnation int64 // of the registry
}

// decide makes the plan that answers a request.
func (c *cache) decide(r request, now time.Time) (*plan, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := &plan{keys: c.keys, known: c.known, revs: map[string]int64{}, guests: map[fabric.Identity]guestValue{}, lengths: map[length]bool{}}
	depends := func(at netip.Prefix) {
		key := c.keys.address(at)
		p.revs[key] = c.revs.of(key)
		if had, there := c.table.Get(at); there && had.State == fabric.Allocated {
			p.guests[had.Guest] = guestValue{}
		}
	}
	if r.acquire != nil {
		c.table.Least = c.least(r.acquire.Guest, r.incarnation)
		return p, c.acquire(*r.acquire, p)
	}
	if a := r.allocate; a != nil {
		c.table.Least = c.least(a.Guest, r.incarnation)
		err := c.checkLost(*a)
		if err != nil {
			return nil, err
		}
		if p.answer, p.change, err = c.table.Allocate(c.cluster.Load(), *a, now, c.random, anyPool); err != nil {
			return nil, err
		}
		if a.Guest != "" {
			p.guests[a.Guest] = guestValue{}
		}
		for i, given := range p.answer {
			depends(given.Prefix)
			p.picks = p.picks || given.New && !a.Wants[i].Prefix.IsValid()
		}
	} else {
		p.answer, p.change = c.table.Release(c.cluster.Load(), *r.release, now)
		if r.release.Guest != "" {
			p.guests[r.release.Guest] = guestValue{}
		}
		if r.release.Prefix.IsValid() {
			depends(r.release.Prefix)
		}
	}
	for _, a := range p.change.Put {
		depends(a.Prefix)
		if a.State == fabric.Quarantined {
			continue
		}
		c.guard(p, a.Prefix, depends)
	}
	for _, at := range p.change.Delete {
		depends(at)
	}
	for guest := range p.guests {
		key := c.keys.guest(guest)
		p.revs[key] = c.revs.of(key)
		is, _ := c.table.Owner(guest)
		if a := r.allocate; a != nil && a.Guest == guest && len(p.answer) > 0 {
			is = p.answer[0].Owner()
		}
		p.guests[guest] = guestValue{c.left(guest, p.change), is}
	}
	return p, nil
}

// least gives the lowest epoch of a guest's next owner. A guest that was gone in between
// has no epoch there, but its key is of a later revision than the one of then. Revisions
// go back where etcd was restored, and incarnations do not.
func (c *cache) least(guest fabric.Identity, incarnation int64) uint64 {
	return uint64(max(incarnation, 1))*fabric.RegistryEpoch + uint64(max(c.known, c.revs.of(c.keys.guest(guest)))) + 1
}

// acquire makes the plan that answers a request for the ownership of a guest. It changes
// the guest's key alone, however many addresses the guest has, if one of them is there
// yet.
func (c *cache) acquire(a fabric.AcquireRequest, p *plan) error {
	key := c.keys.guest(a.Guest)
	p.revs[key] = c.revs.of(key)
	if has := c.table.Of(a.Guest); len(has) > 0 {
		at := c.keys.address(has[0].Prefix)
		p.revs[at] = c.revs.of(at)
	}
	var err error
	var change allocator.Change
	if p.owner, change, err = c.table.Acquire(a); err != nil {
		return err
	}
	if !change.Empty() {
		p.guests[a.Guest] = guestValue{a.VM, p.owner}
	}
	return nil
}

// guard lets a plan depend on that nothing overlaps a prefix that it puts: neither in it
// nor around it. What is around it has one of the lengths that are in use. Whoever is the
// first to use one notes it, in a key that is never deleted, and changes the key that
// every plan depends on. So guests that get prefixes of one length at the same time do
// not get in each other's way.
func (c *cache) guard(p *plan, at netip.Prefix, depends func(netip.Prefix)) {
	p.revs[c.keys.prefixes()] = c.revs.of(c.keys.prefixes())
	for bits := range at.Bits() {
		around := netip.PrefixFrom(at.Addr(), bits).Masked()
		if c.lengths[lengthOf(around)] || c.table.HasLength(around) {
			depends(around)
		}
	}
	if at.IsSingleIP() || c.revs.of(c.keys.address(at)) != 0 {
		return
	}
	p.wide = append(p.wide, at)
	if l := lengthOf(at); !c.lengths[l] {
		p.lengths[l] = true
	}
}

func anyPool(fabric.Pool) error { return nil }

// left gives the name of a guest that has addresses after a change; empty: it has none.
func (c *cache) left(guest fabric.Identity, after allocator.Change) (vm string) {
	changed := map[netip.Prefix]bool{}
	for _, a := range after.Put {
		changed[a.Prefix] = true
		if a.State == fabric.Allocated && a.Guest == guest {
			vm = a.VM
		}
	}
	for _, p := range after.Delete {
		changed[p] = true
	}
	for _, a := range c.table.Of(guest) {
		if !changed[a.Prefix] && vm == "" {
			vm = a.VM
		}
	}
	return vm
}
