package autoconf

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/mdlayher/ndp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/packets"
)

var (
	gatewayMAC = fabric.MAC{0x02, 0x00, 0x5e, 0x00, 0x01, 0x01}
	guestMAC   = fabric.MAC{0x52, 0x54, 0x00, 0x12, 0x34, 0x56}
	gateway4   = netip.MustParseAddr("169.254.1.1")
	gateway6   = netip.MustParseAddr("fe80::1")
	guest4     = netip.MustParseAddr("203.0.113.10")
	guest6     = netip.MustParseAddr("2001:db8:100::10")
	linkLocal  = netip.MustParseAddr("fe80::5054:ff:fe12:3456")
	allRouters = netip.MustParseAddr("ff02::2")
)

// web is the offer of a guest that has one of everything.
func web() Offer {
	return Offer{
		Addresses: []netip.Addr{guest4, guest6},
		Routes:    []netip.Prefix{netip.MustParsePrefix("198.51.100.0/29"), netip.MustParsePrefix("2001:db8:200:1::/64")},
		MAC:       guestMAC,
		Hostname:  "web-1",
		Gateway:   fabric.Gateway{IPv4: gateway4, IPv6: gateway6, MAC: gatewayMAC},
		MTU:       1450,
		DNS:       []netip.Addr{netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("2620:fe::fe")},
		Search:    []string{"example.net", "corp.example.net."},
		NTP:       []netip.Addr{netip.MustParseAddr("192.0.2.123"), netip.MustParseAddr("2001:db8::123")},
		DHCP:      true,
		RA:        true,
	}
}

// plain is a guest of which nothing but its addresses is known.
func plain() Offer {
	return Offer{Addresses: []netip.Addr{guest4, guest6}, Gateway: web().Gateway, DHCP: true, RA: true}
}

// udpRequest gives a datagram of the guest.
func udpRequest(src, dst string, payload []byte) Request {
	b := udpFrame(guestMAC, gatewayMAC, netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst), payload)
	return Request{From: guestMAC, Packet: b[ethernetLen:]}
}

// sane checks what holds for each answer, and gives the packets that are in it.
func sane(t require.TestingT, o Offer, r Request, a Answer) (sent []datagram) {
	for _, text := range []string{a.Contact.Hostname, a.Contact.Client, a.Contact.Message} {
		assert.LessOrEqual(t, len([]rune(text)), 64)
		assert.Equal(t, text, printable([]byte(text)))
	}
	assert.True(t, a.Contact.Protocol != "" || len(a.Frames) == 0, "an answer of no protocol")
	assert.True(t, a.Contact.At.IsZero())
	for _, f := range a.Frames {
		require.Greater(t, len(f), ethernetLen)
		assert.Contains(t, [][]byte{r.From[:], broadcastMAC[:], allNodesMAC[:]}, f[:6])
		assert.Equal(t, o.Gateway.MAC[:], f[6:12])
		d, ok := parse(f[ethernetLen:])
		require.True(t, ok, "%x", f)
		assert.Empty(t, d.fault)
		assert.LessOrEqual(t, len(f)-ethernetLen, 1500)
		assert.Contains(t, []netip.Addr{o.Gateway.IPv4, o.Gateway.IPv6}, d.src)
		sent = append(sent, d)
	}
	return sent
}

// clientPacket is a packet of testdata/clients.txt.
type clientPacket struct {
	client, message string
	request         Request
}

// clientPackets reads testdata/clients.txt.
func clientPackets(t testing.TB) (ps []clientPacket) {
	f, err := os.Open("testdata/clients.txt")
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		words := strings.Fields(lines.Text())
		require.Len(t, words, 3)
		b, err := hex.DecodeString(words[2])
		require.NoError(t, err)
		ps = append(ps, clientPacket{words[0], words[1], Request{From: fabric.MAC(b), Packet: b[8:]}})
	}
	require.NoError(t, lines.Err())
	require.NotEmpty(t, ps)
	return ps
}

