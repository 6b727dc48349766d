package nodes_test

import (
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// TestGreet: a greeting says whether an agent answers and agrees, and what its clock is,
// and leaves nothing for Diagnose.
func TestGreet(t *testing.T) {
	c := core.SmallCluster(2)
	c.Key = "the key of the cluster"
	two := end(c, c.Nodes[1])
	_, err := two.Greet(t.Context(), "node1")
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	assert.ErrorContains(t, err, "node node1 (10.10.0.21 and fd00:10:10::21, port 7147): no agent listens there")
	one, h, stop := listening(t, c)
	g, err := two.Greet(t.Context(), "node1")
	require.NoError(t, err)
	assert.NotZero(t, g.Within)
	assert.Less(t, g.Ahead.Abs(), g.Within+time.Second, "both have one clock")
	assert.Empty(t, h.callers(), "a greeting is no question")
	other := c
	other.Key = "another key of the cluster"
	_, err = end(other, c.Nodes[1]).Greet(t.Context(), "node1")
	assert.ErrorContains(t, err, "node node1: the cluster's keys are not the same on both nodes; ")
	_, err = two.Greet(t.Context(), "node9")
	assert.Error(t, err)
	stop()
	assert.Empty(t, two.Diagnose(t.Context()))
	assert.Empty(t, one.Diagnose(t.Context()))
}
