package e2e

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"golang.org/x/sys/unix"
)

// learnedOn lists the routes to other nodes' guests in a node's kernel, and
// whither they lead.
func (s *system) learnedOn(node string) map[netip.Prefix]netip.Addr {
	s.t.Helper()
	routes := map[netip.Prefix]netip.Addr{}
	for _, list := range []func() ([]core.Route, error){s.top.Nodes[node].Routes4, s.top.Nodes[node].Routes6} {
		all, err := list()
		require.NoError(s.t, err)
		for _, r := range all {
			if r.Protocol == fabric.PeerProtocol {
				require.Len(s.t, r.Vias(), 1)
				assert.Equal(s.t, fabric.PeerMetric, r.Metric)
				routes[r.Prefix] = r.Vias()[0]
			}
		}
	}
	return routes
}

// learns waits until these guests, by their nodes, and no others, are what a
// node has learned.
func (s *system) learns(node string, guests map[string][]fabric.VM) {
	s.t.Helper()
	want := map[netip.Prefix]netip.Addr{}
	for at, vms := range guests {
		for _, vm := range vms {
			for _, p := range vm.Prefixes() {
				want[p] = s.top.Nodes[at].Addr4()
				if p.Addr().Is6() {
					want[p] = s.top.Nodes[at].Addr6()
				}
			}
		}
	}
	s.eventually(node+" learns", func() error {
		if have := s.learnedOn(node); !maps.Equal(have, want) {
			return fmt.Errorf("%s has %v, not %v", node, have, want)
		}
		return nil
	})
}

// TestEastWest has guests on three nodes talk with the core gateway cut off,
// and one of them move.
func TestEastWest(t *testing.T) {
	t.Parallel()
	s := start(t, options{nodes: 3, change: eastWest})
	one, two, three := veth("one", "203.0.113.10", "2001:db8:100::10"), veth("two", "203.0.113.11", "2001:db8:100::11"), veth("three", "203.0.113.12", "2001:db8:100::12")
	guests := map[string]*core.Guest{"one": s.run("node1", one), "two": s.run("node2", two), "three": s.run("node3", three)}
	s.learns("node1", map[string][]fabric.VM{"node2": {two}, "node3": {three}})
	s.learns("node2", map[string][]fabric.VM{"node1": {one}, "node3": {three}})
	s.learns("node3", map[string][]fabric.VM{"node1": {one}, "node2": {two}})
	require.NoError(t, s.lab.Disconnect(s.top.Core))
	talk := func() {
		t.Helper()
		for _, g := range guests {
			for _, vm := range []fabric.VM{one, two, three} {
				if g.Name() != vm.Name {
					for _, a := range vm.NICs[0].Addresses {
						s.reaches(g.Host, a.String())
					}
				}
			}
		}
	}
	talk()
	s.dropsForged(guests["one"], guests["three"], one, two)

	node1, node2 := s.agents["node1"], s.agents["node2"]
	for _, a := range []string{"203.0.113.11", "2001:db8:100::11"} {
		s.eventually("why says that all is well", func() error { // a busy machine may take a session away for a moment
			out, errs, code := node1.cli("why", a)
			if code != 0 || !strings.Contains(out, "on another node: "+a) {
				return fmt.Errorf("%d: %s%s", code, out, errs)
			}
			return nil
		})
	}
	out, _, code := node1.cli("why", "203.0.113.99")
	assert.Equal(t, 1, code, out)
	out, _, code = node1.cli("status")
	assert.Zero(t, code, out)

	// The guest stops on one node and starts on another.
	node2.ask(hooks.Remove, two)
	s.learns("node1", map[string][]fabric.VM{"node3": {three}})
	s.learns("node3", map[string][]fabric.VM{"node1": {one}})
	node1.ask(hooks.Wire, two)
	require.NoError(t, guests["two"].Plug(s.top.Nodes["node1"]))
	node1.ask(hooks.Live, two)
	s.learns("node1", map[string][]fabric.VM{"node3": {three}})
	s.learns("node2", map[string][]fabric.VM{"node1": {one, two}, "node3": {three}})
	s.learns("node3", map[string][]fabric.VM{"node1": {one, two}})
	talk()

	// It is here and, as another says, there too: what is here is used.
	node2.ask(hooks.Live, two)
	s.eventually("both announce it", func() error {
		for _, p := range two.Prefixes() {
			if via := s.reflectedVias("rr1", p); len(via) != 2 {
				return fmt.Errorf("rr1 has %s via %v", p, via)
			}
		}
		return nil
	})
	for _, a := range two.NICs[0].Addresses {
		s.reaches(guests["one"].Host, a.String())
	}
	node2.ask(hooks.Remove, two)
	s.learns("node1", map[string][]fabric.VM{"node3": {three}})
	s.learns("node3", map[string][]fabric.VM{"node1": {one, two}})
	talk()

	node1.ask(hooks.Remove, one)
	node1.ask(hooks.Remove, two)
	s.agents["node3"].ask(hooks.Remove, three)
	for name, a := range s.agents {
		s.learns(name, nil)
		assert.NotContains(t, a.Log(), "DATA RACE")
		assert.Empty(t, s.leftOn(a.node))
	}
}

