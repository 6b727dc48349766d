package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/text"
)

const (
	registryTime = 5 * time.Second // how long the agent waits for the registry; a hook waits longer
	lookTime     = 2 * time.Second // the part of it in which it says what a guest has already
	recordTime   = time.Second     // how long a guest waits for it that has its addresses: the agent can record them later
)

// WithRegistry lets the agent take addresses from r for guests that ask for them, and
// record there which guest has which. Without a registry the agent refuses guests
// that ask.
func WithRegistry(r fabric.Registry) Option { return func(a *Agent) { a.registry = r } }

// WithEpochs tells the agent the highest epoch that any guest can have by the registry, as
// far as this node has ever seen, also before the agent started. A guest that starts while
// the registry does not answer, and of which nobody says which epoch it had, gets a higher
// one.
func WithEpochs(highest func() uint64) Option { return func(a *Agent) { a.highestEpoch = highest } }

// wants lists what a guest has by its description, what it has from pools already, and,
// if it has nothing of them yet, what it asks for. A guest that does not say what it has
// asks for an address of each family on each NIC.
func (a *Agent) wants(vm fabric.VM) (wants []fabric.Want) {
	for n, nic := range vm.NICs {
		for i, p := range nic.Static().Prefixes() {
			wants = append(wants, fabric.Want{NIC: n, N: i, Prefix: p})
		}
		asked, has := a.poolWants(n, vm, nic), nic.Allocated()
		if len(has) == 0 {
			wants = append(wants, asked...)
			continue
		}
		for i, p := range has {
			pool, _ := a.cluster().PoolOf(p.Addr())
			of := slices.IndexFunc(asked, func(w fabric.Want) bool { return w.Pool == pool.Name })
			bare := nic.Bare(p)
			if of < 0 && !bare {
				of = slices.IndexFunc(asked, func(w fabric.Want) bool { return w.Pool == fabric.AutoPool && p.Addr().Is6() == w.V6 })
			}
			is := fabric.Want{NIC: n, N: maxAsked + i, Pool: cmp.Or(pool.Name, fabric.AutoPool), V6: p.Addr().Is6()} // of a pool that it does not ask any more
			if of >= 0 {
				is = asked[of]
				asked = slices.Delete(asked, of, of+1)
			}
			is.Prefix, is.NoAddress = p, bare
			wants = append(wants, is)
		}
	}
	return wants
}

// maxAsked is above each number of a want that asks a pool.
const maxAsked = 2 * fabric.MaxAddresses

// poolWants lists what a NIC asks of pools.
func (a *Agent) poolWants(n int, vm fabric.VM, nic fabric.NIC) (wants []fabric.Want) {
	pools := nic.Pools
	if vm.Resolve && a.resolver == nil {
		pools = []string{fabric.AutoPool}
	}
	for i, pool := range pools {
		if pool != fabric.AutoPool {
			wants = append(wants, fabric.Want{NIC: n, N: 2 * i, Pool: pool})
			continue
		}
		for second, v6 := range []bool{false, true} {
			if slices.ContainsFunc(a.cluster().Pools, func(p fabric.Pool) bool { return p.Is6() == v6 && !p.NoAddress }) {
				wants = append(wants, fabric.Want{NIC: n, N: 2*i + second, Pool: fabric.AutoPool, V6: v6})
			}
		}
	}
	return wants
}

// allotment is what a registry did for a guest.
type allotment struct {
	registered bool // it has all addresses of the guest
	// fresh are the addresses that the guest did not have before: whoever refuses the
	// guest afterwards gives them back.
	fresh      []fabric.Allocation
	owner      fabric.Owner // of the guest, as the registry knows it
	allNew     bool         // the guest had none of its addresses before
	asked      bool         // the registry was asked
	unrecorded error        // why it did not record the addresses of a guest that has them
}

// allocate gives a guest the addresses that it asks for, and records all that it has.
// It does nothing for a guest that is here with the same addresses: nothing that such a
// guest does waits for the registry.
func (t *task) allocate(ctx context.Context, vm fabric.VM, r request) (_ fabric.VM, got allotment, err error) {
	s, done := t.state.open()
	here := s.has(vm)
	if here {
		got.registered = s.guests[vm.Name].registered
	}
	pointless := here || s.refuses(vm) || s.outdated(vm.Name, r.asOf)
	vm = s.fromPort(vm)
	done()
	if pointless {
		return vm, got, nil
	}
	return t.askRegistry(ctx, vm, r)
}

