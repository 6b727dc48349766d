package render

import "net/netip"

// sender is a node that the cluster file names, as a reflector sees it.
type sender struct {
	Name             string
	Address, NextHop netip.Addr // where it calls from, and its own address of a family
}

// Senders lists the nodes whose address of a family a reflector knows. The
// others have none there that routers could use as next hop.
func (r router) Senders(v6 bool) []sender {
	var all []sender
	for _, n := range r.Nodes {
		s := sender{Name: n.Name, Address: n.Source(r.Address)}
		s.NextHop = n.NextHop(s.Address, v6)
		if s.NextHop.Is6() == v6 && !s.NextHop.Is4In6() {
			all = append(all, s)
		}
	}
	return all
}

// Other is the family that the sessions of a reflector do not have.
func (r router) Other() family { return family{V6: r.Address.Is4()} }
