package core

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestKeeperKeepsToTheRecord: a keeper ends and removes what the record names, and
// no process that has got a number of it since.
func TestKeeperKeepsToTheRecord(t *testing.T) {
	t.Parallel()
	base := filepath.Join(t.TempDir(), "with a space")
	dir, tree, outside := filepath.Join(base, "lab"), filepath.Join(t.TempDir(), "a * tree"), t.TempDir()
	for _, d := range []string{dir, filepath.Join(tree, "below")} {
		require.NoError(t, os.MkdirAll(d, 0o755))
	}
	require.NoError(t, os.WriteFile(filepath.Join(outside, "file"), nil, 0o644))
	require.NoError(t, os.Symlink(outside, filepath.Join(tree, "link")))
	recorded, later := sleeper(t), sleeper(t)

	l := &Lab{dir: dir}
	by, err := newOrigin()
	require.NoError(t, err)
	l.record, err = by.begin(dir)
	require.NoError(t, err)
	require.NoError(t, l.OwnTree(tree, filepath.Join(tree, "gone")))
	require.NoError(t, l.OwnProcess(recorded.Process.Pid))
	p, err := identify(later.Process.Pid)
	require.NoError(t, err)
	require.NoError(t, l.note("process", process{p.pid, p.start - 1}.String()))
	require.ErrorContains(t, l.OwnTree("a\nb"), "line break")
	require.NoError(t, l.record.Close())
	require.NoError(t, clean(dir))

	var exit *exec.ExitError
	require.ErrorAs(t, recorded.Wait(), &exit)
	assert.Equal(t, syscall.SIGKILL, exit.Sys().(syscall.WaitStatus).Signal())
	assert.True(t, p.alive(), "an earlier process of that number was meant")
	assert.NoDirExists(t, tree)
	assert.FileExists(t, filepath.Join(outside, "file"))
	assert.NoDirExists(t, base)
	assert.NoError(t, clean(dir), "again")
}

// TestKeeperOfAnotherBoot: numbers of processes that were given before a boot mean
// nothing.
func TestKeeperOfAnotherBoot(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "base", "lab")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	cmd := sleeper(t)
	p, err := identify(cmd.Process.Pid)
	require.NoError(t, err)
	record, err := origin{p, "of-before", "pid:[1]"}.begin(dir)
	require.NoError(t, err)
	l := &Lab{dir: dir, record: record}
	require.NoError(t, l.OwnProcess(p.pid))
	require.NoError(t, record.Close())
	o, err := readOrigin(dir)
	require.NoError(t, err)
	assert.True(t, o.orphaned())
	require.NoError(t, clean(dir))
	assert.True(t, p.alive())
	assert.NoDirExists(t, dir)
}

// TestKeeperThatWasKilled: the owner removes its lab all the same.
func TestKeeperThatWasKilled(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "base", "lab")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	by, err := newOrigin()
	require.NoError(t, err)
	record, err := by.begin(dir)
	require.NoError(t, err)
	require.NoError(t, record.Close())
	k, err := startKeeper(dir)
	require.NoError(t, err)
	require.NoError(t, k.cmd.Process.Kill())
	require.NoError(t, k.release())
	assert.NoDirExists(t, dir)
}

// TestKeeperSaysWhatItCannotRemove, in its error.
func TestKeeperSaysWhatItCannotRemove(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "base", "lab")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "name"), 0o755))
	by, err := newOrigin()
	require.NoError(t, err)
	l := &Lab{dir: dir}
	l.record, err = by.begin(dir)
	require.NoError(t, err)
	require.NoError(t, l.note("namespace", filepath.Join(dir, "name"))) // a directory is none
	require.NoError(t, l.record.Close())
	assert.ErrorContains(t, clean(dir), filepath.Join(dir, "name"))
	assert.FileExists(t, filepath.Join(dir, recordFile), "for a later try")
}
