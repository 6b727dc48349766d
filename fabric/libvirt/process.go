package libvirt

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a libvirtd or virtqemud.
type process struct {
	pid     int
	name    string
	started time.Time
	life    string // identifies this process among all that ever ran on the machine
}

// findDaemon finds the process that answers on a connection. With socket activation
// the peer of the socket is systemd, so findDaemon tries the pid file, too.
func findDaemon(conn net.Conn, socket string) (process, error) {
	daemon := daemonOf(socket)
	pids := []int{}
	if pid, err := peer(conn); err == nil {
		pids = append(pids, pid)
	}
	if text, err := os.ReadFile("/run/" + daemon + ".pid"); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			pids = append(pids, pid)
		}
	}
	for _, pid := range pids {
		if p, err := readProcess(pid); err == nil && slices.Contains([]string{"libvirtd", "virtqemud"}, p.name) {
			return p, nil
		}
	}
	return process{}, fmt.Errorf("%s: its process is not known", daemon)
}

// daemonOf returns the name of a socket's daemon.
func daemonOf(socket string) string {
	daemon, _, _ := strings.Cut(filepath.Base(socket), "-")
	if daemon == "libvirt" {
		return "libvirtd"
	}
	return daemon
}

// peer returns the process that listens at the other end of a unix socket.
func peer(conn net.Conn) (int, error) {
	raw, ok := conn.(syscall.Conn)
	if !ok {
		return 0, errors.ErrUnsupported
	}
	control, err := raw.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if err := control.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

// tick is the unit of times in /proc/PID/stat: USER_HZ is 100 on every machine that
// Go runs on.
const tick = 10 * time.Millisecond

// readProcess reads /proc/PID/stat (proc_pid_stat(5)).
func readProcess(pid int) (process, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	name, ticks, err := parseStat(string(text))
	if err != nil {
		return process{}, fmt.Errorf("process %d: %w", pid, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return process{}, err
	}
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return process{}, err
	}
	// A process may have started at the end of its tick.
	ago := time.Duration(up.Nano()) - time.Duration(ticks+1)*tick
	return process{
		pid: pid, name: name, started: time.Now().Add(-ago),
		life: fmt.Sprintf("%s %d %d", strings.TrimSpace(string(boot)), pid, ticks),
	}, nil
}

// parseStat returns a process's name and its start, in ticks since the boot.
func parseStat(stat string) (name string, ticks int64, err error) {
	open, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')') // the name may contain either
	if open < 0 || end < open {
		return "", 0, errors.New("its status has no name")
	}
	const starttime = 22 - 3 // the third field is the first after the name
	fields := strings.Fields(stat[end+1:])
	if len(fields) <= starttime {
		return "", 0, errors.New("its status is short")
	}
	ticks, err = strconv.ParseInt(fields[starttime], 10, 64)
	return stat[open+1 : end], ticks, err
}
