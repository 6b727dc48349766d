package render_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/render"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// speaker is a BIRD or an FRR of a lab.
type speaker interface {
	Routes(ctx context.Context) ([]routers.BGPRoute, error)
	Established(ctx context.Context) (int, error)
}

// start runs what is rendered for a host of a lab, whose name it has.
func start(t *testing.T, ctx context.Context, c fabric.Cluster, f render.Format, h *core.Host) speaker {
	t.Helper()
	text, err := render.Router(c, f, h.Name())
	require.NoError(t, err)
	if f == render.BIRD {
		b, err := routers.StartBird(ctx, h, strings.Replace(text, "log syslog all;", "log stderr all; debug protocols { states };", 1))
		require.NoError(t, err)
		return b
	}
	b, err := routers.StartFRR(ctx, h, strings.Replace(text, "log syslog informational", "log stdout informational", 1))
	require.NoError(t, err)
	return b
}

// announce does what an agent does for a speaker that reads from the kernel.
func announce(t *testing.T, node *core.Host, pref fabric.Preference, prefixes ...netip.Prefix) {
	t.Helper()
	link, err := node.Link("web_net0")
	require.NoError(t, err)
	for _, p := range prefixes {
		require.NoError(t, node.Netlink().RouteReplace(carrier(link, p, int(pref.LocalPref()))))
	}
}

func withdraw(t *testing.T, node *core.Host, pref fabric.Preference, prefixes ...netip.Prefix) {
	t.Helper()
	link, err := node.Link("web_net0")
	require.NoError(t, err)
	for _, p := range prefixes {
		require.NoError(t, node.Netlink().RouteDel(carrier(link, p, int(pref.LocalPref()))))
	}
}

func carrier(link netlink.Link, p netip.Prefix, metric int) *netlink.Route {
	dst, err := netlink.ParseIPNet(p.String())
	if err != nil {
		panic(err)
	}
	return &netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Protocol: fabric.Protocol, Priority: metric, Scope: netlink.SCOPE_LINK}
}

// port gives a node the port of a guest, with the route that it always has.
func port(t *testing.T, lab *core.Lab, node *core.Host, prefixes ...netip.Prefix) {
	t.Helper()
	guest := host(t, lab, node.Name()+"-web")
	require.NoError(t, lab.Cable(node, "web_net0", guest, "eth0"))
	link, err := node.Link("web_net0")
	require.NoError(t, err)
	for _, p := range prefixes {
		require.NoError(t, node.Netlink().RouteAdd(carrier(link, p, fabric.PortMetric)))
	}
}

// labCluster has everything that daemons of both kinds have.
func labCluster() fabric.Cluster {
	c := core.SmallCluster(2)
	c.Pools[0].Exclude = []netip.Prefix{prefix("203.0.113.255/32")}
	c.Pools[1].Exclude = []netip.Prefix{prefix("2001:db8:100:ffff::/64")}
	c.Pools = append(c.Pools, fabric.Pool{Name: "own6", Prefix: prefix("2001:db8:300::/48"), PerGuest: 64},
		fabric.Pool{Name: "own4", Ranges: []fabric.AddressRange{{First: addr("192.0.2.8"), Last: addr("192.0.2.39")}}, PerGuest: 29})
	c.Routed = []netip.Prefix{prefix("198.51.100.0/24"), prefix("2001:db8:200::/40")}
	c.MaxPrefixes = 20
	c.Timers.LongLived = time.Minute
	for i := range c.Reflectors {
		c.Reflectors[i].Password, c.Reflectors[i].GTSM, c.Reflectors[i].BFD = "s3cret!#'", true, true
	}
	return c
}