// answerOf gives the only packet of an answer.
func answerOf(t require.TestingT, o Offer, r Request) (datagram, fabric.Contact) {
	a := o.Answer(r)
	sent := sane(t, o, r, a)
	require.Len(t, sent, 1, "%+v", a.Contact)
	return sent[0], a.Contact
}

// TestRealClients: what clients were recorded to send is understood, and each message
// gets the answer of its kind.
func TestRealClients(t *testing.T) {
	t.Parallel()
	answers := map[string]string{
		"DISCOVER": "OFFER", "REQUEST": "ACK", "RENEW": "ACK", "RELEASE": "", "DECLINE": "", "INIT-REBOOT": "ACK",
		"SOLICITATION": "ADVERTISEMENT",
		"SOLICIT":      "ADVERTISE", "INFORMATION-REQUEST": "REPLY", "CONFIRM": "REPLY",
	}
	for i, p := range clientPackets(t) {
		o := web()
		o.MAC = p.request.From
		o.Addresses = append(o.Addresses, netip.MustParseAddr("2001:db8:100::11"))
		a := o.Answer(p.request)
		sent := sane(t, o, p.request, a)
		assert.Equal(t, p.message, a.Contact.Message, "packet %d of %s", i, p.client)
		want, got := answers[p.message], ""
		for _, d := range sent {
			got = kindOf(t, d)
		}
		switch {
		case a.Contact.Refused != "": // those asked for an address that was made up
			assert.Contains(t, []string{"203.0.113.99 is not an address of the NIC", "2001:db8:100::99 is not an address of the NIC"}, a.Contact.Refused)
			assert.Contains(t, []string{"NAK", "REPLY"}, got)
		case a.Contact.Protocol == fabric.DHCPv6 && (p.message == "REQUEST" || p.message == "RELEASE" || p.client == "networkd-252" || p.client == "dhcpcd-9.4.1"):
			assert.Equal(t, "REPLY", got, "packet %d of %s; the two of SOLICIT ask for rapid commit", i, p.client)
		default:
			assert.Equal(t, want, got, "packet %d of %s", i, p.client)
		}
		assert.Equal(t, p.message == "DECLINE", a.Contact.Declined == guest4, "it had seen another machine with the address")
		if p.client == "udhcpc-1.35.0" && p.message != "RELEASE" && p.message != "DECLINE" {
			assert.Equal(t, "PXEClient:Arch:00000:UNDI:002001", a.Contact.Client)
		}
		if p.client == "networkd-252" && (p.message == "SOLICIT" || p.message == "DISCOVER") {
			assert.Equal(t, "vm", a.Contact.Hostname)
		}
	}
}

// kindOf names the message in a packet.
func kindOf(t *testing.T, d datagram) string {
	t.Helper()
	switch {
	case d.protocol == layers.IPProtocolICMPv6:
		m, err := ndp.ParseMessage(d.payload)
		require.NoError(t, err)
		require.IsType(t, &ndp.RouterAdvertisement{}, m)
		return "ADVERTISEMENT"
	case d.port == client4:
		m, err := dhcpv4.FromBytes(d.payload)
		require.NoError(t, err)
		return m.MessageType().String()
	}
	m, err := dhcpv6.MessageFromBytes(d.payload)
	require.NoError(t, err)
	return m.MessageType.String()
}

