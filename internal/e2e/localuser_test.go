package e2e

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// TestLocalUser: a user of a node who is not root connects to no socket of the agent, its
// plugin and its routing daemon, reads no state, and finds nothing that he could write. Root
// does, so that the test would see it.
func TestLocalUser(t *testing.T) {
	t.Parallel()
	s := start(t, options{speakers: map[string]string{"node1": "bird"}})
	vm := veth("web", "203.0.113.10", "2001:db8:100::10")
	s.run("node1", vm)
	node := s.top.Nodes["node1"]
	s.coreHas(node, vm.Prefixes()...)
	a := s.agents["node1"]

	sockets := listeningSockets(t, node)
	assert.Contains(t, sockets, a.socket)
	assert.Greater(t, len(sockets), 2, "those of the plugin and of BIRD, too: %q", sockets)
	for _, path := range sockets {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			continue // without a file nobody finds it
		}
		assert.NoError(t, connect(path), "root and %s", path)
		assert.ErrorIs(t, asNobody(func() error { return connect(path) }), os.ErrPermission, path)
	}
	seen := 0
	require.NoError(t, filepath.WalkDir(filepath.Join(node.Dir(), "state"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		seen++
		assert.ErrorIs(t, asNobody(func() error { _, err := os.ReadFile(path); return err }), os.ErrPermission, path)
		assert.ErrorIs(t, asNobody(func() error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err == nil {
				f.Close()
			}
			return err
		}), os.ErrPermission, path)
		return nil
	}))
	assert.Positive(t, seen)
	assert.ErrorIs(t, asNobody(func() error {
		return os.WriteFile(filepath.Join(node.Dir(), "state", "guests", "mine.json"), nil, 0o600)
	}), os.ErrPermission)
}

// listeningSockets lists the sockets with a path on which programs of a host listen
// (proc_net_unix of the kernel's documentation).
func listeningSockets(t *testing.T, h *core.Host) (paths []string) {
	t.Helper()
	const accepting = "00010000"
	require.NoError(t, h.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/unix")
		for line := range strings.Lines(string(text)) {
			if fields := strings.Fields(line); len(fields) == 8 && fields[3] == accepting {
				paths = append(paths, fields[7])
			}
		}
		return err
	}))
	return paths
}

func connect(path string) error {
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	return err
}

// asNobody calls f as a user that has nothing.
func asNobody(f func() error) error {
	const nobody = 65534
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with its goroutine
		err := errors.New("the function ended its goroutine")
		defer func() { done <- err }()
		// Of this thread alone, unlike the functions of package syscall.
		for _, call := range [][4]uintptr{{unix.SYS_SETGROUPS, 0, 0, 0}, {unix.SYS_SETRESGID, nobody, nobody, nobody}, {unix.SYS_SETRESUID, nobody, nobody, nobody}} {
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				err = errno
				return
			}
		}
		err = f()
	}()
	return <-done
}
