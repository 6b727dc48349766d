package agent

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/reservation"
	"github.com/vmfabric/vmfabric/fabric/internal/text"
)

// reservationOf is what a guest has of its node alone.
func reservationOf(vm fabric.VM) reservation.Set {
	return reservation.Set{Prefixes: vm.Prefixes(), Ports: portNames(vm)}
}

// acceptable tells why the guest cannot be on this node as it is, or nil; known
// is true of one that is here. It changes nothing.
func (s *state) acceptable(vm fabric.VM, known bool) error {
	if s.draining() && !known {
		return s.drainRefusal()
	}
	if err := complete(vm); err != nil {
		return err
	}
	if err := s.cluster.Permits(vm); err != nil {
		return err
	}
	return s.free(vm)
}

// free reports what of the guest another one holds.
func (s *state) free(vm fabric.VM) error {
	return held(vm, s.reserved.Check(vm.Name, reservationOf(vm)))
}

// reserve lets the guest hold what it asks for, besides what it has: another
// guest gets an address only when this one has let go of it.
func (s *state) reserve(vm fabric.VM) error {
	return held(vm, s.reserved.Reserve(vm.Name, reservationOf(vm)))
}

// keepOnly ends a change of a guest: the node has it as vm says, and what it
// held besides is free.
func (t *task) keepOnly(vm fabric.VM) {
	s, done := t.state.open()
	defer done()
	s.reserved.Keep(vm.Name, reservationOf(vm))
}

// holds gives all that a guest may have on this node: what is wanted, and what
// an unfinished change has left.
func (t *task) holds(vm fabric.VM) reservation.Set {
	s, done := t.state.open()
	defer done()
	return s.reserved.Held(vm.Name)
}

// held says in words why a guest cannot have what it asks for.
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
