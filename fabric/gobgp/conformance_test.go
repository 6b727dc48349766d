package gobgp_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/gobgptest"
	"github.com/vmfabric/vmfabric/testenv/conformance"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestConformance runs the speaker's laws on GoBGP, with a reflector and a core
// gateway behind it.
func TestConformance(t *testing.T) {
	labtest.Long(t)
	conformance.Speaker(t, func(t *testing.T) (fabric.Speaker, conformance.SpeakerControls) {
		c := gobgptest.Cluster()
		c.Reflectors = slices.Clone(c.Reflectors)
		c.Reflectors[0].Port = gobgptest.Port + 1
		gobgptest.StartReflector(t, c)
		s, err := gobgp.New(gobgp.Config{Cluster: c, Node: c.Nodes[0]})
		require.NoError(t, err)
		core := gobgptest.Listen(t, c, "127.0.0.3")
		run(t, s)
		return s, conformance.SpeakerControls{
			Heard:     func(*testing.T) []netip.Prefix { return core.All() },
			Preferred: func(_ *testing.T, p netip.Prefix) uint32 { return core.Preference(p) },
		}
	})
}