var (
	good = []netip.Prefix{
		prefix("203.0.113.10/32"), prefix("2001:db8:100::10/128"), prefix("198.51.100.8/29"), prefix("2001:db8:200:8::/64"),
		prefix("192.0.2.16/29"), prefix("192.0.2.39/32"), prefix("2001:db8:300:5::/64"), prefix("2001:db8:300:6::1/128"),
	}
	bad = []netip.Prefix{
		prefix("203.0.113.0/24"), prefix("203.0.113.128/25"), prefix("0.0.0.0/0"), prefix("192.0.2.77/32"), prefix("203.0.113.255/32"), prefix("198.51.0.0/16"),
		prefix("2001:db8:100::/48"), prefix("2001:db8:100:1::/64"), prefix("::/0"), prefix("2001:db8:9::7/128"), prefix("2001:db8:100:ffff::7/128"), prefix("2001:db8::/32"),
		prefix("192.0.2.24/30"), prefix("192.0.2.32/28"), prefix("192.0.2.40/32"), prefix("2001:db8:300:7::/65"), prefix("2001:db8:300::/56"),
	}
	untagged = []netip.Prefix{prefix("203.0.113.66/32"), prefix("2001:db8:100::66/128")}
	last     = []netip.Prefix{prefix("203.0.113.99/32"), prefix("2001:db8:100::99/128")}
)

func soon(t *testing.T) context.Context {
	return labtest.Soon(t)
}

// inKernel waits for the routes in the core gateway's kernel, or for their end.
func inKernel(t *testing.T, ctx context.Context, gateway, node *core.Host, want bool, prefixes ...netip.Prefix) {
	t.Helper()
	for _, p := range prefixes {
		via := node.Addr4()
		if p.Addr().Is6() {
			via = node.Addr6()
		}
		require.NoError(t, core.Until(ctx, func() error {
			r, there, err := gateway.Route(p)
			if err == nil && (there != want || there && (len(r.Vias()) != 1 || r.Vias()[0] != via)) {
				err = fmt.Errorf("kernel of %s: %s: %v %v", gateway.Name(), p, there, r)
			}
			return err
		}))
	}
}

// preferenceFollows what the node says, in what speakers have of it, and a drain.
func preferenceFollows(t *testing.T, c fabric.Cluster, node *core.Host, speakers ...speaker) {
	t.Helper()
	// Preference falls without the route ever being away.
	announce(t, node, fabric.Normal, good...)
	withdraw(t, node, fabric.Fresh, good...)
	for _, s := range speakers {
		tables(t, soon(t), s, func(rs []routers.BGPRoute) error { return asAnnounced(rs, node, good, c.Communities, 100) })
	}

	// The node is drained, and is not any more.
	announce(t, node, fabric.Draining, good...)
	withdraw(t, node, fabric.Normal, good...)
	for _, s := range speakers {
		drained := append(slices.Clone(c.Communities), fabric.GracefulShutdown)
		tables(t, soon(t), s, func(rs []routers.BGPRoute) error {
			return asAnnounced(rs, node, good, drained, fabric.Draining.LocalPref())
		})
	}
	announce(t, node, fabric.Normal, good...)
	withdraw(t, node, fabric.Draining, good...)
	for _, s := range speakers {
		tables(t, soon(t), s, func(rs []routers.BGPRoute) error { return asAnnounced(rs, node, good, c.Communities, 100) })
	}
}

