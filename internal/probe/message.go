package probe

import (
	"encoding/binary"
	"net/netip"
)

// Types of ICMP (RFC 792) and ICMPv6 messages (RFC 4443).
const (
	echo4, reply4, unreachable4, exceeded4 = 8, 0, 3, 11
	echo6, reply6, unreachable6, exceeded6 = 128, 129, 1, 3
)

// payload is the size of a request's data: its full sequence number.
const payload = 8

// message is an ICMP message without its IP header.
type message struct {
	six  bool
	body []byte // begins with the type
}

// newRequest makes an echo request.
func newRequest(to netip.Addr, id uint16) message {
	m := message{six: to.Is6(), body: make([]byte, 8+payload)}
	m.body[0] = echo4
	if m.six {
		m.body[0] = echo6
	}
	binary.BigEndian.PutUint16(m.body[4:], id)
	return m
}

// number sets a request's sequence number and checksum. For ICMPv6 the kernel
// computes the checksum.
func (m message) number(seq int) {
	binary.BigEndian.PutUint16(m.body[6:], uint16(seq))
	binary.BigEndian.PutUint64(m.body[8:], uint64(seq))
	if !m.six {
		binary.BigEndian.PutUint16(m.body[2:], 0)
		binary.BigEndian.PutUint16(m.body[2:], checksum(m.body))
	}
}

// checksum returns the checksum of RFC 1071 over an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// parse reads a message from a raw socket. With IPv4 the socket returns the IP
// header, too.
func parse(six bool, b []byte) (m message, ok bool) {
	if !six {
		b = afterHeader4(b)
	}
	return message{six, b}, len(b) >= 8
}

// afterHeader4 returns the bytes after an IPv4 header; nil if there are none.
func afterHeader4(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	if header := int(b[0]&0xf) * 4; header <= len(b) {
		return b[header:]
	}
	return nil
}

func (m message) is(four, six byte) bool {
	if m.six {
		return m.body[0] == six
	}
	return m.body[0] == four
}

func (m message) isReply() bool { return m.is(reply4, reply6) }

func (m message) isRefusal() bool {
	return m.is(unreachable4, unreachable6) || m.is(exceeded4, exceeded6)
}

func (m message) id() uint16   { return binary.BigEndian.Uint16(m.body[4:]) }
func (m message) data() []byte { return m.body[8:] }

// about returns the id of the request that an ICMP error quotes: the error has the
// header and the beginning of the packet. It returns 0, which no request has, for
// any other packet.
func (m message) about() uint16 {
	quoted := m.body[8:]
	if m.six {
		const header = 40
		if len(quoted) < header {
			return 0
		}
		quoted = quoted[header:]
	} else {
		quoted = afterHeader4(quoted)
	}
	if len(quoted) < 8 {
		return 0
	}
	if q := (message{m.six, quoted}); q.is(echo4, echo6) {
		return q.id()
	}
	return 0
}
