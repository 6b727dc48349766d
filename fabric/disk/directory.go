package disk

import (
	"bytes"
	"cmp"
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

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/internal/signal"
)

// syncAtATime is how many files are synced at a time; a journalling file system
// commits them together.
const syncAtATime = 8

// probeSize is as much as a guest's file needs.
const probeSize = 4096

// directory has the JSON files of one directory, or one of them, and the changes beside
// them that are not yet safe on the disk. It is safe for concurrent use.
type directory struct {
	dir     string
	own     string                                  // the name of the one file that it has; empty: all are its own
	valid   func(name string, content []byte) error // reports a damaged file
	sync    func(path string) error
	closed  <-chan struct{} // from then on nothing changes
	changed signal.Signal   // there is something to settle

	mu      sync.Mutex // also for all changes in dir
	unsafe  map[string]*change
	spare   spare
	unlinks bool            // a file was removed since dir was made safe
	lost    map[string]bool // files whose last change a power cut took, until they change again
	untried bool            // nothing was written yet, or the last change could not be
}

func newDirectory(dir, own string, valid func(name string, content []byte) error, sync func(path string) error, closed <-chan struct{}) *directory {
	return &directory{
		dir: dir, own: own, valid: valid, sync: sync, closed: closed, changed: signal.New(),
		unsafe: map[string]*change{}, spare: spare{start: filepath.Join(dir, tempStart+tempOf(own))}, lost: map[string]bool{}, untried: true,
	}
}

// tempOf gives what the names of temporary files of a directory have behind tempStart and
// before their number. Whoever has other files of the same folder uses other names.
func tempOf(own string) string {
	if own == "" {
		return ""
	}
	return own + "-"
}

// has reports whether a file is its own.
func (g *directory) has(name string) bool { return g.own == "" || name == g.own }

// hasTemp reports whether a temporary file is its own, by what its name has behind
// tempStart. Those of one file that have only a number are of an earlier version, and
// nobody's now.
func (g *directory) hasTemp(rest string) bool {
	return g.own == "" || strings.Trim(strings.TrimPrefix(rest, tempOf(g.own)), "0123456789") == ""
}

// isClosed reports whether a channel is closed on which nothing is sent.
func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// change is the content of a file that is not yet safe on the disk.
type change struct {
	content []byte
	redo    bool // an attempt to make it safe failed
}

