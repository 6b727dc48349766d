// Package plan compares the wanted state of a node's guests with the actual ports and
// routes, and says what a pass has to do. It is pure.
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
	Ports   []fabric.PortState // ports of ours that no guest has: remove them
	Routes  []netip.Prefix     // announced prefixes that no guest has: withdraw them
}

// Repair names a guest whose actual state differs from the wanted one.
type Repair struct {
	VM   string
	NICs NICStates // as found; nil: leave the known states, the guest is not live
	Kind fabric.RepairKind
	Why  string // the first difference
}

// NICStates maps the index of a NIC to its state; a NIC that is not in the map is
// [Settled]. The states matter while the guest is live.
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

// NICState is the announce state of a NIC.
type NICState uint8

// The states.
const (
	Settled  NICState = iota // announced as usual
	Arrived                  // announced as Fresh: the guest has just begun to run here
	Arriving                 // announced as Standby: the guest is about to run; no carrier yet, or no frame
	Down                     // not announced: the port has lost its carrier
)

// MissingHops says, for each family, why the node has no next hop; nil: it has one.
type MissingHops struct{ V4, V6 error }

// Of gives the error of a prefix's family.
func (m MissingHops) Of(p netip.Prefix) error {
	if p.Addr().Is4() {
		return m.V4
	}
	return m.V6
}

// Errors lists the errors that are not nil.
func (m MissingHops) Errors() (all []error) {
	for _, err := range []error{m.V4, m.V6} {
		if err != nil {
			all = append(all, err)
		}
	}
	return all
}

// Preference gives the preference of a NIC's routes in this state, unless it is
// [Down]. standby: another node preempted this one. draining changes only Normal:
// the routes of an expected guest still rank behind those of the node where it
// runs. The routes of a guest that has just begun to run here still rank before
// those of the node that it left, whose routes may stay until its agent comes back.
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

// nicState gives the state of a NIC. Without a hypervisor only the user knows
// whether the guest runs, so carrier does not matter before it is lost. A link of
// kind Adopt exists some time before its guest runs. A guest that leaves stays
// announced although its process ends: not all routers have the route of the other
// node yet.
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
	case nic.Kind == fabric.Adopt && !have.Carrier, have.Silent: // also an Adopt link that does not exist yet
		return Arriving
	case g.Fresh:
		return Arrived
	}
	return Settled
}

// Begin gives the states of a guest's NICs at a request, before a pass has looked
// at its ports. was is the guest before the request, had are the states of its NICs
// then. With listen, a NIC is Arriving until the dataplane hears the guest.
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
	Ports      []fabric.Port
	Live       bool
	Draining   bool           // the node is being drained
	Managed    bool           // a hypervisor runs the guest; its ports have carrier while it runs
	Retry      bool           // an earlier attempt failed, or a removal is not finished
	Leaving    bool           // the guest was stopped to run on another node, or its packets go there
	Fresh      bool           // the guest began to run here, and not all other nodes have released it
	Standby    bool           // another node preempted this one, and does not answer now
	Defends    bool           // a route of another guest competes, which got the address later
	Holder     fabric.Holder  // the holder that its Fresh routes carry
	Blackholed []netip.Prefix // packets to these are to be discarded
	NICs       NICStates      // as the pass before found them
	Hops       MissingHops
	Unknown    bool // the guest runs, and nobody has resolved its addresses: leave its ports as they are
}

// Route gives the announcement of a prefix of a NIC in a state. The route of a
// guest that defends its address is Fresh and First: reflectors send the other node
// only the best route, and until that node knows, packets follow the route with the
// higher LOCAL_PREF. Standby and Draining routes keep their preference, but for a
// prefix to which packets are to be discarded.
func (g Guest) Route(prefix netip.Prefix, state NICState) fabric.Route {
	r := fabric.Route{Prefix: prefix, Preference: state.Preference(g.Standby, g.Draining)}
	if g.Defends && (r.Preference == fabric.Normal || r.Preference == fabric.Fresh) {
		r.Preference, r.First = fabric.Fresh, true
	}
	// Also while the guest has just begun to run here: a node that does not answer would
	// keep it Fresh for as long.
	if r.Preference != fabric.Standby && slices.Contains(g.Blackholed, prefix) {
		r.Preference, r.First = fabric.Blackholed, false
	}
	if r.Preference == fabric.Fresh { // other nodes do not get routes that rank lower
		r.Holder = g.Holder
	}
	return r
}

