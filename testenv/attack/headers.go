package attack

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/internal/packets"
)

// sourceRoute is IPv4's option of a loose (131) or strict (137) source route over one
// machine.
func sourceRoute(kind byte, over netip.Addr) []byte {
	return slices.Concat([]byte{kind, 7, 4}, over.AsSlice(), []byte{0})
}

// routingHeader is an IPv6 routing header (RFC 8200): type 0, type 2, RPL's 3 (RFC 6554) or
// a segment routing header 4 (RFC 8754), with segments that are left.
func routingHeader(next, kind, left byte, segments ...netip.Addr) []byte {
	body := []byte{kind, left, 0, 0, 0, 0}
	if kind == 4 {
		body = []byte{kind, left, byte(len(segments) - 1), 0, 0, 0}
	}
	for _, s := range segments {
		body = append(body, s.AsSlice()...)
	}
	return extension(next, body)
}

// behind puts extension headers before the payload of a packet.
func (p packet) behind(protocol byte, headers ...[]byte) packet {
	p.payload = slices.Concat(append(headers, p.payload)...)
	p.protocol = protocol
	return p
}

// routes sends an echo request by a routing header of a kind over the node to others.
func routes(kind byte) func(*Volley) {
	return func(v *Volley) {
		for _, to := range []netip.Addr{v.Core.V6, v.Neighbor.V6} {
			for _, over := range []netip.Addr{v.Node.V6, v.Gateway.V6} {
				p := v.ping(v.self(), over)
				segments := []netip.Addr{to}
				if kind == 4 {
					segments = []netip.Addr{to, over} // the last one comes first
				}
				v.ip(p.behind(unix.IPPROTO_ROUTING, routingHeader(unix.IPPROTO_ICMPV6, kind, 1, segments...)))
			}
		}
	}
}

// Options of IPv6 (RFC 2711, RFC 2675, RFC 6275).
var (
	routerAlert6 = []byte{5, 2, 0, 0}
	jumbo6       = []byte{0xc2, 4, 0, 1, 0, 0}
	pad6         = []byte{1, 2, 0, 0}
)

