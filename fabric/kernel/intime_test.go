package kernel

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestTrialInTime: whoever asked is told whether a trial could not be made, the machine had
// no time for it, or he went away himself.
func TestTrialInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		waits := func(ctx context.Context) (findings, error) {
			<-ctx.Done()
			return findings{}, ctx.Err()
		}
		_, err := inTime(t.Context(), waits)
		require.EqualError(t, err, "whether guests' packets pass this node was not tried: context deadline exceeded after 10s; try again when the machine is less busy")
		assert.True(t, brokenOff(err))
		away, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = inTime(away, waits)
		require.EqualError(t, err, "whether guests' packets pass this node was not tried: context canceled")
		assert.True(t, brokenOff(err))
		late := func(ctx context.Context) (findings, error) {
			<-ctx.Done()
			return findings{}, errors.New("no nf_tables")
		}
		_, err = inTime(t.Context(), late)
		require.EqualError(t, err, "whether guests' packets pass this node could not be tried: no nf_tables")
		assert.False(t, brokenOff(err))
	})
}
