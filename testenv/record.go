package testenv

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/internal/trusted"
)

// record is what a lab leaves on disk about itself, so that others can remove
// it when its owner is gone. Each thing is recorded before it is made.
type record struct {
	Owner      process   `json:"owner"`
	Boot       string    `json:"boot"` // boot id; process numbers mean something within one boot only
	PIDs       string    `json:"pids"` // the owner's pid namespace, likewise
	NetnsDir   string    `json:"netns_dir"`
	Namespaces []string  `json:"namespaces"` // where they are bound
	Daemons    []process `json:"daemons"`
	Trees      []string  `json:"trees"` // directories outside of the lab's own
}

const recordFile = "lab.json"

// baseDir holds one directory per lab of this user, whose number outside of user
// namespaces is in its name: everybody may make labs. Records of labs are trusted
// with what to kill and remove, so it is nobody else's to write.
func baseDir() string {
	base := filepath.Join(os.TempDir(), "vmfabric-lab")
	if uid := outsideUID(); uid != 0 {
		return fmt.Sprintf("%s-%d", base, uid)
	}
	return base
}

// outsideUID gives the number that this user has in the parent of its user
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

func newRecord() (record, error) {
	self, err := identify(os.Getpid())
	if err != nil {
		return record{}, err
	}
	boot, pids, err := bootAndPIDs()
	return record{Owner: self, Boot: boot, PIDs: pids}, err
}

func bootAndPIDs() (boot, pids string, err error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", "", err
	}
	pids, err = os.Readlink("/proc/self/ns/pid")
	return strings.TrimSpace(string(id)), pids, err
}

func readRecord(dir string) (record, error) {
	var r record
	b, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s: %w", filepath.Join(dir, recordFile), err)
	}
	return r, nil
}

func (r record) write(dir string) error {
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, recordFile+".new")
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, recordFile))
}

// orphaned reports whether the lab's owner is gone, as far as it can be seen
// from here: the processes of another pid namespace cannot.
func (r record) orphaned() bool {
	boot, pids, err := bootAndPIDs()
	switch {
	case err != nil:
		return false
	case boot != r.Boot:
		return true
	case pids != r.PIDs:
		return false
	}
	return !r.Owner.alive()
}

// clean removes the lab with the record r from the machine: its processes,
// its namespaces, its files. What is gone already is no error, so that it can
// be repeated, also by two at a time.
func clean(dir string, r record) error {
	inodes := map[uint64]bool{}
	for _, path := range r.Namespaces {
		if inode, ok := namespaceInode(path); ok {
			inodes[inode] = true
		}
	}
	boot, pids, err := bootAndPIDs()
	if err != nil {
		return err
	}
	if boot != r.Boot || pids != r.PIDs {
		r.Daemons = nil
	}
	errs := []error{killAll(r.Daemons, inodes)}
	for _, path := range r.Namespaces {
		errs = append(errs, removeNamespace(path))
	}
	for _, tree := range r.Trees {
		errs = append(errs, os.RemoveAll(tree))
	}
	// While others use the directory this fails; that of the system stays a
	// mount, as ip-netns(8) leaves it.
	if r.NetnsDir != systemNetnsDir {
		_ = unix.Unmount(r.NetnsDir, unix.UMOUNT_NOFOLLOW)
	}
	if err := errors.Join(errs...); err != nil {
		return err // the record stays, for a later try
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if base := filepath.Dir(dir); base == baseDir() {
		removeBase(base)
	}
	return nil
}

// removeBase removes the base directory when no lab is left in it, and nobody is
// making one.
func removeBase(base string) {
	unlock, err := lockBase(base, unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		return
	}
	defer unlock()
	_ = os.Remove(base) // not with something in it
}

// killBound is how long the kernel may take to end killed processes.
const killBound = 10 * time.Second

// killAll ends the daemons and all processes in the network namespaces, and
// returns when they are gone. Killing is repeated for those that fork
// meanwhile.
func killAll(daemons []process, inodes map[uint64]bool) error {
	for deadline := time.Now().Add(killBound); ; time.Sleep(2 * time.Millisecond) {
		left := inNamespaces(inodes)
		for _, d := range daemons {
			if d.alive() {
				left = append(left, d)
			}
		}
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d did not end within %v of being killed; see what it waits for in /proc/%[1]d/stack", left[0].PID, killBound)
		}
		for _, p := range left {
			p.kill()
		}
	}
}

// Sweep removes the labs of this user whose owner process is gone and that
// nobody removed, and names them. [New] does so too.
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
	_ = os.Remove(base) // not with something in it
	return swept, err
}

// sweep is Sweep for one who holds the lock of base.
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
		r, err := readRecord(dir)
		switch {
		case errors.Is(err, os.ErrNotExist):
			// Its owner ended between making the directory and writing the
			// record, or it is just being removed.
			err = os.RemoveAll(dir)
		case err != nil:
		case !r.orphaned():
			continue
		default:
			err = clean(dir, r)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep lab %s: %w", e.Name(), err))
			continue
		}
		swept = append(swept, e.Name())
	}
	return swept, errors.Join(errs...)
}

// mine reports whether this user made dir. Records are trusted with what to
// kill and remove, and everybody can put one into the base directory.
func mine(dir string) bool {
	var st unix.Stat_t
	return unix.Lstat(dir, &st) == nil && int(st.Uid) == os.Geteuid()
}

// lockBase takes the lock under which labs are made and swept, so that no
// sweep sees a half-made one. A base that was removed meanwhile is an
// [os.ErrNotExist].
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
