package allocator

import (
	"cmp"
	"encoding/json"
	"iter"
	"math"
	"math/big"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

const (
	// probes is how many random units are tried before a pool is searched through.
	probes = 64
	// searchable is how many bits number the units of the largest pool that is searched
	// through. A larger one is sparse.
	searchable = 24
)

// space is what a pool has to give: units, which are single addresses or prefixes.
type space struct {
	blocks []netip.Prefix
	bits   int // the length of a unit
}

func spaceOf(pool fabric.Pool) space {
	s := space{pool.Blocks(), pool.PerGuest}
	if s.bits == 0 {
		s.bits = map[bool]int{false: 32, true: 128}[pool.Is6()]
	}
	return s
}

// unit gives the unit that p is in, or p if it has several.
func (s space) unit(p netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(p.Addr(), min(s.bits, p.Bits())).Masked()
}

// weight is how many units a block has.
func (s space) weight(block netip.Prefix) float64 { return math.Ldexp(1, s.bits-block.Bits()) }

// choose gives a free unit. It tries some at random, and then searches a space that is
// not too large, in each block from a random unit on.
func (s space) choose(rnd *rand.Rand, free func(netip.Prefix) bool) (netip.Prefix, bool) {
	total := 0.0
	for _, b := range s.blocks {
		total += s.weight(b)
	}
	block := func() int {
		at := rnd.Float64() * total
		for i, b := range s.blocks {
			if at -= s.weight(b); at < 0 {
				return i
			}
		}
		return len(s.blocks) - 1
	}
	for range probes {
		if p := s.random(s.blocks[block()], rnd); free(p) {
			return p, true
		}
	}
	if total > math.Ldexp(1, searchable) {
		return netip.Prefix{}, false
	}
	first := block()
	for i := range s.blocks {
		if p, found := s.search(s.blocks[(first+i)%len(s.blocks)], rnd, free); found {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// search tries all units of a block.
func (s space) search(block netip.Prefix, rnd *rand.Rand, free func(netip.Prefix) bool) (netip.Prefix, bool) {
	start := s.random(block, rnd)
	for p := start; ; {
		if free(p) {
			return p, true
		}
		next := fabric.RangeOf(p).Last.Next()
		if !block.Contains(next) {
			next = block.Masked().Addr()
		}
		if p = netip.PrefixFrom(next, s.bits); p == start {
			return netip.Prefix{}, false
		}
	}
}

// random gives a random unit of a block.
func (s space) random(block netip.Prefix, rnd *rand.Rand) netip.Prefix {
	b := block.Masked().Addr().AsSlice()
	for bit := block.Bits(); bit < s.bits; bit++ {
		if rnd.Uint32()&1 == 1 {
			b[bit/8] |= 0x80 >> (bit % 8)
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, s.bits)
}

// parts has the prefixes of a pool's guests of which only parts are allocated, such as
// an address that a guest names, with these parts.
type parts struct {
	space
	pool  fabric.Pool
	units map[netip.Prefix]map[netip.Prefix]bool
}

func (of *parts) add(p netip.Prefix) {
	if p.Bits() <= of.bits || !of.pool.Has(p.Addr()) {
		return
	}
	unit := of.unit(p)
	if of.units[unit] == nil {
		of.units[unit] = map[netip.Prefix]bool{}
	}
	of.units[unit][p] = true
}

func (of *parts) remove(p netip.Prefix) {
	unit := of.unit(p)
	if delete(of.units[unit], p); len(of.units[unit]) == 0 {
		delete(of.units, unit)
	}
}

// partly reports whether a part of a prefix of a pool is allocated. The first call for a
// pool looks through all allocations.
func (t *Table) partly(pool fabric.Pool, p netip.Prefix, now time.Time) bool {
	of := t.parts[pool.Name]
	if of == nil {
		of = &parts{spaceOf(pool), pool, map[netip.Prefix]map[netip.Prefix]bool{}}
		for a := range t.rows.values() {
			of.add(a.Prefix)
		}
		if t.parts == nil {
			t.parts = map[string]*parts{}
		}
		t.parts[pool.Name] = of
	}
	for part := range of.units[p] {
		if a, _ := t.rows.get(part); !t.over(a, now) {
			return true
		}
	}
	return false
}

// Usage counts the addresses of a pool, or the prefixes if it gives these. all are the
// allocations of a registry.
func Usage(c *fabric.Cluster, pool fabric.Pool, all iter.Seq[fabric.Allocation], now time.Time) fabric.PoolUsage {
	s := spaceOf(pool)
	u := fabric.PoolUsage{Pool: pool.Name, Prefix: pool.Prefix, Prefixes: s.blocks, Extent: pool.Extent(), PerGuest: pool.PerGuest, NoAddress: pool.NoAddress, Nodes: c.NodesOf(pool)}
	size, free, held := new(big.Int), new(big.Int), new(big.Int)
	for _, b := range s.blocks {
		size.Add(size, s.count(b))
	}
	excluded := s.disjoint(pool.Exclude)
	for _, x := range excluded {
		size.Sub(size, s.count(x))
	}
	var static []netip.Prefix
	for _, r := range pool.Reserve {
		if p := s.unit(r.Prefix); !slices.ContainsFunc(excluded, p.Overlaps) {
			static = append(static, p)
		}
	}
	static = s.disjoint(static)
	for _, r := range static {
		held.Add(held, s.count(r))
	}
	free.Sub(size, held)
	counted := map[netip.Prefix]bool{} // the units that several allocations may be in
	for a := range all {
		if !pool.Overlaps(a.Prefix) || over(a, now) {
			continue
		}
		n := s.count(s.unit(a.Prefix))
		if a.Prefix.Bits() > s.bits {
			if counted[s.unit(a.Prefix)] {
				n = new(big.Int)
			}
			counted[s.unit(a.Prefix)] = true
		}
		reserved := slices.ContainsFunc(static, a.Prefix.Overlaps)
		switch {
		case a.State == fabric.Allocated:
			if u.Allocated++; reserved {
				held.Sub(held, n)
				continue
			}
		case reserved: // counted already
			continue
		case a.State == fabric.Reserved:
			held.Add(held, n)
		default:
			u.Quarantined++
			if u.NextFree.IsZero() || a.Until.Before(u.NextFree) {
				u.NextFree = a.Until
			}
		}
		free.Sub(free, n)
	}
	if free.Sign() < 0 {
		free.SetInt64(0)
	}
	u.Size, u.Reserved, u.Free = json.Number(size.String()), json.Number(held.String()), json.Number(free.String())
	return u
}

// count gives how many units p has: one if it is a part of one.
func (s space) count(p netip.Prefix) *big.Int {
	return new(big.Int).Lsh(big.NewInt(1), uint(max(0, s.bits-p.Bits())))
}

// disjoint lists the units that have a part of the prefixes, or the prefixes of several
// units, without those that lie inside of others.
func (s space) disjoint(ps []netip.Prefix) (kept []netip.Prefix) {
	ps = slices.Clone(ps)
	slices.SortFunc(ps, func(a, b netip.Prefix) int { return cmp.Compare(a.Bits(), b.Bits()) })
	for _, p := range ps {
		if p = s.unit(p); !slices.ContainsFunc(kept, p.Overlaps) {
			kept = append(kept, p)
		}
	}
	return kept
}