// reflectedVias lists the next hops that a reflector has of a prefix.
func (s *system) reflectedVias(rr string, p netip.Prefix) (vias []netip.Addr) {
	s.t.Helper()
	routes, err := s.rr[rr].Routes(soon(s.t))
	require.NoError(s.t, err)
	for _, r := range routes {
		if r.Prefix == p {
			vias = append(vias, r.NextHop)
		}
	}
	return vias
}

// dropsForged sends from one guest with the source of another, which is on
// another node.
func (s *system) dropsForged(from, to *core.Guest, own, other fabric.VM) {
	s.t.Helper()
	for n, forged := range other.NICs[0].Addresses {
		require.NoError(s.t, from.AddAddr("eth0", fabric.HostPrefix(forged)))
		dst, err := to.Addrs("eth0")
		require.NoError(s.t, err)
		at := dst[0].Addr()
		for _, p := range dst {
			if p.Addr().Is4() == forged.Is4() && p.Addr().IsGlobalUnicast() {
				at = p.Addr()
			}
		}
		sn, err := to.Sniff("eth0", func(f core.Frame) bool { return f.Concerns(forged) })
		require.NoError(s.t, err)
		p, err := from.ProbeFrom(forged, at, 20*time.Millisecond)
		require.NoError(s.t, err)
		// What is sent with its own source after it arrives, so it had its time.
		_, err = from.PingFrom(soon(s.t), own.NICs[0].Addresses[n], at)
		require.NoError(s.t, err)
		time.Sleep(200 * time.Millisecond)
		p.Stop()
		assert.Empty(s.t, sn.Frames(), forged)
		require.NoError(s.t, sn.Close())
		require.NoError(s.t, delAddr(from.Host, "eth0", forged))
	}
}

func delAddr(h *core.Host, link string, a netip.Addr) error {
	l, err := h.Link(link)
	if err != nil {
		return err
	}
	return h.Netlink().AddrDel(l, &netlink.Addr{IPNet: netlink.NewIPNet(a.AsSlice())})
}

// TestEastWestIsOffByDefault: reflectors that tell nodes everything make no
// difference, and guests talk through the core gateway alone.
func TestEastWestIsOffByDefault(t *testing.T) {
	t.Parallel()
	s := start(t, options{nodes: 2})
	one, two := veth("one", "203.0.113.10", "2001:db8:100::10"), veth("two", "203.0.113.11", "2001:db8:100::11")
	g := s.run("node1", one)
	s.run("node2", two)
	s.coreHas(s.top.Nodes["node2"], two.Prefixes()...)
	s.reaches(g.Host, "203.0.113.11", "2001:db8:100::11")
	require.NoError(t, s.lab.Disconnect(s.top.Core))
	for _, a := range two.NICs[0].Addresses {
		p, err := g.Probe(a, 10*time.Millisecond)
		require.NoError(t, err)
		time.Sleep(300 * time.Millisecond)
		assert.Zero(t, p.Stop().Received, a)
	}
	for name := range s.agents {
		assert.Empty(t, s.learnedOn(name), name)
	}
	out, errs, code := s.agents["node1"].cli("why", "203.0.113.11")
	assert.Zero(t, code, out+errs)
	assert.Contains(t, out, "two on node2")
	assert.NotContains(t, out, "goes to")
}

// probes sends 1,000 packets a second to each of a guest's addresses.
func probes(t *testing.T, from *core.Guest, to fabric.VM) (lost func() []string) {
	t.Helper()
	var all []*core.Prober
	for _, a := range to.NICs[0].Addresses {
		p, err := from.Probe(a, time.Millisecond)
		require.NoError(t, err)
		all = append(all, p)
	}
	return func() (lost []string) {
		for n, p := range all {
			r := p.Stop()
			assert.Greater(t, r.Sent, 500)
			if r.Lost > 0 {
				lost = append(lost, fmt.Sprintf("%s: %+v", to.NICs[0].Addresses[n], r))
			}
		}
		return lost
	}
}

