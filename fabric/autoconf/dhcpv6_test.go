package autoconf

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// message6 gives a message of the guest, with its identifier and the server's.
func message6(kind dhcpv6.MessageType, options ...dhcpv6.Option) *dhcpv6.Message {
	m := &dhcpv6.Message{MessageType: kind, TransactionID: dhcpv6.TransactionID{1, 2, 3}}
	m.AddOption(dhcpv6.OptClientID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: guestMAC[:]}))
	switch kind {
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		m.AddOption(dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: gatewayMAC[:]}))
	}
	for _, o := range options {
		m.AddOption(o)
	}
	return m
}

// solicit gives a SOLICIT of the guest for an address.
func solicit(options ...dhcpv6.Option) *dhcpv6.Message {
	return message6(dhcpv6.MessageTypeSolicit, append([]dhcpv6.Option{iaNA(7)}, options...)...)
}

// iaNA and iaPD give associations with what the client has.
func iaNA(id byte, addresses ...string) *dhcpv6.OptIANA {
	ia := &dhcpv6.OptIANA{IaId: [4]byte{3: id}}
	for _, a := range addresses {
		ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(a), PreferredLifetime: time.Hour, ValidLifetime: time.Hour})
	}
	return ia
}

func iaPD(id byte, prefixes ...string) *dhcpv6.OptIAPD {
	ia := &dhcpv6.OptIAPD{IaId: [4]byte{3: id}}
	for _, p := range prefixes {
		ia.Options.Add(&dhcpv6.OptIAPrefix{Prefix: ipNet(netip.MustParsePrefix(p)), PreferredLifetime: time.Hour, ValidLifetime: time.Hour})
	}
	return ia
}

// multicast gives a message as clients send it.
func multicast(m *dhcpv6.Message) Request {
	return udpRequest("["+linkLocal.String()+"]:546", "[ff02::1:2]:547", m.ToBytes())
}

// ask6 sends a message, and gives the answer, which has one.
func ask6(t *testing.T, o Offer, m *dhcpv6.Message) (*dhcpv6.Message, fabric.Contact) {
	t.Helper()
	d, contact := answerOf(t, o, multicast(m))
	assert.Equal(t, gateway6, d.src)
	assert.Equal(t, linkLocal, d.dst)
	assert.Equal(t, uint16(546), d.port)
	assert.LessOrEqual(t, len(d.payload), maxMessage6)
	reply, err := dhcpv6.MessageFromBytes(d.payload)
	require.NoError(t, err)
	assert.Equal(t, m.TransactionID, reply.TransactionID)
	assert.Equal(t, m.GetOneOption(dhcpv6.OptionClientID), reply.GetOneOption(dhcpv6.OptionClientID))
	assert.Equal(t, []byte{0, 3, 0, 1, 2, 0, 0x5e, 0, 1, 1}, reply.Options.ServerID().ToBytes())
	return reply, contact
}

// leases lists the addresses or prefixes of the options of an association, with their
// lifetimes, and its status.
func leases(options dhcpv6.Options) (ls []string) {
	for _, o := range options {
		switch is := o.(type) {
		case *dhcpv6.OptIAAddress:
			ls = append(ls, is.IPv6Addr.String()+" "+is.PreferredLifetime.String()+" "+is.ValidLifetime.String())
		case *dhcpv6.OptIAPrefix:
			ls = append(ls, is.Prefix.String()+" "+is.PreferredLifetime.String()+" "+is.ValidLifetime.String())
		case *dhcpv6.OptStatusCode:
			ls = append(ls, is.StatusCode.String())
		}
	}
	return ls
}

const (
	ours   = "2001:db8:100::10 168h0m0s 168h0m0s"
	behind = "2001:db8:200:1::/64 168h0m0s 168h0m0s"
)

