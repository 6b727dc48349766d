package core

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// systemNetnsDir is where ip-netns(8) keeps and looks for named namespaces.
const systemNetnsDir = "/run/netns"

// UserNamespace returns the attributes with which an unprivileged user starts a
// program that can make labs: a user namespace where the caller is root, with
// mounts of its own. A running Go program cannot enter one itself, because the
// kernel refuses that to a process of several threads (user_namespaces(7)).
func UserNamespace() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
}

// prepareNetnsDir makes dir fit for named namespaces, in the way that ip-netns(8)
// does: a mount of its own, shared, so that a namespace removed here goes from the
// mount namespaces of daemons, too. This must come before the first name: if dir
// were mounted over itself later, nobody could remove the names below the mount any
// more.
func prepareNetnsDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	lock, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	if unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "") == nil {
		return nil
	}
	if err := unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
}

// chooseNetnsDir returns the directory for a lab's named namespaces, ready for use:
// the wanted one; by default the system's where it can be written, or else, as in a
// user namespace, one below the lab's own directory.
func chooseNetnsDir(wanted, labDir string) (string, error) {
	dir := wanted
	if dir == "" {
		dir = systemNetnsDir
		if os.MkdirAll(dir, 0o755) != nil || unix.Access(dir, unix.W_OK) != nil {
			dir = filepath.Join(labDir, "netns")
		}
	}
	err := prepareNetnsDir(dir)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return "", fmt.Errorf("namespaces in %s: %w; run as root, or in a user namespace with mounts of its own (unshare -rm)", dir, err)
	}
	if err != nil {
		return "", fmt.Errorf("namespaces in %s: %w", dir, err)
	}
	return dir, nil
}

// newNamespace makes a network namespace and binds it to path, where
// ip-netns(8) finds it.
func newNamespace(path string) (netns.NsHandle, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return netns.None(), err
	}
	f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		return os.NewSyscallError("mount", unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""))
	})
	if err != nil {
		os.Remove(path)
		return netns.None(), err
	}
	return netns.GetFromPath(path)
}

// errNoReturn is the outcome of a function that ended its goroutine, as
// testing.T.FailNow does.
var errNoReturn = errors.New("the function ended its goroutine instead of returning; report with an error from inside a host")

// onThread runs f on an operating system thread of its own, which ends with it, so
// that changes that f makes to its thread stay there.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Go cannot end the main thread and would keep it, in whatever
			// namespace f left it. While it is locked here, another thread
			// does the work.
			defer runtime.UnlockOSThread()
			done <- onThread(f)
			return
		}
		// Never unlocked: Go ends a thread whose goroutine ends locked to it.
		err := errNoReturn
		defer func() { done <- err }()
		err = f()
	}()
	return <-done
}