// rogueIsRefused: the rogue says many things, and at the end what passes.
func rogueIsRefused(t *testing.T, c fabric.Cluster, top *core.Topology, rrs []speaker, passes []netip.Prefix) {
	t.Helper()
	rogue := top.Nodes["node2"]
	say := routers.Announcer{
		BGP:      routers.BGP{Password: c.Reflectors[0].Password, BFD: true, LongLived: time.Minute},
		RouterID: rogue.Addr4(), Reflectors: []netip.Addr{c.Reflectors[0].Address, c.Reflectors[1].Address},
		Communities: c.Communities, Routes: bad,
	}
	b, err := routers.StartBird(soon(t), rogue, rogueConf(say))
	require.NoError(t, err)
	say.Routes, say.Communities = slices.Concat(bad, untagged), c.Communities[:1]
	require.NoError(t, core.Until(soon(t), func() error { return established(soon(t), b, 2) }))
	require.NoError(t, b.Configure(soon(t), rogueConf(say)))
	say.Routes, say.Communities = slices.Concat(bad, last), c.Communities
	require.NoError(t, b.Configure(soon(t), rogueConf(say)))
	inKernel(t, soon(t), top.Core, rogue, true, passes...)
	for _, s := range rrs {
		tables(t, soon(t), s, func(rs []routers.BGPRoute) error {
			if got := prefixesOf(rs); !slices.Equal(got, sorted(good, passes)) {
				return fmt.Errorf("it has %v", got)
			}
			return nil
		})
	}
	for _, p := range slices.Concat(bad, untagged, last[1:]) {
		r, there, err := top.Core.Route(p)
		require.NoError(t, err)
		if pool := p == c.Pools[0].Prefix || p == c.Pools[1].Prefix; pool {
			assert.True(t, there, p)
			assert.Contains(t, []string{"unreachable", "blackhole"}, r.Type, p)
		} else {
			assert.False(t, there, "%s", r)
		}
	}
}

// TestRouterLab runs reflectors, a core gateway and a node as they are rendered,
// and a rogue node beside.
func TestRouterLab(t *testing.T) {
	if testing.Short() {
		t.Skip("makes laboratories")
	}
	labtest.Need(t, "bird", "frr")
	for _, tc := range []struct{ rr, core, node render.Format }{
		{render.BIRD, render.BIRD, render.BIRD},
		{render.BIRD, render.FRR, render.FRR},
		{render.FRR, render.BIRD, render.FRR},
		{render.FRR, render.FRR, render.BIRD},
	} {
		t.Run(fmt.Sprintf("reflectors %s, core %s, node %s", tc.rr, tc.core, tc.node), func(t *testing.T) {
			c := labCluster()
			lab, top := labtest.Build(t, c)
			// The rogue has no name, and is a node by its address: over IPv4 nothing of
			// IPv6 is its own.
			c.Nodes = c.Nodes[:1]
			passes := last[:1]
			node := top.Nodes["node1"]
			port(t, lab, node, slices.Concat(good, last)...)
			announce(t, node, fabric.Fresh, good...)

			rrs := []speaker{start(t, soon(t), c, tc.rr, top.Reflectors["rr1"]), start(t, soon(t), c, tc.rr, top.Reflectors["rr2"])}
			gateway := start(t, soon(t), c, tc.core, top.Core)
			start(t, soon(t), c, tc.node, node)
			inKernel(t, soon(t), top.Core, node, true, good...)

			preferenceFollows(t, c, node, append(rrs, gateway)...)
			rogueIsRefused(t, c, top, rrs, passes)

			withdraw(t, node, fabric.Normal, good...)
			inKernel(t, soon(t), top.Core, node, false, good...)
			nothingLearned(t, top.Reflectors["rr1"])
		})
	}
}

// nothingLearned holds for a machine that routes its own traffic alone.
func nothingLearned(t *testing.T, h *core.Host) {
	t.Helper()
	r4, err := h.Routes4()
	require.NoError(t, err)
	r6, err := h.Routes6()
	require.NoError(t, err)
	for _, r := range append(r4, r6...) {
		assert.NotContains(t, []int{12, 186}, r.Protocol, r.String())
	}
}

