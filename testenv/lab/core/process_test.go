package core

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// sleeper starts a program whose name looks like the end of one in proc(5).
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	sleep, err := exec.LookPath("sleep")
	require.NoError(t, err)
	odd := filepath.Join(t.TempDir(), "a) Z 1 (b")
	require.NoError(t, os.Symlink(sleep, odd))
	cmd := exec.Command(odd, "1000")
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd
}

func TestIdentifyReadsOddNames(t *testing.T) {
	t.Parallel()
	cmd := sleeper(t)
	p, err := identify(cmd.Process.Pid)
	require.NoError(t, err)
	assert.True(t, p.alive())
	assert.False(t, process{p.pid, p.start - 1}.alive(), "an earlier process of that number")
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	_, err = identify(p.pid)
	assert.ErrorIs(t, err, os.ErrNotExist)
}
