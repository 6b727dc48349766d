package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestMan: each command that help lists has a page, and each page is the same when it
// is made anew.
func TestMan(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	for _, dir := range []string{one, two} {
		_, errs, code := try("man", dir, "--date", "2026-02-03")
		require.Equal(t, exitGood, code, errs)
	}
	pages, err := filepath.Glob(filepath.Join(one, "man/man8/*.8"))
	require.NoError(t, err)
	var listed int
	for _, c := range newRoot().Commands() {
		if c.IsAvailableCommand() && c.Name() != "completion" {
			listed++
			assert.FileExists(t, filepath.Join(one, "man/man8/vmfabric-"+c.Name()+".8"))
		}
	}
	assert.Greater(t, len(pages), listed, "also those of commands below others")
	require.NoError(t, filepath.WalkDir(one, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		a, err := os.ReadFile(path)
		require.NoError(t, err)
		rel, err := filepath.Rel(one, path)
		require.NoError(t, err)
		b, err := os.ReadFile(filepath.Join(two, rel))
		require.NoError(t, err)
		assert.Equal(t, string(a), string(b), rel)
		return nil
	}))
	attach, err := os.ReadFile(filepath.Join(one, "man/man8/vmfabric-attach.8"))
	require.NoError(t, err)
	assert.Contains(t, string(attach), ".EX\ntap    a tap that a hypervisor such as QEMU opens (the default)\n", "tables stay tables")
	assert.NotContains(t, string(attach), "Auto generated")
	assert.NoFileExists(t, filepath.Join(one, "man/man8/vmfabric-man.8"))
	assert.NoFileExists(t, filepath.Join(one, "man/man8/vmfabric-completion.8"))
}
