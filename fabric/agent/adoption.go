package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/text"
)

// Adoption is how an agent adopts a registry that was restored from a backup or replaced,
// and hears that one was.
type Adoption struct {
	// Adopt says what the registry has, and, if really is set, that it is the right one
	// from now on.
	Adopt func(ctx context.Context, really bool) (fabric.Adoption, error)
	// Adopted wakes the agent when a node has adopted the registry. The agent records
	// again what its guests have.
	Adopted <-chan struct{}
}

// WithAdoption lets the agent adopt its registry.
func WithAdoption(how Adoption) Option { return func(a *Agent) { a.adoption = how } }

// AdoptRegistry says what a registry has that was restored or replaced, and what this
// node's guests have of which it says something else. If really is set, the registry
// is the right one from now on, for all nodes.
func (a *Agent) AdoptRegistry(ctx context.Context, really bool) (fabric.Adoption, error) {
	if a.adoption.Adopt == nil {
		return fabric.Adoption{}, fmt.Errorf("registry: %w: it is this node's own, so nothing is to adopt", fabric.ErrRefused)
	}
	ctx, cancel := context.WithTimeout(ctx, registryTime)
	defer cancel()
	found, err := a.adoption.Adopt(ctx, really)
	found.Differences = a.differs(found.Allocations)
	return found, err
}

// differs says what the guests that are here have of which a registry says something else.
func (a *Agent) differs(known []fabric.Allocation) (texts []string) {
	texts = []string{}
	for _, vm := range a.guestsHere() {
		for _, p := range vm.Prefixes() {
			if text := difference(vm, p, known); text != "" {
				texts = append(texts, text)
			}
		}
	}
	return texts
}

// guestsHere lists the guests of this node, by name.
func (a *Agent) guestsHere() (vms []fabric.VM) {
	s, done := a.state.open()
	defer done()
	for _, name := range sortedKeys(s.guests) {
		if g := s.guests[name]; g.want.State != fabric.Absent {
			vms = append(vms, g.want.VM)
		}
	}
	return vms
}

// difference says what a registry says else of an address or a prefix than that a guest
// has it. An address in a prefix of the guest's is not recorded for itself.
func difference(vm fabric.VM, p netip.Prefix, known []fabric.Allocation) string {
	i := slices.IndexFunc(known, func(h fabric.Allocation) bool { return h.Prefix.Overlaps(p) })
	has := fmt.Sprintf("guest %s has %s", vm.Name, text.Prefix(p))
	switch {
	case i < 0:
		return has + ", and by the registry nobody has it"
	case known[i].State == fabric.Allocated && known[i].Guest != vm.Identity():
		return fmt.Sprintf("%s, and by the registry guest %s (%s) has it, on %s", has, known[i].VM, known[i].Guest, known[i].Node)
	case known[i].State == fabric.Quarantined:
		return has + ", and by the registry it was given back"
	}
	return ""
}

// unregister has all guests recorded again.
func (a *Agent) unregister() {
	s, done := a.state.open()
	defer done()
	for _, g := range s.guests {
		g.registered, g.acquired = false, false
	}
}
