package gobgp

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/gobgptest"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/peering"
)

// TestAnnouncementsReachGoBGP: GoBGP gets the routes that were put before it runs,
// and every change after that.
func TestAnnouncementsReachGoBGP(t *testing.T) {
	t.Parallel()
	cfg := Config{Cluster: gobgptest.Cluster(), Node: gobgptest.Cluster().Nodes[0]}
	s, err := New(cfg)
	require.NoError(t, err)
	a := s.announcements
	var group peering.Group
	b, err := peering.Serve(t.Context(), slog.New(slog.DiscardHandler), &group, &api.Global{Asn: cfg.Cluster.ASN, RouterId: "127.0.0.2", ListenPort: -1})
	require.NoError(t, err)
	defer func() { require.NoError(t, peering.Stop(t.Context(), b)); group.Wait() }()
	table := func() map[netip.Prefix]uint32 {
		preferences := map[netip.Prefix]uint32{}
		for _, f := range []bgp.Family{bgp.RF_IPv4_UC, bgp.RF_IPv6_UC} {
			require.NoError(t, b.ListPath(apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_GLOBAL, Family: f}, func(nlri bgp.NLRI, paths []*apiutil.Path) {
				require.Len(t, paths, 1)
				for _, attr := range paths[0].Attrs {
					if pref, ok := attr.(*bgp.PathAttributeLocalPref); ok {
						preferences[nlri.(*bgp.IPAddrPrefix).Prefix] = pref.Value
					}
				}
			}))
		}
		return preferences
	}
	require.NoError(t, a.put([]fabric.Route{{Prefix: gobgptest.V4}}))
	resumed, err := a.begin(b)
	require.NoError(t, err)
	assert.True(t, resumed)
	assert.Equal(t, map[netip.Prefix]uint32{gobgptest.V4: 100}, table())
	require.NoError(t, a.put([]fabric.Route{{Prefix: gobgptest.V4, Preference: fabric.Fresh}, {Prefix: gobgptest.V6}}))
	assert.Equal(t, map[netip.Prefix]uint32{gobgptest.V4: 200, gobgptest.V6: 100}, table())
	assert.Equal(t, []fabric.Route{{Prefix: gobgptest.V4, Preference: fabric.Fresh}, {Prefix: gobgptest.V6}}, a.all())
	require.NoError(t, a.remove(t.Context(), []netip.Prefix{gobgptest.V4, netip.MustParsePrefix("203.0.113.11/32")}))
	require.NoError(t, a.remove(t.Context(), []netip.Prefix{gobgptest.V4}), "once more")
	assert.Equal(t, map[netip.Prefix]uint32{gobgptest.V6: 100}, table())
	assert.Contains(t, a.removals.Since(time.Time{}), gobgptest.V4)
}
