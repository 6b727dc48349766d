package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/text"
)

// registerEvery is how long the agent waits before it tries again what the registry
// could not take.
const registerEvery = 10 * time.Second

// compareEvery is how often the agent compares the registry with its guests: somebody may
// have released what a guest has that runs here.
const compareEvery = time.Minute

// registration is what the registry does not know yet. It is safe for concurrent use.
type registration struct {
	wake chan struct{} // there is something to do

	saving sync.Mutex
	saved  []fabric.Identity // what an agent after this one is to know, as it was kept last

	mu   sync.Mutex
	ends map[fabric.Identity]fabric.VM // guests that are being brought down, and are gone for good then
	gone map[fabric.Identity]fabric.VM // guests that are gone for good, and whose addresses are to be given back
	left map[fabric.Identity]departed  // guests that went to another node, which this node's own registry is to know
	// unused are the ownerships of guests that did not start here, as requests that
	// hand them back.
	unused map[fabric.Identity]fabric.AcquireRequest
	delays map[fabric.Identity]delay // of guests that are gone
}

// departed is a guest that went to another node.
type departed struct {
	vm   fabric.VM
	node string
}

func newRegistration() registration {
	return registration{wake: make(chan struct{}, 1), ends: map[fabric.Identity]fabric.VM{}, gone: map[fabric.Identity]fabric.VM{}, left: map[fabric.Identity]departed{}, unused: map[fabric.Identity]fabric.AcquireRequest{}, delays: map[fabric.Identity]delay{}}
}

func (r *registration) end(guest fabric.VM) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ends[guest.Identity()] = guest
}

func (r *registration) forget(guest fabric.VM) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.ends, guest.Identity())
	r.gone[guest.Identity()] = guest
	signal(r.wake)
}

func (r *registration) forgotten(guest fabric.Identity) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.gone, guest)
	delete(r.delays, guest)
}

func (r *registration) list() []fabric.VM {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.gone))
}

// kept lists what an agent after this one is to know.
func (r *registration) kept() (guests []fabric.VM, ids []fabric.Identity) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := maps.Clone(r.gone)
	maps.Copy(all, r.ends)
	ids = slices.Sorted(maps.Keys(all))
	for _, id := range ids {
		guests = append(guests, all[id])
	}
	return guests, ids
}

// takeLeft returns the guests that went to other nodes, and forgets them.
func (r *registration) takeLeft() []departed {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Collect(maps.Values(r.left))
	clear(r.left)
	return all
}

// handBack keeps the ownership of a guest that did not start here, until it is taken.
func (r *registration) handBack(unused fabric.AcquireRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if had, there := r.unused[unused.Guest]; !there || had.Over < unused.Over {
		r.unused[unused.Guest] = unused
	}
}

// takeUnused returns the ownerships to hand back, and forgets them.
func (r *registration) takeUnused() []fabric.AcquireRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Collect(maps.Values(r.unused))
	clear(r.unused)
	return all
}

// wentFor notes that a guest went to another node. A registry that all nodes share
// hears it from that one.
func (a *Agent) wentFor(vm fabric.VM, node string) {
	if a.registry == nil || a.registry.Shared() || node == "" {
		return
	}
	a.registration.mu.Lock()
	defer a.registration.mu.Unlock()
	a.registration.left[vm.Identity()] = departed{vm, node}
	signal(a.registration.wake)
}

// recordLeft has the node's own registry know that a guest is on another node now.
func (a *Agent) recordLeft(ctx context.Context, d departed) {
	ctx, cancel := context.WithTimeout(ctx, recordTime)
	defer cancel()
	has, err := a.allocationsOf(ctx, d.vm.Identity())
	if err == nil && len(has) > 0 && !a.isHere(d.vm.Name, d.vm.Identity()) {
		err = a.recordNode(ctx, d.vm.Identity(), d.vm.Name, has, d.node)
	}
	if err != nil {
		a.log.Warn("where a guest is was not recorded", "vm", d.vm.Name, "node", d.node, "err", err)
	}
}