// TestSolicit: the answer ends the client's search for servers, and gives all that the
// guest has.
func TestSolicit(t *testing.T) {
	t.Parallel()
	m := solicit(iaPD(8))
	reply, contact := ask6(t, web(), m)
	assert.Equal(t, dhcpv6.MessageTypeAdvertise, reply.MessageType)
	assert.Equal(t, uint8(255), reply.Options.Preference())
	ia, pd := reply.Options.OneIANA(), reply.Options.OneIAPD()
	assert.Equal(t, [4]byte{3: 7}, ia.IaId)
	assert.Equal(t, []time.Duration{time.Hour, 2 * time.Hour}, []time.Duration{ia.T1, ia.T2})
	assert.Equal(t, []string{ours}, leases(ia.Options.Options))
	assert.Equal(t, [4]byte{3: 8}, pd.IaId)
	assert.Equal(t, []string{behind}, leases(pd.Options.Options))
	assert.Equal(t, "2620:fe::fe", reply.Options.DNS()[0].String())
	assert.Len(t, reply.Options.DNS(), 1)
	assert.Equal(t, []string{"example.net", "corp.example.net"}, reply.Options.DomainSearchList().Labels)
	assert.Equal(t, []byte("\x07example\x03net\x00\x04corp\x07example\x03net\x00"), reply.GetOneOption(dhcpv6.OptionDomainSearchList).ToBytes(), "never compressed: RFC 8415, 10")
	assert.Equal(t, fabric.Contact{Protocol: fabric.DHCPv6, Message: "SOLICIT"}, contact)
	for _, code := range []dhcpv6.OptionCode{dhcpv6.OptionNTPServer, dhcpv6.OptionSNTPServerList, dhcpv6.OptionFQDN, dhcpv6.OptionRapidCommit} {
		assert.Nil(t, reply.GetOneOption(code), "%v was not asked for", code)
	}
}

func TestRapidCommit(t *testing.T) {
	t.Parallel()
	rapid := &dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit}
	reply, _ := ask6(t, web(), solicit(rapid))
	assert.Equal(t, dhcpv6.MessageTypeReply, reply.MessageType)
	assert.NotNil(t, reply.GetOneOption(dhcpv6.OptionRapidCommit))
	assert.Equal(t, []string{ours}, leases(reply.Options.OneIANA().Options.Options))
	bare := web()
	bare.Addresses, bare.Routes = []netip.Addr{guest4}, nil
	reply, contact := ask6(t, bare, solicit(rapid, iaPD(1)))
	assert.Equal(t, dhcpv6.MessageTypeAdvertise, reply.MessageType, "there is nothing to commit to")
	assert.Equal(t, []string{"NoAddrsAvail"}, leases(reply.Options.OneIANA().Options.Options))
	assert.Equal(t, []string{"NoPrefixAvail"}, leases(reply.Options.OneIAPD().Options.Options))
	assert.Equal(t, "the NIC has no IPv6 address", contact.Refused)
}

// TestAssociations: what a client has and wishes for, and what it gets.
func TestAssociations(t *testing.T) {
	t.Parallel()
	const other, ended = "2001:db8:100::99", "2001:db8:100::99 0s 0s"
	request, renewal, rebinding := dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind
	for name, test := range map[string]struct {
		kind dhcpv6.MessageType
		ia   *dhcpv6.OptIANA
		want []string
	}{
		"a request":                {request, iaNA(1, "2001:db8:100::10"), []string{ours}},
		"a request for any":        {request, iaNA(1), []string{ours}},
		"a wish for any":           {request, iaNA(1, "::"), []string{ours}},
		"a request for another":    {request, iaNA(1, other), []string{"NotOnLink"}},
		"a request for one of two": {request, iaNA(1, "2001:db8:100::10", other), []string{"NotOnLink"}},
		"a wish for another":       {dhcpv6.MessageTypeSolicit, iaNA(1, other), []string{ours}},
		"a renewal":                {renewal, iaNA(1, "2001:db8:100::10"), []string{ours}},
		"a renewal of another":     {renewal, iaNA(1, other), []string{ended, ours}},
		"a rebinding of another":   {rebinding, iaNA(1, other, "2001:db8:100::10"), []string{ended, ours}},
	} {
		reply, _ := ask6(t, web(), message6(test.kind, test.ia))
		require.Len(t, reply.Options.IANA(), 1, name)
		assert.Equal(t, test.want, leases(reply.Options.OneIANA().Options.Options), name)
	}
	bare := web()
	bare.Addresses, bare.Routes = []netip.Addr{guest4}, nil
	reply, _ := ask6(t, bare, message6(renewal, iaNA(1, other), iaPD(2, "2001:db8:9::/48")))
	assert.Equal(t, []string{ended, "NoAddrsAvail"}, leases(reply.Options.OneIANA().Options.Options))
	assert.Equal(t, []string{"2001:db8:9::/48 0s 0s", "NoPrefixAvail"}, leases(reply.Options.OneIAPD().Options.Options))
}

