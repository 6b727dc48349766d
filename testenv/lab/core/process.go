package core

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// process identifies a process: a later one with the same number differs in start.
type process struct {
	pid   int
	start uint64 // clock ticks after boot (proc(5), stat field 22)
}

// String returns the process as a lab's record has it.
func (p process) String() string { return fmt.Sprint(p.pid, p.start) }

// identify returns the process that has the number pid now. The error is
// os.ErrNotExist if it has ended, also if nobody has waited for it yet.
func identify(pid int) (process, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, syscall.ESRCH) {
		err = os.ErrNotExist
	}
	if err != nil {
		return process{}, err
	}
	// The command's name, in parentheses, can hold spaces and parentheses.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return process{}, fmt.Errorf("/proc/%d/stat: %q is not of the form in proc(5)", pid, stat)
	}
	if state := fields[0][0]; state == 'Z' || state == 'X' {
		return process{}, fmt.Errorf("process %d: %w", pid, os.ErrNotExist)
	}
	start, err := strconv.ParseUint(string(fields[19]), 10, 64)
	return process{pid, start}, err
}

// alive reports whether the process still runs.
func (p process) alive() bool {
	now, err := identify(p.pid)
	return err == nil && now == p
}
