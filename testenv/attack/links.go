package attack

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/packets"
)

// tunnels sends forged packets inside others, to the node and to the underlay.
func tunnels(protocol byte, header ...byte) func(*Volley) {
	return func(v *Volley) {
		for _, to := range []netip.Addr{v.Node.Of(v.Family), v.Core.Of(v.Family), v.Neighbor.Of(v.Family)} {
			for _, inner := range Families {
				p := v.datagram(v.Other.Of(inner), v.Client.Of(inner))
				v.ip(packet{src: v.self(), dst: to, protocol: protocol, payload: append(append([]byte{}, header...), p.bytes()...)})
			}
		}
	}
}

// overlay sends forged frames inside datagrams to a port.
func overlay(port uint16, header ...byte) func(*Volley) {
	return func(v *Volley) {
		for _, to := range []netip.Addr{v.Node.Of(v.Family), v.Core.Of(v.Family), v.Neighbor.Of(v.Family)} {
			inner := v.around(v.datagram(v.Other.Of(v.Family), v.client())).bytes()
			v.ip(packet{src: v.self(), dst: to, protocol: unix.IPPROTO_UDP, payload: packets.UDP(v.self(), to, 4000, port, append(append([]byte{}, header...), inner...))})
		}
	}
}

// speaks sends a packet of a protocol to the node itself.
func speaks(protocols ...byte) func(*Volley) {
	return func(v *Volley) {
		for _, protocol := range protocols {
			v.ip(packet{src: v.self(), dst: v.Node.Of(v.Family), protocol: protocol, hops: 1, payload: append(make([]byte, 24), v.Token()...)})
		}
	}
}

// ethertypes sends frames that are no IP, to everybody, to the gateway and to another
// guest.
func ethertypes(kinds ...uint16) func(*Volley) {
	return func(v *Volley) {
		for _, kind := range kinds {
			for _, to := range []fabric.MAC{broadcast, v.Gateway.MAC, v.Other.MAC} {
				v.frame(ethernet{to: to, from: v.Self.MAC, kind: kind, payload: append(make([]byte, 38), v.Token()...)})
			}
		}
	}
}

// reserved sends frames of a protocol of bridges to its group.
func reserved(group fabric.MAC, kind uint16, head ...byte) func(*Volley) {
	return func(v *Volley) {
		payload := append(append(append([]byte{}, head...), make([]byte, 38)...), v.Token()...)
		if kind == 0 { // IEEE 802.3
			v.frame(ethernet{to: group, from: v.Self.MAC, kind: uint16(len(payload)), payload: payload})
			return
		}
		v.frame(ethernet{to: group, from: v.Self.MAC, kind: kind, payload: payload})
	}
}

// virtual sends honest packets behind tags.
func virtual(tags ...uint16) func(*Volley) {
	return func(v *Volley) {
		for _, p := range []packet{v.datagram(v.self(), v.client()), v.datagram(v.Other.Of(v.Family), v.client()), v.datagram(v.self(), v.Other.Of(v.Family)), v.ping(v.self(), v.gateway())} {
			v.frame(v.tagged(p, tags...))
		}
	}
}

// groups sends a protocol of multicast to groups of the link.
func groups(protocol byte, to ...Pair) func(*Volley) {
	return func(v *Volley) {
		for _, p := range to {
			v.ip(packet{src: v.self(), dst: p.Of(v.Family), protocol: protocol, hops: 1, payload: append(make([]byte, 24), v.Token()...)})
		}
	}
}

const vlan5, vlan4000 = 5, 4000

