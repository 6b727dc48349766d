package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// Lock makes the state directory if there is none, and keeps it for this process until
// the lock is closed or the process ends: two agents would undo each other's work. It
// returns an error while another process has it. The directory itself is locked: nothing
// is written, so that an agent starts on a file system that is full or read-only, and
// whoever wants to can make it read-only.
func Lock(dir string) (io.Closer, error) {
	err := os.MkdirAll(dir, 0o700)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w; %s", err, remedy(err))
	}
	f, err := os.Open(dir)
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