// recover removes the unfinished files of a killed writer, and takes up the changes
// that were not yet safe on the disk. It drops those that a power cut damaged.
func (g *directory) recover() error {
	entries, err := os.ReadDir(g.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(g.dir, e.Name())
		if rest, isTemp := strings.CutPrefix(e.Name(), tempStart); isTemp {
			if g.hasTemp(rest) {
				os.Remove(path) // if that fails, it does no harm
			}
			continue
		}
		name, isNew := strings.CutSuffix(e.Name(), suffix+newSuffix)
		if !isNew || !g.has(name) {
			continue
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if g.valid(name, content) != nil {
			g.lost[name] = true
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		g.unsafe[name] = &change{content: content}
	}
	g.spare.keep()
	return nil
}

// each calls use with the content of every file, in the order of the names. Its error
// has each file that cannot be read, or that use refused.
func (g *directory) each(use func(name string, content []byte) error) error {
	g.mu.Lock() // no file changes its name meanwhile
	defer g.mu.Unlock()
	if isClosed(g.closed) {
		return fmt.Errorf("state in %s: %w", g.dir, fs.ErrClosed)
	}
	entries, err := os.ReadDir(g.dir)
	if err != nil {
		return fmt.Errorf("state: %w; %s", err, remedy(err))
	}
	names := map[string]bool{}
	for _, e := range entries {
		base, isFile := strings.CutSuffix(strings.TrimSuffix(e.Name(), newSuffix), suffix)
		if isFile && g.has(base) {
			names[base] = true
		}
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(names)) {
		path, content, err := g.read(name)
		if err == nil {
			if err = use(name, content); err != nil {
				err = fmt.Errorf("state: %s: %w", path, err)
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// put replaces the content of a file, unless that is there already. After
// an error the file is as before.
func (g *directory) put(name string, content []byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if isClosed(g.closed) {
		return fs.ErrClosed
	}
	delete(g.lost, name)
	if g.holds(name, content) {
		return nil
	}
	path := filepath.Join(g.dir, name+suffix)
	err := writeChange(g.spare.take(), path, content, g.unsafe[name] != nil)
	if g.untried = err != nil; g.untried {
		return fmt.Errorf("%w; %s", err, remedy(err))
	}
	g.unsafe[name] = &change{content: content}
	g.changed.Send()
	return nil
}

// remove removes a file, if it is there.
func (g *directory) remove(name string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if isClosed(g.closed) {
		return fs.ErrClosed
	}
	delete(g.lost, name)
	delete(g.unsafe, name)
	// The change goes last: a process that is killed in between leaves the newest
	// content, not an earlier one.
	for _, file := range []string{name + suffix, name + suffix + newSuffix} {
		switch err := os.Remove(filepath.Join(g.dir, file)); {
		case err == nil:
			g.unlinks = true
		case !errors.Is(err, fs.ErrNotExist):
			g.untried = true
			return fmt.Errorf("%w; %s", err, remedy(err))
		}
	}
	if g.unlinks {
		g.changed.Send()
	}
	return nil
}

// obstacle says why changes cannot be written: the directory is gone, or the first change,
// or the next one after one that failed, would fail.
func (g *directory) obstacle() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, err := os.Stat(g.dir)
	if err == nil && g.untried {
		path := g.spare.next()
		err = fill(path, make([]byte, probeSize))
		os.Remove(path) // if that fails, the next Open removes it
	}
	if err == nil {
		g.untried = false
		return nil
	}
	return fmt.Errorf("%w; %s", err, remedy(err))
}

// lostChanges lists the files whose last change a power cut took.
func (g *directory) lostChanges() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Sorted(maps.Keys(g.lost))
}

// read returns the newest content of the file of that name, and where it is.
func (g *directory) read(name string) (path string, content []byte, err error) {
	for _, file := range []string{name + suffix + newSuffix, name + suffix} {
		path = filepath.Join(g.dir, file)
		content, err = os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return path, nil, fmt.Errorf("state: %w; %s", err, remedy(err))
		}
		return path, content, nil
	}
	return path, nil, fmt.Errorf("state: %s went away; only one agent may use the directory", path)
}

// holds reports whether the file of that name has that content.
func (g *directory) holds(name string, content []byte) bool {
	path := filepath.Join(g.dir, name+suffix)
	if g.unsafe[name] != nil {
		path += newSuffix
	}
	have, err := os.ReadFile(path)
	return err == nil && bytes.Equal(have, content)
}

// writeChange writes a change beside the file that it replaces, by way of an empty
// file. again says that there is an earlier change, which it replaces, too.
func writeChange(empty, path string, content []byte, again bool) error {
	if again {
		return writeFile(empty, path+newSuffix, content, exchange)
	}
	return writeFile(empty, path+newSuffix, content, os.Rename)
}

// spare is the empty file that the next write fills: to make a file takes longer
// than the rest of the write. A file that had content is never used again: after a
// power cut it could have that content back.
type spare struct {
	start string // of the path of each, which a number ends
	path  string // of the file; empty: there is none
	last  int    // number of the last file
}

// next returns a path at which nothing is.
func (s *spare) next() string {
	s.last++
	return s.start + strconv.Itoa(s.last)
}

// take returns the path of the spare file, or one at which nothing is.
func (s *spare) take() string {
	path := s.path
	if s.path = ""; path == "" {
		return s.next()
	}
	return path
}

// keep makes a spare file, if there is none.
func (s *spare) keep() {
	if s.path != "" {
		return
	}
	path := s.next()
	if f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err == nil {
		f.Close()
		s.path = path
	}
}

// settle makes all changes so far safe, and moves each to its file.
func (g *directory) settle() error {
	g.mu.Lock()
	batch := maps.Clone(g.unsafe)
	unlinks := g.unlinks
	g.unlinks = false
	err := g.rewrite(batch)
	g.mu.Unlock()
	if len(batch) == 0 && !unlinks {
		return nil
	}
	if err == nil {
		err = g.syncFiles(slices.Sorted(maps.Keys(batch)))
	}
	if err == nil {
		err = g.place(batch)
	}
	if err == nil {
		err = g.sync(g.dir)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.spare.keep()
	if err != nil {
		g.unlinks = true
		for _, c := range batch {
			c.redo = true
		}
	}
	return err
}

// dropSpare removes the empty temporary file.
func (g *directory) dropSpare() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.spare.path != "" {
		os.Remove(g.spare.path)
	}
}

// rewrite writes again the changes whose sync failed: after an error the kernel
// takes the pages of a file for clean, and a second fsync would succeed without
// them.
func (g *directory) rewrite(batch map[string]*change) error {
	for name, c := range batch {
		if !c.redo {
			continue
		}
		path := filepath.Join(g.dir, name+suffix)
		if err := writeChange(g.spare.take(), path, c.content, g.unsafe[name] != nil); err != nil {
			return err
		}
		c.redo = false
	}
	return nil
}

func (g *directory) syncFiles(names []string) error {
	var wg sync.WaitGroup
	slots := make(chan struct{}, syncAtATime)
	errs := make([]error, len(names))
	for i, name := range names {
		slots <- struct{}{}
		wg.Go(func() {
			errs[i] = g.sync(filepath.Join(g.dir, name+suffix+newSuffix))
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
func (g *directory) place(batch map[string]*change) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for name, c := range batch {
		if g.unsafe[name] != c {
			continue
		}
		path := filepath.Join(g.dir, name+suffix)
		if err := os.Rename(path+newSuffix, path); err != nil {
			return err
		}
		delete(g.unsafe, name)
	}
	return nil
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
