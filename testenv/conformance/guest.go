package conformance

import (
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
	"github.com/vmfabric/vmfabric/internal/requests"
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

// request is a guest's request for its addresses.
func request(k requests.Kind, mac fabric.MAC, addresses ...netip.Addr) []byte {
	return requests.Guest{MAC: mac, Addresses: addresses, Gateway: gateway}.Frame(k, 1)
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
		if len(frame) < requests.Payload4 || frame[12] != 0x08 || frame[23] != 17 {
			return false
		}
		m, err := dhcpv4.FromBytes(frame[requests.Payload4:])
		return err == nil && m.MessageType() == t && m.YourIPAddr.Equal(net.ParseIP(a)) && m.ServerIdentifier().Equal(gateway.IPv4.AsSlice())
	}
}

// offers6 reads a DHCPv6 answer that gives an address.
func offers6(a string) func([]byte) bool {
	return func(frame []byte) bool {
		if len(frame) < requests.Payload6 || frame[12] != 0x86 || frame[20] != 17 {
			return false
		}
		m, err := dhcpv6.MessageFromBytes(frame[requests.Payload6:])
		if err != nil || m.Options.OneIANA() == nil {
			return false
		}
		has := m.Options.OneIANA().Options.OneAddress()
		return has != nil && has.IPv6Addr.Equal(net.ParseIP(a))
	}
}

// advertises reads a router advertisement of the gateway.
func advertises(frame []byte) bool {
	if len(frame) < requests.PayloadICMP || frame[12] != 0x86 || frame[20] != 58 || frame[21] != 255 {
		return false
	}
	m, err := ndp.ParseMessage(frame[requests.PayloadICMP:])
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
	answered(t, c, p.Name, request(requests.Discover, p.NIC.MAC), offers4(dhcpv4.MessageTypeOffer, "203.0.113.10"))
	answered(t, c, p.Name, request(requests.Select, p.NIC.MAC, p.NIC.Addresses...),
		offers4(dhcpv4.MessageTypeAck, "203.0.113.10"))
	answered(t, c, p.Name, request(requests.Solicit, p.NIC.MAC), offers6("2001:db8:100::10"))
	answered(t, c, p.Name, request(requests.Solicitation, p.NIC.MAC), advertises)
	eventually(t, "its contacts are listed", func() bool { return len(contactsOf(t, d, p.Name, false)) == 3 })
	assert.Equal(t, map[fabric.ContactProtocol]string{
		fabric.DHCPv4: "REQUEST", fabric.DHCPv6: "SOLICIT", fabric.RouterSolicitation: "SOLICITATION",
	}, contactsOf(t, d, p.Name, false))

	p.NIC.Addresses = []netip.Addr{netip.MustParseAddr("203.0.113.12"), netip.MustParseAddr("2001:db8:100::12")}
	require.NoError(t, d.Put(t.Context(), p))
	answered(t, c, p.Name, request(requests.Discover, p.NIC.MAC), offers4(dhcpv4.MessageTypeOffer, "203.0.113.12"))
	answered(t, c, p.Name, request(requests.Solicit, p.NIC.MAC), offers6("2001:db8:100::12"))
	assert.Len(t, contactsOf(t, d, p.Name, false), 3, "a port that changes keeps them")

	require.NoError(t, d.Remove(t.Context(), p.Name))
	guest(t, d, c, p)
	assert.Empty(t, contactsOf(t, d, p.Name, false), "they were those of the port before")
}

func guestArrives(t *testing.T, d fabric.Dataplane, c Controls) {
	p := incoming(port("web", 0, c.made(), "203.0.113.10", "2001:db8:100::10"))
	for range 2 { // before it runs here, and after
		guest(t, d, c, p)
		answered(t, c, p.Name, request(requests.Discover, p.NIC.MAC), offers4(dhcpv4.MessageTypeOffer, "203.0.113.10"))
		answered(t, c, p.Name, request(requests.Solicit, p.NIC.MAC), offers6("2001:db8:100::10"))
		answered(t, c, p.Name, request(requests.Solicitation, p.NIC.MAC), advertises)
		p.Incoming = false
	}
}

// unanswered sends requests to a port, then one to another, and checks that only the
// latter is answered. Requests are taken in their order.
func unanswered(t *testing.T, c Controls, frames [][]byte, silent string, other fabric.Port) {
	t.Helper()
	c.Guest.Received(t, silent)
	for _, f := range frames {
		c.Guest.Send(t, silent, f)
	}
	answered(t, c, other.Name, request(requests.Discover, other.NIC.MAC), offers4(dhcpv4.MessageTypeOffer, other.NIC.Addresses[0].String()))
	for _, f := range c.Guest.Received(t, silent) {
		assert.False(t, offers4(dhcpv4.MessageTypeOffer, "203.0.113.10")(f), "by DHCPv4")
		assert.False(t, offers6("2001:db8:100::10")(f), "by DHCPv6")
	}
}

func guestStranger(t *testing.T, d fabric.Dataplane, c Controls) {
	p, other := port("web", 0, c.made(), "203.0.113.10", "2001:db8:100::10"), port("db", 0, c.made(), "203.0.113.11", "2001:db8:100::11")
	guest(t, d, c, p)
	guest(t, d, c, other)
	answered(t, c, p.Name, request(requests.Solicitation, p.NIC.MAC), advertises)
	stranger := fabric.MAC{0x52, 0x54, 0, 0, 0, 0x77}
	unanswered(t, c, [][]byte{request(requests.Discover, stranger), request(requests.Solicit, stranger), request(requests.Solicitation, stranger)}, p.Name, other)
	assert.Len(t, contactsOf(t, d, p.Name, true), 3)

	p.NIC.MAC = fabric.MAC{} // not known
	require.NoError(t, d.Put(t.Context(), p))
	answered(t, c, p.Name, request(requests.Discover, stranger), offers4(dhcpv4.MessageTypeOffer, "203.0.113.10"))
}

func guestNotPut(t *testing.T, d fabric.Dataplane, c Controls) {
	need(t, c.Again != nil, "Again")
	p, other := port("web", 0, c.made(), "203.0.113.10", "2001:db8:100::10"), port("db", 0, c.made(), "203.0.113.11", "2001:db8:100::11")
	guest(t, d, c, p)
	guest(t, d, c, other)
	answered(t, c, p.Name, request(requests.Discover, p.NIC.MAC), offers4(dhcpv4.MessageTypeOffer, "203.0.113.10"))
	again := c.Again(t)
	require.NoError(t, again.Put(t.Context(), other))
	unanswered(t, c, [][]byte{request(requests.Discover, p.NIC.MAC), request(requests.Solicit, p.NIC.MAC), request(requests.Solicitation, p.NIC.MAC)}, p.Name, other)
	assert.Empty(t, contactsOf(t, again, p.Name, false))
	require.NoError(t, again.Put(t.Context(), p))
	answered(t, c, p.Name, request(requests.Discover, p.NIC.MAC), offers4(dhcpv4.MessageTypeOffer, "203.0.113.10"))
	answered(t, c, p.Name, request(requests.Solicit, p.NIC.MAC), offers6("2001:db8:100::10"))
}
