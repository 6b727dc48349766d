package attack

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/packets"
	"github.com/vmfabric/vmfabric/internal/requests"
)

// onTheUnderlay makes kinds whose control is a packet to the other guest, which the node
// forwards, as it is a router. Of each the kernel takes care by itself.
func onTheUnderlay(kinds ...Kind) []Kind {
	for i := range kinds {
		kinds[i].Alone = both
		if kinds[i].Honest == nil {
			kinds[i].Honest, kinds[i].At = toGuest, OtherGuest
		}
	}
	return kinds
}

// StrangerKinds are frames of a machine of the underlay that is no node. Self is the
// machine, and the MAC address of Gateway the node's: that is its way to guests.
var StrangerKinds = onTheUnderlay(
	Kind{
		Name: "to MAC addresses of a guest, of the gateway, of nobody and of groups", Never: OtherGuest,
		Hostile: func(v *Volley) {
			for _, mac := range []fabric.MAC{v.Other.MAC, fabric.DefaultMAC, {2, 0, 0, 0, 9, 9}, broadcast, groupMAC(addr("224.0.0.1")), groupMAC(allNodes)} {
				e := v.around(v.datagram(v.self(), v.Other.Of(v.Family)))
				e.to = mac
				v.frame(e)
			}
		},
	},
	Kind{
		Name: "to broadcast addresses and groups", Never: OtherGuest,
		Hostile: aims(pair("255.255.255.255", "ff02::1"), pair("224.0.0.251", "ff02::fb"), pair("239.1.1.1", "ff0e::1")),
	},
	Kind{
		Name: "source: loopback, the unspecified address, a group and the gateway's", Never: OtherGuest,
		Hostile: func(v *Volley) {
			for _, src := range []Pair{pair("127.0.0.1", "::1"), {netip.IPv4Unspecified(), netip.IPv6Unspecified()}, pair("224.0.0.1", "ff02::1"), v.Gateway.Pair} {
				v.ip(v.datagram(src.Of(v.Family), v.Other.Of(v.Family)))
			}
		},
	},
	Kind{
		Name: "source: a guest's, to the node and its services", Never: Underlay, Keeps: true,
		Hostile: func(v *Volley) { // what the node answers goes to the guest
			src, dst := v.Other.Of(v.Family), v.Node.Of(v.Family)
			v.ip(v.ping(src, dst))
			v.ip(v.datagramTo(src, dst, fabric.DefaultAgentPort))
			for _, flags := range []byte{packets.SYN, packets.ACK, packets.RST} {
				v.ip(v.segment(src, dst, fabric.DefaultAgentPort, flags))
			}
		},
		Honest: toNode, At: NodeItself,
	},
	Kind{
		Name: "hop limits of 0 and 1", Never: OtherGuest,
		Hostile: func(v *Volley) {
			for _, hops := range []int{-1, 1} {
				p := v.datagram(v.self(), v.Other.Of(v.Family))
				p.hops = hops
				v.ip(p)
			}
		},
	},
	Kind{
		Name: "VLAN tags, and two of them", Never: OtherGuest,
		Hostile: func(v *Volley) {
			for _, tags := range [][]uint16{{0x8100, 7}, {0x88a8, 7}, {0x8100, 1, 0x8100, 7}, {0x88a8, 1, 0x8100, 7}} {
				v.frame(v.tagged(v.datagram(v.self(), v.Other.Of(v.Family)), tags...))
			}
		},
	},
	Kind{Name: "tunnels that end at the node, with a packet to a guest inside", Never: OtherGuest, Hostile: tunnelsToGuest},
	Kind{
		Name: "source routes and routing headers over the node", Never: OtherGuest,
		Hostile: func(v *Volley) {
			other := v.Other.Of(v.Family)
			if v.Family == IPv4 {
				for _, option := range []byte{131, 137} { // loose, strict (RFC 791)
					p := v.datagram(v.self(), v.Node.V4)
					p.options = append(append([]byte{option, 7, 4}, other.AsSlice()...), 0)
					v.ip(p)
				}
				return
			}
			for _, kind := range []byte{0, 2, 4} {
				p := v.datagram(v.self(), v.Node.V6)
				v.ip(p.behind(unix.IPPROTO_ROUTING, extension(p.protocol, slices.Concat([]byte{kind, 1, 0, 0, 0, 0}, other.AsSlice()))))
			}
		},
	},
	Kind{
		Name: "ARP for guests' addresses and the gateway's", Keeps: true, Only: IPv4,
		Hostile: func(v *Volley) {
			for _, a := range []Pair{v.Other.Pair, v.Free, v.Gateway.Pair} {
				claims(func(Cast) Pair { return a })(v)
			}
		},
	},
	Kind{
		Name: "neighbor advertisements for guests' addresses and the gateway's", Keeps: true, Only: IPv6,
		Hostile: func(v *Volley) {
			for _, a := range []Pair{v.Other.Pair, v.Free, v.Gateway.Pair} {
				advertises(func(Cast) Pair { return a })(v)
			}
		},
	},
	Kind{
		Name: "router advertisements, as if of the core gateway too", Never: OtherGuest, Keeps: true, Only: IPv6,
		Hostile: func(v *Volley) {
			for _, src := range []netip.Addr{v.linkLocal(), v.Core.V6} {
				for _, dst := range []netip.Addr{allNodes, v.Node.V6} {
					v.ip(v.discovery(src, dst, advertisement6, routerLife, advertisement(addr("2001:db8:9::"), v.Self.MAC)))
				}
			}
		},
	},
	Kind{
		Name: "redirects, as if of the core gateway", Never: OtherGuest, Keeps: true,
		Hostile: func(v *Volley) {
			node, to := v.Node.Of(v.Family), v.client()
			if v.Family == IPv6 {
				for _, src := range []netip.Addr{v.linkLocal(), v.Core.V6} {
					v.ip(v.discovery(src, node, redirect6, 0, v.self().AsSlice(), to.AsSlice(), linkOption(targetLinkOption, v.Self.MAC)))
				}
				return
			}
			quoted := packet{src: node, dst: to, protocol: unix.IPPROTO_UDP, payload: packets.UDP(node, to, 4000, 4001, nil)}.bytes()
			v.ip(v.message(v.Core.V4, node, redirect4, 1, binary.BigEndian.Uint32(v.Self.V4.AsSlice()), quoted))
		},
		Honest: toNode, At: NodeItself,
	},
	Kind{
		Name: "answers of a DHCP server, to the link and to a guest's MAC address", Never: OtherGuest,
		Hostile: func(v *Volley) {
			for _, p := range v.leases(v.fromServer(), v.toClients()) {
				v.ip(p)
				e := v.around(p)
				e.to = v.Other.MAC
				v.frame(e)
			}
		},
	},
)

