package rtnl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// noticeBuffer holds the notifications of some thousand changes.
	noticeBuffer = 8 << 20
	// noticesAtOnce bounds the datagrams that [Events.Receive] reads at once.
	noticesAtOnce = 64
	skipStats     = 1 << 3 // RTEXT_FILTER_SKIP_STATS
)

// Events is a socket on which the kernel notifies of changes.
type Events struct {
	file *os.File
	raw  syscall.RawConn
	in   []byte // of Receive alone
	port uint32 // the socket's own number

	mu       sync.Mutex
	sequence uint32
	barriers map[barrier]chan struct{} // by the answers for which somebody waits
	closed   chan struct{}
}

// Subscribe opens a socket in the network namespace of the calling thread. It gets
// the notifications of the groups (RTNLGRP_*).
func Subscribe(groups ...uint32) (*Events, error) {
	fd, err := open(unix.SOCK_NONBLOCK)
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(g)); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("rtnetlink: group %d: %w", g, err)
		}
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, noticeBuffer)
	e := &Events{
		file: os.NewFile(uintptr(fd), "rtnetlink"), in: make([]byte, mostAtOnce),
		barriers: map[barrier]chan struct{}{}, closed: make(chan struct{}),
	}
	own, err := unix.Getsockname(fd)
	if err == nil {
		e.raw, err = e.file.SyscallConn()
	}
	if err != nil {
		e.file.Close()
		return nil, fmt.Errorf("rtnetlink: %w", err)
	}
	if sa, ok := own.(*unix.SockaddrNetlink); ok {
		e.port = sa.Pid
	}
	return e, nil
}

// Close ends Receive.
func (e *Events) Close() error {
	close(e.closed)
	return e.file.Close()
}

// Closed is closed by Close.
func (e *Events) Closed() <-chan struct{} { return e.closed }

// Until makes Receive return [os.ErrDeadlineExceeded] from the end of ctx on, until
// release is called.
func (e *Events) Until(ctx context.Context) (release func()) {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		_ = e.file.SetReadDeadline(time.Unix(1, 0)) // an error says that the socket is closed
	})
	return func() {
		if !stop() {
			<-ended
			_ = e.file.SetReadDeadline(time.Time{})
		}
	}
}

// Receive waits for notifications and returns those that there are. ENOBUFS says
// that notifications until now are lost, [os.ErrClosed] that the socket is closed.
// Only one goroutine may call it.
func (e *Events) Receive() (msgs []netlink.Message, err error) {
	var failed error
	err = e.raw.Read(func(fd uintptr) bool {
		for len(msgs) < noticesAtOnce {
			n, _, err := unix.Recvfrom(int(fd), e.in, unix.MSG_TRUNC)
			switch {
			case err == unix.EINTR:
				continue
			case err == unix.EAGAIN:
				return len(msgs) > 0
			case err != nil:
				failed = err
				e.drain(int(fd))
				return true
			case n > len(e.in):
				failed = unix.ENOBUFS // one was lost
				return true
			}
			parse(slices.Clone(e.in[:n]), func(m netlink.Message) { msgs = append(msgs, m) })
		}
		return true
	})
	select {
	case <-e.closed:
		return nil, os.ErrClosed
	default:
	}
	if err = errors.Join(err, failed); err != nil {
		return nil, err
	}
	return msgs, nil
}

// drain empties the socket. Once notifications were lost, the kernel does not
// report further losses until the socket is empty, not even those of answers to
// Ask.
func (e *Events) drain(fd int) {
	for {
		if _, _, err := unix.Recvfrom(fd, e.in, 0); err == unix.EAGAIN || err != nil && err != unix.ENOBUFS && err != unix.EINTR {
			return
		}
	}
}

// Ask sends a request on the notifications' own socket: the answer comes behind all
// notifications that the kernel has sent by now. Pass closes answered when it got it.
func (e *Events) Ask() (answered <-chan struct{}, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sequence++
	m := Message(unix.RTM_GETLINK, 0, IfInfoMsg(0, 0, 0), func(ae *netlink.AttributeEncoder) {
		ae.String(unix.IFLA_IFNAME, "lo")
		ae.Uint32(unix.IFLA_EXT_MASK, skipStats)
	})
	m.Header.Sequence = e.sequence
	var failed error
	err = e.raw.Control(func(fd uintptr) {
		failed = unix.Sendto(int(fd), encode(nil, m), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("rtnetlink: %w", err)
	}
	done := make(chan struct{})
	e.barriers[barrier{e.port, m.Header.Sequence}] = done
	return done, nil
}

// Pass ends the waits for the answers that are among the messages. nil ends all.
func (e *Events) Pass(msgs []netlink.Message) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if msgs == nil {
		for _, done := range e.barriers {
			close(done)
		}
		clear(e.barriers)
		return
	}
	for _, m := range msgs {
		b := barrier{m.Header.PID, m.Header.Sequence}
		if done := e.barriers[b]; done != nil {
			close(done)
			delete(e.barriers, b)
		}
	}
}

// barrier identifies the answer to a request of [Events.Ask]. Notifications of changes by
// others carry the numbers of their requests.
type barrier struct{ port, sequence uint32 }
