package autoconf

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/gopacket/gopacket/layers"

	"github.com/vmfabric/vmfabric/fabric"
)

// Ports of UDP on which DHCP servers listen, and to which they answer.
const (
	server4, client4 = 67, 68
	server6, client6 = 547, 546
)

// Request is a packet of the guest as it came in on the port.
type Request struct {
	From   fabric.MAC // the source of the frame
	Packet []byte     // from the IP header on
}

// Answer is what the node sends, and what it notes.
type Answer struct {
	Frames [][]byte // whole Ethernet frames to send on the port
	// Contact has no time: that is the caller's. Without a Protocol the packet asks
	// this node for nothing.
	Contact fabric.Contact
}

// Answer decides what the node answers to a packet of the guest. It keeps no part of
// the packet.
func (o Offer) Answer(r Request) Answer {
	d, ok := parse(r.Packet)
	if !ok {
		return Answer{}
	}
	switch {
	case d.src.Is4() && d.port == server4 && (d.dst == broadcast4 || d.dst == o.Gateway.IPv4):
		return o.answer4(r.From, d)
	case d.src.Is6() && d.port == server6 && (d.dst.IsMulticast() || d.dst == o.Gateway.IPv6):
		return o.answer6(r.From, d)
	case d.protocol == layers.IPProtocolICMPv6 && d.payload[0] == typeSolicitation && (d.dst.IsMulticast() || d.dst == o.Gateway.IPv6):
		return o.answerSolicitation(r.From, d)
	}
	return Answer{}
}

// stranger says why the sender of a frame is not the guest; empty: it is.
func (o Offer) stranger(from fabric.MAC) string {
	switch {
	case from == o.Gateway.MAC:
		return "it came from " + from.String() + ", which is the gateway's; give the NIC another one"
	case !o.MAC.IsZero() && from != o.MAC:
		return "it came from " + from.String() + ", and the NIC has " + o.MAC.String()
	}
	return ""
}

// refused gives an answer that sends nothing.
func refused(c fabric.Contact, why string) Answer {
	c.Refused = why
	return Answer{Contact: c}
}

// printable gives what a guest says of itself as text: at most 64 characters of those
// that can be printed.
func printable(b []byte) string {
	var s strings.Builder
	for n := 0; len(b) > 0 && n < 64; {
		r, size := utf8.DecodeRune(b)
		b = b[size:]
		if unicode.IsPrint(r) && (r != utf8.RuneError || size > 1) {
			s.WriteRune(r)
			n++
		}
	}
	return s.String()
}

// labelled gives the name that is encoded at the beginning of b (RFC 1035, 3.1), whole
// or not, as text.
func labelled(b []byte) string {
	var name []byte
	for len(b) > 0 && b[0] > 0 && int(b[0]) < len(b) && b[0] < 64 && len(name) < 256 {
		if len(name) > 0 {
			name = append(name, '.')
		}
		name, b = append(name, b[1:1+b[0]]...), b[1+b[0]:]
	}
	return printable(name)
}