// askRegistry is allocate for a guest that is not here, or not with these addresses.
//
// A guest that runs already does not depend on the registry: it keeps what its
// description gives it, whatever the registry says, and Status lists the difference.
func (t *task) askRegistry(ctx context.Context, vm fabric.VM, r request) (_ fabric.VM, got allotment, err error) {
	switch {
	case t.registry == nil && vm.Unresolved():
		return vm, got, unanswered{t.asksInVain()}
	case t.registry == nil:
		return vm, got, nil
	}
	began, others := time.Now(), ctx // the other nodes are asked when ctx may have ended
	wait := recordTime
	if vm.Unresolved() {
		wait = registryTime
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if vm.Unresolved() {
		if vm, err = t.remembered(ctx, vm, r); err != nil {
			return vm, got, err
		}
	}
	asks := t.allocationRequest(vm)
	asks.Starts = t.fenced && t.starts(vm, r)
	given, err := t.takeAddresses(ctx, asks)
	got.asked = true
	switch {
	case err == nil:
	case vm.Unresolved():
		return vm, got, unanswered{t.unallocated(err)}
	case r.undo && errors.Is(err, fabric.ErrRefused):
		return vm, got, t.unallocated(err)
	default: // it has its addresses, and may run with them
		if r.undo {
			if err := t.heldAsKnown(ctx, others, vm); err != nil {
				return vm, got, t.unallocated(err)
			}
		}
		got.unrecorded = err
		got.owner = t.knownOwner(ctx, vm.Identity(), r.undo)
		return vm, got, nil
	}
	got.owner = ownerOf(given)
	for _, a := range given {
		if a.New {
			got.fresh = append(got.fresh, a)
		}
	}
	got.registered, got.allNew = true, len(got.fresh) == len(given)
	t.log.Debug("allocated", "vm", vm.Name, "addresses", len(given), "new", len(got.fresh), "took", time.Since(began))
	return answeredBy(vm, given), got, nil
}

// heldAsKnown says that another guest has an address with which a guest is about to start,
// and may need it, by what is known of a registry that does not answer; nil: none does. It
// asks the other nodes, of which perhaps none answers either, until others ends.
func (a *Agent) heldAsKnown(ctx, others context.Context, vm fabric.VM) error {
	for n, nic := range vm.NICs {
		for _, p := range nic.Prefixes() {
			known, _ := a.registry.Allocations(ctx, fabric.AllocationFilter{Prefix: p})
			for _, h := range known {
				if h.State != fabric.Allocated || h.Guest == vm.Identity() {
					continue
				}
				if _, unneeded, why := a.unneeded(others, asKnown(n, p, h)); !unneeded {
					return why
				}
			}
		}
	}
	return nil
}

// asKnown is the refusal of an address that is another guest's as far as the node knows.
func asKnown(nic int, p netip.Prefix, h fabric.Allocation) *fabric.AllocationError {
	is := &fabric.AllocationError{
		Reason: fabric.AddressHeld, NIC: nic, Pool: h.Pool, Prefix: p, Holder: h,
		Text: fmt.Sprintf("%s is that of guest %s (%s), which got it on %s, by what this node knows of the registry, which does not answer now; have it answer, or give one of the two another address",
			text.Prefix(p), h.VM, h.Guest, h.Node),
	}
	if h.Flaw != "" {
		is.Text = fmt.Sprintf("%s may be another guest's: %s; the registry does not answer now", text.Prefix(p), h.Flaw)
	}
	return is
}

// takeAddresses has the registry give a guest what it asks for, and record what it
// names, also what another guest had that does not need it any more.
func (a *Agent) takeAddresses(ctx context.Context, r fabric.AllocationRequest) ([]fabric.Allocation, error) {
	given, err := a.registry.Allocate(ctx, r)
	for range r.Wants {
		var free bool
		if free, err = a.freed(ctx, err); !free {
			break
		}
		given, err = a.registry.Allocate(ctx, r)
	}
	if err == nil && !a.registry.Shared() {
		err = a.recordNode(ctx, r.Guest, r.VM, given, r.Node)
	}
	return given, err
}

// allocationRequest is what the agent asks the registry for a guest.
func (a *Agent) allocationRequest(vm fabric.VM) fabric.AllocationRequest {
	return fabric.AllocationRequest{Guest: vm.Identity(), VM: vm.Name, Node: a.node, Wants: a.wants(vm)}
}

// unallocated adds the reason of a registry's refusal, and its way out.
func (a *Agent) unallocated(err error) error {
	var bad *fabric.AllocationError
	switch {
	case errors.As(err, &bad):
		return a.because(bad.Reason, err)
	case errors.Is(err, context.DeadlineExceeded):
		why := strings.TrimSuffix(shortened{err}.Error(), context.DeadlineExceeded.Error()) // a registry says more
		return a.because(fabric.RegistrySilent, fmt.Errorf("the registry did not answer in time%s", strings.TrimRight(": "+why, ": ")))
	}
	return a.because(fabric.RegistryFailed, fmt.Errorf("no addresses: %w", shortened{ofRegistry(err)}))
}

// has reports whether the guest is here with these addresses and routes.
func (s *state) has(vm fabric.VM) bool {
	g := s.guests[vm.Name]
	if g == nil || g.want.State == fabric.Absent || vm.Unresolved() || g.want.VM.Identity() != vm.Identity() || len(vm.NICs) != len(g.want.VM.NICs) {
		return false
	}
	for n, nic := range vm.NICs {
		has := g.want.VM.NICs[n]
		if !slices.Equal(nic.Prefixes(), has.Prefixes()) || len(nic.Addresses) != len(has.Addresses) || nic.Dynamic != has.Dynamic || nic.DynamicRoutes != has.DynamicRoutes {
			return false
		}
	}
	return true
}

// refuses reports whether the node does not take a guest, whatever the registry says.
func (s *state) refuses(vm fabric.VM) bool {
	g, known := s.guests[vm.Name]
	known = known && g.want.State != fabric.Absent
	return s.draining() && !known || vm.Validate() != nil || s.cluster().Permits(vm) != nil || s.free(vm) != nil
}

// allocated gives a guest that need not run on this node the addresses that the
// registry has for it already.
func (a *Agent) allocated(ctx context.Context, vm fabric.VM) (fabric.VM, error) {
	if a.registry == nil {
		return vm, unanswered{a.asksInVain()}
	}
	ctx, cancel := context.WithTimeout(ctx, registryTime)
	defer cancel()
	has, err := a.allocationsOf(ctx, vm.Identity())
	if err != nil {
		return vm, unanswered{a.unallocated(err)}
	}
	as, missing := a.withKnown(vm, has)
	if missing {
		return vm, unanswered{errors.New("it has no address yet, and gets one when it starts")}
	}
	return as, nil
}

// withKnown gives a guest what it has by the registry already; missing: that is not all
// that it asks for.
func (a *Agent) withKnown(vm fabric.VM, has []fabric.Allocation) (_ fabric.VM, missing bool) {
	var given []fabric.Allocation
	for _, w := range a.wants(vm) {
		i := slices.IndexFunc(has, w.Answers)
		if i < 0 && w.Pool != "" {
			return vm, true
		}
		if i >= 0 {
			given = append(given, has[i])
		}
	}
	return answeredBy(vm, given), false
}

// fromPort gives a guest that asks for addresses those of its port, if no state is
// kept of it: it runs with them.
func (s *state) fromPort(vm fabric.VM) fabric.VM {
	g := s.guests[vm.Name]
	if g == nil || !g.orphan || !vm.Unresolved() || len(vm.NICs) != len(g.want.VM.NICs) {
		return vm
	}
	vm.NICs = slices.Clone(vm.NICs)
	for n, port := range g.want.VM.NICs {
		vm.NICs[n] = ofPort(vm.NICs[n], port)
	}
	return vm
}

// ofPort gives a NIC what its port has beyond the NIC's description.
func ofPort(nic, port fabric.NIC) fabric.NIC {
	nic = nic.Static()
	nic.Addresses, nic.Dynamic = inFront(port.Addresses, nic.Addresses)
	nic.Routes, nic.DynamicRoutes = inFront(port.Routes, nic.Routes)
	return nic
}

// inFront gives all with those of first in front, and how many others there are.
func inFront[T comparable](all, first []T) (sorted []T, others int) {
	sorted = slices.DeleteFunc(slices.Clone(first), func(x T) bool { return !slices.Contains(all, x) })
	rest := slices.DeleteFunc(slices.Clone(all), func(x T) bool { return slices.Contains(first, x) })
	return append(sorted, rest...), len(rest)
}

// answeredBy gives a guest the addresses and prefixes of a registry's answer, which is in
// the order of [Agent.wants].
func answeredBy(vm fabric.VM, given []fabric.Allocation) fabric.VM {
	vm.NICs = slices.Clone(vm.NICs)
	for n, nic := range vm.NICs {
		nic = nic.Static()
		for _, a := range given {
			if a.NIC == n && a.Dynamic {
				nic = nic.WithAllocated(a)
			}
		}
		vm.NICs[n] = nic
	}
	return vm
}

// giveBack ends the allocations of a guest that was refused, or could not be brought
// up, after it got them.
func (t *task) giveBack(ctx context.Context, fresh []fabric.Allocation) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), registryTime)
	defer cancel()
	for _, a := range fresh {
		if _, err := t.registry.Release(ctx, fabric.ReleaseRequest{Prefix: a.Prefix, Now: true}); err != nil {
			t.log.Warn("address of a guest that did not start not given back; it gets the same when it starts", "vm", t.vm, "address", text.Prefix(a.Prefix), "err", err)
		}
	}
}

