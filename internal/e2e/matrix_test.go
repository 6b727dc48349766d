package e2e

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
)

// TestEveryCombination has a node with each speaker behind each kind of
// reflector and core gateway, all from rendered files. A guest of each node
// reaches the core gateway's kernel and leaves it; of two nodes that announce
// the same the preferred one is there, changed in place; what a rogue node says
// beside what it may does not pass.
func TestEveryCombination(t *testing.T) {
	t.Parallel()
	for _, rr := range []string{"bird", "frr", "embedded"} {
		for _, core := range []string{"bird", "frr"} {
			t.Run(rr+" reflectors, "+core+" core", func(t *testing.T) {
				t.Parallel()
				s := start(t, options{
					nodes: 4, rr: rr, core: core,
					speakers: map[string]string{"node2": "bird", "node3": "frr"},
					change: func(c *fabric.Cluster) {
						c.Pools[0].Exclude, c.Pools[1].Exclude = parsed("203.0.113.255/32"), parsed("2001:db8:100:ffff::/64")
						c.Nodes[3].Name = "rogue"
					},
					unmanned: []string{"rogue"},
				})
				for n, node := range []string{"node1", "node2", "node3"} {
					s.comesAndGoes(node, byte(10+n))
				}
				for n, way := range [][2]string{{"node1", "node2"}, {"node2", "node3"}, {"node3", "node1"}} {
					s.preferred(way[0], way[1], byte(50+n))
				}
				s.rogue()
			})
		}
	}
}

// comesAndGoes runs a guest with routed prefixes on a node, follows its routes
// to the core gateway, and ends it.
func (s *system) comesAndGoes(node string, n byte) {
	s.t.Helper()
	h := s.top.Nodes[node]
	vm := veth("on_"+node, fmt.Sprintf("203.0.113.%d", n), fmt.Sprintf("2001:db8:100::%d", n),
		fmt.Sprintf("198.51.100.%d/29", 8*n), fmt.Sprintf("2001:db8:2%02d::/64", n))
	s.agents[node].ask(hooks.Wire, vm)
	g, err := s.lab.AddGuest(h, vm, s.cluster.Gateway)
	require.NoError(s.t, err)
	for _, p := range vm.Prefixes() {
		r, there, err := s.top.Core.Route(p)
		require.NoError(s.t, err)
		require.False(s.t, there, "%s is wired, not live: %v", node, r)
	}
	s.agents[node].ask(hooks.Live, vm)
	s.coreHas(h, vm.Prefixes()...)
	s.checkCommunities(vm.Prefixes())
	s.reaches(s.top.Client, vm.NICs[0].Addresses[0].String(), vm.NICs[0].Addresses[1].String())
	for i, a := range vm.NICs[0].Addresses {
		_, err := g.PingFrom(soon(s.t), a, []netip.Addr{core.ClientAddr4, core.ClientAddr6}[i])
		require.NoError(s.t, err)
	}
	assert.Empty(s.t, s.agents[node].status().Problems, node)

	s.agents[node].ask(hooks.Withdraw, vm)
	s.nobodyHas(vm.Prefixes()...)
	require.True(s.t, h.HasLink(fabric.PortName(vm.Name, 0)), "the port stays until it is removed")
	s.agents[node].ask(hooks.Live, vm)
	s.coreHas(h, vm.Prefixes()...)
	s.agents[node].ask(hooks.Remove, vm)
	s.leavesNothing(h, vm.Prefixes()...)
}

