package clusterfile_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

func TestWarnings(t *testing.T) {
	v4, v6 := fabric.Node{Address: ip("10.10.0.21")}, fabric.Node{Address6: ip("fd00::21")}
	both := fabric.Node{Address: ip("10.10.0.21"), Address6: ip("fd00::21")}
	four, six := fabric.Pool{Name: "public4", Prefix: prefix("203.0.113.0/24")}, fabric.Pool{Name: "public6", Prefix: prefix("2001:db8:100::/48")}
	rrs, core := []fabric.RR{{Name: "rr1"}, {Name: "rr2"}}, []fabric.Core{{Name: "core1"}}
	rrs4 := []fabric.RR{{Name: "rr1", Address: ip("10.10.0.11")}, {Name: "rr2", Address: ip("10.10.0.12")}}
	nodes := func(ns ...fabric.Node) []fabric.Node {
		for i := range ns {
			ns[i].Name = fmt.Sprintf("node%d", i+1)
		}
		return ns
	}
	for _, tt := range []struct {
		name string
		c    fabric.Cluster
		want []string
	}{
		{"nothing to say", fabric.Cluster{Pools: []fabric.Pool{four, six}, Reflectors: rrs, Core: core, Nodes: nodes(both, both)}, nil},
		{"IPv4 alone", fabric.Cluster{Pools: []fabric.Pool{four}, Reflectors: rrs, Core: core, Nodes: nodes(v4)}, nil},
		{"IPv6 alone", fabric.Cluster{Pools: []fabric.Pool{six}, Reflectors: rrs, Core: core, Nodes: nodes(v6)}, nil},
		{"IPv6 pool, one node without", fabric.Cluster{Pools: []fabric.Pool{four, six}, Reflectors: rrs, Core: core, Nodes: nodes(v4, both)}, []string{
			"pool public6 is IPv6 but node1 has no address6: reflectors cannot tell its next hop of IPv6 routes from that of a machine that the file does not name, and without an IPv6 address in the nodes' network most routers cannot use it; give node1 an address6",
		}},
		{"IPv4 pool, one node without", fabric.Cluster{Pools: []fabric.Pool{four, six}, Reflectors: rrs, Core: core, Nodes: nodes(both, v6)}, []string{
			"pool public4 is IPv4 but node2 has only an IPv6 address: its IPv4 routes are announced with an IPv6 next hop (RFC 8950), which many routers do not take; give node2 an IPv4 address",
		}},
		{"two nodes", fabric.Cluster{Pools: []fabric.Pool{six}, Reflectors: rrs, Core: core, Nodes: nodes(v4, v4)}, []string{
			"pool public6 is IPv6 but node1 and node2 have no address6: reflectors cannot tell their next hop of IPv6 routes from that of a machine that the file does not name, and without an IPv6 address in the nodes' network most routers cannot use it; give each an address6",
		}},
		{"three nodes", fabric.Cluster{Pools: []fabric.Pool{four}, Reflectors: rrs, Core: core, Nodes: nodes(v6, v6, v6)}, []string{
			"pool public4 is IPv4 but node1, node2 and node3 have only an IPv6 address: their IPv4 routes are announced with an IPv6 next hop (RFC 8950), which many routers do not take; give each an IPv4 address",
		}},
		{"many nodes", fabric.Cluster{Pools: []fabric.Pool{six}, Reflectors: rrs, Core: core, Nodes: nodes(v4, v4, v4, v4)}, []string{
			"pool public6 is IPv6 but node1, node2 and 2 more have no address6: reflectors cannot tell their next hop of IPv6 routes from that of a machine that the file does not name, and without an IPv6 address in the nodes' network most routers cannot use it; give each an address6",
		}},
		{"IPv4 reflectors in both families", fabric.Cluster{Pools: []fabric.Pool{four, six}, Reflectors: rrs4, Core: core, Nodes: nodes(both, both)}, []string{
			"pool public6 is IPv6 but reflectors rr1 and rr2 are not: their IPv6 routes ride on IPv4 sessions, and are dropped where the machine has no IPv6 address in the nodes' network; give those machines one, or the cluster a reflector with an IPv6 address",
		}},
		{"an IPv6 reflector in both families", fabric.Cluster{Pools: []fabric.Pool{four}, Reflectors: []fabric.RR{rrs4[0], {Name: "rr6", Address: ip("fd00::11")}}, Core: core, Nodes: nodes(both, both)}, []string{
			"pool public4 is IPv4 but reflector rr6 is not: its IPv4 routes ride on IPv6 sessions, and are dropped where the machine has no IPv4 address in the nodes' network; give that machine one, or the cluster a reflector with an IPv4 address",
		}},
		{"a core gateway apart", fabric.Cluster{Pools: []fabric.Pool{four}, Reflectors: rrs4, Core: []fabric.Core{{Name: "core6", Address: ip("fd00::1")}}, Nodes: nodes(both)}, []string{
			"core gateway core6 (fd00::1) has no address family in common with any reflector, so that no session leads there; give both ends an address of one family",
		}},
		{"one reflector, no core", fabric.Cluster{Pools: []fabric.Pool{four}, Reflectors: rrs[:1], Nodes: nodes(v4)}, []string{
			"rr1 is the only reflector: while it is down no guest that starts or moves is reached; add a second under reflectors",
			"no core gateway is named: a reflector's configuration made from this file leads to none, and the guests' routes end there; name the routers under core",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.c.Key = "the key of the cluster"
			tt.c.Guests.NoDHCP, tt.c.Guests.NoRA = true, true
			assert.Equal(t, tt.want, clusterfile.Warnings(tt.c))
		})
	}
}

