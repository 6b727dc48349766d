package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// rtnl is a request socket to rtnetlink. Requests are serial, as the kernel's
// own lock makes them anyway; several go out in one system call.
type rtnl struct {
	mu   sync.Mutex
	conn *netlink.Conn
}

func dialRTNL(groups ...uint32) (*rtnl, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("rtnetlink: %w", err)
	}
	for _, g := range groups {
		if err := conn.JoinGroup(g); err != nil {
			conn.Close()
			return nil, fmt.Errorf("rtnetlink: group %d: %w", g, err)
		}
	}
	// Both are for better diagnosis and cheaper dumps; kernels before 4.20 do without.
	_ = conn.SetOption(netlink.ExtendedAcknowledge, true)
	_ = conn.SetOption(netlink.GetStrictCheck, true)
	return &rtnl{conn: conn}, nil
}

// batch sends all requests at once and gives each its own error. The error it
// returns itself means that the socket is of no more use.
func (r *rtnl) batch(msgs ...netlink.Message) ([]error, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	sent, err := r.conn.SendMessages(msgs)
	if err != nil {
		return nil, err
	}
	errs := make([]error, len(sent))
	for i := range sent {
		_, err := r.conn.Receive()
		if op := (*netlink.OpError)(nil); err != nil && (!errors.As(err, &op) || errnoOf(err) == 0) {
			return nil, err
		}
		errs[i] = err
	}
	return errs, nil
}

// do sends one request and returns the replies that are not acknowledgements.
func (r *rtnl) do(m netlink.Message) ([]netlink.Message, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conn.Execute(m)
}

func (r *rtnl) close() error { return r.conn.Close() }

func errnoOf(err error) unix.Errno {
	var e unix.Errno
	errors.As(err, &e)
	return e
}

// reason is the error for people: the kernel's own words where it gave some.
func reason(err error) error {
	op := (*netlink.OpError)(nil)
	if errors.As(err, &op) {
		if op.Message != "" {
			return fmt.Errorf("%w (%s)", op.Err, op.Message)
		}
		return op.Err
	}
	return err
}

// message makes an rtnetlink request: a fixed header and attributes.
func message(typ netlink.HeaderType, flags netlink.HeaderFlags, head []byte, attrs func(*netlink.AttributeEncoder)) netlink.Message {
	ae := netlink.NewAttributeEncoder()
	if attrs != nil {
		attrs(ae)
	}
	body, err := ae.Encode()
	if err != nil {
		panic("kernel: attribute too long: " + err.Error()) // lengths are bounded by validation
	}
	return netlink.Message{
		Header: netlink.Header{Type: typ, Flags: netlink.Request | flags},
		Data:   append(head, body...),
	}
}

func nativeUint16(b []byte) uint16 { return binary.NativeEndian.Uint16(b) }
func nativeUint32(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }
func putUint16(b []byte, v uint16) { binary.NativeEndian.PutUint16(b, v) }
func putUint32(b []byte, v uint32) { binary.NativeEndian.PutUint32(b, v) }

// ifinfomsg, ifaddrmsg and rtmsg are the fixed headers of rtnetlink(7).

func ifinfomsg(index int32, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	return b
}

func ifaddrmsg(family, bits uint8, index int32) []byte {
	b := make([]byte, unix.SizeofIfAddrmsg)
	b[0], b[1] = family, bits
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	return b
}

func rtmsg(family, bits, scope uint8, flags uint32) []byte {
	b := make([]byte, unix.SizeofRtMsg)
	b[0], b[1] = family, bits
	b[4], b[5], b[6], b[7] = unix.RT_TABLE_MAIN, routeProtocol, scope, unix.RTN_UNICAST
	binary.NativeEndian.PutUint32(b[8:], flags)
	return b
}
