package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vmfabric/vmfabric/fabric"
)

// forwardingStep says whether packets of an address's family pass the node, as the
// test found just now.
func forwardingStep(a netip.Addr, faults []fabric.ForwardingFault, err error) step {
	if err != nil {
		return step{"forwarding", false, err.Error()}
	}
	family := familyOf(a)
	var texts []string
	for _, f := range faults {
		if concerns(f, a) {
			texts = append(texts, f.Text)
		}
	}
	if len(texts) > 0 {
		return step{"forwarding", false, strings.Join(texts, "; ")}
	}
	return step{"forwarding", true, fmt.Sprintf("%s packets pass between the underlay and a port, tried now", family)}
}

// withdrawnFor says why the node announces no address of a family; empty: it does.
// It also returns the other faults.
func withdrawnFor(a netip.Addr, faults []fabric.ForwardingFault) (reason string, others []fabric.ForwardingFault) {
	for _, f := range faults {
		if f.Withdrawn && concerns(f, a) {
			reason = f.Text
		} else {
			others = append(others, f)
		}
	}
	return reason, others
}

func familyOf(a netip.Addr) string {
	return map[bool]string{true: "IPv4", false: "IPv6"}[a.Unmap().Is4()]
}

func concerns(f fabric.ForwardingFault, a netip.Addr) bool {
	return f.Family == "" || f.Family == familyOf(a)
}

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
