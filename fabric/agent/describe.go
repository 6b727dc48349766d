package agent

import (
	"github.com/vmfabric/vmfabric/fabric"
)

// What a guest has is settled when it starts. While it runs, its description at
// the hypervisor may change, vanish or break by anybody's hand: that is told,
// and changes nothing.

// described gives what a source says of a guest with what the guest keeps, and
// the difference in words. about is false of a guest that is not described,
// and not known from before.
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

// describedAs is described, and notes the difference. That a guest is gone
// needs no description.
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

// undescribed takes up that a guest runs of which its source cannot say what it
// has, and reports whether it is one that is known.
func (a *Agent) undescribed(d fabric.Desired) bool {
	s, done := a.state.open()
	defer done()
	_, known := s.describedAs(d)
	return known
}

// asStarted gives a guest that runs already what it started with.
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
