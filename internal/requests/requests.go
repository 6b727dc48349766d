// Package requests has what a guest sends to learn its network, in whole Ethernet frames:
// for tests, laboratories and the simulated cluster.
package requests

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/mdlayher/ndp"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/packets"
)

// Kind is a kind of request.
type Kind int

// The kinds of request.
const (
	Discover     Kind = iota // DHCPv4: who gives an address
	Select                   // DHCPv4: the address that was offered
	Reboot                   // DHCPv4: the address of before the boot
	Renew4                   // DHCPv4: the lease once more, of the server that gave it
	Rebind4                  // DHCPv4: the lease once more, of any server
	Solicit                  // DHCPv6: who gives addresses
	Renew6                   // DHCPv6: the lease once more, of the server that gave it
	Rebind6                  // DHCPv6: the lease once more, of any server
	Solicitation             // of a router
	Kinds                    // how many there are
)

// String returns the kind's words.
func (k Kind) String() string {
	return [...]string{"discover", "select", "reboot", "renew by DHCPv4", "rebind by DHCPv4", "solicit", "renew by DHCPv6", "rebind by DHCPv6", "router solicitation"}[k]
}

// Guest is who asks.
type Guest struct {
	MAC       fabric.MAC
	Addresses []netip.Addr // that it has, or wants
	Gateway   fabric.Gateway
}

// Ports of DHCP clients and servers (RFC 2131, RFC 8415).
const client4, server4, client6, server6 = 68, 67, 546, 547

var (
	everybody  = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	servers6   = netip.MustParseAddr("ff02::1:2")
	allRouters = netip.IPv6LinkLocalAllRouters()
)

// Frame makes a request. The number is its transaction ID, of which DHCPv6 has 24 bits,
// and router solicitations have none.
func (g Guest) Frame(k Kind, number uint32) []byte {
	switch k {
	case Solicitation:
		b, err := ndp.MarshalMessageChecksum(&ndp.RouterSolicitation{}, g.linkLocal(), allRouters)
		if err != nil {
			panic(err) // it has no options
		}
		return g.packet(g.linkLocal(), allRouters, unix.IPPROTO_ICMPV6, 255, b)
	case Solicit, Renew6, Rebind6:
		return g.datagram(netip.AddrPortFrom(g.linkLocal(), client6), netip.AddrPortFrom(servers6, server6), g.message6(k, number))
	default:
		from, to := netip.IPv4Unspecified(), everybody
		if k == Renew4 || k == Rebind4 {
			from = g.address4()
		}
		if k == Renew4 {
			to = g.Gateway.IPv4
		}
		return g.datagram(netip.AddrPortFrom(from, client4), netip.AddrPortFrom(to, server4), g.message4(k, number))
	}
}

// address4 is the guest's first IPv4 address.
func (g Guest) address4() netip.Addr {
	if i := slices.IndexFunc(g.Addresses, netip.Addr.Is4); i >= 0 {
		return g.Addresses[i]
	}
	return netip.IPv4Unspecified()
}

func (g Guest) linkLocal() netip.Addr { return LinkLocal(g.MAC) }

// LinkLocal is the address that a guest makes of its MAC address (RFC 4291, A).
func LinkLocal(m fabric.MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

func (g Guest) message4(k Kind, number uint32) []byte {
	m := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootRequest, HWType: iana.HWTypeEthernet, ClientHWAddr: g.MAC[:],
		Options: dhcpv4.OptionsFromList(dhcpv4.OptMessageType(dhcpv4.MessageTypeRequest)),
	}
	binary.BigEndian.PutUint32(m.TransactionID[:], number)
	wants := dhcpv4.OptRequestedIPAddress(g.address4().AsSlice())
	switch k {
	case Discover:
		m.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeDiscover))
	case Select:
		m.UpdateOption(wants)
		m.UpdateOption(dhcpv4.OptServerIdentifier(g.Gateway.IPv4.AsSlice()))
	case Reboot:
		m.UpdateOption(wants)
	default:
		m.ClientIPAddr = g.address4().AsSlice()
	}
	return m.ToBytes()
}

func (g Guest) message6(k Kind, number uint32) []byte {
	m := &dhcpv6.Message{
		MessageType:   map[Kind]dhcpv6.MessageType{Solicit: dhcpv6.MessageTypeSolicit, Renew6: dhcpv6.MessageTypeRenew, Rebind6: dhcpv6.MessageTypeRebind}[k],
		TransactionID: dhcpv6.TransactionID{byte(number >> 16), byte(number >> 8), byte(number)},
	}
	ia := &dhcpv6.OptIANA{IaId: [4]byte(g.MAC[2:])}
	if k != Solicit {
		for _, a := range g.Addresses {
			if a.Is6() {
				ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.IP(a.AsSlice())})
			}
		}
	}
	if k == Renew6 {
		m.AddOption(dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: g.Gateway.MAC[:]}))
	}
	m.AddOption(dhcpv6.OptClientID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: g.MAC[:]}))
	m.AddOption(ia)
	return m.ToBytes()
}

// Where the payload of a frame begins, after UDP over IPv4 and over IPv6, and of ICMPv6.
const (
	Payload4    = 14 + 20 + 8
	Payload6    = 14 + 40 + 8
	PayloadICMP = 14 + 40
)

// AnswerTo returns the kind of answer that a frame is ("DHCPv4", "DHCPv6" or "RA"), and
// the number of the request to which it is one; "" if it is none.
func AnswerTo(frame []byte) (protocol string, number uint32) {
	switch {
	case len(frame) > Payload4+8 && frame[12] == 0x08 && frame[13] == 0 && frame[23] == 17 && binary.BigEndian.Uint16(frame[34:]) == server4:
		return "DHCPv4", binary.BigEndian.Uint32(frame[Payload4+4:])
	case len(frame) > Payload6+4 && frame[12] == 0x86 && frame[20] == 17 && binary.BigEndian.Uint16(frame[54:]) == server6:
		return "DHCPv6", binary.BigEndian.Uint32(frame[Payload6:]) & 0xffffff
	case len(frame) > PayloadICMP && frame[12] == 0x86 && frame[20] == 58 && frame[PayloadICMP] == 134:
		return "RA", 0
	}
	return "", 0
}

// datagram is a UDP datagram in a frame.
func (g Guest) datagram(from, to netip.AddrPort, payload []byte) []byte {
	return g.packet(from.Addr(), to.Addr(), unix.IPPROTO_UDP, 64, packets.UDP(from.Addr(), to.Addr(), from.Port(), to.Port(), payload))
}

// packet is an IP packet in a frame to the address's group, or to the gateway.
func (g Guest) packet(from, to netip.Addr, protocol, hops byte, payload []byte) []byte {
	link := g.Gateway.MAC
	switch a := to.AsSlice(); {
	case to == everybody:
		link = fabric.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	case to.IsMulticast():
		link = fabric.MAC{0x33, 0x33, a[12], a[13], a[14], a[15]}
	}
	p := packets.IP{Source: from, Destination: to, Protocol: protocol, Hops: hops, Payload: payload}
	return packets.Ethernet(link, g.MAC, packets.EtherType(from), p.Bytes())
}
