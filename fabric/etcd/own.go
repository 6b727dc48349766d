package etcd

import (
	"fmt"
	"slices"
	"sync"

	"github.com/vmfabric/vmfabric/fabric"
)

// own is what the guests of this node have, over the restarts of its agent: while etcd is
// away they can stop and start, also after one. It is safe for concurrent use.
type own struct {
	memory Memory // nil: none

	mu   sync.Mutex
	has  []fabric.Allocation
	flaw error // why it is not known, or not kept
}

// WithOwn lets a node know after its agent's restart what its guests had, while etcd does
// not answer: m keeps it.
func WithOwn(m Memory) Option { return func(r *Registry) { r.own.memory = m } }

// recall reads what was kept.
func (o *own) recall() {
	if o.memory == nil {
		return
	}
	if _, err := o.memory.Get(&o.has); err != nil {
		o.has, o.flaw = nil, fmt.Errorf("what the guests of this node have is not known until etcd answers: %w", err)
	}
}

// keep keeps what the guests of this node have, if it has changed.
func (o *own) keep(c *cache) {
	if o.memory == nil {
		return
	}
	has, changed := c.ownChanged()
	if !changed {
		return
	}
	o.set(func([]fabric.Allocation) []fabric.Allocation { return has })
}

// set changes what is kept.
func (o *own) set(next func(has []fabric.Allocation) []fabric.Allocation) {
	o.mu.Lock()
	defer o.mu.Unlock()
	has := next(o.has)
	if slices.Equal(has, o.has) && o.flaw == nil {
		return
	}
	o.has, o.flaw = has, nil
	if err := o.memory.Put(has); err != nil {
		o.flaw = fmt.Errorf("what the guests of this node have is not kept, so that they cannot start after the agent's next start while etcd does not answer: %w", err)
	}
}

// note keeps what a guest runs with here that could not be recorded: it can have come from
// another node since etcd answered last.
func (o *own) note(a fabric.AllocationRequest) {
	if o.memory == nil || a.Guest == "" || slices.ContainsFunc(a.Wants, func(w fabric.Want) bool { return !w.Prefix.IsValid() }) {
		return
	}
	var runs []fabric.Allocation
	for _, w := range a.Wants {
		runs = append(runs, fabric.Allocation{
			Prefix: w.Prefix, Pool: w.Pool, State: fabric.Allocated, Guest: a.Guest, VM: a.VM, NIC: w.NIC, N: w.N, Dynamic: w.Pool != "", NoAddress: w.NoAddress, Node: a.Node,
		})
	}
	same := func(is, was fabric.Allocation) bool {
		return is.Prefix == was.Prefix && is.NIC == was.NIC && is.N == was.N
	}
	o.set(func(all []fabric.Allocation) []fabric.Allocation {
		var had, others []fabric.Allocation
		for _, is := range all {
			if is.Guest == a.Guest {
				had = append(had, is)
			} else {
				others = append(others, is)
			}
		}
		if len(had) == len(runs) && !slices.ContainsFunc(runs, func(is fabric.Allocation) bool {
			return !slices.ContainsFunc(had, func(was fabric.Allocation) bool { return same(is, was) })
		}) {
			return all
		}
		return append(others, runs...)
	})
}

// list lists what a filter selects.
func (o *own) list(f fabric.AllocationFilter) []fabric.Allocation {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(o.has), func(a fabric.Allocation) bool { return !f.Selects(a) })
}

// problems says what is wrong with it.
func (o *own) problems() (texts []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.flaw != nil {
		texts = append(texts, o.flaw.Error())
	}
	return texts
}

// ownChanged lists the allocations of the guests of this node, if there may be a change
// since it was called last. Before anything was read there is none.
func (c *cache) ownChanged() (has []fabric.Allocation, changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.changed || c.known == 0 {
		return nil, false
	}
	c.changed = false
	has = slices.DeleteFunc(c.table.List(fabric.AllocationFilter{}), func(a fabric.Allocation) bool {
		return a.State != fabric.Allocated || a.Node != c.keys.node
	})
	return append(has, c.lostOf(c.keys.node)...), true
}

// changes notes that something of a node changes.
func (c *cache) changes(node string) { c.changed = c.changed || node == c.keys.node }