// preferred has a guest on a node and on another one: there while the first is
// being drained. The core gateway's kernel changes its routes in place, and has
// them all the time. Then it is on the first alone, where it has just begun to run.
func (s *system) preferred(first, second string, n byte) {
	s.t.Helper()
	vm := veth("a"+first, fmt.Sprintf("203.0.113.%d", n), fmt.Sprintf("2001:db8:100::%d", n))
	vm.UUID = fmt.Sprintf("6b9c1c3e-7b0a-4b61-9c59-0000000000%02d", n)
	twin := vm // the same guest, by another name
	twin.Name = "b" + second
	one, two := s.top.Nodes[first], s.top.Nodes[second]
	ps := vm.Prefixes()
	g := s.run(first, vm)
	s.coreHas(one, ps...)
	changes := s.watchChanges(ps)

	_, errs, code := s.agents[first].cli("drain")
	require.Zero(s.t, code, errs)
	s.coreHears(one, fabric.Draining, ps)
	s.coreHas(one, ps...)
	before := len(changes())
	s.run(second, twin)
	s.replaced(changes, before, two, ps)
	for _, c := range changes() {
		assert.NotEqual(s.t, uint16(unix.RTM_DELROUTE), c.Type, "%v", c)
	}
	s.agents[first].ask(hooks.Remove, vm)
	_, errs, code = s.agents[first].cli("undrain")
	require.Zero(s.t, code, errs)

	s.agents[second].ask(hooks.Remove, twin)
	s.nobodyHas(ps...)

	vm.Origin = "libvirt" // only of such a guest it is known when it began to run
	s.agents[first].ask(hooks.Wire, vm)
	require.NoError(s.t, g.Plug(one))
	s.agents[first].ask(hooks.Live, vm)
	s.coreHears(one, fabric.Fresh, ps)
	s.coreHas(one, ps...)
	s.agents[first].ask(hooks.Remove, vm)
	s.nobodyHas(ps...)
}

// watchChanges follows what the core gateway's kernel does to the routes of
// some prefixes.
func (s *system) watchChanges(ps []netip.Prefix) func() []netlink.RouteUpdate {
	s.t.Helper()
	updates, done := make(chan netlink.RouteUpdate, 1024), make(chan struct{})
	require.NoError(s.t, netlink.RouteSubscribeAt(s.top.Core.NsHandle(), updates, done))
	s.t.Cleanup(func() { close(done) })
	var mu sync.Mutex
	var all []netlink.RouteUpdate
	go func() {
		for u := range updates {
			if u.Table == unix.RT_TABLE_MAIN && u.Dst != nil && slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.String() == u.Dst.String() }) {
				mu.Lock()
				all = append(all, u)
				mu.Unlock()
			}
		}
	}()
	return func() []netlink.RouteUpdate {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all)
	}
}

// coreHears waits until the core gateway has routes from a node with a
// preference, and what that has with it.
func (s *system) coreHears(from *core.Host, pref fabric.Preference, ps []netip.Prefix) {
	s.t.Helper()
	for _, p := range ps {
		via := from.Addr4()
		if p.Addr().Is6() {
			via = from.Addr6()
		}
		s.eventually(fmt.Sprint(p, " is ", pref, " at the core gateway"), func() error {
			routes, err := s.core.Routes(soon(s.t))
			if err == nil && !slices.ContainsFunc(routes, func(r routers.BGPRoute) bool {
				return r.Prefix == p && r.NextHop == via && r.LocalPref == pref.LocalPref() && s.marked(r, pref)
			}) {
				err = fmt.Errorf("it has %+v", routes)
			}
			return err
		})
	}
}

// replaced waits until the core gateway's routes go to a node, and checks that
// each was changed in place. The first changes were before that.
func (s *system) replaced(changes func() []netlink.RouteUpdate, before int, to *core.Host, ps []netip.Prefix) {
	s.t.Helper()
	s.coreHas(to, ps...)
	for _, p := range ps {
		via := to.Addr4()
		if p.Addr().Is6() {
			via = to.Addr6()
		}
		s.eventually(p.String()+" is told of", func() error {
			all := changes()[before:]
			i := slices.IndexFunc(all, func(u netlink.RouteUpdate) bool {
				return u.Type == unix.RTM_NEWROUTE && u.Dst.String() == p.String() && u.Gw.Equal(via.AsSlice())
			})
			if i < 0 {
				return fmt.Errorf("not among %v", all)
			}
			assert.NotZero(s.t, all[i].NlFlags&unix.NLM_F_REPLACE, "%s: %v", to.Name(), all[i])
			return nil
		})
	}
}