// headers are IP options, extension headers, fragments and packets that are malformed.
var headers = []Kind{
	{
		Name: "IPv4 source routes over the node", Never: Everywhere, Only: IPv4, Alone: both,
		Hostile: func(v *Volley) {
			for _, kind := range []byte{131, 137} {
				for _, to := range []netip.Addr{v.Core.V4, v.Neighbor.V4, v.Other.V4} {
					p := v.ping(v.self(), v.Node.V4)
					p.options = sourceRoute(kind, to)
					v.ip(p)
				}
			}
		},
		Honest: func(v *Volley) {
			p := v.datagram(v.self(), v.client())
			p.options = []byte{7, 7, 4, 0, 0, 0, 0, 0} // record route
			v.ip(p)
		}, At: Underlay,
	},
	{
		Name: "options in front of what is forbidden", Never: Everywhere,
		Hostile: func(v *Volley) {
			for _, p := range []packet{v.datagram(v.self(), v.Core.Of(v.Family)), v.datagram(v.Other.Of(v.Family), v.client()), v.segment(v.self(), v.Node.Of(v.Family), 22, packets.SYN)} {
				if v.Family == IPv4 {
					p.options = []byte{148, 4, 0, 0, 1, 1, 1, 0} // router alert
					v.ip(p)
					continue
				}
				v.ip(p.behind(unix.IPPROTO_HOPOPTS, extension(p.protocol, routerAlert6)))
			}
		},
		Honest: func(v *Volley) {
			p := v.datagram(v.self(), v.client())
			if v.Family == IPv4 {
				p.options = []byte{148, 4, 0, 0, 1, 1, 1, 0}
				v.ip(p)
				return
			}
			v.ip(p.behind(unix.IPPROTO_HOPOPTS, extension(p.protocol, routerAlert6)))
		}, At: Underlay,
	},
	{Name: "IPv6 routing header of type 0", Hostile: routes(0), Never: Everywhere, Only: IPv6, Alone: both, Honest: toGateway, At: NodeItself},
	{Name: "IPv6 routing header of mobile nodes", Hostile: routes(2), Never: Everywhere, Only: IPv6, Alone: both, Honest: toGateway, At: NodeItself},
	{Name: "IPv6 routing header of RPL", Hostile: routes(3), Never: Everywhere, Only: IPv6, Alone: both, Honest: toGateway, At: NodeItself},
	{Name: "IPv6 segment routing header", Hostile: routes(4), Never: Everywhere, Only: IPv6, Alone: both, Honest: toGateway, At: NodeItself},
	{
		Name: "IPv6 segment routing header with another packet inside", Never: Everywhere, Only: IPv6, Alone: both,
		Hostile: func(v *Volley) {
			inner := v.datagram(v.Other.V6, v.client()).bytes()
			outer := packet{src: v.self(), dst: v.Node.V6, payload: inner}
			v.ip(outer.behind(unix.IPPROTO_ROUTING, routingHeader(unix.IPPROTO_IPV6, 4, 0, v.Node.V6)))
		},
		Honest: toGateway, At: NodeItself,
	},
	{
		Name: "IPv6 home address option", Never: Everywhere, Only: IPv6, Alone: both,
		Hostile: func(v *Volley) {
			p := v.ping(v.self(), v.Node.V6)
			v.ip(p.behind(unix.IPPROTO_DSTOPTS, extension(p.protocol, slices.Concat([]byte{1, 2, 0, 0, 0xc9, 16}, v.Other.V6.AsSlice()))))
		},
		Honest: func(v *Volley) {
			p := v.ping(v.self(), v.Node.V6)
			v.ip(p.behind(unix.IPPROTO_DSTOPTS, extension(p.protocol, pad6)))
		}, At: NodeItself,
	},
	{
		Name: "chains of IPv6 extension headers in front of what is forbidden", Never: Everywhere, Only: IPv6,
		Hostile: func(v *Volley) {
			for _, p := range []packet{v.segment(v.self(), v.Node.V6, 22, packets.SYN), v.segment(v.self(), v.Core.V6, 179, packets.SYN), v.datagram(v.Other.V6, v.client())} {
				chain := slices.Concat(extension(unix.IPPROTO_DSTOPTS, pad6), extension(unix.IPPROTO_FRAGMENT, pad6),
					fragment6(unix.IPPROTO_DSTOPTS, 0, 0, v.id), extension(p.protocol, pad6))
				v.ip(p.behind(unix.IPPROTO_DSTOPTS, chain))
			}
		},
		Honest: func(v *Volley) {
			p := v.datagram(v.self(), v.client())
			v.ip(p.behind(unix.IPPROTO_DSTOPTS, extension(unix.IPPROTO_DSTOPTS, pad6), extension(p.protocol, pad6)))
		}, At: Underlay,
	},
	{
		Name: "an authentication header in front of what is forbidden", Never: Everywhere,
		Hostile: func(v *Volley) {
			for _, p := range []packet{v.segment(v.self(), v.Core.Of(v.Family), 179, packets.SYN), v.datagram(v.Other.Of(v.Family), v.client())} {
				v.ip(p.behind(unix.IPPROTO_AH, []byte{p.protocol, 4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}))
			}
		},
	},
	{
		Name: "IPv6 jumbograms, and hop-by-hop options that are malformed", Never: Everywhere, Only: IPv6, Alone: both,
		Hostile: func(v *Volley) {
			p := v.datagram(v.Other.V6, v.client())
			e := v.around(p.behind(unix.IPPROTO_HOPOPTS, extension(p.protocol, jumbo6)))
			e.payload[4], e.payload[5] = 0, 0
			v.frame(e)
			p = v.datagram(v.Other.V6, v.client())
			v.ip(p.behind(unix.IPPROTO_HOPOPTS, []byte{p.protocol, 200, 1, 4, 0, 0, 0, 0}))
			p = v.datagram(v.Other.V6, v.client())
			v.ip(p.behind(unix.IPPROTO_HOPOPTS, []byte{p.protocol, 0, 1, 200, 0, 0, 0, 0}))
		},
		Honest: func(v *Volley) {
			p := v.datagram(v.self(), v.client())
			v.ip(p.behind(unix.IPPROTO_HOPOPTS, extension(p.protocol, pad6)))
		}, At: Underlay,
	},
	{
		Name: "tiny fragments, whose ports and flags come later", Never: Underlay | NodeItself,
		Hostile: func(v *Volley) {
			for _, to := range []netip.Addr{v.Core.Of(v.Family), v.Neighbor.Of(v.Family)} {
				v.ip(v.fragment(v.self(), to, unix.IPPROTO_TCP, 0, true, v.Token()))
			}
		},
		Honest: func(v *Volley) { v.ip(v.fragment(v.self(), v.client(), unix.IPPROTO_TCP, 0, true, v.Token())) }, At: Underlay,
	},
	{
		Name: "late fragments without a first, to the underlay", Never: Underlay,
		Hostile: func(v *Volley) {
			v.ip(v.piece(v.self(), v.Core.Of(v.Family), 8, false))
			v.ip(v.piece(v.self(), v.Reflector.Of(v.Family), 1, true))
		},
		Honest: func(v *Volley) { v.ip(v.piece(v.self(), v.client(), 8, false)) }, At: Underlay,
	},
	{
		Name: "overlapping fragments, to the node", Never: NodeItself, Alone: both,
		Hostile: func(v *Volley) {
			src, dst := v.self(), v.Node.Of(v.Family)
			whole := packets.TCP(src, dst, 4000, 22, packets.SYN, append(v.Token(), make([]byte, 28)...))
			v.ip(v.fragment(src, dst, unix.IPPROTO_TCP, 0, true, whole[:24]))
			v.ip(v.fragment(src, dst, unix.IPPROTO_TCP, 1, true, whole[8:32]))
			v.ip(v.fragment(src, dst, unix.IPPROTO_TCP, 4, false, whole[32:]))
		},
		Honest: func(v *Volley) {
			src, dst := v.self(), v.Node.Of(v.Family)
			whole := echo(src, dst, append(v.Token(), make([]byte, 32)...))
			v.ip(v.fragment(src, dst, packets.ICMPOf(src), 0, true, whole[:24]))
			v.ip(v.fragment(src, dst, packets.ICMPOf(src), 3, false, whole[24:]))
		}, At: NodeItself,
	},
	{
		Name: "fragments that make a connection to the node", Never: NodeItself,
		Hostile: func(v *Volley) {
			src, dst := v.self(), v.Node.Of(v.Family)
			whole := packets.TCP(src, dst, 4000, 22, packets.SYN, append(make([]byte, 12), v.Token()...))
			v.ip(v.fragment(src, dst, unix.IPPROTO_TCP, 0, true, whole[:24])) // newer kernels refuse less, by IPv6
			v.ip(v.fragment(src, dst, unix.IPPROTO_TCP, 3, false, whole[24:]))
		},
		Honest: toGateway, At: NodeItself,
	},
	{
		Name: "fragments beyond the largest packet", Never: NodeItself, Alone: both,
		Hostile: func(v *Volley) {
			src, dst := v.self(), v.Node.Of(v.Family)
			v.ip(v.fragment(src, dst, packets.ICMPOf(src), 0x1fff, false, append(v.Token(), make([]byte, 400)...)))
		},
		Honest: toGateway, At: NodeItself,
	},
	{
		Name: "atomic fragments", Never: Everywhere, Only: IPv6,
		Hostile: func(v *Volley) {
			for _, p := range []packet{v.datagram(v.Other.V6, v.client()), v.segment(v.self(), v.Core.V6, 179, packets.SYN), v.segment(v.self(), v.Node.V6, 22, packets.SYN)} {
				v.ip(p.behind(unix.IPPROTO_FRAGMENT, fragment6(p.protocol, 0, 0, v.id)))
			}
		},
		Honest: func(v *Volley) {
			p := v.datagram(v.self(), v.client())
			v.ip(p.behind(unix.IPPROTO_FRAGMENT, fragment6(p.protocol, 0, 0, v.id)))
		}, At: Underlay,
	},
	{
		Name: "another guest's source in packets that are malformed", Never: Everywhere, Alone: both,
		Hostile: malformed,
	},
	{
		Name: "another guest's source in frames as large as they get", Never: Everywhere,
		Hostile: func(v *Volley) {
			src := v.Other.Of(v.Family)
			v.ip(packet{src: src, dst: v.client(), protocol: unix.IPPROTO_UDP, payload: packets.UDP(src, v.client(), 4000, 4001, append(v.Token(), make([]byte, 1400)...))})
		},
		Honest: func(v *Volley) {
			v.ip(packet{src: v.self(), dst: v.client(), protocol: unix.IPPROTO_UDP, payload: packets.UDP(v.self(), v.client(), 4000, 4001, append(v.Token(), make([]byte, 1400)...))})
		}, At: Underlay,
	},
}

