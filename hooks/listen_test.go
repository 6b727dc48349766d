package hooks

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestListen(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "run", "vmfabric", "agent.sock")
	l, err := Listen(t.Context(), socket)
	require.NoError(t, err)
	info, err := os.Lstat(socket)
	require.NoError(t, err)
	assert.Equal(t, os.ModeSocket|0o600, info.Mode())
	assert.Equal(t, socket, l.Addr().String())
	require.NoError(t, l.Close())
	assert.NoFileExists(t, socket)
	assert.NoError(t, l.Close())

	l, err = Listen(t.Context(), socket)
	require.NoError(t, err, "the lock file that stays is no hindrance")
	require.NoError(t, l.Close())
}

// The mode must be right from bind on: with a wide umask, nobody may see it
// otherwise even for a moment.
func TestModeFromTheStart(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	stop, watched := make(chan struct{}), make(chan []os.FileMode)
	go func() {
		var seen []os.FileMode
		for stopped := false; !stopped; {
			select {
			case <-stop:
				stopped = true // after one more look, at the socket that stays
			default:
			}
			if info, err := os.Lstat(socket); err == nil && (len(seen) == 0 || seen[len(seen)-1] != info.Mode()) {
				seen = append(seen, info.Mode())
			}
		}
		watched <- seen
	}()
	for range 50 {
		l, err := Listen(t.Context(), socket)
		require.NoError(t, err)
		require.NoError(t, l.Close())
	}
	l, err := Listen(t.Context(), socket)
	require.NoError(t, err)
	defer l.Close()
	close(stop)
	assert.Equal(t, []os.FileMode{os.ModeSocket | 0o600}, <-watched)
}

func TestSecondAgent(t *testing.T) {
	socket := serve(t, &fake{})
	_, err := Listen(t.Context(), socket)
	assert.EqualError(t, err, "another agent answers on "+socket+"; stop it first, or give --socket")

	require.NoError(t, os.Remove(socket+".lock"))
	_, err = Listen(t.Context(), socket)
	assert.EqualError(t, err, "another agent answers on "+socket+"; stop it first, or give --socket")
	_, err = Call(within(t, time.Minute), socket, Request{Op: List})
	assert.NoError(t, err, "the first still answers")
}

func TestAgentsThatStartTogether(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	for range 50 {
		stale(t, socket)
		won := make(chan *Listener, 8)
		var starts sync.WaitGroup
		for range cap(won) {
			starts.Go(func() {
				if l, err := Listen(t.Context(), socket); err == nil {
					won <- l
				} else {
					assert.ErrorContains(t, err, "another agent answers")
				}
			})
		}
		starts.Wait()
		require.Len(t, won, 1)
		require.NoError(t, (<-won).Close())
	}
}

// stale leaves the socket of an agent that was killed.
func stale(t *testing.T, socket string) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	require.FileExists(t, socket)
}

func TestCloseLeavesAnothersSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	l, err := Listen(t.Context(), socket)
	require.NoError(t, err)
	require.NoError(t, os.Remove(socket))
	stale(t, socket)
	require.NoError(t, l.Close())
	assert.FileExists(t, socket)
}

func TestListenErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	long := filepath.Join(dir, strings.Repeat("x", 108))
	for socket, want := range map[string]string{
		file:                          "there is a file that is no socket; remove it, or give another --socket",
		filepath.Join(file, "a.sock"): "not a directory; make the folder, or give another --socket",
		long:                          "107 is the most; give a shorter --socket",
	} {
		_, err := Listen(t.Context(), socket)
		assert.ErrorContains(t, err, want)
		assert.ErrorContains(t, err, "socket "+socket)
	}
	assert.FileExists(t, file)
}
