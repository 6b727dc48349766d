package autoconf

import (
	"bytes"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// discover gives a DHCPDISCOVER of the guest.
func discover(modifiers ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	m, err := dhcpv4.NewDiscovery(guestMAC[:], append([]dhcpv4.Modifier{dhcpv4.WithTransactionID(dhcpv4.TransactionID{1, 2, 3, 4})}, modifiers...)...)
	if err != nil {
		panic(err)
	}
	return m
}

// message4 gives another message of the guest.
func message4(kind dhcpv4.MessageType, options ...dhcpv4.Option) *dhcpv4.DHCPv4 {
	m := discover(dhcpv4.WithMessageType(kind))
	for _, o := range options {
		m.UpdateOption(o)
	}
	return m
}

// ask4 sends a message by broadcast, or from an address to the gateway, and gives the
// answer, which has one.
func ask4(t *testing.T, o Offer, m *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, datagram, fabric.Contact) {
	t.Helper()
	d, contact := answerOf(t, o, udpRequest("0.0.0.0:68", "255.255.255.255:67", m.ToBytes()))
	assert.Equal(t, gateway4, d.src)
	assert.Equal(t, uint16(68), d.port)
	require.GreaterOrEqual(t, len(d.payload), 300)
	reply, err := dhcpv4.FromBytes(d.payload)
	require.NoError(t, err)
	assert.Equal(t, dhcpv4.OpcodeBootReply, reply.OpCode)
	assert.Equal(t, m.TransactionID, reply.TransactionID)
	assert.Equal(t, m.ClientHWAddr, reply.ClientHWAddr)
	assert.Equal(t, m.Flags, reply.Flags)
	assert.Equal(t, gateway4.AsSlice(), []byte(reply.ServerIdentifier()))
	return reply, d, contact
}

// requested and chosen are the options 50 and 54.
func requested(a string) dhcpv4.Option {
	return dhcpv4.OptRequestedIPAddress(net.ParseIP(a).To4())
}

func chosen(a string) dhcpv4.Option { return dhcpv4.OptServerIdentifier(net.ParseIP(a).To4()) }

// TestOffer: the answer that all clients take, byte by byte.
func TestOffer(t *testing.T) {
	t.Parallel()
	m := discover()
	m.UpdateOption(dhcpv4.OptParameterRequestList(dhcpv4.OptionRouter, optionWindowsRoutes))
	m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientIdentifier, []byte{255, 1, 2}))
	m.UpdateOption(dhcpv4.OptHostName("web"))
	m.UpdateOption(dhcpv4.OptClassIdentifier("MSFT 5.0"))
	reply, d, contact := ask4(t, web(), m)
	routes := []byte{32, 169, 254, 1, 1, 0, 0, 0, 0, 0, 169, 254, 1, 1}
	assert.Equal(t, dhcpv4.Options{
		1:   {255, 255, 255, 255},
		3:   {169, 254, 1, 1},
		6:   {9, 9, 9, 9},
		12:  []byte("web-1"),
		15:  []byte("example.net"),
		26:  {1450 >> 8, 1450 & 255},
		42:  {192, 0, 2, 123},
		51:  {0, 9, 0x3a, 0x80}, // 604800
		53:  {2},
		54:  {169, 254, 1, 1},
		58:  {0, 0, 0x0e, 0x10}, // 3600
		59:  {0, 0, 0x1c, 0x20}, // 7200
		61:  {255, 1, 2},
		119: []byte("\x07example\x03net\x00\x04corp\xc0\x00"),
		121: routes,
		249: routes,
	}, reply.Options)
	assert.Equal(t, guest4.AsSlice(), []byte(reply.YourIPAddr))
	assert.Equal(t, guest4, d.dst)
	assert.Equal(t, fabric.Contact{Protocol: fabric.DHCPv4, Message: "DISCOVER", Hostname: "web", Client: "MSFT 5.0"}, contact)
}

// TestOfferOfLittle: nothing is said of what is not known.
func TestOfferOfLittle(t *testing.T) {
	t.Parallel()
	reply, _, _ := ask4(t, plain(), discover())
	var codes []uint8
	for code := range reply.Options {
		codes = append(codes, code)
	}
	assert.ElementsMatch(t, []uint8{1, 3, 51, 53, 54, 58, 59, 121}, codes)
}

