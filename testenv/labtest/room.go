package labtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/internal/trusted"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// roomIn bounds how long New waits for other labs to end. After that it makes the
// lab all the same.
const roomIn = 30 * time.Second

// labsAtOnce returns how many labs may run at once on a machine with so many
// processors and such a load (proc_loadavg(5)), to which the labs contribute. Labs
// wait more than they work, until the machine has no time for them.
func labsAtOnce(load float64, processors int) int {
	switch each := load / float64(processors); {
	case each < 2:
		return 3 * processors
	case each < 4:
		return processors
	}
	return 1
}

// makeRoom waits, at most for roomIn, until this user has fewer labs than
// labsAtOnce, in all processes. The new lab then counts until the test ends.
func makeRoom(t testing.TB) {
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("vmfabric-labs-%d", os.Geteuid()))
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) || trusted.Check(dir) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), roomIn)
	defer cancel()
	var held *os.File
	_ = core.Until(ctx, func() (err error) {
		held, err = take(dir, labsAtOnce(load(), runtime.NumCPU()))
		return err
	})
	if held != nil {
		t.Cleanup(func() { held.Close() })
	}
}

// take locks one of the places, each a file in dir.
func take(dir string, places int) (*os.File, error) {
	for n := range places {
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprint(n)), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return f, nil
		}
		f.Close()
	}
	return nil, fmt.Errorf("all of %d places are taken", places)
}

// load returns the load average of the last minute, or 0 if it cannot be read.
func load() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	var average float64
	if _, err := fmt.Sscan(string(b), &average); err != nil {
		return 0
	}
	return average
}
