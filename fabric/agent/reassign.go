package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/text"
)

// Reassign gives an address that one guest has to another guest, by its name, in one
// change of the registry. The other guest gets it when it starts, in the place of one
// that a pool gave it for the same want. Reassign returns what that guest has then. The
// agent refuses it while one of the two guests is on a node, and while a node does not
// answer where the first one may be. It is idempotent.
func (a *Agent) Reassign(ctx context.Context, p netip.Prefix, to string) ([]fabric.Allocation, error) {
	if a.registry == nil {
		return nil, a.noRegistry()
	}
	ctx, cancel := context.WithTimeout(ctx, registryTime)
	defer cancel()
	guest, err := a.recipient(ctx, to)
	if err != nil {
		return nil, err
	}
	h, err := a.allocationAt(ctx, p, guest)
	if err != nil {
		return nil, err
	}
	if h.Guest == guest.identity {
		return guest.has, nil
	}
	r, err := a.reassignment(ctx, h, guest)
	if err == nil {
		_, err = a.registry.Allocate(ctx, r)
	}
	var bad *fabric.AllocationError
	switch {
	case errors.As(err, &bad):
		return nil, fmt.Errorf("%w: %s", fabric.ErrRefused, bad.Text)
	case err != nil:
		return nil, err
	}
	return a.allocationsOf(ctx, guest.identity)
}

// recipient is a guest that is to get an address, and need not run.
type recipient struct {
	vm       fabric.VM // without NICs: its description is not known
	identity fabric.Identity
	node     string // where it is, or was
	has      []fabric.Allocation
}

// recipient gives a guest by its name: one that is on this node, one that a hypervisor of
// this node describes, or the one that the registry knows.
func (a *Agent) recipient(ctx context.Context, name string) (recipient, error) {
	s, done := a.state.open()
	g := s.guests[name]
	is := recipient{node: a.node}
	if g != nil && g.want.State != fabric.Absent {
		is.vm = g.want.VM
	}
	done()
	if is.vm.Name == "" {
		vm, err := a.describedBy(ctx, a.sources, name)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return a.recipientByRegistry(ctx, name)
		case err != nil:
			return is, err
		}
		is.vm = vm
	}
	is.identity = is.vm.Identity()
	var err error
	is.has, err = a.allocationsOf(ctx, is.identity)
	return is, err
}

// recipientByRegistry gives a guest of which this node knows no description.
func (a *Agent) recipientByRegistry(ctx context.Context, name string) (recipient, error) {
	is := recipient{vm: fabric.VM{Name: name}}
	all, err := a.registry.Allocations(ctx, fabric.AllocationFilter{})
	if err != nil {
		return is, ofRegistry(err)
	}
	for _, h := range all {
		switch {
		case h.State != fabric.Allocated || h.VM != name:
		case is.identity != "" && is.identity != h.Guest:
			return is, fmt.Errorf("guest %s: the registry has two of that name (%s, %s); ask on the node whose hypervisor has the one", name, is.identity, h.Guest)
		default:
			is.identity, is.node = h.Guest, h.Node
			is.has = append(is.has, h)
		}
	}
	if is.identity == "" {
		return is, notThere(fmt.Sprintf("guest %s: no hypervisor of this node has one of the fabric, and no guest of that name has an address; ask on its own node, or allocate it one first", name))
	}
	return is, nil
}

