package disk_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric/disk"
)

// TestLock: a state directory has one agent at a time, and is fresh also if it was locked
// before it was opened.
func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	first, err := disk.Lock(dir)
	require.NoError(t, err)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, entries, "nothing is written")
	_, err = disk.Lock(dir)
	require.ErrorContains(t, err, dir+": another agent runs with it; stop that one, or give this one another directory")
	store, err := disk.Open(dir)
	require.NoError(t, err)
	assert.True(t, store.Fresh())
	require.NoError(t, store.Close())
	require.NoError(t, first.Close())
	again, err := disk.Lock(dir)
	require.NoError(t, err)
	require.NoError(t, again.Close())
}
