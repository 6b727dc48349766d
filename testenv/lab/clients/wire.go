package clients

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// Message is what a guest and its node say to each other about the guest's
// configuration.
type Message struct {
	At        time.Time
	FromGuest bool
	Protocol  fabric.ContactProtocol
	// Kind is the type of the message in words. A DHCPv4 REQUEST is one of the four
	// that RFC 2131, 4.3.6 has: "selecting", "init-reboot", "renewing", "rebinding".
	Kind string
	// Same is the message without what differs in each exchange: the transaction's
	// number, the time since the client began, and what the client calls itself, which
	// some make up anew each time (connman).
	Same []byte
}

// Answers reports whether the message gives a guest its configuration.
func (m Message) Answers() bool {
	return !m.FromGuest && slices.Contains([]string{"ack", "reply", "advertisement"}, m.Kind)
}

// Ports of DHCP (RFC 2131, 4.1; RFC 8415, 7.2).
const (
	server4, client4 = 67, 68
	server6, client6 = 547, 546
)

// Read reads a frame on the guest's cable; ok is false for one that is about something
// else.
func Read(f core.Frame) (m Message, ok bool) {
	if len(f.Data) < 14 {
		return m, false
	}
	m = Message{At: f.At, FromGuest: !f.Outgoing}
	packet := f.Data[14:]
	switch f.EtherType() {
	case unix.ETH_P_IP:
		ok = m.read4(packet)
	case unix.ETH_P_IPV6:
		ok = m.read6(packet)
	}
	return m, ok
}

func (m *Message) read4(packet []byte) bool {
	if len(packet) < 20 || packet[9] != unix.IPPROTO_UDP {
		return false
	}
	dst, ok := netip.AddrFromSlice(packet[16:20])
	udp := packet[min(len(packet), 4*int(packet[0]&15)):]
	if !ok || len(udp) < 8 || !between(udp, server4, client4) {
		return false
	}
	d, err := dhcpv4.FromBytes(udp[8:])
	if err != nil {
		return false
	}
	m.Protocol, m.Kind = fabric.DHCPv4, strings.ToLower(d.MessageType().String())
	if d.MessageType() == dhcpv4.MessageTypeRequest {
		m.Kind = requested(d, dst)
	}
	m.Same = slices.Clone(udp[8:])
	clear(m.Same[4:10])
	return true
}

// requested names a DHCPv4 REQUEST.
func requested(d *dhcpv4.DHCPv4, dst netip.Addr) string {
	switch {
	case d.ServerIdentifier() != nil:
		return "selecting"
	case d.ClientIPAddr.IsUnspecified():
		return "init-reboot"
	case dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "rebinding"
	}
	return "renewing"
}

func (m *Message) read6(packet []byte) bool {
	if len(packet) < 48 {
		return false
	}
	body := packet[40:]
	switch {
	case packet[6] == unix.IPPROTO_ICMPV6 && body[0] == 133:
		m.Protocol, m.Kind = fabric.RouterSolicitation, "solicitation"
	case packet[6] == unix.IPPROTO_ICMPV6 && body[0] == 134:
		m.Protocol, m.Kind, m.Same = fabric.RouterSolicitation, "advertisement", slices.Clone(body)
	case packet[6] == unix.IPPROTO_UDP && between(body, server6, client6):
		d, err := dhcpv6.MessageFromBytes(body[8:])
		if err != nil {
			return false
		}
		m.Protocol, m.Kind, m.Same = fabric.DHCPv6, strings.ToLower(d.MessageType.String()), slices.Clone(body[8:])
		clear(m.Same[1:4])
		if id := d.GetOneOption(dhcpv6.OptionClientID); id != nil {
			clear(m.Same[bytes.Index(m.Same, id.ToBytes()):][:len(id.ToBytes())])
		}
	default:
		return false
	}
	return true
}

// between reports whether a UDP datagram is between two ports, in either direction.
func between(udp []byte, a, b uint16) bool {
	src, dst := binary.BigEndian.Uint16(udp), binary.BigEndian.Uint16(udp[2:])
	return dst == a || src == a && dst == b
}
