package render

import (
	"fmt"
	"net/netip"
	"slices"
)

// sender is a node that the cluster file lists, as a reflector sees it.
type sender struct {
	Name    string
	Address netip.Addr  // the address from which it connects
	NextHop *netip.Addr // its own address of a family; nil: the file has none
}

// Senders lists the nodes with their addresses of a family.
func (r router) Senders(v6 bool) []sender {
	all := make([]sender, len(r.Nodes))
	for i, n := range r.Nodes {
		all[i] = sender{Name: n.Name, Address: n.Source(r.Address)}
		if hop := n.NextHop(all[i].Address, v6); hop.Is6() == v6 && !hop.Is4In6() {
			all[i].NextHop = &hop
		}
	}
	return all
}

// Undeclared reports whether the file lists nodes without an address of the family
// that their sessions do not have.
func (r router) Undeclared(v6 bool) bool {
	return slices.ContainsFunc(r.Senders(v6), func(s sender) bool { return s.NextHop == nil })
}

// HopRanges and HopOthers return where the next hops of those nodes may be, and
// where not.
func (r router) HopRanges(v6 bool) []netip.Prefix { in, _ := r.NextHopRanges(v6); return in }

func (r router) HopOthers(v6 bool) []netip.Prefix { _, not := r.NextHopRanges(v6); return not }

// UndeclaredList writes both as a prefix list of FRR.
func (r router) UndeclaredList(v6 bool) []string {
	var lines []string
	f := family{V6: v6}
	add := func(action string, ps []netip.Prefix) {
		for _, p := range ps {
			what := "any"
			if p.Bits() > 0 {
				what = frrPrefix(p)
				if most := p.Addr().BitLen(); p.Bits() < most {
					what += fmt.Sprintf(" le %d", most)
				}
			}
			lines = append(lines, fmt.Sprintf("%s prefix-list UNDECLARED%s seq %d %s %s", f.IP(), f.N(), 5*(len(lines)+1), action, what))
		}
	}
	add("deny", r.HopOthers(v6))
	add("permit", r.HopRanges(v6))
	return lines
}

// Other returns the family that the sessions of a reflector do not have.
func (r router) Other() family { return family{V6: r.Address.Is4()} }
