package conformance

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/mdlayher/ndp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// Guest has the controls for the laws of what guests are told: it is behind the ports
// of [Controls.SetCarrier], while they have carrier.
type Guest struct {
	Send     func(t *testing.T, port string, frame []byte)
	Received func(t *testing.T, port string) [][]byte // the frames that came since the last call
}

// guestLaws are the laws of what guests are told.
var guestLaws = []law{
	{"a guest learns its addresses", guestLearns},
	{"a guest is answered while it arrives", guestArrives},
	{"only its own guest is answered", guestStranger},
	{"a port that was not put is told nothing", guestNotPut},
}

// guest needs the control, and gives the port carrier.
func guest(t *testing.T, d fabric.Dataplane, c Controls, p fabric.Port) {
	t.Helper()
	need(t, c.Guest != nil && c.SetCarrier != nil, "Guest, SetCarrier")
	require.NoError(t, d.Put(t.Context(), p))
	c.SetCarrier(t, p.Name, false) // the fake's have it from the start
	c.SetCarrier(t, p.Name, true)
}

// The addresses of a guest's requests.
var (
	toAll4     = netip.MustParseAddr("255.255.255.255")
	toServers6 = netip.MustParseAddr("ff02::1:2")
	toRouters  = netip.IPv6LinkLocalAllRouters()
	linkLocal  = netip.MustParseAddr("fe80::5054:ff:fe00:1")
)

// headers is where the payload of an answer begins, by DHCPv4 and DHCPv6; ICMPv6 has no
// header before it.
const headers4, headers6, headersICMP = 14 + 20 + 8, 14 + 40 + 8, 14 + 40

// discover is a DHCPDISCOVER of a guest, or, with a type and an address, another message.
func discover(t *testing.T, mac fabric.MAC, more ...dhcpv4.Modifier) []byte {
	t.Helper()
	m, err := dhcpv4.NewDiscovery(mac[:], more...)
	require.NoError(t, err)
	return datagram(mac, netip.AddrPortFrom(netip.IPv4Unspecified(), 68), netip.AddrPortFrom(toAll4, 67), m.ToBytes())
}

// solicit6 is a Solicit of a guest.
func solicit6(t *testing.T, mac fabric.MAC) []byte {
	t.Helper()
	m, err := dhcpv6.NewSolicit(mac[:])
	require.NoError(t, err)
	return datagram(mac, netip.AddrPortFrom(linkLocal, 546), netip.AddrPortFrom(toServers6, 547), m.ToBytes())
}

// solicitRouter is a router solicitation.
func solicitRouter(t *testing.T, mac fabric.MAC) []byte {
	t.Helper()
	b, err := ndp.MarshalMessageChecksum(&ndp.RouterSolicitation{}, linkLocal, toRouters)
	require.NoError(t, err)
	return packet(mac, linkLocal, toRouters, 58, 255, b)
}

// datagram is a UDP datagram in a frame. Over IPv4 it has no checksum.
func datagram(mac fabric.MAC, from, to netip.AddrPort, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(append(b, 0, 0), payload...)
	if from.Addr().Is6() {
		head := slices.Concat(from.Addr().AsSlice(), to.Addr().AsSlice(), []byte{0, 17, byte(len(b) >> 8), byte(len(b))})
		binary.BigEndian.PutUint16(b[6:], ^sum(head, b))
	}
	return packet(mac, from.Addr(), to.Addr(), 17, 64, b)
}

// packet is an IP packet in a frame to the address's group, or to the gateway.
func packet(mac fabric.MAC, from, to netip.Addr, protocol, hops byte, payload []byte) []byte {
	link := gateway.MAC
	switch a := to.AsSlice(); {
	case to == toAll4:
		link = fabric.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	case to.IsMulticast():
		link = fabric.MAC{0x33, 0x33, a[12], a[13], a[14], a[15]}
	}
	head, kind := []byte{0x60, 0, 0, 0, byte(len(payload) >> 8), byte(len(payload)), protocol, hops}, []byte{0x86, 0xdd}
	if from.Is4() {
		total := 20 + len(payload)
		head, kind = []byte{0x45, 0, byte(total >> 8), byte(total), 0, 0, 0, 0, hops, protocol, 0, 0}, []byte{0x08, 0x00}
	}
	head = slices.Concat(head, from.AsSlice(), to.AsSlice())
	if from.Is4() {
		binary.BigEndian.PutUint16(head[10:], ^sum(head))
	}
	return slices.Concat(link[:], mac[:], kind, head, payload)
}

