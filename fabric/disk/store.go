package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
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
	fresh  bool
	guests *directory
	syncer *syncer
	*nodeFiles
}

var (
	_ fabric.Store     = (*Store)(nil)
	_ fabric.Diagnoser = (*Store)(nil)
)

// options are what an [Option] can change.
type options struct {
	delay time.Duration           // how long changes are collected before they are made safe
	retry time.Duration           // after an error, before the next attempt
	sync  func(path string) error // waits until a file, or the names in a directory, are on the disk
	clock func() time.Time        // of quarantines
}

// Option changes how a [Store] or a [Registry] is opened.
type Option func(*options)

// WithSyncDelay sets how long changes are collected before they are made safe on
// the disk; 40 ms without this option.
func WithSyncDelay(d time.Duration) Option { return func(o *options) { o.delay = d } }

// WithClock gives the registry another clock than the machine's.
func WithClock(now func() time.Time) Option { return func(o *options) { o.clock = now } }

// Open opens the directory. If there is none, Open makes it, readable only for its
// owner. It removes the unfinished files of a killed writer and completes changes
// that were not yet safe on the disk. It refuses a directory of a newer format; All
// is the first to read the guests' files.
func Open(dir string, opts ...Option) (*Store, error) {
	o := options{delay: syncDelay, retry: syncRetry, sync: syncPath}
	for _, set := range opts {
		set(&o)
	}
	closed := make(chan struct{})
	s := &Store{
		guests:    newDirectory(filepath.Join(dir, "guests"), "", validGuest, o.sync, closed),
		nodeFiles: &nodeFiles{dir: dir, sync: o.sync, closed: closed},
	}
	var err error
	if s.fresh, err = prepare(dir, s.guests.dir, o.sync); err == nil {
		err = s.guests.recover()
	}
	if err != nil {
		return nil, fmt.Errorf("state directory: %w; %s", err, remedy(err))
	}
	s.syncer = startSyncer(s.guests, o.delay, o.retry, closed)
	return s, nil
}

// Fresh implements [fabric.Store]. It reports that Open found no state: the
// directory, or its marker and files, were not there.
func (s *Store) Fresh() bool { return s.fresh }

// All returns every guest that can be read. The error has each file that cannot,
// with the reason and the way out. All ignores names that do not end in .json.
func (s *Store) All(ctx context.Context) ([]fabric.Desired, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var guests []fabric.Desired
	err := s.guests.each(func(name string, content []byte) error {
		d, err := parse(name, content)
		if err == nil {
			guests = append(guests, d)
		}
		return err
	})
	return guests, err
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
	if err := s.guests.put(fileName(d.VM.Name), content); err != nil {
		return fmt.Errorf("state of %s: %w", d.VM.Name, err)
	}
	return s.syncer.report()
}

// Delete removes a guest, if it is there. Its errors are those of Put.
func (s *Store) Delete(ctx context.Context, vm string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.guests.remove(fileName(vm)); err != nil {
		return fmt.Errorf("state of %s: %w", vm, err)
	}
	return s.syncer.report()
}

// Diagnose reports why changes cannot be written, or are not safe on the disk, and which
// changes a power cut took before this Store was opened.
func (s *Store) Diagnose(context.Context) []string {
	var problems []string
	if err := s.guests.obstacle(); err != nil {
		problems = append(problems, fmt.Sprintf("state cannot be written, and guests that start are refused: %v", err))
	}
	for _, name := range s.guests.lostChanges() {
		problems = append(problems, fmt.Sprintf("state of guest %s: a power cut took its last change; attach the guest again, or restart it", name))
	}
	if err := s.syncer.notSafe(); err != nil {
		problems = append(problems, err.Error())
	}
	return problems
}

// Close makes all changes safe on the disk and ends the goroutine of the Store. A
// second Close does nothing. It returns why a change is not safe.
func (s *Store) Close() error { return s.syncer.close() }

// prepare makes a state directory and its marker, and the directory of the guests'
// files in it. fresh reports that it found no state.
func prepare(dir, guests string, sync func(path string) error) (fresh bool, err error) {
	marker := filepath.Join(dir, "format")
	marked, err := readMarker(marker, guests)
	if err != nil {
		return false, err
	}
	_, err = os.Stat(guests)
	fresh = errors.Is(err, fs.ErrNotExist)
	if err := os.MkdirAll(guests, 0o700); err != nil {
		return false, err
	}
	if marked {
		return fresh, nil
	}
	entries, err := os.ReadDir(guests)
	if err != nil {
		return false, err
	}
	fresh = len(entries) == 0
	temp := filepath.Join(dir, tempStart+"format")
	os.Remove(temp) // of a writer that was killed
	err = writeFile(temp, marker, fmt.Appendf(nil, "%s%d\n", markerStart, format), os.Rename)
	if err != nil {
		return false, err
	}
	return fresh, cmp.Or(sync(marker), sync(dir))
}

const markerStart = "vmfabric state "

// readMarker reports whether a directory has a marker that can be read; a power cut can
// leave it empty. Its errors are those of a directory that this version must not use. A
// marker that says nothing beside a directory of guests was damaged: each of their files
// has its own format and checksum.
func readMarker(marker, guests string) (marked bool, err error) {
	content, err := os.ReadFile(marker)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(content) == 0 {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	digits, ours := strings.CutPrefix(strings.TrimSpace(string(content)), markerStart)
	n, err := strconv.Atoi(digits)
	switch {
	case !ours || err != nil || n < 1:
		if _, err := os.Stat(guests); err == nil {
			return false, nil
		}
		return false, fmt.Errorf("%s is not the marker of a state directory; name another directory", marker)
	case n > format:
		return false, fmt.Errorf("%s: format %d, this version reads %d; run the newer version that wrote it", marker, n, format)
	}
	return true, nil
}

// nodeFiles are the files of the node itself, beside the guests': since when it is
// being drained, and the reports of moves. It is safe for concurrent use.
type nodeFiles struct {
	dir    string
	sync   func(path string) error
	closed <-chan struct{} // from then on nothing changes

	mu sync.Mutex // for all changes of the files
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
