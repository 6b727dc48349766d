package attack

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/packets"
)

// ethernet is a frame without its checksum, which links of a machine do not have.
type ethernet struct {
	to, from fabric.MAC
	tags     []uint16 // pairs of a tag's protocol and its content, the outer one first
	kind     uint16   // EtherType, or the length of an IEEE 802.3 frame
	payload  []byte
}

func (e ethernet) bytes() []byte {
	b := slices.Concat(e.to[:], e.from[:])
	for _, word := range append(slices.Clone(e.tags), e.kind) {
		b = binary.BigEndian.AppendUint16(b, word)
	}
	return append(b, e.payload...)
}

// packet is an IP packet of the family of its source.
type packet struct {
	src, dst netip.Addr
	protocol byte // of the payload, or IPv6's first extension header
	hops     int  // TTL or hop limit; 0: 64, -1: none
	options  []byte
	fragment uint16 // IPv4's flags and offset in units of eight bytes
	id       uint16
	payload  []byte
}

// moreFragments6 is the flag of IPv6's fragment header that is like IPv4's.
const moreFragments6 = 1

func (p packet) bytes() []byte {
	hops := byte(max(p.hops, 0))
	if p.hops == 0 {
		hops = 64
	}
	return packets.IP{
		Source: p.src, Destination: p.dst, Protocol: p.protocol, Hops: hops, Payload: p.payload,
		Options: p.options, Fragment: p.fragment, ID: p.id,
	}.Bytes()
}

// Types of ICMP (RFC 792) and ICMPv6 (RFC 4443, RFC 4861, RFC 3810).
const (
	echo4, reply4, unreachable4, redirect4, exceeded4, timestamp4, mask4 = 8, 0, 3, 5, 11, 13, 17

	unreachable6, tooBig6, exceeded6, echo6, reply6           = 1, 2, 3, 128, 129
	query6, report6, done6                                    = 130, 131, 132
	advertisement6, solicitation6, neighbor6, redirect6       = 134, 135, 136, 137
	overrideNeighbor, solicitedNeighbor, routerNeighbor       = 0x20, 0x40, 0x80
	sourceLinkOption, targetLinkOption, prefixOption    uint8 = 1, 2, 3
)

// echo is an echo request.
func echo(src, dst netip.Addr, payload []byte) []byte { return packets.Echo(src, dst, 1, 1, payload) }

// arp is a message of ARP (RFC 826): a request is 1, a reply 2.
func arp(op byte, mac fabric.MAC, sender netip.Addr, asked fabric.MAC, target netip.Addr) []byte {
	return slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, op}, mac[:], sender.AsSlice(), asked[:], target.AsSlice())
}

// linkOption is an option of neighbour discovery with a MAC address.
func linkOption(kind byte, mac fabric.MAC) []byte { return slices.Concat([]byte{kind, 1}, mac[:]) }

// extension is an IPv6 extension header of a multiple of eight bytes, padded.
func extension(next byte, body []byte) []byte {
	b := append([]byte{next, 0}, body...)
	for len(b)%8 != 0 {
		b = append(b, 0) // Pad1
	}
	b[1] = byte(len(b)/8 - 1)
	return b
}

// fragment6 is IPv6's fragment header; the offset is in units of eight bytes.
func fragment6(next byte, offset, flags uint16, id uint32) []byte {
	b := binary.BigEndian.AppendUint16([]byte{next, 0}, offset<<3|flags)
	return binary.BigEndian.AppendUint32(b, id)
}

// broadcast is everybody's MAC address.
var broadcast = fabric.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// groupMAC is the MAC address of a multicast group (RFC 1112, RFC 2464).
func groupMAC(group netip.Addr) fabric.MAC {
	b := group.AsSlice()
	if group.Is4() {
		return fabric.MAC{1, 0, 0x5e, b[1] & 0x7f, b[2], b[3]}
	}
	return fabric.MAC{0x33, 0x33, b[12], b[13], b[14], b[15]}
}
