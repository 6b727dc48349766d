package main

import (
	"net/netip"
	"slices"

	"github.com/vmfabric/vmfabric/fabric"
)

// samplesOf returns, for each family of which the cluster has a pool, an address
// that a guest may have: the last of the first pool, where guests are rare.
func samplesOf(c *fabric.Cluster) []netip.Addr {
	var all []netip.Addr
	for _, p := range c.Pools {
		if slices.ContainsFunc(all, func(a netip.Addr) bool { return a.Is6() == p.Is6() }) {
			continue
		}
		blocks := p.Blocks()
		for i := len(blocks) - 1; i >= 0; i-- {
			if a, any := lastOf(blocks[i], p.Exclude); any {
				all = append(all, a)
				break
			}
		}
	}
	return all
}

// lastOf returns the last address of a prefix that is in none of exclude.
func lastOf(p netip.Prefix, exclude []netip.Prefix) (netip.Addr, bool) {
	for a := fabric.RangeOf(p).Last; p.Contains(a); a = a.Prev() {
		x := slices.IndexFunc(exclude, func(x netip.Prefix) bool { return x.Contains(a) })
		if x < 0 {
			return a, true
		}
		a = exclude[x].Masked().Addr()
	}
	return netip.Addr{}, false
}
