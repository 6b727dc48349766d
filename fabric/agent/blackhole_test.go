package agent_test

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// preferenceOf gives the preference of each announced prefix.
func (n *node) preferenceOf() map[string]fabric.Preference {
	n.t.Helper()
	routes, err := n.speaker.Actual(n.t.Context())
	require.NoError(n.t, err)
	all := map[string]fabric.Preference{}
	for _, r := range routes {
		all[r.Prefix.String()] = r.Preference
	}
	return all
}

// TestBlackhole: it is announced and discarded, over a restart, and ends by itself.
func TestBlackhole(t *testing.T) {
	for _, text := range []string{"203.0.113.10", "2001:db8:100:1::10"} {
		t.Run(text, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := fresh(t)
				a := netip.MustParseAddr(text)
				p := fabric.HostPrefix(a)
				n.apply(web(), fabric.Live)
				b, err := n.Blackhole(t.Context(), a, 10*time.Minute)
				require.NoError(t, err)
				assert.Equal(t, "web", b.VM)
				assert.True(t, b.Until.Equal(time.Now().Add(10*time.Minute)))
				is := n.preferenceOf()
				for prefix, pref := range is {
					assert.Equal(t, prefix == p.String(), pref == fabric.Blackholed, prefix)
				}
				assert.Contains(t, is, p.String())
				assert.Equal(t, []netip.Prefix{p}, n.dataplane.Discarded())

				explained := func() bool {
					steps, err := n.Explain(t.Context(), a)
					require.NoError(t, err)
					return slices.ContainsFunc(steps, func(s fabric.Step) bool { return s.Step == "delivery" && !s.Good })
				}
				assert.True(t, explained())

				n = n.again()
				stop := n.begin()
				moment()
				assert.Equal(t, fabric.Blackholed, n.preferenceOf()[p.String()])
				time.Sleep(9 * time.Minute)
				moment()
				assert.Equal(t, fabric.Blackholed, n.preferenceOf()[p.String()])
				time.Sleep(2 * time.Minute)
				moment()
				assert.Equal(t, fabric.Normal, n.preferenceOf()[p.String()])
				assert.Empty(t, n.dataplane.Discarded())
				assert.False(t, explained())
				all, err := n.Blackholes(t.Context())
				require.NoError(t, err)
				assert.Empty(t, all)
				stop()
			})
		})
	}
}

func TestBlackholeIsLifted(t *testing.T) {
	n := fresh(t)
	a := netip.MustParseAddr("203.0.113.10")
	n.apply(web(), fabric.Live)
	for range 2 { // the second sets the time anew
		_, err := n.Blackhole(t.Context(), a, time.Hour)
		require.NoError(t, err)
	}
	all, err := n.Blackholes(t.Context())
	require.NoError(t, err)
	assert.Len(t, all, 1)
	for range 2 {
		require.NoError(t, n.LiftBlackhole(t.Context(), a))
		assert.Equal(t, fabric.Normal, n.preferenceOf()["203.0.113.10/32"])
		assert.Empty(t, n.dataplane.Discarded())
	}
}

// TestBlackholeIsRefused: only for an address of a guest's own, and for a bounded time.
func TestBlackholeIsRefused(t *testing.T) {
	n := fresh(t)
	n.apply(web(), fabric.Live)
	for text, last := range map[string]time.Duration{
		"203.0.113.99": time.Minute, // nobody's
		"198.51.100.1": time.Minute, // of a prefix behind a guest
		"10.10.0.1":    time.Minute,
		"203.0.113.10": 0, "203.0.113.11": fabric.MaxBlackhole + 1,
	} {
		_, err := n.Blackhole(t.Context(), netip.MustParseAddr(text), last)
		require.ErrorIs(t, err, fabric.ErrRefused, text)
	}
	require.NoError(t, n.LiftBlackhole(t.Context(), netip.MustParseAddr("203.0.113.99")))
	n.store.Fail("store blackholes", errBoom)
	_, err := n.Blackhole(t.Context(), netip.MustParseAddr("203.0.113.10"), time.Minute)
	require.ErrorIs(t, err, errBoom)
	assert.Equal(t, fabric.Normal, n.preferenceOf()["203.0.113.10/32"])
	assert.Empty(t, n.dataplane.Discarded())
}