// allocationAt gives the allocation of an address to the guest that is to give it away.
func (a *Agent) allocationAt(ctx context.Context, p netip.Prefix, to recipient) (fabric.Allocation, error) {
	all, err := a.registry.Allocations(ctx, fabric.AllocationFilter{Prefix: p})
	if err != nil {
		return fabric.Allocation{}, ofRegistry(err)
	}
	refuse := func(format string, args ...any) (fabric.Allocation, error) {
		return fabric.Allocation{}, fmt.Errorf("%s %w: "+format, append([]any{text.Prefix(p), fabric.ErrRefused}, args...)...)
	}
	if len(all) == 0 {
		return refuse("no guest has it; allocate it to guest %s instead", to.vm.Name)
	}
	switch h := all[0]; {
	case h.Flaw != "":
		return refuse("%s", h.Flaw)
	case h.Prefix != p:
		return refuse("it is in %s of guest %s, or around it; name that", text.Prefix(h.Prefix), cmp.Or(h.VM, "-"))
	case h.State == fabric.Reserved:
		return refuse("it is reserved, and no guest has it; end the reservation, and allocate it to guest %s", to.vm.Name)
	case h.State == fabric.Quarantined:
		return refuse("guest %s gave it back, and no guest has it; allocate it to guest %s instead", h.VM, to.vm.Name)
	default:
		return h, nil
	}
}

// reassignment gives the request to the registry, or says why the address stays.
func (a *Agent) reassignment(ctx context.Context, h fabric.Allocation, to recipient) (r fabric.AllocationRequest, err error) {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%s %w: "+format, append([]any{text.Prefix(h.Prefix), fabric.ErrRefused}, args...)...)
	}
	if !a.registry.Shared() && h.Node != a.node {
		return r, refuse("this node has a registry of its own, and guest %s went to %s; ask there", h.VM, h.Node)
	}
	has, silent := a.userOf(ctx, h)
	perhaps := a.perhapsOn(h, silent)
	switch {
	case has.node != "":
		return r, has.keeps(h)
	case perhaps.node != "":
		return r, refuse("%s", perhaps.mayHave(h))
	}
	if node := a.nodeOf(ctx, to); node != "" {
		return r, refuse("guest %s is on %s; stop it first, it gets the address when it starts", to.vm.Name, node)
	}
	w, asks := a.placeOf(h, to)
	if !asks {
		return r, refuse("guest %s neither names it nor asks a pool that has it; change its description first", to.vm.Name)
	}
	w.Prefix, w.NoAddress, w.Note = h.Prefix, h.NoAddress, h.Note
	return fabric.AllocationRequest{Guest: to.identity, VM: to.vm.Name, Node: to.node, From: h.Guest, FromEpoch: h.Epoch, Wants: []fabric.Want{w}}, nil
}

// nodeOf gives the node where a guest is, running or about to; empty: none says so.
func (a *Agent) nodeOf(ctx context.Context, is recipient) string {
	if a.isHere(is.vm.Name, is.identity) {
		return a.node
	}
	n := fabric.Notice{Kind: fabric.Acquiring, VM: is.vm.Name, Identity: is.identity}
	for _, h := range is.has {
		n.Prefixes = append(n.Prefixes, h.Prefix)
	}
	answers, _ := a.askAll(ctx, n, a.others())
	for _, node := range sortedKeys(answers) {
		if answers[node].Held && answers[node].Identity == is.identity {
			return node
		}
	}
	return ""
}

// placeOf gives the want of a guest that an address answers: one without another answer
// if there is such a one. Without a description it is the place that the address had at
// the guest that gives it away.
func (a *Agent) placeOf(h fabric.Allocation, to recipient) (place fabric.Want, asks bool) {
	if len(to.vm.NICs) == 0 {
		w := fabric.Want{NIC: h.NIC, N: h.N}
		if h.Dynamic {
			w.Pool = cmp.Or(h.Pool, fabric.AutoPool)
		}
		return w, true
	}
	for _, w := range a.wants(to.vm) {
		switch {
		case w.Prefix == h.Prefix:
			return w, true
		case w.Prefix.IsValid() || w.Pool != h.Pool && (w.Pool != fabric.AutoPool || w.V6 != h.Prefix.Addr().Is6() || h.NoAddress):
		case !asks, !slices.ContainsFunc(to.has, w.Answers) && slices.ContainsFunc(to.has, place.Answers):
			place, asks = w, true
		}
	}
	return place, asks
}
