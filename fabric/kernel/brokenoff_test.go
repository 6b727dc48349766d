package kernel

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestTrialThatIsBrokenOff: whoever asked is told whether the machine had no time for a
// trial, or he went away himself.
func TestTrialThatIsBrokenOff(t *testing.T) {
	err := brokenOff(t.Context(), context.DeadlineExceeded)
	require.EqualError(t, err, "whether guests' packets pass this node was not tried: context deadline exceeded after 10s; try again when the machine is less busy")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	away, cancel := context.WithCancel(t.Context())
	cancel()
	assert.EqualError(t, brokenOff(away, context.Canceled), "whether guests' packets pass this node was not tried: context canceled")
}