// TestNothingIsAsked: what is not for this node has no contact either.
func TestNothingIsAsked(t *testing.T) {
	t.Parallel()
	message := discover().ToBytes()
	whole := udpRequest("0.0.0.0:68", "255.255.255.255:67", message)
	own := Request{From: gatewayMAC, Packet: web().Answer(whole).Frames[0][ethernetLen:]}
	longer := udpRequest("0.0.0.0:68", "255.255.255.255:67", message)
	longer.Packet[25]++ // the length in the header of UDP
	longer.Packet = append(longer.Packet, 0)
	for name, r := range map[string]Request{
		"UDP beyond its packet":    longer,
		"nothing":                  {},
		"an IP version":            {Packet: []byte{0x50}},
		"another port":             udpRequest("203.0.113.10:68", "169.254.1.1:53", message),
		"a server far away":        udpRequest("203.0.113.10:68", "192.0.2.1:67", message),
		"a server far away, IPv6":  udpRequest("[fe80::2]:546", "[2001:db8::1]:547", solicit().ToBytes()),
		"another port, IPv6":       udpRequest("[fe80::2]:546", "[ff02::1:2]:546", solicit().ToBytes()),
		"our own answer":           own,
		"a neighbor solicitation":  icmpRequest(linkLocal, allRouters, 255, &ndp.NeighborSolicitation{TargetAddress: gateway6}),
		"to another router":        icmpRequest(linkLocal, netip.MustParseAddr("fe80::99"), 255, &ndp.RouterSolicitation{}),
		"a cut IPv4 header":        {Packet: whole.Packet[:19]},
		"a cut IPv4 packet":        {Packet: whole.Packet[:100]},
		"a cut IPv6 packet":        {Packet: udpRequest("[fe80::2]:546", "[ff02::1:2]:547", solicit().ToBytes()).Packet[:60]},
		"an IPv4 header too short": {Packet: append([]byte{0x44}, whole.Packet[1:]...)},
	} {
		assert.Equal(t, Answer{}, web().Answer(r), name)
	}
}

// TestBrokenPackets: a packet that was changed on its way is noted, and gets no answer.
func TestBrokenPackets(t *testing.T) {
	t.Parallel()
	broken := func(r Request, change func([]byte)) Request {
		r.Packet = slices.Clone(r.Packet)
		change(r.Packet)
		return r
	}
	four := udpRequest("0.0.0.0:68", "255.255.255.255:67", discover().ToBytes())
	six := udpRequest("["+linkLocal.String()+"]:546", "[ff02::1:2]:547", solicit().ToBytes())
	large := udpRequest("0.0.0.0:68", "255.255.255.255:67", make([]byte, 1500))
	for why, r := range map[string]Request{
		"its checksum is wrong":                            broken(four, func(b []byte) { b[100]++ }),
		"the checksum of its IP header is wrong":           broken(four, func(b []byte) { b[8]++ }),
		"it is a fragment":                                 broken(four, func(b []byte) { b[6] |= 0x20 }),
		"it is larger than 1500 bytes":                     large,
		"the DHCP message is malformed":                    udpRequest("0.0.0.0:68", "255.255.255.255:67", []byte{1}),
		"it has no client identifier of at most 130 bytes": udpRequest("["+linkLocal.String()+"]:546", "[ff02::1:2]:547", []byte{1, 0, 0, 0}),
	} {
		a := web().Answer(r)
		assert.Empty(t, a.Frames)
		assert.Equal(t, why, a.Contact.Refused)
	}
	assert.Equal(t, "its checksum is wrong", web().Answer(broken(six, func(b []byte) { b[60]++ })).Contact.Refused)
	assert.Equal(t, "its checksum is wrong", web().Answer(broken(six, func(b []byte) { b[46], b[47] = 0, 0 })).Contact.Refused, "UDP over IPv6 has a checksum")
	assert.NotEmpty(t, web().Answer(broken(four, func(b []byte) { b[26], b[27] = 0, 0 })).Frames, "UDP over IPv4 needs none")
	padded := four
	padded.Packet = append(slices.Clone(four.Packet), 1, 2, 3)
	assert.Equal(t, web().Answer(four), web().Answer(padded), "a frame may be padded")
}

// fromMAC gives a request of each protocol from a MAC address.
func fromMAC(mac fabric.MAC) []Request {
	m := discover()
	m.ClientHWAddr = mac[:]
	requests := []Request{
		udpRequest("0.0.0.0:68", "255.255.255.255:67", m.ToBytes()),
		udpRequest("["+linkLocal.String()+"]:546", "[ff02::1:2]:547", solicit().ToBytes()),
		icmpRequest(linkLocal, allRouters, 255, &ndp.RouterSolicitation{}),
	}
	for i := range requests {
		requests[i].From = mac
	}
	return requests
}

