package core

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/internal/oneline"
)

// keeperScript is the program of a keeper. A shell runs it, so that programs that
// make labs need no code of a keeper.
//
//go:embed keeper.sh
var keeperScript string

// keeper is the process that waits for the end of a lab's owner, and then removes
// the lab.
//
// A parent-death signal (PR_SET_PDEATHSIG) on each daemon would not do: the
// kernel drops it when a daemon changes its user, as FRR's do, and grandchildren
// such as libvirt's guests never have it.
type keeper struct {
	dir  string
	cmd  *exec.Cmd
	said bytes.Buffer
	life *os.File // its owner's end
}

func startKeeper(dir string) (*keeper, error) {
	theirs, life, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	script, err := scriptFile()
	if err != nil {
		life.Close()
		return nil, err
	}
	defer script.Close()
	k := &keeper{dir: dir, life: life}
	k.cmd = &exec.Cmd{
		Path: "/bin/sh", Args: []string{"sh", "-s", dir}, Stdin: script, Stderr: &k.said, ExtraFiles: []*os.File{theirs},
		Env: []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH") + ":/usr/sbin:/usr/bin:/sbin:/bin"},
		Dir: "/",
		// Out of reach of signals that the terminal sends to the owner's group.
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := k.cmd.Start(); err != nil {
		life.Close()
		return nil, fmt.Errorf("keeper: %w", err)
	}
	return k, nil
}

// scriptFile returns the keeper's script as a file that has no name.
func scriptFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("keeper", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "keeper")
	_, err = f.WriteString(keeperScript)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// release tells the keeper that its owner is done, and returns when the lab is
// removed. If the keeper was killed, a second one removes the lab.
func (k *keeper) release() error {
	k.life.Close()
	err := k.cmd.Wait()
	if status, ok := k.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return clean(k.dir)
	}
	if said := oneline.Words(k.said.String()); err != nil && said != "" {
		err = errors.New(said)
	}
	return err
}

// clean removes a lab from the machine, as its keeper does: its processes, its
// namespaces, its files.
func clean(dir string) error {
	k, err := startKeeper(dir)
	if err != nil {
		return err
	}
	return k.release()
}
