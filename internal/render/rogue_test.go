package render_test

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/render"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// startRogue has a host call a reflector, and returns when the session is up. The
// test fails where the reflector ends it.
func startRogue(t *testing.T, ctx context.Context, c fabric.Cluster, h *core.Host, rr netip.Addr) *routers.Rogue {
	t.Helper()
	var r *routers.Rogue
	require.NoError(t, core.Until(ctx, func() error {
		conn, err := h.Dial(ctx, "tcp", netip.AddrPortFrom(rr, 179).String())
		if err == nil {
			r, err = routers.NewRogue(conn, c.ASN, h.Addr4())
		}
		return err
	}))
	t.Cleanup(func() { assert.NoError(t, r.Close()) })
	return r
}

// TestRouterSender: from a node passes what has the node itself as next hop and
// a LOCAL_PREF that agents use, and nothing else does, whoever calls by
// whichever family.
func TestRouterSender(t *testing.T) {
	if testing.Short() {
		t.Skip("makes laboratories")
	}
	labtest.Need(t, "bird", "frr")
	for _, f := range []render.Format{render.BIRD, render.FRR} {
		for _, over6 := range []bool{false, true} {
			for _, known := range []string{"declared", "named", "by range"} {
				t.Run(fmt.Sprintf("%s, IPv6 session %v, %s", f, over6, known), func(t *testing.T) {
					testSender(t, f, over6, known)
				})
			}
		}
	}
}

// sender is a node that sends what it may and what not, to a reflector.
type sender struct {
	t   *testing.T
	c   fabric.Cluster
	f   render.Format
	top *core.Topology
	r   *routers.Rogue
	own map[bool]netip.Addr // by whether it is IPv6, as below
	// Of the family that its session does not have, a node without a name has no
	// address that the reflector knows.
	knows map[bool]bool
	// FRR puts the address of such a node for any next hop in its place.
	corrects bool
	// What a node without an address of that family may say, is of the nodes'
	// network, and is nobody else's, may be its own.
	undeclared map[bool]bool

	n    byte // how often it has said something
	good []routers.BGPRoute
}

// newSender starts a reflector, and has node2 call it. The node is known to the
// reflector by both of its addresses, by that of its session, or by none.
func newSender(t *testing.T, ctx context.Context, f render.Format, over6 bool, known string) (*sender, speaker) {
	t.Helper()
	named := known != "by range"
	c := core.SmallCluster(3)
	c.Reflectors = c.Reflectors[:1]
	if over6 {
		c.Reflectors[0].Address, c.Core[0].Address = core.Underlay6(11), core.Underlay6(1)
	}
	_, top := labtest.Build(t, c)
	h := top.Nodes["node2"]
	switch {
	case !named:
		c.Nodes = slices.Delete(slices.Clone(c.Nodes), 1, 2)
	case known == "named" && over6:
		c.Nodes[1].Address = netip.Addr{}
	case known == "named":
		c.Nodes[1].Address6 = netip.Addr{}
	}
	rr := start(t, ctx, c, f, top.Reflectors["rr1"])
	return &sender{
		t: t, c: c, f: f, top: top, r: startRogue(t, ctx, c, h, c.Reflectors[0].Address),
		own:        map[bool]netip.Addr{false: h.Addr4(), true: h.Addr6()},
		knows:      map[bool]bool{over6: true, !over6: named},
		corrects:   f == render.FRR && !named,
		undeclared: map[bool]bool{!over6: known == "named"},
	}, rr
}

// say announces the next prefix of a family. Without a preference it has no
// LOCAL_PREF.
func (s *sender) say(passes, v6 bool, pref *uint32, hops ...netip.Addr) {
	s.t.Helper()
	s.n++
	p := said(s.n, v6)
	tags := s.c.Communities
	if pref != nil && *pref == fabric.Draining.LocalPref() {
		tags = append(slices.Clone(tags), fabric.GracefulShutdown)
	}
	require.NoError(s.t, s.r.Announce(routers.RogueRoute{Prefix: p, NextHops: hops, LocalPref: pref, Communities: tags}))
	if passes {
		want := routers.BGPRoute{Prefix: p, NextHop: s.own[v6], LocalPref: 100}
		if pref != nil {
			want.LocalPref = *pref
		}
		s.good = append(s.good, want)
	}
}

// passesAs has what was said last pass with another next hop than the node's own.
func (s *sender) passesAs(v6 bool, hop netip.Addr) {
	s.good = append(s.good, routers.BGPRoute{Prefix: said(s.n, v6), NextHop: hop, LocalPref: fabric.Normal.LocalPref()})
}

// saysPreferences that agents use, and others.
func (s *sender) saysPreferences(v6 bool) {
	s.t.Helper()
	for _, pref := range fabric.Preferences() {
		value := pref.LocalPref()
		s.say(s.knows[v6], v6, &value, s.own[v6])
	}
	for _, pref := range []uint32{0, 1, 9, 11, 99, 101, 199, 201, 1000, math.MaxInt32, math.MaxUint32} {
		s.say(false, v6, &pref, s.own[v6])
	}
	// Without LOCAL_PREF BIRD takes its default, and FRR does not take the route.
	s.say(s.f == render.BIRD && s.knows[v6], v6, nil, s.own[v6])
}

