package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/text"
)

// announced reports whether the guest is to be announced.
func announced(d fabric.Desired) bool { return d.State == fabric.Live && (d.Lost == "" || d.Standby) }

// owned reports whether the guest is to be announced as one that is here.
func owned(d fabric.Desired) bool { return d.State == fabric.Live && d.Lost == "" }

// lostAs takes over to which node the guest was lost, and how, or with the zero
// value that it was not.
func lostAs(d *fabric.Desired, other fabric.Desired) {
	d.Lost, d.LostGuest, d.LostOther, d.LostRoute, d.Standby = other.Lost, other.LostGuest, other.LostOther, other.LostRoute, other.Standby
}

// ended reports whether the guest was live here, and is not any more: somebody
// else may have its addresses since.
func ended(d fabric.Desired) bool {
	return d.State == fabric.Wired && !d.Incoming && d.Epoch > 0 && d.Acquired.IsZero()
}

// isOf tells whether two descriptions can be of one guest: those of a source,
// or by hand, and of one UUID where both have one.
func isOf(v, said fabric.VM) bool {
	return v.Origin == said.Origin && (v.UUID == "" || said.UUID == "" || v.UUID == said.UUID)
}

// concerns tells whether a source speaks of the guest that is known, in the run
// that is known: of another, what it says counts.
func concerns(d, said fabric.Desired) bool {
	return d.State != fabric.Absent && isOf(d.VM, said.VM) && (d.Run == "" || said.Run == "" || d.Run == said.Run)
}

// asItStarted gives a running guest, as its hypervisor describes it now, with what it
// started with, and says in what its description differs.
func asItStarted(v, said fabric.VM) (_ fabric.VM, difference string) {
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
	said = withNICs(said, v.NICs) // its interfaces are as they are
	said.Resolve = v.Resolve
	return said, difference
}

// inWords gives some prefixes in words.
func inWords(ps []netip.Prefix) string {
	const most = 4
	words := make([]string, 0, most)
	for _, p := range ps[:min(len(ps), most)] {
		words = append(words, text.Prefix(p))
	}
	switch more := len(ps) - len(words); {
	case len(ps) == 0:
		return "nothing"
	case more > 0:
		return fmt.Sprintf("%s and %d more", strings.Join(words, ", "), more)
	}
	return strings.Join(words, ", ")
}

// withNICs gives the guest with the addresses and routes of these NICs.
func withNICs(v fabric.VM, answer []fabric.NIC) fabric.VM {
	v.NICs = slices.Clone(v.NICs)
	for n := range v.NICs {
		v.NICs[n].Addresses, v.NICs[n].Routes = slices.Clone(answer[n].Addresses), slices.Clone(answer[n].Routes)
	}
	return v
}

// complete is [fabric.VM.Validate] of a guest that is to have what its NICs say.
func complete(v fabric.VM) error {
	if err := fabric.ValidateName(v.Name); err != nil {
		return err
	}
	return completeNICs(v)
}

// completeAsKnown is complete for a guest that this node has already, maybe under
// a name that no new guest may have.
func completeAsKnown(v fabric.VM) error {
	if err := fabric.ValidateKnownName(v.Name); err != nil {
		return err
	}
	return completeNICs(v)
}

func completeNICs(v fabric.VM) error {
	if err := v.ValidateNICs(); err != nil || !v.Unresolved() {
		return err
	}
	v.Resolve = false
	return v.ValidateNICs()
}