// sum is the Internet checksum of parts (RFC 1071), before its complement.
func sum(parts ...[]byte) uint16 {
	var s uint32
	for i, b := range slices.Concat(parts...) { // all parts but the last are of even length
		s += uint32(b) << (8 * (1 - i%2))
	}
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s)
}

// answered sends a request of a guest now and then until an answer to it has come that
// read takes. The first may be lost: the link may not have taken up its carrier yet.
func answered(t *testing.T, c Controls, port string, request []byte, read func(frame []byte) bool) {
	t.Helper()
	const every = 50 // looks
	looks := 0
	eventually(t, port+" is answered", func() bool {
		if looks%every == 0 {
			c.Guest.Send(t, port, request)
		}
		looks++
		return slices.ContainsFunc(c.Guest.Received(t, port), read)
	})
}

// offers4 reads a DHCPv4 answer of a type that gives an address.
func offers4(t dhcpv4.MessageType, a string) func([]byte) bool {
	return func(frame []byte) bool {
		if len(frame) < headers4 || frame[12] != 0x08 || frame[23] != 17 {
			return false
		}
		m, err := dhcpv4.FromBytes(frame[headers4:])
		return err == nil && m.MessageType() == t && m.YourIPAddr.Equal(net.ParseIP(a)) && m.ServerIdentifier().Equal(gateway.IPv4.AsSlice())
	}
}

// offers6 reads a DHCPv6 answer that gives an address.
func offers6(a string) func([]byte) bool {
	return func(frame []byte) bool {
		if len(frame) < headers6 || frame[12] != 0x86 || frame[20] != 17 {
			return false
		}
		m, err := dhcpv6.MessageFromBytes(frame[headers6:])
		if err != nil || m.Options.OneIANA() == nil {
			return false
		}
		has := m.Options.OneIANA().Options.OneAddress()
		return has != nil && has.IPv6Addr.Equal(net.ParseIP(a))
	}
}

// advertises reads a router advertisement of the gateway.
func advertises(frame []byte) bool {
	if len(frame) < headersICMP || frame[12] != 0x86 || frame[20] != 58 || frame[21] != 255 {
		return false
	}
	m, err := ndp.ParseMessage(frame[headersICMP:])
	ra, is := m.(*ndp.RouterAdvertisement)
	return err == nil && is && ra.RouterLifetime > 0 && ra.ManagedConfiguration && netip.AddrFrom16([16]byte(frame[22:38])) == gateway.IPv6
}

// contactsOf gives the messages by which the guest of a port has asked, or, with refused,
// those that were.
func contactsOf(t *testing.T, d fabric.Dataplane, port string, refused bool) map[fabric.ContactProtocol]string {
	t.Helper()
	all, err := d.Actual(t.Context())
	require.NoError(t, err)
	messages := map[fabric.ContactProtocol]string{}
	for _, p := range all {
		for _, c := range p.Contacts {
			if p.Name == port && (c.Refused != "") == refused {
				assert.False(t, c.At.IsZero())
				messages[c.Protocol] = c.Message
			}
		}
	}
	return messages
}

func guestLearns(t *testing.T, d fabric.Dataplane, c Controls) {
	p := port("web", 0, c.made(), "203.0.113.10", "203.0.113.11", "2001:db8:100::10", "2001:db8:200::/64")
	guest(t, d, c, p)
	assert.Empty(t, contactsOf(t, d, p.Name, false))
	answered(t, c, p.Name, discover(t, p.NIC.MAC), offers4(dhcpv4.MessageTypeOffer, "203.0.113.10"))
	answered(t, c, p.Name, discover(t, p.NIC.MAC, dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest),
		dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.ParseIP("203.0.113.10"))), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(gateway.IPv4.AsSlice()))),
		offers4(dhcpv4.MessageTypeAck, "203.0.113.10"))
	answered(t, c, p.Name, solicit6(t, p.NIC.MAC), offers6("2001:db8:100::10"))
	answered(t, c, p.Name, solicitRouter(t, p.NIC.MAC), advertises)
	eventually(t, "its contacts are listed", func() bool { return len(contactsOf(t, d, p.Name, false)) == 3 })
	assert.Equal(t, map[fabric.ContactProtocol]string{
		fabric.DHCPv4: "REQUEST", fabric.DHCPv6: "SOLICIT", fabric.RouterSolicitation: "SOLICITATION",
	}, contactsOf(t, d, p.Name, false))

	p.NIC.Addresses = []netip.Addr{netip.MustParseAddr("203.0.113.12"), netip.MustParseAddr("2001:db8:100::12")}
	require.NoError(t, d.Put(t.Context(), p))
	answered(t, c, p.Name, discover(t, p.NIC.MAC), offers4(dhcpv4.MessageTypeOffer, "203.0.113.12"))
	answered(t, c, p.Name, solicit6(t, p.NIC.MAC), offers6("2001:db8:100::12"))
	assert.Len(t, contactsOf(t, d, p.Name, false), 3, "a port that changes keeps them")

	require.NoError(t, d.Remove(t.Context(), p.Name))
	guest(t, d, c, p)
	assert.Empty(t, contactsOf(t, d, p.Name, false), "they were those of the port before")
}

