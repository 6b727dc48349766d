package core_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestLabsOfOthers: whoever has the folder of the labs could have root kill and
// remove what he likes, by the records in it.
func TestLabsOfOthers(t *testing.T) {
	labtest.Need(t, "root")
	for name, make := range map[string]func(base string) error{
		"another user's": func(base string) error { return os.Chown(base, 4242, 4242) },
		"everybody's":    func(base string) error { return os.Chmod(base, 0o777) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("TMPDIR", dir)
			base := filepath.Join(dir, "vmfabric-laboratory")
			victim := filepath.Join(dir, "victim")
			require.NoError(t, os.Mkdir(victim, 0o755))
			require.NoError(t, os.MkdirAll(filepath.Join(base, "lab-aaaaa"), 0o755))
			record := "owner 1 1\nboot of-before\npids pid:[1]\ntree " + victim + "\n"
			require.NoError(t, os.WriteFile(filepath.Join(base, "lab-aaaaa", "record"), []byte(record), 0o644))
			require.NoError(t, make(base))
			_, err := core.New(t.Context(), core.Options{})
			require.ErrorContains(t, err, base+": it ")
			require.ErrorContains(t, err, "; remove it, or set TMPDIR to a folder of your own")
			_, err = core.Sweep()
			require.ErrorContains(t, err, base+": it ")
			assert.DirExists(t, victim)
		})
	}
}
