package core

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestNothingIsLeftOnThePath: what came before the end of an impairment is handed on, also
// if the machine had no time to read it.
func TestNothingIsLeftOnThePath(t *testing.T) {
	t.Parallel()
	pair := func() (near, far *os.File) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		near, far = os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far")
		t.Cleanup(func() { near.Close(); far.Close() })
		return near, far
	}
	host, from := pair()
	to, other := pair()
	const frames = 20
	for n := range frames {
		_, err := host.Write(append(make([]byte, vnetHeader), byte(n)))
		require.NoError(t, err)
	}
	require.NoError(t, from.SetReadDeadline(time.Now().Add(-time.Second)))
	carry(from, to, Impairment{})
	for n := range frames {
		buf := make([]byte, 100)
		require.NoError(t, other.SetReadDeadline(time.Now().Add(20*time.Second)))
		got, err := other.Read(buf)
		require.NoError(t, err, "frame %d", n)
		assert.Equal(t, byte(n), buf[got-1])
	}
}