func guestArrives(t *testing.T, d fabric.Dataplane, c Controls) {
	p := incoming(port("web", 0, c.made(), "203.0.113.10", "2001:db8:100::10"))
	for range 2 { // before it runs here, and after
		guest(t, d, c, p)
		answered(t, c, p.Name, discover(t, p.NIC.MAC), offers4(dhcpv4.MessageTypeOffer, "203.0.113.10"))
		answered(t, c, p.Name, solicit6(t, p.NIC.MAC), offers6("2001:db8:100::10"))
		answered(t, c, p.Name, solicitRouter(t, p.NIC.MAC), advertises)
		p.Incoming = false
	}
}

// unanswered sends requests to a port, then one to another, and checks that only the
// latter is answered. Requests are taken in their order.
func unanswered(t *testing.T, c Controls, requests [][]byte, silent string, other fabric.Port) {
	t.Helper()
	c.Guest.Received(t, silent)
	for _, r := range requests {
		c.Guest.Send(t, silent, r)
	}
	answered(t, c, other.Name, discover(t, other.NIC.MAC), offers4(dhcpv4.MessageTypeOffer, other.NIC.Addresses[0].String()))
	for _, f := range c.Guest.Received(t, silent) {
		assert.False(t, offers4(dhcpv4.MessageTypeOffer, "203.0.113.10")(f), "by DHCPv4")
		assert.False(t, offers6("2001:db8:100::10")(f), "by DHCPv6")
	}
}

func guestStranger(t *testing.T, d fabric.Dataplane, c Controls) {
	p, other := port("web", 0, c.made(), "203.0.113.10", "2001:db8:100::10"), port("db", 0, c.made(), "203.0.113.11", "2001:db8:100::11")
	guest(t, d, c, p)
	guest(t, d, c, other)
	answered(t, c, p.Name, solicitRouter(t, p.NIC.MAC), advertises)
	stranger := fabric.MAC{0x52, 0x54, 0, 0, 0, 0x77}
	unanswered(t, c, [][]byte{discover(t, stranger), solicit6(t, stranger), solicitRouter(t, stranger)}, p.Name, other)
	assert.Len(t, contactsOf(t, d, p.Name, true), 3)

	p.NIC.MAC = fabric.MAC{} // not known
	require.NoError(t, d.Put(t.Context(), p))
	answered(t, c, p.Name, discover(t, stranger), offers4(dhcpv4.MessageTypeOffer, "203.0.113.10"))
}

func guestNotPut(t *testing.T, d fabric.Dataplane, c Controls) {
	need(t, c.Again != nil, "Again")
	p, other := port("web", 0, c.made(), "203.0.113.10", "2001:db8:100::10"), port("db", 0, c.made(), "203.0.113.11", "2001:db8:100::11")
	guest(t, d, c, p)
	guest(t, d, c, other)
	answered(t, c, p.Name, discover(t, p.NIC.MAC), offers4(dhcpv4.MessageTypeOffer, "203.0.113.10"))
	again := c.Again(t)
	require.NoError(t, again.Put(t.Context(), other))
	unanswered(t, c, [][]byte{discover(t, p.NIC.MAC), solicit6(t, p.NIC.MAC), solicitRouter(t, p.NIC.MAC)}, p.Name, other)
	assert.Empty(t, contactsOf(t, again, p.Name, false))
	require.NoError(t, again.Put(t.Context(), p))
	answered(t, c, p.Name, discover(t, p.NIC.MAC), offers4(dhcpv4.MessageTypeOffer, "203.0.113.10"))
	answered(t, c, p.Name, solicit6(t, p.NIC.MAC), offers6("2001:db8:100::10"))
}
