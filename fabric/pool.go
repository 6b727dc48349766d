package fabric

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Pool is a set of addresses that guests may have.
type Pool struct {
	Name string
	// Prefix, Prefixes and Ranges together are the addresses of the pool. They are of
	// one family, and have no address in common.
	Prefix   netip.Prefix
	Prefixes []netip.Prefix
	Ranges   []AddressRange
	// PerGuest is the length of the prefixes that the pool gives to guests, one to each;
	// zero: it gives single addresses. A guest's prefix is routed to it, and
	// [Allocation.Address] is its address on the NIC.
	PerGuest int
	// NoAddress: the guest gets a prefix without an address in it. The prefix is routed
	// through another address of the NIC, and [AutoPool] passes the pool over.
	NoAddress bool
	Exclude   []netip.Prefix // addresses and prefixes of the pool that no guest may have
	// Reserve lists addresses and prefixes of the pool that a [Registry] gives to no
	// guest by itself. A guest whose description names one of them may have it.
	Reserve []Reservation
	// Quarantine is how long an address that a guest gave back is given to no other
	// guest; zero: [DefaultQuarantine].
	Quarantine time.Duration
	// Nodes and NodeLabels say whose guests get addresses from the pool: those of the
	// nodes of these names, and of the nodes that have one of these labels; both empty:
	// all nodes. A guest that has an address keeps it on every node.
	Nodes      []string
	NodeLabels []string
}

// Reservation keeps an address, or a prefix, of a pool for something that the
// operator knows.
type Reservation struct {
	Prefix netip.Prefix
	Note   string // for people
}

// DefaultQuarantine is the [Pool.Quarantine] of a pool that names none: longer than
// routers, name servers and clients usually keep what they knew of an address.
const DefaultQuarantine = 10 * time.Minute

// Is6 reports whether the pool is IPv6.
func (p Pool) Is6() bool {
	switch {
	case p.Prefix.IsValid():
		return p.Prefix.Addr().Is6()
	case len(p.Prefixes) > 0:
		return p.Prefixes[0].Addr().Is6()
	}
	return len(p.Ranges) > 0 && p.Ranges[0].First.Is6()
}

// Has reports whether a is an address of the pool, which it may exclude.
func (p Pool) Has(a netip.Addr) bool {
	return p.Prefix.Contains(a) ||
		slices.ContainsFunc(p.Prefixes, func(q netip.Prefix) bool { return q.Contains(a) }) ||
		slices.ContainsFunc(p.Ranges, func(r AddressRange) bool { return r.Contains(a) })
}

// HasPrefix reports whether x lies inside the pool.
func (p Pool) HasPrefix(x netip.Prefix) bool {
	return slices.ContainsFunc(p.Blocks(), func(b netip.Prefix) bool { return within(x, b) })
}

// Overlaps reports whether the pool has an address of x.
func (p Pool) Overlaps(x netip.Prefix) bool {
	return p.Prefix.Overlaps(x) || slices.ContainsFunc(p.Prefixes, x.Overlaps) || slices.ContainsFunc(p.Ranges, RangeOf(x).Overlaps)
}

// Contains reports whether a guest may have the address a from this pool.
func (p Pool) Contains(a netip.Addr) bool {
	return p.Has(a) && !slices.ContainsFunc(p.Exclude, func(x netip.Prefix) bool { return x.Contains(a) })
}

// Reserved gives the reservation that has the address a, if there is one.
func (p Pool) Reserved(a netip.Addr) (Reservation, bool) {
	i := slices.IndexFunc(p.Reserve, func(r Reservation) bool { return r.Prefix.Contains(a) })
	if i < 0 {
		return Reservation{}, false
	}
	return p.Reserve[i], true
}

// Blocks lists the prefixes that together are the addresses of the pool.
func (p Pool) Blocks() []netip.Prefix {
	var all []netip.Prefix
	if p.Prefix.IsValid() {
		all = append(all, p.Prefix)
	}
	for _, q := range p.Prefixes {
		if q.IsValid() {
			all = append(all, q)
		}
	}
	for _, r := range p.Ranges {
		all = append(all, r.Prefixes()...)
	}
	return all
}

// Extent names the addresses of the pool for people, as the cluster file does.
func (p Pool) Extent() string {
	const most = 4
	var words []string
	for _, part := range p.parts() {
		words = append(words, part.text)
	}
	if more := len(words) - most; more > 1 {
		words = append(words[:most], fmt.Sprintf("%d more", more))
	}
	return strings.Join(words, ", ")
}

// poolPart is a prefix or a range of a pool.
type poolPart struct {
	key       string // in the cluster file: "prefixes[1]"
	text      string
	addresses AddressRange
	flaw      string // why guests cannot have such addresses; empty: they can
}

