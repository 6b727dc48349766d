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

// roomIn bounds how long a lab waits for others to end: one that waited so long is
// made all the same.
const roomIn = 30 * time.Second

// labsAtOnce tells how many labs are good for a machine of so many processors with
// such a load (proc_loadavg(5)), that of the labs among it. They wait more than
// they work, until the machine has no time for them.
func labsAtOnce(load float64, processors int) int {
	switch each := load / float64(processors); {
	case each < 2:
		return 3 * processors
	case each < 4:
		return processors
	}
	return 1
}

// makeRoom waits, for a while, until no more labs of this user are there than are
// good for the machine, in whatever process. The lab that is made then counts
// until the test ends.
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

// take takes one of so many places.
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

// load gives the average of the last minute, 0 where it is not to be had.
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