// TestGuestOfAnotherMAC: where the NIC's address is known, no other machine on the link
// gets an answer.
func TestGuestOfAnotherMAC(t *testing.T) {
	t.Parallel()
	for _, r := range fromMAC(fabric.MAC{0x52, 0x54, 0, 0, 0, 1}) {
		a := web().Answer(r)
		assert.Empty(t, a.Frames)
		assert.Equal(t, "it came from 52:54:00:00:00:01, and the NIC has 52:54:00:12:34:56", a.Contact.Refused)
		assert.NotEmpty(t, plain().Answer(r).Frames, "the address is not known")
	}
}

// TestGuestOfTheGatewaysMAC gets no answer, and why it does not is noted.
func TestGuestOfTheGatewaysMAC(t *testing.T) {
	t.Parallel()
	for _, o := range []Offer{web(), plain()} {
		for _, r := range fromMAC(gatewayMAC) {
			a := o.Answer(r)
			assert.Empty(t, a.Frames)
			assert.Equal(t, "it came from 02:00:5e:00:01:01, which is the gateway's; give the NIC another one", a.Contact.Refused)
		}
	}
}

// anOffer draws an offer, also one that no cluster would make.
func anOffer(t *rapid.T) Offer {
	address := rapid.SampledFrom([]netip.Addr{
		{},
		guest4, guest6, netip.MustParseAddr("203.0.113.11"), netip.MustParseAddr("2001:db8:100::11"),
		netip.MustParseAddr("::ffff:203.0.113.12"), netip.MustParseAddr("fe80::2%eth0"), netip.IPv6Unspecified(),
	})
	addresses := rapid.SliceOfN(address, 0, 40)
	route := rapid.SampledFrom([]netip.Prefix{
		{}, web().Routes[0], web().Routes[1], netip.MustParsePrefix("2001:db8:300::/48"), netip.MustParsePrefix("2001:db8::1/64"),
	})
	name := rapid.SampledFrom([]string{
		"", ".", "example.net", "a..b", "-", "xn--99999999", "xn--mnchen-3ya.de", strings.Repeat("a", 64), strings.Repeat("abcdefghi.", 25) + "de", "corp.example.net", "ä.de",
	})
	return Offer{
		Addresses: addresses.Draw(t, "addresses"),
		Routes:    rapid.SliceOfN(route, 0, 40).Draw(t, "routes"),
		MAC:       rapid.SampledFrom([]fabric.MAC{{}, guestMAC}).Draw(t, "MAC"),
		Hostname:  rapid.SampledFrom([]string{"", "web-1", strings.Repeat("a.", 126) + "a"}).Draw(t, "hostname"),
		Gateway: fabric.Gateway{
			IPv4: rapid.SampledFrom([]netip.Addr{{}, gateway4}).Draw(t, "gateway"),
			IPv6: rapid.SampledFrom([]netip.Addr{{}, gateway6, netip.MustParseAddr("2001:db8::1")}).Draw(t, "gateway"),
			MAC:  gatewayMAC,
		},
		MTU:    rapid.SampledFrom([]int{-1, 0, 1, 576, 1280, 1500, 9000, 1 << 40}).Draw(t, "MTU"),
		DNS:    addresses.Draw(t, "DNS"),
		Search: rapid.SliceOfN(name, 0, 40).Draw(t, "search"),
		NTP:    addresses.Draw(t, "NTP"),
		DHCP:   rapid.Bool().Draw(t, "DHCP"),
		RA:     rapid.Bool().Draw(t, "RA"),
	}
}

