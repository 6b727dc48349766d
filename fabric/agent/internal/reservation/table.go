// Package reservation records which guest of a node holds which prefixes and port
// names.
//
// While a guest changes, it holds both its old and its new prefixes and port names:
// call [Table.Reserve] with the new set, change ports and routes, then call
// [Table.Keep] with the set that the guest ended up with, old or new. So another
// guest gets an address only after the first guest has released it.
package reservation

import (
	"fmt"
	"net/netip"
	"slices"
)

// Set is a set of prefixes and port names of one guest. Its prefixes may overlap.
type Set struct {
	Prefixes []netip.Prefix // masked
	Ports    []string
}

// Conflict is the error of a request for a prefix or port name that another guest
// holds.
type Conflict struct {
	Holder string
	Port   string       // the port name; empty: the conflict is about a prefix
	Prefix netip.Prefix // the requested prefix
	Held   netip.Prefix // the prefix of Holder: equal to Prefix, around it, or inside it
}

func (c *Conflict) Error() string {
	if c.Port != "" {
		return fmt.Sprintf("port %s is held by %q", c.Port, c.Holder)
	}
	return fmt.Sprintf("%s: %s is held by %q", c.Prefix, c.Held, c.Holder)
}

// Table maps the prefixes and port names of a node to the guests that hold them.
// The cost of a request for single addresses does not grow with the number of
// guests. A request for a larger prefix, which is rare, looks at all prefixes. A
// Table is not safe for concurrent use.
type Table struct {
	prefixes map[netip.Prefix]string
	ports    map[string]string
	guests   map[string]Set // the same by guest, without duplicates
	lengths  map[length]int // number of prefixes of each length, single addresses aside
}

type length struct {
	bits int
	four bool
}

func lengthOf(p netip.Prefix) length { return length{p.Bits(), p.Addr().Is4()} }

// New makes an empty table.
func New() *Table {
	return &Table{map[netip.Prefix]string{}, map[string]string{}, map[string]Set{}, map[length]int{}}
}

// Check reports, as a [*Conflict], the first item of want that another guest holds.
func (t *Table) Check(guest string, want Set) error {
	for _, p := range want.Prefixes {
		if held, holder, taken := t.overlaps(guest, p); taken {
			return &Conflict{Holder: holder, Prefix: p, Held: held}
		}
	}
	for _, port := range want.Ports {
		if holder, taken := t.ports[port]; taken && holder != guest {
			return &Conflict{Holder: holder, Port: port}
		}
	}
	return nil
}

// overlaps finds a prefix of another guest that is equal to p, around p or inside it.
func (t *Table) overlaps(guest string, p netip.Prefix) (held netip.Prefix, holder string, taken bool) {
	if holder, taken := t.prefixes[p]; taken && holder != guest {
		return p, holder, true
	}
	for l := range t.lengths {
		if l.bits >= p.Bits() || l.four != p.Addr().Is4() {
			continue
		}
		around, _ := p.Addr().Prefix(l.bits)
		if holder, taken := t.prefixes[around]; taken && holder != guest {
			return around, holder, true
		}
	}
	if p.IsSingleIP() {
		return held, "", false
	}
	for q, holder := range t.prefixes {
		if holder != guest && p.Overlaps(q) {
			return q, holder, true
		}
	}
	return held, "", false
}

// Reserve adds want to the set that a guest holds. If another guest holds an item
// of want, the error is a [*Conflict] and nothing changes.
func (t *Table) Reserve(guest string, want Set) error {
	if err := t.Check(guest, want); err != nil {
		return err
	}
	has := t.guests[guest]
	for _, p := range want.Prefixes {
		if _, had := t.prefixes[p]; had {
			continue
		}
		t.prefixes[p] = guest
		has.Prefixes = append(has.Prefixes, p)
		if !p.IsSingleIP() {
			t.lengths[lengthOf(p)]++
		}
	}
	for _, port := range want.Ports {
		if _, had := t.ports[port]; !had {
			t.ports[port] = guest
			has.Ports = append(has.Ports, port)
		}
	}
	t.guests[guest] = has
	return nil
}

// Keep ends a change: of the items that the guest holds, it keeps those that are in
// only, and releases the others. The zero Set releases all.
func (t *Table) Keep(guest string, only Set) {
	has := t.guests[guest]
	prefixes, ports := setOf(only.Prefixes), setOf(only.Ports)
	var kept Set
	for _, p := range has.Prefixes {
		if prefixes[p] {
			kept.Prefixes = append(kept.Prefixes, p)
			continue
		}
		delete(t.prefixes, p)
		if p.IsSingleIP() {
			continue
		}
		if l := lengthOf(p); t.lengths[l] > 1 {
			t.lengths[l]--
		} else {
			delete(t.lengths, l)
		}
	}
	for _, port := range has.Ports {
		if ports[port] {
			kept.Ports = append(kept.Ports, port)
		} else {
			delete(t.ports, port)
		}
	}
	if t.guests[guest] = kept; len(kept.Prefixes)+len(kept.Ports) == 0 {
		delete(t.guests, guest)
	}
}

func setOf[T comparable](list []T) map[T]bool {
	set := make(map[T]bool, len(list))
	for _, v := range list {
		set[v] = true
	}
	return set
}

// Held gives the set that a guest holds, in the order of reservation.
func (t *Table) Held(guest string) Set {
	has := t.guests[guest]
	return Set{slices.Clone(has.Prefixes), slices.Clone(has.Ports)}
}

// Holder gives the guest that holds exactly this prefix.
func (t *Table) Holder(p netip.Prefix) (guest string, held bool) {
	guest, held = t.prefixes[p]
	return guest, held
}

// Holders lists, sorted by name, the guests that hold the prefix, one around it or
// one inside it. It costs as much as a request.
func (t *Table) Holders(p netip.Prefix) (guests []string) {
	add := func(holder string, held bool) {
		if held && !slices.Contains(guests, holder) {
			guests = append(guests, holder)
		}
	}
	holder, held := t.prefixes[p]
	add(holder, held)
	for l := range t.lengths {
		if l.bits < p.Bits() && l.four == p.Addr().Is4() {
			around, _ := p.Addr().Prefix(l.bits)
			holder, held := t.prefixes[around]
			add(holder, held)
		}
	}
	if !p.IsSingleIP() {
		for q, holder := range t.prefixes {
			add(holder, p.Overlaps(q))
		}
	}
	slices.Sort(guests)
	return guests
}

// PortHolder gives the guest that holds a port name.
func (t *Table) PortHolder(port string) (guest string, held bool) {
	guest, held = t.ports[port]
	return guest, held
}
