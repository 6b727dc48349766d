package autoconf

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/insomniacslk/dhcp/rfc1035label"

	"github.com/vmfabric/vmfabric/fabric"
)

// Sizes of DHCPv6 messages. An answer fits into a packet that every link takes whole,
// whatever a guest asks for.
const (
	message6Len = 4
	option6Len  = 4                       // of an option's header
	maxMessage6 = 1280 - ipv6Len - udpLen // RFC 8200, 5
	maxDUID     = 130                     // RFC 8415, 11.1
	maxForeign  = 4                       // addresses that are not the guest's, in the answer for an IA
	maxRefusals = 4                       // IAs after the first
)

// exchange6 is one message of a DHCPv6 client, the answer to it, and who gives it.
type exchange6 struct {
	Offer
	from    fabric.MAC
	src     netip.Addr
	unicast bool           // it was sent to the gateway alone
	asked   dhcpv6.Message // its options are bytes: see verbatim
	answer  dhcpv6.Message
	size    int // of the answer
	contact fabric.Contact
}

// verbatim keeps an option of a request as bytes. The library's own readers follow
// references in names, and messages in messages, of which a guest could make much.
func verbatim(code dhcpv6.OptionCode, data []byte) (dhcpv6.Option, error) {
	return &dhcpv6.OptionGeneric{OptionCode: code, OptionData: data}, nil
}

// answer6 answers a DHCPv6 message.
func (o Offer) answer6(from fabric.MAC, d datagram) Answer {
	x := exchange6{Offer: o, from: from, src: d.src, unicast: !d.dst.IsMulticast(), contact: fabric.Contact{Protocol: fabric.DHCPv6}}
	if d.fault != "" {
		return refused(x.contact, d.fault)
	}
	if !x.read(d.payload) {
		return refused(x.contact, "the DHCP message is malformed")
	}
	x.introduce()
	for _, why := range []string{x.unauthorized(), x.invalid(), x.misdirected()} {
		if why != "" {
			return refused(x.contact, why)
		}
	}
	return x.reply()
}

// read reads the message, and reports whether it can be read.
func (x *exchange6) read(b []byte) bool {
	if len(b) < message6Len {
		return false
	}
	x.asked.MessageType, x.asked.TransactionID = dhcpv6.MessageType(b[0]), dhcpv6.TransactionID(b[1:message6Len])
	if relayed(x.asked.MessageType) { // has a header of its own
		return true
	}
	if x.asked.Options.FromBytesWithParser(b[message6Len:], verbatim) != nil {
		return false
	}
	for _, o := range x.asked.Options.Options {
		if _, ok := associationOf(o); !ok {
			return false
		}
	}
	return true
}

// relayed reports whether a message is between a relay and a server.
func relayed(t dhcpv6.MessageType) bool {
	return t == dhcpv6.MessageTypeRelayForward || t == dhcpv6.MessageTypeRelayReply
}

// introduce notes what the client says of itself.
func (x *exchange6) introduce() {
	x.contact.Message = x.asked.MessageType.String()
	if class := x.value(dhcpv6.OptionVendorClass); len(class) > 6 { // enterprise number, length
		length := int(binary.BigEndian.Uint16(class[4:]))
		x.contact.Client = printable(class[6:min(len(class), 6+length)])
	}
	if fqdn := x.value(dhcpv6.OptionFQDN); len(fqdn) > 1 {
		x.contact.Hostname = labelled(fqdn[1:])
	}
}

// value gives the data of the first option of a kind, or nil.
func (x *exchange6) value(code dhcpv6.OptionCode) []byte {
	if o := x.asked.Options.GetOne(code); o != nil {
		return o.ToBytes()
	}
	return nil
}

// has reports whether the request has an option.
func (x *exchange6) has(code dhcpv6.OptionCode) bool { return x.asked.Options.GetOne(code) != nil }

// wants reports whether the client asks for an option.
func (x *exchange6) wants(code dhcpv6.OptionCode) bool {
	for list := x.value(dhcpv6.OptionORO); len(list) > 1; list = list[2:] {
		if dhcpv6.OptionCode(binary.BigEndian.Uint16(list)) == code {
			return true
		}
	}
	return false
}