func TestKeyWarnings(t *testing.T) {
	c, err := clusterfile.Load("testdata/cluster.yaml")
	require.NoError(t, err)
	all := func(c fabric.Cluster) string { return strings.Join(clusterfile.Warnings(c), "\n") }
	c.Reflectors[0].Password = ""
	assert.Contains(t, all(c), "no key_file: nothing proves the messages of the nodes' agents")
	c.Reflectors[0].Password = "s3cret"
	assert.Contains(t, all(c), "no key_file: the messages of the nodes' agents are proven with the reflectors' passwords")
	c.Key = "the key of the cluster"
	assert.NotContains(t, all(c), "key_file")
}

func TestReferenceFileWarnings(t *testing.T) {
	c, err := clusterfile.Load(labtest.Own(t, "testdata/cluster.yaml"))
	require.NoError(t, err)
	c.Key = "the key of the cluster"
	assert.Equal(t, []string{
		"pool public6 is IPv6 but node1 and node2 have no address6: reflectors cannot tell their next hop of IPv6 routes from that of a machine that the file does not name, and without an IPv6 address in the nodes' network most routers cannot use it; give each an address6",
		"no guests.dns: guests that configure themselves learn addresses and routes, and no resolver; name two under guests.dns",
	}, clusterfile.Warnings(c))
}

func TestGuestWarnings(t *testing.T) {
	four, six := fabric.Pool{Name: "public4", Prefix: prefix("203.0.113.0/24")}, fabric.Pool{Name: "public6", Prefix: prefix("2001:db8:100::/48")}
	both := []fabric.Pool{four, six}
	const global = 1499 // the MTU of the case whose gateway is not link-local
	dns4, dns6 := []netip.Addr{ip("9.9.9.9")}, []netip.Addr{ip("2620:fe::fe")}
	for _, tt := range []struct {
		name   string
		pools  []fabric.Pool
		guests fabric.Guests
		want   []string
	}{
		{"nothing to say", both, fabric.Guests{DNS: dns4, NTP: dns6}, nil},
		{"no resolver", both, fabric.Guests{}, []string{"no guests.dns"}},
		{"no resolver, and nobody to tell it", both, fabric.Guests{NoDHCP: true, NoRA: true}, nil},
		{"told to nobody", both, fabric.Guests{NoDHCP: true, NoRA: true, MTU: 1500}, []string{"no guest learns what dns, search, ntp and mtu say"}},
		{"time without DHCP", both, fabric.Guests{NoDHCP: true, DNS: dns6, NTP: dns4}, []string{"guests.ntp is told by DHCP alone"}},
		{"DHCPv6 without advertisements", both, fabric.Guests{NoRA: true, DNS: dns4}, []string{"guests.ra is false: no guest learns a default route of IPv6"}},
		{"IPv4 alone without advertisements", both[:1], fabric.Guests{NoRA: true, DNS: dns4}, nil},
		{"a resolver of no family", both[:1], fabric.Guests{DNS: append(dns4, dns6...)}, []string{"2620:fe::fe is IPv6 and no pool is"}},
		{"a time server of no family", both[1:], fabric.Guests{DNS: dns6, NTP: dns4}, []string{"9.9.9.9 is IPv4 and no pool is"}},
		{"a gateway that is not link-local", both, fabric.Guests{DNS: dns6, MTU: global}, []string{"gateway.ipv6 2001:db8::1 is not link-local"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			gw := fabric.Gateway{IPv6: ip("fe80::1")}
			if tt.guests.MTU == global {
				gw.IPv6 = ip("2001:db8::1")
			}
			ws := clusterfile.Warnings(fabric.Cluster{
				Gateway: gw, Key: "the key of the cluster", Pools: tt.pools, Guests: tt.guests,
				Reflectors: []fabric.RR{{Name: "rr1"}, {Name: "rr2"}}, Core: []fabric.Core{{Name: "core1"}},
				Nodes: []fabric.Node{{Name: "node1", Address: ip("10.10.0.21"), Address6: ip("fd00::21")}},
			})
			require.Len(t, ws, len(tt.want), "%q", ws)
			for i, want := range tt.want {
				assert.Contains(t, ws[i], want)
			}
		})
	}
}

func TestRegistryWarnings(t *testing.T) {
	with := func(endpoints ...string) string {
		return strings.Join(clusterfile.Warnings(fabric.Cluster{Key: "the key of the cluster", Registry: fabric.RegistryConfig{Etcd: &fabric.EtcdConfig{Endpoints: endpoints}}}), "\n")
	}
	assert.Contains(t, with("https://a:2379"), "https://a:2379 is the only member of etcd that is named")
	assert.Contains(t, with("https://a:2379", "https://b:2379"), "either one that is down stops it")
	assert.Contains(t, with("http://a:2379", "http://b:2379", "http://c:2379"), "registry.etcd.endpoints are http")
	assert.NotContains(t, with("https://a:2379", "https://b:2379", "https://c:2379"), "etcd")
}
