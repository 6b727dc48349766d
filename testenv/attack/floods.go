package attack

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/packets"
	"github.com/vmfabric/vmfabric/internal/requests"
)

// Resource is something of the node that guests share.
type Resource string

// The resources.
const (
	Neighbours Resource = "neighbours"           // in the kernel's tables
	Sockets    Resource = "sockets"              // of TCP and UDP, and connections that are half open
	Orphans    Resource = "orphans"              // connections of no process
	Fragments  Resource = "bytes of fragments"   // that wait for others
	Tracked    Resource = "tracked connections"  // of conntrack
	Elements   Resource = "elements of sets"     // of the packet filter
	Lines      Resource = "lines of the log"     // of the agent
	Routes     Resource = "routes and addresses" // of the node
)

// Bounds is how much one guest can make of each, beyond what is there, by a flood of a few
// seconds.
var Bounds = map[Resource]int{
	Neighbours: 100, Sockets: 128, Orphans: 16, Fragments: 8 << 20, Tracked: 0, Elements: 300, Lines: 100, Routes: 0,
}

// Flood is an attack by many frames.
type Flood struct {
	Name  string
	Only  Family                // 0: both families have it
	Frame func(*Volley, uint32) // makes the n-th frame, without a token
	Fills Resource              // what grows beyond its bound without the packet filter, if anything
}

// Has reports whether a family has the flood.
func (f Flood) Has(family Family) bool { return f.Only == 0 || f.Only == family }

// spread is the n-th address in a prefix of which two bytes are free.
func spread(prefix string, n uint32) netip.Addr {
	b := addr(prefix).AsSlice()
	binary.BigEndian.PutUint16(b[len(b)-2:], uint16(n+2))
	a, _ := netip.AddrFromSlice(b)
	return a
}

// port is the n-th port.
func port(n uint32) uint16 { return uint16(1024 + n%60000) }

// plain is a datagram of sixteen bytes.
func plain(src, dst netip.Addr, from, to uint16) packet {
	return packet{src: src, dst: dst, protocol: unix.IPPROTO_UDP, payload: packets.UDP(src, dst, from, to, make([]byte, 16))}
}

func connection(src, dst netip.Addr, from, to uint16) packet {
	return packet{src: src, dst: dst, protocol: unix.IPPROTO_TCP, payload: packets.TCP(src, dst, from, to, packets.SYN, nil)}
}

// asks is a guest's request to the node.
func asks(kinds ...requests.Kind) func(*Volley, uint32) {
	return func(v *Volley, n uint32) {
		g := requests.Guest{MAC: v.Self.MAC, Addresses: []netip.Addr{v.Self.V4, v.Self.V6}, Gateway: fabric.Gateway{IPv4: v.Gateway.V4, IPv6: v.Gateway.V6, MAC: v.Gateway.MAC}}
		v.Frames = append(v.Frames, g.Frame(kinds[int(n)%len(kinds)], n))
	}
}

// HonestFlood is what the floods are compared with: as many datagrams to the Internet.
func HonestFlood(v *Volley, n uint32) { HonestFloodTo(v, n, v.client()) }

// HonestFloodTo is as many datagrams to one machine.
func HonestFloodTo(v *Volley, n uint32, to netip.Addr) { v.ip(plain(v.self(), to, port(n), 4001)) }

