package fabric

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
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
	vm   string
	down map[int]bool // its NICs that nobody holds the other end of: not to be announced
	why  string
}

// wanted is what the planner knows of a guest.
type wanted struct {
	ports   []Port
	live    bool
	managed bool         // a hypervisor runs it, and holds the other end of its ports while it does
	retry   bool         // an earlier attempt failed, or a removal is to be finished
	down    map[int]bool // as of the pass before
}

// decide compares what is wanted with what is there. Only when prune is set
// may it say that something is to be removed.
func decide(guests map[string]wanted, ports []PortState, routes []Route, prune bool) plan {
	var pl plan
	actual := make(map[string]PortState, len(ports))
	for _, p := range ports {
		actual[p.Name] = p
	}
	announced := make(map[netip.Prefix]bool, len(routes))
	for _, r := range routes {
		announced[r.Prefix] = true
	}
	claimedPort, claimedRoute := map[string]bool{}, map[netip.Prefix]bool{}
	for _, vm := range sortedKeys(guests) {
		g := guests[vm]
		down, why := map[int]bool{}, ""
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
			if there && g.live && !have.Carrier && (have.Lost || g.managed) {
				down[p.Index] = true
			}
			for _, prefix := range p.NIC.Prefixes() {
				claimedRoute[prefix] = true
				if should := g.live && !down[p.Index]; should != announced[prefix] {
					note(prefix.String() + map[bool]string{true: ": not announced", false: ": announced"}[should])
				}
			}
		}
		if g.live && !maps.Equal(down, g.down) {
			note("carrier changed")
		}
		if why != "" {
			pl.repairs = append(pl.repairs, repair{vm, down, why})
		}
	}
	if !prune {
		return pl
	}
	for _, p := range ports {
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