// links are frames of other protocols, tunnels and groups.
var links = []Kind{
	{Name: "VLAN tags", Hostile: virtual(unix.ETH_P_8021Q, vlan5), Never: Everywhere, Alone: both},
	{Name: "VLAN tags of providers (QinQ)", Hostile: virtual(unix.ETH_P_8021AD, vlan4000, unix.ETH_P_8021Q, vlan5), Never: Everywhere, Alone: both},
	{Name: "two VLAN tags, of which the outer one is a priority", Hostile: virtual(unix.ETH_P_8021Q, 0, unix.ETH_P_8021Q, vlan5), Never: Everywhere, Alone: both},
	{Name: "LLDP", Hostile: reserved(fabric.MAC{0x01, 0x80, 0xc2, 0, 0, 0x0e}, unix.ETH_P_LLDP), Never: Everywhere, Only: IPv4, Alone: both},
	{Name: "spanning tree", Hostile: reserved(fabric.MAC{0x01, 0x80, 0xc2, 0, 0, 0}, 0, 0x42, 0x42, 3, 0, 0, 0), Never: Everywhere, Only: IPv4, Alone: both},
	{Name: "pause frames, and link aggregation", Hostile: func(v *Volley) {
		reserved(fabric.MAC{0x01, 0x80, 0xc2, 0, 0, 1}, 0x8808, 0, 1, 0xff, 0xff)(v)
		reserved(fabric.MAC{0x01, 0x80, 0xc2, 0, 0, 2}, unix.ETH_P_SLOW, 1, 1)(v)
		reserved(fabric.MAC{0x01, 0x80, 0xc2, 0, 0, 3}, unix.ETH_P_PAE, 1, 1)(v)
	}, Never: Everywhere, Only: IPv4, Alone: both},
	{Name: "discovery protocols of vendors", Hostile: func(v *Volley) {
		reserved(fabric.MAC{0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcc}, 0, 0xaa, 0xaa, 3, 0, 0, 0x0c, 0x20, 0)(v)
		reserved(fabric.MAC{0x01, 0xe0, 0x52, 0xcc, 0xcc, 0xcc}, 0, 0xaa, 0xaa, 3, 0, 0xe0, 0x52, 0x20, 0)(v)
	}, Never: Everywhere, Only: IPv4, Alone: both},
	{Name: "PPPoE, MPLS, PTP, MACsec, TIPC, IPX and wake-on-LAN", Hostile: ethertypes(unix.ETH_P_PPP_DISC, unix.ETH_P_PPP_SES, unix.ETH_P_MPLS_UC, unix.ETH_P_1588, unix.ETH_P_MACSEC, unix.ETH_P_TIPC, unix.ETH_P_IPX, 0x0842), Never: Everywhere, Only: IPv4, Alone: both},
	{
		Name: "IP behind the header of IEEE 802.2", Never: Everywhere, Alone: both,
		Hostile: func(v *Volley) {
			p := v.datagram(v.Other.Of(v.Family), v.client())
			kind := packets.EtherType(p.src)
			payload := append([]byte{0xaa, 0xaa, 3, 0, 0, 0, byte(kind >> 8), byte(kind)}, p.bytes()...)
			v.local(uint16(len(payload)), payload)
		},
	},
	{Name: "tunnels: IPv4 in IP", Hostile: tunnels(unix.IPPROTO_IPIP), Never: Everywhere},
	{Name: "tunnels: IPv6 in IP", Hostile: tunnels(unix.IPPROTO_IPV6), Never: Everywhere},
	{Name: "tunnels: GRE", Hostile: tunnels(unix.IPPROTO_GRE, 0, 0, 8, 0), Never: Everywhere},
	{Name: "tunnels: ESP", Hostile: tunnels(unix.IPPROTO_ESP, 0, 0, 1, 0, 0, 0, 0, 1), Never: Everywhere},
	{Name: "tunnels: VXLAN", Hostile: overlay(4789, 8, 0, 0, 0, 0, 0, 1, 0), Never: Everywhere},
	{Name: "tunnels: Geneve", Hostile: overlay(6081, 0, 0, 0x65, 0x58, 0, 0, 1, 0), Never: Everywhere},
	{Name: "routing protocols to the node: OSPF, EIGRP, PIM and VRRP", Hostile: speaks(89, 88, unix.IPPROTO_PIM, 112), Never: Everywhere, Honest: toGateway, At: NodeItself},
	{Name: "other transports to the node: SCTP, DCCP, UDP-Lite and L2TP", Hostile: speaks(unix.IPPROTO_SCTP, unix.IPPROTO_DCCP, unix.IPPROTO_UDPLITE, unix.IPPROTO_L2TP), Never: Everywhere, Honest: toGateway, At: NodeItself},
	{Name: "routing protocols to their groups", Hostile: func(v *Volley) {
		groups(89, pair("224.0.0.5", "ff02::5"), pair("224.0.0.6", "ff02::6"))(v)
		groups(unix.IPPROTO_PIM, pair("224.0.0.13", "ff02::d"))(v)
		groups(112, pair("224.0.0.18", "ff02::12"))(v)
	}, Never: Everywhere, Alone: both},
	{
		Name: "multicast membership: queries and reports", Never: Everywhere,
		Hostile: func(v *Volley) {
			if v.Family == IPv4 {
				for _, kind := range []byte{0x11, 0x16, 0x22, 0x17} {
					p := packet{src: v.self(), dst: addr("224.0.0.1"), protocol: unix.IPPROTO_IGMP, hops: 1, options: []byte{148, 4, 0, 0}}
					body := append([]byte{kind, 10, 0, 0, 239, 1, 1, 1}, v.Token()...)
					p.payload = packets.Seal(p.src, p.dst, unix.IPPROTO_ICMP, 2, body)
					v.ip(p)
				}
				return
			}
			for _, kind := range []byte{query6, report6, done6, 143} {
				p := v.message(v.linkLocal(), allNodes, kind, 0, 0, addr("ff05::99").AsSlice())
				p.hops = 1
				v.ip(p.behind(unix.IPPROTO_HOPOPTS, extension(unix.IPPROTO_ICMPV6, routerAlert6)))
			}
		},
		Honest: toGateway, At: NodeItself,
	},
}

// Kinds are all kinds of frames. A kind's number is its place.
func Kinds() []Kind {
	var all []Kind
	for _, some := range [][]Kind{sources, destinations, resolution, servers, headers, links} {
		all = append(all, some...)
	}
	return all
}
