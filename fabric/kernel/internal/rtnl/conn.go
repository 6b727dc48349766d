package rtnl

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// mostAtOnce holds any datagram of rtnetlink: a listing comes in parts of at
	// most 32 KiB, a notification has one message.
	mostAtOnce = 64 << 10
	// requestsAtOnce is how many requests go out together. They and their answers
	// fit well into a socket's buffers.
	requestsAtOnce = 128
	answerBuffer   = 1 << 20
	// lostAfter is when an answer counts as lost. As a rule there is no wait: the
	// kernel has answered by the time that a request is sent.
	lostAfter = 10 * time.Second
	// listAgain is how many times Do repeats a listing that a change interrupted.
	listAgain = 10
)

// Conn is a socket for requests, which is safe for concurrent use. Requests are
// serial, as the kernel's own lock makes them anyway.
type Conn struct {
	mu       sync.Mutex
	requests requests
}

// requests is the socket and its buffers. A goroutine that has it, by [Conn.open],
// has it alone.
type requests struct {
	fd       int // -1: closed
	sequence uint32
	in, out  []byte
}

// open locks the socket for the caller, until it calls done.
func (c *Conn) open() (r *requests, done func()) {
	c.mu.Lock()
	return &c.requests, c.mu.Unlock
}

// Dial opens a socket in the network namespace of the calling thread.
func Dial() (*Conn, error) {
	fd, err := open(0)
	if err != nil {
		return nil, err
	}
	timeout := unix.NsecToTimeval(int64(lostAfter))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("rtnetlink: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, answerBuffer)
	return &Conn{requests: requests{fd: fd, in: make([]byte, mostAtOnce)}}, nil
}

func open(flags int) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|flags, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, fmt.Errorf("rtnetlink: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("rtnetlink: %w", err)
	}
	// The options give better error texts and cheaper listings. Kernels before 4.20
	// lack one of them.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	return fd, nil
}

// Strict reports whether the kernel checks requests strictly, and filters listings by
// them.
func (c *Conn) Strict() bool {
	r, done := c.open()
	defer done()
	on, err := unix.GetsockoptInt(r.fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK)
	return err == nil && on != 0
}

// Close waits for requests that are under way, then closes the socket.
func (c *Conn) Close() error {
	r, done := c.open()
	defer done()
	if r.fd < 0 {
		return os.ErrClosed
	}
	fd := r.fd
	r.fd = -1
	return unix.Close(fd)
}

// Answer is the kernel's answer to one request.
type Answer struct {
	Messages []netlink.Message // without the acknowledgement
	Err      error             // an [*Error] if the kernel refused

	interrupted bool
}

// Exchange sends requests, as many at once as the socket's buffers hold, and
// returns one answer per request. Its own error says that answers were lost; then
// it is unknown whether the kernel carried the requests out.
func (c *Conn) Exchange(msgs ...netlink.Message) ([]Answer, error) {
	r, done := c.open()
	defer done()
	all := make([]Answer, 0, len(msgs))
	for some := range slices.Chunk(msgs, requestsAtOnce) {
		answers, err := r.exchange(some)
		if err != nil {
			return nil, err
		}
		all = append(all, answers...)
	}
	return all, nil
}

// exchange sends requests in one system call.
func (r *requests) exchange(msgs []netlink.Message) ([]Answer, error) {
	if r.fd < 0 {
		return nil, os.ErrClosed
	}
	first := r.sequence + 1
	r.out = r.out[:0]
	for _, m := range msgs {
		r.sequence++
		m.Header.Sequence = r.sequence
		if !asks(m) {
			m.Header.Flags |= netlink.Acknowledge
		}
		r.out = encode(r.out, m)
	}
	for {
		err := unix.Sendto(r.fd, r.out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("rtnetlink: send: %w", err)
		}
		break
	}
	answers := make([]Answer, len(msgs))
	over := make([]bool, len(msgs))
	for left := len(msgs); left > 0; {
		n, _, err := unix.Recvfrom(r.fd, r.in, unix.MSG_TRUNC)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return nil, fmt.Errorf("rtnetlink: no answer in %v", lostAfter)
		case err != nil:
			return nil, fmt.Errorf("rtnetlink: receive: %w", err)
		case n > len(r.in):
			return nil, fmt.Errorf("rtnetlink: an answer of %d bytes", n)
		}
		parse(r.in[:n], func(m netlink.Message) {
			i := m.Header.Sequence - first
			if i >= uint32(len(msgs)) || over[i] {
				return // the answer to a request that was given up
			}
			if answers[i].take(m, msgs[i]) {
				over[i] = true
				left--
			}
		})
	}
	return answers, nil
}

// asks reports whether a request asks for information, which is then its answer.
// The kernel acknowledges other requests.
func asks(m netlink.Message) bool { return m.Header.Type&3 == unix.RTM_GETLINK&3 }

// take adds a part of an answer and reports whether it is the last one.
func (a *Answer) take(m, request netlink.Message) (last bool) {
	a.interrupted = a.interrupted || m.Header.Flags&netlink.DumpInterrupted != 0
	switch m.Header.Type {
	case netlink.Error, netlink.Done:
		a.Err = verdict(m)
		return true
	case netlink.Noop, netlink.Overrun:
		return false
	}
	m.Data = slices.Clone(m.Data)
	a.Messages = append(a.Messages, m)
	return m.Header.Flags&netlink.Multi == 0 && request.Header.Flags&netlink.Acknowledge == 0
}

// Do sends one request and returns its answer. It repeats a listing that a change
// interrupted, up to listAgain times: notifications tell of the rest.
func (c *Conn) Do(m netlink.Message) ([]netlink.Message, error) {
	for again := 0; ; again++ {
		answers, err := c.Exchange(m)
		if err != nil {
			return nil, err
		}
		if a := answers[0]; !a.interrupted || again == listAgain {
			return a.Messages, a.Err
		}
	}
}

// Batch sends requests at once, and returns one error per request. Its own error is
// that of [Conn.Exchange].
func (c *Conn) Batch(msgs ...netlink.Message) ([]error, error) {
	answers, err := c.Exchange(msgs...)
	if err != nil {
		return nil, err
	}
	errs := make([]error, len(answers))
	for i, a := range answers {
		errs[i] = a.Err
	}
	return errs, nil
}
