package autoconf

import (
	"bytes"
	"net"
	"net/netip"
	"slices"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/vmfabric/vmfabric/fabric"
)

// What DHCPv4 sends and asks beside what the library has names for.
const (
	optionClientFQDN    dhcpv4.GenericOptionCode = 81  // RFC 4702
	optionWindowsRoutes dhcpv4.GenericOptionCode = 249 // RFC 3442 under the number that Windows 2000 asked for
)

// Sizes of DHCPv4 messages.
const (
	message4Len    = 240 // with the magic cookie, without options
	leastAccepted4 = 576 // the IP packet that every client accepts (RFC 2131, 2)
)

var (
	broadcast4   = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	broadcastMAC = fabric.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	hostMask     = net.CIDRMask(32, 32)
	firmwareMask = net.CIDRMask(30, 32) // see the package's documentation
)

// exchange4 is one message of a DHCPv4 client, and who answers it.
type exchange4 struct {
	Offer
	from    fabric.MAC
	to      netip.Addr // the destination of the packet that came in
	asked   *dhcpv4.DHCPv4
	contact fabric.Contact
}

// answer4 answers a DHCPv4 message.
func (o Offer) answer4(from fabric.MAC, d datagram) Answer {
	contact := fabric.Contact{Protocol: fabric.DHCPv4}
	if d.fault != "" {
		return refused(contact, d.fault)
	}
	m, err := dhcpv4.FromBytes(d.payload)
	if err != nil {
		return refused(contact, "the DHCP message is malformed")
	}
	x := exchange4{Offer: o, from: from, to: d.dst, asked: m, contact: contact}
	x.introduce()
	if why := x.refusal(); why != "" {
		return refused(x.contact, why)
	}
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return x.grant(dhcpv4.MessageTypeOffer, o.addresses4()[0])
	case dhcpv4.MessageTypeRequest:
		return x.request()
	case dhcpv4.MessageTypeInform:
		return x.grant(dhcpv4.MessageTypeAck, netip.Addr{})
	case dhcpv4.MessageTypeDecline:
		return x.decline()
	case dhcpv4.MessageTypeRelease: // the address stays the guest's
		return Answer{Contact: x.contact}
	}
	return refused(x.contact, "it is not a message of a client")
}

// introduce notes what the client says of itself.
func (x *exchange4) introduce() {
	x.contact.Message = x.name()
	x.contact.Client = printable(x.asked.Options.Get(dhcpv4.OptionClassIdentifier))
	x.contact.Hostname = printable(bytes.TrimRight(x.asked.Options.Get(dhcpv4.OptionHostName), "\x00"))
	if fqdn := x.asked.Options.Get(optionClientFQDN); x.contact.Hostname == "" && len(fqdn) > 3 {
		if encoded := fqdn[0]&4 != 0; encoded { // RFC 4702, 2.1: the E bit
			x.contact.Hostname = labelled(fqdn[3:])
		} else {
			x.contact.Hostname = printable(fqdn[3:])
		}
	}
}

// name gives the message's type, and of a request the client's state (RFC 2131, 4.3.2).
func (x *exchange4) name() string {
	switch t := x.asked.MessageType(); {
	case t == dhcpv4.MessageTypeNone:
		return "BOOTP"
	case t == dhcpv4.MessageTypeRequest && !x.server().IsValid() && x.requested().IsValid():
		return "INIT-REBOOT"
	case t == dhcpv4.MessageTypeRequest && !x.server().IsValid() && x.to == broadcast4:
		return "REBIND"
	case t == dhcpv4.MessageTypeRequest && !x.server().IsValid():
		return "RENEW"
	default:
		return t.String()
	}
}

// refusal says why the message gets no answer; empty: it gets one.
func (x *exchange4) refusal() string {
	switch {
	case x.asked.OpCode != dhcpv4.OpcodeBootRequest:
		return "it is not a request"
	case x.asked.HWType != iana.HWTypeEthernet || len(x.asked.ClientHWAddr) != len(x.from):
		return "its hardware address is not Ethernet's"
	case !bytes.Equal(x.asked.ClientHWAddr, x.from[:]):
		return "it came from " + x.from.String() + ", and asks for " + x.asked.ClientHWAddr.String()
	case x.stranger(x.from) != "":
		return x.stranger(x.from)
	case !x.asked.GatewayIPAddr.IsUnspecified():
		return "a relay sent it"
	case x.asked.MessageType() == dhcpv4.MessageTypeNone:
		return "it is BOOTP, and not DHCP"
	case !x.DHCP:
		return "DHCP is off for this guest"
	case !x.Gateway.IPv4.Is4():
		return "the cluster has no IPv4 gateway"
	case len(x.addresses4()) == 0:
		return "the NIC has no IPv4 address"
	case x.server().IsValid() && x.server() != x.Gateway.IPv4:
		return "it is for another server, " + x.server().String()
	}
	return ""
}

