package fabric

import (
	"net/netip"
	"slices"
)

// NextHop gives the one next hop with which a reflector takes routes of a
// family from a node that calls from session: its address of that family, by
// the session or by the cluster. Of a family that nobody gave it an address of
// it is the session's address, IPv4-mapped for IPv6 (RFC 4291) and as it is for
// IPv4 (RFC 8950), as an agent announces it. The node that no cluster names is
// the zero Node.
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

// NextHopRanges says where the next hop of a family may be of a node that the
// cluster names and gives no address of that family: inside of the prefixes in,
// and in none of not. The node's agent found the address on the node itself, so
// that others can only tell that it is nobody else's: no other machine's, no
// guest's, and where nodes are.
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
		not = append(not, p.Prefix)
	}
	not = slices.DeleteFunc(append(not, c.Routed...), func(p netip.Prefix) bool { return !family(p) })
	not = append(not, Martians(v6)...)
	slices.SortFunc(not, netip.Prefix.Compare)
	return in, slices.Compact(not)
}
