package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/allocator"
	"github.com/vmfabric/vmfabric/fabric/internal/text"
)

// Addresses lists what the node's registry knows: which guest has which address, and
// how much of each pool is used. After an error it has the part that could be read.
func (a *Agent) Addresses(ctx context.Context) (fabric.Addresses, error) {
	if a.registry == nil {
		return fabric.Addresses{}, a.noRegistry()
	}
	ctx, cancel := context.WithTimeout(ctx, registryTime)
	defer cancel()
	all, err := a.registry.Allocations(ctx, fabric.AllocationFilter{})
	is := fabric.Addresses{Allocations: all}
	for i, h := range all {
		if h.State == fabric.Allocated {
			all[i].Waits = a.registration.waitsFor(h.Guest)
		}
	}
	for _, p := range a.cluster().Pools {
		is.Pools = append(is.Pools, allocator.Usage(a.cluster(), p, slices.Values(all), a.clock()))
	}
	if err != nil {
		return is, ofRegistry(err)
	}
	return is, nil
}

// Allocate gives a guest the addresses that it asks for, before it starts, and records
// those that its description names. It is idempotent. Its errors are those of
// [Agent.Apply]. A guest that was not described (it has no NICs) is looked up with
// the hypervisors.
func (a *Agent) Allocate(ctx context.Context, vm fabric.VM) ([]fabric.Allocation, error) {
	if a.registry == nil {
		return nil, a.noRegistry()
	}
	if len(vm.NICs) == 0 {
		known, err := a.describedBy(ctx, a.sources, vm.Name)
		if err != nil {
			return nil, err
		}
		vm = known
	}
	t, end := a.begin(vm.Name)
	defer end()
	err := vm.Validate()
	if err == nil {
		err = a.cluster().Permits(vm)
	}
	s, done := a.state.open()
	var here fabric.Identity // of the guest of that name on this node; empty: there is none
	if g := s.guests[vm.Name]; g != nil && g.want.State != fabric.Absent {
		here = g.want.VM.Identity()
	}
	done()
	if err == nil && here != "" && here != vm.Identity() {
		err = fmt.Errorf("another guest of that name is here (%s); stop that one first, or take another name", here)
	}
	if err != nil {
		return nil, refused(vm.Name, err)
	}
	if here != "" { // it has what it started with
		return a.allocationsOf(ctx, vm.Identity())
	}
	ctx, cancel := context.WithTimeout(ctx, registryTime)
	defer cancel()
	given, err := t.registry.Allocate(ctx, t.allocationRequest(vm))
	if err != nil {
		return nil, refused(vm.Name, a.unallocated(err))
	}
	return given, nil
}

// allocationsOf lists the allocations of a guest. Nobody has no identity.
func (a *Agent) allocationsOf(ctx context.Context, guest fabric.Identity) ([]fabric.Allocation, error) {
	if guest == "" {
		return nil, nil
	}
	return a.registry.Allocations(ctx, fabric.AllocationFilter{Guest: guest})
}

// Reserve keeps an address, or a prefix, of a pool for something that the operator
// knows. The registry gives it to no guest, but a guest whose description names it may
// have it. It is idempotent.
func (a *Agent) Reserve(ctx context.Context, p netip.Prefix, note string) (fabric.Allocation, error) {
	if a.registry == nil {
		return fabric.Allocation{}, a.noRegistry()
	}
	pool, in := a.cluster().PoolOf(p.Addr())
	switch {
	case p != p.Masked():
		return fabric.Allocation{}, fmt.Errorf("%s %w: it has bits beyond its length; write %s", p, fabric.ErrRefused, p.Masked())
	case !in || !pool.HasPrefix(p):
		return fabric.Allocation{}, fmt.Errorf("%s %w: it is in no pool of cluster %s, so no guest gets it, and nothing is to reserve", text.Prefix(p), fabric.ErrRefused, a.cluster().Name)
	}
	ctx, cancel := context.WithTimeout(ctx, registryTime)
	defer cancel()
	given, err := a.registry.Allocate(ctx, fabric.AllocationRequest{Node: a.node, Wants: []fabric.Want{{Prefix: p, Note: note}}})
	var bad *fabric.AllocationError
	switch {
	case errors.As(err, &bad):
		return fabric.Allocation{}, fmt.Errorf("%w: %s", fabric.ErrRefused, bad.Text)
	case err != nil:
		return fabric.Allocation{}, err
	}
	return given[0], nil
}

