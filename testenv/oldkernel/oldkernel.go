// Package oldkernel makes this machine's kernel refuse to one process what an older
// kernel, or one that was built with less, does not have.
//
// A seccomp(2) filter refuses sockets and their options, and stops the process before it
// sends. What is sent to netlink(7) is then changed to something that no kernel has in
// the same place: a message of an unknown number, an expression or a kind of link of an
// unknown name, an attribute that is none. So it is the kernel that refuses, by the same
// way and with the same error as one that lacks the part, and the process under test has
// no part in it. What an older kernel leaves out of an answer is made unknown there.
package oldkernel

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Without takes parts of the kernel from this process, to its end: it cannot be undone.
// From programs that it starts it takes sockets and their options alone. It needs
// CAP_SYS_ADMIN, and Linux 5.19.
func Without(parts ...Part) error {
	listener, err := install(program(parts))
	if err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	s := &supervisor{listener: listener, parts: parts}
	go s.run()
	return nil
}

// Offsets in struct seccomp_data: the number of the call, and its first argument, of which
// each has eight bytes. The lower half is first.
const dataNumber, dataArguments = 0, 16

// program refuses sockets and options, and stops what sends. The kernel decides of the
// former itself: Go's scheduler does not know that socket(2) could take a while.
func program(parts []Part) (all []unix.SockFilter) {
	statement := func(code uint16, k uint32) { all = append(all, unix.SockFilter{Code: code, K: k}) }
	refuse := func(number uint32, errno unix.Errno, arguments map[uint32]int) {
		tests := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: dataNumber}, {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: number}}
		for n, value := range arguments {
			tests = append(tests, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: dataArguments + 8*n},
				unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(value)})
		}
		for i := range tests {
			if tests[i].Code == unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K {
				tests[i].Jf = uint8(len(tests) - i) // past the refusal
			}
		}
		all = append(all, tests...)
		statement(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ERRNO|uint32(errno))
	}
	for _, p := range parts {
		if p.number != 0 {
			refuse(p.number, p.errno, p.arguments)
		}
	}
	statement(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, dataNumber)
	stopped := []uint32{unix.SYS_SENDTO, unix.SYS_SENDMSG}
	if slices.ContainsFunc(parts, func(p Part) bool { return p.answer != nil }) {
		stopped = append(stopped, unix.SYS_RECVFROM)
	}
	for i, number := range stopped {
		all = append(all, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: number, Jt: uint8(len(stopped) - i)})
	}
	statement(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ALLOW)
	statement(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_USER_NOTIF)
	return all
}

// install installs a filter in all threads, and returns its listener.
func install(program []unix.SockFilter) (int, error) {
	fprog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH |
		unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return -1, errno
	}
	unix.CloseOnExec(int(fd))
	return int(fd), nil
}

// call is a system call of a stopped thread (struct seccomp_notif).
type call struct {
	id     uint64
	thread uint32
	flags  uint32
	nr     int32
	arch   uint32
	ip     uint64
	args   [6]uint64
}

// answer lets a call go on (struct seccomp_notif_resp).
type answer struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

type supervisor struct {
	listener int
	parts    []Part
}

// run answers stopped calls until nobody is left who could make one.
func (s *supervisor) run() {
	for {
		var c call
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s.listener), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&c)))
		switch errno {
		case 0:
		case unix.EINTR, unix.ENOENT: // the thread that was stopped has ended
			continue
		default:
			return
		}
		a := s.look(c)
		a.id = c.id
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(s.listener), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&a)))
	}
}

// look changes what a call sends, or what it receives.
func (s *supervisor) look(c call) answer {
	goesOn := answer{flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", c.thread)); errors.Is(err, os.ErrNotExist) {
		return goesOn // a program that was started
	}
	protocol, is := netlinkProtocol(int(c.args[0]))
	switch {
	case !is:
	case c.nr == unix.SYS_SENDTO:
		s.change(protocol, c.args[1], c.args[2])
	case c.nr == unix.SYS_SENDMSG:
		for _, v := range vectors(c.args[1]) {
			s.change(protocol, v[0], v[1])
		}
	default:
		if a, received := s.receive(c, protocol); received {
			return a
		}
	}
	return goesOn
}

