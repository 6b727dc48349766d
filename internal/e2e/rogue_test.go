package e2e

import (
	"context"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/attack"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestRogueReflectors has reflectors beside an honest one that lie about a guest, to its
// node, and send broken messages. The node goes on announcing the guest to the honest one,
// changes no route, and keeps that session; the guest loses nothing.
func TestRogueReflectors(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "bird")
	s := start(t, options{nodes: 2, noRR: true, noAgent: true})
	s.startReflector("rr1")
	vm := veth("web", "203.0.113.10", "2001:db8:100::10")
	vm.Origin, vm.UUID = "libvirt", "6f1d9a4e-3c53-4c5b-9f0e-0c8a3a6f7b21" // by hand nobody else would be asked about it
	s.addRogues(vm)
	for _, a := range s.agents {
		a.start()
	}
	s.run("node1", vm)
	node, a := s.top.Nodes["node1"], s.agents["node1"]
	s.coreHas(node, vm.Prefixes()...)
	s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10")
	before, withdrawn := routesOf(t, node), s.watchWithdrawals()
	session := func() fabric.Session {
		all := a.status().Sessions
		return all[slices.IndexFunc(all, func(s fabric.Session) bool { return s.Peer == "rr1" })]
	}
	honest := session()
	p, err := s.top.Client.Probe(netip.MustParseAddr("203.0.113.10"), 5*time.Millisecond)
	require.NoError(t, err)

	began := time.Now()
	said := s.roguesSay(vm)
	t.Logf("%d messages of rogue reflectors in %v", said, time.Since(began).Round(time.Millisecond))
	assert.GreaterOrEqual(t, said, 40)
	for _, heard := range []string{"which is no node, comes before this node's", "and the agent there says that the guest does not run there"} {
		a.complains(heard)
	}
	assert.Zero(t, p.Stop().Lost)
	assert.Empty(t, withdrawn(), "the core gateway lost a route")
	assert.Equal(t, before, routesOf(t, node))
	assert.True(t, a.Running())
	assert.Equal(t, "established", session().State)
	assert.Equal(t, honest.Since, session().Since, "the session with the honest reflector")
	assert.Equal(t, fabric.Live, a.ask(hooks.List, fabric.VM{}).Ports[0].State)
	s.coreHas(node, vm.Prefixes()...)
}

// routesOf lists a host's routes of both families.
func routesOf(t testing.TB, h *core.Host) (list []string) {
	t.Helper()
	for _, of := range []func() ([]core.Route, error){h.Routes4, h.Routes6} {
		rs, err := of()
		require.NoError(t, err)
		for _, r := range rs {
			list = append(list, r.String())
		}
	}
	return list
}

// lies are what each of some reflectors says of a guest, and of others that its node does
// not have, one after the other: a route by another node, by a machine that is none, or by
// the node itself, with no holder, for another guest that just got the address, and at last
// for one that has had it ever since.
func (s *system) lies(vm fabric.VM) (all [][]routers.RogueRoute) {
	one, two := s.top.Nodes["node1"], s.top.Nodes["node2"]
	prefixes := vm.Prefixes()
	for _, p := range []string{"0.0.0.0/0", "::/0", "203.0.113.0/24", "10.10.0.1/32"} {
		prefixes = append(prefixes, netip.MustParsePrefix(p))
	}
	for _, hop := range []attack.Pair{{V4: two.Addr4(), V6: two.Addr6()}, {V4: core.Underlay4(99), V6: core.Underlay6(99)}, {V4: one.Addr4(), V6: one.Addr6()}} {
		var lies []routers.RogueRoute
		for _, pref := range []uint32{10, 200, math.MaxUint32} {
			for _, h := range []fabric.Holder{{}, {Guest: 1, Since: math.MaxUint32}, {Guest: 1, Since: 1}} {
				tags := slices.Concat(s.cluster.Communities, h.Communities(s.cluster.ASN))
				for _, p := range prefixes {
					via := hop.V4
					if p.Addr().Is6() {
						via = hop.V6
					}
					lies = append(lies, routers.RogueRoute{Prefix: p, NextHops: []netip.Addr{via}, LocalPref: &pref, Communities: tags})
				}
			}
		}
		all = append(all, lies)
	}
	return all
}

