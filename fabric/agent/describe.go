package agent

import (
	"github.com/vmfabric/vmfabric/fabric"
)

// A guest keeps the addresses and routes with which it started. If an operator
// changes, removes or breaks its description at the hypervisor while it runs, the
// agent reports the difference and changes nothing.

// described merges a source's report about a guest with the addresses that the guest
// keeps, and gives the difference in words. about is false for a guest without a
// description that this node does not have.
func (s *state) described(said fabric.Desired) (d fabric.Desired, difference string, about bool) {
	g, bare := s.guests[said.VM.Name], len(said.VM.NICs) == 0
	switch {
	case g == nil || !concerns(g.want, said):
		return said, "", !bare
	case bare || said.Run != "":
		said.VM, difference = asItStarted(g.want.VM, said.VM)
	}
	return said, difference, true
}

// describedAs is described, and records the difference. A report that a guest is
// absent needs no description.
func (s *state) describedAs(said fabric.Desired) (d fabric.Desired, about bool) {
	if said.State == fabric.Absent {
		return said, true
	}
	d, difference, about := s.described(said)
	if g := s.guests[said.VM.Name]; g != nil && about && concerns(g.want, said) {
		g.differs = difference
	}
	return d, about
}

// undescribed handles the report that a guest runs whose source cannot describe it.
// It reports whether this node has the guest.
func (a *Agent) undescribed(d fabric.Desired) bool {
	s, done := a.state.open()
	defer done()
	_, known := s.describedAs(d)
	return known
}

// asStarted gives a guest that runs already the addresses with which it started.
func (t *task) asStarted(vm fabric.VM) fabric.VM {
	s, done := t.state.open()
	defer done()
	g := s.guests[vm.Name]
	if g == nil || vm.Origin == "" || !concerns(g.want, fabric.Desired{VM: vm}) {
		return vm
	}
	vm, _ = s.answered(vm)
	vm, g.differs = asItStarted(g.want.VM, vm)
	return vm
}
