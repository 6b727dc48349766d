package daemonspeaker

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/routingd"
	"github.com/vmfabric/vmfabric/plugins"
)

// TestServeNeedsAPlace: without a place of the cluster nothing is opened, and the
// error has the way out.
func TestServeNeedsAPlace(t *testing.T) {
	config := clusterFile(t)
	for _, tc := range []struct {
		place plugins.Place
		says  string
	}{
		{plugins.Place{}, "write speaker: bird into the cluster file and restart the agent"},
		{plugins.Place{Config: config}, "write speaker: bird into the cluster file and restart the agent"},
		{plugins.Place{Config: config, Node: "node9"}, `node "node9" is not in cluster lab (it has node1); add it under nodes, or name another`},
		{plugins.Place{Config: config + ".gone", Node: "node1"}, config + ".gone"},
	} {
		err := serve(t.Context(), tc.place, fabric.SpeakerBIRD, func(context.Context, fabric.Cluster, fabric.Node, ...routingd.Option) (*routingd.Speaker, error) {
			require.Fail(t, "opened")
			return nil, nil
		})
		require.ErrorContains(t, err, tc.says)
	}
}
