package fake

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// Registry is a [fabric.Registry] in memory, for all nodes of a cluster. It gives the
// first free address of a pool. Its effects are named "allocate", "acquire" and "release", with
// the guest's name or the prefix; its reads are named "list addresses".
type Registry struct {
	Trouble
	journal *Journal
	cluster *fabric.Cluster
	private bool

	mu       sync.Mutex
	passed   time.Duration
	acquired uint64 // how many times a guest was
	all      map[netip.Prefix]fabric.Allocation
}

var _ fabric.Registry = (*Registry)(nil)

// NewRegistry makes an empty registry of a cluster's pools.
func NewRegistry(j *Journal, c *fabric.Cluster) *Registry {
	return &Registry{journal: j, cluster: c, all: map[netip.Prefix]fabric.Allocation{}}
}

// OfOneNode makes the registry that of one node: it is not [fabric.Registry.Shared].
func (r *Registry) OfOneNode() *Registry {
	r.private = true
	return r
}

// Pass lets time pass for the quarantines.
func (r *Registry) Pass(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.passed += d
}

// Damage makes the record of a prefix one that cannot be read, for the reason flaw.
func (r *Registry) Damage(p netip.Prefix, flaw string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all[p] = fabric.Allocation{Prefix: p, State: fabric.Allocated, Guest: "unreadable", VM: "unreadable", Flaw: flaw}
}

func (r *Registry) now() time.Time { return time.Now().Add(r.passed) }

// Allocate implements [fabric.Registry].
func (r *Registry) Allocate(ctx context.Context, a fabric.AllocationRequest) ([]fabric.Allocation, error) {
	if err := r.before(ctx, "allocate "+a.VM); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire()
	given, answer := map[netip.Prefix]fabric.Allocation{}, make([]fabric.Allocation, len(a.Wants))
	owner, _ := r.ownerOf(a.Guest)
	for _, i := range inOrder(a.Wants) {
		is, covered, err := r.want(a, a.Wants[i], given)
		if err != nil {
			err.NIC = a.Wants[i].NIC
			return nil, err
		}
		if !covered {
			given[is.Prefix] = is
			had, there := r.all[is.Prefix]
			is.New = !there || had.State != is.State || had.Guest != is.Guest
		}
		answer[i] = is
	}
	if err := unrouted(a, answer); err != nil {
		return nil, err
	}
	for p, had := range r.all {
		_, still := given[p]
		switch {
		case a.Guest == "" || had.Guest != a.Guest || still:
		case slices.ContainsFunc(slices.Collect(maps.Keys(given)), p.Overlaps):
			delete(r.all, p)
		case a.From != "" && !slices.ContainsFunc(answer, func(is fabric.Allocation) bool {
			return is.Dynamic && had.Dynamic && is.NIC == had.NIC && is.N == had.N
		}): // it keeps what it has besides
		case had.State == fabric.Allocated:
			r.end(had, false)
		}
	}
	maps.Copy(r.all, given)
	if a.Starts && owner.Epoch == 0 {
		r.acquired++
	}
	r.journal.add("allocate " + a.VM)
	return answer, nil
}

// inOrder gives the order in which wants are answered: what pools give, and then what is
// named, prefixes before the addresses that may be in them.
func inOrder(wants []fabric.Want) (order []int) {
	for bits := -1; bits <= 128; bits++ {
		for i, w := range wants {
			if w.Pool != "" && bits < 0 || w.Pool == "" && w.Prefix.Bits() == bits {
				order = append(order, i)
			}
		}
	}
	return order
}

// want answers one want. covered: it is inside of a prefix that is given already.
func (r *Registry) want(a fabric.AllocationRequest, w fabric.Want, given map[netip.Prefix]fabric.Allocation) (is fabric.Allocation, covered bool, bad *fabric.AllocationError) {
	is = fabric.Allocation{Prefix: w.Prefix, State: fabric.Allocated, Guest: a.Guest, VM: a.VM, NIC: w.NIC, N: w.N, Node: a.Node, Note: w.Note, Since: r.now()}
	if a.Guest == "" {
		is.State = fabric.Reserved
	} else if owner, owned := r.ownerOf(a.Guest); owner.Epoch > 0 || owned && !a.Starts {
		is.Node, is.Epoch = owner.Node, owner.Epoch
	} else if a.Starts {
		is.Epoch = fabric.RegistryEpoch + r.acquired + 1
	}
	is.Dynamic = w.Pool != ""
	if w.Prefix.IsValid() {
		is.NoAddress = w.NoAddress && is.Dynamic
		for p, by := range given {
			if p.Bits() <= w.Prefix.Bits() && p.Overlaps(w.Prefix) {
				is.Pool, is.Since = by.Pool, by.Since
				return is, true, nil
			}
		}
		is, bad = r.named(is, a, given)
		return is, false, bad
	}
	for _, state := range []fabric.AllocationState{fabric.Allocated, fabric.Quarantined} {
		for p, had := range r.all {
			if had.State == state && had.Guest == a.Guest && w.Answers(had) {
				if is.Prefix, is.NoAddress, is.Pool = p, had.NoAddress, had.Pool; state == fabric.Allocated {
					is.Since = had.Since
				}
				return is, false, nil
			}
		}
	}
	bad = &fabric.AllocationError{Reason: fabric.PoolUnknown, Pool: w.Pool, Text: fmt.Sprintf("no pool %q for node %s; name another", w.Pool, a.Node)}
	full := ""
	for _, pool := range r.cluster.Pools {
		if !r.cluster.Serves(pool, a.Node) || pool.Name != w.Pool && (w.Pool != fabric.AutoPool || pool.Is6() != w.V6 || pool.NoAddress) {
			continue
		}
		if p, found := r.free(pool, a.Wants, given); found {
			is.Prefix, is.NoAddress, is.Pool = p, pool.NoAddress, pool.Name
			return is, false, nil
		}
		full += "pool " + pool.Name + " is full; "
		bad = &fabric.AllocationError{Reason: fabric.PoolFull, Pool: pool.Name, Text: full + "add another"}
	}
	return is, false, bad
}

