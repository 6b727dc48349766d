package autoconf

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"github.com/mdlayher/ndp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// icmpRequest gives a neighbor discovery message of the guest.
func icmpRequest(src, dst netip.Addr, hops uint8, m ndp.Message) Request {
	body, err := ndp.MarshalMessageChecksum(m, src, dst)
	if err != nil {
		panic(err)
	}
	return Request{From: guestMAC, Packet: frame(guestMAC, gatewayMAC, src, dst, layers.IPProtocolICMPv6, hops, body)[ethernetLen:]}
}

// advertised gives the advertisement in a frame.
func advertised(t *testing.T, b []byte) *ndp.RouterAdvertisement {
	t.Helper()
	require.Greater(t, len(b), ethernetLen)
	assert.Equal(t, "33330000000102005e00010186dd", hexOf(b[:ethernetLen]))
	d, ok := parse(b[ethernetLen:])
	require.True(t, ok)
	assert.Empty(t, d.fault)
	assert.Equal(t, gateway6, d.src)
	assert.Equal(t, allNodes, d.dst)
	assert.Equal(t, uint8(255), d.hops)
	m, err := ndp.ParseMessage(d.payload)
	require.NoError(t, err)
	ra, ok := m.(*ndp.RouterAdvertisement)
	require.True(t, ok)
	return ra
}

func TestAdvertisement(t *testing.T) {
	t.Parallel()
	assert.Equal(t, &ndp.RouterAdvertisement{
		CurrentHopLimit:      64,
		ManagedConfiguration: true,
		OtherConfiguration:   true,
		RouterLifetime:       65535 * time.Second,
		Options: []ndp.Option{
			&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: gatewayMAC[:]},
			ndp.NewMTU(1450),
			&ndp.PrefixInformation{PrefixLength: 64, AutonomousAddressConfiguration: true, ValidLifetime: 168 * time.Hour, PreferredLifetime: 168 * time.Hour, Prefix: netip.MustParseAddr("2001:db8:200:1::")},
			&ndp.RouteInformation{RouteLifetime: ndp.Infinity, Prefix: netip.IPv6Unspecified()},
			&ndp.RecursiveDNSServer{Lifetime: 168 * time.Hour, Servers: []netip.Addr{netip.MustParseAddr("2620:fe::fe")}},
			&ndp.DNSSearchList{Lifetime: 168 * time.Hour, DomainNames: []string{"example.net", "corp.example.net"}},
		},
	}, advertised(t, web().Advertisement()))
	off := plain()
	off.DHCP = false
	off.Routes = []netip.Prefix{netip.MustParsePrefix("2001:db8:300::/48"), netip.MustParsePrefix("2001:db8:200:2::1/64")}
	ra := advertised(t, off.Advertisement())
	assert.False(t, ra.ManagedConfiguration || ra.OtherConfiguration, "nobody answers DHCPv6")
	assert.Len(t, ra.Options, 2, "a guest makes addresses in a /64 alone")
}

// TestLargeAdvertisement: what does not fit into an option is left out.
func TestLargeAdvertisement(t *testing.T) {
	t.Parallel()
	o := web()
	o.Search = []string{strings.Repeat("a", 60) + ".net", "xn--99999999.net", strings.Repeat("b", 60) + ".net", strings.Repeat("c", 60) + ".net", strings.Repeat("d", 60) + ".net"}
	for i := range 40 {
		o.DNS = append(o.DNS, netip.AddrFrom16([16]byte{0x20, 1, 15: byte(i)}))
		o.Routes = append(o.Routes, netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 7: byte(i)}), 64))
	}
	b := o.Advertisement()
	assert.LessOrEqual(t, len(b), 1280)
	for _, option := range advertised(t, b).Options {
		switch is := option.(type) {
		case *ndp.DNSSearchList:
			assert.Equal(t, []string{o.Search[0], o.Search[2], o.Search[3]}, is.DomainNames)
		case *ndp.RecursiveDNSServer:
			assert.Len(t, is.Servers, maxServers)
		}
	}
}

// TestSolicitation: the answer is the advertisement, with or without a source address.
func TestSolicitation(t *testing.T) {
	t.Parallel()
	lla := &ndp.LinkLayerAddress{Direction: ndp.Source, Addr: guestMAC[:]}
	for _, r := range []Request{
		icmpRequest(linkLocal, allRouters, 255, &ndp.RouterSolicitation{Options: []ndp.Option{lla}}),
		icmpRequest(netip.IPv6Unspecified(), allRouters, 255, &ndp.RouterSolicitation{}),
		icmpRequest(linkLocal, gateway6, 255, &ndp.RouterSolicitation{}),
	} {
		assert.Equal(t, Answer{
			Frames:  [][]byte{web().Advertisement()},
			Contact: fabric.Contact{Protocol: fabric.RouterSolicitation, Message: "SOLICITATION"},
		}, web().Answer(r))
	}
}

// TestNoAdvertisement: who gets none, and why.
func TestNoAdvertisement(t *testing.T) {
	t.Parallel()
	off, only4, global, bare := web(), web(), web(), web()
	off.RA = false
	only4.Gateway.IPv6 = netip.Addr{}
	global.Gateway.IPv6 = netip.MustParseAddr("2001:db8::1")
	bare.Addresses = bare.Addresses[:1]
	good := &ndp.RouterSolicitation{}
	lla := &ndp.RouterSolicitation{Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: guestMAC[:]}}}
	coded := icmpRequest(linkLocal, allRouters, 255, good)
	coded.Packet[ipv6Len+1]++
	coded.Packet[ipv6Len+3]-- // the checksum
	for _, test := range []struct {
		o   Offer
		r   Request
		why string
	}{
		{off, icmpRequest(linkLocal, allRouters, 255, good), "router advertisements are off for this guest"},
		{only4, icmpRequest(linkLocal, allRouters, 255, good), "the cluster has no IPv6 gateway"},
		{global, icmpRequest(linkLocal, allRouters, 255, good), "the gateway 2001:db8::1 is not link-local; hosts ignore its advertisements"},
		{bare, icmpRequest(linkLocal, allRouters, 255, good), "the NIC has no IPv6 address"},
		{web(), icmpRequest(linkLocal, allRouters, 64, good), "its hop limit is not 255, so that it may come from elsewhere"},
		{web(), icmpRequest(netip.IPv6Unspecified(), allRouters, 255, lla), "it has a link-layer address, and no source address"},
		{web(), coded, "the solicitation is malformed"},
	} {
		a := test.o.Answer(test.r)
		assert.Empty(t, a.Frames, test.why)
		assert.Equal(t, test.why, a.Contact.Refused)
		if test.o.noAdvertisement() != "" {
			assert.Nil(t, test.o.Advertisement(), test.why)
		}
	}
}
