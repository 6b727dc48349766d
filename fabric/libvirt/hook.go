package libvirt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// DefaultHooks is the directory of libvirt's hooks.
const DefaultHooks = "/etc/libvirt/hooks"

// dropIns is the first version of libvirt that also calls the hooks in a directory,
// qemu.d.
const dropIns = 6_005_000

// hookFile is a file that libvirt may use as a hook.
type hookFile struct {
	path       string // as libvirtd sees it
	executable bool
	changed    time.Time // when it was put there or changed
}

// hookState shows whether a libvirtd calls the fabric's hook. libvirtd looks for
// hooks when it starts or reloads. If it finds none, it calls none until it looks
// again; if it finds one, it also calls those that come later.
type hookState struct {
	dir     string
	daemon  string // the name of the daemon
	dropIns bool   // it calls the files in qemu.d
	started time.Time
	known   bool // this libvirtd has called the hook
	files   []hookFile
}

// problem says why libvirtd does not call the hook, and the way out; empty: it
// does.
func (h hookState) problem() string {
	single, own := filepath.Join(h.dir, "qemu"), filepath.Join(h.dir, "qemu.d", "vmfabric")
	want := own
	if !h.dropIns {
		want = single
	}
	var ours *hookFile
	found := false // libvirtd found a hook when it started
	for i, f := range h.files {
		// The file qemu, which all programs share, is assumed to call the fabric's
		// hook.
		if f.path == own && h.dropIns || f.path == single && ours == nil {
			ours = &h.files[i]
		}
		found = found || f.executable && f.changed.Before(h.started) && (h.dropIns || f.path == single)
	}
	restart := "systemctl restart " + h.daemon + " (guests go on running)"
	switch {
	case ours == nil:
		return fmt.Sprintf("libvirt: there is no hook %s, so guests of the fabric do not start, or without it; install it there, then %s; or follow no libvirt", want, restart)
	case !ours.executable:
		return fmt.Sprintf("libvirt: the hook %s is not executable, so guests of the fabric do not start, or without it; chmod 755 %[1]s, then %s", ours.path, restart)
	case !found && !h.known:
		return fmt.Sprintf("libvirt: %s, which has run since %s, may not know the hook %s, which came later: guests of the fabric do not start then, or without it; %s",
			h.daemon, h.started.Format(time.DateTime), ours.path, restart)
	}
	return ""
}

// HookCalled notes that libvirt has called the fabric's hook about a guest, which
// proves that libvirt knows it.
func (s *Source) HookCalled() {
	s.mu.Lock()
	s.hookCalled = time.Now()
	s.mu.Unlock()
}

// hookProblem finds out whether the libvirtd at the other end of a connection calls
// the hook; empty: it does, or the source cannot tell.
func (s *Source) hookProblem(c *conn) string {
	text, p := s.lookAtHook(c)
	if text == "" && p.life != "" {
		s.prove(p.life)
	}
	return text
}

// lookAtHook is hookProblem without a note for later, with the libvirtd; without a life
// if the source cannot tell.
func (s *Source) lookAtHook(c *conn) (string, process) {
	if s.hooks == "" {
		return "", process{}
	}
	p, err := findDaemon(c.raw.Conn, c.path)
	if err != nil {
		return "", process{}
	}
	version := c.version.Load()
	h := hookState{dir: s.hooks, daemon: p.name, dropIns: version == 0 || version >= dropIns, started: p.started}
	if h.files, err = hookFiles(rootOf(p.pid), s.hooks); err != nil {
		return "", process{}
	}
	s.mu.Lock()
	h.known = s.hookCalled.After(p.started) || s.proven == p.life
	s.mu.Unlock()
	return h.problem(), p
}

// prove notes that a libvirtd knows the hook, in the proof file, too: so the agent
// after an upgrade, which has replaced the hook's file, knows it.
func (s *Source) prove(life string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proven == life {
		return
	}
	s.proven = life
	if s.proof == "" {
		return
	}
	if err := os.WriteFile(s.proof, []byte(life+"\n"), 0o600); err != nil {
		s.log.Warn("that libvirt knows the hook is not noted", "err", err)
	}
}

// recallProof returns the libvirtd that the proof file names.
func recallProof(path string) string {
	if path == "" {
		return ""
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// rootOf returns the root directory of a process, which may be another than this
// process's own; this one if that cannot be read.
func rootOf(pid int) string {
	root := fmt.Sprintf("/proc/%d/root", pid)
	if _, err := os.Stat(filepath.Join(root, "etc")); err != nil {
		root = "/"
	}
	return root
}

// hookFiles lists the files that a libvirtd with that root directory may use as hooks
// of its QEMU driver.
func hookFiles(root, dir string) ([]hookFile, error) {
	var files []hookFile
	add := func(path string) error {
		info, err := os.Stat(filepath.Join(root, path))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case info.Mode().IsRegular():
			files = append(files, hookFile{path, info.Mode()&0o111 != 0, changed(info)})
		}
		return nil
	}
	if err := add(filepath.Join(dir, "qemu")); err != nil {
		return nil, err
	}
	more := filepath.Join(dir, "qemu.d")
	entries, err := os.ReadDir(filepath.Join(root, more))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if err := add(filepath.Join(more, e.Name())); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// changed returns when a file was put in its place, or last made executable: its
// contents may be older.
func changed(info fs.FileInfo) time.Time {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(st.Ctim.Unix())
	}
	return info.ModTime()
}
