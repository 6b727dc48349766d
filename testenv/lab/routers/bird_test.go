package routers_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

var (
	announced   = []netip.Prefix{netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128")}
	communities = []fabric.Community{{A: 64512, B: 100}, {Large: true, A: 64512, B: 1, C: 100}}
)

// routeVia waits for the routes of both families in the kernel of core, and
// checks that they lead to node.
func routeVia(t *testing.T, gateway, node *core.Host, protocol int) {
	t.Helper()
	for _, p := range announced {
		via := node.Addr4()
		if p.Addr().Is6() {
			via = node.Addr6()
		}
		require.NoError(t, core.Until(labtest.Soon(t), func() error {
			r, ok, err := gateway.Route(p)
			switch {
			case err != nil:
				return err
			case !ok:
				return fmt.Errorf("%s has no route to %s", gateway.Name(), p)
			case r.Protocol != protocol || len(r.Vias()) != 1 || r.Vias()[0] != via:
				return fmt.Errorf("%s has %s", gateway.Name(), r)
			}
			return nil
		}))
	}
}

func TestBirdReflectsToBird(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "bird")
	for _, tc := range []struct {
		name string
		bgp  routers.BGP
		six  bool // the announcer speaks to the reflectors over IPv6
	}{
		{name: "plain"},
		{name: "MD5, BFD, long-lived", bgp: routers.BGP{Password: "s3cret", BFD: true, LongLived: 60e9}},
		{name: "IPv6 sessions", six: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, top := labtest.Build(t, core.SmallCluster(1))
			rr1, rr2, node := top.Reflectors["rr1"], top.Reflectors["rr2"], top.Nodes["node1"]
			var birds []*routers.Bird
			for _, rr := range []*core.Host{rr1, rr2} {
				conf := routers.Reflector{BGP: tc.bgp, RouterID: rr.Addr4(), Cores: []netip.Addr{top.Core.Addr4()}}
				b, err := routers.StartBird(labtest.Soon(t), rr, conf.Bird())
				require.NoError(t, err)
				birds = append(birds, b)
			}
			rrs := []netip.Addr{rr1.Addr4(), rr2.Addr4()}
			gateway, err := routers.StartBird(labtest.Soon(t), top.Core, routers.CoreGateway{BGP: tc.bgp, Reflectors: rrs}.Bird())
			require.NoError(t, err)
			from := node.Addr4()
			if tc.six {
				rrs, from = []netip.Addr{rr1.Addr6(), rr2.Addr6()}, node.Addr6()
			}
			_, err = routers.StartBird(labtest.Soon(t), node, routers.Announcer{
				BGP: tc.bgp, RouterID: node.Addr4(), Reflectors: rrs, Routes: announced, Communities: communities, LocalPref: 150,
			}.Bird())
			require.NoError(t, err)
			routeVia(t, top.Core, node, 12)

			var at []routers.BGPRoute
			require.NoError(t, core.Until(labtest.Soon(t), func() error {
				if at, err = birds[0].Routes(labtest.Soon(t)); err == nil && len(at) != 2 {
					err = errors.New("not both routes yet")
				}
				return err
			}))
			for i, r := range at {
				nextHop := node.Addr4()
				if i == 1 {
					nextHop = node.Addr6()
				}
				assert.Equal(t, routers.BGPRoute{
					Prefix: announced[i], From: from, NextHop: nextHop, Origin: "IGP", LocalPref: 150, Communities: communities, Best: true,
				}, r)
			}
			require.NoError(t, core.Until(labtest.Soon(t), func() error {
				if n, err := gateway.Established(labtest.Soon(t)); err != nil || n != 2 {
					return fmt.Errorf("core has %d sessions (%v)", n, err)
				}
				rs, err := gateway.Routes(labtest.Soon(t))
				if len(rs) != 4 {
					return fmt.Errorf("core has %d routes (%v)", len(rs), err)
				}
				return nil
			}), "a path from each reflector")
		})
	}
}

func TestBirdRefusesToStart(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "bird")
	h, err := labtest.New(t).AddHost("h")
	require.NoError(t, err)
	_, err = routers.StartBird(labtest.Soon(t), h, "protocol nonsense {}")
	assert.ErrorContains(t, err, "bird on h: it ended (exit status 1); its log ends:")
	assert.ErrorContains(t, err, "syntax error")
}

func TestBirdTakesAnotherConfiguration(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "bird")
	h, err := labtest.New(t).AddHost("h")
	require.NoError(t, err)
	conf := routers.CoreGateway{Reflectors: []netip.Addr{core.Underlay4(11)}}
	b, err := routers.StartBird(labtest.Soon(t), h, conf.Bird())
	require.NoError(t, err)
	conf.Reflectors = append(conf.Reflectors, core.Underlay6(12))
	require.NoError(t, b.Configure(labtest.Soon(t), conf.Bird()))
	lines, err := b.Query(labtest.Soon(t), "show protocols rr1")
	require.NoError(t, err)
	assert.Contains(t, lines[len(lines)-1], "rr1")
	_, err = b.Query(labtest.Soon(t), "show nonsense")
	assert.ErrorContains(t, err, "bird on h: show nonsense: syntax error")
	require.NoError(t, b.Stop())
}
