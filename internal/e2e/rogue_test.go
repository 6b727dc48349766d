package e2e

import (
	"context"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
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

// rogues is the number of reflectors that are none: each says a part, so that sessions that
// must come up again do so at once.
const rogues = 16

// TestRogueReflectors has reflectors beside an honest one that lie about a guest, to its
// node, and send broken messages. The node goes on announcing the guest to the honest one,
// changes no route, and keeps that session; the guest loses nothing.
func TestRogueReflectors(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "bird")
	s := start(t, options{nodes: 2, noRR: true, change: func(c *fabric.Cluster) {
		c.Reflectors = c.Reflectors[:1]
		for n := range byte(rogues) {
			rogue := c.Reflectors[0]
			rogue.Name, rogue.Address = fmt.Sprintf("rogue%d", n), core.Underlay4(40+n)
			c.Reflectors = append(c.Reflectors, rogue)
		}
	}})
	s.startReflector("rr1")
	vm := veth("web", "203.0.113.10", "2001:db8:100::10")
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

// lies are routes to a guest and to others that its node does not have: by another node, a
// machine that is none, and the node itself, for another guest that had it ever since, with
// every preference.
func (s *system) lies(vm fabric.VM) (lies []routers.RogueRoute) {
	other := s.top.Nodes["node2"]
	earlier := fabric.Holder{Guest: 1, Since: 1}
	later := fabric.Holder{Guest: 1, Since: math.MaxUint32}
	for _, p := range append(vm.Prefixes(), netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"), netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("10.10.0.1/32")) {
		hops := []netip.Addr{other.Addr4(), core.Underlay4(99), s.top.Nodes["node1"].Addr4()}
		if p.Addr().Is6() {
			hops = []netip.Addr{other.Addr6(), core.Underlay6(99), s.top.Nodes["node1"].Addr6()}
		}
		for _, hop := range hops {
			for _, pref := range []uint32{10, 200, math.MaxUint32} {
				for _, h := range []fabric.Holder{{}, earlier, later} {
					tags := slices.Concat(s.cluster.Communities, h.Communities(s.cluster.ASN))
					lies = append(lies, routers.RogueRoute{Prefix: p, NextHops: []netip.Addr{hop}, LocalPref: &pref, Communities: tags})
				}
			}
		}
	}
	return lies
}

// roguesSay has the rogue reflectors say all that is not so, and returns how much that was.
func (s *system) roguesSay(vm fabric.VM) int {
	s.t.Helper()
	guest := attack.Pair{V4: vm.NICs[0].Addresses[0], V6: vm.NICs[0].Addresses[1]}
	updates, lies := attack.Updates(guest, s.top.Nodes["node2"].Addr4()), s.lies(vm)
	var said atomic.Int32
	g, ctx := errgroup.WithContext(soon(s.t))
	for n := range rogues {
		h := s.top.Reflectors[fmt.Sprintf("rogue%d", n)]
		l, err := h.Listen("tcp", "0.0.0.0:179")
		require.NoError(s.t, err)
		s.t.Cleanup(func() { l.Close() })
		g.Go(func() error {
			r, err := s.acceptNode1(ctx, l, h)
			if err != nil {
				return err
			}
			for _, lie := range lies {
				if err := r.Announce(lie); err != nil {
					return fmt.Errorf("lie about %s: %w", lie.Prefix, err)
				}
				said.Add(1)
			}
			r.Break()
			for i := n; i < len(updates); i += rogues {
				if r, err = s.acceptNode1(ctx, l, h); err != nil {
					return fmt.Errorf("before %q: %w", updates[i].Name, err)
				}
				if err := r.Update(updates[i].Body); err != nil {
					return fmt.Errorf("%q: %w", updates[i].Name, err)
				}
				r.Break()
				said.Add(1)
			}
			return nil
		})
	}
	require.NoError(s.t, g.Wait())
	return int(said.Load())
}

// acceptNode1 brings a session with node1 up, from the reflector's side.
func (s *system) acceptNode1(ctx context.Context, l net.Listener, h *core.Host) (*routers.Rogue, error) {
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
		if r, err := routers.NewRogue(conn, s.cluster.ASN, h.Addr4()); err == nil {
			return r, nil
		}
	}
}
