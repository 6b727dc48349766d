package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Error is the kernel's refusal of a request.
type Error struct {
	Errno unix.Errno
	Text  string // in the kernel's own words, if it gave any
}

func (e *Error) Error() string {
	if e.Text == "" {
		return e.Errno.Error()
	}
	return fmt.Sprintf("%v (%s)", e.Errno, e.Text)
}

func (e *Error) Unwrap() error { return e.Errno }

// Errno returns the number of an error of the kernel or of a system call, or 0.
func Errno(err error) unix.Errno {
	var e unix.Errno
	errors.As(err, &e)
	return e
}

// Message makes a request: a fixed header and attributes.
func Message(typ netlink.HeaderType, flags netlink.HeaderFlags, head []byte, attrs func(*netlink.AttributeEncoder)) netlink.Message {
	ae := netlink.NewAttributeEncoder()
	if attrs != nil {
		attrs(ae)
	}
	body, err := ae.Encode()
	if err != nil {
		panic("rtnetlink: attribute too long: " + err.Error()) // lengths are bounded by validation
	}
	return netlink.Message{
		Header: netlink.Header{Type: typ, Flags: netlink.Request | flags},
		Data:   append(head, body...),
	}
}

// IfInfoMsg makes the fixed header of a link's message.
func IfInfoMsg(index int32, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	return b
}

// IfAddrMsg makes the fixed header of an address's message.
func IfAddrMsg(family, bits uint8, index int32) []byte {
	b := make([]byte, unix.SizeofIfAddrmsg)
	b[0], b[1] = family, bits
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	return b
}

// RtMsg makes the fixed header of a message about a unicast route of the main
// table.
func RtMsg(family, bits, protocol, scope uint8, flags uint32) []byte {
	b := make([]byte, unix.SizeofRtMsg)
	b[0], b[1] = family, bits
	b[4], b[5], b[6], b[7] = unix.RT_TABLE_MAIN, protocol, scope, unix.RTN_UNICAST
	binary.NativeEndian.PutUint32(b[8:], flags)
	return b
}

// parse splits a datagram into messages. Their bodies are parts of b.
func parse(b []byte, add func(netlink.Message)) {
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return
		}
		add(netlink.Message{
			Header: netlink.Header{
				Length: uint32(n), Type: netlink.HeaderType(binary.NativeEndian.Uint16(b[4:])), Flags: netlink.HeaderFlags(binary.NativeEndian.Uint16(b[6:])),
				Sequence: binary.NativeEndian.Uint32(b[8:]), PID: binary.NativeEndian.Uint32(b[12:]),
			},
			Data: b[unix.SizeofNlMsghdr:n:n],
		})
		b = b[min(len(b), align(n)):]
	}
}

// encode appends a message as it is sent.
func encode(b []byte, m netlink.Message) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.SizeofNlMsghdr+len(m.Data)))
	b = binary.NativeEndian.AppendUint16(b, uint16(m.Header.Type))
	b = binary.NativeEndian.AppendUint16(b, uint16(m.Header.Flags))
	b = binary.NativeEndian.AppendUint32(b, m.Header.Sequence)
	b = binary.NativeEndian.AppendUint32(b, 0) // the kernel knows the socket
	b = append(b, m.Data...)
	return append(b, make([]byte, align(len(m.Data))-len(m.Data))...)
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// verdict reads the error of an acknowledgement or of the end of a listing: a
// number, and the kernel's words, if it gave any (NLMSGERR_ATTR_MSG).
func verdict(m netlink.Message) error {
	if len(m.Data) < 4 {
		return nil
	}
	errno := -int32(binary.NativeEndian.Uint32(m.Data))
	if errno <= 0 {
		return nil
	}
	e := &Error{Errno: unix.Errno(errno)}
	const hasText, capped = 0x200, 0x100 // NLM_F_ACK_TLVS, NLM_F_CAPPED
	if m.Header.Type != netlink.Error || m.Header.Flags&hasText == 0 || len(m.Data) < 4+unix.SizeofNlMsghdr {
		return e
	}
	// Behind the number is the request, or its header alone.
	at := 4 + unix.SizeofNlMsghdr
	if m.Header.Flags&capped == 0 {
		at = 4 + align(int(binary.NativeEndian.Uint32(m.Data[4:])))
	}
	if at < 0 || at > len(m.Data) {
		return e
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[at:])
	if err != nil {
		return e
	}
	for ad.Next() {
		if ad.Type() == unix.NLMSGERR_ATTR_MSG {
			e.Text = ad.String()
		}
	}
	return e
}
