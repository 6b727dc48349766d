package agent

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/vmfabric/vmfabric/fabric"
)

// remembered gives a guest that asks for addresses those that another node knows it
// by, if this node's registry is its own and has none for it, or does not answer: so a
// guest can move meanwhile. If no node knows it and the registry does not answer, it gets
// what it had when the registry was last read: so it can stop and start. A guest that runs already, and of which nobody knows what
// it has, gets no new ones.
func (t *task) remembered(ctx context.Context, vm fabric.VM, r request) (fabric.VM, error) {
	looking, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	has, err := t.allocationsOf(looking, vm.Identity())
	if err != nil || len(has) == 0 && !t.registry.Shared() {
		if as, known := t.describedElsewhere(ctx, vm); known {
			return as, nil
		}
	}
	if err != nil {
		if as, missing := t.withKnown(vm, has); !missing {
			t.log.Info("the registry does not answer; the guest gets what it had by it", "vm", vm.Name, "err", err)
			return as, nil
		}
		return vm, unanswered{t.unallocated(err)}
	}
	if !r.undo && t.tells(vm.Origin) && slices.ContainsFunc(t.wants(vm), func(w fabric.Want) bool { return w.Pool != "" && !slices.ContainsFunc(has, w.Answers) }) {
		return vm, unanswered{errors.New("it asks for addresses of pools, and the registry does not know which it runs with; stop and start it")}
	}
	return vm, nil
}

// describedElsewhere asks the other nodes which addresses a guest has.
func (t *task) describedElsewhere(ctx context.Context, vm fabric.VM) (_ fabric.VM, known bool) {
	answers, _ := t.askAll(ctx, t.notice(fabric.Describing, fabric.Desired{VM: vm}), t.others())
	for _, node := range sortedKeys(answers) {
		answer := answers[node]
		if !answer.Held || answer.Identity != vm.Identity() || len(answer.NICs) != len(vm.NICs) {
			continue
		}
		as := withAllocated(vm, answer.NICs)
		if err := cmp.Or(complete(as, fabric.ValidateKnownName), t.cluster().Permits(as)); err != nil || !resolvesTo(vm, as) {
			t.log.Warn("what another node says of a guest's addresses is not what the guest asks for", "vm", vm.Name, "node", node, "err", err)
			continue
		}
		t.log.Info("another node knows its addresses", "vm", vm.Name, "node", node)
		return as, true
	}
	return vm, false
}

// withAllocated gives a guest what the registry gave NICs that another node describes.
func withAllocated(vm fabric.VM, said []fabric.NIC) fabric.VM {
	vm.NICs = slices.Clone(vm.NICs)
	for n, nic := range vm.NICs {
		is, addresses, routes := nic.Static(), said[n].Addresses, said[n].Routes
		is.Dynamic, is.DynamicRoutes = min(max(said[n].Dynamic, 0), len(addresses)), min(max(said[n].DynamicRoutes, 0), len(routes))
		is.Addresses = append(is.Addresses, addresses[len(addresses)-is.Dynamic:]...)
		is.Routes = append(is.Routes, routes[len(routes)-is.DynamicRoutes:]...)
		vm.NICs[n] = is
	}
	return vm
}

// askAll asks nodes, all at the same time, and waits askFor at most. silent are those
// that did not answer.
func (a *Agent) askAll(ctx context.Context, n fabric.Notice, nodes []string) (answers map[string]fabric.Answer, silent []string) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	answers, failed := a.askNodes(ctx, n, nodes)
	return answers, sortedKeys(failed)
}

// askNodes is askAll until ctx ends. failed has the reasons of those that did not answer.
func (a *Agent) askNodes(ctx context.Context, n fabric.Notice, nodes []string) (answers map[string]fabric.Answer, failed map[string]error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	answers, failed = map[string]fabric.Answer{}, map[string]error{}
	for _, node := range nodes {
		wg.Go(func() {
			answer, err := a.nodes.Ask(ctx, node, n)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed[node] = err
				return
			}
			answers[node] = a.believable(node, n.VM, answer)
		})
	}
	wg.Wait()
	return answers, failed
}

// describes answers a node that is about to start a guest which does not say what it
// has: by the guest that is here, or else by this node's own registry, which notes
// where the guest is from now on. A guest that is here may stay. One that is being
// started here, or ended, counts as here.
func (a *Agent) describes(ctx context.Context, from string, n fabric.Notice) (answer fabric.Answer) {
	_, end, free := a.tryBegin(n.VM)
	if free {
		end()
	}
	s, done := a.state.open()
	if g := s.guests[n.VM]; g != nil && g.want.State != fabric.Absent && g.want.VM.Identity() == n.Identity {
		for _, nic := range g.want.VM.NICs {
			answer.NICs = append(answer.NICs, fabric.NIC{
				Addresses: slices.Clone(nic.Addresses), Dynamic: nic.Dynamic, Routes: slices.Clone(nic.Routes), DynamicRoutes: nic.DynamicRoutes,
			})
		}
	}
	done()
	if answer.NICs == nil && a.registry != nil && !a.registry.Shared() {
		ctx, cancel := context.WithTimeout(ctx, recordTime)
		defer cancel()
		has, err := a.allocationsOf(ctx, n.Identity)
		if err == nil && len(has) > 0 {
			answer.NICs = nicsOf(has)
			err = a.recordNode(ctx, n.Identity, n.VM, has, from)
		}
		if err != nil {
			a.log.Warn("where a guest is was not recorded", "vm", n.VM, "node", from, "err", err)
		}
	}
	if answer.NICs != nil || !free {
		answer.Held, answer.VM, answer.Identity = true, n.VM, n.Identity
	}
	return answer
}

// nicsOf gives the NICs of a guest by its allocations.
func nicsOf(has []fabric.Allocation) (nics []fabric.NIC) {
	slices.SortFunc(has, func(x, y fabric.Allocation) int {
		return cmp.Or(cmp.Compare(x.NIC, y.NIC), boolOrder(x.Dynamic, y.Dynamic), cmp.Compare(x.N, y.N))
	})
	for _, h := range has {
		for len(nics) <= h.NIC {
			nics = append(nics, fabric.NIC{})
		}
		switch nic := &nics[h.NIC]; {
		case h.Dynamic:
			*nic = nic.WithAllocated(h)
		case h.Prefix.IsSingleIP():
			nic.Addresses = append(nic.Addresses, h.Prefix.Addr())
		}
	}
	return nics
}

// boolOrder sorts false before true.
func boolOrder(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
