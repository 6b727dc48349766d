package core

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
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

func TestBothFamilies(t *testing.T) {
	t.Parallel()
	four, six := Underlay4(221), Underlay6(221)
	foreign := netip.MustParseAddr("192.0.2.77")
	for _, tc := range []struct{ in, want []netip.Addr }{
		{[]netip.Addr{four}, []netip.Addr{four, six}},
		{[]netip.Addr{six}, []netip.Addr{six, four}},
		{[]netip.Addr{four, {}}, []netip.Addr{four, six}},
		{[]netip.Addr{four, Underlay6(3)}, []netip.Addr{four, Underlay6(3)}},
		{[]netip.Addr{foreign}, []netip.Addr{foreign}},
		{nil, nil},
	} {
		assert.Equal(t, tc.want, both(tc.in...))
	}
}

func TestRunID(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"": `^lab-[0-9a-z]{5}$`, "TestX/with a name": `^testxwithaname-`, "###": `^lab-`, strings.Repeat("x", 99): `^x{16}-`,
	} {
		assert.Regexp(t, want, runID(name))
	}
	assert.NotEqual(t, runID("a"), runID("a"))
}
