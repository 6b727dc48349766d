package disk

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/signal"
)

// syncDelay is how long changes are collected before they are made safe on the
// disk, which takes some milliseconds more.
const (
	syncDelay = 40 * time.Millisecond
	syncRetry = time.Second // after an error, before the next attempt
)

// Store keeps guests in a directory. It is safe for concurrent use, but only one
// Store at a time may have the directory open. Close it.
type Store struct {
	dir    string // the directory of the guests' files
	fresh  bool
	delay  time.Duration
	retry  time.Duration
	sync   func(path string) error
	wake   signal.Signal
	closed chan struct{}
	done   chan struct{} // closed when the syncer has ended

	mu       sync.Mutex // guards the fields below and all changes in dir
	unsafe   map[string]*change
	spare    string          // an empty temporary file, or ""
	temp     int             // number of the last temporary file
	unlinks  bool            // a file was removed since dir was made safe
	lost     map[string]bool // files whose last change a power cut took, until they change again
	syncErr  error
	reported bool // a caller got syncErr
	isShut   bool
}

var (
	_ fabric.Store     = (*Store)(nil)
	_ fabric.Diagnoser = (*Store)(nil)
)

// change is the content of a file that is not yet safe on the disk.
type change struct {
	content []byte
	redo    bool // an attempt to make it safe failed
}

// Option changes a [Store] at its opening.
type Option func(*Store)

// WithSyncDelay sets how long changes are collected before they are made safe on
// the disk; 40 ms without this option.
func WithSyncDelay(d time.Duration) Option { return func(s *Store) { s.delay = d } }

// Open opens the directory. If there is none, Open makes it, readable only for its
// owner. It removes the unfinished files of a killed writer and completes changes
// that were not yet safe on the disk. It refuses a directory of a newer format; All
// is the first to read the guests' files.
func Open(dir string, opts ...Option) (*Store, error) {
	s := &Store{
		dir: filepath.Join(dir, "guests"), delay: syncDelay, retry: syncRetry, sync: syncPath,
		wake: signal.New(), closed: make(chan struct{}), done: make(chan struct{}),
		unsafe: map[string]*change{}, lost: map[string]bool{},
	}
	for _, o := range opts {
		o(s)
	}
	if err := s.prepare(dir); err != nil {
		return nil, fmt.Errorf("state directory: %w; %s", err, remedy(err))
	}
	if err := s.recover(); err != nil {
		return nil, fmt.Errorf("state directory: %w; %s", err, remedy(err))
	}
	s.keepSpare()
	go s.syncer()
	s.wake.Send()
	return s, nil
}

// Fresh reports that Open found no state: the directory, or its marker and files,
// were not there.
func (s *Store) Fresh() bool { return s.fresh }

// All returns every guest that can be read. The error has each file that cannot,
// with the reason and the way out. All ignores names that do not end in .json.
func (s *Store) All(ctx context.Context) ([]fabric.Desired, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock() // no file changes its name meanwhile
	defer s.mu.Unlock()
	if s.isShut {
		return nil, fmt.Errorf("state in %s: %w", s.dir, fs.ErrClosed)
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("state: %w; %s", err, remedy(err))
	}
	names := map[string]bool{}
	for _, e := range entries {
		base, isFile := strings.CutSuffix(strings.TrimSuffix(e.Name(), newSuffix), suffix)
		if isFile {
			names[base] = true
		}
	}
	var guests []fabric.Desired
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(names)) {
		d, err := s.read(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		guests = append(guests, d)
	}
	return guests, errors.Join(errs...)
}

// Put keeps a guest. It writes nothing if the file has the same content already.
// After an error the guest is kept as before, with one exception: the error that
// earlier changes are not safe on the disk. It comes once and says so, and does not
// undo this change.
func (s *Store) Put(ctx context.Context, d fabric.Desired) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := check(d); err != nil {
		return fmt.Errorf("state of %s: %w", cmp.Or(d.VM.Name, "a guest"), err)
	}
	content, err := encode(d)
	if err != nil {
		return fmt.Errorf("state of %s: %w", d.VM.Name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isShut {
		return fmt.Errorf("state of %s: %w", d.VM.Name, fs.ErrClosed)
	}
	name := fileName(d.VM.Name)
	delete(s.lost, name)
	if !s.holds(name, content) {
		if err := s.write(name, content); err != nil {
			return fmt.Errorf("state of %s: %w; %s", d.VM.Name, err, remedy(err))
		}
		s.unsafe[name] = &change{content: content}
		s.wake.Send()
	}
	return s.report()
}

// Delete removes a guest, if it is there. Its errors are those of Put.
func (s *Store) Delete(ctx context.Context, vm string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isShut {
		return fmt.Errorf("state of %s: %w", vm, fs.ErrClosed)
	}
	name := fileName(vm)
	delete(s.lost, name)
	delete(s.unsafe, name)
	// The change goes last: a process that is killed in between leaves the newest
	// state of the guest, not an earlier one.
	for _, file := range []string{name + suffix, name + suffix + newSuffix} {
		switch err := os.Remove(filepath.Join(s.dir, file)); {
		case err == nil:
			s.unlinks = true
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("state of %s: %w; %s", vm, err, remedy(err))
		}
	}
	if s.unlinks {
		s.wake.Send()
	}
	return s.report()
}

// Diagnose reports why changes are not safe on the disk, and which changes a power
// cut took before this Store was opened.
func (s *Store) Diagnose(context.Context) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var problems []string
	for _, name := range slices.Sorted(maps.Keys(s.lost)) {
		problems = append(problems, fmt.Sprintf("state of guest %s: a power cut took its last change; attach the guest again, or restart it", name))
	}
	if s.syncErr != nil {
		problems = append(problems, s.syncErr.Error())
	}
	return problems
}

