package endure

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
)

var web = []netip.Prefix{netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128")}

// small is a world in which web runs on node1, and db does not run.
func small() World {
	return World{
		Nodes: []string{"node1", "node2", "node3"}, Reflectors: []string{"rr1", "rr2"}, Core: "core1", Members: 1, Witness: "node3", Deaths: 5,
		Daemons: map[string]string{"node2": "bird"}, Sources: map[string][]Kind{"node1": {Domain}, "node2": {Domain, Instance}, "node3": {Instance}},
		Tables: []string{"1 vmfabric"},
		Guests: []Guest{
			{Name: "web", Kind: Domain, Prefixes: web, Hosts: []string{"node1", "node2"}, On: "node1"},
			{Name: "db", Kind: Instance, Prefixes: []netip.Prefix{netip.MustParsePrefix("203.0.113.11/32")}, Hosts: []string{"node2", "node3"}},
			{Name: "own", Kind: Attached, Prefixes: []netip.Prefix{netip.MustParsePrefix("203.0.113.12/32")}, Hosts: []string{"node1", "node2", "node3"}},
		},
	}
}

// right is what is seen of it when all is right.
func right() Seen {
	s := Seen{Nodes: map[string]Node{}, Routers: map[string][]Path{}, Way: map[netip.Prefix]string{}}
	for _, name := range []string{"node1", "node2", "node3"} {
		s.Nodes[name] = Node{Ports: map[string]string{}, Tables: []string{"1 vmfabric"}}
	}
	n := s.Nodes["node1"]
	n.Ports["web_net0"], n.Kept, n.Live = "web", []string{"web"}, 1
	for _, p := range web {
		n.Routes = append(n.Routes, Route{Prefix: p, Link: "web_net0"}, Route{Prefix: p, Link: "web_net0", Announces: true})
		s.Way[p] = "node1"
		for _, rr := range []string{"rr1", "rr2"} {
			s.Routers[rr] = append(s.Routers[rr], Path{p, "node1", "node1", normal})
			s.Routers["core1"] = append(s.Routers["core1"], Path{p, rr, "node1", normal})
		}
	}
	s.Nodes["node1"] = n
	return s
}

// TestWrong breaks one thing at a time.
func TestWrong(t *testing.T) {
	assert.Empty(t, small().Wrong(right()))
	for want, breaks := range map[string]func(*Seen, *Node){
		"node1 has ports of [db web], and [web] run there":              func(_ *Seen, n *Node) { n.Ports["db_net0"] = "db" },
		"node1 keeps the state of [], and [web] run there":              func(_ *Seen, n *Node) { n.Kept = nil },
		"node1 keeps the state of [db web], and [web] run there":        func(_ *Seen, n *Node) { n.Kept = append(n.Kept, "db") },
		"node1 has 0 routes to 2001:db8:100::10/128 of web by its port": func(_ *Seen, n *Node) { n.Routes = n.Routes[:2] },
		"node1 has 2 routes to 203.0.113.10/32 of web by its port":      func(_ *Seen, n *Node) { n.Routes = append(n.Routes, n.Routes[0]) },
		"node1 has a route to 203.0.113.11/32 of db by db_net0, which is on no node": func(_ *Seen, n *Node) {
			n.Routes = append(n.Routes, Route{small().Guest("db").Prefixes[0], "db_net0", true})
		},
		"node1 has 0 routes to 203.0.113.10/32 of web by its port":     func(_ *Seen, n *Node) { n.Routes[0].Link = "eth0" },
		"node1 still has a diversion":                                  func(_ *Seen, n *Node) { n.Strays = []string{"a diversion"} },
		"node1 lacks the table 1 vmfabric of its packet filter":        func(_ *Seen, n *Node) { n.Tables = nil },
		"node1 complains: of its disk":                                 func(_ *Seen, n *Node) { n.Problems = []string{"of its disk"} },
		"node1 has no session: rr1 is active":                          func(_ *Seen, n *Node) { n.Sessions = []string{"rr1 is active"} },
		"node1 says that 0 ports are live, and [web] run there":        func(_ *Seen, n *Node) { n.Live = 0 },
		"rr2 has no path to 203.0.113.10/32 of web, which is on node1": func(s *Seen, _ *Node) { s.Routers["rr2"] = s.Routers["rr2"][1:] },
		"core1 has 203.0.113.10/32 of web by node2, and it is on node1": func(s *Seen, _ *Node) {
			s.Routers["core1"] = append(s.Routers["core1"], Path{web[0], "rr1", "node2", normal})
		},
		"rr1 has 2001:db8:100::10/128 of web with LOCAL_PREF 200": func(s *Seen, _ *Node) { s.Routers["rr1"][1].LocalPref = 200 },
		"rr1 has 203.0.113.11/32 of db by node3, and it is on no node": func(s *Seen, _ *Node) {
			s.Routers["rr1"] = append(s.Routers["rr1"], Path{small().Guest("db").Prefixes[0], "node3", "node3", normal})
		},
		"the core gateway sends packets for 203.0.113.10/32 of web to no node, and it is on node1": func(s *Seen, _ *Node) { delete(s.Way, web[0]) },
		"the core gateway sends packets for 203.0.113.11/32 of db to node2, and it is on no node":  func(s *Seen, _ *Node) { s.Way[small().Guest("db").Prefixes[0]] = "node2" },
		"core1 has no path to 203.0.113.10/32 of web from rr2": func(s *Seen, _ *Node) {
			s.Routers["core1"] = slices.DeleteFunc(s.Routers["core1"], func(p Path) bool { return p.From == "rr2" && p.Prefix == web[0] })
		},
		"2001:db8:100::10 of web does not answer": func(s *Seen, _ *Node) { s.Silent = []netip.Addr{web[1].Addr()} },
	} {
		s := right()
		n := s.Nodes["node1"]
		breaks(&s, &n)
		s.Nodes["node1"] = n
		assert.Equal(t, []string{want}, small().Wrong(s))
	}
}

// TestMovedWorld: what was moved is expected elsewhere, and the world before is as it was.
func TestMovedWorld(t *testing.T) {
	w := small()
	moved := w.Moved("web", "node2")
	assert.Empty(t, w.Wrong(right()))
	wrong := moved.Wrong(right())
	assert.Contains(t, wrong, "node2 has ports of [], and [web] run there")
	assert.Contains(t, wrong, "node1 has ports of [web], and [] run there")
	assert.Contains(t, wrong, "rr1 has 203.0.113.10/32 of web by node1, and it is on node2")
	assert.NotContains(t, slices.Collect(maps.Keys(right().Nodes)), "")
}
