package probe

import (
	"encoding/binary"
	"net/netip"

	"github.com/vmfabric/vmfabric/internal/packets"
)

// Types of ICMP (RFC 792) and ICMPv6 messages (RFC 4443).
const (
	unreachable4, exceeded4 = 3, 11
	unreachable6, exceeded6 = 1, 3
)

// payload is the size of a request's data: its full sequence number.
const payload = 8

// message is an ICMP message without its IP header.
type message struct {
	six  bool
	body []byte // begins with the type
}

// newRequest makes an echo request. For ICMPv6 the kernel computes the checksum.
func newRequest(to netip.Addr, id uint16, seq int) message {
	return message{to.Is6(), packets.Echo(to, to, id, uint16(seq), binary.BigEndian.AppendUint64(nil, uint64(seq)))}
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

func (m message) isRefusal() bool {
	return m.is(unreachable4, unreachable6) || m.is(exceeded4, exceeded6)
}

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
	id, _, _ := packets.IsEcho(m.six, quoted)
	return id
}