// register lets the registry know of the guests that it may not know. If it does not
// answer for one, it may be away: register leaves the others for later, so as not to
// wait for it once for each guest.
func (a *Agent) register(ctx context.Context) {
	for _, vm := range a.unregistered() {
		if err := a.registerGuest(ctx, vm); err != nil && !errors.Is(err, fabric.ErrRefused) {
			return
		}
	}
}

// registerGuest records what a guest has that is here. Other work on the guest does not
// wait for that.
func (a *Agent) registerGuest(ctx context.Context, vm fabric.VM) error {
	ctx, cancel := context.WithTimeout(ctx, recordTime)
	defer cancel()
	given, err := a.takeAddresses(ctx, a.allocationRequest(vm))
	unrecorded := err
	if err == nil {
		err = a.recordOwner(ctx, vm, given)
	}
	s, done := a.state.open()
	defer done()
	g := s.guests[vm.Name]
	if g == nil { // gone meanwhile, and its condition with it
		return err
	}
	a.setUnrecorded(vm.Name, unrecorded)
	s.tried(g, err)
	switch {
	case s.has(vm):
		g.registered = unrecorded == nil
	default: // it has other addresses by now, which this may have replaced
		g.registered = false
		signal(a.registration.wake)
	}
	return err
}

// setUnrecorded sets or clears the condition that the registry does not have what a
// guest has.
func (a *Agent) setUnrecorded(vm string, err error) {
	if err != nil {
		err = fmt.Errorf("guest %s: the registry does not have its addresses: %w", vm, err)
	}
	a.conditions.set("unrecorded "+vm, err)
}

