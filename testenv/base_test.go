package testenv

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestLastLabTakesTheFolderAlong: nothing is left of labs, also where one is made
// while another one ends.
func TestLastLabTakesTheFolderAlong(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 50 {
				l := &Lab{}
				if !assert.NoError(t, l.makeDir(t.Context(), "lab")) {
					return
				}
				assert.FileExists(t, filepath.Join(l.dir, recordFile))
				assert.NoError(t, l.record.Close())
				assert.NoError(t, clean(l.dir))
			}
		})
	}
	all.Wait()
	// Two that end together may each have seen the other.
	_, err := Sweep()
	require.NoError(t, err)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, left)
}

// TestFolderOfALabThatIsThere stays when another lab ends.
func TestFolderOfALabThatIsThere(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	one, other := &Lab{}, &Lab{}
	for _, l := range []*Lab{one, other} {
		require.NoError(t, l.makeDir(t.Context(), "lab"))
	}
	require.NoError(t, one.record.Close())
	require.NoError(t, clean(one.dir))
	assert.DirExists(t, other.dir)
	require.NoError(t, other.record.Close())
	require.NoError(t, clean(other.dir))
	assert.NoDirExists(t, baseDir())
}
