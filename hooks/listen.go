package hooks

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Listener is the socket of an agent.
type Listener struct {
	unix  *net.UnixListener
	close func() error
}

// Listen makes the agent's socket, which only its owner (root) may use, and the
// folder that it is in. It replaces the socket of an agent that is gone, and
// returns an error while another agent listens there. A lock on PATH.lock decides
// between agents that start together; that file is never removed.
func Listen(ctx context.Context, path string) (*Listener, error) {
	// The sun_path of unix(7) has 108 bytes, and the last is its NUL.
	if len(path) > 107 {
		return nil, fmt.Errorf("socket %s: a path of %d bytes, and 107 is the most; give a shorter --socket", path, len(path))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("socket %s: %w; make the folder, or give another --socket", path, err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w; run the agent as root, or give another --socket", path, err)
	}
	l, err := listenLocked(ctx, path, lock)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return l, nil
}

// listenLocked does the part that needs the lock. The listener then keeps the lock.
func listenLocked(ctx context.Context, path string, lock *os.File) (*Listener, error) {
	err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, another(path)
	}
	if err != nil {
		return nil, fmt.Errorf("socket %s: lock %s: %w", path, lock.Name(), err)
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	// bind gives the file the mode of the socket (unix_bind in the kernel), so
	// others can connect at no moment.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }), err)
	}}
	bound, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	unix := bound.(*net.UnixListener)
	unix.SetUnlinkOnClose(false) // it would unlink the path even if another agent's socket is there
	ours, err := os.Lstat(path)
	if err != nil {
		unix.Close()
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return &Listener{unix, sync.OnceValue(func() error {
		if now, err := os.Lstat(path); err == nil && os.SameFile(now, ours) {
			os.Remove(path)
		}
		defer lock.Close()
		return unix.Close()
	})}, nil
}

// removeStale removes the socket of an agent that is gone.
func removeStale(ctx context.Context, path string) error {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("socket %s: %w", path, err)
	case info.Mode()&os.ModeSocket == 0:
		return fmt.Errorf("socket %s: there is a file that is no socket; remove it, or give another --socket", path)
	}
	// Only its answer shows an agent that is in another mount namespace, or whose
	// lock file was removed. A full queue (EAGAIN) is an answer, too.
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
	}
	if err == nil || errors.Is(err, syscall.EAGAIN) {
		return another(path)
	}
	if !notThere(err) {
		return fmt.Errorf("socket %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("socket %s: %w", path, err)
	}
	return nil
}

func another(path string) error {
	return fmt.Errorf("another agent answers on %s; stop it first, or give --socket", path)
}

// Accept implements [net.Listener].
func (l *Listener) Accept() (net.Conn, error) { return l.unix.Accept() }

// Addr implements [net.Listener].
func (l *Listener) Addr() net.Addr { return l.unix.Addr() }

// Close stops listening and removes the socket, unless another agent's has replaced
// it. It may be called again.
func (l *Listener) Close() error { return l.close() }

var _ net.Listener = (*Listener)(nil)
