package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// Lock makes the state directory if there is none, and keeps it for this process until
// the lock is closed or the process ends: two agents would undo each other's work. It
// returns an error while another process has it. The file lock in the directory stays.
func Lock(dir string) (io.Closer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w; %s", err, remedy(err))
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w; %s", err, remedy(err))
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = errors.New("another agent runs with it; stop that one, or give this one another directory")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("state directory %s: %w", dir, err), f.Close())
	}
	return f, nil
}