// parts lists the prefixes and ranges of a pool, also those that are not valid.
func (p Pool) parts() []poolPart {
	var all []poolPart
	prefix := func(key string, q netip.Prefix) {
		part := poolPart{key: key, text: q.String(), flaw: "not a prefix; for example 203.0.113.0/24"}
		if q.IsValid() {
			part.addresses, part.flaw = RangeOf(q), unfit(q)
		}
		all = append(all, part)
	}
	if p.Prefix.IsValid() {
		prefix("prefix", p.Prefix)
	}
	for i, q := range p.Prefixes {
		prefix(fmt.Sprintf("prefixes[%d]", i), q)
	}
	for i, r := range p.Ranges {
		all = append(all, poolPart{fmt.Sprintf("ranges[%d]", i), r.String(), r, r.unfit()})
	}
	return all
}

// Serves reports whether guests of a node get addresses from a pool.
func (c *Cluster) Serves(p Pool, node string) bool {
	if len(p.Nodes)+len(p.NodeLabels) == 0 || slices.Contains(p.Nodes, node) {
		return true
	}
	return slices.ContainsFunc(c.Labels[node], func(label string) bool { return slices.Contains(p.NodeLabels, label) })
}

// NodesOf lists the nodes whose guests get addresses from a pool; nil: all nodes.
func (c *Cluster) NodesOf(p Pool) []string {
	if len(p.Nodes)+len(p.NodeLabels) == 0 {
		return nil
	}
	names := slices.Clone(p.Nodes)
	for _, n := range c.Nodes {
		if !slices.Contains(names, n.Name) && c.Serves(p, n.Name) {
			names = append(names, n.Name)
		}
	}
	return names
}

// AddressRange has all addresses from First to Last, which are of one family.
type AddressRange struct{ First, Last netip.Addr }

// ParseAddressRange reads "203.0.113.10-203.0.113.99".
func ParseAddressRange(s string) (AddressRange, error) {
	from, to, _ := strings.Cut(s, "-")
	first, err := netip.ParseAddr(strings.TrimSpace(from))
	last, err2 := netip.ParseAddr(strings.TrimSpace(to))
	if err != nil || err2 != nil {
		return AddressRange{}, fmt.Errorf("%.90q is not a range of addresses; write one such as 203.0.113.10-203.0.113.99", s)
	}
	return AddressRange{first, last}, nil
}

// RangeOf gives the addresses of a prefix; of none if it is not valid.
func RangeOf(p netip.Prefix) AddressRange {
	if !p.IsValid() {
		return AddressRange{}
	}
	first := p.Masked().Addr()
	b := first.AsSlice()
	for bit := p.Bits(); bit < 8*len(b); bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return AddressRange{first, last}
}

// String gives the form that [ParseAddressRange] reads.
func (r AddressRange) String() string { return r.First.String() + "-" + r.Last.String() }

// Contains reports whether the range has the address a.
func (r AddressRange) Contains(a netip.Addr) bool {
	return a.IsValid() && a.Zone() == "" && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

// Overlaps reports whether the ranges have an address in common.
func (r AddressRange) Overlaps(o AddressRange) bool {
	return r.Contains(o.First) || o.Contains(r.First)
}

// Prefixes lists the prefixes that together are the range, as few as possible.
func (r AddressRange) Prefixes() (ps []netip.Prefix) {
	if r.unlike() != "" {
		return nil
	}
	for first := r.First; ; {
		p := HostPrefix(first)
		for p.Bits() > 0 {
			around, err := first.Prefix(p.Bits() - 1)
			if err != nil || around.Addr() != first || r.Last.Less(RangeOf(around).Last) {
				break
			}
			p = around
		}
		ps = append(ps, p)
		if first = RangeOf(p).Last.Next(); !r.Contains(first) {
			return ps
		}
	}
}

// unlike says why the two addresses are no range; empty: they are.
func (r AddressRange) unlike() string {
	switch {
	case !r.First.IsValid() || !r.Last.IsValid():
		return "not a range of addresses; for example 203.0.113.10-203.0.113.99"
	case misspelt(r.First) != "":
		return misspelt(r.First)
	case misspelt(r.Last) != "":
		return misspelt(r.Last)
	case r.First.Is4() != r.Last.Is4():
		return fmt.Sprintf("%s is from IPv4 to IPv6; give two addresses of one family", r)
	case r.Last.Less(r.First):
		return fmt.Sprintf("%s ends before it begins; write %s-%s", r, r.Last, r.First)
	}
	return ""
}

// unfit says why guests cannot have addresses of the range; empty: they can.
func (r AddressRange) unfit() string {
	if text := r.unlike(); text != "" {
		return text
	}
	for _, p := range r.Prefixes() {
		if what := martian(p); what != "" {
			return fmt.Sprintf("%s holds %s addresses, which no guest can have; name addresses that were given to you", r, what)
		}
	}
	return ""
}
