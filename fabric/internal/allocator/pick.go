package allocator

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// pick chooses an address, or a prefix, of a pool for a want. Any free one of the pool is
// equally likely: so an IPv6 guest is hard to find by a scan, several nodes that
// choose at one time seldom choose the same, and an address that became free is not
// the next one that is given. With AutoPool the next pool takes the place of one that is
// full.
func (d *decision) pick(a *fabric.Allocation, w fabric.Want) *fabric.AllocationError {
	pools, bad := d.pools(w)
	if len(pools) == 0 {
		return bad
	}
	var full []fabric.PoolUsage
	for _, pool := range pools {
		if p, found := spaceOf(pool).choose(d.rnd, d.free(pool)); found {
			a.Prefix, a.NoAddress, a.Pool = p, pool.NoAddress, pool.Name
			return nil
		}
		full = append(full, Usage(d.cluster, pool, d.table.rows.values(), d.now))
	}
	text := fullText(full, d.now)
	if bad.Reason == fabric.RegistryNone {
		text += "; " + bad.Text
	}
	return &fabric.AllocationError{Reason: fabric.PoolFull, Pool: pools[0].Name, Text: text}
}

// free gives the function that reports whether a guest may get an address, or a prefix,
// of a pool.
func (d *decision) free(pool fabric.Pool) func(netip.Prefix) bool {
	s := spaceOf(pool)
	taken := map[netip.Prefix]bool{} // units of which a part is not free
	var wide []netip.Prefix          // what has several units
	keep := func(p netip.Prefix) {
		if p.Bits() < s.bits {
			wide = append(wide, p)
		}
		taken[s.unit(p)] = true
	}
	for p := range d.wanted {
		keep(p)
	}
	for _, x := range pool.Exclude {
		keep(x)
	}
	for _, r := range pool.Reserve {
		keep(r.Prefix)
	}
	return func(p netip.Prefix) bool {
		if taken[p] || anycast(pool, p) || slices.ContainsFunc(wide, p.Overlaps) {
			return false
		}
		_, held := d.table.around(p, d.now)
		return !held && (p.IsSingleIP() || !d.table.partly(pool, p, d.now))
	}
}

// pools lists the pools that may answer a want, in the order in which they are tried:
// that of its name, or with AutoPool those of the family. bad says why one may not.
func (d *decision) pools(w fabric.Want) (pools []fabric.Pool, bad *fabric.AllocationError) {
	bad = &fabric.AllocationError{Reason: fabric.PoolUnknown, Pool: w.Pool}
	for _, p := range d.cluster.Pools {
		if w.Pool == fabric.AutoPool && (p.Is6() != w.V6 || p.NoAddress) || w.Pool != fabric.AutoPool && w.Pool != p.Name {
			continue
		}
		if !d.cluster.Serves(p, d.asking.Node) {
			bad.Text = cmp.Or(bad.Text, unservedText(p, d.asking.Node))
			continue
		}
		if err := d.mayGive(p); err != nil {
			if bad.Reason != fabric.RegistryNone {
				bad.Reason, bad.Text = fabric.RegistryNone, err.Error()
			}
			continue
		}
		pools = append(pools, p)
	}
	switch {
	case bad.Text != "":
	case w.Pool == fabric.AutoPool:
		bad.Text = fmt.Sprintf("cluster %s has no %s pool of addresses; add one", d.cluster.Name, map[bool]string{false: "IPv4", true: "IPv6"}[w.V6])
	default:
		bad.Text = fmt.Sprintf("pool %q is not in cluster %s; name one of %s", w.Pool, d.cluster.Name, poolNames(d.cluster.Pools))
	}
	return pools, bad
}

// unservedText says for people that a pool is not for a node.
func unservedText(p fabric.Pool, node string) string {
	if len(p.NodeLabels) == 0 {
		return fmt.Sprintf("pool %s does not serve node %s; write the node under its nodes, or take another pool", p.Name, node)
	}
	return fmt.Sprintf("pool %s does not serve node %s; write the node under its nodes, give the node the label %s, or take another pool", p.Name, node, strings.Join(p.NodeLabels, " or "))
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

// anycast reports whether an address may be the subnet-router anycast address of its
// pool or /64 (RFC 4291, 2.6.1), which some guests refuse to have.
func anycast(pool fabric.Pool, p netip.Prefix) bool {
	if p.Addr().Is4() || !p.IsSingleIP() {
		return false
	}
	subnet := 64
	for _, q := range append([]netip.Prefix{pool.Prefix}, pool.Prefixes...) {
		if q.Contains(p.Addr()) {
			subnet = max(subnet, q.Bits())
		}
	}
	return subnet < 128 && p.Addr() == netip.PrefixFrom(p.Addr(), subnet).Masked().Addr()
}

// fullText says for people that pools are full.
func fullText(pools []fabric.PoolUsage, now time.Time) string {
	var texts []string
	thing := "an address"
	for _, u := range pools {
		things := "addresses"
		if u.PerGuest > 0 {
			things, thing = fmt.Sprintf("prefixes of length %d", u.PerGuest), "a prefix"
		}
		t := fmt.Sprintf("pool %s is full: of %v %s %d are allocated, %v reserved, %d quarantined", u.Pool, u.Size, things, u.Allocated, u.Reserved, u.Quarantined)
		if !u.NextFree.IsZero() {
			t += fmt.Sprintf(", the first of them for %v more", u.NextFree.Sub(now).Round(time.Second))
		}
		texts = append(texts, t)
	}
	return strings.Join(texts, "; ") + "; release " + thing + ", or add a pool"
}
