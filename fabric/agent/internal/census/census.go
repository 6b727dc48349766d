// Package census compares what the guests of a cluster have with what its registry
// knows, and decides what the registry is to record. It is pure.
package census

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/text"
)

// Guest is a guest of a node, and what it has.
type Guest struct {
	Node  string
	Entry fabric.GuestEntry
	Wants []fabric.Want // each with its Prefix
}

func (g Guest) identity() fabric.Identity { return g.Entry.VM.Identity() }

func (g Guest) live() bool { return slices.Contains(g.Entry.States, fabric.Live) }

// Plan is what the registry is to record.
type Plan struct {
	Requests []fabric.AllocationRequest
	Entries  []fabric.ImportEntry
	Of       []int // the request that the entry is of; negative: none
	Guests   int
	Known    int // addresses that the registry has already
}

// census is a plan in the making.
type census struct {
	cluster  *fabric.Cluster
	complete bool // all nodes told their guests
	has      *index[fabric.Allocation]
	users    *index[Guest]
}

// Decide compares the guests with the allocations. complete says that the guests are
// those of all nodes.
func Decide(c *fabric.Cluster, guests []Guest, allocations []fabric.Allocation, complete bool) (p Plan) {
	guests = once(guests)
	var has []item[fabric.Allocation]
	for _, a := range allocations {
		has = append(has, item[fabric.Allocation]{a.Prefix, a})
	}
	var users []item[Guest]
	for _, g := range guests {
		for _, w := range g.Wants {
			users = append(users, item[Guest]{w.Prefix, g})
		}
	}
	is := census{cluster: c, complete: complete, has: newIndex(has), users: newIndex(users)}
	p.Guests = len(guests)
	for _, g := range guests {
		is.add(&p, g)
	}
	return p
}

// once lists each guest once, in the order of nodes and names: a guest that moves is on
// two nodes, and counts where it runs.
func once(guests []Guest) []Guest {
	guests = slices.Clone(guests)
	slices.SortStableFunc(guests, func(x, y Guest) int {
		return cmp.Or(rank(y.live())-rank(x.live()), cmp.Compare(x.Node, y.Node), cmp.Compare(x.Entry.VM.Name, y.Entry.VM.Name))
	})
	seen := map[fabric.Identity]bool{}
	guests = slices.DeleteFunc(guests, func(g Guest) bool {
		again := seen[g.identity()] && !g.Entry.Orphan
		seen[g.identity()] = true
		return again
	})
	slices.SortStableFunc(guests, func(x, y Guest) int {
		return cmp.Or(cmp.Compare(x.Node, y.Node), cmp.Compare(x.Entry.VM.Name, y.Entry.VM.Name))
	})
	return guests
}

func rank(b bool) int {
	if b {
		return 1
	}
	return 0
}

// add decides what is to be recorded of a guest: all of it, or nothing.
func (c *census) add(p *Plan, g Guest) {
	var entries []fabric.ImportEntry
	bad := false
	for _, w := range g.Wants {
		e := fabric.ImportEntry{Node: g.Node, VM: g.Entry.VM.Name, Guest: g.identity(), NIC: w.NIC, Prefix: w.Prefix, Outcome: fabric.ToRecord}
		known, conflict := false, c.conflict(g, w)
		switch {
		case conflict != "":
			e.Outcome, e.Text, bad = fabric.Conflict, conflict, true
		default:
			known, e.Text = c.known(g, w)
		}
		if known {
			p.Known++
			continue
		}
		entries = append(entries, e)
	}
	of := -1
	switch {
	case bad:
		for i := range entries {
			if entries[i].Outcome == fabric.ToRecord {
				entries[i].Outcome = fabric.HeldBack
				entries[i].Text = "not recorded while another address of the guest is in conflict"
			}
		}
	case len(entries) > 0:
		of = len(p.Requests)
		p.Requests = append(p.Requests, fabric.AllocationRequest{Guest: g.identity(), VM: g.Entry.VM.Name, Node: g.Node, Wants: g.Wants})
	}
	for range entries {
		p.Of = append(p.Of, of)
	}
	p.Entries = append(p.Entries, entries...)
}

