package testenv

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// keeperName is the argv[0] under which a program that imports this package
// is a keeper.
const keeperName = "vmfabric-lab-keeper"

func init() {
	if len(os.Args) == 2 && os.Args[0] == keeperName {
		if err := keep(os.Args[1], os.Stdin); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// keep waits until alive ends, which it does with the owner of the lab,
// however that dies, and removes what the owner left of it.
//
// A parent-death signal (PR_SET_PDEATHSIG) on each daemon would not do: the
// kernel drops it when a daemon changes its user, as FRR's do, and grandchildren
// such as libvirt's guests never have it.
func keep(dir string, alive io.Reader) error {
	// Whoever ends owner and keeper together by signal lets the keeper do its
	// work; SIGKILL leaves it to a sweep.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	_, _ = io.Copy(io.Discard, alive)
	r, err := readRecord(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return clean(dir, r)
}

// keeper is the owner's end of a keeper process.
type keeper struct {
	cmd  *exec.Cmd
	life *os.File
}

func startKeeper(dir string) (*keeper, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe",
		Args: []string{keeperName, dir},
		// A program built with -race would take a second to end.
		Env:   []string{"TMPDIR=" + os.TempDir(), "GORACE=atexit_sleep_ms=0"},
		Dir:   "/",
		Stdin: r,
		// Out of reach of what the terminal sends to the owner's group.
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, err
	}
	return &keeper{cmd: cmd, life: w}, nil
}

// release tells the keeper that its owner is done, and waits for its end.
func (k *keeper) release() {
	k.life.Close()
	_ = k.cmd.Wait()
}