// ClaimOnTheUnderlay says to all and to the node that a machine's address is the stranger's.
func ClaimOnTheUnderlay(v *Volley, addresses Pair) {
	if v.Family == IPv6 {
		advertises(func(Cast) Pair { return addresses })(v)
		return
	}
	a, mac := addresses.V4, v.Self.MAC
	for _, to := range []fabric.MAC{broadcast, v.Node.MAC} {
		v.frame(ethernet{to: to, from: mac, kind: unix.ETH_P_ARP, payload: arp(1, mac, a, fabric.MAC{}, a)})
		v.frame(ethernet{to: to, from: mac, kind: unix.ETH_P_ARP, payload: arp(2, mac, a, v.Node.MAC, v.Node.V4)})
	}
}

// toNode is an echo request to the node's own address.
func toNode(v *Volley) { v.ip(v.ping(v.self(), v.Node.Of(v.Family))) }

// tunnelsToGuest wraps a packet to the other guest into packets to the node.
func tunnelsToGuest(v *Volley) {
	src, node := v.self(), v.Node.Of(v.Family)
	inner := func() []byte { return v.datagram(src, v.Other.Of(v.Family)).bytes() }
	protocol, kind := byte(unix.IPPROTO_IPIP), packets.EtherType(src)
	if v.Family == IPv6 {
		protocol = unix.IPPROTO_IPV6
	}
	v.ip(packet{src: src, dst: node, protocol: protocol, payload: inner()})
	v.ip(packet{src: src, dst: node, protocol: unix.IPPROTO_GRE, payload: slices.Concat([]byte{0, 0, byte(kind >> 8), byte(kind)}, inner())})
	within := ethernet{to: v.Other.MAC, from: v.Self.MAC, kind: kind, payload: inner()}.bytes()
	v.ip(packet{src: src, dst: node, protocol: unix.IPPROTO_UDP, payload: packets.UDP(src, node, 4000, 4789, slices.Concat([]byte{8, 0, 0, 0, 0, 0, 1, 0}, within))})
}

