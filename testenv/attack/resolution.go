package attack

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/packets"
)

// claims sends ARP for an address that is another's, in every form that makes somebody
// believe: requests, replies, to everybody and to the node.
func claims(of func(Cast) Pair) func(*Volley) {
	return func(v *Volley) {
		a, mac := of(v.Cast).V4, v.Self.MAC
		for _, message := range [][]byte{
			arp(1, mac, a, fabric.MAC{}, a),               // gratuitous
			arp(2, mac, a, broadcast, a),                  // gratuitous, as a reply
			arp(1, mac, a, fabric.MAC{}, v.Gateway.V4),    // who has the gateway, tells a
			arp(2, mac, a, v.Gateway.MAC, v.Gateway.V4),   // a reply to the node
			arp(2, mac, a, v.Node.MAC, v.Node.V4),         // a reply to its other address
			arp(2, v.Gateway.MAC, a, v.Gateway.MAC, a),    // another's MAC address, too
			arp(1, broadcast, a, fabric.MAC{}, v.Node.V4), // everybody's
		} {
			v.frame(ethernet{to: broadcast, from: mac, kind: unix.ETH_P_ARP, payload: message})
			v.frame(ethernet{to: v.Gateway.MAC, from: mac, kind: unix.ETH_P_ARP, payload: message})
		}
	}
}

// tokenOption is an option of neighbour discovery that nobody knows (RFC 4727), with a
// token.
func (v *Volley) tokenOption() []byte {
	return slices.Concat([]byte{253, 2, 0, 0, 0, 0, 0, 0}, v.Token())
}

// discovery is a message of neighbour discovery.
func (v *Volley) discovery(src, dst netip.Addr, kind byte, rest uint32, body ...[]byte) packet {
	payload := slices.Concat(append(body, v.tokenOption())...)
	return packet{src: src, dst: dst, protocol: unix.IPPROTO_ICMPV6, hops: 255, payload: packets.ICMP(src, dst, kind, 0, rest, payload)}
}

var allNodes = addr("ff02::1")

// advertises sends neighbour advertisements for an address that is another's.
func advertises(of func(Cast) Pair) func(*Volley) {
	return func(v *Volley) {
		a := of(v.Cast).V6
		const flags = (overrideNeighbor | routerNeighbor) << 24
		for _, src := range []netip.Addr{v.linkLocal(), v.self()} {
			for _, dst := range []netip.Addr{allNodes, v.Gateway.V6, v.Node.V6} {
				v.ip(v.discovery(src, dst, neighbor6, flags|solicitedNeighbor<<24, a.AsSlice(), linkOption(targetLinkOption, v.Self.MAC)))
			}
		}
	}
}

// advertisement is what a router says of itself: a prefix, a long life, an MTU and a
// resolver.
func advertisement(prefix netip.Addr, mac fabric.MAC) []byte {
	times := make([]byte, 8)
	information := slices.Concat([]byte{prefixOption, 4, 64, 0xc0, 0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0, 0, 0}, prefix.AsSlice())
	mtu := []byte{5, 1, 0, 0, 0, 0, 5, 0}
	resolver := slices.Concat([]byte{25, 3, 0, 0, 0, 0, 0xff, 0xff}, prefix.AsSlice())
	return slices.Concat(times, linkOption(sourceLinkOption, mac), information, mtu, resolver)
}

const routerLife = 64<<24 | 0x08<<16 | 9000 // hop limit, high preference, seconds

// routers sends router advertisements from sources.
func routers(sources func(*Volley) []netip.Addr) func(*Volley) {
	return func(v *Volley) {
		for _, src := range sources(v) {
			for _, dst := range []netip.Addr{allNodes, v.Gateway.V6} {
				v.ip(v.discovery(src, dst, advertisement6, routerLife, advertisement(v.Core.V6, v.Self.MAC)))
			}
		}
	}
}

func solicit(v *Volley) {
	v.ip(v.discovery(v.self(), v.Gateway.V6, solicitation6, 0, v.Gateway.V6.AsSlice(), linkOption(sourceLinkOption, v.Self.MAC)))
}