// keepRegistered lets the registry know of guests that it could not take when they
// started, or that were here before this agent, and gives back what guests had that are
// gone for good, until ctx ends.
func (a *Agent) keepRegistered(ctx context.Context) {
	if a.registry == nil {
		return
	}
	again, compare := time.NewTicker(registerEvery), time.NewTicker(compareEvery)
	defer again.Stop()
	defer compare.Stop()
	said := map[fabric.Identity]string{} // in the log, of guests that are tried again and again
	for {
		a.handAllBack(ctx)
		a.register(ctx)
		for _, d := range a.registration.takeLeft() {
			a.recordLeft(ctx, d)
		}
		for _, guest := range a.registration.list() {
			settled, err := a.forget(ctx, guest)
			a.noteDelay(guest, err)
			if err != nil && ctx.Err() == nil && said[guest.Identity()] != err.Error() {
				said[guest.Identity()] = err.Error()
				a.log.Warn("addresses of a guest that is gone not given back yet", "vm", guest.Name, "err", err)
			}
			if settled {
				delete(said, guest.Identity())
				a.registration.forgotten(guest.Identity())
				a.conditions.clear(delayed(guest.Identity()))
				a.keepGone(ctx)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-again.C:
		case <-compare.C:
			a.compareRegistered(ctx)
		case <-a.registration.wake:
		case <-a.adoption.Adopted:
			a.log.Info("the registry was adopted; it is told what it lacks of the guests here")
			if !a.compareRegistered(ctx) {
				a.unregister()
			}
		}
	}
}

// endsForGood notes that a guest is gone for good as soon as it is down, also for an agent
// after this one.
func (a *Agent) endsForGood(ctx context.Context, guest fabric.VM) {
	if a.registry != nil {
		a.registration.end(guest)
		a.keepGone(ctx)
	}
}

// goneForGood gives back the addresses of a guest that its hypervisor forgot, or that
// was detached by hand. It does nothing if the guest is on another node now, and tries
// again later if one does not answer that may have it, also after a restart. It does not
// wait for that.
func (a *Agent) goneForGood(ctx context.Context, guest fabric.VM) {
	if a.registry != nil {
		a.registration.forget(guest)
		a.keepGone(ctx)
	}
}

// keepGone keeps which guests are gone for good, for an agent after this one.
func (a *Agent) keepGone(ctx context.Context) {
	r := &a.registration
	r.saving.Lock()
	defer r.saving.Unlock()
	guests, ids := r.kept()
	if slices.Equal(ids, r.saved) {
		return
	}
	if err := a.store.KeepGone(context.WithoutCancel(ctx), guests); err != nil {
		a.log.Warn("guests that are gone not kept; after a restart, release their addresses by hand", "err", err)
		return
	}
	r.saved = ids
}

// recallGone reads which guests an earlier agent knew to be gone for good.
func (a *Agent) recallGone(ctx context.Context) {
	if a.registry == nil {
		return
	}
	guests, err := a.store.KeptGone(ctx)
	if err != nil {
		a.log.Warn("guests that are gone not known; release their addresses by hand", "err", err)
	}
	for _, guest := range guests {
		a.registration.forget(guest)
	}
	_, a.registration.saved = a.registration.kept()
}

// forget gives back what a guest had that is gone for good. It reports whether nothing
// is left to do.
func (a *Agent) forget(ctx context.Context, guest fabric.VM) (settled bool, err error) {
	if a.isLeaving(guest.Name, guest.Identity()) {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, registryTime)
	defer cancel()
	has, err := a.allocationsOf(ctx, guest.Identity())
	if err != nil {
		return false, err
	}
	// Another node has had it since, and gives the addresses back.
	has = slices.DeleteFunc(has, func(h fabric.Allocation) bool { return h.Node != a.node })
	if len(has) == 0 || a.isHere(guest.Name, guest.Identity()) {
		return true, nil
	}
	n := fabric.Notice{Kind: fabric.Acquiring, VM: guest.Name, Identity: guest.Identity()}
	for _, h := range has {
		n.Prefixes = append(n.Prefixes, h.Prefix)
	}
	answers, silent := a.askAll(ctx, n, a.others())
	for node, answer := range answers {
		if answer.Held && answer.Identity == guest.Identity() {
			a.log.Info("guest is on another node; it keeps its addresses", "vm", guest.Name, "node", node)
			if !a.registry.Shared() { // which that node does by itself
				err = a.recordNode(ctx, guest.Identity(), guest.Name, has, node)
			}
			return err == nil, err
		}
	}
	if len(silent) > 0 {
		return false, waiting(fmt.Sprintf("node %s may have it, and its agent does not answer: start that, or take the node out of the cluster file", silent[0]))
	}
	if err := a.remaining(ctx, guest.Identity(), n.Prefixes); err != nil {
		return false, err
	}
	released, err := a.release(ctx, guest.Name, guest.Identity())
	if err != nil || len(released) == 0 {
		return err == nil, err
	}
	a.log.Info("addresses given back", "vm", guest.Name, "addresses", len(released))
	if !a.registry.Shared() {
		n.Kind, n.UUID = fabric.Forgotten, guest.UUID
		a.peerQueues.send(n, a.others()...)
	}
	return true, nil
}

// release gives back what a guest has that is not here. It waits its turn: a start of the
// guest that is under way has been told that it has these addresses.
func (a *Agent) release(ctx context.Context, vm string, guest fabric.Identity) ([]fabric.Allocation, error) {
	_, end := a.begin(vm)
	defer end()
	if a.isHere(vm, guest) {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, recordTime) // a start may wait for it
	defer cancel()
	return a.registry.Release(ctx, fabric.ReleaseRequest{Guest: guest})
}

// isHere reports whether a guest is on this node, running or wired.
func (a *Agent) isHere(vm string, guest fabric.Identity) bool {
	s, done := a.state.open()
	defer done()
	g := s.guests[vm]
	return g != nil && g.want.State != fabric.Absent && g.want.VM.Identity() == guest
}

// isLeaving reports whether something of a guest is still on this node that is to go.
func (a *Agent) isLeaving(vm string, guest fabric.Identity) bool {
	s, done := a.state.open()
	defer done()
	g := s.guests[vm]
	return g != nil && g.want.State == fabric.Absent && g.want.VM.Identity() == guest
}

// forgottenAt handles Forgotten: this node's own registry gives back what a guest has
// that went to the other node, or had by its description, and is gone for good there.
func (a *Agent) forgottenAt(ctx context.Context, node string, n fabric.Notice) {
	if a.registry == nil || a.registry.Shared() || a.isHere(n.VM, n.Identity) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, registryTime)
	defer cancel()
	has, err := a.allocationsOf(ctx, n.Identity)
	kept := slices.ContainsFunc(has, func(h fabric.Allocation) bool { return h.Dynamic && h.Node != node })
	if err == nil && len(has) > 0 && !kept {
		_, err = a.release(ctx, n.VM, n.Identity)
	}
	if err != nil {
		a.log.Warn("addresses of a guest that is gone not given back", "vm", n.VM, "node", node, "err", err)
	}
}

