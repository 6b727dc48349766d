package fabric

import (
	"net/netip"
	"slices"
)

// NextHop gives the only next hop that a reflector accepts in routes of a family
// from a node, whose BGP session comes from the address session: session itself
// if it is of that family, else the node's address of that family in the cluster.
// Without either it is session, IPv4-mapped for IPv6 (RFC 4291) and unchanged for
// IPv4 (RFC 8950), as an agent announces it. Use the zero Node for a node that the
// cluster does not name.
func (n Node) NextHop(session netip.Addr, v6 bool) netip.Addr {
	own := n.Address
	if v6 {
		own = n.Address6
	}
	switch {
	case session.Is6() == v6:
		return session
	case own.IsValid():
		return own
	case v6:
		return netip.AddrFrom16(session.As16())
	}
	return session
}

// NextHopRanges limits the next hop of a family for a node that the cluster names
// without an address of that family: it is in one of the prefixes in, and in none
// of the prefixes not. The node's agent found the address on the node itself.
// Others can only check that it lies where nodes are, and that no other machine
// and no guest has it.
func (c *Cluster) NextHopRanges(v6 bool) (in, not []netip.Prefix) {
	family := func(p netip.Prefix) bool { return p.Addr().Is6() == v6 }
	for _, p := range c.NodeRanges() {
		if family(p) {
			in = append(in, p)
		}
	}
	if len(in) == 0 {
		anywhere := netip.IPv4Unspecified()
		if v6 {
			anywhere = netip.IPv6Unspecified()
		}
		in = append(in, netip.PrefixFrom(anywhere, 0))
	}
	for _, h := range c.hosts() {
		not = append(not, HostPrefix(h.addr.WithZone("")))
	}
	for _, p := range c.Pools {
		not = append(not, p.Blocks()...)
	}
	not = slices.DeleteFunc(append(not, c.Routed...), func(p netip.Prefix) bool { return !family(p) })
	not = append(not, Martians(v6)...)
	slices.SortFunc(not, netip.Prefix.Compare)
	return in, slices.Compact(not)
}
