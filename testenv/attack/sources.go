package attack

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/packets"
)

var addr = netip.MustParseAddr

// pair parses an address of each family.
func pair(v4, v6 string) Pair { return Pair{addr(v4), addr(v6)} }

var both = []Family{IPv4, IPv6}

// poses sends from addresses that are not the attacker's: to the Internet, to another
// guest, and to the node, whose answer would go to that address.
func poses(as func(Cast) Pair) func(*Volley) {
	return func(v *Volley) {
		src := as(v.Cast).Of(v.Family)
		v.ip(v.datagram(src, v.client()))
		v.ip(v.datagram(src, v.Other.Of(v.Family)))
		v.ip(v.ping(src, v.gateway()))
	}
}

func always(p Pair) func(Cast) Pair { return func(Cast) Pair { return p } }

// posing is a kind of forged source.
func posing(name string, as func(Cast) Pair, alone ...Family) Kind {
	return Kind{Name: name, Hostile: poses(as), Never: Everywhere, Alone: alone}
}

// sources are forged sources. The kernel knows some for impossible by itself.
var sources = []Kind{
	posing("source: another guest's", func(c Cast) Pair { return c.Other.Pair }),
	posing("source: of a guest that is not there", func(c Cast) Pair { return c.Free }),
	posing("source: withdrawn a moment ago", func(c Cast) Pair { return c.Gone }),
	{
		Name: "source: the gateway's, beyond the link", Never: Underlay | OtherGuest, Alone: both,
		Hostile: func(v *Volley) {
			v.ip(v.datagram(v.gateway(), v.client()))
			v.ip(v.datagram(v.gateway(), v.Other.Of(v.Family)))
		},
	},
	{
		Name: "source: the gateway's, to the gateway", Never: Everywhere, Alone: []Family{IPv4},
		Hostile: func(v *Volley) {
			v.ip(v.ping(v.gateway(), v.gateway()))
			v.ip(v.segment(v.gateway(), v.gateway(), 22, packets.SYN))
		},
		Honest: toGateway, At: NodeItself,
	},
	posing("source: the node's", func(c Cast) Pair { return c.Node.Pair }, IPv4),
	posing("source: a core gateway's", func(c Cast) Pair { return c.Core }),
	posing("source: a reflector's", func(c Cast) Pair { return c.Reflector }),
	posing("source: another machine's of the underlay", func(c Cast) Pair { return c.Neighbor }),
	posing("source: a machine's in the Internet", func(c Cast) Pair { return c.Client }),
	posing("source: an address that is nobody's", always(pair("198.51.100.99", "2001:db8:9::99"))),
	{
		Name: "source: unspecified, beyond the link", Never: Everywhere, Alone: both,
		Hostile: func(v *Volley) {
			none := Pair{netip.IPv4Unspecified(), netip.IPv6Unspecified()}.Of(v.Family)
			v.ip(v.datagram(none, v.client()))
			v.ip(v.datagram(none, v.Other.Of(v.Family)))
		},
	},
	{
		Name: "source: unspecified, to the node, which would answer to the underlay", Never: Everywhere, Alone: []Family{IPv4},
		Hostile: func(v *Volley) {
			none := Pair{netip.IPv4Unspecified(), netip.IPv6Unspecified()}.Of(v.Family)
			v.ip(v.ping(none, v.gateway()))
			v.ip(v.ping(none, v.Node.Of(v.Family)))
		},
		Honest: toGateway, At: NodeItself,
	},
	posing("source: loopback", always(pair("127.0.0.1", "::1")), both...),
	posing("source: more of loopback, and IPv4 in IPv6", always(pair("127.255.3.4", "::ffff:10.10.0.1")), IPv4),
	posing("source: a multicast group", always(pair("224.0.0.5", "ff02::1")), both...),
	posing("source: broadcast, and a multicast group beyond the link", always(pair("255.255.255.255", "ff0e::1")), both...),
	posing("source: of this network, and IPv4-compatible", always(pair("0.1.2.3", "::10.10.0.1"))),
	posing("source: reserved, and discard-only", always(pair("240.0.0.1", "100::1"))),
	posing("source: the broadcast address of the underlay, and its anycast", always(pair("10.10.0.255", "fd00:10:10::")), IPv4),
	posing("source: private, and unique local, of no network here", always(pair("192.168.7.7", "fd99::7"))),
	{
		Name: "source: link-local, beyond the link", Never: Underlay | OtherGuest, Alone: []Family{IPv6},
		Hostile: func(v *Volley) {
			src := Pair{addr("169.254.7.7"), v.linkLocal()}.Of(v.Family)
			v.ip(v.datagram(src, v.client()))
			v.ip(v.datagram(src, v.Other.Of(v.Family)))
		},
	},
	{
		Name: "source: the destination itself", Never: Everywhere,
		Hostile: func(v *Volley) {
			v.ip(v.datagram(v.client(), v.client()))
			v.ip(v.segment(v.Other.Of(v.Family), v.Other.Of(v.Family), 22, packets.SYN))
		},
		Honest: toGuest, At: OtherGuest,
	},
	{
		Name: "source: the node's own, to the node itself", Never: Everywhere, Alone: []Family{IPv4},
		Hostile: func(v *Volley) { v.ip(v.segment(v.Node.Of(v.Family), v.Node.Of(v.Family), 22, packets.SYN)) },
		Honest:  toGateway, At: NodeItself,
	},
	{
		Name: "TCP segments into another guest's connection", Never: OtherGuest,
		Hostile: func(v *Volley) {
			for _, flags := range []byte{packets.RST, packets.RST | packets.ACK, packets.FIN | packets.ACK, packets.ACK, packets.SYN | packets.ACK} {
				v.ip(v.segment(v.client(), v.Other.Of(v.Family), 22, flags))
			}
		},
		Honest: func(v *Volley) { v.ip(v.segment(v.self(), v.Other.Of(v.Family), 22, packets.RST)) }, At: OtherGuest,
	},
	{
		Name: "ICMP errors about another guest's packets, as if of a router", Never: OtherGuest,
		Hostile: func(v *Volley) {
			other := v.Other.Of(v.Family)
			for _, as := range []netip.Addr{v.Core.Of(v.Family), v.client()} {
				v.ip(v.tooBig(as, other, packet{src: other, dst: v.client(), protocol: packets.ICMPOf(other), payload: echo(other, v.client(), nil)}))
			}
		},
		Honest: toGuest, At: OtherGuest,
	},
	{
		Name: "fragments from another guest's address", Never: Everywhere,
		Hostile: func(v *Volley) {
			v.ip(v.piece(v.Other.Of(v.Family), v.client(), 0, true))
			v.ip(v.piece(v.Other.Of(v.Family), v.client(), 4, false))
			v.ip(v.piece(v.Core.Of(v.Family), v.Other.Of(v.Family), 0, true))
			v.ip(v.piece(v.Core.Of(v.Family), v.Other.Of(v.Family), 4, false))
		},
		Honest: func(v *Volley) {
			v.ip(v.piece(v.self(), v.client(), 0, true))
			v.ip(v.piece(v.self(), v.client(), 4, false))
		}, At: Underlay,
	},
	{
		Name: "priority tag around another guest's source", Never: Everywhere,
		Hostile: func(v *Volley) {
			v.frame(v.tagged(v.datagram(v.Other.Of(v.Family), v.client()), unix.ETH_P_8021Q, 0xe000))
			v.frame(v.tagged(v.datagram(v.Core.Of(v.Family), v.Other.Of(v.Family)), unix.ETH_P_8021Q, 0))
		},
		Honest: func(v *Volley) { v.frame(v.tagged(v.datagram(v.self(), v.client()), unix.ETH_P_8021Q, 0xe000)) }, At: Underlay,
	},
	{
		Name: "another's source from another's, the gateway's and no MAC address", Never: Everywhere,
		Hostile: func(v *Volley) {
			for _, mac := range sourceMACs(v.Cast) {
				e := v.around(v.datagram(v.Other.Of(v.Family), v.client()))
				e.from = mac
				v.frame(e)
			}
		},
		Honest: func(v *Volley) {
			e := v.around(v.datagram(v.self(), v.client()))
			e.from = v.Other.MAC // it is routed: nobody sees that address
			v.frame(e)
		}, At: Underlay,
	},
}

