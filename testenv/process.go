package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// process names a process such that a later one with the same number is not
// taken for it.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot (proc(5), stat field 22)
}

// identify gives the process that has the number pid now. A process that has
// ended is os.ErrNotExist, also when nobody has waited for it yet.
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
	return process{PID: pid, Start: start}, err
}

// alive reports whether the process still runs.
func (p process) alive() bool {
	now, err := identify(p.PID)
	return err == nil && now == p
}

// kill ends the process at once, unless it has gone.
func (p process) kill() {
	if p.alive() {
		_ = unix.Kill(p.PID, unix.SIGKILL)
	}
}

// inNamespaces lists the processes in the network namespaces with these inode
// numbers, except this one.
func inNamespaces(inodes map[uint64]bool) []process {
	links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	var found []process
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil {
			continue
		}
		digits := strings.TrimSuffix(strings.TrimPrefix(target, "net:["), "]")
		inode, err := strconv.ParseUint(digits, 10, 64)
		if err != nil || !inodes[inode] {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err != nil || pid == os.Getpid() {
			continue
		}
		if p, err := identify(pid); err == nil {
			found = append(found, p)
		}
	}
	return found
}
