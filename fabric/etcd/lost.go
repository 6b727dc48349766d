package etcd

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/allocator"
	"github.com/vmfabric/vmfabric/fabric/internal/text"
)

// damage is what a cache knows of keys that cannot be read.
type damage struct {
	flaws map[string]error                   // why, by key
	lost  map[netip.Prefix]fabric.Allocation // what guests had from pools before
	had   []fabric.Allocation                // what this node's guests had before anything was read
}

func newDamage() damage {
	return damage{flaws: map[string]error{}, lost: map[netip.Prefix]fabric.Allocation{}}
}

// loses notes that the record of an address becomes one that cannot be read, and what was
// there before; without an error it can be read, or is gone.
func (c *cache) loses(at netip.Prefix, was fabric.Allocation, err error) {
	if err == nil {
		delete(c.damage.lost, at)
		return
	}
	if i := slices.IndexFunc(c.damage.had, func(a fabric.Allocation) bool { return a.Prefix == at }); i >= 0 && c.known == 0 {
		was = c.damage.had[i]
	}
	if was.State == fabric.Allocated && was.Guest != unreadable && was.Dynamic {
		c.damage.lost[at] = was
	}
}

// checkLost refuses a guest an address from a pool in the place of one that it had, of which
// the record cannot be read: it would start with another address than it is known by.
func (c *cache) checkLost(r fabric.AllocationRequest) error {
	for at, had := range c.damage.lost {
		if had.Guest != r.Guest {
			continue
		}
		has := c.table.Of(r.Guest)
		for _, w := range r.Wants {
			if w.Pool == "" || w.Prefix.IsValid() || !w.Answers(had) || slices.ContainsFunc(has, w.Answers) {
				continue
			}
			holder, _ := c.table.Get(at)
			return &fabric.AllocationError{
				Reason: fabric.AddressHeld, NIC: w.NIC, Pool: had.Pool, Prefix: at, Holder: holder,
				Text: fmt.Sprintf("the guest had %s from pool %s, which may be another guest's by now: %s; it gets another address then, unless it names this one", text.Prefix(at), had.Pool, holder.Flaw),
			}
		}
	}
	return nil
}

// lostOf lists what guests of a node had by records that cannot be read any more.
func (c *cache) lostOf(node string) (had []fabric.Allocation) {
	for _, a := range c.damage.lost {
		if a.Node == node {
			had = append(had, a)
		}
	}
	return allocator.Sort(had)
}
