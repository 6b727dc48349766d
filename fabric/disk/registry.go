package disk

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/allocator"
	"github.com/vmfabric/vmfabric/internal/oneline"
)

// Registry is a [fabric.Registry] in the state directory of one node: one file for
// each address, which a person can read.
//
//	/var/lib/vmfabric/addresses/203.0.113.10_32.json
//
// It knows nothing of other nodes. So in a cluster of several it gives addresses only
// from pools that serve its node alone. It keeps the addresses that guests' descriptions
// name, whatever their pool. It is safe for concurrent use. Close it.
type Registry struct {
	cluster atomic.Pointer[fabric.Cluster]
	node    string
	clock   func() time.Time
	files   *directory
	syncer  *syncer

	mu      sync.Mutex
	table   allocator.Table
	random  *rand.Rand
	damaged map[string]error // why files cannot be read, by their names
	unread  error            // why others could not be
}

var _ fabric.Registry = (*Registry)(nil)

// OpenRegistry opens the registry in a state directory. If a file in it cannot be
// read, the registry gives no new addresses from the pools: it could be the one that
// says who has an address. It gives the address of that file to nobody, and leaves the file
// until the address is released. Diagnose names the file.
func OpenRegistry(dir string, cluster *fabric.Cluster, node string, opts ...Option) (*Registry, error) {
	o := options{delay: syncDelay, retry: syncRetry, sync: syncPath, clock: time.Now}
	for _, set := range opts {
		set(&o)
	}
	closed := make(chan struct{})
	files := newDirectory(filepath.Join(dir, "addresses"), "", validAllocation, o.sync, closed)
	_, err := prepare(dir, files.dir, o.sync)
	if err == nil {
		err = files.recover()
	}
	if err != nil {
		return nil, fmt.Errorf("registry: %w; %s", err, remedy(err))
	}
	r := &Registry{
		node: node, clock: o.clock, files: files,
		random: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())), damaged: map[string]error{},
	}
	r.cluster.Store(cluster)
	r.unread = files.each(func(name string, content []byte) error {
		a, err := parseAllocation(name, content)
		if err == nil {
			r.table.Put(a)
			return nil
		}
		r.damaged[name] = fmt.Errorf("state: %s: %w", filepath.Join(files.dir, name+suffix), err)
		if p, is := prefixOfFile(name); is {
			r.table.Put(fabric.Allocation{Prefix: p, State: fabric.Allocated, Guest: unreadable, VM: string(unreadable), Flaw: r.damaged[name].Error()})
		}
		return nil
	})
	r.syncer = startSyncer(files, o.delay, o.retry, closed)
	return r, nil
}

// Reconfigure has the registry go by other pools from now on. Addresses that guests have
// stay theirs. The cluster has one node after it only if it had one before.
func (r *Registry) Reconfigure(c fabric.Cluster) { r.cluster.Store(&c) }

// Allocate implements [fabric.Registry]. It writes nothing if the guest has everything
// already.
func (r *Registry) Allocate(ctx context.Context, a fabric.AllocationRequest) ([]fabric.Allocation, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	given, change, err := r.table.Allocate(r.cluster.Load(), a, r.clock(), r.random, r.mayGive)
	if err != nil {
		return nil, err
	}
	if err := r.record(change); err != nil {
		return nil, err
	}
	return given, r.syncer.report()
}

// mayGive says why the registry gives no address from a pool; nil: it may.
func (r *Registry) mayGive(p fabric.Pool) error {
	alone := len(r.cluster.Load().Nodes) <= 1 || slices.Equal(r.cluster.Load().NodesOf(p), []string{r.node})
	switch {
	case !alone:
		return fmt.Errorf("pool %s serves several nodes, and this node's own registry cannot keep them apart; write nodes: [%s] to a pool of its own, or give the cluster a registry", p.Name, r.node)
	}
	if err := r.flaws(); err != nil {
		return fmt.Errorf("the registry cannot say what is free in pool %s: %w", p.Name, err)
	}
	return nil
}

// flaws says which files cannot be read.
func (r *Registry) flaws() error {
	errs := []error{r.unread}
	for _, name := range slices.Sorted(maps.Keys(r.damaged)) {
		errs = append(errs, r.damaged[name])
	}
	return errors.Join(errs...)
}

// Release implements [fabric.Registry].
func (r *Registry) Release(ctx context.Context, of fabric.ReleaseRequest) ([]fabric.Allocation, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	released, change := r.table.Release(r.cluster.Load(), of, r.clock())
	if err := r.record(change); err != nil {
		return nil, err
	}
	return released, r.syncer.report()
}

