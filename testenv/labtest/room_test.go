package labtest

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLabsAtOnce(t *testing.T) {
	for _, c := range []struct {
		load       float64
		processors int
		labs       int
	}{{0, 2, 6}, {3.9, 2, 6}, {4, 2, 2}, {13, 2, 1}, {13, 16, 48}, {200, 16, 1}} {
		assert.Equal(t, c.labs, labsAtOnce(c.load, c.processors), "%+v", c)
	}
}

func TestPlaces(t *testing.T) {
	dir := t.TempDir()
	one, err := take(dir, 2)
	require.NoError(t, err)
	two, err := take(dir, 2)
	require.NoError(t, err)
	_, err = take(dir, 2)
	require.EqualError(t, err, "all of 2 places are taken")
	require.NoError(t, one.Close())
	three, err := take(dir, 1)
	require.NoError(t, err)
	require.NoError(t, two.Close())
	require.NoError(t, three.Close())
}
