package autoconf

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/packets"
)

func hexOf(b []byte) string { return hex.EncodeToString(b) }

func TestOfferOf(t *testing.T) {
	t.Parallel()
	want := web()
	p := fabric.Port{
		VM: "web-1", Gateway: want.Gateway,
		NIC: fabric.NIC{Addresses: want.Addresses, Routes: want.Routes, MAC: guestMAC},
	}
	g := fabric.Guests{DNS: want.DNS, Search: want.Search, NTP: want.NTP, MTU: 1450}
	assert.Equal(t, want, OfferOf(p, g))
	p.NIC.MTU = 9000
	assert.Equal(t, 9000, OfferOf(p, g).MTU, "the NIC's own comes first")
	for _, off := range []func(*fabric.Port, *fabric.Guests){
		func(p *fabric.Port, g *fabric.Guests) { p.NoDHCP, g.NoRA = true, true },
		func(p *fabric.Port, g *fabric.Guests) { g.NoDHCP, p.NoRA = true, true },
	} {
		p, g := p, g
		off(&p, &g)
		o := OfferOf(p, g)
		assert.False(t, o.DHCP || o.RA)
	}
}

// TestHostname: a guest is told its name if that can be one (RFC 1123, 2.1), with hyphens
// for underscores.
func TestHostname(t *testing.T) {
	t.Parallel()
	for vm, want := range map[string]string{
		"web-1": "web-1", "web.example.net": "web.example.net", "3com": "3com", "Web": "Web",
		"sea_gold": "sea-gold", "project_web-1": "project-web-1", "a_b.example.net": "a-b.example.net", "_web": "", "web_": "", "xn__99999999": "",
		"web.": "", "-web": "", "web-": "", "a..b": "", "": "", "wéb": "", "my vm": "",
		"203.0.113.10": "", "xn--99999999": "", strings.Repeat("a", 64): "",
	} {
		assert.Equal(t, want, OfferOf(fabric.Port{VM: vm}, fabric.Guests{}).Hostname, vm)
	}
}

// TestCompressedNames: RFC 1035, 4.1.4, and its example in RFC 3397.
func TestCompressedNames(t *testing.T) {
	t.Parallel()
	assert.Equal(t, []byte("\x03eng\x05apple\x03com\x00\x09marketing\xc0\x04"), compressed([]string{"eng.apple.com", "marketing.apple.com"}))
	assert.Equal(t, []byte("\x01a\x00\xc0\x00"), compressed([]string{"a", "A"}))
	assert.Empty(t, compressed(nil))
}

// TestPartialChecksum: a packet of a guest on this machine may have left its checksum
// to a device that does not exist, also where that would write 0xffff for 0.
func TestPartialChecksum(t *testing.T) {
	t.Parallel()
	request := func(payload []byte) []byte { return udpRequest("[fe80::2]:546", "[ff02::1:2]:547", payload).Packet }
	const at = ipv6Len + 6
	for _, payload := range [][]byte{{1, 2, 3}, slices.Clone(request([]byte{0, 0})[at : at+2])} {
		b := request(payload)
		pseudo := uint16(packets.PseudoHeader(netip.MustParseAddr("fe80::2"), netip.MustParseAddr("ff02::1:2"), byte(layers.IPProtocolUDP), udpLen+len(payload)))
		b[at], b[at+1] = byte(pseudo>>8), byte(pseudo)
		d, ok := parse(b)
		assert.True(t, ok)
		assert.Empty(t, d.fault)
		assert.Equal(t, payload, d.payload)
		b[at+1]++
		d, _ = parse(b)
		assert.Equal(t, "its checksum is wrong", d.fault)
	}
}

// TestChecksumOfZero: a sum of 0 is written as 0xffff, since 0 says that there is none.
func TestChecksumOfZero(t *testing.T) {
	t.Parallel()
	src, dst := netip.MustParseAddrPort("[fe80::1]:547"), netip.MustParseAddrPort("[fe80::2]:546")
	b := udpFrame(gatewayMAC, guestMAC, src, dst, []byte{0, 0})
	at := ethernetLen + ipv6Len + 6
	b = udpFrame(gatewayMAC, guestMAC, src, dst, b[at:at+2]) // the sum of all is now 0
	assert.Equal(t, []byte{0xff, 0xff}, b[at:at+2])
	d, ok := parse(b[ethernetLen:])
	assert.True(t, ok)
	assert.Empty(t, d.fault)
}
