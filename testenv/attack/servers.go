package attack

import (
	"net"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/internal/packets"
	"github.com/vmfabric/vmfabric/internal/requests"
)

// Ports of DHCP (RFC 2131, RFC 8415).
const server4, client4, server6, client6 = 67, 68, 547, 546

// toClients is where a DHCP server of the link answers all of its clients.
func (v *Volley) toClients() netip.Addr {
	if v.Family == IPv4 {
		return everybody
	}
	return allNodes
}

// fromServer is the address from which one answers.
func (v *Volley) fromServer() netip.Addr {
	if v.Family == IPv4 {
		return v.self()
	}
	return v.linkLocal()
}

// leases are the answers of a DHCP server to the other guest: addresses of the attacker's
// choice, with itself as the router.
func (v *Volley) leases(src, dst netip.Addr) (all []packet) {
	add := func(from, to uint16, message []byte) {
		all = append(all, packet{src: src, dst: dst, protocol: unix.IPPROTO_UDP, payload: packets.UDP(src, dst, from, to, message)})
	}
	if v.Family == IPv4 {
		for _, kind := range []dhcpv4.MessageType{dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak} {
			add(server4, client4, v.lease4(kind))
		}
		return all
	}
	for _, kind := range []dhcpv6.MessageType{dhcpv6.MessageTypeAdvertise, dhcpv6.MessageTypeReply, dhcpv6.MessageTypeReconfigure} {
		add(server6, client6, v.lease6(kind))
	}
	return all
}

func (v *Volley) lease4(kind dhcpv4.MessageType) []byte {
	self := net.IP(v.Self.V4.AsSlice())
	m := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootReply, HWType: iana.HWTypeEthernet, ClientHWAddr: v.Other.MAC[:], YourIPAddr: v.Free.V4.AsSlice(),
		Options: dhcpv4.OptionsFromList(
			dhcpv4.OptMessageType(kind), dhcpv4.OptServerIdentifier(self), dhcpv4.OptRouter(self), dhcpv4.OptDNS(self), dhcpv4.OptMessage(string(v.Token()))),
	}
	return m.ToBytes()
}

func (v *Volley) lease6(kind dhcpv6.MessageType) []byte {
	m := &dhcpv6.Message{MessageType: kind}
	m.AddOption(dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: v.Self.MAC[:]}))
	m.AddOption(dhcpv6.OptClientID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: v.Other.MAC[:]}))
	ia := &dhcpv6.OptIANA{IaId: [4]byte(v.Other.MAC[2:])}
	ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: v.Free.V6.AsSlice()})
	m.AddOption(ia)
	m.AddOption(&dhcpv6.OptStatusCode{StatusMessage: string(v.Token())})
	return m.ToBytes()
}

// leasesTo sends the answers from the attacker's own address to others, by their own.
func leasesTo(of func(*Volley) []Pair) func(*Volley) {
	return func(v *Volley) {
		for _, to := range of(v) {
			for _, p := range v.leases(v.self(), to.Of(v.Family)) {
				v.ip(p)
			}
		}
	}
}

// leasesFrom sends the answers from others' addresses to the other guest.
func leasesFrom(of func(*Volley) []Pair) func(*Volley) {
	return func(v *Volley) {
		for _, from := range of(v) {
			for _, p := range v.leases(from.Of(v.Family), v.Other.Of(v.Family)) {
				v.ip(p)
			}
		}
	}
}

// Leases to a machine beyond the cluster, and to another guest by its address, are routed
// as from any host of the Internet. A client takes none that does not know the number of
// its request and its MAC address or DUID.
var (
	leasesToInternet = leasesTo(func(v *Volley) []Pair { return []Pair{v.Client} })
	leasesToGuest    = leasesTo(func(v *Volley) []Pair { return []Pair{v.Other.Pair} })
)

// servers are attacks on what others believe of their addresses, and of their router: the
// attacker plays the DHCP server and the router of a link.
var servers = []Kind{
	{
		Name: "answers of a DHCP server, to the link", Never: Everywhere,
		Hostile: func(v *Volley) {
			for _, p := range v.leases(v.fromServer(), v.toClients()) {
				v.ip(p)
			}
		},
		Honest: leasesToInternet, At: Underlay,
	},
	{
		Name: "answers of a DHCP server, to machines of the underlay", Never: Everywhere,
		Hostile: leasesTo(func(v *Volley) []Pair { return []Pair{v.Neighbor, v.Core} }),
		Honest:  leasesToInternet, At: Underlay,
	},
	{
		Name: "answers of a DHCP server, to another guest's MAC address", Never: Everywhere, Alone: both,
		Hostile: func(v *Volley) {
			for _, to := range []netip.Addr{v.toClients(), v.Other.Of(v.Family)} {
				for _, p := range v.leases(v.fromServer(), to) {
					e := v.around(p)
					e.to = v.Other.MAC
					v.frame(e)
				}
			}
		},
		Honest: leasesToGuest, At: OtherGuest,
	},
	{
		Name: "answers of a DHCP server, as if of the gateway, to another guest", Never: Underlay | OtherGuest, Alone: both,
		Hostile: func(v *Volley) {
			others := []netip.Addr{v.Other.V4}
			if v.Family == IPv6 {
				others = []netip.Addr{v.Other.V6, requests.LinkLocal(v.Other.MAC)}
			}
			for _, other := range others {
				for _, p := range v.leases(v.gateway(), other) {
					v.ip(p)
				}
			}
		},
		Honest: leasesToGuest, At: OtherGuest,
	},
	{
		Name: "answers of a DHCP server, as if of the node, to another guest", Never: Everywhere, Alone: []Family{IPv4},
		Hostile: leasesFrom(func(v *Volley) []Pair { return []Pair{v.Node.Pair} }),
		Honest:  leasesToGuest, At: OtherGuest,
	},
	{
		Name: "answers of a DHCP server, as if of a core gateway or a guest that is not there, to another guest", Never: Everywhere,
		Hostile: leasesFrom(func(v *Volley) []Pair { return []Pair{v.Core, v.Free} }),
		Honest:  leasesToGuest, At: OtherGuest,
	},
	{
		Name: "router advertisements to another guest's addresses and MAC address", Never: Everywhere, Keeps: true, Only: IPv6, Alone: both,
		Hostile: func(v *Volley) {
			for _, dst := range []netip.Addr{allNodes, v.Other.V6, requests.LinkLocal(v.Other.MAC)} {
				p := v.discovery(v.linkLocal(), dst, advertisement6, routerLife, advertisement(v.Core.V6, v.Self.MAC))
				e := v.around(p)
				e.to = v.Other.MAC
				v.frame(e)
				if !dst.IsMulticast() {
					v.ip(v.discovery(v.linkLocal(), dst, advertisement6, routerLife, advertisement(v.Core.V6, v.Self.MAC)))
				}
			}
		},
		Honest: toGuest, At: OtherGuest,
	},
	{
		Name: "router advertisements to machines of the underlay", Never: Everywhere, Keeps: true, Only: IPv6,
		Hostile: func(v *Volley) {
			for _, dst := range []netip.Addr{v.Neighbor.V6, v.Core.V6} {
				v.ip(v.discovery(v.self(), dst, advertisement6, routerLife, advertisement(v.Core.V6, v.Self.MAC)))
			}
		},
		Honest: toInternet, At: Underlay,
	},
}
