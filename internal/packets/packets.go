// Package packets makes packets and frames byte by byte: for trials of a node, for echo
// requests, and for the guests of tests and laboratories. What the fields mean is in RFC
// 791, 8200, 768, 9293, 792 and 4443.
package packets

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// DontFragment and MoreFragments are flags of [IP.Fragment].
const DontFragment, MoreFragments = 0x4000, 0x2000

// IP is a packet of the family of its source. The fields after Payload are IPv4's.
type IP struct {
	Source, Destination netip.Addr
	Protocol            byte // of the payload, or IPv6's first extension header
	Hops                byte // TTL or hop limit
	Payload             []byte

	Options  []byte // of a multiple of four bytes
	Fragment uint16 // flags, and the offset in units of eight bytes
	ID       uint16
}

// Bytes gives the packet, with the checksum of its header.
func (p IP) Bytes() []byte {
	if !p.Source.Is4() {
		head := []byte{0x60, 0, 0, 0, byte(len(p.Payload) >> 8), byte(len(p.Payload)), p.Protocol, p.Hops}
		return slices.Concat(head, p.Source.AsSlice(), p.Destination.AsSlice(), p.Payload)
	}
	size := 20 + len(p.Options)
	head := []byte{0x40 | byte(size/4), 0, 0, 0, 0, 0, 0, 0, p.Hops, p.Protocol, 0, 0}
	binary.BigEndian.PutUint16(head[2:], uint16(size+len(p.Payload)))
	binary.BigEndian.PutUint16(head[4:], p.ID)
	binary.BigEndian.PutUint16(head[6:], p.Fragment)
	head = slices.Concat(head, p.Source.AsSlice(), p.Destination.AsSlice(), p.Options)
	binary.BigEndian.PutUint16(head[10:], ^Sum(0, head))
	return append(head, p.Payload...)
}

// Ethernet is a frame without its checksum, which links of a machine do not have.
func Ethernet(to, from [6]byte, kind uint16, payload ...[]byte) []byte {
	head := binary.BigEndian.AppendUint16(slices.Concat(to[:], from[:]), kind)
	return slices.Concat(head, slices.Concat(payload...))
}

// EtherType is the kind of frames with packets of an address's family.
func EtherType(a netip.Addr) uint16 {
	if a.Is4() {
		return unix.ETH_P_IP
	}
	return unix.ETH_P_IPV6
}

// UDP is a datagram.
func UDP(src, dst netip.Addr, from, to uint16, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = Seal(src, dst, unix.IPPROTO_UDP, 6, slices.Concat(b, []byte{0, 0}, payload))
	if b[6] == 0 && b[7] == 0 { // that says that there is no checksum
		b[6], b[7] = 0xff, 0xff
	}
	return b
}

// Flags of a TCP segment.
const FIN, SYN, RST, ACK = 1, 2, 4, 16

// TCP is a segment with the sequence number 1, which acknowledges 1 with the flag ACK.
func TCP(src, dst netip.Addr, from, to uint16, flags byte, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = append(b, 0, 0, 0, 1, 0, 0, 0, flags&ACK/ACK, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0)
	return Seal(src, dst, unix.IPPROTO_TCP, 16, append(b, payload...))
}

// ICMP is a message of the family of its source, whose second word is rest.
func ICMP(src, dst netip.Addr, kind, code byte, rest uint32, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{kind, code, 0, 0}, rest)
	return Seal(src, dst, ICMPOf(src), 2, append(b, payload...))
}

// ICMPOf is the number of the protocol ICMP of an address's family.
func ICMPOf(a netip.Addr) byte {
	if a.Is4() {
		return unix.IPPROTO_ICMP
	}
	return unix.IPPROTO_ICMPV6
}

// Types of echo messages.
const echo4, reply4, echo6, reply6 = 8, 0, 128, 129

// Echo is an echo request.
func Echo(src, dst netip.Addr, id, number uint16, payload []byte) []byte {
	kind := byte(echo6)
	if src.Is4() {
		kind = echo4
	}
	return ICMP(src, dst, kind, 0, uint32(id)<<16|uint32(number), payload)
}

// IsEcho and IsReply report whether an ICMP message of a family is an echo request, or the
// answer to one, and give what identifies it.
func IsEcho(v6 bool, message []byte) (id, number uint16, is bool) {
	return identified(v6, message, echo4, echo6)
}

func IsReply(v6 bool, message []byte) (id, number uint16, is bool) {
	return identified(v6, message, reply4, reply6)
}

func identified(v6 bool, message []byte, four, six byte) (id, number uint16, is bool) {
	if v6 {
		four = six
	}
	if len(message) < 8 || message[0] != four {
		return 0, 0, false
	}
	return binary.BigEndian.Uint16(message[4:]), binary.BigEndian.Uint16(message[6:]), true
}

// Sum is the checksum of the Internet, before its complement (RFC 1071).
func Sum(start uint32, b []byte) uint16 {
	for ; len(b) > 1; b = b[2:] {
		start += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		start += uint32(b[0]) << 8
	}
	for start > 0xffff {
		start = start&0xffff + start>>16
	}
	return uint16(start)
}

// Seal puts the checksum of a transport header and what follows it at an offset, and
// returns them.
func Seal(src, dst netip.Addr, protocol byte, offset int, segment []byte) []byte {
	binary.BigEndian.PutUint16(segment[offset:], 0)
	binary.BigEndian.PutUint16(segment[offset:], ^Sum(PseudoHeader(src, dst, protocol, len(segment)), segment))
	return segment
}

// PseudoHeader is what a checksum begins with that covers the addresses, too; 0 for ICMP
// over IPv4, whose does not.
func PseudoHeader(src, dst netip.Addr, protocol byte, length int) uint32 {
	if protocol == unix.IPPROTO_ICMP {
		return 0
	}
	size := binary.BigEndian.AppendUint32(nil, uint32(length))
	return uint32(Sum(0, slices.Concat(src.AsSlice(), dst.AsSlice(), size, []byte{0, protocol})))
}