// compareRegistered finds the guests here of which the registry does not have all, or not
// this node as the owner, for register. It reports whether the registry answers.
func (a *Agent) compareRegistered(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, registryTime)
	defer cancel()
	s, done := a.state.open()
	names := sortedKeys(s.guests)
	done()
	for _, name := range names {
		guest := a.identityOf(name)
		has, err := a.allocationsOf(ctx, guest)
		if err != nil {
			return false // Diagnose has it
		}
		s, done := a.state.open()
		if g := s.guests[name]; g != nil && g.want.VM.Identity() == guest {
			s.compareWith(g, has)
		}
		done()
	}
	return true
}

// compareWith notes what the registry does not have of a guest. has are the guest's
// allocations.
func (s *state) compareWith(g *guest, has []fabric.Allocation) {
	for _, p := range g.want.VM.Prefixes() {
		// An address in a prefix that the guest has, too, is not recorded for itself.
		g.registered = g.registered && slices.ContainsFunc(has, func(h fabric.Allocation) bool { return h.Prefix.Bits() <= p.Bits() && h.Prefix.Overlaps(p) })
	}
	is := ownerOf(has)
	g.acquired = g.acquired && is.Node == s.node && is.Epoch >= g.epoch()
}

// unregistered lists the guests whose addresses or owner the registry may not have.
func (a *Agent) unregistered() (vms []fabric.VM) {
	s, done := a.state.open()
	defer done()
	for _, name := range sortedKeys(s.guests) {
		if g := s.guests[name]; !s.recorded(g) && !g.orphan && g.want.State != fabric.Absent {
			vms = append(vms, g.want.VM)
		}
	}
	return vms
}

// asksInVain is the error of a guest that asks for an address on a node without a registry.
func (a *Agent) asksInVain() error {
	return a.because(fabric.RegistryNone, errors.New("it asks for an address, and this node has no registry to give one"))
}

// noRegistry is the error of a node without a registry.
func (a *Agent) noRegistry() error {
	return a.because(fabric.RegistryNone, errors.New("this node has no registry of addresses"))
}