// brokenUpdates are what the rogue reflectors send about a guest, each one of them.
func (s *system) brokenUpdates(vm fabric.VM) []attack.Update {
	guest := attack.Pair{V4: vm.NICs[0].Addresses[0], V6: vm.NICs[0].Addresses[1]}
	return attack.Updates(guest, s.top.Nodes["node2"].Addr4())
}

// rogueAddr is that of the n-th rogue reflector.
func rogueAddr(n int) netip.Addr { return core.Underlay4(byte(100 + n)) }

// addRogues gives node1 a reflector for each broken message and each liar, instead of its
// second one: sessions that are broken come up again late. They share a machine.
func (s *system) addRogues(vm fabric.VM) {
	s.t.Helper()
	many := s.cluster
	many.Reflectors = slices.Clone(many.Reflectors[:1])
	for n := range len(s.brokenUpdates(vm)) + len(s.lies(vm)) {
		rogue := many.Reflectors[0]
		rogue.Name, rogue.Address = fmt.Sprintf("rogue%d", n), rogueAddr(n)
		many.Reflectors = append(many.Reflectors, rogue)
		require.NoError(s.t, s.top.Reflectors["rr2"].AddAddr("eth0", netip.PrefixFrom(rogue.Address, core.UnderlayPrefix4.Bits())))
	}
	a := s.agents["node1"]
	a.args[slices.Index(a.args, "--config")+1] = s.writeFile("many.yaml", many)
}

// roguesSay has each rogue reflector say a broken message, or its lies, and returns how
// much that was. The liars stay until the test ends.
func (s *system) roguesSay(vm fabric.VM) int {
	s.t.Helper()
	updates, liars := s.brokenUpdates(vm), s.lies(vm)
	g, ctx := errgroup.WithContext(soon(s.t))
	for n := range len(updates) + len(liars) {
		l, err := s.top.Reflectors["rr2"].Listen("tcp", netip.AddrPortFrom(rogueAddr(n), 179).String())
		require.NoError(s.t, err)
		s.t.Cleanup(func() { l.Close() })
		g.Go(func() error {
			r, err := s.acceptNode1(ctx, l, rogueAddr(n))
			if err != nil {
				return fmt.Errorf("rogue%d: %w", n, err)
			}
			if n < len(updates) {
				defer r.Break()
				return r.Update(updates[n].Body)
			}
			s.t.Cleanup(func() { _ = r.Close() })
			for _, lie := range liars[n-len(updates)] {
				if err := r.Announce(lie); err != nil {
					return fmt.Errorf("lie about %s: %w", lie.Prefix, err)
				}
			}
			return nil
		})
	}
	require.NoError(s.t, g.Wait())
	return len(updates) + len(liars)*len(liars[0])
}

// acceptNode1 brings a session with node1 up, from the reflector's side.
func (s *system) acceptNode1(ctx context.Context, l net.Listener, own netip.Addr) (*routers.Rogue, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if d, ok := l.(*net.TCPListener); ok {
			deadline, _ := ctx.Deadline()
			if err := d.SetDeadline(deadline); err != nil {
				return nil, err
			}
		}
		conn, err := l.Accept()
		if err != nil {
			return nil, err
		}
		from, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
		if from.Addr().Unmap() != s.top.Nodes["node1"].Addr4() {
			conn.Close()
			continue
		}
		// A speaker may give up a connection of before.
		if r, err := routers.NewRogue(conn, s.cluster.ASN, own); err == nil {
			return r, nil
		}
	}
}
