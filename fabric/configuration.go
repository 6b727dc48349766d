package fabric

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"
)

// The most that guests are told. An option of DHCPv4 or of a router advertisement has
// some 250 bytes, and what a guest asks for has to fit into one frame together.
const (
	MaxResolvers   = 6   // of each family; the same limit holds for time servers
	MaxSearch      = 6   // domains; older resolvers in guests read no more
	MaxSearchBytes = 240 // of all domains as DNS writes them: each is two bytes longer than its text
)

// MTUs of guests' links: IPv6 needs the least, a tap takes no more than the most.
const (
	MinMTU = 1280
	MaxMTU = 65521
)

// ValidMTU reports whether a guest's link can have that MTU.
func ValidMTU(mtu int) bool { return mtu >= MinMTU && mtu <= MaxMTU }

// Network is what a guest of a cluster must know to configure itself by hand.
type Network struct {
	Gateway Gateway      `json:"gateway"`
	DNS     []netip.Addr `json:"dns,omitempty"`
	Search  []string     `json:"search,omitempty"`
	MTU     int          `json:"mtu,omitempty"` // of a link whose NIC has none of its own; 0: not known
}

// Network gives the network of the cluster's guests.
func (c *Cluster) Network() Network {
	return Network{c.Gateway, c.Guests.DNS, c.Guests.Search, c.Guests.MTU}
}

// Servers of DHCPv4 and DHCPv6 listen there.
var dhcpServices = []Service{{"udp", 67}, {"udp", 547}}

// ValidateDomain reports why s cannot be a domain in which guests look names up (RFC
// 1035, 2.3.4; RFC 1123, 2.1); nil: it can.
func ValidateDomain(s string) error {
	if _, err := netip.ParseAddr(s); err == nil {
		return fmt.Errorf("%s is an address; resolvers go under dns", s)
	}
	plain := strings.TrimSuffix(s, ".")
	switch {
	case plain == "":
		return fmt.Errorf("an empty domain; write one such as example.net, or remove it")
	case strings.ContainsFunc(s, func(r rune) bool { return r > unicode.MaxASCII }):
		return fmt.Errorf("%.60q has characters beyond ASCII; write the form that DNS has, with xn-- (idn2 prints it)", s)
	case plain != s:
		return fmt.Errorf("%.60q ends with a dot; write it without", s)
	case len(s) > 253:
		return fmt.Errorf("%.60q has %d characters; a domain has at most 253", s, len(s))
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, notHost) {
			return fmt.Errorf("%.60q is not a domain: its part %.70q is not 1 to 63 letters, digits and '-', with no '-' at an end", s, label)
		}
	}
	return nil
}

// notHost reports characters that are not for names of hosts.
func notHost(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-'
}

// told checks what guests are told of their network.
func (v *validator) told() {
	g := v.c.Guests
	v.servers("guests.dns", "resolver", Service{"udp", 53}, g.DNS)
	v.servers("guests.ntp", "time server", Service{"udp", 123}, g.NTP)
	v.search(g.Search)
	if g.MTU != 0 && !ValidMTU(g.MTU) {
		v.add("guests.mtu", "%d is out of range; IPv6 needs %d, a tap takes at most %d", g.MTU, MinMTU, MaxMTU)
	}
	v.metadata()
	for i, s := range g.NodePorts {
		if !g.NoDHCP && slices.Contains(dhcpServices, s) {
			v.add(fmt.Sprintf("guests.node_ports[%d]", i), "at %s the agent answers the guests' DHCP itself; remove it, or write dhcp: false for a server of your own", s)
		}
	}
}

// metadata checks that nothing else is to be at the addresses of the metadata service.
func (v *validator) metadata() {
	if !v.c.Guests.Metadata {
		return
	}
	for at, a := range map[string]netip.Addr{"gateway.ipv4": v.c.Gateway.IPv4, "gateway.ipv6": v.c.Gateway.IPv6} {
		if a == Metadata4 || a == Metadata6 {
			v.add(at, "%s is where guests find their metadata (guests.metadata); use another address, or remove metadata", a)
		}
	}
	if i := slices.Index(v.c.Guests.Reach, HostPrefix(Metadata4)); i >= 0 {
		v.add(fmt.Sprintf("guests.reach[%d]", i), "the node itself serves guests their metadata at %s (guests.metadata); remove one of the two", Metadata4)
	}
}

// servers checks the addresses of servers that guests are to ask.
func (v *validator) servers(at, what string, port Service, all []netip.Addr) {
	ofFamily := map[bool]int{}
	for i, a := range all {
		path := fmt.Sprintf("%s[%d]", at, i)
		first := slices.Index(all[:i], a)
		switch {
		case !a.IsValid():
			v.add(path, "not an address; for example 9.9.9.9")
			continue
		case misspelt(a) != "":
			v.add(path, "%s", misspelt(a))
		case first >= 0:
			v.add(path, "%s is already at %s[%d]; remove one", a, at, first)
		default:
			if text := v.unreachable(a, what, port); text != "" {
				v.add(path, "%s", text)
			}
		}
		if ofFamily[a.Is4()]++; ofFamily[a.Is4()] == MaxResolvers+1 {
			v.add(path, "more than %d %ss of one family, which is what fits; remove some", MaxResolvers, what)
		}
	}
}

// unreachable says why guests cannot ask a server; empty: as far as the file shows they
// can.
func (v *validator) unreachable(a netip.Addr, what string, port Service) string {
	g, p := v.c.Guests, HostPrefix(a)
	special := martian(p)
	switch {
	case a == v.c.Gateway.Addr(a):
		if !slices.Contains(g.NodePorts, port) {
			return fmt.Sprintf("%s is the gateway, which is the node itself, and guests do not reach its %s; add %[2]s to guests.node_ports and run a %s on every node, or name another", a, port, what)
		}
		return ""
	case special == "link-local" && a.Is6():
		return fmt.Sprintf("%s is link-local, and on a guest's link there is nothing but the gateway; name a %s that has an address of its own", a, what)
	case special != "" && special != "link-local":
		return fmt.Sprintf("%s cannot be the address of a %s (%s); for example 9.9.9.9", a, what, special)
	}
	closed := append(v.c.Private(), linkLocal4)
	if slices.ContainsFunc(closed, p.Overlaps) && !slices.ContainsFunc(g.Reach, p.Overlaps) {
		return fmt.Sprintf("%s is in the underlay or in 169.254.0.0/16, which guests do not reach; add %s to guests.reach, or name a %s elsewhere", a, p, what)
	}
	return ""
}

func (v *validator) search(domains []string) {
	size := 0
	for i, s := range domains {
		path := fmt.Sprintf("guests.search[%d]", i)
		first := slices.IndexFunc(domains[:i], func(d string) bool { return strings.EqualFold(d, s) })
		if err := ValidateDomain(s); err != nil {
			v.add(path, "%v", err)
			continue
		}
		if first >= 0 {
			v.add(path, "%s is already at guests.search[%d]; remove one", s, first)
		}
		size += len(s) + 2
	}
	switch {
	case len(domains) > MaxSearch:
		v.add("guests.search", "%d domains; at most %d, which is what older guests read", len(domains), MaxSearch)
	case size > MaxSearchBytes:
		v.add("guests.search", "domains of %d bytes together; at most %d, which is what fits into an option", size, MaxSearchBytes)
	}
}