// StrangerFloods are floods of a machine of the underlay that is no node. Their sources are
// few hundreds: how many neighbours a node may have is the kernel's setting. What one fills
// has a bound all the same.
var StrangerFloods = []Flood{
	{Name: "half-open connections to the agents' port, from an address", Frame: func(v *Volley, n uint32) {
		v.ip(near(connection(v.self(), v.Node.Of(v.Family), port(n), fabric.DefaultAgentPort)))
	}},
	{Name: "half-open connections to the agents' port, from many addresses of the underlay", Fills: Sockets, Frame: func(v *Volley, n uint32) {
		v.ip(near(connection(crowd(v, n), v.Node.Of(v.Family), port(n), fabric.DefaultAgentPort)))
	}},
	{Name: "datagrams and segments to ports of the node that nobody listens on", Frame: func(v *Volley, n uint32) {
		v.ip(plain(v.self(), v.Node.Of(v.Family), port(n), port(n*7)))
		v.ip(connection(v.self(), v.Node.Of(v.Family), port(n), 179))
	}},
	{Name: "datagrams to many addresses of the pools", Frame: func(v *Volley, n uint32) {
		to := spread("2001:db8:100::8:0", n)
		if v.Family == IPv4 {
			b := addr("203.0.113.0").As4()
			b[3] = byte(100 + n%100)
			to = netip.AddrFrom4(b)
		}
		v.ip(plain(v.self(), to, port(n), 4001))
	}},
	{Name: "DHCP requests and router solicitations", Frame: func(v *Volley, n uint32) {
		kinds := []requests.Kind{requests.Discover, requests.Select}
		if v.Family == IPv6 {
			kinds = []requests.Kind{requests.Solicit, requests.Solicitation}
		}
		asks(kinds...)(v, n)
	}},
	{Name: "first fragments to the node that nobody completes", Frame: firstFragments},
}

// near gives a packet the hop limit that the agents' port wants.
func near(p packet) packet {
	p.hops = 255
	return p
}

// crowd is the n-th of some addresses of the underlay that no machine has.
func crowd(v *Volley, n uint32) netip.Addr {
	b := v.self().AsSlice()
	b[len(b)-1] = byte(128 + n%100)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// StrangerMarks are to the stranger's kinds what [Marks] are to a guest's.
func StrangerMarks() []Kind {
	return []Kind{
		{Name: "mark to a guest", Honest: toGuest, At: OtherGuest},
		{Name: "mark to the node", Honest: toNode, At: NodeItself},
	}
}

// StrangerBounds are [Bounds] for the stranger's floods. The kernel keeps a queue of
// half-open connections for each of the agent's two listeners, and needs none beyond that
// (tcp_syncookies). How many neighbours, and pairs of a guest and a machine that may have
// its answers, the stranger can make, has no bound of its own.
func StrangerBounds(queue int) map[Resource]int {
	most := maps.Clone(Bounds)
	most[Sockets] = 2 * (queue + 1)
	delete(most, Neighbours)
	delete(most, Elements)
	return most
}