// TestRouterLimit: a node that announces more than it may is held at the limit,
// after a warning, as each daemon does it.
func TestRouterLimit(t *testing.T) {
	if testing.Short() {
		t.Skip("makes laboratories")
	}
	labtest.Need(t, "bird", "frr")
	for _, f := range []render.Format{render.BIRD, render.FRR} {
		t.Run(string(f), func(t *testing.T) {
			c := labCluster()
			_, top := labtest.Build(t, c)
			rr := start(t, soon(t), c, f, top.Reflectors["rr1"])
			say := routers.Announcer{
				BGP: routers.BGP{Password: c.Reflectors[0].Password}, RouterID: top.Nodes["node1"].Addr4(),
				Reflectors: []netip.Addr{c.Reflectors[0].Address}, Communities: c.Communities,
			}
			for n := range c.MaxPrefixes - 2 {
				say.Routes = append(say.Routes, prefix(fmt.Sprintf("203.0.113.%d/32", n+1)), prefix(fmt.Sprintf("2001:db8:100::%d/128", n+1)))
			}
			b, err := routers.StartBird(soon(t), top.Nodes["node1"], rogueConf(say))
			require.NoError(t, err)
			tables(t, soon(t), rr, func(rs []routers.BGPRoute) error {
				if len(rs) != len(say.Routes) {
					return fmt.Errorf("%d of %d routes", len(rs), len(say.Routes))
				}
				return nil
			})
			says(t, soon(t), rr, `route (receive )?limit \(16\)|reaches 17, max 20`)
			for n := range 20 {
				say.Routes = append(say.Routes, prefix(fmt.Sprintf("203.0.113.%d/32", n+101)), prefix(fmt.Sprintf("2001:db8:100::%d/128", n+101)))
			}
			require.NoError(t, b.Configure(soon(t), rogueConf(say)))
			tables(t, soon(t), rr, func(rs []routers.BGPRoute) error {
				want := 2 * c.MaxPrefixes
				if f == render.FRR {
					want = 0
				}
				if len(rs) != want {
					return fmt.Errorf("%d routes instead of %d", len(rs), want)
				}
				return nil
			})
		})
	}
}

// says waits for a line in the log of a speaker.
func says(t *testing.T, ctx context.Context, s speaker, pattern string) {
	t.Helper()
	var d *core.Daemon
	switch s := s.(type) {
	case *routers.Bird:
		d = s.Daemon
	case *routers.FRR:
		d = s.BGP
	}
	line := regexp.MustCompile(pattern)
	require.NoError(t, core.Until(ctx, func() error {
		if !line.MatchString(d.Log()) {
			return fmt.Errorf("no %q in its log", pattern)
		}
		return nil
	}))
}

// TestRouterExternalCore: a core gateway in another AS has the node as next hop,
// and LOCAL_PREF as MED. Another
// reflector that calls from among the nodes is none.
func TestRouterExternalCore(t *testing.T) {
	if testing.Short() {
		t.Skip("makes laboratories")
	}
	labtest.Need(t, "bird", "frr")
	for _, tc := range []struct{ rr, core render.Format }{{render.BIRD, render.FRR}, {render.FRR, render.BIRD}} {
		t.Run(fmt.Sprintf("reflector %s, core %s", tc.rr, tc.core), func(t *testing.T) {
			c := labCluster()
			c.Core[0].ASN, c.Core[0].BFD = 64999, true
			lab, top := labtest.Build(t, c)
			node, rr1, rr2 := top.Nodes["node1"], top.Reflectors["rr1"], top.Reflectors["rr2"]
			port(t, lab, node, good...)
			announce(t, node, fabric.Fresh, good...)
			rr := start(t, soon(t), c, tc.rr, rr1)
			gateway := start(t, soon(t), c, tc.core, top.Core)
			start(t, soon(t), c, tc.rr, node)
			inKernel(t, soon(t), top.Core, node, true, good...)
			require.NoError(t, core.Until(soon(t), func() error { return med(soon(t), gateway, good[:2], 800) }))
			announce(t, node, fabric.Draining, good...)
			withdraw(t, node, fabric.Fresh, good...)
			require.NoError(t, core.Until(soon(t), func() error { return med(soon(t), gateway, good[:2], 950) }))
			inKernel(t, soon(t), top.Core, node, true, good...)

			rogue := routers.Announcer{
				BGP: routers.BGP{Password: c.Reflectors[0].Password}, RouterID: rr2.Addr4(),
				Reflectors: []netip.Addr{rr1.Addr4()}, Communities: c.Communities, Routes: last,
			}
			b, err := routers.StartBird(soon(t), rr2, strings.Replace(rogueConf(rogue), "debug protocols { states };", "debug protocols { states, events };", 1))
			require.NoError(t, err)
			says(t, soon(t), b, `(?s)(Connection (closed|lost)|Socket error|Received: |refused|Cease).*(Connection (closed|lost)|Socket error|Received: |refused|Cease)`)
			require.NoError(t, established(soon(t), rr, 2))
		})
	}
}

