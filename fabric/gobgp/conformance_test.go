package gobgp_test

import (
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp"
	"github.com/vmfabric/vmfabric/testenv/conformance"
)

// TestConformance runs the speaker's laws on GoBGP, with a reflector and a
// peer behind it that hears.
func TestConformance(t *testing.T) {
	conformance.Speaker(t, func(t *testing.T) (fabric.Speaker, conformance.SpeakerControls) {
		c := cluster()
		c.Reflectors = slices.Clone(c.Reflectors)
		c.Reflectors[0].Port = port + 1
		startReflector(t, c)
		// All servers of a test begin before the first session opens, which a router
		// does at once: GoBGP has settings that are common to all of a process.
		node := c.Nodes[0]
		s, err := gobgp.New(gobgp.Config{Cluster: c, Node: node})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, s.Close()) })
		heard := &table{routes: map[netip.Prefix]gobgp.Learned{}}
		peer, err := gobgp.NewRouter(gobgp.RouterConfig{
			ASN: c.ASN, Address: netip.MustParseAddr("127.0.0.3"), Reflectors: c.Reflectors, Learned: heard.learn,
		}, slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, peer.Close()) })
		require.NoError(t, s.Open(t.Context()))
		return s, conformance.SpeakerControls{
			Heard: func(*testing.T) []netip.Prefix {
				heard.mu.Lock()
				defer heard.mu.Unlock()
				return slices.Collect(maps.Keys(heard.routes))
			},
			Preferred: func(_ *testing.T, p netip.Prefix) uint32 {
				heard.mu.Lock()
				defer heard.mu.Unlock()
				return heard.routes[p].LocalPref
			},
		}
	})
}