func TestRequestOfAnAddress(t *testing.T) {
	t.Parallel()
	second := netip.MustParseAddr("203.0.113.11")
	o := web()
	o.Addresses = append(o.Addresses, second)
	for name, test := range map[string]struct {
		options []dhcpv4.Option
		ciaddr  string
		want    string // the address; "NAK"
		state   string
	}{
		"selecting":                  {[]dhcpv4.Option{chosen("169.254.1.1"), requested("203.0.113.10")}, "", "203.0.113.10", "REQUEST"},
		"selecting, ill":             {[]dhcpv4.Option{chosen("169.254.1.1"), requested("192.0.2.9")}, "", "NAK", "REQUEST"},
		"selecting, by its address":  {[]dhcpv4.Option{chosen("169.254.1.1")}, "203.0.113.10", "203.0.113.10", "REQUEST"},
		"after a reboot":             {[]dhcpv4.Option{requested("203.0.113.10")}, "", "203.0.113.10", "INIT-REBOOT"},
		"after a reboot, the second": {[]dhcpv4.Option{requested("203.0.113.11")}, "", "203.0.113.11", "INIT-REBOOT"},
		"after a reboot elsewhere":   {[]dhcpv4.Option{requested("192.168.0.7")}, "", "NAK", "INIT-REBOOT"},
		"rebinding":                  {nil, "203.0.113.10", "203.0.113.10", "REBIND"},
		"rebinding, another":         {nil, "203.0.113.12", "NAK", "REBIND"},
	} {
		m := message4(dhcpv4.MessageTypeRequest, test.options...)
		if test.ciaddr != "" {
			m.ClientIPAddr = net.ParseIP(test.ciaddr).To4()
		}
		reply, d, contact := ask4(t, o, m)
		assert.Equal(t, test.state, contact.Message, name)
		if test.want == "NAK" {
			assert.Equal(t, dhcpv4.MessageTypeNak, reply.MessageType(), name)
			assert.Equal(t, broadcast4, d.dst, name)
			assert.True(t, reply.YourIPAddr.IsUnspecified() && reply.ClientIPAddr.IsUnspecified(), name)
			assert.Contains(t, contact.Refused, "is not an address of the NIC", name)
			assert.Len(t, reply.Options, 3, name)
			continue
		}
		assert.Equal(t, dhcpv4.MessageTypeAck, reply.MessageType(), name)
		assert.Equal(t, test.want, reply.YourIPAddr.String(), name)
		assert.Equal(t, 168*time.Hour, reply.IPAddressLeaseTime(0), name)
		assert.Empty(t, contact.Refused, name)
	}
}

// TestRenewal: a client that has its address asks, and is answered, by unicast.
func TestRenewal(t *testing.T) {
	t.Parallel()
	m := message4(dhcpv4.MessageTypeRequest)
	m.ClientIPAddr = guest4.AsSlice()
	m.SetBroadcast() // counts for those without an address
	a := web().Answer(udpRequest("203.0.113.10:68", "169.254.1.1:67", m.ToBytes()))
	require.Len(t, a.Frames, 1)
	assert.Equal(t, guestMAC[:], a.Frames[0][:6])
	d := sane(t, web(), Request{From: guestMAC}, a)[0]
	assert.Equal(t, guest4, d.dst)
	assert.Equal(t, "RENEW", a.Contact.Message)
	m.ClientIPAddr = net.IP{192, 0, 2, 7}
	a = web().Answer(udpRequest("203.0.113.10:68", "169.254.1.1:67", m.ToBytes()))
	sent := sane(t, web(), Request{From: guestMAC}, a)
	require.Len(t, sent, 2)
	assert.Equal(t, broadcastMAC[:], a.Frames[0][:6], "a NAK")
	assert.Equal(t, broadcast4, sent[0].dst)
	assert.Equal(t, guestMAC[:], a.Frames[1][:6], "to those that hear only what is for their address")
	assert.Equal(t, netip.MustParseAddr("192.0.2.7"), sent[1].dst)
	assert.Equal(t, sent[0].payload, sent[1].payload)
}

// TestWhereAnswersGo: to the guest's new address, unless it asks for broadcast.
func TestWhereAnswersGo(t *testing.T) {
	t.Parallel()
	m := discover()
	a := web().Answer(udpRequest("0.0.0.0:68", "255.255.255.255:67", m.ToBytes()))
	assert.Equal(t, guestMAC[:], a.Frames[0][:6])
	m.SetBroadcast()
	a = web().Answer(udpRequest("0.0.0.0:68", "255.255.255.255:67", m.ToBytes()))
	assert.Equal(t, broadcastMAC[:], a.Frames[0][:6])
	assert.Equal(t, broadcast4, sane(t, web(), Request{From: guestMAC}, a)[0].dst)
	ask4(t, web(), m)
}