// TestSeveralAssociations: the addresses are in one, and a client that wants them twice
// learns so.
func TestSeveralAssociations(t *testing.T) {
	t.Parallel()
	m := solicit(iaNA(8), &dhcpv6.OptIATA{IaId: [4]byte{9}}, iaPD(1, "2001:db8:9::/48"), iaPD(2))
	for i := range 60 {
		m.AddOption(iaNA(byte(100 + i)))
	}
	reply, _ := ask6(t, web(), m)
	ias, pds := reply.Options.IANA(), reply.Options.IAPD()
	require.Len(t, ias, 3)
	assert.Equal(t, []string{ours}, leases(ias[0].Options.Options))
	assert.Equal(t, []string{"NoAddrsAvail"}, leases(ias[1].Options.Options))
	assert.Equal(t, []string{"NoAddrsAvail"}, leases(reply.Options.OneIATA().Options.Options))
	require.Len(t, pds, 2)
	assert.Equal(t, []string{behind}, leases(pds[0].Options.Options))
	assert.Equal(t, []string{"NoPrefixAvail"}, leases(pds[1].Options.Options))
}

// TestManyAddresses: the first of the NIC comes last, and all fits into a packet.
func TestManyAddresses(t *testing.T) {
	t.Parallel()
	o := web()
	for i := range 60 {
		o.Addresses = append(o.Addresses, netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(i + 1)}))
		o.Routes = append(o.Routes, netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 9, byte(i)}), 48))
		o.Search = append(o.Search, strings.Repeat("a", i+1)+".example.net")
	}
	m := message6(dhcpv6.MessageTypeRebind, iaNA(1), iaPD(1), iaNA(2), iaNA(3), iaNA(4), iaNA(5))
	for i := range 10 {
		m.Options.OneIANA().Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.IP{0x20, 2, 15: byte(i)}})
		m.Options.OneIAPD().Options.Add(&dhcpv6.OptIAPrefix{Prefix: &net.IPNet{IP: net.IP{0x20, 2, 15: 0}, Mask: net.CIDRMask(17+i, 128)}})
	}
	reply, _ := ask6(t, o, m)
	addresses := reply.Options.OneIANA().Options.Addresses()
	require.Len(t, addresses, maxForeign+maxAddresses)
	assert.Equal(t, guest6.String(), addresses[len(addresses)-1].IPv6Addr.String())
	assert.Len(t, reply.Options.OneIAPD().Options.Prefixes(), maxForeign+maxPrefixes)
	assert.Len(t, reply.Options.IANA(), 1+maxRefusals)
	m.UpdateOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionClientID, OptionData: make([]byte, maxDUID)})
	m.AddOption(dhcpv6.OptRequestedOption(dhcpv6.OptionNTPServer, dhcpv6.OptionFQDN))
	for i := range maxServers {
		o.NTP = append(o.NTP, netip.AddrFrom16([16]byte{0x20, 1, 15: byte(i)}))
	}
	d, _ := answerOf(t, o, multicast(m))
	assert.LessOrEqual(t, len(d.payload), maxMessage6)
	assert.Greater(t, len(d.payload), maxMessage6-200, "more was wanted than fits")
	reply, _ = ask6(t, o, message6(dhcpv6.MessageTypeInformationRequest))
	assert.Len(t, reply.Options.DomainSearchList().Labels, maxDomains)
}

func TestConfirm(t *testing.T) {
	t.Parallel()
	for want, ias := range map[iana.StatusCode][]dhcpv6.Option{
		iana.StatusSuccess:   {iaNA(1, "2001:db8:100::10")},
		iana.StatusNotOnLink: {iaNA(1, "2001:db8:100::10"), iaNA(2, "2001:db8:9::9")},
	} {
		reply, contact := ask6(t, web(), message6(dhcpv6.MessageTypeConfirm, ias...))
		assert.Equal(t, want, reply.Options.Status().StatusCode)
		assert.Empty(t, reply.Options.IANA())
		assert.Equal(t, want == iana.StatusSuccess, contact.Refused == "")
	}
}