// Release ends the allocation or the reservation of an address, or all allocations of
// a guest. They are quarantined, unless r.Now is set. The agent refuses to release what
// a guest has that is here, or on a node that answers. silent lists the nodes that do
// not: the guest may run there.
func (a *Agent) Release(ctx context.Context, r fabric.ReleaseRequest) (released []fabric.Allocation, silent []string, err error) {
	if a.registry == nil {
		return nil, nil, a.noRegistry()
	}
	ctx, cancel := context.WithTimeout(ctx, registryTime)
	defer cancel()
	filter := fabric.AllocationFilter{Guest: r.Guest}
	if r.Guest == "" {
		filter.Prefix = r.Prefix
	}
	all, err := a.registry.Allocations(ctx, filter)
	if err != nil && !slices.ContainsFunc(all, func(h fabric.Allocation) bool { return h.Flaw != "" && h.Prefix == r.Prefix }) {
		return nil, nil, ofRegistry(err) // not only that this one cannot be read
	}
	for _, h := range all {
		if h.State != fabric.Allocated || r.Guest == "" && h.Prefix != r.Prefix {
			continue
		}
		has, unheard := a.userOf(ctx, h)
		if has.node != "" && (h.Flaw == "" || r.Now) { // a record that cannot be read is written anew for the guest that runs
			return nil, nil, has.keeps(h)
		}
		silent = append(silent, unheard...)
	}
	slices.Sort(silent)
	released, err = a.registry.Release(ctx, r)
	return released, slices.Compact(silent), err
}

// ofRegistry says once that an error is the registry's: most registries say so themselves.
func ofRegistry(err error) error {
	if strings.HasPrefix(err.Error(), "registry: ") {
		return err
	}
	return fmt.Errorf("registry: %w", err)
}

// user is a guest that has an address on a node, running or about to.
type user struct {
	node, vm string
	guest    fabric.Identity
}

// keeps is the error of a request that would take the address from its user.
func (u user) keeps(h fabric.Allocation) error {
	return fmt.Errorf("%s %w: guest %s has it on %s; stop that one first", text.Prefix(h.Prefix), fabric.ErrRefused, u.vm, u.node)
}

// userOf gives the guest that has an allocated address on this node, or on one that says
// so: the guest of the allocation rather than another one. The zero value: none has it.
// silent lists the nodes that did not answer.
func (a *Agent) userOf(ctx context.Context, h fabric.Allocation) (found user, silent []string) {
	s, done := a.state.open()
	for _, vm := range s.reserved.Holders(h.Prefix) {
		is := user{node: a.node, vm: vm}
		if g := s.guests[vm]; g != nil {
			is.guest = g.want.VM.Identity()
		}
		if found.node == "" || is.guest == h.Guest {
			found = is
		}
	}
	done()
	if found.guest == h.Guest {
		return found, nil
	}
	n := fabric.Notice{Kind: fabric.Acquiring, VM: h.VM, Identity: h.Guest, Prefixes: []netip.Prefix{h.Prefix}}
	answers, silent := a.askAll(ctx, n, a.others())
	for _, node := range sortedKeys(answers) {
		switch is := answers[node]; {
		case !is.Held:
		case is.Identity == h.Guest:
			return user{node, is.VM, is.Identity}, nil
		case found.node == "":
			found = user{node, is.VM, is.Identity}
		}
	}
	return found, silent
}

// perhapsOn gives one of the nodes that did not answer on which the guest of an allocation
// may be: its owner, or, if it moved while the registry was away, any whose agent answered
// before. An agent that has just begun does not know which ones those are, and where the
// nodes share the registry it waits until it does; a registry of its own binds no other
// node, which is asked at each start instead. The zero value: it is on none of them.
func (a *Agent) perhapsOn(h fabric.Allocation, silent []string) absentee {
	s, done := a.state.open()
	defer done()
	begun := a.fenced && time.Since(a.began) < unmetFor
	i := slices.IndexFunc(silent, func(n string) bool { return n == h.Node || s.peers.met[n] || begun })
	if i < 0 {
		return absentee{}
	}
	if known := slices.IndexFunc(silent, func(n string) bool { return n == h.Node || s.peers.met[n] }); known >= 0 {
		return absentee{node: silent[known]}
	}
	return absentee{node: silent[i], until: a.began.Add(unmetFor)}
}

// absentee is a node that does not answer, and on which a guest may be.
type absentee struct {
	node  string
	until time.Time // when the agent waits for it no longer; zero: that has no end
}

func (n absentee) mayHave(h fabric.Allocation) string {
	text := fmt.Sprintf("guest %s may be on %s, whose agent does not answer: start that, or see that the guest is off, and release the address", h.VM, n.node)
	if !n.until.IsZero() {
		text += fmt.Sprintf("; this agent has just begun, and waits for %s until %s: try again then", n.node, n.until.Format(time.TimeOnly))
	}
	return text
}
