package clusterfile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vmfabric/vmfabric/fabric"
)

// Warnings lists settings that are allowed in a valid cluster and yet seldom meant,
// one line each with the reason and the way out; nil if there are none. It has no
// side effects.
func Warnings(c fabric.Cluster) []string {
	return slices.Concat(NodeWarnings(c), routerWarnings(c), keyWarnings(c), registryWarnings(c), guestWarnings(c))
}

// keyWarnings has the warnings about the agents' messages to each other.
func keyWarnings(c fabric.Cluster) []string {
	const wayOut = "make a key once, (umask 077; head -c 32 /dev/urandom | base64 > /etc/vmfabric/cluster.key), copy it to all nodes, and name it under key_file"
	switch {
	case c.Key != "":
		return nil
	case slices.ContainsFunc(c.Reflectors, func(r fabric.RR) bool { return r.Password != "" }):
		return []string{"no key_file: the messages of the nodes' agents are proven with the reflectors' passwords, so that anybody who knows them can take guests off the air; " + wayOut}
	}
	return []string{"no key_file: nothing proves the messages of the nodes' agents, and anybody who can use the address of a node can have guests withdrawn or their packets sent elsewhere; " + wayOut}
}

// registryWarnings has the warnings about the shared registry.
func registryWarnings(c fabric.Cluster) (ws []string) {
	e := c.Registry.Etcd
	if e == nil {
		return nil
	}
	plain := slices.ContainsFunc(e.Endpoints, func(u string) bool { return strings.HasPrefix(u, "http://") })
	switch n := len(e.Endpoints); {
	case n == 1:
		ws = append(ws, fmt.Sprintf("%s is the only member of etcd that is named: while it is down no guest gets new addresses; name all three of an etcd of three under registry.etcd.endpoints", e.Endpoints[0]))
	case n == 2:
		ws = append(ws, "two members of etcd are named: if etcd has no third, either one that is down stops it; name all three of an etcd of three under registry.etcd.endpoints")
	}
	if plain {
		ws = append(ws, "registry.etcd.endpoints are http: anybody who can reach etcd can give and take the guests' addresses; give etcd and the nodes certificates, and write https, ca_file, cert_file and key_file")
	}
	return ws
}

// guestWarnings has the warnings about what guests are told of their network.
func guestWarnings(c fabric.Cluster) (ws []string) {
	warn := func(format string, args ...any) { ws = append(ws, fmt.Sprintf(format, args...)) }
	g := c.Guests
	if g.NoDHCP && g.NoRA && len(g.DNS)+len(g.Search)+len(g.NTP)+g.MTU > 0 {
		warn("guests.dhcp and guests.ra are false, so that no guest learns what dns, search, ntp and mtu say; configure it in the guests")
		return ws
	}
	if len(g.DNS) == 0 && len(c.Pools) > 0 && !(g.NoDHCP && g.NoRA) {
		warn("no guests.dns: guests that configure themselves learn addresses and routes, and no resolver; name two under guests.dns")
	}
	if g.NoDHCP && len(g.NTP) > 0 {
		warn("guests.ntp is told by DHCP alone, and guests.dhcp is false; configure time servers in the guests")
	}
	if _, has6 := poolOf(c, false); has6 && g.NoRA && !g.NoDHCP {
		warn("guests.ra is false: no guest learns a default route of IPv6, and most ask for an address by DHCPv6 only when a router advertisement says so; leave it out, or configure IPv6 in the guests")
	}
	if gw := c.Gateway.IPv6; gw.IsValid() && !gw.IsLinkLocalUnicast() && !g.NoRA {
		warn("gateway.ipv6 %s is not link-local: hosts ignore router advertisements from it, so that no guest learns a default route of IPv6; make it fe80::1, or configure IPv6 in the guests", gw)
	}
	for _, family := range families {
		if _, has := poolOf(c, family.four); has {
			continue
		}
		for _, a := range slices.Concat(g.DNS, g.NTP) {
			if a.Is4() == family.four {
				warn("%s is %s and no pool is: guests have no address to ask it from; name one of the other family", a, family.name)
			}
		}
	}
	return ws
}

