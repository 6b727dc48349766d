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

// testSender has a node send what it may and what not. It is known to the
// reflector by both of its addresses, by that of its session, or by none.
func testSender(t *testing.T, f render.Format, over6 bool, known string) {
	ctx, named := soon(t), known != "by range"
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
	r := startRogue(t, ctx, c, h, c.Reflectors[0].Address)

	own := map[bool]netip.Addr{false: h.Addr4(), true: h.Addr6()}
	// Of the family that its session does not have, a node without a name has no
	// address that the reflector knows.
	knows := map[bool]bool{over6: true, !over6: named}
	// FRR puts the address of such a node for any next hop in its place.
	corrects := f == render.FRR && !named
	// What a node without an address of that family may say, is of the nodes'
	// network, and is nobody else's, may be its own.
	undeclared := map[bool]bool{!over6: known == "named"}
	var good []routers.BGPRoute
	n := byte(0)
	say := func(passes, v6 bool, pref *uint32, hops ...netip.Addr) {
		n++
		p := said(n, v6)
		tags := c.Communities
		if pref != nil && *pref == fabric.Draining.LocalPref() {
			tags = append(slices.Clone(tags), fabric.GracefulShutdown)
		}
		require.NoError(t, r.Announce(routers.RogueRoute{Prefix: p, NextHops: hops, LocalPref: pref, Communities: tags}))
		if passes {
			want := routers.BGPRoute{Prefix: p, NextHop: own[v6], LocalPref: 100}
			if pref != nil {
				want.LocalPref = *pref
			}
			good = append(good, want)
		}
	}
	normal := fabric.Normal.LocalPref()
	for _, v6 := range []bool{false, true} {
		for _, pref := range fabric.Preferences() {
			value := pref.LocalPref()
			say(knows[v6], v6, &value, own[v6])
		}
		for _, pref := range []uint32{0, 1, 9, 11, 99, 101, 199, 201, 1000, math.MaxInt32, math.MaxUint32} {
			say(false, v6, &pref, own[v6])
		}
		// Without LOCAL_PREF BIRD takes its default, and FRR does not take the route.
		say(f == render.BIRD && knows[v6], v6, nil, own[v6])
		for _, other := range []*core.Host{top.Nodes["node1"], top.Nodes["node3"], top.Reflectors["rr1"], top.Core} {
			hop := map[bool]netip.Addr{false: other.Addr4(), true: other.Addr6()}[v6]
			say(corrects && knows[v6], v6, &normal, hop)
			// The file has one address of the core gateway.
			if undeclared[v6] && other == top.Core {
				good = append(good, routers.BGPRoute{Prefix: said(n, v6), NextHop: hop, LocalPref: normal})
			}
			// And one of the reflector, whose daemon takes none of its own for a next hop,
			// whatever the policy says.
		}
	}
	for _, hop := range []string{"10.10.0.99", "fd00:10:10::99"} {
		a := addr(hop)
		say(corrects && knows[a.Is6()], a.Is6(), &normal, a)
		if undeclared[a.Is6()] {
			good = append(good, routers.BGPRoute{Prefix: said(n, a.Is6()), NextHop: a, LocalPref: normal})
		}
	}
	for _, nobody := range []string{"192.0.2.1", "203.0.113.1"} {
		say(corrects && knows[false], false, &normal, addr(nobody))
	}
	for _, nobody := range []string{"2001:db8:9::1", "2001:db8:100::1", "::ffff:10.10.0.21"} {
		say(corrects && knows[true], true, &normal, addr(nobody))
	}
	// A link-local next hop beside one of its own (RFC 2545).
	say(knows[true], true, &normal, own[true], addr("fe80::99"))
	say(corrects && knows[true], true, &normal, addr("fd00:10:10::21"), addr("fe80::22"))
	// Alone.
	say(corrects && knows[true], true, &normal, addr("fe80::22"))

	sentinel := map[bool]routers.BGPRoute{}
	for _, v6 := range []bool{false, true} {
		say(knows[v6], v6, &normal, own[v6])
		if knows[v6] {
			sentinel[v6] = good[len(good)-1]
		}
	}
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
	assert.Equal(t, lines(good), lines(rs))

	core := start(t, ctx, c, f, top.Core)
	good = slices.DeleteFunc(good, func(r routers.BGPRoute) bool { return r.NextHop == top.Core.Addr4() || r.NextHop == top.Core.Addr6() }) // nor does that
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
