package reflector_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/gobgptest"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestNewestOfTwoNodesStays: guests go from one node to another again and again,
// and the two nodes change their routes at the same time. Whichever of their routes
// comes first meanwhile, a client is left with the one that is there.
func TestNewestOfTwoNodesStays(t *testing.T) {
	labtest.Long(t)
	c := eastWest(gobgptest.Port + 68)
	gobgptest.StartReflector(t, c)
	source, destination := startRogue(t, c, "127.0.0.2"), startRogue(t, c, "127.0.0.4")
	client := dial(t, c, netip.MustParseAddr("127.0.0.9"), func() {}, bgp.RF_IPv4_UC, bgp.RF_IPv6_UC)
	defer client.conn.Close()
	var prefixes []netip.Prefix
	for i := range 40 {
		prefixes = append(prefixes, netip.MustParsePrefix(fmt.Sprintf("203.0.113.%d/32", 10+i)), netip.MustParsePrefix(fmt.Sprintf("2001:db8:100::%d/128", 10+i)))
	}
	send := func(r *rogue, pref uint32) error {
		var paths []*apiutil.Path
		for _, p := range prefixes {
			paths = append(paths, r.preferred(p, max(pref, 10)))
			if pref == 0 {
				paths[len(paths)-1] = withdrawal(paths[len(paths)-1])
			}
		}
		if pref == 0 {
			return r.bgp.DeletePath(apiutil.DeletePathRequest{Paths: paths})
		}
		_, err := r.bgp.AddPath(apiutil.AddPathRequest{Paths: paths})
		return err
	}
	all := func(pref uint32) func() bool {
		return func() bool {
			for _, p := range prefixes {
				if client.pref(p) != pref {
					return false
				}
			}
			return true
		}
	}
	rounds := 12
	if raceOn {
		rounds = 4
	}
	for i := range rounds {
		require.NoError(t, send(source, 100))
		require.NoError(t, send(destination, 200))
		require.Eventually(t, all(200), gobgptest.Bound, time.Millisecond, "the destination comes first, round %d", i)
		done := make(chan error, 1)
		go func() { done <- send(destination, 50) }()
		time.Sleep(time.Duration(i%10) * 200 * time.Microsecond)
		require.NoError(t, send(source, 0))
		require.NoError(t, <-done)
		require.Eventually(t, all(50), gobgptest.Bound, time.Millisecond, "what the destination sent last, round %d", i)
	}
}
