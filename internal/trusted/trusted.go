// Package trusted tells whether anybody else than root and the user who runs this
// process could change a file: what root reads its orders from, or runs, must be
// nobody else's to write.
package trusted

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Error says who could change a file, and what to do about it.
type Error struct {
	Path   string // as it was given to [Check]
	At     string // what of it is not trusted: the file, a folder on the way, or a link
	Reason string
	WayOut string // a command
}

func (e *Error) Error() string { return e.Path + ": " + e.Text() }

// Text is the error without the path, for those who have named it already.
func (e *Error) Text() string { return e.Fault() + "; " + e.WayOut }

// Fault is the text without the way out.
func (e *Error) Fault() string {
	if e.At == e.Path {
		return "it " + e.Reason
	}
	return e.At + " on its way " + e.Reason
}

// maxLinks is how many symbolic links a path may lead over, as in Linux
// (path_resolution(7)).
const maxLinks = 40

// Check reports the first thing on the way from the root directory to a file or
// folder, over all symbolic links, that somebody else than root and this user
// could change: an [*Error]. All of it must belong to one of these two, and be
// writable by no group and nobody else; a folder with the sticky bit may be, since
// what is in it is still its owner's alone. A file that is not there is
// [fs.ErrNotExist]. When nothing is reported, what is opened by this path a moment
// later is what was looked at.
func Check(path string) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	me := identify()
	at, rest, links := "/", parts(abs), 0
	if err := me.check(path, at); err != nil {
		return err
	}
	for len(rest) > 0 {
		if rest[0] == ".." {
			at, rest = filepath.Dir(at), rest[1:]
			continue
		}
		next := filepath.Join(at, rest[0])
		rest = rest[1:]
		if err := me.check(path, next); err != nil {
			return err
		}
		target, err := os.Readlink(next)
		if err != nil { // it is no link
			at = next
			continue
		}
		if links++; links > maxLinks {
			return &fs.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(parts(target), rest...)
	}
	return nil
}

// parts gives the names of a path; a link's ".." are not to be taken for what is
// written before them.
func parts(path string) []string {
	var names []string
	for name := range strings.SplitSeq(path, "/") {
		if name != "" && name != "." {
			names = append(names, name)
		}
	}
	return names
}

// reader is who reads.
type reader struct {
	uid uint32
	// foreign is the owner of files whose own has no number in this user namespace,
	// where it has such; root's of outside are among them.
	foreign  uint32
	confined bool
}

func identify() reader {
	r := reader{uid: uint32(os.Geteuid())}
	b, err := os.ReadFile("/proc/sys/kernel/overflowuid")
	if err != nil {
		return r
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
	if err != nil {
		return r
	}
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return r
	}
	r.foreign, r.confined = uint32(n), !mapped(string(ids), n)
	return r
}

// mapped reports whether a user namespace has a user of that number
// (user_namespaces(7), uid_map).
func mapped(uidMap string, uid uint64) bool {
	for line := range strings.Lines(uidMap) {
		var first, outside, count uint64
		if n, err := fmt.Sscan(line, &first, &outside, &count); n == 3 && err == nil && uid >= first && uid-first < count {
			return true
		}
	}
	return false
}

func (r reader) check(path, at string) error {
	info, err := os.Lstat(at)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: cause(err)}
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	if abs, err := filepath.Abs(path); err == nil && abs == at {
		at = path
	}
	mode := info.Mode()
	switch {
	case !r.owns(st.Uid):
		return &Error{path, at, "belongs to " + named(st.Uid) + ", who could change it", "run 'chown " + strconv.Itoa(int(r.uid)) + " " + at + "', or name another"}
	case mode&fs.ModeSymlink != 0, mode.IsDir() && mode&fs.ModeSticky != 0:
		return nil
	case mode.Perm()&0o002 != 0, mode.Perm()&0o020 != 0 && !r.private(st):
		return &Error{path, at, fmt.Sprintf("can be written by others (mode %04o)", mode.Perm()), "run 'chmod go-w " + at + "'"}
	}
	return nil
}

func (r reader) owns(uid uint32) bool {
	return uid == 0 || uid == r.uid || r.confined && uid == r.foreign
}

// private holds for a file of the group that has this user alone in it, as
// distributions give one to each: it has the user's own number. Root's has more.
func (r reader) private(st *syscall.Stat_t) bool {
	return r.uid != 0 && st.Uid == r.uid && st.Gid == r.uid
}

func named(uid uint32) string {
	id := strconv.Itoa(int(uid))
	if u, err := user.LookupId(id); err == nil {
		return "user " + u.Username
	}
	return "user " + id
}

func cause(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
