package endure

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Seen is what was seen of a cluster at one moment.
type Seen struct {
	Nodes   map[string]Node
	Routers map[string][]Path       // BGP paths to guests, by reflector or core gateway
	Way     map[netip.Prefix]string // the node to which the core gateway's kernel sends packets
	Silent  []netip.Addr            // addresses that did not answer the client
}

// Node is what was seen of a node.
type Node struct {
	Ports    map[string]string // the guest of each link with the fabric's mark
	Routes   []Route           // of the fabric's, in the main table
	Strays   []string          // of its routes, those that are there for a move alone
	Tables   []string          // of the packet filter
	Kept     []string          // guests whose state is on the disk
	Live     int               // announced ports, as the agent says
	Problems []string          // as the agent says
	Sessions []string          // those that are not up
}

// Route is a route to a port.
type Route struct {
	Prefix    netip.Prefix
	Link      string
	Announces bool // it tells the routing daemon of the node what to announce
}

// Path is a BGP path to a guest.
type Path struct {
	Prefix    netip.Prefix
	From      string // the router that sent it
	By        string // the node that is its next hop
	LocalPref uint32
}

// normal is the LOCAL_PREF of a guest at rest.
const normal = 100

// Wrong lists what of a cluster is not as it should be at rest.
func (w World) Wrong(s Seen) (wrong []string) {
	for _, name := range w.Nodes {
		wrong = append(wrong, w.wrongNode(name, s.Nodes[name])...)
	}
	for name, paths := range s.Routers {
		var from []string // whom each path must come from; none: it may come from anybody
		if name == w.Core {
			from = w.Reflectors
		}
		for _, what := range w.wrongPaths(paths, from) {
			wrong = append(wrong, name+" "+what)
		}
	}
	for _, g := range w.Guests {
		for _, p := range g.Prefixes {
			if is := s.Way[p]; is != g.On {
				wrong = append(wrong, fmt.Sprintf("the core gateway sends packets for %s of %s to %s, and it is on %s", p, g.Name, or(is), or(g.On)))
			}
		}
	}
	for _, a := range s.Silent {
		wrong = append(wrong, fmt.Sprintf("%s of %s does not answer", a, w.owner(a).Name))
	}
	slices.Sort(wrong)
	return wrong
}

func or(node string) string {
	if node == "" {
		return "no node"
	}
	return node
}

// owner returns the guest that has an address.
func (w World) owner(a netip.Addr) Guest {
	for _, g := range w.Guests {
		if slices.ContainsFunc(g.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return g
		}
	}
	return Guest{Name: "nobody"}
}

// wrongNode lists what is wrong on a node: it has the ports, the routes and the state of
// its guests, each once, and nothing else.
func (w World) wrongNode(name string, n Node) (wrong []string) {
	add := func(format string, args ...any) { wrong = append(wrong, name+" "+fmt.Sprintf(format, args...)) }
	var should, have []string
	for _, g := range w.Guests {
		if g.On == name {
			should = append(should, g.Name)
			wrong = append(wrong, w.wrongRoutes(name, g, n)...)
		}
	}
	for _, vm := range n.Ports {
		have = append(have, vm)
	}
	for what, names := range map[string][]string{"has ports of": have, "keeps the state of": n.Kept} {
		if names = slices.Sorted(slices.Values(names)); !slices.Equal(names, slices.Sorted(slices.Values(should))) {
			add("%s [%s], and [%s] run there", what, strings.Join(names, " "), strings.Join(should, " "))
		}
	}
	for _, r := range n.Routes {
		if g := w.owner(r.Prefix.Addr()); g.On != name {
			add("has a route to %s of %s by %s, which is on %s", r.Prefix, g.Name, r.Link, or(g.On))
		}
	}
	for _, table := range w.Tables {
		if !slices.Contains(n.Tables, table) {
			add("lacks the table %s of its packet filter", table)
		}
	}
	for _, s := range n.Strays {
		add("still has %s", s)
	}
	for _, s := range n.Sessions {
		add("has no session: %s", s)
	}
	for _, p := range n.Problems {
		add("complains: %s", p)
	}
	if n.Live != len(should) {
		add("says that %d ports are live, and [%s] run there", n.Live, strings.Join(should, " "))
	}
	return wrong
}

// wrongRoutes lists what a guest lacks on its node: one route for each prefix by its own
// port.
func (w World) wrongRoutes(name string, g Guest, n Node) (wrong []string) {
	for _, p := range g.Prefixes {
		found := 0
		for _, r := range n.Routes {
			if r.Prefix == p && !r.Announces && n.Ports[r.Link] == g.Name {
				found++
			}
		}
		if found != 1 {
			wrong = append(wrong, fmt.Sprintf("%s has %d routes to %s of %s by its port", name, found, p, g.Name))
		}
	}
	return wrong
}

// wrongPaths lists what is wrong with a router's paths: each guest that runs is announced
// by its node, by no other, and with the usual preference; one that does not by nobody.
// Each of the routers in from tells it so.
func (w World) wrongPaths(paths []Path, from []string) (wrong []string) {
	there := map[string]bool{}
	for _, p := range paths {
		g := w.owner(p.Prefix.Addr())
		switch {
		case g.On != p.By:
			wrong = append(wrong, fmt.Sprintf("has %s of %s by %s, and it is on %s", p.Prefix, g.Name, or(p.By), or(g.On)))
		case p.LocalPref != normal:
			wrong = append(wrong, fmt.Sprintf("has %s of %s with LOCAL_PREF %d", p.Prefix, g.Name, p.LocalPref))
		}
		there[p.Prefix.String()], there[p.Prefix.String()+p.From] = true, true
	}
	for _, g := range w.Running() {
		for _, p := range g.Prefixes {
			if !there[p.String()] {
				wrong = append(wrong, fmt.Sprintf("has no path to %s of %s, which is on %s", p, g.Name, g.On))
				continue
			}
			for _, router := range from {
				if !there[p.String()+router] {
					wrong = append(wrong, fmt.Sprintf("has no path to %s of %s from %s", p, g.Name, router))
				}
			}
		}
	}
	return slices.Compact(wrong)
}
