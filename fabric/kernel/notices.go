package kernel

import (
	"context"
	"os"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// receiveBuffer holds the notifications of some thousand changes.
const receiveBuffer = 8 << 20

// notices is a socket on which the kernel tells what changes.
type notices struct {
	conn *netlink.Conn
	stop chan struct{} // closed when nobody receives any more

	mu       sync.Mutex
	barriers map[barrier]chan struct{} // who waits for the answer to what
}

func dialNotices(groups ...uint32) (*notices, error) {
	r, err := dialRTNL(groups...)
	if err != nil {
		return nil, err
	}
	if raw, err := r.conn.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
		})
	}
	return &notices{conn: r.conn, stop: make(chan struct{}), barriers: map[barrier]chan struct{}{}}, nil
}

// close ends Receive, and the waiting in catchUp.
func (n *notices) close() error {
	close(n.stop)
	return n.conn.Close()
}

func (n *notices) closed() bool {
	select {
	case <-n.stop:
		return true
	default:
		return false
	}
}

// catchUp waits until every notification that the kernel has sent by now has
// been taken up. It asks something on the notices' own socket, whose answer
// comes behind them.
func (n *notices) catchUp(ctx context.Context) error {
	n.mu.Lock()
	sent, err := n.conn.Send(message(unix.RTM_GETLINK, 0, ifinfomsg(0, 0, 0), func(ae *netlink.AttributeEncoder) {
		ae.String(unix.IFLA_IFNAME, "lo")
		ae.Uint32(unix.IFLA_EXT_MASK, extFilterSkipStats)
	}))
	done := make(chan struct{})
	if err == nil {
		n.barriers[barrierOf(sent)] = done
	}
	n.mu.Unlock()
	if err != nil {
		return reason(err)
	}
	select {
	case <-done:
		return nil
	case <-n.stop:
		return os.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pass lets those through who wait for one of the messages; nil is for all.
func (n *notices) pass(msgs []netlink.Message) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if msgs == nil {
		for _, done := range n.barriers {
			close(done)
		}
		clear(n.barriers)
		return
	}
	for _, m := range msgs {
		if done := n.barriers[barrierOf(m)]; done != nil {
			close(done)
			delete(n.barriers, barrierOf(m))
		}
	}
}

// barrier tells the answer to a request of ours from the notifications of what
// others did, which carry the numbers of their requests.
type barrier struct{ port, sequence uint32 }

func barrierOf(m netlink.Message) barrier { return barrier{m.Header.PID, m.Header.Sequence} }