// rogue has a node of the cluster announce what it may, and a great deal more.
func (s *system) rogue() {
	s.t.Helper()
	h := s.top.Nodes["rogue"]
	rightful := parsed("203.0.113.30/32", "2001:db8:100::30/128", "198.51.100.0/29", "2001:db8:200::/64")
	wrong := parsed(
		"0.0.0.0/0", "192.0.2.77/32", "203.0.113.0/24", "203.0.113.128/25", "203.0.113.255/32", "203.0.112.0/20", "198.51.0.0/16", "10.10.0.99/32",
		"::/0", "2001:db8:9::9/128", "2001:db8:100::/48", "2001:db8:100::/64", "2001:db8:100:ffff::1/128", "2001:db8::/32", "fd00:10:10::99/128")
	bird := s.announcer(h, "", s.cluster.Communities, slices.Concat(rightful, wrong)...)
	s.coreHas(h, rightful...) // what came with them had its time by now
	s.coreLearned(rightful...)

	// Each of the communities alone is not enough.
	for _, c := range s.cluster.Communities {
		require.NoError(s.t, bird.Configure(soon(s.t), s.announcement(h, "", []fabric.Community{c}, rightful...)))
		s.nobodyHas(rightful...)
	}
	require.NoError(s.t, bird.Configure(soon(s.t), s.announcement(h, "", nil, rightful...)))
	s.nobodyHas(rightful...)
	honest := func() {
		s.t.Helper()
		require.NoError(s.t, bird.Configure(soon(s.t), s.announcement(h, "", s.cluster.Communities, rightful...)))
		s.coreHas(h, rightful...)
		s.coreLearned(rightful...)
	}

	// Nor are others' next hops and preferences.
	var lies []routers.Announcer
	for _, pref := range []uint32{1, 99, 201, math.MaxUint32} {
		lies = append(lies, routers.Announcer{LocalPref: pref})
	}
	for _, other := range []*core.Host{s.top.Nodes["node1"], s.top.Reflectors["rr1"], s.top.Core} {
		lies = append(lies, routers.Announcer{NextHops: []netip.Addr{other.Addr4(), other.Addr6()}})
	}
	lies = append(lies, routers.Announcer{NextHops: []netip.Addr{core.Underlay4(99), core.Underlay6(99)}})
	for _, lie := range lies {
		honest()
		lie.Communities, lie.Routes = s.cluster.Communities, rightful
		require.NoError(s.t, bird.Configure(soon(s.t), s.announcementBy(h, "", lie)))
		s.nobodyHas(rightful...)
	}
	honest()
}

// coreLearned checks that the core gateway has BGP routes to these prefixes and
// no others.
func (s *system) coreLearned(want ...netip.Prefix) {
	s.t.Helper()
	routes, err := s.core.Routes(soon(s.t))
	require.NoError(s.t, err)
	have := map[netip.Prefix]bool{}
	for _, r := range routes {
		have[r.Prefix] = true
	}
	for _, p := range want {
		assert.True(s.t, have[p], "%s is missing", p)
		delete(have, p)
	}
	assert.Empty(s.t, have, "passed the reflectors")
}