// TestEastWestAgentRestarts ends a node's agent in both ways under a probe.
func TestEastWestAgentRestarts(t *testing.T) {
	t.Parallel()
	s := start(t, options{nodes: 2, change: eastWest})
	one, two, three := veth("one", "203.0.113.10", "2001:db8:100::10"), veth("two", "203.0.113.11", "2001:db8:100::11"), veth("three", "203.0.113.12", "2001:db8:100::12")
	g := s.run("node1", one)
	s.run("node2", two)
	s.run("node2", three)
	both, alone := map[string][]fabric.VM{"node2": {two, three}}, map[string][]fabric.VM{"node2": {two}}
	s.learns("node1", both)
	s.learns("node2", map[string][]fabric.VM{"node1": {one}})
	s.coreHas(s.top.Nodes["node1"], one.Prefixes()...)
	s.coreHas(s.top.Nodes["node2"], two.Prefixes()...)
	s.reaches(g.Host, "203.0.113.11", "2001:db8:100::11")
	a := s.agents["node1"]

	// Killed, with no other way between the guests: the routes stay, and those
	// that have gone meanwhile go when the next agent has heard everything.
	require.NoError(t, s.lab.Disconnect(s.top.Core))
	lost := probes(t, g, two)
	require.NoError(t, a.Kill())
	s.agents["node2"].ask(hooks.Remove, three)
	s.learns("node1", both)
	a.start()
	a.established()
	s.learns("node1", alone)
	time.Sleep(300 * time.Millisecond)
	assert.Empty(t, lost(), "killed")
	require.NoError(t, s.lab.Reconnect(s.top.Core))

	// Stopped in the orderly way: through the core gateway, and back.
	s.coreHas(s.top.Nodes["node1"], one.Prefixes()...)
	s.coreHas(s.top.Nodes["node2"], two.Prefixes()...)
	s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10", "203.0.113.11", "2001:db8:100::11")
	lost = probes(t, g, two)
	require.NoError(t, a.Stop())
	assert.Empty(t, s.learnedOn("node1"))
	time.Sleep(300 * time.Millisecond)
	a.start()
	s.learns("node1", alone)
	time.Sleep(300 * time.Millisecond)
	assert.Empty(t, lost(), "stopped")

	// An agent that is not to learn any more takes out what one left that did.
	require.NoError(t, a.Kill())
	text, err := os.ReadFile(s.file)
	require.NoError(t, err)
	require.Contains(t, string(text), "east_west: direct\n")
	require.NoError(t, os.WriteFile(s.file, []byte(strings.ReplaceAll(string(text), "east_west: direct\n", "")), 0o600))
	assert.NotEmpty(t, s.learnedOn("node1"))
	a.start()
	assert.Empty(t, s.learnedOn("node1"))
	assert.NotContains(t, a.Log(), "DATA RACE")
}

// TestEastWestReflectorsGo: one reflector's end is no news, and that of both
// changes nothing while they may come back (RFC 4724).
func TestEastWestReflectorsGo(t *testing.T) {
	t.Parallel()
	s := start(t, options{nodes: 2, change: eastWest})
	one, two, three := veth("one", "203.0.113.10", "2001:db8:100::10"), veth("two", "203.0.113.11", "2001:db8:100::11"), veth("three", "203.0.113.12", "2001:db8:100::12")
	g := s.run("node1", one)
	s.run("node2", two)
	s.run("node2", three)
	both := map[string][]fabric.VM{"node2": {two, three}}
	s.learns("node1", both)
	s.reaches(g.Host, "203.0.113.11", "2001:db8:100::11")
	for rr := range s.rr {
		for _, vm := range []fabric.VM{two, three} {
			for _, p := range vm.Prefixes() {
				s.reflected(rr, p)
			}
		}
	}
	changes := s.watchLearned("node1")
	lost := probes(t, g, two)
	down := func(rr string) {
		t.Helper()
		require.NoError(t, s.rr[rr].Kill())
		s.eventually(rr+" is gone", func() error {
			for _, session := range s.agents["node1"].status().Sessions {
				if session.Peer == rr && session.State == "established" {
					return fmt.Errorf("%s is up", rr)
				}
			}
			return nil
		})
	}
	down("rr1")
	down("rr2")
	s.agents["node2"].ask(hooks.Remove, three)
	time.Sleep(time.Second)
	assert.Empty(t, lost())
	assert.Empty(t, changes())
	s.learns("node1", both)
	s.startReflectors()
	for _, a := range s.agents {
		a.established()
	}
	s.learns("node1", map[string][]fabric.VM{"node2": {two}})
	s.reaches(g.Host, "203.0.113.11", "2001:db8:100::11")
}

// watchLearned follows a node's learned routes and gives what changed.
func (s *system) watchLearned(node string) func() []string {
	s.t.Helper()
	updates, done := make(chan netlink.RouteUpdate, 1024), make(chan struct{})
	require.NoError(s.t, netlink.RouteSubscribeAt(s.top.Nodes[node].NsHandle(), updates, done))
	var mu sync.Mutex
	var changes []string
	go func() {
		for u := range updates {
			if u.Protocol == fabric.PeerProtocol && u.Table == unix.RT_TABLE_MAIN {
				mu.Lock()
				changes = append(changes, fmt.Sprintf("%d %s", u.Type, u.Route))
				mu.Unlock()
			}
		}
	}()
	s.t.Cleanup(func() { close(done) })
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return changes
	}
}

func eastWest(c *fabric.Cluster) { c.EastWest = true }