// Close makes all changes safe on the disk and ends the goroutine of the Store. A
// second Close does nothing. It returns why a change is not safe.
func (s *Store) Close() error {
	s.mu.Lock()
	first := !s.isShut
	s.isShut = true
	s.mu.Unlock()
	if first {
		close(s.closed)
	}
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.syncErr
}

// prepare makes the directory and its marker.
func (s *Store) prepare(dir string) error {
	_, err := os.Stat(s.dir)
	s.fresh = errors.Is(err, fs.ErrNotExist)
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	marker := filepath.Join(dir, "format")
	content, err := os.ReadFile(marker)
	switch {
	case err == nil && len(content) > 0: // a power cut can leave it empty
		return checkMarker(marker, content)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	s.fresh = len(entries) == 0
	temp := filepath.Join(dir, tempStart+"format")
	os.Remove(temp) // of a writer that was killed
	err = writeFile(temp, marker, fmt.Appendf(nil, "%s%d\n", markerStart, format), os.Rename)
	if err != nil {
		return err
	}
	return cmp.Or(s.sync(marker), s.sync(dir))
}

const markerStart = "vmfabric state "

func checkMarker(path string, content []byte) error {
	digits, ours := strings.CutPrefix(strings.TrimSpace(string(content)), markerStart)
	n, err := strconv.Atoi(digits)
	switch {
	case !ours || err != nil || n < 1:
		return fmt.Errorf("%s is not the marker of a state directory; name another directory", path)
	case n > format:
		return fmt.Errorf("%s: format %d, this version reads %d; run the newer version that wrote it", path, n, format)
	}
	return nil
}

// recover removes the unfinished files of a killed writer, and takes up the changes
// that were not yet safe on the disk. It drops those that a power cut damaged.
func (s *Store) recover() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(s.dir, e.Name())
		if strings.HasPrefix(e.Name(), tempStart) {
			os.Remove(path) // if that fails, it does no harm
			continue
		}
		name, isNew := strings.CutSuffix(e.Name(), suffix+newSuffix)
		if !isNew {
			continue
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if _, err := parse(name, content); err != nil {
			s.lost[name] = true
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		s.unsafe[name] = &change{content: content}
	}
	return nil
}

// read returns the guest from the file of that name.
func (s *Store) read(name string) (fabric.Desired, error) {
	for _, file := range []string{name + suffix + newSuffix, name + suffix} {
		path := filepath.Join(s.dir, file)
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fabric.Desired{}, fmt.Errorf("state: %w; %s", err, remedy(err))
		}
		d, err := parse(name, content)
		if err != nil {
			return d, fmt.Errorf("state: %s: %w", path, err)
		}
		return d, nil
	}
	return fabric.Desired{}, fmt.Errorf("state: %s went away; only one agent may use the directory", filepath.Join(s.dir, name+suffix))
}

// holds reports whether the file of that name has that content.
func (s *Store) holds(name string, content []byte) bool {
	path := filepath.Join(s.dir, name+suffix)
	if s.unsafe[name] != nil {
		path += newSuffix
	}
	have, err := os.ReadFile(path)
	return err == nil && bytes.Equal(have, content)
}

// write puts a change beside the file that it replaces. The caller holds s.mu.
func (s *Store) write(name string, content []byte) error {
	temp, path := s.spare, filepath.Join(s.dir, name+suffix+newSuffix)
	if s.spare = ""; temp == "" {
		temp = s.temporary()
	}
	if s.unsafe[name] == nil {
		return writeFile(temp, path, content, os.Rename)
	}
	return writeFile(temp, path, content, exchange)
}

func (s *Store) temporary() string {
	s.temp++
	return filepath.Join(s.dir, tempStart+strconv.Itoa(s.temp))
}

// keepSpare makes the empty file that the next write fills: to make a file takes
// longer than the rest of the write. A file that had content is never used again:
// after a power cut it could have that content back. The caller holds s.mu.
func (s *Store) keepSpare() {
	if s.spare != "" {
		return
	}
	path := s.temporary()
	if f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err == nil {
		f.Close()
		s.spare = path
	}
}

// exchange renames a file over an existing one. A plain rename makes ext4
// (auto_da_alloc) write the data out at once, which takes ten times as long.
func exchange(from, to string) error {
	if unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE) != nil {
		return os.Rename(from, to) // not every file system can exchange
	}
	os.Remove(from) // if that fails, the next Open removes it
	return nil
}

// report returns once that earlier changes are not safe on the disk.
func (s *Store) report() error {
	if s.syncErr == nil || s.reported {
		return nil
	}
	s.reported = true
	return s.syncErr
}

// writeFile writes a whole file or none. temp must be empty or absent.
func writeFile(temp, path string, content []byte, rename func(from, to string) error) error {
	err := fill(temp, content)
	if err == nil {
		err = rename(temp, path)
	}
	if err != nil {
		os.Remove(temp)
	}
	return err
}

// fill writes an empty file. O_TRUNC would make ext4 write the data out on close,
// even if there is nothing to cut.
func fill(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return cmp.Or(err, f.Close())
}

// remedy returns the way out of an error of the file system.
func remedy(err error) string {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "free some space on that file system"
	case errors.Is(err, syscall.EROFS):
		return "mount that file system writable"
	case errors.Is(err, fs.ErrPermission):
		return "run as root, or name a directory of your own"
	case errors.Is(err, fs.ErrNotExist):
		return "somebody removed it; restart the agent"
	}
	return "check the disk"
}
