package autoconf

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/idna"

	"github.com/vmfabric/vmfabric/fabric"
)

// defaultLifetimes are the same in both families: see the package's documentation.
var defaultLifetimes = fabric.Lifetimes{
	Lease:  7 * 24 * time.Hour,
	Renew:  time.Hour,
	Rebind: 2 * time.Hour,
	Router: 65535 * time.Second, // the most there is (RFC 8319)
}

// The most that one answer has of a kind, so that it fits into a packet.
const (
	maxServers   = 8  // resolvers, or time servers, of a family
	maxDomains   = 16 // search domains
	maxAddresses = 16 // addresses of an IA_NA
	maxPrefixes  = 8  // prefixes of an IA_PD
)

// Offer is what the guest on one port is told of its network.
type Offer struct {
	Addresses []netip.Addr   // of the NIC
	Routes    []netip.Prefix // routed to the NIC
	MAC       fabric.MAC     // of the NIC; zero: not known
	Hostname  string         // a name as of RFC 1123; empty: the guest is told none
	Gateway   fabric.Gateway
	MTU       int // bytes; 0: nothing is said
	DNS       []netip.Addr
	Search    []string
	NTP       []netip.Addr
	DHCP, RA  bool // answer DHCP; answer router solicitations
	Lifetimes fabric.Lifetimes
}

// OfferOf gives the offer for the guest of a port, under what the cluster says of its
// guests.
func OfferOf(p fabric.Port, g fabric.Guests) Offer {
	o := Offer{
		Addresses: p.NIC.Addresses,
		Routes:    p.NIC.Routes,
		MAC:       p.NIC.MAC,
		Gateway:   p.Gateway,
		MTU:       g.MTU,
		DNS:       g.DNS,
		Search:    g.Search,
		NTP:       g.NTP,
		DHCP:      !p.NoDHCP && !g.NoDHCP,
		RA:        !p.NoRA && !g.NoRA,
		Lifetimes: g.Lifetimes,
	}
	if p.NIC.MTU != 0 {
		o.MTU = p.NIC.MTU
	}
	// Clients would take underscores, but not all programs that use the host name, such as
	// those that put it into a certificate or a mail.
	name := strings.ReplaceAll(p.VM, "_", "-")
	if _, err := netip.ParseAddr(name); err != nil && domain(name) == name {
		o.Hostname = name
	}
	return o
}

// lifetimes gives the lifetimes with the defaults of those that are zero.
func (o Offer) lifetimes() fabric.Lifetimes {
	return fabric.Lifetimes{
		Lease:  cmp.Or(o.Lifetimes.Lease, defaultLifetimes.Lease),
		Renew:  cmp.Or(o.Lifetimes.Renew, defaultLifetimes.Renew),
		Rebind: cmp.Or(o.Lifetimes.Rebind, defaultLifetimes.Rebind),
		Router: cmp.Or(o.Lifetimes.Router, defaultLifetimes.Router),
	}
}

// addresses4 lists the IPv4 addresses of the NIC.
func (o Offer) addresses4() []netip.Addr { return only(o.Addresses, netip.Addr.Is4) }

// addresses6 lists the IPv6 addresses of the NIC.
func (o Offer) addresses6() []netip.Addr { return only(o.Addresses, plain6) }

// prefixes lists the IPv6 prefixes that are routed to the NIC.
func (o Offer) prefixes() (ps []netip.Prefix) {
	for _, p := range o.Routes {
		if plain6(p.Addr()) && p.IsValid() && p == p.Masked() && len(ps) < maxPrefixes {
			ps = append(ps, p)
		}
	}
	return ps
}

// search lists the search domains that are names.
func (o Offer) search() (ds []string) {
	for _, s := range o.Search {
		if d := domain(s); d != "" && len(ds) < maxDomains {
			ds = append(ds, d)
		}
	}
	return ds
}

// largest is the most that a packet to the guest has, in bytes from the IP header on.
func (o Offer) largest() int {
	if o.MTU > 0 {
		return min(o.MTU, maxPacket)
	}
	return maxPacket
}

// servers gives those of a list of servers that a family reaches.
func servers(all []netip.Addr, family func(netip.Addr) bool) []netip.Addr {
	of := only(all, family)
	return of[:min(len(of), maxServers)]
}

// only gives the addresses of a family.
func only(all []netip.Addr, family func(netip.Addr) bool) (of []netip.Addr) {
	for _, a := range all {
		if family(a) {
			of = append(of, a)
		}
	}
	return slices.Clip(of)
}

// plain6 reports whether a is an IPv6 address that a packet can have.
func plain6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() && a.Zone() == "" }

// domain gives a domain name without its last dot, or nothing for what is no name as of
// RFC 1123, 2.1.
func domain(s string) string {
	s = strings.TrimSuffix(s, ".")
	if len(s) > 253 {
		return ""
	}
	for label := range strings.SplitSeq(s, ".") {
		if !isLabel(label) {
			return ""
		}
	}
	if _, err := idna.ToASCII(s); err != nil { // a label xn-- that stands for nothing
		return ""
	}
	return s
}

// isLabel reports whether s is one label of a host name.
func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-'
	})
}

// compressed encodes domain names as a list in which a name refers to an earlier one
// that it ends with (RFC 1035, 4.1.4; RFC 3397, 2).
func compressed(names []string) (b []byte) {
	at := map[string]int{}
	for _, name := range names {
		for name != "" {
			if i, known := at[strings.ToLower(name)]; known {
				b = append(b, 0xc0|byte(i>>8), byte(i))
				break
			}
			if len(b) < 1<<14 { // a reference has 14 bits
				at[strings.ToLower(name)] = len(b)
			}
			label, rest, _ := strings.Cut(name, ".")
			b, name = append(append(b, byte(len(label))), label...), rest
			if name == "" {
				b = append(b, 0)
			}
		}
	}
	return b
}