// server gives the server that the client chose, if it names one.
func (x *exchange4) server() netip.Addr { return x.address(dhcpv4.OptionServerIdentifier) }

// requested gives the address that the client asks for, if it does.
func (x *exchange4) requested() netip.Addr { return x.address(dhcpv4.OptionRequestedIPAddress) }

// address gives the value of an option that has one address.
func (x *exchange4) address(code dhcpv4.OptionCode) netip.Addr {
	a, _ := netip.AddrFromSlice(x.asked.Options.Get(code))
	if !a.Is4() {
		return netip.Addr{}
	}
	return a
}

// client gives the address that the client says it has; invalid: it has none.
func (x *exchange4) client() netip.Addr {
	if a, _ := netip.AddrFromSlice(x.asked.ClientIPAddr); !a.IsUnspecified() {
		return a
	}
	return netip.Addr{}
}

// request answers a DHCPREQUEST: the address is the guest's, or it is not.
func (x *exchange4) request() Answer {
	wanted := x.requested()
	if !wanted.IsValid() {
		wanted = x.client()
	}
	switch {
	case !wanted.IsValid():
		return refused(x.contact, "it asks for no address")
	case !slices.Contains(x.Addresses, wanted):
		x.contact.Refused = wanted.String() + " is not an address of the NIC"
		return x.deny()
	}
	return x.grant(dhcpv4.MessageTypeAck, wanted)
}

// deny tells the client that it cannot have the address. A client that renews may hear
// only what comes to that address (RFC 2131, 4.4.5), and not the broadcast (4.3.2).
func (x *exchange4) deny() Answer {
	nak := x.reply(dhcpv4.MessageTypeNak)
	a := x.send(broadcast4, nak)
	if x.contact.Message == "RENEW" {
		a.Frames = append(a.Frames, x.send(x.client(), nak).Frames...)
	}
	return a
}

// decline notes that another machine has the address.
func (x *exchange4) decline() Answer {
	if a := x.requested(); slices.Contains(x.Addresses, a) {
		x.contact.Declined = a
		return Answer{Contact: x.contact}
	}
	return refused(x.contact, "it declines an address that the NIC does not have")
}

// grant gives the guest an address; without one, only what it asks for beside it
// (DHCPINFORM).
func (x *exchange4) grant(t dhcpv4.MessageType, address netip.Addr) Answer {
	m := x.reply(t)
	if address.IsValid() {
		m.YourIPAddr = address.AsSlice()
		last := x.lifetimes()
		m.UpdateOption(dhcpv4.OptIPAddressLeaseTime(last.Lease))
		m.UpdateOption(dhcpv4.OptRenewTimeValue(last.Renew))
		m.UpdateOption(dhcpv4.OptRebindingTimeValue(last.Rebind))
	}
	x.configure(m)
	switch {
	case x.client().IsValid():
		m.ClientIPAddr = x.asked.ClientIPAddr
		return x.send(x.client(), m)
	case x.asked.IsBroadcast() || !address.IsValid():
		return x.send(broadcast4, m)
	}
	return x.send(address, m)
}

// reply begins an answer of a type.
func (x *exchange4) reply(t dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	m := &dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootReply,
		HWType:        x.asked.HWType,
		TransactionID: x.asked.TransactionID,
		Flags:         x.asked.Flags,
		ClientHWAddr:  x.asked.ClientHWAddr,
		Options:       dhcpv4.OptionsFromList(dhcpv4.OptMessageType(t), dhcpv4.OptServerIdentifier(x.Gateway.IPv4.AsSlice())),
	}
	if t == dhcpv4.MessageTypeNak {
		m.UpdateOption(dhcpv4.OptMessage("the address is not this guest's"))
		x.echo(m)
	}
	return m
}

