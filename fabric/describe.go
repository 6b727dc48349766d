package fabric

import (
	"fmt"
	"net/netip"
	"strings"
)

// What a guest has is settled when it starts. While it runs, its description at
// the hypervisor may change, vanish or break by anybody's hand: that is told,
// and changes nothing.

// isOf tells whether two descriptions can be of one guest: those of a source,
// or by hand, and of one UUID where both have one.
func (v VM) isOf(said VM) bool {
	return v.Origin == said.Origin && (v.UUID == "" || said.UUID == "" || v.UUID == said.UUID)
}

// concerns tells whether a source speaks of the guest that is known, in the run
// that is known: of another, what it says counts.
func (d Desired) concerns(said Desired) bool {
	return d.State != Absent && d.VM.isOf(said.VM) && (d.Run == "" || said.Run == "" || d.Run == said.Run)
}

// described gives what a source says of a guest with what the guest keeps, and
// the difference in words. about is false of a guest that is not described,
// and not known from before. a.mu is held.
func (a *Agent) described(said Desired) (d Desired, difference string, about bool) {
	g, bare := a.guests[said.VM.Name], len(said.VM.NICs) == 0
	switch {
	case g == nil || !g.want.concerns(said):
		return said, "", !bare
	case bare || said.Run != "":
		said.VM, difference = g.want.VM.kept(said.VM)
	}
	return said, difference, true
}

// describedAs is described, and notes the difference. That a guest is gone
// needs no description. a.mu is held.
func (a *Agent) describedAs(said Desired) (d Desired, about bool) {
	if said.State == Absent {
		return said, true
	}
	d, difference, about := a.described(said)
	if g := a.guests[said.VM.Name]; g != nil && about && g.want.concerns(said) {
		g.differs = difference
	}
	return d, about
}

// undescribed takes up that a guest runs of which its source cannot say what it
// has, and reports whether it is one that is known.
func (a *Agent) undescribed(d Desired) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, known := a.describedAs(d)
	return known
}

// asStarted gives a guest that runs already what it started with. The guest's lock is held.
func (a *Agent) asStarted(vm VM) VM {
	a.mu.Lock()
	defer a.mu.Unlock()
	g := a.guests[vm.Name]
	if g == nil || vm.Origin == "" || !g.want.concerns(Desired{VM: vm}) {
		return vm
	}
	vm, _ = a.answered(vm)
	vm, g.differs = g.want.VM.kept(vm)
	return vm
}

// kept gives a running guest, as its hypervisor describes it now, with what it
// started with, and says in what its description differs.
func (v VM) kept(said VM) (_ VM, difference string) {
	same := len(v.NICs) == len(said.NICs)
	for n := 0; same && n < len(v.NICs); n++ {
		was, is := v.NICs[n].Prefixes(), said.NICs[n].Prefixes()
		same = len(was) == len(is) && len(v.NICs[n].Addresses) == len(said.NICs[n].Addresses) && len(without(was, is)) == 0
	}
	switch {
	case same:
		said.Resolve = v.Resolve
		return said, ""
	case len(said.NICs) == 0:
		return v, fmt.Sprintf("%s does not say any more what it has; it keeps %s while it runs; put its description back, or stop and start it",
			v.Origin, inWords(v.Prefixes()))
	}
	has := "it has " + inWords(said.Prefixes())
	if said.Unresolved() {
		has = "a resolver knows what it has"
	}
	difference = fmt.Sprintf("%s says now that %s; it keeps %s while it runs; stop and start it to change that, or put its description back",
		v.Origin, has, inWords(v.Prefixes()))
	if len(v.NICs) != len(said.NICs) {
		return v, difference
	}
	said = said.with(v.NICs) // its interfaces are as they are
	said.Resolve = v.Resolve
	return said, difference
}

// inWords gives some prefixes in words.
func inWords(ps []netip.Prefix) string {
	const most = 4
	words := make([]string, 0, most)
	for _, p := range ps[:min(len(ps), most)] {
		words = append(words, pretty(p))
	}
	switch more := len(ps) - len(words); {
	case len(ps) == 0:
		return "nothing"
	case more > 0:
		return fmt.Sprintf("%s and %d more", strings.Join(words, ", "), more)
	}
	return strings.Join(words, ", ")
}