// conflict says why an address of a guest cannot be recorded as the guest's; empty: it
// can.
func (c *census) conflict(g Guest, w fabric.Want) string {
	if g.Entry.Orphan {
		return "its agent lost what it knew of the guest, so that it is not known which guest that is; attach it anew, or start it anew"
	}
	for _, other := range c.users.overlapping(w.Prefix) {
		if other.identity() != g.identity() {
			return fmt.Sprintf("guest %s (%s) on %s has it too; stop one of the two, or give it another address", other.Entry.VM.Name, other.identity(), other.Node)
		}
	}
	if why := c.permits(g, w); why != "" {
		return why
	}
	all := c.has.overlapping(w.Prefix)
	mine := func(a fabric.Allocation) bool { return a.State == fabric.Allocated && a.Guest == g.identity() }
	if pool, in := c.cluster.PoolOf(w.Prefix.Addr()); in {
		if r, reserved := pool.Reserved(w.Prefix.Addr()); reserved && !slices.ContainsFunc(all, mine) {
			return fmt.Sprintf("the cluster file reserves it in pool %s%s; if it is reserved for this guest, leave it: the agent of the guest's node records it", pool.Name, note(r.Note))
		}
	}
	for _, a := range all {
		switch {
		case a.Prefix == w.Prefix:
			if why := c.heldBy(g, a); why != "" {
				return why
			}
		case a.Guest != g.identity():
			return fmt.Sprintf("it has addresses in common with %s, which is %s%s; give the guest another address", text.Prefix(a.Prefix), stateOf(a), note(a.Note))
		}
	}
	return ""
}

// permits says why no guest may have an address, or a prefix that is routed to a guest;
// empty: a guest may.
func (c *census) permits(g Guest, w fabric.Want) string {
	var one fabric.NIC
	if a := w.Prefix.Addr(); w.Prefix.IsSingleIP() && slices.Contains(g.Entry.VM.NICs[w.NIC].Addresses, a) {
		one.Addresses = []netip.Addr{a}
	} else {
		one.Routes = []netip.Prefix{w.Prefix}
	}
	err := c.cluster.Permits(fabric.VM{NICs: []fabric.NIC{one}})
	if err == nil {
		return ""
	}
	return cmp.Or(errors.Unwrap(err), err).Error()
}

// heldBy says why an address that the registry has is not the guest's; empty: it is, or
// can be.
func (c *census) heldBy(g Guest, held fabric.Allocation) string {
	switch {
	case held.Flaw != "":
		return held.Flaw
	case held.Guest == g.identity() && held.State != fabric.Reserved: // also one that it gave back
		return ""
	case held.State == fabric.Reserved:
		return fmt.Sprintf("it is reserved%s; end the reservation if it is meant for this guest, or give the guest another address", note(held.Note))
	case held.State == fabric.Quarantined:
		return fmt.Sprintf("guest %s (%s) gave it back, and it rests until %s; wait, or give the guest another address", held.VM, held.Guest, held.Until.Format(time.DateTime))
	case held.Dynamic:
		return fmt.Sprintf("pool %s gave it to guest %s (%s) on %s, which keeps it while it is stopped; release it, or give one of the two another address", held.Pool, held.VM, held.Guest, held.Node)
	case !c.complete:
		return fmt.Sprintf("guest %s (%s) on %s named it, and may run on a node that does not answer; ask again when all nodes do", held.VM, held.Guest, held.Node)
	}
	return ""
}

func stateOf(a fabric.Allocation) string {
	if a.Flaw != "" {
		return "of nobody knows whom (" + a.Flaw + ")"
	}
	if a.State == fabric.Allocated {
		return fmt.Sprintf("that of guest %s (%s)", a.VM, a.Guest)
	}
	return string(a.State)
}

// known reports whether the registry has an address as the guest has it. Otherwise the
// text says what changes, if anything is there. An address in a prefix that the guest has,
// too, is not recorded for itself.
func (c *census) known(g Guest, w fabric.Want) (bool, string) {
	held := c.has.exact[w.Prefix]
	if len(held) == 0 {
		return slices.ContainsFunc(c.has.overlapping(w.Prefix), func(a fabric.Allocation) bool {
			return a.State == fabric.Allocated && a.Guest == g.identity() && a.Prefix.Bits() < w.Prefix.Bits()
		}), ""
	}
	switch a := held[0]; {
	case a.Guest != g.identity():
		return false, fmt.Sprintf("taken over from guest %s (%s), which named it and runs nowhere", a.VM, a.Guest)
	case a.State == fabric.Quarantined:
		return false, "taken out of its quarantine, which is this guest's"
	case a.VM != g.Entry.VM.Name:
		return false, fmt.Sprintf("the registry has the guest as %s", a.VM)
	default:
		return w.Answers(a), ""
	}
}

func note(n string) string {
	if n == "" {
		return ""
	}
	return " (" + n + ")"
}
