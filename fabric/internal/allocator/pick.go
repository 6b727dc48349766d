package allocator

import (
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"math/big"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

const (
	// probes is how many random addresses are tried before a pool is searched through.
	probes = 64
	// searchable is the number of host bits of the largest pool that is searched
	// through. A larger one is sparse.
	searchable = 24
)

// pick chooses an address of a pool for a want. Any free address of the pool is
// equally likely: so an IPv6 guest is hard to find by a scan, several nodes that
// choose at one time seldom choose the same, and an address that became free is not
// the next one that is given.
func (d *decision) pick(a *fabric.Allocation, w fabric.Want) *fabric.AllocationError {
	pool, bad := d.pool(w)
	if bad != nil {
		return bad
	}
	a.Pool = pool.Name
	free := func(addr netip.Addr) bool {
		p := fabric.HostPrefix(addr)
		if !pool.Contains(addr) || anycast(pool, addr) || d.taken[p] {
			return false
		}
		if _, reserved := pool.Reserved(addr); reserved {
			return false
		}
		_, taken := d.table.overlapping(p, d.now)
		return !taken
	}
	addr, found := choose(pool.Prefix, d.rnd, free)
	if !found {
		u := Usage(pool, maps.Values(d.table.all), d.now)
		return &fabric.AllocationError{Reason: fabric.PoolFull, Pool: pool.Name, Text: fullText(u, d.now)}
	}
	a.Prefix = fabric.HostPrefix(addr)
	return nil
}

// pool gives the pool of a want: with AutoPool the first one of the family that may
// give an address.
func (d *decision) pool(w fabric.Want) (fabric.Pool, *fabric.AllocationError) {
	bad := &fabric.AllocationError{Reason: fabric.PoolUnknown, Pool: w.Pool}
	for _, p := range d.cluster.Pools {
		if w.Pool == fabric.AutoPool && p.Prefix.Addr().Is6() != w.V6 || w.Pool != fabric.AutoPool && w.Pool != p.Name {
			continue
		}
		if !p.Serves(d.asking.Node) {
			bad.Text = cmp.Or(bad.Text, fmt.Sprintf("pool %s does not serve node %s; write the node under its nodes, or take another pool", p.Name, d.asking.Node))
			continue
		}
		if err := d.mayGive(p); err != nil {
			if bad.Reason != fabric.RegistryNone {
				bad.Reason, bad.Text = fabric.RegistryNone, err.Error()
			}
			continue
		}
		return p, nil
	}
	switch {
	case bad.Text != "":
	case w.Pool == fabric.AutoPool:
		bad.Text = fmt.Sprintf("cluster %s has no %s pool; add one", d.cluster.Name, map[bool]string{false: "IPv4", true: "IPv6"}[w.V6])
	default:
		bad.Text = fmt.Sprintf("pool %q is not in cluster %s; name one of %s", w.Pool, d.cluster.Name, poolNames(d.cluster.Pools))
	}
	return fabric.Pool{}, bad
}

func poolNames(pools []fabric.Pool) string {
	const most = 5
	names := ""
	for i, p := range pools {
		if i == most {
			return fmt.Sprintf("%s and %d more", names, len(pools)-most)
		}
		if i > 0 {
			names += ", "
		}
		names += p.Name
	}
	return names
}

// choose gives a free address of a prefix. It tries some at random, and then
// searches a prefix that is not too large from a random address on.
func choose(p netip.Prefix, rnd *rand.Rand, free func(netip.Addr) bool) (netip.Addr, bool) {
	for range probes {
		if a := random(p, rnd); free(a) {
			return a, true
		}
	}
	if p.Addr().BitLen()-p.Bits() > searchable {
		return netip.Addr{}, false
	}
	start := random(p, rnd)
	for a := start; ; {
		if free(a) {
			return a, true
		}
		if a = a.Next(); !p.Contains(a) {
			a = p.Masked().Addr()
		}
		if a == start {
			return netip.Addr{}, false
		}
	}
}

// random gives a random address of a prefix.
func random(p netip.Prefix, rnd *rand.Rand) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		if rnd.Uint32()&1 == 1 {
			b[bit/8] |= 0x80 >> (bit % 8)
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// anycast reports whether an address may be the subnet-router anycast address of its
// pool or /64 (RFC 4291, 2.6.1), which some guests refuse to have.
func anycast(pool fabric.Pool, a netip.Addr) bool {
	if a.Is4() {
		return false
	}
	return a == netip.PrefixFrom(a, max(64, pool.Prefix.Bits())).Masked().Addr() && pool.Prefix.Bits() < 128
}

// Usage counts the addresses of a pool. all are the allocations of a registry.
func Usage(pool fabric.Pool, all iter.Seq[fabric.Allocation], now time.Time) fabric.PoolUsage {
	u := fabric.PoolUsage{Pool: pool.Name, Prefix: pool.Prefix, Nodes: pool.Nodes}
	size, held := addresses(pool.Prefix), new(big.Int)
	for _, x := range disjoint(pool.Exclude) {
		size.Sub(size, addresses(x))
	}
	var static []netip.Prefix
	for _, r := range pool.Reserve {
		static = append(static, r.Prefix)
	}
	static = disjoint(static)
	for _, r := range static {
		held.Add(held, addresses(r))
	}
	one := big.NewInt(1)
	for a := range all {
		if !pool.Prefix.Overlaps(a.Prefix) || over(a, now) {
			continue
		}
		reserved := slices.ContainsFunc(static, a.Prefix.Overlaps)
		switch {
		case a.State == fabric.Allocated:
			u.Allocated++
			if reserved {
				held.Sub(held, one)
			}
		case reserved: // counted already
		case a.State == fabric.Reserved:
			held.Add(held, addresses(a.Prefix))
		default:
			u.Quarantined++
			if u.NextFree.IsZero() || a.Until.Before(u.NextFree) {
				u.NextFree = a.Until
			}
		}
	}
	free := new(big.Int).Sub(size, held)
	free.Sub(free, big.NewInt(int64(u.Allocated+u.Quarantined)))
	u.Size, u.Reserved, u.Free = json.Number(size.String()), json.Number(held.String()), json.Number(free.String())
	return u
}

// addresses counts the addresses of a prefix.
func addresses(p netip.Prefix) *big.Int {
	return new(big.Int).Lsh(big.NewInt(1), uint(p.Addr().BitLen()-p.Bits()))
}

// disjoint leaves out prefixes that lie inside of others.
func disjoint(ps []netip.Prefix) (kept []netip.Prefix) {
	ps = slices.Clone(ps)
	slices.SortFunc(ps, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	for _, p := range ps {
		if !slices.ContainsFunc(kept, p.Overlaps) {
			kept = append(kept, p)
		}
	}
	return kept
}

// fullText says for people that a pool is full.
func fullText(u fabric.PoolUsage, now time.Time) string {
	t := fmt.Sprintf("pool %s is full: of %v addresses %d are allocated, %v reserved, %d quarantined", u.Pool, u.Size, u.Allocated, u.Reserved, u.Quarantined)
	if !u.NextFree.IsZero() {
		t += fmt.Sprintf(", the first of them for %v more", u.NextFree.Sub(now).Round(time.Second))
	}
	return t + "; release an address, or add a pool"
}
