package kernel

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/ledger"
)

// accountingTable is the name of the tables that count, of the families ip and ip6: a
// table of each family need not ask of which one a packet is. They are apart from the
// filter's, so that no change of these begins the counters anew.
const accountingTable = "vmfabric-accounting"

// accountingPriority is that of the chain that counts: after those of firewalls, so that
// it counts what leaves the node.
const accountingPriority nftables.ChainPriority = 250

// counterTable is the table of one family. A forwarded packet from a port pays for one
// look at the first octets of its destination, and one hash look-up of its source, which
// counts it. Only a destination that begins like one of the cluster's is looked up in
// ranges. Packets to ports likewise. A guest more is an element more, of which the
// packets of others know nothing. Packets between a guest and the node itself are not
// forwarded, and not counted.
type counterTable struct {
	*ruleset
	family family
}

// counterNames are the sets of a table, in the order of [ledger.Counter].
var counterNames = [...]string{"sent_internal", "sent_external", "received_internal", "received_external"}

func newCounterTable(f family, internal []netip.Prefix) *counterTable {
	of := nftables.TableFamilyIPv4
	if f.proto == ipv6.proto {
		of = nftables.TableFamilyIPv6
	}
	r := newRuleset(of)
	r.table.Name = accountingTable
	t := &counterTable{r, f}
	r.base("forward", nftables.ChainHookForward, nftables.ChainPriorityRef(accountingPriority))
	r.set(nftables.Set{Name: "internal" + f.digit, KeyType: f.address, Interval: true}, intervals(f.of(internal))...)
	r.set(nftables.Set{Name: "near" + f.digit, KeyType: octets[f.first]}, f.starts(f.of(internal))...)
	for _, name := range counterNames {
		r.set(nftables.Set{Name: name, KeyType: f.address, Counter: true})
		r.set(nftables.Set{Name: routedName(name), KeyType: f.address, Counter: true, Interval: true})
	}
	t.count("from", expr.MetaKeyIIFGROUP, expr.MetaKeyOIFGROUP, f.src, f.dst, "sent")
	t.count("to", expr.MetaKeyOIFGROUP, expr.MetaKeyIIFGROUP, f.dst, f.src, "received")
	r.finish()
	return t
}

func routedName(counter string) string { return counter + "_routed" }

// count adds the rules that count packets by the guest's address and the other one, which
// are at these offsets; port and beyond are the groups of the links at those ends. Most
// packets end at the first rule: nothing is behind a port at the other end, and its
// address begins like none of the cluster's.
func (t *counterTable) count(chain string, port, beyond expr.MetaKey, guest, other uint32, verb string) {
	f := t.family
	by := func(set string) []expr.Any { return f.in(guest, set, false) }
	t.add("forward", groupIs(port), not(groupIs(beyond)), f.near(other, true), not(marked(trialMark)), by(verb+"_external"), accept())
	t.add("forward", groupIs(port), not(marked(trialMark)), jump(chain))
	t.add(chain, f.in(other, "internal"+f.digit, false), goTo(chain+"_internal"))
	t.add(chain, goTo(chain+"_external"))
	for _, scope := range []string{"_internal", "_external"} {
		t.add(chain+scope, by(verb+scope), leave())
		t.add(chain+scope, by(routedName(verb+scope)))
	}
}

// not inverts a match that ends with a comparison.
func not(match []expr.Any) []expr.Any {
	match[len(match)-1].(*expr.Cmp).Op = expr.CmpOpNeq
	return match
}

// sets lists the sets that count, in the order of [ledger.Counter]: of addresses, or of
// prefixes behind guests.
func (t *counterTable) sets(routed bool) (all []*nftables.Set) {
	for _, name := range counterNames {
		if routed {
			name = routedName(name)
		}
		i := slices.IndexFunc(t.ruleset.sets, func(s *nftables.Set) bool { return s.Name == name })
		all = append(all, t.ruleset.sets[i])
	}
	return all
}

// elementsOf returns the elements of addresses, or of prefixes behind guests, of the
// table's family.
func (t *counterTable) elementsOf(prefixes []netip.Prefix, routed bool) (elements []nftables.SetElement) {
	for _, p := range prefixes {
		if p.Addr().Is4() != (t.family.size == 4) || p.IsSingleIP() == routed {
			continue
		}
		if !routed {
			elements = append(elements, nftables.SetElement{Key: p.Addr().AsSlice()})
			continue
		}
		elements = append(elements, intervals([]span{spanOf(p, nil)})...)
	}
	return elements
}

// read adds the counters of the table to all.
func (t *counterTable) read(d *setDump, all map[netip.Prefix]ledger.Counts) error {
	add := func(i int, p netip.Prefix, e counted) {
		counts := all[p]
		counts[i] = e.count
		all[p] = counts
	}
	for i, s := range t.sets(false) {
		if err := d.elements(s, func(e counted) { add(i, fabric.HostPrefix(e.address), e) }); err != nil {
			return fmt.Errorf("read counters: %w", err)
		}
	}
	for i, s := range t.sets(true) {
		var ends []counted
		if err := d.elements(s, func(e counted) { ends = append(ends, e) }); err != nil {
			return fmt.Errorf("read counters: %w", err)
		}
		eachRange(ends, func(p netip.Prefix, e counted) { add(i, p, e) })
	}
	return nil
}

// eachRange calls each for the prefixes of a set of ranges, whose elements are the first
// addresses of ranges and the first ones after them.
func eachRange(ends []counted, each func(netip.Prefix, counted)) {
	slices.SortFunc(ends, func(a, b counted) int {
		switch order := a.address.Compare(b.address); {
		case order != 0 || a.end == b.end:
			return order
		case a.end:
			return -1
		}
		return 1
	})
	for i, e := range ends {
		if e.end {
			continue
		}
		var after netip.Addr // none: the range goes up to the last address of all
		if i+1 < len(ends) {
			after = ends[i+1].address
		}
		for bits := range e.address.BitLen() + 1 {
			if p := netip.PrefixFrom(e.address, bits); p.Masked() == p && spanOf(p, nil).last.Next() == after {
				each(p, e)
				break
			}
		}
	}
}
