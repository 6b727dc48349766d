package routers_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

func TestFRRReflectsToFRR(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "bird", "frr")
	for _, tc := range []struct {
		name string
		bgp  routers.BGP
	}{
		{name: "plain"},
		{name: "MD5, BFD, long-lived", bgp: routers.BGP{Password: "s3cret", BFD: true, LongLived: 60e9}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, top := labtest.Build(t, core.SmallCluster(1))
			rr1, rr2, node := top.Reflectors["rr1"], top.Reflectors["rr2"], top.Nodes["node1"]
			cores := []netip.Addr{top.Core.Addr4()}
			frr, err := routers.StartFRR(labtest.Soon(t), rr1, routers.Reflector{BGP: tc.bgp, RouterID: rr1.Addr4(), Cores: cores}.FRR())
			require.NoError(t, err)
			_, err = routers.StartBird(labtest.Soon(t), rr2, routers.Reflector{BGP: tc.bgp, RouterID: rr2.Addr4(), Cores: cores}.Bird())
			require.NoError(t, err)
			rrs := []netip.Addr{rr1.Addr4(), rr2.Addr4()}
			gateway, err := routers.StartFRR(labtest.Soon(t), top.Core, routers.CoreGateway{BGP: tc.bgp, Reflectors: rrs}.FRR())
			require.NoError(t, err)
			_, err = routers.StartBird(labtest.Soon(t), node, routers.Announcer{
				BGP: tc.bgp, RouterID: node.Addr4(), Reflectors: rrs, Routes: announced, Communities: communities,
			}.Bird())
			require.NoError(t, err)
			routeVia(t, top.Core, node, 186)

			require.NoError(t, core.Until(labtest.Soon(t), func() error {
				rs, err := gateway.Routes(labtest.Soon(t))
				if err != nil || len(rs) != 4 {
					return fmt.Errorf("core has %d routes (%v)", len(rs), err)
				}
				return nil
			}), "a path from each reflector")
			rs, err := frr.Routes(labtest.Soon(t))
			require.NoError(t, err)
			require.Len(t, rs, 2)
			for i, nextHop := range []netip.Addr{node.Addr4(), node.Addr6()} {
				assert.Equal(t, routers.BGPRoute{
					Prefix: announced[i], From: node.Addr4(), NextHop: nextHop, Origin: "IGP", LocalPref: 100, Communities: communities, Best: true,
				}, rs[i])
			}
			n, err := frr.Established(labtest.Soon(t))
			require.NoError(t, err)
			assert.Equal(t, 2, n, "node and core")
		})
	}
}

func TestFRRRefusesItsConfiguration(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "frr")
	h, err := labtest.New(t).AddHost("h")
	require.NoError(t, err)
	_, err = routers.StartFRR(labtest.Soon(t), h, "router nonsense\n")
	assert.ErrorContains(t, err, "start frr on h: ")
	assert.ErrorContains(t, err, "nonsense")
}