// resolution are attacks on what the node, and others, believe of their neighbours and
// routers.
var resolution = []Kind{
	{Name: "ARP for another guest's address", Hostile: claims(func(c Cast) Pair { return c.Other.Pair }), Keeps: true, Only: IPv4, Alone: both},
	{Name: "ARP for the gateway's address", Hostile: claims(func(c Cast) Pair { return c.Gateway.Pair }), Keeps: true, Only: IPv4, Alone: both},
	{Name: "ARP for the node's address", Hostile: claims(func(c Cast) Pair { return c.Node.Pair }), Keeps: true, Only: IPv4, Alone: both},
	{Name: "ARP for the core gateway's address", Hostile: claims(func(c Cast) Pair { return c.Core }), Keeps: true, Only: IPv4, Alone: both},
	{Name: "ARP for a machine's of the underlay", Hostile: claims(func(c Cast) Pair { return c.Neighbor }), Keeps: true, Only: IPv4, Alone: both},
	{
		Name: "ARP questions about others, and reverse and inverse ARP", Keeps: true, Only: IPv4, Alone: both,
		Hostile: func(v *Volley) {
			for _, target := range []netip.Addr{v.Other.V4, v.Core.V4, v.client(), v.Free.V4, addr("127.0.0.1"), addr("169.254.7.7")} {
				v.frame(ethernet{to: broadcast, from: v.Self.MAC, kind: unix.ETH_P_ARP, payload: arp(1, v.Self.MAC, v.self(), fabric.MAC{}, target)})
			}
			for _, op := range []byte{3, 4, 8, 9, 10} {
				v.frame(ethernet{to: broadcast, from: v.Self.MAC, kind: unix.ETH_P_ARP, payload: arp(op, v.Self.MAC, v.Other.V4, v.Other.MAC, v.Other.V4)})
			}
			v.frame(ethernet{to: broadcast, from: v.Self.MAC, kind: unix.ETH_P_RARP, payload: arp(3, v.Other.MAC, v.Other.V4, v.Other.MAC, v.Other.V4)})
		},
	},
	{Name: "neighbor advertisements for another guest's address", Hostile: advertises(func(c Cast) Pair { return c.Other.Pair }), Never: Underlay | OtherGuest, Keeps: true, Only: IPv6, Alone: both, Honest: solicit, At: NodeItself},
	{Name: "neighbor advertisements for the gateway's address", Hostile: advertises(func(c Cast) Pair { return c.Gateway.Pair }), Never: Underlay | OtherGuest, Keeps: true, Only: IPv6, Alone: both, Honest: solicit, At: NodeItself},
	{Name: "neighbor advertisements for the core gateway's address", Hostile: advertises(func(c Cast) Pair { return c.Core }), Never: Underlay | OtherGuest, Keeps: true, Only: IPv6, Alone: both, Honest: solicit, At: NodeItself},
	{
		Name: "neighbor solicitations from another's address", Never: Everywhere, Keeps: true, Only: IPv6,
		Hostile: func(v *Volley) {
			for _, src := range []netip.Addr{v.Other.V6, v.Core.V6} {
				v.ip(v.discovery(src, v.Gateway.V6, solicitation6, 0, v.Gateway.V6.AsSlice(), linkOption(sourceLinkOption, v.Self.MAC)))
			}
		},
		Honest: solicit, At: NodeItself,
	},
	{
		Name: "the gateway's address, as if it were a duplicate", Never: Underlay | OtherGuest, Keeps: true, Only: IPv6, Alone: both,
		Hostile: func(v *Volley) {
			none := netip.IPv6Unspecified()
			for _, target := range []netip.Addr{v.Gateway.V6, v.Node.V6} {
				v.ip(v.discovery(none, addr("ff02::1:ff00:1"), solicitation6, 0, target.AsSlice()))
				v.ip(v.discovery(target, allNodes, neighbor6, overrideNeighbor<<24, target.AsSlice(), linkOption(targetLinkOption, v.Self.MAC)))
			}
		},
		Honest: solicit, At: NodeItself,
	},
	{
		Name: "neighbor discovery that came over a router, or with wrong options", Never: Underlay | OtherGuest, Keeps: true, Only: IPv6, Alone: both,
		Hostile: func(v *Volley) {
			far := v.discovery(v.self(), v.Gateway.V6, neighbor6, overrideNeighbor<<24, v.Core.V6.AsSlice(), linkOption(targetLinkOption, v.Self.MAC))
			far.hops = 64
			v.ip(far)
			v.ip(v.discovery(v.self(), v.Gateway.V6, solicitation6, 0, v.Gateway.V6.AsSlice(), []byte{sourceLinkOption, 0, 0, 0, 0, 0, 0, 0}))
			v.ip(v.discovery(v.self(), v.Gateway.V6, solicitation6, 0, v.Gateway.V6.AsSlice(), linkOption(sourceLinkOption, broadcast)))
		},
		Honest: solicit, At: NodeItself,
	},
	{
		Name: "router advertisements", Never: Everywhere, Keeps: true, Only: IPv6,
		Hostile: routers(func(v *Volley) []netip.Addr { return []netip.Addr{v.linkLocal()} }),
		Honest:  solicit, At: NodeItself,
	},
	{
		Name: "router advertisements from the gateway's, the core gateway's and another guest's address", Never: Everywhere, Keeps: true, Only: IPv6,
		Hostile: routers(func(v *Volley) []netip.Addr { return []netip.Addr{v.Gateway.V6, v.Core.V6, v.Other.V6} }),
		Honest:  solicit, At: NodeItself,
	},
	{
		Name: "router solicitations with another's MAC address", Never: Everywhere, Keeps: true, Only: IPv6,
		Hostile: func(v *Volley) {
			v.ip(v.discovery(v.linkLocal(), v.Gateway.V6, 133, 0, linkOption(sourceLinkOption, v.Other.MAC)))
			v.ip(v.discovery(v.self(), v.Gateway.V6, 133, 0, linkOption(sourceLinkOption, v.Gateway.MAC)))
		},
		Honest: solicit, At: NodeItself,
	},
	{
		Name: "redirects", Never: Everywhere, Keeps: true,
		Hostile: func(v *Volley) {
			if v.Family == IPv6 {
				for _, src := range []netip.Addr{v.linkLocal(), v.Gateway.V6} {
					v.ip(v.discovery(src, v.Gateway.V6, redirect6, 0, v.self().AsSlice(), v.client().AsSlice(), linkOption(targetLinkOption, v.Self.MAC)))
				}
				return
			}
			quoted := packet{src: v.Node.V4, dst: v.client(), protocol: unix.IPPROTO_ICMP, payload: echo(v.Node.V4, v.client(), nil)}.bytes()
			own := v.self().As4()
			to := uint32(own[0])<<24 | uint32(own[1])<<16 | uint32(own[2])<<8 | uint32(own[3])
			for _, src := range []netip.Addr{v.self(), v.Core.V4} {
				v.ip(v.message(src, v.Node.V4, redirect4, 1, to, quoted))
			}
		},
		Honest: toGateway, At: NodeItself,
	},
	{
		Name: "path MTUs between the node and the underlay", Never: NodeItself, Keeps: true,
		Hostile: func(v *Volley) {
			for _, to := range []Pair{v.Core, v.Reflector} {
				node := v.Node.Of(v.Family)
				quoted := packet{src: node, dst: to.Of(v.Family), protocol: packets.ICMPOf(node), payload: append(echo(node, to.Of(v.Family), nil), make([]byte, 40)...)}
				v.ip(v.tooBig(v.self(), node, quoted))
				v.ip(v.tooBig(to.Of(v.Family), node, quoted))
			}
		},
		Honest: func(v *Volley) {
			node := v.Node.Of(v.Family)
			v.ip(v.tooBig(v.self(), node, packet{src: node, dst: v.self(), protocol: unix.IPPROTO_UDP, payload: make([]byte, 8)}))
		}, At: NodeItself,
	},
	{
		Name: "questions of ICMP about the node", Never: NodeItself,
		Hostile: func(v *Volley) {
			kinds := []byte{timestamp4, mask4, 10, 15, 37}
			if v.Family == IPv6 {
				kinds = []byte{139, 140, 144, 146, 100}
			}
			for _, kind := range kinds {
				v.ip(v.message(v.self(), v.Node.Of(v.Family), kind, 0, 1<<16|1, make([]byte, 12)))
			}
		},
		Honest: toGateway, At: NodeItself,
	},
}