func TestReleaseAndDecline(t *testing.T) {
	t.Parallel()
	reply, contact := ask6(t, web(), message6(dhcpv6.MessageTypeRelease, iaNA(1, "2001:db8:100::10")))
	assert.Equal(t, iana.StatusSuccess, reply.Options.Status().StatusCode)
	assert.Equal(t, fabric.Contact{Protocol: fabric.DHCPv6, Message: "RELEASE"}, contact)
	reply, contact = ask6(t, web(), message6(dhcpv6.MessageTypeDecline, iaNA(1, "2001:db8:9::9", "2001:db8:100::10")))
	assert.Equal(t, iana.StatusSuccess, reply.Options.Status().StatusCode)
	assert.Equal(t, guest6, contact.Declined)
}

// TestInformationRequest: a guest that has its address otherwise gets what it asks for.
func TestInformationRequest(t *testing.T) {
	t.Parallel()
	m := message6(dhcpv6.MessageTypeInformationRequest, dhcpv6.OptRequestedOption(
		dhcpv6.OptionNTPServer, dhcpv6.OptionInformationRefreshTime, dhcpv6.OptionFQDN, dhcpv6.OptionSNTPServerList))
	reply, _ := ask6(t, web(), m)
	assert.Equal(t, "2001:db8::123", reply.Options.NTPServers()[0].String())
	assert.Nil(t, reply.Options.SNTP(), "RFC 5908 takes the place of RFC 4075")
	assert.Equal(t, time.Hour, reply.Options.InformationRefreshTime(0))
	assert.Equal(t, []byte("\x04\x05web-1\x07example\x03net\x00"), reply.GetOneOption(dhcpv6.OptionFQDN).ToBytes())
	reply, _ = ask6(t, web(), message6(dhcpv6.MessageTypeInformationRequest, dhcpv6.OptRequestedOption(dhcpv6.OptionSNTPServerList)))
	assert.Equal(t, "2001:db8::123", reply.Options.SNTP()[0].String())
	m.Options.Del(dhcpv6.OptionClientID) // RFC 8415, 18.2.6: it may be missing
	d, _ := answerOf(t, web(), multicast(m))
	reply, err := dhcpv6.MessageFromBytes(d.payload)
	require.NoError(t, err)
	assert.Nil(t, reply.Options.ClientID())
	assert.NotNil(t, reply.Options.DNS())
}

// TestNameOfTheGuest: the client's own name is noted, and the node's is the answer.
func TestNameOfTheGuest(t *testing.T) {
	t.Parallel()
	o := web()
	o.Search = nil
	m := solicit(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionFQDN, OptionData: []byte("\x01\x05mine!\x01d")},
		&dhcpv6.OptVendorClass{EnterpriseNumber: 311, Data: [][]byte{[]byte("MSFT 5.0")}})
	reply, contact := ask6(t, o, m)
	assert.Equal(t, fabric.Contact{Protocol: fabric.DHCPv6, Message: "SOLICIT", Hostname: "mine!.d", Client: "MSFT 5.0"}, contact)
	assert.Equal(t, []byte("\x06\x05web-1"), reply.GetOneOption(dhcpv6.OptionFQDN).ToBytes(), "not fully qualified; no update of the DNS, which it asked for")
	o.Search = []string{"example.net"}
	for name, want := range map[string]string{
		"web.example.org": "\x06\x03web\x07example\x03org\x00", // has its domain
		"web":             "\x06\x03web\x07example\x03net\x00",
	} {
		o.Hostname = name
		reply, _ = ask6(t, o, m)
		assert.Equal(t, []byte(want), reply.GetOneOption(dhcpv6.OptionFQDN).ToBytes())
	}
	o.Hostname, o.Search = strings.Repeat("w", 63), []string{strings.Repeat("long.", 40) + "example.net"}
	reply, _ = ask6(t, o, m)
	assert.Equal(t, []byte("\x06\x3f"+o.Hostname), reply.GetOneOption(dhcpv6.OptionFQDN).ToBytes(), "no name is longer than 255 bytes")
}

