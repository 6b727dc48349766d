package gobgp_test

import (
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/gobgptest"
	"github.com/vmfabric/vmfabric/fabric/gobgp/router"
	"github.com/vmfabric/vmfabric/testenv/conformance"
)

// TestConformance runs the speaker's laws on GoBGP, with a reflector and a
// peer behind it that hears.
func TestConformance(t *testing.T) {
	conformance.Speaker(t, func(t *testing.T) (fabric.Speaker, conformance.SpeakerControls) {
		c := gobgptest.Cluster()
		c.Reflectors = slices.Clone(c.Reflectors)
		c.Reflectors[0].Port = gobgptest.Port + 1
		gobgptest.StartReflector(t, c)
		// All servers of a test begin before the first session opens, which a router
		// does at once: GoBGP has settings that are common to all of a process.
		node := c.Nodes[0]
		s, err := gobgp.New(gobgp.Config{Cluster: c, Node: node})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, s.Close()) })
		heard := &gobgptest.Table{}
		peer, err := router.New(router.Config{
			ASN: c.ASN, Address: netip.MustParseAddr("127.0.0.3"), Reflectors: c.Reflectors, Learned: heard.Learn,
		}, slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, peer.Close()) })
		require.NoError(t, s.Open(t.Context()))
		return s, conformance.SpeakerControls{
			Heard:     func(*testing.T) []netip.Prefix { return heard.All() },
			Preferred: func(_ *testing.T, p netip.Prefix) uint32 { return heard.Preference(p) },
		}
	})
}