// unauthorized says why the sender gets no answer; empty: it gets one.
func (x *exchange6) unauthorized() string {
	switch {
	case relayed(x.asked.MessageType):
		return "a relay sent it"
	case !x.src.IsLinkLocalUnicast():
		return "it came from " + x.src.String() + ", which is not link-local"
	case x.stranger(x.from) != "":
		return x.stranger(x.from)
	case !x.DHCP:
		return "DHCP is off for this guest"
	case !plain6(x.Gateway.IPv6):
		return "the cluster has no IPv6 gateway"
	}
	return ""
}

// invalid says why a server discards the message (RFC 8415, 16); empty: it does not.
func (x *exchange6) invalid() string {
	client := x.value(dhcpv6.OptionClientID)
	switch x.asked.MessageType {
	case dhcpv6.MessageTypeInformationRequest:
		for _, code := range []dhcpv6.OptionCode{dhcpv6.OptionIANA, dhcpv6.OptionIATA, dhcpv6.OptionIAPD} {
			if x.has(code) {
				return "it asks for addresses, which an INFORMATION-REQUEST cannot"
			}
		}
		if client == nil {
			return ""
		}
	case dhcpv6.MessageTypeConfirm:
		if len(x.confirmed()) == 0 {
			return "it has no addresses to confirm"
		}
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew,
		dhcpv6.MessageTypeRebind, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
	default:
		return "it is not a message of a client"
	}
	if len(client) == 0 || len(client) > maxDUID {
		return "it has no client identifier of at most 130 bytes"
	}
	return ""
}

// misdirected says why the message is not for this server (RFC 8415, 16); empty: it is.
func (x *exchange6) misdirected() string {
	named, ours := x.has(dhcpv6.OptionServerID), bytes.Equal(x.value(dhcpv6.OptionServerID), x.server().ToBytes())
	switch x.asked.MessageType {
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRebind:
		if named {
			return "it names a server, and is for all servers"
		}
	case dhcpv6.MessageTypeInformationRequest:
		if named && !ours {
			return "it is for another server"
		}
	default: // a unicast one gets an answer that says so
		if !ours {
			return "it is for another server, or names none"
		}
		return ""
	}
	if x.unicast {
		return "it is not multicast"
	}
	return ""
}

// server gives the identifier of all nodes as a server: that of their ports.
func (x *exchange6) server() *dhcpv6.DUIDLL {
	return &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: x.Gateway.MAC[:]}
}

// reply answers a message that is for this server.
func (x *exchange6) reply() Answer {
	x.answer = dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: x.asked.TransactionID}
	x.size = message6Len
	if id := x.value(dhcpv6.OptionClientID); id != nil {
		x.add(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionClientID, OptionData: id})
	}
	x.add(dhcpv6.OptServerID(x.server()))
	if x.unicast { // RFC 8415, 18.3.2: no client is told that it may
		x.contact.Refused = "it is not multicast"
		x.add(status(iana.StatusUseMulticast))
		return x.send()
	}
	switch x.asked.MessageType {
	case dhcpv6.MessageTypeSolicit:
		x.solicited()
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		x.associate()
		x.configure()
	case dhcpv6.MessageTypeConfirm:
		x.confirm()
	case dhcpv6.MessageTypeRelease: // the addresses stay the guest's
		x.add(status(iana.StatusSuccess))
	case dhcpv6.MessageTypeDecline:
		x.decline()
	case dhcpv6.MessageTypeInformationRequest:
		x.configure()
		if x.wants(dhcpv6.OptionInformationRefreshTime) {
			x.add(dhcpv6.OptInformationRefreshTime(x.lifetimes().Renew))
		}
	}
	return x.send()
}

// solicited answers a SOLICIT: at once with addresses if the client takes that, or with
// a preference that ends its wait for other servers (RFC 8415, 18.2.1).
func (x *exchange6) solicited() {
	if x.has(dhcpv6.OptionRapidCommit) && len(x.addresses6()) > 0 {
		x.add(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit})
	} else {
		x.answer.MessageType = dhcpv6.MessageTypeAdvertise
		x.add(dhcpv6.OptPreference(255))
	}
	x.associate()
	x.configure()
}

