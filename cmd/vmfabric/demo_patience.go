package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// How long a step of the demonstration may take. An emulated or busy machine may be
// a hundred times slower than another, and only the processes themselves show
// whether they make progress.
const (
	window     = 20 * time.Second // how long a step runs before their progress is checked
	windows    = 30               // the most windows of a step
	enoughWork = time.Second      // of processor time in a window; processes that are done take less
)

// effort is the work that processes have done so far.
type effort struct {
	processor time.Duration
	logged    int64 // bytes
}

// worked reports whether there was enough work since an earlier effort.
func (e effort) worked(since effort) bool {
	return e.processor-since.processor >= enoughWork || e.logged != since.logged
}

// whileWorking calls f again and again until it returns nil, with a context that
// ends with the window. It returns f's error after a window without effort.
func whileWorking(ctx context.Context, now func() effort, f func(ctx context.Context) error) error {
	before := now()
	for n := 1; ; n++ {
		limited, cancel := context.WithTimeout(ctx, window)
		err := core.Until(limited, func() error { return f(limited) })
		cancel()
		after := now()
		if err == nil || ctx.Err() != nil || n == windows || !after.worked(before) {
			return err
		}
		before = after
	}
}

// effortOf adds up the work of a lab's daemons.
func effortOf(lab *core.Lab) (sum effort) {
	for _, d := range lab.Daemons() {
		sum.processor += processorTime(d.Pid())
		if info, err := os.Stat(d.LogPath()); err == nil {
			sum.logged += info.Size()
		}
	}
	return sum
}

// processorTime returns the processor time of a process (proc_pid_stat(5), utime
// and stime), 0 if the process is gone.
func processorTime(pid int) time.Duration {
	const tick = 10 * time.Millisecond // USER_HZ is 100 on all of Go's architectures
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 13 {
		return 0
	}
	var ticks int
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(string(field))
		if err != nil {
			return 0
		}
		ticks += n
	}
	return time.Duration(ticks) * tick
}
