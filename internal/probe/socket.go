package probe

import (
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socket is a raw ICMP socket. The kernel notes when each message came, so that the
// time does not depend on when this program gets a processor.
type socket struct {
	file *os.File
	raw  syscall.RawConn
	fd   int
	six  bool
	to   unix.Sockaddr
	buf  []byte
	oob  []byte
}

// room is the receive buffer for answers that come while the program waits for a
// processor: thousands, each of which takes the kernel about a kilobyte.
const room = 8 << 20

func open(cfg Config) (*socket, error) {
	s := &socket{six: cfg.To.Is6(), buf: make([]byte, 2048), oob: make([]byte, 128)}
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if s.six {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s.fd, s.to = fd, sockaddr(cfg.To, cfg.Link)
	s.file = os.NewFile(uintptr(fd), "icmp")
	if s.raw, err = s.file.SyscallConn(); err == nil {
		err = s.settle(cfg)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *socket) settle(cfg Config) error {
	if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room) != nil { // beyond the system's limit
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, room)
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return os.NewSyscallError("SO_TIMESTAMPNS", err)
	}
	if !cfg.From.IsValid() {
		return nil
	}
	return os.NewSyscallError("bind", unix.Bind(s.fd, sockaddr(cfg.From, cfg.Link)))
}

func sockaddr(a netip.Addr, link int) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	sa := &unix.SockaddrInet6{Addr: a.As16()}
	if a.IsLinkLocalUnicast() {
		sa.ZoneId = uint32(link)
	}
	return sa
}

func (s *socket) close() { s.file.Close() }

// send does not wait: if the socket has no room, the message is not sent.
func (s *socket) send(m message) error { return unix.Sendto(s.fd, m.body, 0, s.to) }

// receive waits for a message and returns when it came. It returns an error when
// the socket was closed. The message is valid until the next call.
func (s *socket) receive() (m message, at time.Time, err error) {
	for {
		var n, oobn int
		var rerr error
		err := s.raw.Read(func(fd uintptr) bool {
			n, oobn, _, _, rerr = unix.Recvmsg(int(fd), s.buf, s.oob, 0)
			return rerr != unix.EAGAIN
		})
		if err != nil {
			return m, at, err
		}
		if rerr != nil {
			continue
		}
		if m, ok := parse(s.six, s.buf[:n]); ok {
			return m, arrival(s.oob[:oobn]), nil
		}
	}
}

// arrival returns the time that the kernel noted, on the clock of time.Now.
func arrival(oob []byte) time.Time {
	now := time.Now()
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return now
	}
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})) {
			ts := (*unix.Timespec)(unsafe.Pointer(&m.Data[0]))
			// Count backwards from now, which keeps the monotonic reading: if
			// somebody sets the wall clock meanwhile, no gap appears.
			if ago := now.Round(0).Sub(time.Unix(ts.Unix())); ago > 0 && ago < time.Minute {
				return now.Add(-ago)
			}
		}
	}
	return now
}

// clock sleeps more exactly than Go's timers, which may be a millisecond late. It
// keeps its thread to itself.
type clock struct{ timer *time.Timer }

func newClock() *clock {
	runtime.LockOSThread()
	return &clock{time.NewTimer(0)}
}

func (c *clock) close() {
	c.timer.Stop()
	runtime.UnlockOSThread()
}

// coarse is how long before the time clock stops using Go's timers.
const coarse = 3 * time.Millisecond

// sleep waits until a time, and reports whether it has not been stopped.
func (c *clock) sleep(until time.Time, stop <-chan struct{}) bool {
	left := time.Until(until)
	if left > coarse {
		c.timer.Reset(left - coarse)
		select {
		case <-c.timer.C:
		case <-stop:
			return false
		}
		left = time.Until(until)
	}
	select {
	case <-stop:
		return false
	default:
	}
	if left > 0 {
		ts := unix.NsecToTimespec(int64(left))
		_ = unix.Nanosleep(&ts, nil) // a signal ends it early, which does no harm
	}
	return true
}