// clone gives an offer that shares nothing with o: that of another node.
func clone(o Offer) Offer {
	o.Addresses, o.Routes = slices.Clone(o.Addresses), slices.Clone(o.Routes)
	o.DNS, o.Search, o.NTP = slices.Clone(o.DNS), slices.Clone(o.Search), slices.Clone(o.NTP)
	return o
}

// TestNodesAgree: two nodes give equal bytes for one request, whatever each answered
// before, and neither the request nor the offer changes.
func TestNodesAgree(t *testing.T) {
	t.Parallel()
	packets := clientPackets(t)
	rapid.Check(t, func(t *rapid.T) {
		one := anOffer(t)
		other, before := clone(one), clone(one)
		for range 4 {
			r := rapid.SampledFrom(packets).Draw(t, "packet").request
			if i := rapid.IntRange(-1, len(r.Packet)-1).Draw(t, "byte"); i >= 0 {
				r.Packet = slices.Clone(r.Packet)
				r.Packet[i] = rapid.Byte().Draw(t, "value")
			}
			packet := slices.Clone(r.Packet)
			a := one.Answer(r)
			sane(t, one, r, a)
			assert.Equal(t, packet, r.Packet)
			for i := range r.Packet {
				r.Packet[i] = 0 // the caller reads the next one into it
			}
			assert.Equal(t, other.Answer(Request{From: r.From, Packet: packet}), a)
			r.Packet = packet
		}
		assert.Equal(t, before, one)
		assert.Equal(t, other.Advertisement(), one.Advertisement())
	})
}

// TestMemoryIsBounded: a guest does not decide how much memory its request takes.
func TestMemoryIsBounded(t *testing.T) {
	const most = 96 << 10 // bytes for one request
	pointers := bytes.Repeat([]byte{1, 'a'}, 200)
	pointers = append(append(pointers, 0), bytes.Repeat([]byte{0xc0, 0}, 400)...) // names that each refer to a long one
	relayed := []byte{1, 0, 0, 0}
	for range 25 {
		relayed = append(relayed, 0, 9, 0x04, 0x00, 12, 0)
	}
	prefix := []byte{1, 0, 0, 0, 0, 1, 0, 3, 1, 2, 3}
	for name, r := range map[string]Request{
		"references":      udpRequest("["+linkLocal.String()+"]:546", "[ff02::1:2]:547", append(append(slices.Clone(prefix), 0, 24, byte(len(pointers)>>8), byte(len(pointers))), pointers...)),
		"names":           udpRequest("["+linkLocal.String()+"]:546", "[ff02::1:2]:547", append(append(slices.Clone(prefix), 0, 39, byte(len(pointers)>>8), byte(len(pointers))), pointers...)),
		"nested messages": udpRequest("["+linkLocal.String()+"]:546", "[ff02::1:2]:547", relayed),
		"empty options":   udpRequest("["+linkLocal.String()+"]:546", "[ff02::1:2]:547", append(slices.Clone(prefix), make([]byte, 1400)...)),
		"associations":    udpRequest("["+linkLocal.String()+"]:546", "[ff02::1:2]:547", append(slices.Clone(prefix), bytes.Repeat([]byte{0, 3, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}, 88)...)),
		"IPv4 options":    udpRequest("0.0.0.0:68", "255.255.255.255:67", append(slices.Clone(discover().ToBytes()[:240]), append(bytes.Repeat([]byte{61, 1, 7}, 400), 53, 1, 1, 255)...)),
	} {
		o := web()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 20 {
			o.Answer(r)
		}
		runtime.ReadMemStats(&after)
		assert.Less(t, (after.TotalAlloc-before.TotalAlloc)/20, uint64(most), name)
	}
}

// fuzzOffers are the offers that each fuzzed request meets.
func fuzzOffers() []Offer {
	full := web()
	full.MAC = fabric.MAC{}
	for i := range 40 {
		full.Addresses = append(full.Addresses, netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(i)}))
		full.Search = append(full.Search, strings.Repeat("a", i+1)+".example.net")
		full.DNS = append(full.DNS, full.Addresses...)
	}
	return []Offer{full, plain(), {DHCP: true, RA: true}, {}}
}