// med reports where routes have another MED.
func med(ctx context.Context, s speaker, prefixes []netip.Prefix, want int) error {
	for _, p := range prefixes {
		var text string
		var err error
		switch s := s.(type) {
		case *routers.Bird:
			var lines []string
			lines, err = s.Query(ctx, fmt.Sprintf("show route all for %s", p))
			text = strings.Join(lines, "\n")
		case *routers.FRR:
			family := map[bool]string{false: "ipv4", true: "ipv6"}[p.Addr().Is6()]
			text, err = s.Vtysh(ctx, fmt.Sprintf("show bgp %s unicast %s", family, p))
		}
		if err != nil {
			return err
		}
		if !regexp.MustCompile(fmt.Sprintf(`BGP.med: %d\b|metric %d\b`, want, want)).MatchString(text) {
			return fmt.Errorf("%s: no MED %d in %s", p, want, text)
		}
	}
	return nil
}

// rogueConf speaks as the sessions are secured here.
func rogueConf(a routers.Announcer) string {
	return strings.Replace(a.Bird(), "direct;", "direct; ttl security on;", 1)
}

func established(ctx context.Context, s speaker, want int) error {
	n, err := s.Established(ctx)
	if err == nil && n != want {
		err = fmt.Errorf("%d sessions", n)
	}
	return err
}

// tables waits until the BGP table of s is as f has it.
func tables(t *testing.T, ctx context.Context, s speaker, f func([]routers.BGPRoute) error) {
	t.Helper()
	require.NoError(t, core.Until(ctx, func() error {
		rs, err := s.Routes(ctx)
		if err != nil {
			return err
		}
		return f(rs)
	}))
}

// asAnnounced reports where the best routes are not what the node announces.
func asAnnounced(rs []routers.BGPRoute, node *core.Host, want []netip.Prefix, communities []fabric.Community, pref uint32) error {
	if got := prefixesOf(rs); !slices.Equal(got, sorted(want)) {
		return fmt.Errorf("it has %v", got)
	}
	for _, r := range rs {
		hop := node.Addr4()
		if r.Prefix.Addr().Is6() {
			hop = node.Addr6()
		}
		if r.NextHop != hop || r.Origin != "IGP" || r.LocalPref != pref || !sameCommunities(r.Communities, communities) {
			return errors.New(fmt.Sprint(r))
		}
	}
	return nil
}

func sameCommunities(have, want []fabric.Community) bool {
	return len(have) == len(want) && !slices.ContainsFunc(want, func(c fabric.Community) bool { return !slices.Contains(have, c) })
}

func prefixesOf(rs []routers.BGPRoute) []netip.Prefix {
	var ps []netip.Prefix
	for _, r := range rs {
		if r.Best {
			ps = append(ps, r.Prefix)
		}
	}
	return sorted(ps)
}

func sorted(lists ...[]netip.Prefix) []netip.Prefix {
	return slices.SortedFunc(slices.Values(slices.Concat(lists...)), netip.Prefix.Compare)
}