// Acquire implements [fabric.Registry]. Epochs count up from one for each guest: only
// this node has this registry.
func (r *Registry) Acquire(ctx context.Context, a fabric.AcquireRequest) (fabric.Owner, error) {
	if err := ctx.Err(); err != nil {
		return fabric.Owner{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	is, change, err := r.table.Acquire(a)
	if err == nil {
		err = r.record(change)
	}
	if err != nil {
		return fabric.Owner{}, err
	}
	return is, r.syncer.report()
}

// Allocations implements [fabric.Registry].
func (r *Registry) Allocations(ctx context.Context, f fabric.AllocationFilter) ([]fabric.Allocation, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire()
	return r.table.List(f), r.flaws()
}

// Shared implements [fabric.Registry]: the registry is that of one node.
func (r *Registry) Shared() bool { return len(r.cluster.Load().Nodes) <= 1 }

// Diagnose reports files that cannot be read, and why changes cannot be written, or are not
// safe on the disk.
func (r *Registry) Diagnose(context.Context) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var problems []string
	if err := r.files.obstacle(); err != nil {
		problems = append(problems, fmt.Sprintf("registry: nothing can be written: %v", err))
	}
	for _, name := range r.files.lostChanges() {
		problems = append(problems, fmt.Sprintf("registry: a power cut took the last change of %s; start its guest again, or reserve the address", addressOf(name)))
	}
	if err := r.flaws(); err != nil {
		problems = append(problems, "registry: "+oneline.Of(err.Error()))
	}
	if err := r.syncer.notSafe(); err != nil {
		problems = append(problems, "registry: "+err.Error())
	}
	return problems
}

// Close makes all changes safe on the disk. A second Close does nothing.
func (r *Registry) Close() error { return r.syncer.close() }

// expire forgets the quarantines that are over. A file that cannot be removed is
// tried again.
func (r *Registry) expire() {
	for _, p := range r.table.Expired(r.clock()).Delete {
		if r.files.remove(allocationFile(p)) == nil {
			r.table.Delete(p)
		}
	}
}

// record carries a change out. If a file cannot be written, those before it are put
// back.
func (r *Registry) record(c allocator.Change) error {
	r.expire()
	var undo []func()
	back := func(p netip.Prefix) func() {
		had, there := r.table.Get(p)
		return func() {
			if had.Flaw != "" {
				return // nobody can put that back
			}
			if !there {
				_ = r.files.remove(allocationFile(p))
			} else if content, err := encodeAs(allocationKey, had); err == nil {
				_ = r.files.put(allocationFile(p), content)
			}
		}
	}
	fail := func(err error) error {
		for _, f := range undo {
			f()
		}
		return fmt.Errorf("registry: %w", err)
	}
	for _, a := range c.Put {
		content, err := encodeAs(allocationKey, a)
		if err == nil {
			undo = append(undo, back(a.Prefix))
			err = r.files.put(allocationFile(a.Prefix), content)
		}
		if err != nil {
			return fail(err)
		}
	}
	for _, p := range c.Delete {
		undo = append(undo, back(p))
		if err := r.files.remove(allocationFile(p)); err != nil {
			return fail(err)
		}
	}
	for _, a := range c.Put {
		delete(r.damaged, allocationFile(a.Prefix))
	}
	for _, p := range c.Delete {
		delete(r.damaged, allocationFile(p))
	}
	r.table.Apply(c)
	return nil
}

const (
	allocationKey    = "allocation"
	allocationWayOut = "release the address when the guest runs that has it, or if none has"

	// unreadable takes the place of the guest whose file cannot be read.
	unreadable fabric.Identity = "unreadable"
)

// allocationFile returns the name of an allocation's file, without suffix.
func allocationFile(p netip.Prefix) string {
	return strings.NewReplacer("/", "_", ":", "-").Replace(p.String())
}

// prefixOfFile gives the prefix of a file's name, if it is one of an allocation.
func prefixOfFile(name string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(strings.NewReplacer("_", "/", "-", ":").Replace(name))
	return p, err == nil && p == p.Masked() && allocationFile(p) == name
}

// addressOf gives the prefix of a file's name, for people.
func addressOf(name string) string {
	p := strings.NewReplacer("_", "/", "-", ":").Replace(name)
	return strings.TrimSuffix(strings.TrimSuffix(p, "/32"), "/128")
}

// parseAllocation reads the content of the allocation's file with the given name,
// without suffix.
func parseAllocation(name string, content []byte) (fabric.Allocation, error) {
	var a fabric.Allocation
	if err := decodeAs(allocationKey, content, &a, allocationWayOut); err != nil {
		return a, err
	}
	switch {
	case !a.Prefix.IsValid() || a.Prefix != a.Prefix.Masked():
		return a, fmt.Errorf("damaged (no address); %s", allocationWayOut)
	case allocationFile(a.Prefix) != name:
		return a, fmt.Errorf("it is of %s, whose file is %s; move it there, or remove it", a.Prefix, allocationFile(a.Prefix)+suffix)
	case !slices.Contains([]fabric.AllocationState{fabric.Allocated, fabric.Reserved, fabric.Quarantined}, a.State):
		return a, fmt.Errorf("damaged (state %q); %s", a.State, allocationWayOut)
	case a.State == fabric.Allocated && a.Guest == "":
		return a, fmt.Errorf("damaged (no guest); %s", allocationWayOut)
	}
	return a, nil
}

// validAllocation reports why the content of an allocation's file cannot be read.
func validAllocation(name string, content []byte) error {
	_, err := parseAllocation(name, content)
	return err
}
