package attack

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/packets"
	"github.com/vmfabric/vmfabric/internal/requests"
)

var everybody = addr("255.255.255.255")

// aims sends datagrams from the attacker's own address to where no guest may.
func aims(to ...Pair) func(*Volley) {
	return func(v *Volley) {
		for _, p := range to {
			v.ip(v.datagram(v.self(), p.Of(v.Family)))
			v.ip(v.ping(v.self(), p.Of(v.Family)))
		}
	}
}

// answersNeighbor is a segment of a connection that a machine of the underlay has with
// the guest: that one has just spoken to the guest.
func answersNeighbor(v *Volley) {
	v.ip(v.segment(v.self(), v.Neighbor.Of(v.Family), 4001, packets.ACK))
}

// destinations are what a guest does not reach from its own address.
var destinations = []Kind{
	{
		Name: "the underlay: connections", Never: Underlay,
		Hostile: func(v *Volley) {
			for _, to := range []Pair{v.Core, v.Reflector, v.Neighbor} {
				for _, port := range []uint16{22, 179, 2379, fabric.DefaultAgentPort} {
					v.ip(v.segment(v.self(), to.Of(v.Family), port, packets.SYN))
				}
			}
		},
		Honest: func(v *Volley) { v.ip(v.segment(v.self(), v.client(), 179, packets.SYN)) }, At: Underlay,
	},
	{
		Name: "the underlay: segments of no connection", Never: Underlay,
		Hostile: func(v *Volley) {
			for _, flags := range []byte{packets.ACK, packets.RST, packets.SYN | packets.ACK, packets.FIN, 0} {
				v.ip(v.segment(v.self(), v.Core.Of(v.Family), 179, flags))
				v.ip(v.segment(v.self(), v.Reflector.Of(v.Family), 179, flags))
			}
		},
		Honest: answersNeighbor, At: Underlay,
	},
	{
		Name: "the underlay: a connection back to a machine that spoke to the guest", Never: Underlay,
		Hostile: func(v *Volley) {
			v.ip(v.segment(v.self(), v.Neighbor.Of(v.Family), 22, packets.SYN))
			v.ip(v.segment(v.self(), v.Neighbor.Of(v.Family), 4001, packets.SYN))
			v.ip(v.segment(v.self(), v.Neighbor.Of(v.Family), fabric.DefaultAgentPort, packets.ACK))
			v.ip(v.segment(v.self(), v.Neighbor.Of(v.Family), fabric.DefaultAgentPort, packets.RST))
		},
		Honest: answersNeighbor, At: Underlay,
	},
	{
		Name: "the underlay: datagrams back to other ports of a machine that spoke to the guest", Never: Underlay,
		Hostile: func(v *Volley) {
			for _, port := range []uint16{53, 69, 161, 514, 4789} {
				v.ip(v.datagramTo(v.self(), v.Neighbor.Of(v.Family), port))
			}
		},
		Honest: func(v *Volley) { v.ip(v.datagram(v.self(), v.Neighbor.Of(v.Family))) }, At: Underlay,
	},
	{
		Name: "the underlay: datagrams and echo requests", Never: Underlay,
		Hostile: func(v *Volley) { aims(v.Core, v.Reflector)(v) },
	},
	{
		Name: "the underlay: echo requests to a machine that spoke to the guest", Never: Underlay,
		Hostile: func(v *Volley) { v.ip(v.ping(v.self(), v.Neighbor.Of(v.Family))) },
		Honest:  answersNeighbor, At: Underlay,
	},
	{
		Name: "the underlay: answers that nobody asked for", Never: Underlay,
		Hostile: func(v *Volley) {
			kind := byte(reply6)
			if v.Family == IPv4 {
				kind = reply4
			}
			v.ip(v.message(v.self(), v.Core.Of(v.Family), kind, 0, 1<<16|1, nil))
			v.ip(v.message(v.self(), v.Reflector.Of(v.Family), kind, 0, 1<<16|1, nil))
		},
		Honest: answersNeighbor, At: Underlay,
	},
	{
		Name: "the underlay: ICMP errors that quote a packet between its machines", Never: Underlay,
		Hostile: func(v *Volley) {
			quoted := packet{src: v.Neighbor.Of(v.Family), dst: v.Core.Of(v.Family), protocol: unix.IPPROTO_UDP, payload: make([]byte, 8)}
			v.ip(v.tooBig(v.self(), v.Neighbor.Of(v.Family), quoted))
			v.ip(v.tooBig(v.self(), v.Core.Of(v.Family), quoted))
		},
		Honest: func(v *Volley) {
			v.ip(v.tooBig(v.self(), v.Neighbor.Of(v.Family), packet{src: v.Neighbor.Of(v.Family), dst: v.self(), protocol: unix.IPPROTO_UDP, payload: make([]byte, 8)}))
		}, At: Underlay,
	},
	{
		Name: "the underlay: its broadcast address, and an address of it that nobody has", Never: Underlay, Alone: both,
		Hostile: aims(pair("10.10.0.255", "fd00:10:10::")),
	},
	{
		Name: "the underlay: hop limit 255, as if of its own link", Never: Underlay,
		Hostile: func(v *Volley) {
			for _, to := range []Pair{v.Neighbor, v.Core} {
				p := v.segment(v.self(), to.Of(v.Family), fabric.DefaultAgentPort, packets.SYN)
				p.hops = 255
				v.ip(p)
			}
		},
		Honest: func(v *Volley) {
			p := v.datagram(v.self(), v.client())
			p.hops = 255
			v.ip(p)
		}, At: Underlay,
	},
	{
		Name: "hop limits of 0 and 1, beyond the node", Never: Underlay | OtherGuest, Alone: both,
		Hostile: func(v *Volley) {
			for _, hops := range []int{-1, 1} {
				for _, to := range []netip.Addr{v.client(), v.Other.Of(v.Family), v.Core.Of(v.Family)} {
					p := v.datagram(v.self(), to)
					p.hops = hops
					v.ip(p)
				}
			}
		},
		Honest: func(v *Volley) {
			p := v.datagram(v.self(), v.client())
			p.hops = 2
			v.ip(p)
		}, At: Underlay,
	},
	{ // the core gateway has sent one about the control of the kind before
		Name: "the underlay: a machine that has sent the guest an ICMP error", Never: Underlay,
		Hostile: func(v *Volley) {
			v.ip(v.segment(v.self(), v.Core.Of(v.Family), 179, packets.ACK))
			v.ip(v.piece(v.self(), v.Core.Of(v.Family), 8, false))
		},
		Honest: answersNeighbor, At: Underlay,
	},
	{
		Name: "the node: connections to its services", Never: NodeItself,
		Hostile: func(v *Volley) {
			for _, to := range []netip.Addr{v.gateway(), v.Node.Of(v.Family)} {
				for _, port := range []uint16{22, 53, 80, 111, 179, 2379, 5900, 8443, fabric.DefaultAgentPort, 16509} {
					v.ip(v.segment(v.self(), to, port, packets.SYN))
				}
			}
		},
		Honest: toGateway, At: NodeItself,
	},
	{
		Name: "the node: any segment to the agents' port", Never: NodeItself,
		Hostile: func(v *Volley) {
			for _, flags := range []byte{packets.ACK, packets.RST, packets.SYN | packets.ACK, packets.FIN | packets.ACK, 0} {
				v.ip(v.segment(v.self(), v.Node.Of(v.Family), fabric.DefaultAgentPort, flags))
			}
		},
		Honest: func(v *Volley) { v.ip(v.segment(v.self(), v.Node.Of(v.Family), 4001, packets.ACK)) }, At: NodeItself,
	},
	{
		Name: "the node: datagrams to its services", Never: NodeItself,
		Hostile: func(v *Volley) {
			for _, to := range []netip.Addr{v.gateway(), v.Node.Of(v.Family)} {
				for _, port := range []uint16{53, 69, 111, 123, 161, 3784, 4784, 4789, fabric.DefaultAgentPort} {
					v.ip(v.datagramTo(v.self(), to, port))
				}
			}
		},
		Honest: toGateway, At: NodeItself,
	},
	{
		Name: "the node: datagrams as if they were answers", Never: NodeItself,
		Hostile: func(v *Volley) {
			for _, from := range []uint16{53, 123, 547} {
				src, dst := v.self(), v.Node.Of(v.Family)
				v.ip(packet{src: src, dst: dst, protocol: unix.IPPROTO_UDP, payload: packets.UDP(src, dst, from, 40000, v.Token())})
			}
		},
		Honest: toGateway, At: NodeItself,
	},
	{
		Name: "loopback", Never: Everywhere, Alone: []Family{IPv6},
		Hostile: func(v *Volley) {
			aims(pair("127.0.0.1", "::1"))(v)
			v.ip(v.segment(v.self(), pair("127.0.0.53", "::1").Of(v.Family), 179, packets.SYN))
		},
	},
	{Name: "the unspecified address", Hostile: aims(Pair{netip.IPv4Unspecified(), netip.IPv6Unspecified()}), Never: Everywhere, Alone: []Family{IPv4}},
	{
		Name: "reserved addresses, and IPv4 in IPv6", Never: Everywhere,
		Hostile: aims(pair("240.0.0.1", "::ffff:10.10.0.1")),
	},
	{Name: "broadcast, and all nodes of the link", Hostile: aims(pair("255.255.255.255", "ff02::1")), Never: Underlay | OtherGuest, Alone: both},
	{
		Name: "broadcast, and all nodes of the link: datagrams to the node", Never: NodeItself,
		Hostile: func(v *Volley) {
			for _, port := range []uint16{53, 111, 1900, 5353} {
				v.ip(v.datagramTo(v.self(), pair("255.255.255.255", "ff02::1").Of(v.Family), port))
			}
		},
		Honest: toGateway, At: NodeItself,
	},
	{
		Name: "multicast groups beyond the link", Never: Everywhere, Alone: both,
		Hostile: aims(pair("239.1.1.1", "ff0e::1"), pair("224.0.1.1", "ff05::2"), pair("232.0.0.1", "ff08::1")),
	},
	{
		Name: "metadata of another cloud", Never: Everywhere, Alone: []Family{IPv6},
		Hostile: func(v *Volley) {
			to := Pair{fabric.Metadata4, fabric.Metadata6}.Of(v.Family)
			v.ip(v.segment(v.self(), to, 80, packets.SYN))
			v.ip(v.datagram(v.self(), to))
			v.ip(v.ping(v.self(), to))
		},
	},
	{
		Name: "link-local addresses of others", Never: Everywhere, Alone: []Family{IPv6},
		Hostile: func(v *Volley) {
			to := Pair{addr("169.254.7.7"), requests.LinkLocal(v.Other.MAC)}.Of(v.Family)
			v.ip(v.datagram(v.self(), to))
			v.ip(v.ping(v.self(), to))
			v.ip(v.segment(v.self(), to, 22, packets.SYN))
		},
	},
	{
		Name: "another guest past the gateway, by its MAC address and by broadcast", Never: OtherGuest | Underlay, Alone: both,
		Hostile: func(v *Volley) {
			for _, mac := range []fabric.MAC{v.Other.MAC, v.Node.MAC, broadcast, {0x01, 0x00, 0x5e, 0, 0, 1}, {0x33, 0x33, 0, 0, 0, 1}} {
				for _, to := range []netip.Addr{v.Other.Of(v.Family), v.client()} {
					e := v.around(v.datagram(v.self(), to))
					e.to = mac
					v.frame(e)
				}
			}
		},
		Honest: toGuest, At: OtherGuest,
	},
}
