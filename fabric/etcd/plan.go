package etcd

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/allocator"
)

// maxKeys is how many keys one transaction may depend on; etcd takes 128.
const maxKeys = 112

// plan is a decision with what it depends on.
type plan struct {
	keys   keys
	guard  guard
	answer []fabric.Allocation
	owner  fabric.Owner // the answer about an ownership
	change allocator.Change

	known  int64                          // the revision that the decision is of
	revs   map[string]int64               // the revisions of the keys that it depends on; zero: absent
	guests map[fabric.Identity]guestValue // the guests that it changes
	wide   []netip.Prefix                 // new prefixes of several addresses
	// lengths are those of such prefixes that nobody used before.
	lengths map[length]bool
	picks   bool // it takes addresses that the request does not name
}

// guestValue is what the key of a guest has.
type guestValue struct {
	vm    string // its name; empty: it has no addresses, and no key
	owner fabric.Owner
}

// entry gives the value as it is written.
func (g guestValue) entry() entry {
	if g.owner.Epoch == 0 {
		return entry{VM: g.vm}
	}
	return entry{VM: g.vm, Owner: &g.owner}
}

// lifetime gives how long a quarantine lasts, in whole seconds, which leases are in.
func lifetime(a fabric.Allocation) int64 {
	return max(1, int64((a.Until.Sub(a.Since)+time.Second-1)/time.Second))
}

// leases lists the lifetimes of the quarantines that begin.
func (p *plan) leases() []int64 {
	ttls := map[int64]bool{}
	for _, a := range p.change.Put {
		if a.State == fabric.Quarantined {
			ttls[lifetime(a)] = true
		}
	}
	return slices.Sorted(maps.Keys(ttls))
}

// operation is a plan as etcd gets it.
type operation struct {
	id     string // the Write of all values
	names  []string
	about  int  // how many of the reads are about the registry itself
	signs  bool // it puts the key of this node
	ifs    []clientv3.Cmp
	then   []clientv3.Op
	reads  []clientv3.Op
	writes []change // what then writes, without the revision
}

// operation makes the transaction. The leases are by lifetime. Without them, as in an
// etcd that is full and takes nothing new, what would be quarantined is deleted.
func (p *plan) operation(id string, leases map[int64]clientv3.LeaseID, full bool) operation {
	o := operation{id: id, names: slices.Sorted(maps.Keys(p.revs)), ifs: p.guard.ifs(), reads: p.keys.views()}
	o.about = len(o.reads)
	if p.picks { // others are about to record theirs
		o.ifs = append(o.ifs, clientv3.Compare(clientv3.CreateRevision(p.keys.recording()), "=", 0))
	}
	for _, key := range o.names {
		o.ifs = append(o.ifs, clientv3.Compare(clientv3.ModRevision(key), "=", p.revs[key]))
		o.reads = append(o.reads, clientv3.OpGet(key))
	}
	for _, w := range p.wide { // nothing inside has changed, or is new
		first, end := p.keys.inside(w)
		o.ifs = append(o.ifs, clientv3.Compare(clientv3.ModRevision(first), "<", p.known+1).WithRange(end))
	}
	lasts := map[fabric.Identity]int64{} // the quarantines of what a guest gives back
	for _, a := range p.change.Put {
		if a.State == fabric.Quarantined && !full {
			lasts[a.Guest] = max(lasts[a.Guest], lifetime(a))
		}
		switch {
		case a.State != fabric.Quarantined:
			// The guest's key alone has the epoch. One that is here, too, would be that of an
			// earlier owner by the time that an etcd which is full forgets the key.
			a.Epoch = 0
			o.put(p.keys.address(a.Prefix), entry{Allocation: &a})
		case full:
			o.delete(p.keys.address(a.Prefix))
		default:
			o.put(p.keys.address(a.Prefix), entry{Allocation: &a}, clientv3.WithLease(leases[lifetime(a)]))
		}
	}
	for _, at := range p.change.Delete {
		o.delete(p.keys.address(at))
	}
	if !p.change.Empty() || p.owner != (fabric.Owner{}) {
		for _, guest := range slices.Sorted(maps.Keys(p.guests)) {
			switch is, key := p.guests[guest], p.keys.guest(guest); {
			case is.vm != "" && !full:
				o.put(key, is.entry())
			case lasts[guest] > 0:
				// Without the key a node that has not heard of the guest at all would decide
				// as if there was no quarantine of its.
				o.put(key, entry{}, clientv3.WithLease(leases[lasts[guest]]))
			default:
				o.delete(key)
			}
		}
	}
	if len(p.lengths) > 0 {
		o.put(p.keys.prefixes(), entry{})
	}
	for l := range p.lengths {
		o.put(p.keys.length(l), entry{})
	}
	switch {
	case len(o.then) > 0 && p.keys.last() != "" && !full:
		o.signs = true
		o.then = append(o.then, clientv3.OpPut(p.keys.last(), entry{Format: format, Write: id}.encode()))
	case len(o.then) == 0:
		// A transaction that reads nothing is answered by the member that it meets,
		// which may be late.
		o.then = o.reads[:o.about]
	}
	return o
}

func (o *operation) put(key string, e entry, opts ...clientv3.OpOption) {
	e.Format, e.Write = format, o.id
	value := e.encode()
	o.then = append(o.then, clientv3.OpPut(key, value, opts...))
	o.writes = append(o.writes, change{key: key, value: []byte(value)})
}

func (o *operation) delete(key string) {
	o.then = append(o.then, clientv3.OpDelete(key))
	o.writes = append(o.writes, change{key: key, absent: true})
}

// written gives what the transaction wrote at a revision.
func (o *operation) written(rev int64) []change {
	all := slices.Clone(o.writes)
	for i := range all {
		all[i].rev = rev
	}
	return all
}

// read gives what a transaction read whose comparison failed.
func (o *operation) read(r *clientv3.TxnResponse) []change {
	all := make([]change, 0, len(o.names))
	for i, key := range o.names {
		kvs := r.Responses[o.about+i].GetResponseRange().GetKvs()
		if len(kvs) == 0 {
			all = append(all, change{key: key, absent: true, rev: r.Header.Revision})
			continue
		}
		all = append(all, change{key: key, value: kvs[0].Value, rev: kvs[0].ModRevision})
	}
	return all
}

// happened reports whether an earlier try of the transaction, whose answer was lost,
// did what it should: one of its values is there, or all that it deletes is gone.
func (o *operation) happened(read []change) bool {
	is := map[string]change{}
	for _, kv := range read {
		is[kv.key] = kv
	}
	puts, gone := false, len(o.writes) > 0
	for _, w := range o.writes {
		if !w.absent {
			puts = true
			if writeOf(is[w.key].value) == o.id {
				return true
			}
			continue
		}
		gone = gone && is[w.key].absent
	}
	return !puts && gone
}

// narrow reports whether a transaction failed because addresses that were thought to be
// free are taken, or another node acquired the guest, and for no other reason that it
// read. Otherwise more has changed than it read.
func (p *plan) narrow(read []change) bool {
	if p.owner != (fabric.Owner{}) {
		return true
	}
	taken := false
	for _, kv := range read {
		rev := kv.rev
		if kv.absent {
			rev = 0
		}
		if rev == p.revs[kv.key] {
			continue
		}
		if _, err := p.keys.prefixOf(kv.key); err != nil {
			return false
		}
		taken = true
	}
	return taken || len(p.wide) == 0
}
