package disk

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// syncAtATime is how many files are synced at a time; a journalling file system
// commits them together.
const syncAtATime = 8

// syncer makes changes safe on the disk until Close.
func (s *Store) syncer() {
	defer close(s.done)
	for {
		select {
		case <-s.closed:
			s.finish()
			return
		case <-s.wake:
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
func (s *Store) finish() {
	s.settle()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spare != "" {
		os.Remove(s.spare)
	}
}

// settle makes all changes so far safe, and moves each to its file.
func (s *Store) settle() error {
	s.mu.Lock()
	batch := maps.Clone(s.unsafe)
	unlinks := s.unlinks
	s.unlinks = false
	err := s.rewrite(batch)
	s.mu.Unlock()
	if len(batch) == 0 && !unlinks {
		return nil
	}
	if err == nil {
		err = s.syncFiles(slices.Sorted(maps.Keys(batch)))
	}
	if err == nil {
		err = s.place(batch)
	}
	if err == nil {
		err = s.sync(s.dir)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keepSpare()
	s.syncErr, s.reported = nil, s.reported && err != nil
	if err != nil {
		s.unlinks = true
		for _, c := range batch {
			c.redo = true
		}
		s.syncErr = fmt.Errorf("state is not safe from a power cut: %w; check the disk", err)
	}
	return err
}

// rewrite writes again the changes whose sync failed: after an error the kernel
// takes the pages of a file for clean, and a second fsync would succeed without
// them.
func (s *Store) rewrite(batch map[string]*change) error {
	for name, c := range batch {
		if !c.redo {
			continue
		}
		if err := s.write(name, c.content); err != nil {
			return err
		}
		c.redo = false
	}
	return nil
}

func (s *Store) syncFiles(names []string) error {
	var wg sync.WaitGroup
	slots := make(chan struct{}, syncAtATime)
	errs := make([]error, len(names))
	for i, name := range names {
		slots <- struct{}{}
		wg.Go(func() {
			errs[i] = s.sync(filepath.Join(s.dir, name+suffix+newSuffix))
			<-slots
		})
	}
	wg.Wait()
	for i, err := range errs {
		if errors.Is(err, os.ErrNotExist) {
			errs[i] = nil // deleted meanwhile
		}
	}
	// One error is enough, and keeps the message short.
	return cmp.Or(errs...)
}

// place renames the changes to their files, except those that a newer change or a
// Delete has replaced.
func (s *Store) place(batch map[string]*change) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, c := range batch {
		if s.unsafe[name] != c {
			continue
		}
		path := filepath.Join(s.dir, name+suffix)
		if err := os.Rename(path+newSuffix, path); err != nil {
			return err
		}
		delete(s.unsafe, name)
	}
	return nil
}

// syncPath waits until a file, or the names in a directory, are on the disk.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
