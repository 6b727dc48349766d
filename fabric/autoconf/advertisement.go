package autoconf

import (
	"net/netip"

	"github.com/gopacket/gopacket/layers"
	"github.com/mdlayher/ndp"

	"github.com/vmfabric/vmfabric/fabric"
)

// typeSolicitation is the ICMPv6 type of a router solicitation.
const typeSolicitation = 133

// What an advertisement says of the router (RFC 4861, 4.2).
const (
	hopsOnLink = 255 // shows a receiver that no router sent the packet on
	hopLimit   = 64
)

// maxNames is the most that names take in an option of an advertisement, whose length
// the library counts in one byte.
const maxNames = 240

var (
	allNodes    = netip.IPv6LinkLocalAllNodes()
	allNodesMAC = fabric.MAC{0x33, 0x33, 0, 0, 0, 1} // RFC 2464, 7
)

// answerSolicitation answers a router solicitation.
func (o Offer) answerSolicitation(from fabric.MAC, d datagram) Answer {
	contact := fabric.Contact{Protocol: fabric.RouterSolicitation, Message: "SOLICITATION"}
	if why := invalidSolicitation(d); why != "" {
		return refused(contact, why)
	}
	if why := o.stranger(from); why != "" {
		return refused(contact, why)
	}
	if why := o.noAdvertisement(); why != "" {
		return refused(contact, why)
	}
	return Answer{Frames: [][]byte{o.Advertisement()}, Contact: contact}
}

// invalidSolicitation says why a router discards a solicitation (RFC 4861, 6.1.1);
// empty: it does not.
func invalidSolicitation(d datagram) string {
	if d.fault != "" {
		return d.fault
	}
	m, err := ndp.ParseMessage(d.payload)
	if err != nil || d.payload[1] != 0 {
		return "the solicitation is malformed"
	}
	if d.hops != hopsOnLink {
		return "its hop limit is not 255, so that it may come from elsewhere"
	}
	rs, _ := m.(*ndp.RouterSolicitation)
	for _, option := range rs.Options {
		if option.Code() == uint8(ndp.Source) && d.src.IsUnspecified() {
			return "it has a link-layer address, and no source address"
		}
	}
	return ""
}

// noAdvertisement says why the guest gets no advertisements; empty: it gets them.
func (o Offer) noAdvertisement() string {
	switch {
	case !o.RA:
		return "router advertisements are off for this guest"
	case !o.Gateway.IPv6.IsValid():
		return "the cluster has no IPv6 gateway"
	case !plain6(o.Gateway.IPv6) || !o.Gateway.IPv6.IsLinkLocalUnicast():
		return "the gateway " + o.Gateway.IPv6.String() + " is not link-local; hosts ignore its advertisements"
	case len(o.addresses6()) == 0:
		return "the NIC has no IPv6 address"
	}
	return ""
}

// Advertisement gives the router advertisement to all nodes of the link, as a whole
// Ethernet frame. It is nil for a guest that gets none.
func (o Offer) Advertisement() []byte {
	if o.noAdvertisement() != "" {
		return nil
	}
	body, err := ndp.MarshalMessageChecksum(&ndp.RouterAdvertisement{
		CurrentHopLimit:      hopLimit,
		ManagedConfiguration: o.DHCP,
		OtherConfiguration:   o.DHCP,
		RouterLifetime:       o.lifetimes().Router,
		Options:              o.neighborOptions(),
	}, o.Gateway.IPv6, allNodes)
	if err != nil {
		return nil // never: all that an option could not have is left out before
	}
	return frame(o.Gateway.MAC, allNodesMAC, o.Gateway.IPv6, allNodes, layers.IPProtocolICMPv6, hopsOnLink, body)
}

// neighborOptions lists the options of an advertisement.
func (o Offer) neighborOptions() []ndp.Option {
	lease := o.lifetimes().Lease
	options := []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: o.Gateway.MAC[:]}}
	if o.MTU > 0 {
		options = append(options, ndp.NewMTU(uint32(o.MTU)))
	}
	for _, p := range o.prefixes() {
		if p.Bits() == 64 { // a guest makes addresses of its own in a /64 alone (RFC 4862, 5.5.3)
			options = append(options, &ndp.PrefixInformation{
				PrefixLength:                   64,
				AutonomousAddressConfiguration: true,
				ValidLifetime:                  lease,
				PreferredLifetime:              lease,
				Prefix:                         p.Addr(),
			})
		}
	}
	options = append(options, &ndp.RouteInformation{Prefix: netip.IPv6Unspecified(), RouteLifetime: ndp.Infinity})
	if dns := servers(o.DNS, plain6); len(dns) > 0 {
		options = append(options, &ndp.RecursiveDNSServer{Lifetime: lease, Servers: dns})
	}
	if search := fitting(o.search(), maxNames); len(search) > 0 {
		options = append(options, &ndp.DNSSearchList{Lifetime: lease, DomainNames: search})
	}
	return options
}

// fitting gives the first names that fit into a number of bytes.
func fitting(names []string, room int) []string {
	for i, name := range names {
		if room -= len(name) + 2; room < 0 { // the length of the first label, and the root
			return names[:i]
		}
	}
	return names
}
