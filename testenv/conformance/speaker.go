package conformance

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// SpeakerControls has the functions that the speaker's suite needs beside the
// speaker.
type SpeakerControls struct {
	// Prepare sets up what the speaker needs before it can announce prefixes, such
	// as the routes to their ports. Nil if it needs nothing.
	Prepare func(t *testing.T, ps []netip.Prefix)
	// Again returns a second speaker over the same routes, as after a restart. Nil
	// if the routes do not outlive the speaker.
	Again func(t *testing.T) fabric.Speaker
	// Lose takes a route away behind the speaker's back.
	Lose func(t *testing.T, p netip.Prefix)
	// Heard returns the prefixes that a peer has from the speaker; it may lag. Nil
	// without a peer.
	Heard func(t *testing.T) []netip.Prefix
	// Preferred returns the LOCAL_PREF with which a peer has a prefix, or 0; it may
	// lag. Nil without a peer.
	Preferred func(t *testing.T, p netip.Prefix) uint32
}

// Speaker runs the laws of [fabric.Speaker] as subtests. Each call of start makes a
// speaker without routes, which lives until its t ends.
func Speaker(t *testing.T, start func(t *testing.T) (fabric.Speaker, SpeakerControls)) {
	for _, law := range []struct {
		name string
		hold func(*testing.T, fabric.Speaker, SpeakerControls)
	}{
		{"Put is idempotent", speakerIdempotent},
		{"Remove of what is absent succeeds", speakerRemoveAbsent},
		{"a second instance adopts", speakerAgain},
		{"outside interference is seen and repaired", speakerRepair},
		{"a route changes its preference", speakerPreference},
		{"what was sent is told", speakerAdvertisements},
		{"different routes at the same time", speakerConcurrent},
		{"many at once", speakerBulk},
		{"any state is reached from any other", speakerWalk},
	} {
		t.Run(law.name, func(t *testing.T) {
			s, c := start(t)
			requireRoutes(t, s, c)
			law.hold(t, s, c)
		})
	}
}

// prepare calls Prepare, if there is one.
func (c SpeakerControls) prepare(t *testing.T, ps []netip.Prefix) {
	t.Helper()
	if c.Prepare != nil {
		c.Prepare(t, ps)
	}
}

func prefixes(ps ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(ps))
	for i, p := range ps {
		out[i] = netip.MustParsePrefix(p)
	}
	return out
}

func routes(ps []netip.Prefix) []fabric.Route {
	out := make([]fabric.Route, len(ps))
	for i, p := range ps {
		out[i] = fabric.Route{Prefix: p}
	}
	return out
}

// requireRoutes checks that the speaker announces exactly these prefixes, each
// once, and waits until a peer has them.
func requireRoutes(t *testing.T, s fabric.Speaker, c SpeakerControls, want ...netip.Prefix) {
	t.Helper()
	got, err := s.Actual(t.Context())
	require.NoError(t, err)
	require.ElementsMatch(t, routes(want), got)
	if c.Heard == nil {
		return
	}
	var heard []netip.Prefix
	eventually(t, fmt.Sprint("the peer hears ", want), func() bool {
		heard = slices.SortedFunc(slices.Values(c.Heard(t)), netip.Prefix.Compare)
		return slices.Equal(heard, slices.SortedFunc(slices.Values(want), netip.Prefix.Compare))
	})
}

var both = prefixes("203.0.113.10/32", "2001:db8:100::10/128")

func speakerIdempotent(t *testing.T, s fabric.Speaker, c SpeakerControls) {
	c.prepare(t, both)
	require.NoError(t, s.Put(t.Context()))
	for range 3 {
		require.NoError(t, s.Put(t.Context(), routes(both)...))
		requireRoutes(t, s, c, both...)
	}
	twice := routes(slices.Concat(both, both))
	require.NoError(t, s.Put(t.Context(), twice...))
	requireRoutes(t, s, c, both...)
	rest(t, s.Changed(), func() { require.NoError(t, s.Put(t.Context(), twice...)) })
	requireRoutes(t, s, c, both...)
}

func speakerRemoveAbsent(t *testing.T, s fabric.Speaker, c SpeakerControls) {
	c.prepare(t, both)
	require.NoError(t, s.Remove(t.Context()))
	require.NoError(t, s.Remove(t.Context(), both...))
	require.NoError(t, s.Put(t.Context(), routes(both)...))
	others := prefixes("203.0.113.11/32", "2001:db8:100::11/128")
	require.NoError(t, s.Remove(t.Context(), slices.Concat(others, both[:1])...), "absent ones among them")
	requireRoutes(t, s, c, both[1])
	require.NoError(t, s.Remove(t.Context(), both...))
	require.NoError(t, s.Remove(t.Context(), both...), "once more")
	requireRoutes(t, s, c)
}