// sourceMACs are MAC addresses that are not the attacker's.
func sourceMACs(c Cast) []fabric.MAC {
	return []fabric.MAC{c.Other.MAC, c.Gateway.MAC, c.Node.MAC, {}, broadcast, {0x33, 0x33, 0, 0, 0, 1}}
}

// piece is a fragment with a token: of a datagram, at an offset in units of eight bytes.
func (v *Volley) piece(src, dst netip.Addr, offset uint16, more bool) packet {
	t := v.Token()
	payload := append(packets.UDP(src, dst, 4000, 4001, nil), t...)
	payload = append(payload, make([]byte, 16)...)
	if offset > 0 {
		payload = append(t, make([]byte, 16)...)
	}
	return v.fragment(src, dst, unix.IPPROTO_UDP, offset, more, payload)
}

// fragment is a part of a datagram of this volley.
func (v *Volley) fragment(src, dst netip.Addr, protocol byte, offset uint16, more bool, payload []byte) packet {
	p := packet{src: src, dst: dst, protocol: protocol, id: uint16(v.id), fragment: offset, payload: payload}
	if src.Is4() {
		if more {
			p.fragment |= packets.MoreFragments
		}
		return p
	}
	var flags uint16
	if more {
		flags = moreFragments6
	}
	p.payload, p.protocol = append(fragment6(protocol, offset, flags, v.id), payload...), unix.IPPROTO_FRAGMENT
	return p
}

// tagged is a packet behind a VLAN tag.
func (v *Volley) tagged(p packet, tags ...uint16) ethernet {
	e := v.around(p)
	e.tags = tags
	return e
}

// tooBig is the error of a router that a packet is larger than 1,300 bytes.
func (v *Volley) tooBig(src, dst netip.Addr, quoted packet) packet {
	const mtu = 1300
	q := quoted.bytes()
	if src.Is4() {
		const fragmentationNeeded = 4
		return v.message(src, dst, unreachable4, fragmentationNeeded, mtu, q)
	}
	return v.message(src, dst, tooBig6, 0, mtu, q)
}
