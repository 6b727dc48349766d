package fake

import (
	"context"
	"errors"
	"fmt"
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

func (r *Registry) now() time.Time { return time.Now().Add(r.passed) }

// Allocate implements [fabric.Registry].
func (r *Registry) Allocate(ctx context.Context, a fabric.AllocationRequest) ([]fabric.Allocation, error) {
	if err := r.before(ctx, "allocate "+a.VM); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire()
	given := map[netip.Prefix]fabric.Allocation{}
	var answer []fabric.Allocation
	for _, w := range a.Wants {
		is, err := r.want(a, w, given)
		if err != nil {
			err.NIC = w.NIC
			return nil, err
		}
		given[is.Prefix] = is
		had, there := r.all[is.Prefix]
		is.New = !there || had.State != is.State || had.Guest != is.Guest
		answer = append(answer, is)
	}
	for p, had := range r.all {
		if _, still := given[p]; a.Guest != "" && had.Guest == a.Guest && had.State == fabric.Allocated && !still {
			r.end(had, false)
		}
	}
	for p, is := range given {
		r.all[p] = is
	}
	r.journal.add("allocate " + a.VM)
	return answer, nil
}

func (r *Registry) want(a fabric.AllocationRequest, w fabric.Want, given map[netip.Prefix]fabric.Allocation) (fabric.Allocation, *fabric.AllocationError) {
	is := fabric.Allocation{Prefix: w.Prefix, State: fabric.Allocated, Guest: a.Guest, VM: a.VM, NIC: w.NIC, N: w.N, Node: a.Node, Note: w.Note, Since: r.now()}
	if a.Guest == "" {
		is.State = fabric.Reserved
	} else if owner, owned := r.ownerOf(a.Guest); owned {
		is.Node, is.Epoch = owner.Node, owner.Epoch
	}
	is.Dynamic = w.Pool != ""
	if w.Prefix.IsValid() {
		return r.named(is)
	}
	for _, state := range []fabric.AllocationState{fabric.Allocated, fabric.Quarantined} {
		for p, had := range r.all {
			if had.State == state && had.Guest == a.Guest && w.Answers(had) {
				if is.Prefix, is.Pool = p, had.Pool; state == fabric.Allocated {
					is.Since = had.Since
				}
				return is, nil
			}
		}
	}
	for _, pool := range r.cluster.Pools {
		if !pool.Serves(a.Node) || pool.Name != w.Pool && (w.Pool != fabric.AutoPool || pool.Prefix.Addr().Is6() != w.V6) {
			continue
		}
		is.Pool = pool.Name
		kept := slices.Clone(pool.Exclude)
		for _, reservation := range pool.Reserve {
			kept = append(kept, reservation.Prefix)
		}
		for addr := pool.Prefix.Masked().Addr(); pool.Prefix.Contains(addr); addr = addr.Next() {
			if i := slices.IndexFunc(kept, func(k netip.Prefix) bool { return k.Contains(addr) }); i >= 0 {
				addr = lastOf(kept[i])
				continue
			}
			p := fabric.HostPrefix(addr)
			_, mine := given[p]
			if _, taken := r.overlaps(p); !mine && !taken {
				is.Prefix = p
				return is, nil
			}
		}
		return is, &fabric.AllocationError{Reason: fabric.PoolFull, Pool: pool.Name, Text: "pool " + pool.Name + " is full; add another"}
	}
	return is, &fabric.AllocationError{Reason: fabric.PoolUnknown, Pool: w.Pool, Text: fmt.Sprintf("no pool %q for node %s; name another", w.Pool, a.Node)}
}

// lastOf gives the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < 8*len(b); bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// named takes an address that the guest names, or that is to be reserved.
func (r *Registry) named(is fabric.Allocation) (fabric.Allocation, *fabric.AllocationError) {
	if pool, in := r.cluster.PoolOf(is.Prefix.Addr()); in {
		is.Pool = pool.Name
	}
	held, taken := r.overlaps(is.Prefix)
	guest := is.State == fabric.Allocated
	switch {
	case !taken:
		return is, nil
	case held.Prefix == is.Prefix && held.Guest == is.Guest && held.State == is.State:
		is.Since = held.Since
	case held.Prefix == is.Prefix && guest && held.State == fabric.Quarantined:
	case held.Prefix == is.Prefix && guest && held.State == fabric.Reserved:
		is.Reserved, is.Note = true, held.Note
	default:
		return is, &fabric.AllocationError{
			Reason: fabric.AddressHeld, Pool: is.Pool, Prefix: is.Prefix, Holder: held,
			Text: fmt.Sprintf("%s is %s (guest %s on %s); choose another", held.Prefix, held.State, held.VM, held.Node),
		}
	}
	is.Reserved = is.Reserved || held.Reserved
	return is, nil
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
		a.State, a.Since = fabric.Quarantined, r.now()
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
	if what == "" {
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
		ofGuest := of.Guest != "" && a.Guest == of.Guest && a.State == fabric.Allocated
		ofPrefix := of.Guest == "" && a.Prefix == of.Prefix && (a.State != fabric.Quarantined || of.Now)
		if ofGuest || ofPrefix {
			released = append(released, a)
			r.end(a, of.Now)
		}
	}
	r.journal.add("release " + what)
	return released, nil
}

// Allocations implements [fabric.Registry].
func (r *Registry) Allocations(ctx context.Context) ([]fabric.Allocation, error) {
	if err := r.before(ctx, "list addresses"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire()
	return r.list(), nil
}

func (r *Registry) list() []fabric.Allocation {
	all := make([]fabric.Allocation, 0, len(r.all))
	for _, a := range r.all {
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b fabric.Allocation) int { return a.Prefix.Compare(b.Prefix) })
	return all
}
