package allocator

import (
	"fmt"

	"github.com/vmfabric/vmfabric/fabric"
)

// Owner gives the owner of a guest that has allocations.
func (t *Table) Owner(guest fabric.Identity) (is fabric.Owner, known bool) {
	for _, a := range t.Of(guest) {
		if !known || a.Epoch > is.Epoch {
			is, known = a.Owner(), true
		}
	}
	return is, known
}

// SetOwner sets the owner of a guest, for the allocations that it has and those that
// [Table.Put] adds. It is for registries that keep owners apart from allocations. The
// zero value: the owner is as each allocation says.
func (t *Table) SetOwner(guest fabric.Identity, is fabric.Owner) {
	t.rows.setOwner(guest, is)
	if is == (fabric.Owner{}) {
		return
	}
	for _, a := range t.Of(guest) {
		a.Node, a.Epoch = is.Node, is.Epoch
		t.rows.put(a)
	}
}

// Acquire decides who owns a guest from now on. Its caller sees to it that the answer
// holds only if the owner has not changed meanwhile. The change has the guest's allocations with the new owner; it is
// empty if the request was answered before.
func (t *Table) Acquire(a fabric.AcquireRequest) (fabric.Owner, Change, error) {
	is, known := t.Owner(a.Guest)
	switch {
	case !known:
		return is, Change{}, &fabric.RefusedError{VM: a.VM, Reason: fabric.RuleBroken, Err: fmt.Errorf("%s has no address in the registry, so nobody owns it; allocate its addresses first", a.Guest)}
	case is.Node == a.Node && is.Epoch > a.Over && is.Epoch >= a.Least:
		return is, Change{}, nil
	case is.Epoch != a.Over:
		return is, Change{}, &fabric.OwnerError{VM: a.VM, Owner: is}
	}
	is = fabric.Owner{Node: a.Node, Epoch: max(a.Over+1, a.Least, t.Least)}
	var c Change
	for _, had := range t.Of(a.Guest) {
		had.Node, had.Epoch = is.Node, is.Epoch
		c.Put = append(c.Put, had)
	}
	return is, c, nil
}
