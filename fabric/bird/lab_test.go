package bird_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/bird"
	"github.com/vmfabric/vmfabric/testenv"
	"github.com/vmfabric/vmfabric/testenv/conformance"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)



// speaker makes a speaker on the lab's node.
func speaker(t *testing.T, lab *labtest.Announcing, socket string) *bird.Speaker {
	t.Helper()
	var s *bird.Speaker
	require.NoError(t, lab.Node.Do(func() (err error) {
		s, err = bird.New(bird.Config{Cluster: lab.Cluster, Node: lab.Cluster.Nodes[0], Socket: socket})
		return err
	}))
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func startBird(t *testing.T, lab *labtest.Announcing) *testenv.Bird {
	t.Helper()
	b, err := lab.Node.StartBird(t.Context(), lab.BirdConf())
	require.NoError(t, err)
	return b
}

// TestConformance runs the speaker's laws on a BIRD that learns from the
// kernel, with a reflector that hears.
func TestConformance(t *testing.T) {
	labtest.Need(t, "bird")
	conformance.Speaker(t, func(t *testing.T) (fabric.Speaker, conformance.SpeakerControls) {
		lab := labtest.NewAnnouncing(t)
		b := startBird(t, lab)
		return speaker(t, lab, b.Socket()), lab.Controls(func(t *testing.T) fabric.Speaker { return speaker(t, lab, b.Socket()) })
	})
}