// Decide compares the wanted guests with the actual ports and routes. Only with prune
// does it list ports and routes to remove.
func Decide(guests map[string]Guest, ports []fabric.PortState, routes []fabric.Route, prune bool) (pl Plan) {
	is := actual{make(map[string]fabric.PortState, len(ports)), make(map[netip.Prefix]fabric.Route, len(routes))}
	for _, p := range ports {
		is.ports[p.Name] = p
	}
	for _, r := range routes {
		is.routes[r.Prefix] = r
	}
	for _, vm := range slices.Sorted(maps.Keys(guests)) {
		if r := is.compare(vm, guests[vm]); r.Why != "" {
			pl.Repairs = append(pl.Repairs, r)
		}
	}
	if prune {
		pl.Ports, pl.Routes = unwanted(guests, ports, routes)
	}
	return pl
}

// actual is what there is, by the names of ports and by the prefixes of routes.
type actual struct {
	ports  map[string]fabric.PortState
	routes map[netip.Prefix]fabric.Route
}

// compare says how a guest differs from what there is. Without a difference, the repair
// has no reason.
func (a actual) compare(vm string, g Guest) Repair {
	r := Repair{VM: vm, NICs: NICStates{}}
	if g.Retry {
		r.note(fabric.RepairRetry, "an earlier attempt did not succeed")
	}
	for _, p := range g.Ports {
		have, there := a.ports[p.Name]
		r.notePort(p, have, there)
		state := Settled
		switch {
		case !g.Live:
		case there || p.NIC.Kind == fabric.Adopt:
			state = g.nicState(p.NIC, have, there)
		default:
			state = g.NICs[p.Index] // the port may have been made after Actual listed the ports
		}
		if state != Settled {
			r.NICs[p.Index] = state
		}
		for _, prefix := range p.NIC.Prefixes() {
			as, is := a.routes[prefix]
			r.noteRoute(g.Route(prefix, state), g.Live && state != Down && g.Hops.Of(prefix) == nil, as, is)
		}
	}
	if g.Live && !maps.Equal(r.NICs, g.NICs) {
		r.note(fabric.RepairCarrier, "carrier changed")
		if r.Kind == fabric.RepairAnnouncement { // because of that
			r.Kind = fabric.RepairCarrier
		}
	}
	if !g.Live {
		r.NICs = nil // the guest may be live, with other states, when the repair comes
	}
	return r
}

// note notes a difference, if it is the first.
func (r *Repair) note(kind fabric.RepairKind, why string) {
	if r.Why == "" {
		r.Kind, r.Why = kind, why
	}
}

// notePort notes how a port differs.
func (r *Repair) notePort(p fabric.Port, have fabric.PortState, there bool) {
	switch {
	case !there && p.NIC.Kind == fabric.Adopt:
		r.note(fabric.RepairPort, p.Name+": its owner has not made it yet") // or it exists, and has no mark of ours yet
	case !there:
		r.note(fabric.RepairPort, p.Name+": missing")
	case len(have.Faults) > 0:
		r.note(fabric.RepairSettings, p.Name+": "+strings.Join(have.Faults, ", "))
	}
}

// noteRoute notes how an announcement differs. should says whether the route is to be
// announced, is whether it is, and as how.
func (r *Repair) noteRoute(route fabric.Route, should bool, as fabric.Route, is bool) {
	switch {
	case should != is:
		r.note(fabric.RepairAnnouncement, route.Prefix.String()+map[bool]string{true: ": not announced", false: ": announced"}[should])
	case should && as.Preference != route.Preference:
		r.note(fabric.RepairAnnouncement, route.Prefix.String()+": announced as "+as.Preference.String()+", not as "+route.Preference.String())
	case should && as.Holder != (fabric.Holder{}) && as != route: // a speaker that announces holders
		r.note(fabric.RepairAnnouncement, route.Prefix.String()+": announced with what was said of its holder before")
	}
}

// unwanted lists the ports and the routes that no guest has, nor one of which only the
// ports are known.
func unwanted(guests map[string]Guest, ports []fabric.PortState, routes []fabric.Route) (extra []fabric.PortState, announced []netip.Prefix) {
	wantedPort, wantedRoute := map[string]bool{}, map[netip.Prefix]bool{}
	want := func(name string, nic fabric.NIC) {
		wantedPort[name] = true
		for _, prefix := range nic.Prefixes() {
			wantedRoute[prefix] = true
		}
	}
	for _, g := range guests {
		for _, p := range g.Ports {
			want(p.Name, p.NIC)
		}
	}
	for _, p := range ports {
		if guests[p.VM].Unknown {
			want(p.Name, p.NIC)
		}
		if !wantedPort[p.Name] {
			extra = append(extra, p)
		}
	}
	for _, r := range routes {
		if !wantedRoute[r.Prefix] {
			announced = append(announced, r.Prefix)
		}
	}
	return extra, announced
}
