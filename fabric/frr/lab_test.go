package frr_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/frr"
	"github.com/vmfabric/vmfabric/testenv"
	"github.com/vmfabric/vmfabric/testenv/conformance"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)



// speaker makes a speaker on the lab's node.
func speaker(t *testing.T, lab *labtest.Announcing, client frr.Client) *frr.Speaker {
	t.Helper()
	var s *frr.Speaker
	require.NoError(t, lab.Node.Do(func() (err error) {
		s, err = frr.New(frr.Config{Cluster: lab.Cluster, Node: lab.Cluster.Nodes[0], Client: client})
		return err
	}))
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func startFRR(t *testing.T, lab *labtest.Announcing) *testenv.FRR {
	t.Helper()
	f, err := lab.Node.StartFRR(t.Context(), lab.FRRConf())
	require.NoError(t, err)
	return f
}

// TestConformance runs the speaker's laws on an FRR that takes routes from the
// kernel, with a reflector that hears.
func TestConformance(t *testing.T) {
	labtest.Need(t, "bird", "frr")
	conformance.Speaker(t, func(t *testing.T) (fabric.Speaker, conformance.SpeakerControls) {
		lab := labtest.NewAnnouncing(t)
		f := startFRR(t, lab)
		return speaker(t, lab, f.Client()), lab.Controls(func(t *testing.T) fabric.Speaker { return speaker(t, lab, f.Client()) })
	})
}
