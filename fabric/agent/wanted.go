package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/text"
)

// announced reports whether the node should announce the guest.
func announced(d fabric.Desired) bool { return d.State == fabric.Live && (d.Lost == "" || d.Standby) }

// owned reports whether the guest is live and no other node preempted this one.
func owned(d fabric.Desired) bool { return d.State == fabric.Live && d.Lost == "" }

// lostAs copies the fields about a preemption from other; the zero value clears them.
func lostAs(d *fabric.Desired, other fabric.Desired) {
	d.Lost, d.LostGuest, d.LostOther, d.LostRoute, d.Standby = other.Lost, other.LostGuest, other.LostOther, other.LostRoute, other.Standby
}

// ended reports whether the guest was live here, and was withdrawn since: another
// guest may have its addresses now.
func ended(d fabric.Desired) bool {
	return d.State == fabric.Wired && !d.Incoming && d.Epoch > 0 && d.Acquired.IsZero()
}

// isOf reports whether two descriptions can be of one guest: the origin is the
// same, and so is the UUID if both have one.
func isOf(v, said fabric.VM) bool {
	return v.Origin == said.Origin && (v.UUID == "" || said.UUID == "" || v.UUID == said.UUID)
}

// concerns reports whether said is about the guest d in its present run, in which the
// guest keeps what it started with. A description of another guest or run applies in
// full.
func concerns(d, said fabric.Desired) bool {
	return d.State != fabric.Absent && isOf(d.VM, said.VM) && (d.Run == "" || said.Run == "" || d.Run == said.Run)
}

// asItStarted merges a running guest v with its description now: the guest keeps the
// addresses, the routes and the answers that it started with. difference says, for
// people, how the description differs from them; empty: it does not.
func asItStarted(v, said fabric.VM) (_ fabric.VM, difference string) {
	same := len(v.NICs) == len(said.NICs)
	for n := 0; same && n < len(v.NICs); n++ {
		was, is := v.NICs[n].Prefixes(), said.NICs[n].Prefixes()
		same = len(was) == len(is) && len(v.NICs[n].Addresses) == len(said.NICs[n].Addresses) && len(without(was, is)) == 0
	}
	var has, keeps []string
	switch {
	case same && switches(v) == switches(said):
		said.Resolve = v.Resolve
		return said, ""
	case len(said.NICs) == 0:
		return v, fmt.Sprintf("%s does not say any more what it has; it keeps %s while it runs; put its description back, or stop and start it",
			v.Origin, inWords(v.Prefixes()))
	case same:
	case said.Resolve && said.Unresolved():
		has, keeps = append(has, "a resolver knows what it has"), append(keeps, inWords(v.Prefixes()))
	case said.Unresolved():
		has, keeps = append(has, "it asks for addresses of pools"), append(keeps, inWords(v.Prefixes()))
	default:
		has, keeps = append(has, "it has "+inWords(said.Prefixes())), append(keeps, inWords(v.Prefixes()))
	}
	if was, is := switches(v), switches(said); was != is {
		has, keeps = append(has, "it gets "+is.String()), append(keeps, was.String())
	}
	difference = fmt.Sprintf("%s says now that %s; it keeps %s while it runs; stop and start it to change that, or put its description back",
		v.Origin, strings.Join(has, " and "), strings.Join(keeps, " and "))
	if len(v.NICs) != len(said.NICs) {
		return v, difference
	}
	said = withNICs(said, v.NICs) // other properties of the NICs, such as the MTU, are the current ones
	said.Resolve, said.NoDHCP, said.NoRA = v.Resolve, v.NoDHCP, v.NoRA
	return said, difference
}

// answers says which requests for its configuration a guest has answered.
type answers struct{ noDHCP, noRA bool }

// switches gives the answers that a guest's description says.
func switches(v fabric.VM) answers { return answers{v.NoDHCP, v.NoRA} }

func (a answers) String() string {
	switch {
	case a.noDHCP && a.noRA:
		return "no DHCP and no router advertisements"
	case a.noDHCP:
		return "router advertisements and no DHCP"
	case a.noRA:
		return "DHCP and no router advertisements"
	}
	return "DHCP and router advertisements"
}

// inWords lists the first prefixes for people.
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
		v.NICs[n].Pools, v.NICs[n].Dynamic, v.NICs[n].DynamicRoutes = answer[n].Pools, answer[n].Dynamic, answer[n].DynamicRoutes
	}
	return v
}

// complete checks a guest about to be brought up: its name by a rule of fabric, and
// that every NIC has its addresses, also those that somebody else should supply.
func complete(v fabric.VM, name func(string) error) error {
	if err := name(v.Name); err != nil {
		return err
	}
	if err := v.ValidateNICs(); err != nil || !v.Unresolved() {
		return err
	}
	for n, nic := range v.NICs {
		if nic.Unallocated() {
			return fmt.Errorf("NIC %d: no address from pool %s yet", n, nic.Pools[0])
		}
	}
	v.Resolve = false
	return v.ValidateNICs()
}