// TestInform: a guest with a static address gets the rest, without a lease.
func TestInform(t *testing.T) {
	t.Parallel()
	m := message4(dhcpv4.MessageTypeInform)
	m.ClientIPAddr = guest4.AsSlice()
	reply, d, contact := ask4(t, web(), m)
	assert.Equal(t, dhcpv4.MessageTypeAck, reply.MessageType())
	assert.Equal(t, "INFORM", contact.Message)
	assert.Equal(t, guest4, d.dst)
	assert.True(t, reply.YourIPAddr.IsUnspecified())
	for _, lease := range []uint8{51, 58, 59} {
		assert.NotContains(t, reply.Options, lease)
	}
	assert.Contains(t, reply.Options, uint8(6))
}

// TestDeclineAndRelease: neither changes what the guest has, or gets an answer.
func TestDeclineAndRelease(t *testing.T) {
	t.Parallel()
	ask := func(m *dhcpv4.DHCPv4) Answer {
		return web().Answer(udpRequest("0.0.0.0:68", "255.255.255.255:67", m.ToBytes()))
	}
	assert.Equal(t, Answer{Contact: fabric.Contact{Protocol: fabric.DHCPv4, Message: "DECLINE", Declined: guest4}},
		ask(message4(dhcpv4.MessageTypeDecline, requested("203.0.113.10"), chosen("169.254.1.1"))))
	assert.Equal(t, Answer{Contact: fabric.Contact{Protocol: fabric.DHCPv4, Message: "DECLINE", Refused: "it declines an address that the NIC does not have"}},
		ask(message4(dhcpv4.MessageTypeDecline, requested("203.0.113.11"), chosen("169.254.1.1"))))
	assert.Equal(t, Answer{Contact: fabric.Contact{Protocol: fabric.DHCPv4, Message: "RELEASE"}},
		ask(message4(dhcpv4.MessageTypeRelease, chosen("169.254.1.1"))))
}

// TestSilence4: what gets no answer, and why.
func TestSilence4(t *testing.T) {
	t.Parallel()
	with := func(change func(*dhcpv4.DHCPv4)) *dhcpv4.DHCPv4 {
		m := discover()
		change(m)
		return m
	}
	off, bare, only6 := web(), web(), web()
	off.DHCP, bare.Addresses, only6.Gateway.IPv4 = false, bare.Addresses[1:], netip.Addr{}
	for why, test := range map[string]struct {
		o Offer
		m *dhcpv4.DHCPv4
	}{
		"it is not a request":                                            {web(), with(func(m *dhcpv4.DHCPv4) { m.OpCode = dhcpv4.OpcodeBootReply })},
		"its hardware address is not Ethernet's":                         {web(), with(func(m *dhcpv4.DHCPv4) { m.HWType = 32 })},
		"it came from 52:54:00:12:34:56, and asks for 52:54:00:00:00:01": {web(), with(func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1} })},
		"a relay sent it":                                                {web(), with(func(m *dhcpv4.DHCPv4) { m.GatewayIPAddr = net.IP{192, 0, 2, 1} })},
		"it is BOOTP, and not DHCP":                                      {web(), with(func(m *dhcpv4.DHCPv4) { m.DeleteOption(dhcpv4.OptionDHCPMessageType) })},
		"it is not a message of a client":                                {web(), message4(dhcpv4.MessageTypeOffer)},
		"it is for another server, 192.0.2.1":                            {web(), message4(dhcpv4.MessageTypeRequest, chosen("192.0.2.1"), requested("203.0.113.10"))},
		"it asks for no address":                                         {web(), message4(dhcpv4.MessageTypeRequest)},
		"DHCP is off for this guest":                                     {off, discover()},
		"the NIC has no IPv4 address":                                    {bare, discover()},
		"the cluster has no IPv4 gateway":                                {only6, discover()},
	} {
		a := test.o.Answer(udpRequest("0.0.0.0:68", "255.255.255.255:67", test.m.ToBytes()))
		assert.Empty(t, a.Frames, why)
		assert.Equal(t, why, a.Contact.Refused)
		assert.NotEmpty(t, a.Contact.Message, why)
	}
	short := discover()
	short.ClientHWAddr = short.ClientHWAddr[:5]
	assert.Equal(t, "its hardware address is not Ethernet's", web().Answer(udpRequest("0.0.0.0:68", "255.255.255.255:67", short.ToBytes())).Contact.Refused)
}