// configure adds what the guest is told of its network: first what it cannot do
// without, then the rest as far as there is room.
func (x *exchange4) configure(m *dhcpv4.DHCPv4) {
	gateway := x.Gateway.IPv4.AsSlice()
	mask := hostMask
	if bytes.HasPrefix(x.asked.Options.Get(dhcpv4.OptionClassIdentifier), []byte("PXEClient")) {
		mask = firmwareMask
	}
	routes := dhcpv4.Routes{
		{Dest: &net.IPNet{IP: gateway, Mask: hostMask}, Router: net.IPv4zero},
		{Dest: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Router: gateway},
	}
	m.UpdateOption(dhcpv4.OptSubnetMask(mask))
	m.UpdateOption(dhcpv4.OptRouter(gateway))
	m.UpdateOption(dhcpv4.OptClasslessStaticRoute(routes...))
	x.echo(m)
	if x.asked.IsOptionRequested(optionWindowsRoutes) {
		x.offer(m, dhcpv4.OptGeneric(optionWindowsRoutes, routes.ToBytes()))
	}
	if dns := servers(x.DNS, netip.Addr.Is4); len(dns) > 0 {
		x.offer(m, dhcpv4.OptDNS(ips(dns)...))
	}
	if x.MTU > 0 && x.MTU <= 0xffff {
		x.offer(m, dhcpv4.Option{Code: dhcpv4.OptionInterfaceMTU, Value: dhcpv4.Uint16(x.MTU)})
	}
	if x.Hostname != "" {
		x.offer(m, dhcpv4.OptHostName(x.Hostname))
	}
	if ntp := servers(x.NTP, netip.Addr.Is4); len(ntp) > 0 {
		x.offer(m, dhcpv4.OptNTPServers(ips(ntp)...))
	}
	x.configureSearch(m) // last: it is cut to what room there is
}

// configureSearch adds the first search domain as the guest's own, and as many of all
// of them as there is room for.
func (x *exchange4) configureSearch(m *dhcpv4.DHCPv4) {
	domains := x.search()
	if len(domains) == 0 {
		return
	}
	x.offer(m, dhcpv4.OptDomainName(domains[0]))
	for n := len(domains); n > 0; n-- {
		if x.offer(m, dhcpv4.OptGeneric(dhcpv4.OptionDNSDomainSearchList, compressed(domains[:n]))) {
			return
		}
	}
}

// echo adds the client identifier of the request (RFC 6842).
func (x *exchange4) echo(m *dhcpv4.DHCPv4) {
	if id := x.asked.Options.Get(dhcpv4.OptionClientIdentifier); len(id) > 0 {
		x.offer(m, dhcpv4.OptGeneric(dhcpv4.OptionClientIdentifier, id))
	}
}

// offer adds an option if there is room for it.
func (x *exchange4) offer(m *dhcpv4.DHCPv4, option dhcpv4.Option) bool {
	value := option.Value.ToBytes()
	room := x.room() - optionLen(len(value))
	for _, v := range m.Options {
		room -= optionLen(len(v))
	}
	if room < 0 {
		return false
	}
	m.Options[option.Code.Code()] = value
	return true
}

// optionLen gives the length of an option with its headers: one for each 255 bytes
// (RFC 3396).
func optionLen(value int) int { return value + 2*max(1, (value+254)/255) }

// room gives how many bytes of options the client accepts.
func (x *exchange4) room() int {
	most := leastAccepted4
	if n, err := x.asked.MaxMessageSize(); err == nil && int(n) > most {
		most = min(int(n), max(most, x.largest()))
	}
	return most - ipv4Len - udpLen - message4Len - 1 // the end option
}

// send gives the answer as a frame to the guest.
func (x *exchange4) send(to netip.Addr, m *dhcpv4.DHCPv4) Answer {
	mac := x.from
	if to == broadcast4 {
		mac = broadcastMAC
	}
	return Answer{
		Frames: [][]byte{udpFrame(x.Gateway.MAC, mac,
			netip.AddrPortFrom(x.Gateway.IPv4, server4), netip.AddrPortFrom(to, client4), m.ToBytes())},
		Contact: x.contact,
	}
}

// ips gives addresses in the form that the library takes.
func ips(as []netip.Addr) (out []net.IP) {
	for _, a := range as {
		out = append(out, a.AsSlice())
	}
	return out
}
