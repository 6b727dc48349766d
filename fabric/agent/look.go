package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/vmfabric/vmfabric/fabric"
)

// Starting brings a guest live that a source's hypervisor is about to start. It is
// for hooks that know only the guest's name at the hypervisor. It does nothing for
// a guest that is not of the fabric. It refuses ([fabric.ErrRefused]) a guest of
// the fabric whose description is faulty or breaks a rule. After any error the
// guest is as it was before.
func (a *Agent) Starting(ctx context.Context, source, name string) error {
	vm, ours, err := a.look(ctx, source, name)
	switch {
	case err != nil && ours:
		return refused(name, err)
	case err != nil:
		return fmt.Errorf("guest %s: %w", name, err)
	case !ours:
		return nil
	}
	return a.Apply(ctx, vm, fabric.Live)
}

// Ended withdraws a guest that a source's hypervisor has stopped, and leaves its
// ports. It does nothing for a guest that is not of the fabric.
func (a *Agent) Ended(ctx context.Context, source, name string) error {
	vm, ours, err := a.look(ctx, source, name)
	switch {
	case err != nil:
		return fmt.Errorf("guest %s: %w", name, err)
	case !ours:
		return nil
	}
	return a.Withdraw(ctx, vm.Name)
}

// look asks the named source for the description of a guest.
func (a *Agent) look(ctx context.Context, source, name string) (fabric.VM, bool, error) {
	for _, s := range a.sources {
		if s.Name() == source {
			return s.Describe(ctx, name)
		}
	}
	return fabric.VM{}, false, fmt.Errorf("this agent does not follow %s; start it with --%[1]s auto", source)
}

// unknownGuest is the error for a guest that no hypervisor of the node has.
func (a *Agent) unknownGuest(name string) error {
	return notThere(fmt.Sprintf("guest %s: %s", name, a.withRemedy("no hypervisor of this node has one of the fabric", fabric.GuestUnknown)))
}

// notThere is an [os.ErrNotExist] in words of its own: no file is meant.
type notThere string

func (e notThere) Error() string        { return string(e) }
func (e notThere) Is(target error) bool { return target == os.ErrNotExist }

// Guest returns a guest of this node with what it has now.
func (a *Agent) Guest(name string) (vm fabric.VM, ok bool) {
	s, done := a.state.open()
	defer done()
	g := s.guests[name]
	if g == nil {
		return vm, false
	}
	return g.want.VM, true
}

// UserData returns what the owner of a guest left for the programs in it, from the guest's
// hypervisor; nil: there is none, as for guests attached by hand.
func (a *Agent) UserData(ctx context.Context, vm fabric.VM) ([]byte, error) {
	for _, s := range a.sources {
		if s.Name() != vm.Origin {
			continue
		}
		data, err := s.UserData(ctx, vm)
		if err == nil && len(data) > fabric.MaxUserData {
			return nil, fmt.Errorf("guest %s: user data of %d bytes; at most %d, compress it", vm.Name, len(data), fabric.MaxUserData)
		}
		return data, err
	}
	return nil, nil
}

// Describe gives a guest, running or not, and its network: as its hypervisor
// describes it, or as it was attached. It may ask the [fabric.Resolver] for the
// addresses. Its error is [os.ErrNotExist] if neither a hypervisor nor the agent
// knows the guest.
func (a *Agent) Describe(ctx context.Context, name string) (fabric.VM, fabric.Network, error) {
	s, done := a.state.open()
	g, attached := s.guests[name]
	var have fabric.VM
	if attached {
		have = g.want.VM
	}
	done()
	sources := a.sources
	if attached {
		sources = slices.DeleteFunc(slices.Clone(sources), func(s fabric.Source) bool { return s.Name() != have.Origin })
	}
	vm, err := a.describedBy(ctx, sources, name)
	if err == nil {
		if vm, err = a.describe(ctx, vm); err != nil {
			err = fmt.Errorf("guest %s: %w", name, err)
		}
	}
	switch {
	case err == nil:
		return vm, a.cluster().Network(), nil
	case attached: // by hand, or its hypervisor cannot describe it now
		return have, a.cluster().Network(), nil
	}
	return fabric.VM{}, fabric.Network{}, err
}

// describedBy gives a guest as the first of the sources describes it that can. Its error
// is [os.ErrNotExist] if none of them knows the guest.
func (a *Agent) describedBy(ctx context.Context, sources []fabric.Source, name string) (fabric.VM, error) {
	var flaws []error
	for _, s := range sources {
		vm, ours, err := s.Describe(ctx, name)
		switch {
		case ours && err == nil:
			return vm, nil
		case err != nil && !errors.Is(err, os.ErrNotExist):
			flaws = append(flaws, err)
		}
	}
	if len(flaws) > 0 {
		return fabric.VM{}, fmt.Errorf("guest %s: %w", name, errors.Join(flaws...))
	}
	return fabric.VM{}, a.unknownGuest(name)
}
