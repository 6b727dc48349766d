package kernel

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
)

// Rules that drop a packet send it to a chain of the reason, whose first rule counts it
// in the set droppedSet, by the port's link and the reason, and whose second one drops
// it, also if the set is full. A packet that passes meets none of that. A port that is
// made anew is another link, and begins at zero.
const (
	droppedSet = "dropped"
	// countedFor is how long the kernel keeps a count after the last drop, which the
	// rest of that time tells. Kernels before 5.x take no more milliseconds than 31 bits.
	countedFor = 20 * 24 * time.Hour
	// sampleDrops is how often the counts are read, so that they survive a flush of the
	// tables.
	sampleDrops = 10 * time.Second
)

// counted adds the set of counts to a table.
func (r *ruleset) counted() { r.dynamic(droppedSet, nftables.TypeIFIndex, nftables.TypeMark) }

// droppedChain names the chain that drops packets for a reason. out: the port is where
// they would leave.
func droppedChain(reason fabric.DropReason, out bool) string {
	if out {
		return "drop_to_" + string(reason)
	}
	return "drop_" + string(reason)
}

// drop drops a packet that came in by a port, dropTo one that would leave by one.
func (r *ruleset) drop(reason fabric.DropReason) []expr.Any { return r.dropBy(reason, incoming, false) }

func (r *ruleset) dropTo(reason fabric.DropReason) []expr.Any {
	return r.dropBy(reason, outgoing, true)
}

func (r *ruleset) dropBy(reason fabric.DropReason, port func(uint32) (expr.Any, uint32), out bool) []expr.Any {
	chain := droppedChain(reason, out)
	if len(r.rules[chain]) == 0 {
		number := uint32(slices.Index(fabric.DropReasons(), reason) + 1)
		r.add(chain, key(port, constant(number)), []expr.Any{&expr.Dynset{
			SrcRegKey: firstWord, SetName: droppedSet, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: countedFor,
			Exprs: []expr.Any{&expr.Counter{}},
		}})
		r.add(chain, discard())
	}
	return goTo(chain)
}

// constant is a part of a set's key that is the same for all packets.
func constant(n uint32) func(uint32) (expr.Any, uint32) {
	return func(register uint32) (expr.Any, uint32) {
		return &expr.Immediate{Register: register, Data: binaryutil.NativeEndian.PutUint32(n)}, 4
	}
}

func outgoing(register uint32) (expr.Any, uint32) {
	return &expr.Meta{Key: expr.MetaKeyOIF, Register: register}, 4
}

// dropKey is what a count is of.
type dropKey struct {
	table  nftables.TableFamily
	index  int32
	reason uint32 // its number, from 1
}

// dropCounts are the counts of all links. They go on when the kernel's begin anew.
type dropCounts struct {
	seen, before map[dropKey]fabric.Drops // as the kernel has them, and of elements that it has no more
}

// take takes the counts of a table, as the kernel has them.
func (d *dropCounts) take(table nftables.TableFamily, is map[dropKey]fabric.Drops) {
	if d.seen == nil {
		d.seen, d.before = map[dropKey]fabric.Drops{}, map[dropKey]fabric.Drops{}
	}
	for k, was := range d.seen {
		if k.table == table && is[k].Packets < was.Packets {
			d.before[k] = sum(d.before[k], was)
			delete(d.seen, k)
		}
	}
	maps.Copy(d.seen, is)
}

func sum(a, b fabric.Drops) fabric.Drops {
	b.Packets, b.Bytes = a.Packets+b.Packets, a.Bytes+b.Bytes
	if a.Last.After(b.Last) {
		b.Last = a.Last
	}
	return b
}

// retain forgets the links that are gone, and lists the elements that the kernel still
// has of them in a table.
func (d *dropCounts) retain(table nftables.TableFamily, exists func(index int32) bool) (gone []nftables.SetElement) {
	for k := range d.seen {
		if k.table == table && !exists(k.index) {
			gone = append(gone, nftables.SetElement{Key: slices.Concat(binaryutil.NativeEndian.PutUint32(uint32(k.index)), binaryutil.NativeEndian.PutUint32(k.reason))})
			delete(d.seen, k)
		}
	}
	maps.DeleteFunc(d.before, func(k dropKey, _ fabric.Drops) bool { return !exists(k.index) })
	return gone
}

// byLink lists the counts of each link, in the order of [fabric.DropReasons].
func (d *dropCounts) byLink() map[int32][]fabric.Drops {
	reasons := fabric.DropReasons()
	sums := map[int32]map[uint32]fabric.Drops{}
	for _, counts := range []map[dropKey]fabric.Drops{d.seen, d.before} {
		for k, c := range counts {
			if sums[k.index] == nil {
				sums[k.index] = map[uint32]fabric.Drops{}
			}
			sums[k.index][k.reason] = sum(sums[k.index][k.reason], c)
		}
	}
	all := map[int32][]fabric.Drops{}
	for index, counts := range sums {
		for _, n := range slices.Sorted(maps.Keys(counts)) {
			if c := counts[n]; n >= 1 && int(n) <= len(reasons) && c.Packets > 0 {
				c.Reason = reasons[n-1]
				all[index] = append(all[index], c)
			}
		}
	}
	return all
}

// readDrops reads what the tables have counted. A table that cannot be read keeps what
// was read of it before.
func (f *filter) readDrops(c *nftables.Conn) {
	for _, r := range []*ruleset{f.ports, f.neighbour} {
		elements, err := c.GetSetElements(&nftables.Set{Table: r.table, Name: droppedSet})
		if err != nil {
			continue
		}
		now, is := time.Now(), map[dropKey]fabric.Drops{}
		for _, e := range elements {
			if len(e.Key) != 8 || e.Counter == nil {
				continue
			}
			k := dropKey{r.table.Family, int32(nativeUint32(e.Key)), nativeUint32(e.Key[4:])}
			is[k] = fabric.Drops{Packets: e.Counter.Packets, Bytes: e.Counter.Bytes, Last: now.Add(e.Expires - countedFor)}
		}
		f.dropped.take(r.table.Family, is)
	}
}

// drops returns what the tables have counted, by link. It has the kernel forget links
// that do not exist.
func (f *filter) drops(exists func(index int32) bool) (map[int32][]fabric.Drops, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := openTables(nftables.AsLasting())
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.CloseLasting() }()
	f.readDrops(c)
	for _, r := range []*ruleset{f.ports, f.neighbour} {
		if gone := f.dropped.retain(r.table.Family, exists); len(gone) > 0 {
			if err := c.SetDeleteElements(&nftables.Set{Table: r.table, Name: droppedSet}, gone); err == nil {
				_ = c.Flush() // an element that has expired meanwhile: the next call sees the others again
			}
		}
	}
	return f.dropped.byLink(), nil
}

// Drops implements [fabric.Dataplane].
func (d *Dataplane) Drops(ctx context.Context) (map[string][]fabric.Drops, error) {
	if err := d.watch.feed.CatchUp(ctx); err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	byLink, err := d.host.filter.drops(d.watch.cache.isPort)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	all := map[string][]fabric.Drops{}
	for index, counts := range byLink {
		if name, is := d.watch.cache.nameOf(index); is {
			all[name] = counts
		}
	}
	return all, nil
}
