package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestReason(t *testing.T) {
	_, absent := net.Dial("unix", filepath.Join(t.TempDir(), "none"))
	require.Error(t, absent)
	expired, cancel := context.WithTimeout(t.Context(), -time.Second)
	defer cancel()
	_, late := new(net.Dialer).DialContext(expired, "unix", "/nonexistent/fake")
	require.Error(t, late)
	for _, c := range []struct {
		err  error
		want string
		is   error
	}{
		{absent, "connect: no such file or directory", fs.ErrNotExist},
		{late, "timed out", ErrTimeout},
		{fmt.Errorf("get: %w", context.DeadlineExceeded), "timed out", ErrTimeout},
		{fmt.Errorf("get: %w", context.Canceled), "context canceled", context.Canceled},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)}, "connect: permission denied", fs.ErrPermission},
		{&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, "connection reset by peer", syscall.ECONNRESET},
		{fmt.Errorf("read: %w", io.EOF), "it closed the connection", ErrClosed},
		{io.ErrUnexpectedEOF, "it closed the connection", ErrClosed},
		{&net.OpError{Op: "read", Err: net.ErrClosed}, "it closed the connection", ErrClosed},
		{fmt.Errorf("a: %w", fmt.Errorf("b: %w", errCut)), "it was cut", errCut},
	} {
		got := Reason(c.err)
		require.EqualError(t, got, c.want, "%v", c.err)
		require.ErrorIs(t, got, c.is)
	}
	assert.NoError(t, Reason(nil))
}

func TestUnreachableIsOneLine(t *testing.T) {
	err := NewUnreachable("fake", "faked", "/run/fake", errors.New("one\ntwo"))
	require.EqualError(t, err, "fake: no answer on /run/fake (one; two); start faked")
}
