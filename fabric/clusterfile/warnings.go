package clusterfile

import (
	"fmt"
	"strings"

	"github.com/vmfabric/vmfabric/fabric"
)

// Warnings lists what is allowed in a valid cluster and yet seldom meant, one
// line each with the reason and the way out; nil when there is nothing. It has
// no side effects.
func Warnings(c fabric.Cluster) []string {
	var ws []string
	warn := func(format string, args ...any) { ws = append(ws, fmt.Sprintf(format, args...)) }

	if p, ok := poolOf(c, true); ok {
		if lack := lacking(c, func(n fabric.Node) bool { return !n.Address.IsValid() }); len(lack) > 0 {
			who, has, its, whom := several(lack)
			warn("pool %s is IPv4 but %s %s only an IPv6 address: %s IPv4 routes are announced with an IPv6 next hop (RFC 8950), which many routers do not take; give %s an IPv4 address", p.Name, who, has, its, whom)
		}
	}
	if p, ok := poolOf(c, false); ok {
		if lack := lacking(c, func(n fabric.Node) bool { return !n.Address6.IsValid() }); len(lack) > 0 {
			who, has, its, whom := several(lack)
			warn("pool %s is IPv6 but %s %s no address6: %s IPv6 routes are announced with an IPv4-mapped next hop, which most routers cannot use; give %s an address6", p.Name, who, has, its, whom)
		}
	}
	if len(c.Reflectors) == 1 {
		warn("%s is the only reflector: while it is down no guest that starts or moves is reached; add a second under reflectors", c.Reflectors[0].Name)
	}
	if len(c.Core) == 0 {
		warn("no core gateway is named: a reflector's configuration made from this file leads to none, and the guests' routes end there; name the routers under core")
	}
	return ws
}

// poolOf gives the first pool of a family.
func poolOf(c fabric.Cluster, four bool) (fabric.Pool, bool) {
	for _, p := range c.Pools {
		if p.Prefix.Addr().Is4() == four {
			return p, true
		}
	}
	return fabric.Pool{}, false
}

func lacking(c fabric.Cluster, lacks func(fabric.Node) bool) []string {
	var names []string
	for _, n := range c.Nodes {
		if lacks(n) {
			names = append(names, n.Name)
		}
	}
	return names
}

// several names at most three nodes, and gives the words that go with them.
func several(names []string) (who, has, its, whom string) {
	if len(names) == 1 {
		return names[0], "has", "its", names[0]
	}
	last := names[len(names)-1]
	if more := len(names) - 2; more > 1 {
		names, last = names[:3], fmt.Sprintf("%d more", more)
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + last, "have", "their", "each"
}