// unrouted refuses prefixes without an address where the NIC has no other of the family.
func unrouted(a fabric.AllocationRequest, answer []fabric.Allocation) error {
	for _, is := range answer {
		if is.NoAddress && a.From == "" && !slices.ContainsFunc(answer, func(o fabric.Allocation) bool {
			return o.NIC == is.NIC && o.Prefix.Addr().Is6() == is.Prefix.Addr().Is6() && (o.Dynamic && !o.NoAddress || o.Prefix.IsSingleIP())
		}) {
			return &fabric.AllocationError{Reason: fabric.RuleBroken, NIC: is.NIC, Pool: is.Pool, Text: "nothing to route " + is.Prefix.String() + " through; name an address"}
		}
	}
	return nil
}

// free gives the first address of a pool, or the first prefix of a guest, that nobody has
// and no want names.
func (r *Registry) free(pool fabric.Pool, wants []fabric.Want, given map[netip.Prefix]fabric.Allocation) (netip.Prefix, bool) {
	kept := slices.Clone(pool.Exclude)
	for _, reservation := range pool.Reserve {
		kept = append(kept, reservation.Prefix)
	}
	for _, w := range wants {
		kept = append(kept, w.Prefix)
	}
	for _, block := range pool.Blocks() {
		for addr := block.Masked().Addr(); block.Contains(addr); addr = addr.Next() {
			p := fabric.HostPrefix(addr)
			if pool.PerGuest > 0 {
				p = netip.PrefixFrom(addr, pool.PerGuest)
			}
			addr = fabric.RangeOf(p).Last
			if i := slices.IndexFunc(kept, p.Overlaps); i >= 0 {
				if last := fabric.RangeOf(kept[i]).Last; addr.Less(last) {
					addr = last
				}
				continue
			}
			_, mine := given[p]
			if _, taken := r.overlaps(p); !mine && !taken {
				return p, true
			}
		}
	}
	return netip.Prefix{}, false
}

// named takes an address that the guest names, that is to be reserved, or that the guest
// takes over from another one.
func (r *Registry) named(is fabric.Allocation, asked fabric.AllocationRequest, given map[netip.Prefix]fabric.Allocation) (fabric.Allocation, *fabric.AllocationError) {
	if pool, in := r.cluster.PoolOf(is.Prefix.Addr()); in {
		is.Pool = pool.Name
	}
	held, taken := r.heldBesides(is)
	for p, by := range given {
		if p.Overlaps(is.Prefix) { // inside of it: a pool gave it to the same guest
			held, taken = by, true
		}
	}
	guest, from := is.State == fabric.Allocated, asked.From
	switch {
	case !taken && from != "":
		return is, &fabric.AllocationError{Reason: fabric.RuleBroken, Prefix: is.Prefix, Text: fmt.Sprintf("%s is nobody's; ask again", is.Prefix)}
	case !taken:
		return is, nil
	case held.Prefix == is.Prefix && held.Guest == is.Guest && held.State == is.State:
		is.Since = held.Since
	case from != "" && held.Prefix == is.Prefix && held.Guest == from && held.State == is.State && held.Epoch == asked.FromEpoch:
	case held.Prefix == is.Prefix && from == "" && guest && held.State == fabric.Quarantined:
	case held.Prefix == is.Prefix && from == "" && guest && held.State == fabric.Reserved:
		is.Reserved, is.Note = true, held.Note
	default:
		return is, &fabric.AllocationError{
			Reason: fabric.AddressHeld, Pool: is.Pool, Prefix: is.Prefix, Holder: held,
			Text: cmp.Or(held.Flaw, fmt.Sprintf("%s is %s (guest %s on %s); choose another", held.Prefix, held.State, held.VM, held.Node)),
		}
	}
	is.Reserved = is.Reserved || held.Reserved
	return is, nil
}