// netlinkProtocol returns the protocol of a socket, and whether it is one of netlink.
func netlinkProtocol(fd int) (protocol int, is bool) {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || domain != unix.AF_NETLINK {
		return 0, false
	}
	protocol, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	return protocol, err == nil
}

// change changes what is sent to netlink.
func (s *supervisor) change(protocol int, at, size uint64) {
	buffer := make([]byte, size)
	if size > 0 && move(unix.ProcessVMReadv, buffer, at) && s.changes(protocol, buffer, func(p Part) func(message) bool { return p.change }) {
		move(unix.ProcessVMWritev, buffer, at)
	}
}

// changes changes messages by what each part does with them, and reports whether it did.
func (s *supervisor) changes(protocol int, messages []byte, by func(Part) func(message) bool) (changed bool) {
	eachMessage(messages, func(m message) {
		for _, p := range s.parts {
			if do := by(p); do != nil && p.protocol == protocol && do(m) {
				changed = true
			}
		}
	})
	return changed
}

// receive receives in the place of a stopped recvfrom(2), and changes what came. If nothing
// is there, the call waits for itself: it is no answer then, since the kernel has answered
// by the time that a request is sent.
func (s *supervisor) receive(c call, protocol int) (a answer, received bool) {
	buffer := make([]byte, c.args[2])
	n, _, _, from, err := unix.Recvmsg(int(c.args[0]), buffer, nil, int(c.args[3])|unix.MSG_DONTWAIT)
	var errno unix.Errno
	switch {
	case errors.Is(err, unix.EAGAIN):
		return a, false
	case errors.As(err, &errno):
		return answer{errno: -int32(errno)}, true
	}
	s.changes(protocol, buffer[:min(n, len(buffer))], func(p Part) func(message) bool { return p.answer })
	move(unix.ProcessVMWritev, buffer, c.args[1])
	if sender, is := from.(*unix.SockaddrNetlink); is && c.args[4] != 0 {
		raw := unix.RawSockaddrNetlink{Family: unix.AF_NETLINK, Pid: sender.Pid, Groups: sender.Groups}
		move(unix.ProcessVMWritev, unsafe.Slice((*byte)(unsafe.Pointer(&raw)), unix.SizeofSockaddrNetlink), c.args[4])
		move(unix.ProcessVMWritev, native.AppendUint32(nil, unix.SizeofSockaddrNetlink), c.args[5])
	}
	return answer{value: int64(n)}, true
}

// vectors lists the addresses and sizes that a struct msghdr has.
func vectors(at uint64) (all [][2]uint64) {
	head := make([]byte, unsafe.Sizeof(unix.Msghdr{}))
	if !move(unix.ProcessVMReadv, head, at) {
		return nil
	}
	h := (*unix.Msghdr)(unsafe.Pointer(&head[0]))
	list := make([]byte, uint64(unsafe.Sizeof(unix.Iovec{}))*h.Iovlen)
	if len(list) == 0 || !move(unix.ProcessVMReadv, list, uint64(uintptr(unsafe.Pointer(h.Iov)))) {
		return nil
	}
	for len(list) > 0 {
		all = append(all, [2]uint64{native.Uint64(list), native.Uint64(list[8:])})
		list = list[unsafe.Sizeof(unix.Iovec{}):]
	}
	return all
}

type mover func(pid int, local []unix.Iovec, remote []unix.RemoteIovec, flags uint) (int, error)

// move copies between b and the memory of the stopped thread, which is this process's.
func move(by mover, b []byte, at uint64) bool {
	local := unix.Iovec{Base: &b[0]}
	local.SetLen(len(b))
	n, err := by(os.Getpid(), []unix.Iovec{local}, []unix.RemoteIovec{{Base: uintptr(at), Len: len(b)}}, 0)
	return err == nil && n == len(b)
}