// Floods are the floods of a guest.
var Floods = []Flood{
	{Name: "connections to the node's services", Frame: func(v *Volley, n uint32) {
		v.ip(connection(v.self(), v.Node.Of(v.Family), port(n), []uint16{22, 179, fabric.DefaultAgentPort}[n%3]))
	}},
	{Name: "connections to the metadata service", Only: IPv4, Frame: func(v *Volley, n uint32) {
		v.ip(connection(v.self(), fabric.Metadata4, port(n), 80))
	}},
	{Name: "ARP from many addresses", Only: IPv4, Fills: Neighbours, Frame: func(v *Volley, n uint32) {
		v.frame(ethernet{to: broadcast, from: v.Self.MAC, kind: unix.ETH_P_ARP, payload: arp(1, v.Self.MAC, spread("198.51.0.0", n), fabric.MAC{}, v.Gateway.V4)})
	}},
	{Name: "neighbor solicitations from many addresses", Only: IPv6, Fills: Neighbours, Frame: func(v *Volley, n uint32) {
		src := spread("fe80::5:0", n)
		body := append(v.Gateway.V6.AsSlice(), linkOption(sourceLinkOption, v.Self.MAC)...)
		v.ip(packet{src: src, dst: v.Gateway.V6, protocol: unix.IPPROTO_ICMPV6, hops: 255, payload: packets.ICMP(src, v.Gateway.V6, solicitation6, 0, 0, body)})
	}},
	{Name: "echo requests from many addresses", Only: IPv6, Fills: Neighbours, Frame: func(v *Volley, n uint32) {
		src := spread("fe80::6:0", n)
		v.ip(packet{src: src, dst: v.Gateway.V6, protocol: unix.IPPROTO_ICMPV6, payload: echo(src, v.Gateway.V6, nil)})
	}},
	{Name: "neighbor advertisements for many addresses", Only: IPv6, Frame: func(v *Volley, n uint32) {
		target := spread("2001:db8:100::7:0", n)
		body := append(target.AsSlice(), linkOption(targetLinkOption, v.Self.MAC)...)
		v.ip(packet{src: v.self(), dst: v.Gateway.V6, protocol: unix.IPPROTO_ICMPV6, hops: 255, payload: packets.ICMP(v.self(), v.Gateway.V6, neighbor6, 0, overrideNeighbor<<24, body)})
	}},
	{Name: "DHCPv4 requests", Only: IPv4, Frame: asks(requests.Discover, requests.Select, requests.Reboot, requests.Renew4)},
	{Name: "DHCPv6 requests and router solicitations", Only: IPv6, Frame: asks(requests.Solicit, requests.Renew6, requests.Rebind6, requests.Solicitation)},
	{Name: "datagrams to many machines and ports of the Internet", Frame: func(v *Volley, n uint32) {
		v.ip(plain(v.self(), spread(pair("198.18.0.0", "2001:db8:9::").Of(v.Family).String(), n), port(n), port(n*7)))
	}},
	{Name: "datagrams to many machines of the underlay", Only: IPv6, Fills: Neighbours, Frame: func(v *Volley, n uint32) {
		v.ip(plain(v.self(), spread("fd00:10:10::9:0", n), port(n), 4001))
	}},
	{Name: "datagrams to many addresses that no guest has", Frame: func(v *Volley, n uint32) {
		to := spread("2001:db8:100::8:0", n)
		if v.Family == IPv4 {
			b := addr("203.0.113.0").As4()
			b[3] = byte(100 + n%100)
			to = netip.AddrFrom4(b)
		}
		v.ip(plain(v.self(), to, port(n), 4001))
	}},
	{Name: "datagrams from many addresses", Frame: func(v *Volley, n uint32) {
		v.ip(plain(spread(pair("198.51.0.0", "2001:db8:9::").Of(v.Family).String(), n), v.client(), port(n), 4001))
	}},
	{Name: "first fragments to the node that nobody completes", Frame: firstFragments},
	{Name: "ICMP errors about the node's packets to the guest", Frame: func(v *Volley, n uint32) {
		src, dst := v.Node.Of(v.Family), v.self()
		quoted := packet{src: src, dst: dst, protocol: unix.IPPROTO_UDP, payload: packets.UDP(src, dst, port(n), 4001, nil)}.bytes()
		kind := byte(unreachable6)
		if v.Family == IPv4 {
			kind = unreachable4
		}
		v.ip(packet{src: dst, dst: src, protocol: packets.ICMPOf(dst), payload: packets.ICMP(dst, src, kind, 3, 0, quoted)})
	}},
}

// firstFragments begins a datagram to the node that never ends.
func firstFragments(v *Volley, n uint32) {
	dst := v.Node.Of(v.Family)
	p := v.fragment(v.self(), dst, unix.IPPROTO_UDP, 0, true, append(packets.UDP(v.self(), dst, 4000, 4001, nil), make([]byte, 1200)...))
	if v.Family == IPv4 {
		p.id = uint16(n)
	} else {
		binary.BigEndian.PutUint32(p.payload[4:], n)
	}
	v.ip(p)
}
