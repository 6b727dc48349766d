// Package plan compares the wanted state of a node's guests with what is there,
// and says what a pass has to do. It looks at plain values alone.
package plan

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/vmfabric/vmfabric/fabric"
)

// Plan is what a pass has to do.
type Plan struct {
	Repairs []Repair
	Ports   []fabric.PortState // of ours, wanted by nobody: to be removed
	Routes  []netip.Prefix     // announced, wanted by nobody: to be withdrawn
}

// Repair is a guest that is not as it is wanted.
type Repair struct {
	VM   string
	NICs NICStates // nil of one that is not live: as it was
	Why  string
}

// NICStates are the states of a guest's NICs, by their number; those that are not
// in it are [Settled]. They matter while the guest is live.
type NICStates map[int]NICState

// Down counts the NICs that are [Down].
func (s NICStates) Down() (n int) {
	for _, state := range s {
		if state == Down {
			n++
		}
	}
	return n
}

// NICState is how a NIC is to be announced.
type NICState uint8

// The states.
const (
	Settled  NICState = iota // as usual
	Arrived                  // its guest has run here only for a while
	Arriving                 // its guest is about to run: nobody holds the other end yet, or nobody was heard there
	Down                     // not at all: nobody holds the other end any more
)

// MissingHops says why families have no next hop; nil: they have one.
type MissingHops struct{ V4, V6 error }

// Of gives the error of a prefix's family.
func (m MissingHops) Of(p netip.Prefix) error {
	if p.Addr().Is4() {
		return m.V4
	}
	return m.V6
}

// Errors lists those that there are.
func (m MissingHops) Errors() (all []error) {
	for _, err := range []error{m.V4, m.V6} {
		if err != nil {
			all = append(all, err)
		}
	}
	return all
}

// Preference is how a NIC in this state is announced, where it is: behind that of
// another node with standby. A drain changes only that of a guest which runs here
// and which nobody else announces any more: one that is expected stays behind
// whoever has it, and one that has just begun to run here stays before the node
// that it left, whose route may be there until its agent comes back.
func (s NICState) Preference(standby, draining bool) fabric.Preference {
	switch {
	case standby, s == Arriving:
		return fabric.Standby
	case s == Arrived:
		return fabric.Fresh
	case draining:
		return fabric.Draining
	}
	return fabric.Normal
}

// nicState gives the state of a NIC. Without a hypervisor nobody but
// the user knows whether a guest runs; a link that its owner makes is there
// some time before the guest is. One that leaves is announced until it is gone
// from here: its process ends before everybody has heard of the other node.
func (g Guest) nicState(nic fabric.NIC, have fabric.PortState, there bool) NICState {
	switch {
	case g.Leaving:
		return Settled
	case there && !have.Carrier && (have.Lost || g.Managed && nic.Kind != fabric.Adopt):
		return Down
	case !g.Managed && g.Fresh:
		return Arrived
	case !g.Managed:
		return Settled
	case nic.Kind == fabric.Adopt && !have.Carrier, have.Silent: // or not ours yet, and about to be
		return Arriving
	case g.Fresh:
		return Arrived
	}
	return Settled
}

// Begin gives the states of the NICs of a guest that was asked to be live,
// before anybody has looked at its ports; had is that of the guest as it was.
// With listen, it is to be heard first.
func Begin(vm fabric.VM, was fabric.Desired, had NICStates, listen bool) NICStates {
	st := NICStates{}
	for n, nic := range vm.NICs {
		if was.State == fabric.Live && n < len(was.VM.NICs) && was.VM.NICs[n].Kind == nic.Kind {
			if had[n] != Settled {
				st[n] = had[n]
			}
			continue
		}
		switch {
		case vm.Origin == "":
		case nic.Kind == fabric.Adopt, listen:
			st[n] = Arriving
		default:
			st[n] = Arrived
		}
	}
	return st
}

// Guest is what the planner knows of a guest.
type Guest struct {
	Ports    []fabric.Port
	Live     bool
	Draining bool          // its node is being drained
	Managed  bool          // a hypervisor runs it, and holds the other end of its ports while it does
	Retry    bool          // an earlier attempt failed, or a removal is to be finished
	Leaving  bool          // it was stopped, to run on another node
	Fresh    bool          // it began to run here, and others may not have let go of it yet
	Standby  bool          // another node had it, and does not answer
	Defends  bool          // a route of another guest competes, which got the address later
	Holder   fabric.Holder // what its fresh routes say of it
	NICs     NICStates     // as of the pass before
	Hops     MissingHops
	Unknown  bool // it runs, and nobody knows what it has: its ports stay as they are
}