// TestPrefixLimit has a node announce more than it may. What it says beyond is
// not taken, or its session ends; nobody else notices.
func TestPrefixLimit(t *testing.T) {
	t.Parallel()
	for _, rr := range []string{"bird", "frr", "embedded"} {
		t.Run(rr, func(t *testing.T) {
			t.Parallel()
			s := start(t, options{
				nodes: 2, rr: rr, unmanned: []string{"node2"},
				change: func(c *fabric.Cluster) { c.MaxPrefixes = 10 },
			})
			vm := veth("web", "203.0.113.10", "2001:db8:100::10")
			s.run("node1", vm)
			s.coreHas(s.top.Nodes["node1"], vm.Prefixes()...)
			withdrawn := s.watchWithdrawals()
			var many []netip.Prefix
			for n := range 40 {
				many = append(many, netip.MustParsePrefix(fmt.Sprintf("203.0.113.%d/32", 100+n)), netip.MustParsePrefix(fmt.Sprintf("2001:db8:100::%x/128", 0x100+n)))
			}
			h := s.top.Nodes["node2"]
			few := many[:16] // 8 of each family
			bird := s.announcer(h, "", s.cluster.Communities, few...)
			s.coreHas(h, few...)
			require.NoError(t, bird.Configure(soon(t), s.announcement(h, "", s.cluster.Communities, many...)))
			for name := range s.rr {
				s.eventually(name+" has noticed", func() error { return s.overLimit(name, bird) })
			}
			within := func() error {
				for range 20 {
					if n := s.coreCounts(many); max(n[false], n[true]) > 10 {
						return fmt.Errorf("core has %v", n)
					}
					time.Sleep(50 * time.Millisecond)
				}
				return nil
			}
			if rr == "embedded" { // for a moment, GoBGP passes on what has arrived when it closes a session
				s.eventually("what was too much is gone, and stays away", within)
			} else {
				require.NoError(t, within())
			}
			if rr == "bird" { // the others take the node back after a minute
				require.NoError(t, bird.Configure(soon(t), s.announcement(h, "", s.cluster.Communities, few...)))
				s.coreHas(h, few...)
			}
			s.coreHas(s.top.Nodes["node1"], vm.Prefixes()...)
			for _, p := range vm.Prefixes() {
				assert.NotContains(t, withdrawn(), p.String(), "another node's guest")
			}
		})
	}
}

// overLimit is nil once a reflector holds back the routes, or the session, of
// the announcer on node2.
func (s *system) overLimit(name string, announcer *routers.Bird) error {
	if b, ok := s.rr[name].(*routers.Bird); ok {
		lines, err := b.Query(soon(s.t), "show protocols all 'node_node2'")
		if err == nil && strings.Count(strings.Join(lines, "\n"), "[HIT]") < 4 { // a warning and a limit for each family
			err = fmt.Errorf("no limit is hit: %v", lines)
		}
		return err
	}
	n, err := announcer.Established(soon(s.t))
	if err == nil && n > 0 {
		err = fmt.Errorf("%d sessions are up", n)
	}
	return err
}

// coreCounts counts those of the prefixes that the core gateway has, by family.
func (s *system) coreCounts(ps []netip.Prefix) map[bool]int {
	s.t.Helper()
	routes, err := s.core.Routes(soon(s.t))
	require.NoError(s.t, err)
	have := map[netip.Prefix]bool{}
	counts := map[bool]int{}
	for _, r := range routes {
		if slices.Contains(ps, r.Prefix) && !have[r.Prefix] {
			have[r.Prefix] = true
			counts[r.Prefix.Addr().Is6()]++
		}
	}
	return counts
}

// TestSpeakerChanges has a node's agent speak itself where BIRD did before: what
// BIRD was told by the kernel is told to nobody any more.
func TestSpeakerChanges(t *testing.T) {
	t.Parallel()
	s := start(t, options{speakers: map[string]string{"node1": "bird"}})
	a, node := s.agents["node1"], s.top.Nodes["node1"]
	vm := veth("web", "203.0.113.10", "2001:db8:100::10")
	s.run("node1", vm)
	s.coreHas(node, vm.Prefixes()...)
	announcements := func() (n int) {
		for _, list := range []func() ([]core.Route, error){node.Routes4, node.Routes6} {
			routes, err := list()
			require.NoError(t, err)
			for _, r := range routes {
				if r.Protocol == fabric.Protocol && r.Metric < fabric.PortMetric {
					n++
				}
			}
		}
		return n
	}
	require.Equal(t, 2, announcements())
	require.NoError(t, a.Stop())
	require.NoError(t, s.daemons["node1"].Stop())
	a.args = slices.DeleteFunc(a.args, func(arg string) bool { return arg == "--speaker" || arg == "bird" })
	a.start()
	a.established()
	assert.Zero(t, announcements())
	s.coreHas(node, vm.Prefixes()...)
	s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10")
	a.ask(hooks.Remove, vm)
	s.leavesNothing(node, vm.Prefixes()...)
}
