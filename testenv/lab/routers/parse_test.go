package routers

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// As BIRD 2.0.12 writes it.
const birdRoutes = `Table master4:
203.0.113.10/32      unicast [client0_1 21:29:05.576] * (100) [i]
	via 10.10.0.21 on eth0
	Type: BGP univ
	BGP.origin: IGP
	BGP.as_path: 
	BGP.next_hop: 10.10.0.21
	BGP.local_pref: 150
	BGP.community: (64512,100) (64512,7)
	BGP.large_community: (64512, 1, 100)
                     unicast [rr1 21:28:19.754 from 10.10.0.12] (100) [i]
	via 10.10.0.22 on eth0
	Type: BGP univ
	BGP.origin: Incomplete
	BGP.next_hop: 10.10.0.22
	BGP.local_pref: 100
	BGP.originator_id: 10.10.0.21
	BGP.cluster_list: 10.10.0.100
Table master6:
2001:db8:100::10/128 unicast [rr1 21:28:19.754 from 10.10.0.12] * (100/-) [i]
	via fd00:10:10::21 on eth0
	BGP.next_hop: fd00:10:10::21 fe80::1809:f4ff:fee4:add4
`

func TestParseBirdRoutes(t *testing.T) {
	t.Parallel()
	got, err := parseBirdRoutes(strings.Split(birdRoutes, "\n"))
	require.NoError(t, err)
	addr := netip.MustParseAddr
	assert.Equal(t, []BGPRoute{
		{
			Prefix: netip.MustParsePrefix("203.0.113.10/32"), From: addr("10.10.0.21"), NextHop: addr("10.10.0.21"), Origin: "IGP", LocalPref: 150, Best: true,
			Communities: []fabric.Community{{A: 64512, B: 100}, {A: 64512, B: 7}, {Large: true, A: 64512, B: 1, C: 100}},
		},
		{Prefix: netip.MustParsePrefix("203.0.113.10/32"), From: addr("10.10.0.12"), NextHop: addr("10.10.0.22"), Origin: "Incomplete", LocalPref: 100},
		{Prefix: netip.MustParsePrefix("2001:db8:100::10/128"), From: addr("10.10.0.12"), NextHop: addr("fd00:10:10::21"), Best: true},
	}, got)
}

func FuzzBird(f *testing.F) {
	f.Add(birdRoutes)
	f.Fuzz(func(t *testing.T, in string) {
		routes, err := parseBirdRoutes(strings.Split(in, "\n"))
		if err == nil {
			for _, r := range routes {
				assert.LessOrEqual(t, len(r.Communities), len(in))
			}
		}
	})
}