// fuzzed checks the answers to a request that a fuzzer made.
func fuzzed(t *testing.T, r Request) {
	t.Helper()
	for _, o := range fuzzOffers() {
		a := o.Answer(r)
		sane(t, o, r, a)
		assert.Equal(t, a, clone(o).Answer(r))
	}
}

func FuzzPacket(f *testing.F) {
	for _, p := range clientPackets(f) {
		b := p.request.Packet
		f.Add(b)
		if b[0]>>4 == 4 {
			f.Add(slices.Concat([]byte{0x47}, b[1:20], []byte{7, 3, 4, 68, 2, 0, 0, 0}, b[20:])) // options
			continue
		}
		for _, option := range [][]byte{{5, 2, 0, 0, 1, 0}, {0xc2, 4, 0, 1, 0, 0}} { // router alert; jumbo payload (RFC 2711, RFC 2675)
			f.Add(slices.Concat(b[:6], []byte{0}, b[7:40], []byte{b[6], 0}, option, b[40:]))
		}
	}
	f.Fuzz(func(t *testing.T, packet []byte) { fuzzed(t, Request{From: guestMAC, Packet: packet}) })
}

// seed adds the payloads of real clients for a protocol.
func seed(f *testing.F, protocol fabric.ContactProtocol) {
	f.Helper()
	for _, p := range clientPackets(f) {
		d, ok := parse(p.request.Packet)
		if ok && (Offer{}).Answer(p.request).Contact.Protocol == protocol {
			f.Add(d.payload)
		}
	}
}

func FuzzDHCPv4(f *testing.F) {
	seed(f, fabric.DHCPv4)
	f.Fuzz(func(t *testing.T, message []byte) {
		if len(message) > 28 { // so that the fuzzer need not find it
			copy(message[28:], guestMAC[:])
		}
		if len(message) <= maxPacket {
			fuzzed(t, udpRequest("0.0.0.0:68", "255.255.255.255:67", message))
		}
	})
}

func FuzzDHCPv6(f *testing.F) {
	seed(f, fabric.DHCPv6)
	f.Fuzz(func(t *testing.T, message []byte) {
		if len(message) <= maxPacket {
			fuzzed(t, udpRequest("["+linkLocal.String()+"]:546", "[ff02::1:2]:547", message))
			fuzzed(t, udpRequest("["+linkLocal.String()+"]:546", "[fe80::1]:547", message))
		}
	})
}

func FuzzSolicitation(f *testing.F) {
	seed(f, fabric.RouterSolicitation)
	f.Fuzz(func(t *testing.T, message []byte) {
		if len(message) < 4 || len(message) > maxPacket {
			return
		}
		message = packets.Seal(linkLocal, allRouters, byte(layers.IPProtocolICMPv6), 2, message)
		fuzzed(t, Request{From: guestMAC, Packet: frame(guestMAC, gatewayMAC, linkLocal, allRouters, layers.IPProtocolICMPv6, 255, message)[ethernetLen:]})
	})
}

func BenchmarkAnswer(b *testing.B) {
	for _, test := range []struct {
		name string
		r    Request
	}{
		{"DISCOVER", udpRequest("0.0.0.0:68", "255.255.255.255:67", discover().ToBytes())},
		{"SOLICIT", udpRequest("["+linkLocal.String()+"]:546", "[ff02::1:2]:547", solicit().ToBytes())},
		{"SOLICITATION", icmpRequest(linkLocal, allRouters, 255, &ndp.RouterSolicitation{})},
		{"refused", udpRequest("0.0.0.0:68", "255.255.255.255:67", discover().ToBytes()[:200])},
	} {
		b.Run(test.name, func(b *testing.B) {
			b.ReportAllocs()
			o := web()
			for b.Loop() {
				o.Answer(test.r)
			}
		})
	}
}
