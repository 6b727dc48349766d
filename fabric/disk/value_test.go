package disk

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

type kept struct {
	Name  string
	Count int
}

func openValue(t *testing.T, dir string, opts ...Option) *Value {
	t.Helper()
	v, err := OpenValue(dir, "etcd", "seen", opts...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = v.Close() })
	return v
}

func holdsValue(t *testing.T, v *Value, want kept) {
	t.Helper()
	var is kept
	found, err := v.Get(&is)
	require.NoError(t, err)
	assert.Equal(t, want != kept{}, found)
	assert.Equal(t, want, is)
}

// TestValueIsKept: from the end of the process at once, and from that of the machine but
// for its last change.
func TestValueIsKept(t *testing.T) {
	dir := t.TempDir()
	v := openValue(t, dir, WithSyncDelay(time.Hour))
	holdsValue(t, v, kept{})
	require.NoError(t, v.Put(kept{"<a>", 1}))
	require.NoError(t, v.Close())
	v = openValue(t, dir, WithSyncDelay(time.Hour))
	require.NoError(t, v.Put(kept{"b", 2}))
	require.NoError(t, v.Put(kept{"c", 3}))
	holdsValue(t, v, kept{"c", 3})

	for name, tt := range map[string]struct {
		change string // what becomes of the change that is not yet safe
		want   kept
	}{
		"killed":               {"", kept{"c", 3}},
		"power cut, truncated": {"{", kept{"<a>", 1}},
	} {
		there := t.TempDir()
		require.NoError(t, os.CopyFS(there, os.DirFS(dir)), name)
		if tt.change != "" {
			require.NoError(t, os.WriteFile(filepath.Join(there, "etcd", "seen.json.new"), []byte(tt.change), 0o600))
		}
		holdsValue(t, openValue(t, there), tt.want)
	}
}

// TestDamagedValue is an error, and not an absent one.
func TestDamagedValue(t *testing.T) {
	dir := t.TempDir()
	v := openValue(t, dir)
	require.NoError(t, v.Put(kept{"a", 1}))
	require.NoError(t, v.Close())
	file := filepath.Join(dir, "etcd", "seen.json")
	good, err := os.ReadFile(file)
	require.NoError(t, err)
	for damage, says := range map[string]string{
		"":   "damaged",
		"{}": "damaged (no format)",
		strings.Replace(string(good), `"Count": 1`, `"Count": 2`, 1):   "damaged (its checksum is",
		strings.Replace(string(good), `"format": 1`, `"format": 2`, 1): "written in format 2",
	} {
		require.NoError(t, os.WriteFile(file, []byte(damage), 0o600))
		v := openValue(t, dir)
		_, err := v.Get(&kept{})
		require.ErrorContains(t, err, says)
		require.ErrorContains(t, err, file)
		require.NoError(t, v.Close())
	}
}

// TestValuesOfOneFolder: two values that have their files in one folder take nothing of each
// other's: a file that is being written, a change that is not safe yet, what one tries.
func TestValuesOfOneFolder(t *testing.T) {
	dir := t.TempDir()
	open := func(name string) *Value {
		v, err := OpenValue(dir, "etcd", name, WithSyncDelay(time.Hour))
		require.NoError(t, err)
		t.Cleanup(func() { _ = v.Close() })
		return v
	}
	left := filepath.Join(dir, "etcd", tempStart+"7")
	require.NoError(t, os.MkdirAll(filepath.Dir(left), 0o700))
	require.NoError(t, os.WriteFile(left, make([]byte, 10), 0o600))
	seen := open("seen")
	assert.NoFileExists(t, left, "of an earlier version, which was killed")
	require.NoError(t, seen.Put(kept{"a", 1}))
	spare := seen.files.spare.next()
	require.NoError(t, os.WriteFile(spare, nil, 0o600))
	own := open("own")
	assert.FileExists(t, spare)
	assert.Empty(t, own.files.unsafe)
	holdsValue(t, own, kept{})

	puts := func(v *Value, want kept) {
		assert.NoError(t, v.Put(want))
		var is kept
		_, err := v.Get(&is)
		assert.NoError(t, err)
		assert.Equal(t, want, is)
	}
	var both sync.WaitGroup
	both.Go(func() {
		for n := range 500 {
			puts(seen, kept{"seen", n})
		}
	})
	both.Go(func() {
		for n := range 500 {
			own.files.mu.Lock()
			own.files.untried = true
			own.files.mu.Unlock()
			assert.Empty(t, own.Diagnose(t.Context()))
			puts(own, kept{"own", n})
		}
	})
	both.Wait()
}
