package fabric

import "net/netip"

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
