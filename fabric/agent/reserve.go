package agent

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/reservation"
	"github.com/vmfabric/vmfabric/fabric/internal/text"
)

// reservationOf gives the items that no other guest of the node may have.
func reservationOf(vm fabric.VM) reservation.Set {
	return reservation.Set{Prefixes: vm.Prefixes(), Ports: portNames(vm)}
}

// acceptable says which rule the guest breaks as described, or nil; known: the node
// has the guest already. Whether its addresses are free is for [state.free] and
// [state.reserve].
func (s *state) acceptable(vm fabric.VM, known bool) error {
	if s.draining() && !known {
		return s.drainRefusal()
	}
	if err := cmp.Or(vm.Validate(), s.cluster().Permits(vm)); err != nil {
		return err
	}
	if vm.Unresolved() { // if this refuses it, nobody was asked for its addresses
		if err := s.free(vm); err != nil {
			return err
		}
	}
	return complete(vm, fabric.ValidateName)
}

// keepsMaker refuses a guest that is here, and one of whose links this node made and is to
// adopt now, or the other way round: it would not remove the first, and remove the second
// from its owner.
func keepsMaker(was, vm fabric.VM) error {
	for n := range min(len(was.NICs), len(vm.NICs)) {
		port := fabric.PortName(vm.Name, n)
		switch had, has := was.NICs[n].Kind == fabric.Adopt, vm.NICs[n].Kind == fabric.Adopt; {
		case has && !had:
			return fmt.Errorf("NIC %d: this node made %s for the guest, so there is nothing of somebody else's to adopt; detach the guest first, or leave it of kind %s", n, port, cmp.Or(was.NICs[n].Kind, fabric.Tap))
		case had && !has:
			return fmt.Errorf("NIC %d: %s is somebody else's, which this node adopted; detach the guest first, or leave it of kind %s", n, port, fabric.Adopt)
		}
	}
	return nil
}

// free reports an item of the guest that another guest holds.
func (s *state) free(vm fabric.VM) error {
	return held(vm, s.reserved.Check(vm.Name, reservationOf(vm)))
}

// reserve reserves the guest's prefixes and port names, and keeps those that it
// holds: another guest gets an address only after this one has released it.
func (s *state) reserve(vm fabric.VM) error {
	return held(vm, s.reserved.Reserve(vm.Name, reservationOf(vm)))
}

// keepOnly ends a change of a guest: the kernel and the speaker have it as in vm,
// so its other reservations are released.
func (t *task) keepOnly(vm fabric.VM) {
	s, done := t.state.open()
	defer done()
	s.reserved.Keep(vm.Name, reservationOf(vm))
}

// held turns a conflict into a text for people; it gives other errors unchanged.
func held(vm fabric.VM, err error) error {
	var c *reservation.Conflict
	if !errors.As(err, &c) {
		return err
	}
	nic := slices.IndexFunc(vm.NICs, func(n fabric.NIC) bool { return slices.Contains(n.Prefixes(), c.Prefix) })
	switch p := c.Prefix; {
	case c.Port != "":
		nic = slices.Index(portNames(vm), c.Port)
		return fmt.Errorf("NIC %d: port %s is that of VM %q, whose name shortens to the same; rename one of the two", nic, c.Port, c.Holder)
	case c.Held == p:
		return fmt.Errorf("NIC %d: %s: held by VM %q on this node; detach that first, or choose another", nic, text.Prefix(p), c.Holder)
	case c.Held.Bits() < p.Bits():
		return fmt.Errorf("NIC %d: %s: inside %s, which is routed to VM %q on this node; choose another", nic, text.Prefix(p), c.Held, c.Holder)
	default:
		return fmt.Errorf("NIC %d: %s: %s in it is held by VM %q on this node; choose another", nic, text.Prefix(p), text.Prefix(c.Held), c.Holder)
	}
}
