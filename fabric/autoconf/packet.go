package autoconf

import (
	"encoding/binary"
	"net/netip"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/packets"
)

// maxPacket is the largest packet that is read, and sent: Ethernet's. It bounds the
// work for a request.
const maxPacket = 1500

// Lengths of headers.
const (
	ethernetLen = 14
	ipv4Len     = 20
	ipv6Len     = 40
	udpLen      = 8
)

// Numbers of protocols (RFC 5237).
const (
	protocolUDP    = 17
	protocolICMPv6 = 58
)

// datagram is a packet that came in: its headers, and what is in it.
type datagram struct {
	src, dst netip.Addr
	protocol uint8
	hops     uint8 // the TTL or hop limit that is left
	port     uint16
	payload  []byte // of UDP, or the whole ICMPv6 message
	fault    string // why the payload is not to be read, in words; empty: it is
}

// parse reads a packet from its IP header on; ok is false for one that is cut off, or
// is neither UDP nor ICMPv6.
func parse(packet []byte) (d datagram, ok bool) {
	if len(packet) == 0 {
		return d, false
	}
	switch packet[0] >> 4 {
	case 4:
		return parse4(packet)
	case 6:
		return parse6(packet)
	}
	return d, false
}

// parse4 reads an IPv4 packet.
func parse4(b []byte) (d datagram, ok bool) {
	if len(b) < ipv4Len {
		return d, false
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < ipv4Len || total < header || total > len(b) {
		return d, false
	}
	fragment := binary.BigEndian.Uint16(b[6:])
	d = datagram{
		src: netip.AddrFrom4([4]byte(b[12:16])), dst: netip.AddrFrom4([4]byte(b[16:20])),
		protocol: b[9], hops: b[8],
	}
	if d.protocol != protocolUDP || fragment&0x1fff != 0 {
		return d, false
	}
	if fragment&0x2000 != 0 {
		d.fault = "it is a fragment"
	} else if packets.Sum(0, b[:header]) != 0xffff {
		d.fault = "the checksum of its IP header is wrong"
	}
	return d.transport(b[header:total])
}

// parse6 reads an IPv6 packet without extension headers.
func parse6(b []byte) (d datagram, ok bool) {
	if len(b) < ipv6Len {
		return d, false
	}
	total := ipv6Len + int(binary.BigEndian.Uint16(b[4:]))
	if total > len(b) {
		return d, false
	}
	d = datagram{
		src: netip.AddrFrom16([16]byte(b[8:24])), dst: netip.AddrFrom16([16]byte(b[24:40])),
		protocol: b[6], hops: b[7],
	}
	return d.transport(b[ipv6Len:total])
}

// transport reads the header of UDP, or of ICMPv6, and checks the checksum.
func (d datagram) transport(b []byte) (datagram, bool) {
	field := 2 // of an ICMPv6 message
	switch {
	case d.protocol == protocolUDP && len(b) >= udpLen:
		length := int(binary.BigEndian.Uint16(b[4:]))
		if length < udpLen || length > len(b) {
			return d, false
		}
		b, field = b[:length], 6
		d.port, d.payload = binary.BigEndian.Uint16(b[2:]), b[udpLen:]
	case d.protocol == protocolICMPv6 && d.src.Is6() && len(b) >= 4:
		d.payload = b
	default:
		return d, false
	}
	if len(b) > maxPacket {
		d.fault = "it is larger than 1500 bytes"
	} else if d.fault == "" && !d.intact(b, binary.BigEndian.Uint16(b[field:])) {
		d.fault = "its checksum is wrong"
	}
	return d, true
}

// intact checks a checksum. A packet that has not left this machine may have only the
// sum of the pseudo-header there, since a device would do the rest (CHECKSUM_PARTIAL).
// UDP over IPv4 may have none.
func (d datagram) intact(b []byte, checksum uint16) bool {
	if checksum == 0 {
		return d.src.Is4()
	}
	pseudo := packets.PseudoHeader(d.src, d.dst, d.protocol, len(b))
	return packets.Sum(pseudo, b) == 0xffff || packets.Sum(pseudo, nil) == checksum
}

// udpFrame gives a UDP datagram as an Ethernet frame.
func udpFrame(from, to fabric.MAC, src, dst netip.AddrPort, payload []byte) []byte {
	return frame(from, to, src.Addr(), dst.Addr(), protocolUDP, 64, packets.UDP(src.Addr(), dst.Addr(), src.Port(), dst.Port(), payload))
}

// frame gives an IP packet as an Ethernet frame. A packet that is never in fragments needs
// no identification (RFC 6864).
func frame(from, to fabric.MAC, src, dst netip.Addr, protocol, hops uint8, payload []byte) []byte {
	p := packets.IP{Source: src, Destination: dst, Protocol: protocol, Hops: hops, Payload: payload, Fragment: packets.DontFragment}
	return packets.Ethernet(to, from, packets.EtherType(src), p.Bytes())
}