// TestRouterEastWest: nodes learn of each other's guests into their kernels, and
// a guest that is here wins, announced or not.
func TestRouterEastWest(t *testing.T) {
	if testing.Short() {
		t.Skip("makes laboratories")
	}
	labtest.Need(t, "bird", "frr")
	for _, tc := range []struct{ rr, node render.Format }{{render.FRR, render.BIRD}, {render.BIRD, render.FRR}} {
		t.Run(fmt.Sprintf("reflector %s, nodes %s", tc.rr, tc.node), func(t *testing.T) {
			c := eastWest(labCluster())
			c.Reflectors = c.Reflectors[:1]
			lab, top := labtest.Build(t, c)
			node1, node2 := top.Nodes["node1"], top.Nodes["node2"]
			port(t, lab, node1, good...)
			announce(t, node1, fabric.Normal, good...)
			port(t, lab, node2)
			start(t, soon(t), c, tc.rr, top.Reflectors["rr1"])
			start(t, soon(t), c, tc.node, node1)
			start(t, soon(t), c, tc.node, node2)
			inKernel(t, soon(t), node2, node1, true, good...)

			here := good[:2]
			link, err := node2.Link("web_net0")
			require.NoError(t, err)
			for _, p := range here {
				require.NoError(t, node2.Netlink().RouteAdd(carrier(link, p, fabric.PortMetric)))
			}
			for _, p := range here {
				require.NoError(t, core.Until(soon(t), func() error { return leadsTo(soon(t), node2, p, "web_net0") }))
			}
			announce(t, node2, fabric.Fresh, here...)
			for _, p := range here {
				// node1 hears of it, and keeps its own.
				require.NoError(t, leadsTo(soon(t), node1, p, "web_net0"))
			}
			inKernel(t, soon(t), node2, node1, true, good[2:]...)
		})
	}
}

// leadsTo reports whether the host's kernel sends what is for p elsewhere.
func leadsTo(ctx context.Context, h *core.Host, p netip.Prefix, link string) error {
	out, err := h.Run(ctx, "ip", "route", "get", p.Addr().String())
	if err == nil && !strings.Contains(out, "dev "+link+" ") {
		err = fmt.Errorf("%s: %s: %s", h.Name(), p, out)
	}
	return err
}

// TestRouterNamed: a node whose session is there by its range gets a name. In
// BIRD the session goes on until it is ended; FRR refuses the name, and the
// session goes on too.
func TestRouterNamed(t *testing.T) {
	if testing.Short() {
		t.Skip("makes laboratories")
	}
	labtest.Need(t, "bird", "frr")
	for _, f := range []render.Format{render.BIRD, render.FRR} {
		t.Run(string(f), func(t *testing.T) {
			c := labCluster()
			_, top := labtest.Build(t, c)
			before := c
			before.Nodes = c.Nodes[:1]
			rr := start(t, soon(t), before, f, top.Reflectors["rr1"])
			say := routers.Announcer{
				BGP: routers.BGP{Password: c.Reflectors[0].Password}, RouterID: top.Nodes["node2"].Addr4(),
				Reflectors: []netip.Addr{c.Reflectors[0].Address}, Communities: c.Communities, Routes: last,
			}
			_, err := routers.StartBird(soon(t), top.Nodes["node2"], rogueConf(say))
			require.NoError(t, err)
			require.NoError(t, core.Until(soon(t), func() error { return established(soon(t), rr, 1) }))
			text, err := render.Router(c, f, "rr1")
			require.NoError(t, err)
			switch rr := rr.(type) {
			case *routers.Bird:
				require.NoError(t, rr.Configure(soon(t), text))
				require.NoError(t, established(soon(t), rr, 1))
				_, err := rr.Query(soon(t), "disable dynamic0_1")
				require.NoError(t, err)
				require.NoError(t, core.Until(soon(t), func() error {
					lines, err := rr.Query(soon(t), "show protocols node_node2")
					if text := strings.Join(lines, " "); err == nil && !strings.Contains(text, "Established") {
						err = errors.New(text)
					}
					return err
				}))
			case *routers.FRR:
				assert.ErrorContains(t, rr.Configure(soon(t), text), "Operation not allowed on a dynamic neighbor")
			}
			require.NoError(t, established(soon(t), rr, 1))
		})
	}
}