// NodeWarnings has the warnings about nodes.
func NodeWarnings(c fabric.Cluster) []string {
	var ws []string
	warn := func(format string, args ...any) { ws = append(ws, fmt.Sprintf(format, args...)) }

	if p, ok := poolOf(c, true); ok {
		if lack := lacking(c, func(n fabric.Node) bool { return !n.Address.IsValid() }); len(lack) > 0 {
			who, has, its, whom := several(lack)
			warn("pool %s is IPv4 but %s %s only an IPv6 address: %s IPv4 routes are announced with an IPv6 next hop (RFC 8950), which many routers do not take; give %s an IPv4 address", p.Name, who, has, its, whom)
		}
	}
	if p, ok := poolOf(c, false); ok {
		if lack := lacking(c, func(n fabric.Node) bool { return !n.Address6.IsValid() }); len(lack) > 0 {
			who, has, its, whom := several(lack)
			warn("pool %s is IPv6 but %s %s no address6: reflectors cannot tell %s next hop of IPv6 routes from that of a machine that the file does not name, and without an IPv6 address in the nodes' network most routers cannot use it; give %s an address6", p.Name, who, has, its, whom)
		}
	}
	return ws
}

// routerWarnings has the warnings about reflectors and core gateways.
func routerWarnings(c fabric.Cluster) []string {
	var ws []string
	warn := func(format string, args ...any) { ws = append(ws, fmt.Sprintf(format, args...)) }

	for _, family := range families {
		p, ok := poolOf(c, family.four)
		if !ok || len(lacking(c, func(n fabric.Node) bool { return !family.of(n).IsValid() })) > 0 {
			continue // nothing to carry, or NodeWarnings has it
		}
		if lack := without(c, family.four); len(lack) > 0 {
			who, _, _, _ := several(lack)
			is, routes, there := "reflector "+who+" is", "its", "that machine"
			if len(lack) > 1 {
				is, routes, there = "reflectors "+who+" are", "their", "those machines"
			}
			warn("pool %s is %s but %s not: %s %s routes ride on %s sessions, and are dropped where the machine has no %s address in the nodes' network; give %s one, or the cluster a reflector with an %s address",
				p.Name, family.name, is, routes, family.name, family.other, family.name, there, family.name)
		}
	}
	for _, g := range c.Core {
		if len(c.Reflectors) > 0 && len(without(c, g.Address.Is4())) == len(c.Reflectors) && g.Address.IsValid() {
			warn("core gateway %s (%s) has no address family in common with any reflector, so that no session leads there; give both ends an address of one family", g.Name, g.Address)
		}
	}
	if len(c.Reflectors) == 1 {
		warn("%s is the only reflector: while it is down no guest that starts or moves is reached; add a second under reflectors", c.Reflectors[0].Name)
	}
	if len(c.Core) == 0 {
		warn("no core gateway is named: a reflector's configuration made from this file leads to none, and the guests' routes end there; name the routers under core")
	}
	return ws
}

// poolOf returns the first pool of a family.
func poolOf(c fabric.Cluster, four bool) (fabric.Pool, bool) {
	for _, p := range c.Pools {
		if p.Is6() != four {
			return p, true
		}
	}
	return fabric.Pool{}, false
}

var families = []struct {
	four        bool
	name, other string
	of          func(fabric.Node) netip.Addr
}{
	{true, "IPv4", "IPv6", func(n fabric.Node) netip.Addr { return n.Address }},
	{false, "IPv6", "IPv4", func(n fabric.Node) netip.Addr { return n.Address6 }},
}

// without lists the reflectors whose address is of the other family.
func without(c fabric.Cluster, four bool) []string {
	var names []string
	for _, r := range c.Reflectors {
		if r.Address.IsValid() && r.Address.Is4() != four {
			names = append(names, r.Name)
		}
	}
	return names
}

func lacking(c fabric.Cluster, lacks func(fabric.Node) bool) []string {
	var names []string
	for _, n := range c.Nodes {
		if lacks(n) {
			names = append(names, n.Name)
		}
	}
	return names
}

// several lists at most three nodes, and returns the words that go with them.
func several(names []string) (who, has, its, whom string) {
	if len(names) == 1 {
		return names[0], "has", "its", names[0]
	}
	last := names[len(names)-1]
	if more := len(names) - 2; more > 1 {
		names, last = names[:3], fmt.Sprintf("%d more", more)
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + last, "have", "their", "each"
}
