// Package samples has a cluster and guests for tests.
package samples

import (
	"net/netip"
	"strings"

	"github.com/vmfabric/vmfabric/fabric"
)

// Cluster gives a valid cluster of both families, for a test to spoil.
func Cluster() fabric.Cluster {
	ip, prefix := netip.MustParseAddr, netip.MustParsePrefix
	return fabric.Cluster{
		Name:        "msk1",
		ASN:         64512,
		Communities: []fabric.Community{{A: 64512, B: 100}, {Large: true, A: 64512, B: 1, C: 100}},
		Gateway:     fabric.Gateway{IPv4: ip("169.254.1.1"), IPv6: ip("fe80::1")},
		Pools: []fabric.Pool{
			{Name: "public4", Prefix: prefix("203.0.113.0/24"), Exclude: []netip.Prefix{prefix("203.0.113.0/32")}},
			{Name: "public6", Prefix: prefix("2001:db8:100::/48"), Exclude: []netip.Prefix{prefix("2001:db8:100::/64")}},
		},
		Routed: []netip.Prefix{prefix("198.51.100.0/24"), prefix("2001:db8:200::/48")},
		Reflectors: []fabric.RR{
			{Name: "rr1", Address: ip("10.10.0.11")},
			{Name: "rr2", Address: ip("fd00::12")},
		},
		Core: []fabric.Core{{Name: "core1", Address: ip("10.10.0.1")}, {Name: "core2", Address: ip("fd00::1")}},
		Nodes: []fabric.Node{
			{Name: "node1", Address: ip("10.10.0.21"), Address6: ip("fd00::21")},
			{Name: "node2", Address: ip("10.10.0.22"), Address6: ip("fd00::22")},
		},
	}.WithDefaults()
}

// Guest builds a guest. Each NIC is its addresses, routed prefixes and kind in
// any order, as in "203.0.113.10 198.51.100.0/29 veth".
func Guest(name string, nics ...string) fabric.VM {
	vm := fabric.VM{Name: name}
	for _, words := range nics {
		var nic fabric.NIC
		for word := range strings.FieldsSeq(words) {
			if kind, err := fabric.ParseKind(word); err == nil {
				nic.Kind = kind
			} else if strings.Contains(word, "/") {
				nic.Routes = append(nic.Routes, netip.MustParsePrefix(word))
			} else {
				nic.Addresses = append(nic.Addresses, netip.MustParseAddr(word))
			}
		}
		vm.NICs = append(vm.NICs, nic)
	}
	return vm
}

// Texts writes prefixes in their order.
func Texts(ps []netip.Prefix) []string {
	all := []string{}
	for _, p := range ps {
		all = append(all, p.String())
	}
	return all
}

// Web has two NICs, both families and a routed prefix.
func Web() fabric.VM {
	return Guest("web", "203.0.113.10 2001:db8:100:1::10 198.51.100.0/29", "203.0.113.11 2001:db8:200:8::/64 2001:db8:100:1::11 veth")
}

// DB has one address.
func DB() fabric.VM { return Guest("db", "203.0.113.20") }
