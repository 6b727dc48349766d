package disk

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// syncer makes the changes of files safe on the disk, in a goroutine of its
// own. It is safe for concurrent use.
type syncer struct {
	files        *directory
	delay, retry time.Duration
	closed       chan struct{} // closed by close
	done         chan struct{} // closed when the goroutine has ended

	mu       sync.Mutex
	closing  bool
	err      error // why changes are not safe
	reported bool  // a caller got err
}

func startSyncer(files *directory, delay, retry time.Duration, closed chan struct{}) *syncer {
	s := &syncer{files: files, delay: delay, retry: retry, closed: closed, done: make(chan struct{})}
	go s.run()
	files.changed.Send() // for the changes that an earlier process left
	return s
}

// run makes changes safe until close.
func (s *syncer) run() {
	defer close(s.done)
	for {
		select {
		case <-s.closed:
			s.finish()
			return
		case <-s.files.changed:
		}
		wait := s.delay
		for again := true; again; wait = s.retry {
			select {
			case <-s.closed:
				s.finish()
				return
			case <-time.After(wait):
			}
			again = s.settle() != nil
		}
	}
}

// finish makes the last changes safe.
func (s *syncer) finish() {
	_ = s.settle() // close returns the error
	s.files.dropSpare()
}

// settle makes all changes so far safe, and keeps the error.
func (s *syncer) settle() error {
	err := s.files.settle()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err, s.reported = nil, s.reported && err != nil
	if err != nil {
		s.err = fmt.Errorf("state is not safe from a power cut: %w; check the disk", err)
	}
	return err
}

// notSafe says why changes are not safe on the disk; nil: they are, or soon will be.
func (s *syncer) notSafe() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// report returns once that earlier changes are not safe on the disk.
func (s *syncer) report() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil || s.reported {
		return nil
	}
	s.reported = true
	return s.err
}

// close makes all changes safe on the disk, and ends the goroutine. It returns why a
// change is not safe.
func (s *syncer) close() error {
	s.mu.Lock()
	first := !s.closing
	s.closing = true
	s.mu.Unlock()
	if first {
		close(s.closed)
	}
	<-s.done
	return s.notSafe()
}

// syncPath waits until a file, or the names in a directory, are on the disk.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