// confirm says whether all addresses that the client has are the guest's.
func (x *exchange6) confirm() {
	for _, a := range x.confirmed() {
		if !slices.Contains(x.Addresses, a) {
			x.contact.Refused = a.String() + " is not an address of the NIC"
			x.add(status(iana.StatusNotOnLink))
			return
		}
	}
	x.add(status(iana.StatusSuccess))
}

// confirmed lists the addresses of all associations of the request.
func (x *exchange6) confirmed() (as []netip.Addr) {
	for _, o := range x.asked.Options.Options {
		if ia, _ := associationOf(o); o.Code() != dhcpv6.OptionIAPD {
			for _, p := range ia.prefixes {
				as = append(as, p.Addr())
			}
		}
	}
	return as
}

// decline notes that another machine has an address.
func (x *exchange6) decline() {
	for _, a := range x.confirmed() {
		if slices.Contains(x.Addresses, a) {
			x.contact.Declined = a
			break
		}
	}
	x.add(status(iana.StatusSuccess))
}

// configure adds what the guest is told beside its addresses.
func (x *exchange6) configure() {
	if dns := servers(x.DNS, plain6); len(dns) > 0 {
		x.add(dhcpv6.OptDNS(ips(dns)...))
	}
	if ntp := servers(x.NTP, plain6); len(ntp) > 0 && x.wants(dhcpv6.OptionNTPServer) {
		option := &dhcpv6.OptNTPServer{}
		for _, a := range ntp {
			server := dhcpv6.NTPSuboptionSrvAddr(a.AsSlice())
			option.Suboptions.Add(&server)
		}
		x.add(option)
	} else if len(ntp) > 0 && x.wants(dhcpv6.OptionSNTPServerList) {
		x.add(dhcpv6.OptSNTP(ips(ntp)...))
	}
	if x.Hostname != "" && (x.has(dhcpv6.OptionFQDN) || x.wants(dhcpv6.OptionFQDN)) {
		x.add(x.fqdn())
	}
	x.configureSearch() // last: it is cut to what room there is
}

// configureSearch adds as many of the search domains as there is room for.
func (x *exchange6) configureSearch() {
	names := fitting(x.search(), maxMessage6-x.size-option6Len)
	if len(names) > 0 {
		x.add(dhcpv6.OptDomainSearchList(&rfc1035label.Labels{Labels: names}))
	}
}

// fqdn gives the guest's name, in the first search domain if it has no domain of its own,
// and says that no server updates the DNS (RFC 4704, 4.1 and 6).
func (x *exchange6) fqdn() dhcpv6.Option {
	name, qualified := x.Hostname, strings.Contains(x.Hostname, ".")
	if domains := x.search(); !qualified && len(domains) > 0 {
		if whole := domain(name + "." + domains[0]); whole != "" { // it may be too long
			name, qualified = whole, true
		}
	}
	labels := (&rfc1035label.Labels{Labels: []string{name}}).ToBytes()
	if !qualified {
		labels = labels[:len(labels)-1] // without the root
	}
	flags := byte(4) // N
	if asked := x.value(dhcpv6.OptionFQDN); len(asked) > 0 && asked[0]&1 != 0 {
		flags |= 2 // O: the client asked for an update
	}
	return &dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionFQDN, OptionData: append([]byte{flags}, labels...)}
}

// add adds an option if there is room for it.
func (x *exchange6) add(o dhcpv6.Option) bool {
	size := option6Len + len(o.ToBytes())
	if x.size+size > maxMessage6 {
		return false
	}
	x.answer.Options.Add(o)
	x.size += size
	return true
}

// status gives a status code. Its name tells all, so it needs no message.
func status(code iana.StatusCode) dhcpv6.Option { return &dhcpv6.OptStatusCode{StatusCode: code} }

// send gives the answer as a frame to the guest.
func (x *exchange6) send() Answer {
	return Answer{
		Frames: [][]byte{udpFrame(x.Gateway.MAC, x.from,
			netip.AddrPortFrom(x.Gateway.IPv6, server6), netip.AddrPortFrom(x.src, client6), x.answer.ToBytes())},
		Contact: x.contact,
	}
}

// ipNet gives a prefix in the form that the library takes.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