// TestUnicast: this server tells no client that it may, so those that wait for an
// answer are told that they may not.
func TestUnicast(t *testing.T) {
	t.Parallel()
	for _, kind := range []dhcpv6.MessageType{dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline} {
		r := udpRequest("["+linkLocal.String()+"]:546", "[fe80::1]:547", message6(kind, iaNA(1)).ToBytes())
		d, contact := answerOf(t, web(), r)
		reply, err := dhcpv6.MessageFromBytes(d.payload)
		require.NoError(t, err)
		assert.Equal(t, iana.StatusUseMulticast, reply.Options.Status().StatusCode)
		assert.Len(t, reply.Options.Options, 3)
		assert.Equal(t, "it is not multicast", contact.Refused)
	}
	r := udpRequest("["+linkLocal.String()+"]:546", "[fe80::1]:547", solicit().ToBytes())
	assert.Equal(t, Answer{Contact: fabric.Contact{Protocol: fabric.DHCPv6, Message: "SOLICIT", Refused: "it is not multicast"}}, web().Answer(r))
}

// TestSilence6: what gets no answer, and why.
func TestSilence6(t *testing.T) {
	t.Parallel()
	another := dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: guestMAC[:]})
	us := dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: gatewayMAC[:]})
	without := func(m *dhcpv6.Message, code dhcpv6.OptionCode) *dhcpv6.Message {
		m.Options.Del(code)
		return m
	}
	foreign := message6(dhcpv6.MessageTypeRenew, iaNA(1))
	foreign.UpdateOption(another)
	off, only4 := web(), web()
	off.DHCP, only4.Gateway.IPv6 = false, netip.Addr{}
	for _, test := range []struct {
		o   Offer
		m   *dhcpv6.Message
		why string
	}{
		{off, solicit(), "DHCP is off for this guest"},
		{only4, solicit(), "the cluster has no IPv6 gateway"},
		{web(), solicit(us), "it names a server, and is for all servers"},
		{web(), message6(dhcpv6.MessageTypeRebind, us, iaNA(1)), "it names a server, and is for all servers"},
		{web(), message6(dhcpv6.MessageTypeConfirm, us, iaNA(1, "2001:db8:100::10")), "it names a server, and is for all servers"},
		{web(), foreign, "it is for another server, or names none"},
		{web(), without(message6(dhcpv6.MessageTypeRequest, iaNA(1)), dhcpv6.OptionServerID), "it is for another server, or names none"},
		{web(), message6(dhcpv6.MessageTypeInformationRequest, another), "it is for another server"},
		{web(), message6(dhcpv6.MessageTypeInformationRequest, iaNA(1)), "it asks for addresses, which an INFORMATION-REQUEST cannot"},
		{web(), message6(dhcpv6.MessageTypeConfirm, iaNA(1)), "it has no addresses to confirm"},
		{web(), without(solicit(), dhcpv6.OptionClientID), "it has no client identifier of at most 130 bytes"},
		{web(), message6(dhcpv6.MessageTypeInformationRequest, &dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionElapsedTime}, iaPD(1)), "it asks for addresses, which an INFORMATION-REQUEST cannot"},
		{web(), message6(dhcpv6.MessageTypeAdvertise), "it is not a message of a client"},
		{web(), message6(dhcpv6.MessageTypeReconfigure), "it is not a message of a client"},
		{web(), message6(99), "it is not a message of a client"},
		{web(), solicit(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionIANA, OptionData: []byte{1}}), "the DHCP message is malformed"},
		{web(), solicit(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionIAPD, OptionData: append(make([]byte, 12), 0, 26, 0, 1, 0)}), "the DHCP message is malformed"},
	} {
		a := test.o.Answer(multicast(test.m))
		assert.Empty(t, a.Frames, test.why)
		assert.Equal(t, test.why, a.Contact.Refused)
	}
	long := solicit()
	long.UpdateOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionClientID, OptionData: make([]byte, maxDUID+1)})
	assert.Equal(t, "it has no client identifier of at most 130 bytes", web().Answer(multicast(long)).Contact.Refused)
	relay := udpRequest("["+linkLocal.String()+"]:547", "[ff02::1:2]:547", append([]byte{12, 0}, make([]byte, 32)...))
	assert.Equal(t, "a relay sent it", web().Answer(relay).Contact.Refused)
	global := udpRequest("[2001:db8:100::10]:546", "[ff02::1:2]:547", solicit().ToBytes())
	assert.Equal(t, "it came from 2001:db8:100::10, which is not link-local", web().Answer(global).Contact.Refused)
}