// saysMachines of the cluster for a next hop.
func (s *sender) saysMachines(v6 bool) {
	s.t.Helper()
	normal := fabric.Normal.LocalPref()
	for _, other := range []*core.Host{s.top.Nodes["node1"], s.top.Nodes["node3"], s.top.Reflectors["rr1"], s.top.Core} {
		hop := map[bool]netip.Addr{false: other.Addr4(), true: other.Addr6()}[v6]
		s.say(s.corrects && s.knows[v6], v6, &normal, hop)
		// The file has one address of the core gateway.
		if s.undeclared[v6] && other == s.top.Core {
			s.passesAs(v6, hop)
		}
		// And one of the reflector, whose daemon takes none of its own for a next hop,
		// whatever the policy says.
	}
}

// saysOthers for a next hop, which are no machines of the cluster.
func (s *sender) saysOthers() {
	s.t.Helper()
	normal := fabric.Normal.LocalPref()
	for _, hop := range []string{"10.10.0.99", "fd00:10:10::99"} {
		a := addr(hop)
		s.say(s.corrects && s.knows[a.Is6()], a.Is6(), &normal, a)
		if s.undeclared[a.Is6()] {
			s.passesAs(a.Is6(), a)
		}
	}
	for _, nobody := range []string{"192.0.2.1", "203.0.113.1"} {
		s.say(s.corrects && s.knows[false], false, &normal, addr(nobody))
	}
	for _, nobody := range []string{"2001:db8:9::1", "2001:db8:100::1", "::ffff:10.10.0.21"} {
		s.say(s.corrects && s.knows[true], true, &normal, addr(nobody))
	}
	// A link-local next hop beside one of its own (RFC 2545).
	s.say(s.knows[true], true, &normal, s.own[true], addr("fe80::99"))
	s.say(s.corrects && s.knows[true], true, &normal, addr("fd00:10:10::21"), addr("fe80::22"))
	// Alone.
	s.say(s.corrects && s.knows[true], true, &normal, addr("fe80::22"))
}

// saysTheLast that passes, of each family: what was said before has been judged when
// the reflector has it.
func (s *sender) saysTheLast() map[bool]routers.BGPRoute {
	s.t.Helper()
	normal, sentinel := fabric.Normal.LocalPref(), map[bool]routers.BGPRoute{}
	for _, v6 := range []bool{false, true} {
		s.say(s.knows[v6], v6, &normal, s.own[v6])
		if s.knows[v6] {
			sentinel[v6] = s.good[len(s.good)-1]
		}
	}
	return sentinel
}

// testSender has a node send what it may and what not.
func testSender(t *testing.T, f render.Format, over6 bool, known string) {
	ctx := soon(t)
	s, rr := newSender(t, ctx, f, over6, known)
	for _, v6 := range []bool{false, true} {
		s.saysPreferences(v6)
		s.saysMachines(v6)
	}
	s.saysOthers()
	sentinel := s.saysTheLast()
	tables(t, ctx, rr, func(rs []routers.BGPRoute) error {
		for _, s := range sentinel {
			if !slices.ContainsFunc(rs, func(r routers.BGPRoute) bool { return r.Prefix == s.Prefix }) {
				return fmt.Errorf("%s is not there", s.Prefix)
			}
		}
		return nil
	})
	rs, err := rr.Routes(ctx)
	require.NoError(t, err)
	assert.Equal(t, lines(s.good), lines(rs))

	gateway := s.top.Core
	core := start(t, ctx, s.c, f, gateway)
	good := slices.DeleteFunc(s.good, func(r routers.BGPRoute) bool { return r.NextHop == gateway.Addr4() || r.NextHop == gateway.Addr6() }) // nor does that
	tables(t, ctx, core, func(rs []routers.BGPRoute) error {
		if len(rs) != len(good) {
			return fmt.Errorf("%d of %d: %v", len(rs), len(good), rs)
		}
		return nil
	})
	rs, err = core.Routes(ctx)
	require.NoError(t, err)
	assert.Equal(t, lines(good), lines(rs))
}

// said is the prefix of the n-th announcement.
func said(n byte, v6 bool) netip.Prefix {
	a := addr("203.0.113.0").AsSlice()
	if v6 {
		a = addr("2001:db8:100::").AsSlice()
	}
	a[len(a)-1] = n
	ip, _ := netip.AddrFromSlice(a)
	return netip.PrefixFrom(ip, ip.BitLen())
}

// lines gives what of routes is to be compared, in order.
func lines(rs []routers.BGPRoute) string {
	var all []string
	for _, r := range rs {
		all = append(all, fmt.Sprintf("%s via %s preference %d", r.Prefix, r.NextHop, r.LocalPref))
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}
