package simulate

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// registry is the registry that all nodes share. Each owner that it ever had of a guest
// has a higher epoch than the one before.
type registry struct {
	*fake.Registry
	world *world
}

// asking are the guests that ask for addresses of pools where there is a registry: one
// of each hypervisor. The registry has given them theirs already.
var asking = [...]int{1, domains}

// asks reports whether the guest asks for its addresses.
func (g *guest) asks() bool { return len(g.vm.NICs[0].Pools) > 0 }

// share gives the nodes a registry.
func (w *world) share() {
	w.shared = &registry{fake.NewRegistry(nil, &w.cluster), w}
	for _, number := range asking {
		g := w.guests[number]
		r := fabric.AllocationRequest{Guest: g.vm.Identity(), VM: g.vm.Name, Node: w.nodes[0].self.Name}
		var pools []string
		for i, addr := range g.vm.NICs[0].Addresses {
			pool, _ := w.cluster.PoolOf(addr)
			pools = append(pools, pool.Name)
			r.Wants = append(r.Wants, fabric.Want{N: 2 * i, Pool: pool.Name, Prefix: fabric.HostPrefix(addr)})
		}
		if _, err := w.shared.Allocate(context.Background(), r); err != nil {
			w.fail("%s gets no address: %v", g.vm.Name, err)
		}
		g.vm.NICs[0].Addresses, g.vm.NICs[0].Pools = nil, pools
	}
}

// away takes the registry away from all nodes for a time.
func (w *world) away(d time.Duration) {
	var all sync.WaitGroup
	for _, n := range w.nodes {
		all.Go(func() { n.unreach(d, w.allocations()) })
	}
	all.Wait()
}

// reach is an agent's connection to the registry, with delays, until the agent is killed.
// What the agent does not hear of can have happened.
type reach struct {
	*registry
	*mortal
	began time.Time // the agent
}

var errAway = errors.New("no quorum")

// ask does something with the registry. While that does not answer the node, the caller
// waits, or hears that at once.
func (r reach) ask(ctx context.Context, f func() error) error {
	r.mortal.mu.Lock()
	there, back, waits := between(r.rnd, 0, 10*time.Millisecond), between(r.rnd, 0, 10*time.Millisecond), r.rnd.IntN(2) == 0
	r.mortal.mu.Unlock()
	reached := func(after time.Duration) error {
		time.Sleep(after)
		if err := r.mortal.err(); err != nil {
			return err
		}
		if r.node.reachesRegistry() {
			return ctx.Err()
		}
		if waits {
			<-ctx.Done()
			return ctx.Err()
		}
		return errAway
	}
	if err := reached(there); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	return reached(back)
}

// Allocate implements [fabric.Registry].
func (r reach) Allocate(ctx context.Context, a fabric.AllocationRequest) (given []fabric.Allocation, err error) {
	err = r.ask(ctx, func() (err error) { given, err = r.registry.Allocate(ctx, a); return err })
	return given, err
}

// Release implements [fabric.Registry].
func (r reach) Release(ctx context.Context, of fabric.ReleaseRequest) (released []fabric.Allocation, err error) {
	err = r.ask(ctx, func() (err error) {
		if released, err = r.registry.Release(ctx, of); err == nil {
			r.world.released(r.node, released)
		}
		return err
	})
	return released, err
}

// released checks that no guest that runs loses an address.
func (w *world) released(by *node, all []fabric.Allocation) {
	for _, a := range all {
		for _, g := range w.guests {
			if p := g.now(); g.vm.Identity() == a.Guest && p.at != nil && p.also == nil {
				w.fail("%s released %s of %s, which runs on %s", by.self.Name, a.Prefix, g.vm.Name, p.at.self.Name)
			}
		}
	}
}

// Acquire implements [fabric.Registry].
func (r reach) Acquire(ctx context.Context, a fabric.AcquireRequest) (is fabric.Owner, err error) {
	err = r.ask(ctx, func() (err error) {
		before := r.world.owners()
		is, err = r.registry.Acquire(ctx, a)
		if err == nil && is != before[a.Guest] && is.Epoch <= before[a.Guest].Epoch {
			r.world.fail("%s owns %s with epoch %d after %s with %d", is.Node, a.VM, is.Epoch, before[a.Guest].Node, before[a.Guest].Epoch)
		}
		return err
	})
	return is, err
}

// Allocations implements [fabric.Registry].
func (r reach) Allocations(ctx context.Context, f fabric.AllocationFilter) (all []fabric.Allocation, err error) {
	err = r.ask(ctx, func() (err error) { all, err = r.registry.Allocations(ctx, f); return err })
	if err != nil {
		return slices.DeleteFunc(slices.Clone(r.node.remembered(r.began)), func(a fabric.Allocation) bool { return !f.Selects(a) }), err
	}
	return all, err
}

// Diagnose implements [fabric.Registry].
func (r reach) Diagnose(context.Context) []string { return nil }

// allocations lists what the registry has, if there is one.
func (w *world) allocations() []fabric.Allocation {
	if w.shared == nil {
		return nil
	}
	all, err := w.shared.Allocations(context.Background(), fabric.AllocationFilter{})
	if err != nil {
		w.fail("registry: %v", err)
	}
	return all
}

// owners are those of the guests.
func (w *world) owners() map[fabric.Identity]fabric.Owner {
	is := map[fabric.Identity]fabric.Owner{}
	for _, a := range w.allocations() {
		if a.State == fabric.Allocated {
			is[a.Guest] = a.Owner()
		}
	}
	return is
}

// settledRegistry checks that the registry has the addresses of each guest, and the node
// where it runs.
func (w *world) settledRegistry() {
	if w.shared == nil {
		return
	}
	all, owners := w.allocations(), w.owners()
	for _, g := range w.guests {
		at, is := g.now().at, owners[g.vm.Identity()]
		if at == nil && !g.asks() {
			continue
		}
		var has []netip.Prefix
		for _, a := range all {
			if a.Guest == g.vm.Identity() && a.State == fabric.Allocated {
				has = append(has, a.Prefix)
			}
		}
		if !slices.Equal(has, g.prefixes) {
			w.fail("at rest: by the registry %s has %v, not %v", g.vm.Name, has, g.prefixes)
		}
		if at == nil {
			continue
		}
		kept, _ := at.storage.current().All(context.Background())
		i := slices.IndexFunc(kept, func(d fabric.Desired) bool { return d.VM.Name == g.vm.Name })
		if i < 0 || is.Node != at.self.Name || is.Epoch < kept[i].Epoch {
			w.fail("at rest: %s runs on %s, and by the registry %s owns it with epoch %d", g.vm.Name, at.self.Name, is.Node, is.Epoch)
		}
	}
}