// malformed sends packets that no machine makes: cut off, with lengths, versions and
// checksums that are wrong.
func malformed(v *Volley) {
	forged := func(change func([]byte) []byte) {
		e := v.around(v.datagram(v.Other.Of(v.Family), v.client()))
		e.payload = change(e.payload)
		v.frame(e)
	}
	length := 2
	if v.Family == IPv6 {
		length = 4
	}
	forged(func(b []byte) []byte { binary.BigEndian.PutUint16(b[length:], 2000); return b }) // longer than the frame
	forged(func(b []byte) []byte { b[0] = 0x55; return b })                                  // version 5
	forged(func(b []byte) []byte { return append([]byte{0}, b...) })                         // moved by an octet
	if v.Family == IPv4 {
		forged(func(b []byte) []byte { b[0] = 0x44; return b })   // a header of 16 bytes
		forged(func(b []byte) []byte { b[0] = 0x4f; return b })   // one beyond the packet
		forged(func(b []byte) []byte { b[10] ^= 0xff; return b }) // a wrong checksum
	}
	cut := v.around(packet{src: v.Other.Of(v.Family), dst: v.client(), protocol: unix.IPPROTO_UDP})
	cut.payload = append(cut.payload[:8:8], v.Token()...) // in the header
	v.frame(cut)
	e := v.around(v.datagram(v.Other.Of(v.Family), v.client()))
	e.kind = map[Family]uint16{IPv4: unix.ETH_P_IPV6, IPv6: unix.ETH_P_IP}[v.Family]
	v.frame(e) // the other family's frame
	v.frame(ethernet{to: v.Gateway.MAC, from: v.Self.MAC, kind: e.kind})
}