// TestFirmware: a PXE ROM does not understand a /32.
func TestFirmware(t *testing.T) {
	t.Parallel()
	m := discover()
	m.UpdateOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00007:UNDI:003016"))
	reply, _, _ := ask4(t, web(), m)
	assert.Equal(t, []byte{255, 255, 255, 252}, []byte(reply.SubnetMask()))
}

// TestRoom: an answer is no larger than the client takes, and has first what the guest
// cannot do without.
func TestRoom(t *testing.T) {
	t.Parallel()
	o := web()
	o.Search = nil
	for _, c := range "abcdefghijklmnop" {
		o.Search = append(o.Search, strings.Repeat(string(c), 60)+".example.net")
	}
	size := func(most uint16) (int, *dhcpv4.DHCPv4) {
		m := discover()
		if most > 0 {
			m.UpdateOption(dhcpv4.OptMaxMessageSize(most))
		}
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientIdentifier, bytes.Repeat([]byte{1}, 60)))
		reply, d, _ := ask4(t, o, m)
		assert.Contains(t, reply.Options, uint8(121))
		assert.Contains(t, reply.Options, uint8(61))
		return len(d.payload) + 28, reply
	}
	n, reply := size(0)
	assert.LessOrEqual(t, n, 576)
	assert.Greater(t, n, 500, "as many domains as fit")
	assert.Equal(t, "a", reply.DomainSearch().Labels[0][:1])
	n, _ = size(100) // less than a client may say
	assert.Greater(t, n, 500)
	n, reply = size(1500)
	assert.LessOrEqual(t, n, 1450)
	require.Len(t, reply.DomainSearch().Labels, 15, "in options of 255 bytes each")
	assert.Equal(t, o.Search[14], reply.DomainSearch().Labels[14])
	o.MTU = 1000
	n, _ = size(1500)
	assert.LessOrEqual(t, n, 1000, "what the link takes")
	assert.Greater(t, n, 900)
	m := discover()
	m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientIdentifier, bytes.Repeat([]byte{1}, 255)))
	reply, _, _ = ask4(t, o, m)
	assert.NotContains(t, reply.Options, uint8(61), "there is no room for it in 576 bytes")
}

// TestDomainsLeaveRoom: domains are cut to the room that all else leaves.
func TestDomainsLeaveRoom(t *testing.T) {
	t.Parallel()
	o := web()
	o.Search = nil
	for size := range 60 {
		o.Search = append([]string{strings.Repeat("a", size+1) + ".example.net"}, o.Search...)
		reply, _, _ := ask4(t, o, discover())
		require.NotEmpty(t, reply.NTPServers(), o.Search)
		require.NotEmpty(t, reply.DomainSearch().Labels, o.Search)
		m := message6(dhcpv6.MessageTypeInformationRequest, dhcpv6.OptRequestedOption(dhcpv6.OptionNTPServer, dhcpv6.OptionFQDN))
		reply6, _ := ask6(t, o, m)
		require.NotEmpty(t, reply6.Options.NTPServers(), o.Search)
		require.NotNil(t, reply6.GetOneOption(dhcpv6.OptionFQDN), o.Search)
		require.NotEmpty(t, reply6.Options.DomainSearchList().Labels, o.Search)
	}
}

// TestNamesOfClients: what a client says of itself is text.
func TestNamesOfClients(t *testing.T) {
	t.Parallel()
	for want, option := range map[string]dhcpv4.Option{
		"web":                   dhcpv4.OptHostName("web\x00"),
		"web.example.net":       dhcpv4.OptGeneric(optionClientFQDN, []byte("\x04\x00\x00\x03web\x07example\x03net\x00")),
		"web.example":           dhcpv4.OptGeneric(optionClientFQDN, []byte("\x00\x00\x00web.example")),
		"[31mweb":               dhcpv4.OptHostName("\x1b[31mweb\n\xff"),
		strings.Repeat("a", 64): dhcpv4.OptHostName(strings.Repeat("a", 200)),
		"":                      dhcpv4.OptGeneric(optionClientFQDN, []byte{4, 0}),
	} {
		_, _, contact := ask4(t, web(), message4(dhcpv4.MessageTypeDiscover, option))
		assert.Equal(t, want, contact.Hostname)
	}
}