// freed gives an address back that another guest had, and does not need any more, if
// err says that there is such a guest. why is err, and names the node that keeps the address
// by its silence.
func (a *Agent) freed(ctx context.Context, err error) (is bool, why error) {
	h, unneeded, why := a.unneeded(ctx, err)
	if !unneeded {
		return false, why
	}
	// Not whoever else has it by now: the guest that wants it asks in two places.
	if _, failed := a.registry.Release(ctx, fabric.ReleaseRequest{Guest: h.Guest, Prefix: h.Prefix, Now: !h.Dynamic}); failed != nil {
		return false, err
	}
	a.log.Info("address of a guest that does not need it any more given back", "vm", h.VM, "guest", string(h.Guest), "address", text.Prefix(h.Prefix))
	return true, nil
}

// unneeded reports whether err says that another guest has an address, h, which does not
// need it any more. What cannot be read may be anybody's. An address that a guest named is that of the guest that runs with it,
// and of nobody while none does. One of a pool is its guest's until that is gone for good.
// why is err, and names the node that keeps the address by its silence.
func (a *Agent) unneeded(ctx context.Context, err error) (h fabric.Allocation, is bool, why error) {
	bad, held := errors.AsType[*fabric.AllocationError](err)
	if !held || bad.Reason != fabric.AddressHeld || bad.Holder.State != fabric.Allocated {
		return h, false, err
	}
	h = bad.Holder
	if h.Flaw != "" || h.Dynamic && !a.outlived(ctx, h) || a.isHere(h.VM, h.Guest) {
		return h, false, err
	}
	has, silent := a.userOf(ctx, h)
	if has.guest == h.Guest {
		return h, false, err
	}
	if perhaps := a.perhapsOn(h, silent); perhaps.node != "" {
		says := *bad
		says.Text += "; " + perhaps.mayHave(h)
		return h, false, &says
	}
	if a.isElsewhere(ctx, h) {
		return h, false, err
	}
	return h, true, err
}

// isElsewhere reports whether the guest of an allocation is on another node, also if it
// is withdrawn there in favour of another guest: it needs the address as long as it runs.
func (a *Agent) isElsewhere(ctx context.Context, h fabric.Allocation) bool {
	if !a.registry.Shared() { // the others have registries of their own, which would take this question for a start here
		return false
	}
	n := fabric.Notice{Kind: fabric.Describing, VM: h.VM, Identity: h.Guest, Prefixes: []netip.Prefix{h.Prefix}}
	answers, _ := a.askAll(ctx, n, a.others())
	for _, answer := range answers {
		if answer.Held && answer.Identity == h.Guest {
			return true
		}
	}
	return false
}

// outlived reports whether the guest that has an address is gone for good although
// nobody said so: this node had it last, and its hypervisor does not know it any more.
func (a *Agent) outlived(ctx context.Context, h fabric.Allocation) bool {
	if h.Node != a.node {
		return false
	}
	source, _, _ := strings.Cut(string(h.Guest), " ")
	i := slices.IndexFunc(a.sources, func(s fabric.Source) bool { return s.Name() == source })
	if i < 0 {
		return false
	}
	vm, ours, err := a.sources[i].Describe(ctx, h.VM)
	return err == nil && (!ours || vm.Identity() != h.Guest)
}
