package fabric

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// plan is what a pass has to do: a decision about plain values, made without
// looking at the world.
type plan struct {
	repairs []repair
	ports   []PortState    // of ours, wanted by nobody: to be removed
	routes  []netip.Prefix // announced, wanted by nobody: to be withdrawn
}

// repair is a guest that is not as it is wanted.
type repair struct {
	vm    string
	stand stands // nil of one that is not live: as it was
	why   string
}

// stands is how the NICs of a guest stand, by their number; those that are not
// in it are settled. It matters while the guest is live.
type stands map[int]standing

// down counts the NICs that are down.
func (s stands) down() (n int) {
	for _, stand := range s {
		if stand == down {
			n++
		}
	}
	return n
}

// standing is how a NIC is to be announced.
type standing uint8

const (
	settled  standing = iota // as usual
	arrived                  // its guest runs here only for a while
	arriving                 // its guest is about to run: nobody holds the other end yet, or nobody was heard there
	down                     // not at all: nobody holds the other end any more
)

func (s standing) preference() Preference {
	switch s {
	case arrived:
		return Fresh
	case arriving:
		return Standby
	}
	return Normal
}

// behind gives the standing of a NIC whose guest is not to come before that of
// another node.
func (s standing) behind(standby bool) standing {
	if standby && s != down {
		return arriving
	}
	return s
}

// freshFor is how long after its start on a node a guest's announcement goes
// before that of another node, which is the one that the guest has left, where
// nobody can say when that has let go. It ends with the next pass.
const freshFor = 30 * time.Second

// standingOf tells how a NIC stands at a time. Without a hypervisor nobody but
// the user knows whether a guest runs; a link that its owner makes is there
// some time before the guest is. One that leaves is announced until it is gone
// from here: its process ends before everybody has heard of the other node.
func (g wanted) standingOf(nic NIC, have PortState, there bool) standing {
	switch {
	case g.leaving:
		return settled
	case there && !have.Carrier && (have.Lost || g.managed && nic.Kind != Adopt):
		return down
	case !g.managed && g.fresh:
		return arrived
	case !g.managed:
		return settled
	case nic.Kind == Adopt && !have.Carrier, have.Silent: // or not ours yet, and about to be
		return arriving
	case g.fresh:
		return arrived
	}
	return settled
}

// begins gives the standing of the NICs of a guest that was asked to be live,
// before anybody has looked at its ports; had is that of the guest as it was.
// With listen, it is to be heard first.
func begins(vm VM, was Desired, had stands, listen bool) stands {
	st := stands{}
	for n, nic := range vm.NICs {
		if was.State == Live && n < len(was.VM.NICs) && was.VM.NICs[n].Kind == nic.Kind {
			if had[n] != settled {
				st[n] = had[n]
			}
			continue
		}
		switch {
		case vm.Origin == "":
		case nic.Kind == Adopt, listen:
			st[n] = arriving
		default:
			st[n] = arrived
		}
	}
	return st
}

// wanted is what the planner knows of a guest.
type wanted struct {
	ports   []Port
	live    bool
	drained bool   // its node is being drained
	managed bool   // a hypervisor runs it, and holds the other end of its ports while it does
	retry   bool   // an earlier attempt failed, or a removal is to be finished
	leaving bool   // it was stopped, to run on another node
	fresh   bool   // it began to run here, and others may not have let go of it yet
	standby bool   // another node had it, and does not answer
	defends bool   // a route of another guest competes, which got the address later
	holder  Holder // what its routes say of it
	stand   stands // as of the pass before
	hops    missingHops
	unknown bool // it runs, and nobody knows what it has: its ports stay as they are
}

// route gives the announcement of a prefix of a NIC that stands so. One that
// competes with that of a guest which got the address later comes before it:
// reflectors tell the other node of no other, and the one that has the higher
// LOCAL_PREF takes the packets until it knows. A node that is being drained
// goes on to come after all.
func (g wanted) route(prefix netip.Prefix, stand standing) Route {
	r := Route{Prefix: prefix, Preference: stand.behind(g.standby).on(g.drained), Holder: g.holder}
	if g.defends && (r.Preference == Normal || r.Preference == Fresh) {
		r.Preference, r.First = Fresh, true
	}
	return r
}

// decide compares what is wanted with what is there now. Only when prune is set
// may it say that something is to be removed.
func decide(guests map[string]wanted, ports []PortState, routes []Route, prune bool) plan {
	var pl plan
	actual := make(map[string]PortState, len(ports))
	for _, p := range ports {
		actual[p.Name] = p
	}
	announced := make(map[netip.Prefix]Route, len(routes))
	for _, r := range routes {
		announced[r.Prefix] = r
	}
	claimedPort, claimedRoute := map[string]bool{}, map[netip.Prefix]bool{}
	for _, vm := range sortedKeys(guests) {
		g := guests[vm]
		st, why := stands{}, ""
		note := func(reason string) {
			if why == "" {
				why = reason
			}
		}
		if g.retry {
			note("an earlier attempt did not succeed")
		}
		for _, p := range g.ports {
			claimedPort[p.Name] = true
			have, there := actual[p.Name]
			switch {
			case !there && p.NIC.Kind == Adopt:
				note(p.Name + ": its owner has not made it yet") // or has by now, and it has no mark of ours
			case !there:
				note(p.Name + ": missing")
			case len(have.Faults) > 0:
				note(p.Name + ": " + strings.Join(have.Faults, ", "))
			}
			stand := settled
			if g.live {
				if there || p.NIC.Kind == Adopt {
					stand = g.standingOf(p.NIC, have, there)
				} else {
					stand = g.stand[p.Index] // it may have been made since the ports were listed
				}
				if stand != settled {
					st[p.Index] = stand
				}
			}
			should := g.live && stand != down
			for _, prefix := range p.NIC.Prefixes() {
				claimedRoute[prefix] = true
				should, route := should && g.hops.of(prefix) == nil, g.route(prefix, stand)
				switch as, is := announced[prefix]; {
				case should != is:
					note(prefix.String() + map[bool]string{true: ": not announced", false: ": announced"}[should])
				case should && as.Preference != route.Preference:
					note(prefix.String() + ": announced as " + as.Preference.String() + ", not as " + route.Preference.String())
				case should && as.Holder != (Holder{}) && as != route: // where the speaker can say it
					note(prefix.String() + ": announced with what was said of its holder before")
				}
			}
		}
		if g.live && !maps.Equal(st, g.stand) {
			note("carrier changed")
		}
		if !g.live {
			st = nil // it may be live by the time of the repair
		}
		if why != "" {
			pl.repairs = append(pl.repairs, repair{vm, st, why})
		}
	}
	if !prune {
		return pl
	}
	for _, p := range ports {
		if guests[p.VM].unknown {
			claimedPort[p.Name] = true
			for _, prefix := range p.NIC.Prefixes() {
				claimedRoute[prefix] = true
			}
		}
		if !claimedPort[p.Name] {
			pl.ports = append(pl.ports, p)
		}
	}
	for _, r := range routes {
		if !claimedRoute[r.Prefix] {
			pl.routes = append(pl.routes, r.Prefix)
		}
	}
	return pl
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