// Route gives the announcement of a prefix of a NIC in a state. One that
// competes with that of a guest which got the address later comes before it:
// reflectors tell the other node of no other, and the one that has the higher
// LOCAL_PREF takes the packets until it knows. A node that is being drained
// goes on to come after all.
func (g Guest) Route(prefix netip.Prefix, state NICState) fabric.Route {
	r := fabric.Route{Prefix: prefix, Preference: state.Preference(g.Standby, g.Draining)}
	if g.Defends && (r.Preference == fabric.Normal || r.Preference == fabric.Fresh) {
		r.Preference, r.First = fabric.Fresh, true
	}
	if r.Preference == fabric.Fresh { // reflectors tell other nodes of no other
		r.Holder = g.Holder
	}
	return r
}

// Decide compares what is wanted with what is there now. Only when prune is set
// may it say that something is to be removed.
func Decide(guests map[string]Guest, ports []fabric.PortState, routes []fabric.Route, prune bool) Plan {
	var pl Plan
	actual := make(map[string]fabric.PortState, len(ports))
	for _, p := range ports {
		actual[p.Name] = p
	}
	announced := make(map[netip.Prefix]fabric.Route, len(routes))
	for _, r := range routes {
		announced[r.Prefix] = r
	}
	claimedPort, claimedRoute := map[string]bool{}, map[netip.Prefix]bool{}
	for _, vm := range slices.Sorted(maps.Keys(guests)) {
		g := guests[vm]
		st, why := NICStates{}, ""
		note := func(reason string) {
			if why == "" {
				why = reason
			}
		}
		if g.Retry {
			note("an earlier attempt did not succeed")
		}
		for _, p := range g.Ports {
			claimedPort[p.Name] = true
			have, there := actual[p.Name]
			switch {
			case !there && p.NIC.Kind == fabric.Adopt:
				note(p.Name + ": its owner has not made it yet") // or has by now, and it has no mark of ours
			case !there:
				note(p.Name + ": missing")
			case len(have.Faults) > 0:
				note(p.Name + ": " + strings.Join(have.Faults, ", "))
			}
			state := Settled
			if g.Live {
				if there || p.NIC.Kind == fabric.Adopt {
					state = g.nicState(p.NIC, have, there)
				} else {
					state = g.NICs[p.Index] // it may have been made since the ports were listed
				}
				if state != Settled {
					st[p.Index] = state
				}
			}
			should := g.Live && state != Down
			for _, prefix := range p.NIC.Prefixes() {
				claimedRoute[prefix] = true
				should, route := should && g.Hops.Of(prefix) == nil, g.Route(prefix, state)
				switch as, is := announced[prefix]; {
				case should != is:
					note(prefix.String() + map[bool]string{true: ": not announced", false: ": announced"}[should])
				case should && as.Preference != route.Preference:
					note(prefix.String() + ": announced as " + as.Preference.String() + ", not as " + route.Preference.String())
				case should && as.Holder != (fabric.Holder{}) && as != route: // where the speaker can say it
					note(prefix.String() + ": announced with what was said of its holder before")
				}
			}
		}
		if g.Live && !maps.Equal(st, g.NICs) {
			note("carrier changed")
		}
		if !g.Live {
			st = nil // it may be live by the time of the repair
		}
		if why != "" {
			pl.Repairs = append(pl.Repairs, Repair{vm, st, why})
		}
	}
	if !prune {
		return pl
	}
	for _, p := range ports {
		if guests[p.VM].Unknown {
			claimedPort[p.Name] = true
			for _, prefix := range p.NIC.Prefixes() {
				claimedRoute[prefix] = true
			}
		}
		if !claimedPort[p.Name] {
			pl.Ports = append(pl.Ports, p)
		}
	}
	for _, r := range routes {
		if !claimedRoute[r.Prefix] {
			pl.Routes = append(pl.Routes, r.Prefix)
		}
	}
	return pl
}
