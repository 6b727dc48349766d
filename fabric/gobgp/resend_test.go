package gobgp_test

import (
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/gobgptest"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestRemovalWhileSessionOpens: what is withdrawn while a session is being
// established is withdrawn once it is.
func TestRemovalWhileSessionOpens(t *testing.T) {
	labtest.Long(t)
	for n, prefix := range []netip.Prefix{gobgptest.V4, gobgptest.V6} {
		t.Run(prefix.String(), func(t *testing.T) {
			c := gobgptest.ClusterAt(gobgptest.Port + 61 + uint16(n))
			var withdrawn atomic.Bool
			hold := make(chan struct{})
			play(t, c, script{asn: c.ASN, families: []bgp.Family{bgp.RF_IPv4_UC, bgp.RF_IPv6_UC}, hold: hold, update: func(u *bgp.BGPUpdate) {
				for _, w := range u.WithdrawnRoutes {
					withdrawn.Store(withdrawn.Load() || w.NLRI.String() == prefix.String())
				}
				for _, a := range u.PathAttributes {
					if m, ok := a.(*bgp.PathAttributeMpUnreachNLRI); ok && len(m.Value) > 0 {
						withdrawn.Store(withdrawn.Load() || m.Value[0].NLRI.String() == prefix.String())
					}
				}
			}})
			s := opened(t, c)
			gobgptest.Eventually(t, "the session is being established", func() bool { return sessionOf(t, s).State == "openconfirm" })
			require.NoError(t, s.Remove(t.Context(), prefix))
			close(hold)
			gobgptest.Eventually(t, "it is withdrawn", withdrawn.Load)
			sent, err := s.Advertisements(t.Context(), prefix)
			require.NoError(t, err)
			assert.False(t, sent[0].Sent)
		})
	}
}