// heldBesides gives the allocation of a prefix, or one that overlaps it and is not the
// guest's own.
func (r *Registry) heldBesides(is fabric.Allocation) (fabric.Allocation, bool) {
	if a, there := r.all[is.Prefix]; there {
		return a, true
	}
	for at, a := range r.all {
		own := is.Guest != "" && a.Guest == is.Guest && !a.Reserved
		if !own && at.Overlaps(is.Prefix) {
			return a, true
		}
	}
	return fabric.Allocation{}, false
}

func (r *Registry) overlaps(p netip.Prefix) (fabric.Allocation, bool) {
	if a, there := r.all[p]; there {
		return a, true
	}
	for at, a := range r.all {
		if at.Overlaps(p) {
			return a, true
		}
	}
	return fabric.Allocation{}, false
}

func (r *Registry) expire() {
	for p, a := range r.all {
		if a.State == fabric.Quarantined && !r.now().Before(a.Until) {
			delete(r.all, p)
		}
	}
}

func (r *Registry) end(a fabric.Allocation, now bool) {
	pool, in := r.cluster.PoolOf(a.Prefix.Addr())
	switch {
	case a.Reserved:
		r.all[a.Prefix] = fabric.Allocation{Prefix: a.Prefix, Pool: a.Pool, State: fabric.Reserved, Note: a.Note, Since: r.now()}
	case now || a.State != fabric.Allocated || !in:
		delete(r.all, a.Prefix)
	default:
		a.State, a.Since, a.Flaw = fabric.Quarantined, r.now(), ""
		a.Until = a.Since.Add(pool.Quarantine)
		r.all[a.Prefix] = a
	}
}

// Acquire implements [fabric.Registry]. Epochs count up from [fabric.RegistryEpoch].
func (r *Registry) Acquire(ctx context.Context, a fabric.AcquireRequest) (fabric.Owner, error) {
	if err := r.before(ctx, "acquire "+a.VM); err != nil {
		return fabric.Owner{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	is, known := r.ownerOf(a.Guest)
	switch {
	case !known:
		return fabric.Owner{}, &fabric.RefusedError{VM: a.VM, Reason: fabric.RuleBroken, Err: errors.New("it has no address here; allocate one")}
	case is.Node == a.Node && is.Epoch > a.Over && is.Epoch >= a.Least:
		return is, nil
	case is.Epoch != a.Over:
		return fabric.Owner{}, &fabric.OwnerError{VM: a.VM, Owner: is}
	}
	r.acquired++
	is = fabric.Owner{Node: a.Node, Epoch: max(fabric.RegistryEpoch+r.acquired, a.Over+1, a.Least)}
	for p, had := range r.all {
		if had.Guest == a.Guest && had.State == fabric.Allocated {
			had.Node, had.Epoch = is.Node, is.Epoch
			r.all[p] = had
		}
	}
	r.journal.add("acquire " + a.VM)
	return is, nil
}

func (r *Registry) ownerOf(guest fabric.Identity) (is fabric.Owner, known bool) {
	for _, a := range r.all {
		if a.Guest == guest && a.State == fabric.Allocated && (!known || a.Epoch > is.Epoch) {
			is, known = a.Owner(), true
		}
	}
	return is, known
}

// Shared implements [fabric.Registry].
func (r *Registry) Shared() bool { return !r.private }

// Release implements [fabric.Registry].
func (r *Registry) Release(ctx context.Context, of fabric.ReleaseRequest) ([]fabric.Allocation, error) {
	what := string(of.Guest)
	if of.Prefix.IsValid() {
		what = of.Prefix.String()
	}
	if err := r.before(ctx, "release "+what); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire()
	var released []fabric.Allocation
	for _, a := range r.list() {
		ofGuest := !of.Prefix.IsValid() && of.Guest != "" && a.Guest == of.Guest && a.State == fabric.Allocated
		ofPrefix := a.Prefix == of.Prefix && (of.Guest == "" || a.Guest == of.Guest) && (a.State != fabric.Quarantined || of.Now)
		if ofGuest || ofPrefix {
			released = append(released, a)
			r.end(a, of.Now)
		}
	}
	r.journal.add("release " + what)
	return released, nil
}

// Allocations implements [fabric.Registry].
func (r *Registry) Allocations(ctx context.Context, f fabric.AllocationFilter) ([]fabric.Allocation, error) {
	if err := r.before(ctx, "list addresses"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire()
	return slices.DeleteFunc(r.list(), func(a fabric.Allocation) bool { return !f.Selects(a) }), nil
}

func (r *Registry) list() []fabric.Allocation {
	all := make([]fabric.Allocation, 0, len(r.all))
	for _, a := range r.all {
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b fabric.Allocation) int { return a.Prefix.Compare(b.Prefix) })
	return all
}
