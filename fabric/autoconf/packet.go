package autoconf

import (
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/vmfabric/vmfabric/fabric"
)

// maxPacket is the largest packet that is read, and sent: Ethernet's. It bounds the
// work for a request.
const maxPacket = 1500

// Lengths of headers.
const (
	ethernetLen = 14
	ipv4Len     = 20
	ipv6Len     = 40
	udpLen      = 8
)

// datagram is a packet that came in: its headers, and what is in it.
type datagram struct {
	src, dst netip.Addr
	protocol layers.IPProtocol
	hops     uint8 // the TTL or hop limit that is left
	port     uint16
	payload  []byte // of UDP, or the whole ICMPv6 message
	fault    string // why the payload is not to be read, in words; empty: it is
}

// parse reads a packet from its IP header on; ok is false for one that is cut off, or
// is neither UDP nor ICMPv6.
func parse(packet []byte) (d datagram, ok bool) {
	if len(packet) == 0 {
		return d, false
	}
	switch packet[0] >> 4 {
	case 4:
		return parse4(packet)
	case 6:
		return parse6(packet)
	}
	return d, false
}

// parse4 reads an IPv4 packet.
func parse4(b []byte) (d datagram, ok bool) {
	var ip layers.IPv4
	if err := ip.DecodeFromBytes(b, gopacket.NilDecodeFeedback); err != nil || int(ip.Length) > len(b) || ip.FragOffset != 0 {
		return d, false
	}
	d = datagram{protocol: ip.Protocol, hops: ip.TTL}
	d.src, _ = netip.AddrFromSlice(ip.SrcIP)
	d.dst, _ = netip.AddrFromSlice(ip.DstIP)
	if ip.Flags&layers.IPv4MoreFragments != 0 {
		d.fault = "it is a fragment"
	} else if err, sum := ip.VerifyChecksum(); err != nil || !sum.Valid {
		d.fault = "the checksum of its IP header is wrong"
	}
	return d.transport(&ip, ip.Payload)
}

// parse6 reads an IPv6 packet without extension headers.
func parse6(b []byte) (d datagram, ok bool) {
	var ip layers.IPv6
	if err := ip.DecodeFromBytes(b, gopacket.NilDecodeFeedback); err != nil || ipv6Len+int(ip.Length) > len(b) {
		return d, false
	}
	d = datagram{protocol: ip.NextHeader, hops: ip.HopLimit}
	d.src, _ = netip.AddrFromSlice(ip.SrcIP)
	d.dst, _ = netip.AddrFromSlice(ip.DstIP)
	return d.transport(&ip, ip.Payload)
}

// transport reads the header of UDP, or of ICMPv6, and checks the checksum.
func (d datagram) transport(ip gopacket.NetworkLayer, b []byte) (datagram, bool) {
	var verify func() (error, gopacket.ChecksumVerificationResult)
	switch {
	case d.protocol == layers.IPProtocolUDP:
		var udp layers.UDP
		if err := udp.DecodeFromBytes(b, gopacket.NilDecodeFeedback); err != nil || udp.Length == 0 || int(udp.Length) > len(b) {
			return d, false
		}
		b, d.port, d.payload = b[:udp.Length], uint16(udp.DstPort), udp.Payload
		if udp.Checksum == 0 && d.src.Is6() && d.fault == "" {
			d.fault = wrongChecksum // RFC 8200, 8.1
		}
		_ = udp.SetNetworkLayerForChecksum(ip)
		verify = udp.VerifyChecksum
	case d.protocol == layers.IPProtocolICMPv6 && d.src.Is6():
		var icmp layers.ICMPv6
		if err := icmp.DecodeFromBytes(b, gopacket.NilDecodeFeedback); err != nil {
			return d, false
		}
		d.payload = b
		_ = icmp.SetNetworkLayerForChecksum(ip)
		verify = icmp.VerifyChecksum
	default:
		return d, false
	}
	if len(b) > maxPacket {
		d.fault = "it is larger than 1500 bytes"
	} else if d.fault == "" && !intact(b, verify) {
		d.fault = wrongChecksum
	}
	return d, true
}

const wrongChecksum = "its checksum is wrong"

// intact checks a checksum. A packet that has not left this machine may have only the
// sum of the pseudo-header there, since a device would do the rest (CHECKSUM_PARTIAL): the
// sum over the message as it is, which the device would write, is the right one then. UDP
// over IPv4 may have none.
func intact(message []byte, verify func() (error, gopacket.ChecksumVerificationResult)) bool {
	err, sum := verify()
	whole := gopacket.FoldChecksum(gopacket.ComputeChecksum(message, 0))
	if whole == 0 && sum.Correct != 0 {
		whole = 0xffff // what UDP writes for 0
	}
	return err == nil && (sum.Valid || uint32(whole) == sum.Correct)
}

// udpFrame gives a UDP datagram as an Ethernet frame.
func udpFrame(from, to fabric.MAC, src, dst netip.AddrPort, payload []byte) []byte {
	ip := network(src.Addr(), dst.Addr(), layers.IPProtocolUDP, 64)
	udp := &layers.UDP{SrcPort: layers.UDPPort(src.Port()), DstPort: layers.UDPPort(dst.Port())}
	_ = udp.SetNetworkLayerForChecksum(ip)
	return serialized(from, to, ip, udp, gopacket.Payload(payload))
}

// frame gives an IP packet as an Ethernet frame.
func frame(from, to fabric.MAC, src, dst netip.Addr, protocol layers.IPProtocol, hops uint8, payload []byte) []byte {
	return serialized(from, to, network(src, dst, protocol, hops), gopacket.Payload(payload))
}

// header is one of IP.
type header interface {
	gopacket.NetworkLayer
	gopacket.SerializableLayer
}

// network gives the header of a packet. One that is never in fragments needs no
// identification (RFC 6864).
func network(src, dst netip.Addr, protocol layers.IPProtocol, hops uint8) header {
	if src.Is4() {
		return &layers.IPv4{Version: 4, TTL: hops, Protocol: protocol, Flags: layers.IPv4DontFragment, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	}
	return &layers.IPv6{Version: 6, HopLimit: hops, NextHeader: protocol, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
}

// serialized gives a packet as an Ethernet frame. It is short, so nothing can fail.
func serialized(from, to fabric.MAC, ip header, body ...gopacket.SerializableLayer) []byte {
	ethernet := &layers.Ethernet{SrcMAC: from[:], DstMAC: to[:], EthernetType: layers.EthernetTypeIPv6}
	if ip.LayerType() == layers.LayerTypeIPv4 {
		ethernet.EthernetType = layers.EthernetTypeIPv4
	}
	b := gopacket.NewSerializeBuffer()
	all := append([]gopacket.SerializableLayer{ethernet, ip}, body...)
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		panic(err)
	}
	return b.Bytes()
}
