package reflector

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/resend"
)

func withdrawal(t *testing.T, p netip.Prefix) []*apiutil.Path {
	t.Helper()
	nlri, err := bgp.NewIPAddrPrefix(p)
	require.NoError(t, err)
	return []*apiutil.Path{{Nlri: nlri, Withdrawal: true}}
}

// TestWithdrawnWhileSessionOpens: what is withdrawn while a session is being
// established is withdrawn once more when it is, and what an event reports later at once.
func TestWithdrawnWhileSessionOpens(t *testing.T) {
	t.Parallel()
	peer := netip.MustParseAddr("127.0.0.3")
	for _, p := range []netip.Prefix{netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128")} {
		synctest.Test(t, func(t *testing.T) {
			o := newOpenings()
			assert.Empty(t, o.withdrawn(withdrawal(t, p), time.Now()), "no session is being established")
			o.began(peer, time.Now())
			time.Sleep(time.Millisecond)
			meanwhile := time.Now()
			assert.Empty(t, o.withdrawn(withdrawal(t, p), meanwhile))
			time.Sleep(time.Millisecond)
			assert.Equal(t, []netip.Prefix{p}, o.established(peer))

			assert.Equal(t, []netip.Prefix{p}, o.withdrawn(withdrawal(t, p), meanwhile), "the event comes late")
			time.Sleep(time.Millisecond)
			assert.Empty(t, o.withdrawn(withdrawal(t, p), time.Now()), "the session has it")
			time.Sleep(3 * resend.Wait)
			assert.Empty(t, o.withdrawn(nil, time.Now()))
			assert.Empty(t, o.byPeer, "no session is being established any more")
		})
	}
}
