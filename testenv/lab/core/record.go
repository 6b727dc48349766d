package core

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/internal/trusted"
)

// recordFile is the file in which a lab records its parts, so that others can
// remove them when its owner is gone. The lab records each part before it makes it,
// on a line of its own, for the keeper to read (keeper.sh):
//
//	owner PID START     the process that made the lab, and the one below
//	boot ID             process numbers mean something within one boot only
//	pids NAMESPACE      the owner's pid namespace, likewise
//	netns DIRECTORY     where the named namespaces are
//	namespace PATH      where one is bound
//	process PID START   one to end, although no namespace of the lab shows it
//	tree PATH           a directory outside of the lab's own
const recordFile = "record"

// origin identifies the process that made a lab: the first lines of its record.
type origin struct {
	owner process
	boot  string
	pids  string
}

// baseDir holds one directory per lab of this user, whose number outside of user
// namespaces is in its name: everybody may make labs. The keeper kills and removes
// whatever a record names, so nobody else may write there. Labs of earlier
// versions, whose records have another form and would look half-made, are in
// vmfabric-lab.
func baseDir() string {
	base := filepath.Join(os.TempDir(), "vmfabric-laboratory")
	if uid := outsideUID(); uid != 0 {
		return fmt.Sprintf("%s-%d", base, uid)
	}
	return base
}

// outsideUID returns the number that this user has in the parent of its user
// namespace (user_namespaces(7), uid_map).
func outsideUID() int {
	uid := os.Geteuid()
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return uid
	}
	for line := range strings.Lines(string(b)) {
		var first, outside, count int
		if n, err := fmt.Sscan(line, &first, &outside, &count); n == 3 && err == nil && uid >= first && uid-first < count {
			return outside + uid - first
		}
	}
	return uid
}

// trustBase refuses a base directory that somebody else could change.
func trustBase(base string) error {
	err := trusted.Check(base)
	if bad, ok := errors.AsType[*trusted.Error](err); ok {
		return fmt.Errorf("%s: %s; remove it, or set TMPDIR to a folder of your own", base, bad.Fault())
	}
	return err
}

func newOrigin() (origin, error) {
	self, err := identify(os.Getpid())
	if err != nil {
		return origin{}, err
	}
	boot, pids, err := bootAndPIDs()
	return origin{self, boot, pids}, err
}

func bootAndPIDs() (boot, pids string, err error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", "", err
	}
	pids, err = os.Readlink("/proc/self/ns/pid")
	return strings.TrimSpace(string(id)), pids, err
}

// begin writes the first lines of the record of a lab, and returns the file for
// further lines.
func (o origin) begin(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, recordFile), os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(f, "owner %s\nboot %s\npids %s\n", o.owner, o.boot, o.pids); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func readOrigin(dir string) (o origin, err error) {
	path := filepath.Join(dir, recordFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return o, err
	}
	if _, err := fmt.Sscanf(string(b), "owner %d %d\nboot %s\npids %s\n", &o.owner.pid, &o.owner.start, &o.boot, &o.pids); err != nil {
		return o, fmt.Errorf("%s: %w", path, err)
	}
	return o, nil
}

// orphaned reports whether the lab's owner is gone. It cannot see processes of
// another pid namespace, and takes them for alive.
func (o origin) orphaned() bool {
	boot, pids, err := bootAndPIDs()
	switch {
	case err != nil:
		return false
	case boot != o.boot:
		return true
	case pids != o.pids:
		return false
	}
	return !o.owner.alive()
}

// Sweep removes the labs of this user whose owner process is gone, and returns
// their names. [New] does so, too.
func Sweep() ([]string, error) {
	base := baseDir()
	err := trustBase(base)
	var unlock func()
	if err == nil {
		unlock, err = lockBase(base, unix.LOCK_EX)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer unlock()
	swept, err := sweep(base)
	_ = os.Remove(base) // fails while a lab is in it
	return swept, err
}

// sweep is Sweep. The caller holds the lock of base.
func sweep(base string) ([]string, error) {
	entries, err := os.ReadDir(base)
	if err != nil {
		return nil, err
	}
	var swept []string
	var errs []error
	for _, e := range entries {
		dir := filepath.Join(base, e.Name())
		if !e.IsDir() || !mine(dir) {
			continue
		}
		o, err := readOrigin(dir)
		switch {
		case errors.Is(err, os.ErrNotExist):
			// Its owner ended between making the directory and writing the
			// record, or it is just being removed.
			err = os.RemoveAll(dir)
		case err != nil:
		case !o.orphaned():
			continue
		default:
			err = clean(dir)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep lab %s: %w", e.Name(), err))
			continue
		}
		swept = append(swept, e.Name())
	}
	return swept, errors.Join(errs...)
}

// mine reports whether this user made dir. The keeper kills and removes whatever a
// record names, so sweep must not trust those of others.
func mine(dir string) bool {
	var st unix.Stat_t
	return unix.Lstat(dir, &st) == nil && int(st.Uid) == os.Geteuid()
}

// lockBase takes the lock under which labs are made and swept, so that no sweep
// sees a half-made one. The error is [os.ErrNotExist] if base was removed
// meanwhile.
func lockBase(base string, how int) (unlock func(), err error) {
	f, err := os.Open(base)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", base, err)
	}
	locked, err := f.Stat()
	if err == nil {
		var there os.FileInfo
		if there, err = os.Lstat(base); err == nil && !os.SameFile(locked, there) {
			err = fmt.Errorf("lock %s: %w", base, os.ErrNotExist)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