func speakerAgain(t *testing.T, s fabric.Speaker, c SpeakerControls) {
	c.prepare(t, both)
	need(t, c.Again != nil, "Again")
	require.NoError(t, s.Put(t.Context(), routes(both)...))
	second := c.Again(t)
	requireRoutes(t, second, c, both...)
	require.NoError(t, second.Remove(t.Context(), both[0]), "what this instance did not put")
	requireRoutes(t, second, c, both[1])
}

func speakerRepair(t *testing.T, s fabric.Speaker, c SpeakerControls) {
	c.prepare(t, both)
	need(t, c.Lose != nil, "Lose")
	require.NoError(t, s.Put(t.Context(), routes(both)...))
	for _, p := range both {
		rest(t, s.Changed(), func() {})
		c.Lose(t, p)
		signalled(t, s.Changed(), "the loss of "+p.String())
		eventually(t, "Actual shows it", func() bool {
			got, err := s.Actual(t.Context())
			return err == nil && !slices.Contains(got, fabric.Route{Prefix: p})
		})
		require.NoError(t, s.Put(t.Context(), fabric.Route{Prefix: p}))
		requireRoutes(t, s, c, both...)
	}
}

func speakerPreference(t *testing.T, s fabric.Speaker, c SpeakerControls) {
	c.prepare(t, both)
	for _, pref := range []fabric.Preference{fabric.Standby, fabric.Fresh, fabric.Normal, fabric.Draining, fabric.Blackholed, fabric.Normal, fabric.Standby} {
		want := routes(both)
		for i := range want {
			want[i].Preference = pref
		}
		for range 2 {
			require.NoError(t, s.Put(t.Context(), want...))
			got, err := s.Actual(t.Context())
			require.NoError(t, err)
			require.ElementsMatch(t, want, got)
		}
		if c.Preferred == nil {
			continue
		}
		for _, p := range both {
			eventually(t, fmt.Sprintf("the peer hears %s as %v", p, pref), func() bool { return c.Preferred(t, p) == pref.LocalPref() })
		}
	}
	require.NoError(t, s.Remove(t.Context(), both...))
	requireRoutes(t, s, c)
}

func speakerConcurrent(t *testing.T, s fabric.Speaker, c SpeakerControls) {
	var wg sync.WaitGroup
	var want []netip.Prefix
	for i := range 8 {
		want = append(want, prefixes(fmt.Sprintf("203.0.113.%d/32", i), fmt.Sprintf("2001:db8:100::%d/128", i))...)
	}
	c.prepare(t, want)
	for mine := range slices.Chunk(want, 2) {
		wg.Go(func() {
			for range 10 {
				assert.NoError(t, s.Put(t.Context(), routes(mine)...))
				_, err := s.Actual(t.Context())
				assert.NoError(t, err)
				assert.NoError(t, s.Remove(t.Context(), mine...))
			}
			assert.NoError(t, s.Put(t.Context(), routes(mine)...))
		})
	}
	wg.Wait()
	requireRoutes(t, s, c, want...)
}

func speakerBulk(t *testing.T, s fabric.Speaker, c SpeakerControls) {
	var many []netip.Prefix
	for i := range 500 {
		many = append(many,
			netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), 32),
			netip.MustParsePrefix(fmt.Sprintf("2001:db8:100::%x/128", i)))
	}
	c.prepare(t, many)
	require.NoError(t, s.Put(t.Context(), routes(many)...))
	requireRoutes(t, s, c, many...)
	require.NoError(t, s.Remove(t.Context(), many[10:]...))
	requireRoutes(t, s, c, many[:10]...)
}

func speakerWalk(t *testing.T, s fabric.Speaker, c SpeakerControls) {
	states := map[string][]netip.Prefix{
		"nothing":    {},
		"v4":         both[:1],
		"v6":         both[1:],
		"both":       both,
		"another":    prefixes("203.0.113.11/32", "2001:db8:100::11/128"),
		"prefixes":   prefixes("198.51.100.0/29", "198.51.100.0/28", "2001:db8:200::/64", "2001:db8:200::/56"),
		"everything": slices.Concat(both, prefixes("198.51.100.0/29", "2001:db8:200::/64", "203.0.113.11/32")),
	}
	walk(t, states, func(t *testing.T, from, to []netip.Prefix) {
		gone := slices.DeleteFunc(slices.Clone(from), func(p netip.Prefix) bool { return slices.Contains(to, p) })
		require.NoError(t, s.Remove(t.Context(), gone...))
		c.prepare(t, to)
		require.NoError(t, s.Put(t.Context(), routes(to)...))
		requireRoutes(t, s, c, to...)
	})
}
