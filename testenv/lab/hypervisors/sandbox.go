package hypervisors

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// sandbox is a mount and a UTS namespace, in which the daemons of a host see files
// of their own in the places of the machine's, and a host name of their own.
type sandbox struct {
	host     *core.Host
	mnt, uts *os.File
}

// bind mounts source, a file or directory of the lab, over target.
type bind struct{ source, target string }

// programsOf returns the places of this machine's programs and libraries that those of a
// root file system replace. No root replaces nothing.
func programsOf(root string) []bind {
	if root == "" {
		return nil
	}
	return []bind{{filepath.Join(root, "usr"), "/usr"}, {filepath.Join(root, "etc/ld.so.cache"), "/etc/ld.so.cache"}}
}

func newSandbox(h *core.Host, binds []bind) (*sandbox, error) {
	s := &sandbox{host: h}
	err := h.Do(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if err := unix.Sethostname([]byte(h.Name())); err != nil {
			return os.NewSyscallError("sethostname", err)
		}
		if err := mountAll(binds); err != nil {
			return err
		}
		if s.mnt, err = os.Open("/proc/thread-self/ns/mnt"); err != nil {
			return err
		}
		s.uts, err = os.Open("/proc/thread-self/ns/uts")
		return err
	})
	if err != nil {
		s.close()
		return nil, err
	}
	h.Lab().OnClose(s.close)
	return s, nil
}

func (s *sandbox) close() {
	if s.mnt != nil {
		s.mnt.Close()
	}
	if s.uts != nil {
		s.uts.Close()
	}
}

// mountAll makes the mounts of a sandbox around the calling thread.
func mountAll(binds []bind) error {
	// Mounts made here stay here; those removed outside go here, too.
	if err := unix.Mount("", "/", "none", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount /: %w", err)
	}
	// sysfs shows the links of the network namespace in which it was mounted.
	_ = unix.Unmount("/sys", unix.MNT_DETACH)
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	for _, b := range binds {
		if err := mountPoint(b); err != nil {
			return err
		}
		if err := unix.Mount(b.source, b.target, "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", b.target, err)
		}
	}
	return nil
}

// mountPoint makes the file or directory to mount over, if it is missing. Only that
// outlives the lab: an empty file or directory.
func mountPoint(b bind) error {
	info, err := os.Stat(b.source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return os.MkdirAll(b.target, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(b.target), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(b.target, os.O_RDONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// start starts cmd in the sandbox, as cmd.Start does.
func (s *sandbox) start(cmd *exec.Cmd) error {
	return s.host.Do(func() error {
		// A thread that shares its root and working directory with others
		// cannot enter a mount namespace (setns(2)).
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		for _, ns := range []struct {
			file *os.File
			kind int
		}{{s.mnt, unix.CLONE_NEWNS}, {s.uts, unix.CLONE_NEWUTS}} {
			if err := unix.Setns(int(ns.file.Fd()), ns.kind); err != nil {
				return os.NewSyscallError("setns", err)
			}
		}
		return cmd.Start()
	})
}
