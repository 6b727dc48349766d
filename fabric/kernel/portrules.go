package kernel

import (
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
)

// portRules is the table for IP: what comes in from ports, by where it comes from, where
// it goes, and at last what of it is for the node.
func portRules(cfg Config, q requests) *ruleset {
	r := newRuleset(nftables.TableFamilyINet)
	r.base("sources", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	r.base("input", nftables.ChainHookInput, nftables.ChainPriorityFilter)
	r.base("output", nftables.ChainHookOutput, nftables.ChainPriorityFilter)
	r.addSets(cfg)
	r.addSources(cfg.Private)
	r.addMetadata(q.metadata)
	r.addRedirects()
	agents := toService(unix.IPPROTO_TCP, cfg.agentPort())
	for _, f := range []family{ipv4, ipv6} {
		r.addDestinations(f, cfg.Private, q)
		r.addClosed(f, agents)
		r.addAnswers(f)
		r.addToGuests(f)
	}
	r.addLocal(q)
	r.addUnrouted(q)
	r.addLinkLocal(q)
	r.addNewSource()
	r.addGuards(cfg.Pools, cfg.Guests.Isolate)
	r.addToNode(q, agents)
	r.addResolution()
	r.addAnswering(q)
	return r.finish()
}

// addSets adds what the rules look up: the cluster's prefixes and services, and what
// packets have left behind.
func (r *ruleset) addSets(cfg Config) {
	for _, f := range []family{ipv4, ipv6} {
		r.set(nftables.Set{Name: "private" + f.digit, KeyType: f.address, Interval: true}, intervals(f.of(cfg.Private))...)
		r.set(nftables.Set{Name: "reach" + f.digit, KeyType: f.address, Interval: true}, intervals(f.of(cfg.Guests.Reach))...)
		r.set(nftables.Set{Name: "destinations" + f.digit, KeyType: f.address, Interval: true, IsMap: true, DataType: nftables.TypeVerdict},
			intervals(f.destinations(cfg.Private))...)
		r.set(nftables.Set{Name: "near" + f.digit, KeyType: octets[f.first]}, f.starts(f.destinations(cfg.Private))...)
		r.dynamic("checked"+f.digit, nftables.TypeIFIndex, f.address)
		r.dynamic("pairs"+f.digit, f.address, f.address)
		r.dynamic("udp_flows"+f.digit, f.address, nftables.TypeInetService, f.address, nftables.TypeInetService)
	}
	r.counted()
	r.dynamic("learning", nftables.TypeIFIndex)
	r.dynamic("solicitations", nftables.TypeIFIndex)
	r.dynamic("advertisements", nftables.TypeIFIndex)
	r.dynamic("new_sources", nftables.TypeIFIndex)
	r.dynamic("neighbours", nftables.TypeIFIndex, nftables.TypeIP6Addr)
	r.dynamic("requesting", nftables.TypeIFIndex)
	r.set(nftables.Set{Name: arrivingMap, KeyType: nftables.TypeIFName, IsMap: true, DataType: nftables.TypeVerdict})
	r.set(nftables.Set{Name: "tcp_ports", KeyType: nftables.TypeInetService}, services(cfg, "tcp")...)
	r.set(nftables.Set{Name: "udp_ports", KeyType: nftables.TypeInetService}, services(cfg, "udp")...)
}

// addSources decides by the source of a packet from a port, and remembers whom the
// underlay sent to.
func (r *ruleset) addSources(private []netip.Prefix) {
	r.add("sources", fromPort(), goTo("from_ports"))
	r.add("from_ports", ipv4.is(), goTo("from4"))
	r.add("from_ports", goTo("from6"))
	for _, f := range []family{ipv4, ipv6} {
		r.add("sources", f.is(), f.underlay(private), jump("to_guests"+f.digit))
	}

	for _, f := range []family{ipv4, ipv6} {
		from := "from" + f.digit
		r.add(from, f.checked(), f.far(private), accept()) // most packets
		r.add(from, f.checked(), goTo("destination"+f.digit))
	}
	r.add("from4", routed(true), goTo("routed4"))
	r.add("from4", portName(), byMap(1, arrivingMap))
	r.add("from4", goTo("unrouted4"))
	r.add("from6", ipv6.source(expr.CmpOpEq, linkLocal6), goTo("from_link_local"))
	r.add("from6", portName(), byMap(1, arrivingMap))
	r.add("from6", ipv6.source(expr.CmpOpEq, netip.PrefixFrom(netip.IPv6Unspecified(), 128)), ipv6.destination(expr.CmpOpEq, onLink6), goTo("from_nobody6"))
	// The lookup lets ICMPv6 from there to link-local addresses pass, and the node would
	// send its answer to the underlay.
	r.add("from6", ipv6.source(expr.CmpOpEq, netip.PrefixFrom(netip.IPv6Unspecified(), 128)), r.drop(fabric.DropSource))
	r.add("from6", routed(false), r.drop(fabric.DropSource))
	r.add("from6", goTo("routed6"))
	for _, f := range []family{ipv4, ipv6} {
		r.add("routed"+f.digit, meter("learning", learnRate, expr.LimitTimeSecond, learnBurst, false),
			key(incoming, f.saddr), remember("checked"+f.digit, learnedFor, false))
		r.add("routed"+f.digit, goTo("destination"+f.digit))
	}
}

// addDestinations decides by the destination of a packet whose source is the port's.
func (r *ruleset) addDestinations(f family, private []netip.Prefix, q requests) {
	r.toMetadata(q.metadata, "closed"+f.digit, f)
	r.add("destination"+f.digit, f.far(private), accept())
	r.add("destination"+f.digit, key(f.daddr), byMap(firstWord, "destinations"+f.digit))
	r.add("destination"+f.digit, accept())
}

// addClosed decides of packets to the underlay, which guests do not reach unless the
// cluster file opens it.
func (r *ruleset) addClosed(f family, agents []expr.Any) {
	closed := "closed" + f.digit
	r.add(closed, destinationIs(unix.RTN_LOCAL, false), goTo("local"+f.digit))
	r.add(closed, agents, r.drop(fabric.DropDestination))
	r.add(closed, f.in(f.dst, "reach"+f.digit, false), accept())
	r.add(closed, key(f.saddr, f.daddr), found("pairs"+f.digit), goTo("answers"+f.digit))
	r.add(closed, r.drop(fabric.DropDestination))
}

// addAnswers lets the answers of a guest pass to a host of the underlay that sent to it.
func (r *ruleset) addAnswers(f family) {
	answers := "answers" + f.digit
	r.add(answers, connected(), accept())
	r.add(answers, protocol(unix.IPPROTO_UDP), key(f.saddr, sport, f.daddr, dport), found("udp_flows"+f.digit), accept())
	r.add(answers, f.icmpType(f.reply), accept())
	r.addErrors(answers, f)
	r.add(answers, f.lateFragment(), accept())
	r.add(answers, r.drop(fabric.DropDestination))
}

// addToGuests remembers to whom a host of the underlay, or the node, sends. ICMP errors
// of the host are answers, which a guest gets from any router by a packet with a low hop
// limit.
func (r *ruleset) addToGuests(f family) {
	toGuests := "to_guests" + f.digit
	for _, n := range f.errors {
		r.add(toGuests, f.icmpType(n), leave())
	}
	r.add(toGuests, f.in(f.dst, "private"+f.digit, true), destinationIs(unix.RTN_UNICAST, false), key(f.daddr, f.saddr), remember("pairs"+f.digit, pairFor, true))
	r.add(toGuests, protocol(unix.IPPROTO_UDP), f.in(f.dst, "private"+f.digit, true), destinationIs(unix.RTN_UNICAST, false),
		key(f.daddr, dport, f.saddr, sport), remember("udp_flows"+f.digit, flowFor, true))

	r.add("output", groupIs(expr.MetaKeyOIFGROUP), f.is(), protocol(unix.IPPROTO_UDP),
		key(f.daddr, dport, f.saddr, sport), remember("udp_flows"+f.digit, flowFor, true))
}

// addRedirects drops the redirects by which the kernel would have a host of the underlay send
// what is for a guest to another machine of the cluster itself, as it does when packets leave
// by the link on which they came: while they are diverted. The host would go on with that for
// minutes, also when the guest has come back. The settings of the node's links stay as they
// are: one that is on, or that of all, is enough for the kernel. IPv6 needs no rule: there a
// router tells only of next hops that are link-local, and nodes are not.
func (r *ruleset) addRedirects() {
	gateway := []expr.Any{
		load(expr.PayloadBaseTransportHeader, 4, ipv4.size, 1),
		&expr.Lookup{SourceRegister: 1, SetName: "private" + ipv4.digit},
	}
	r.add("output", ipv4.is(), ipv4.icmpType(redirect4), gateway, ipv4.quotes("private"+ipv4.digit, true), discard())
}

// addLocal takes the guests' requests out of what is for the node. The chain to_node
// decides of the rest.
func (r *ruleset) addLocal(q requests) {
	// Where they can, the rules take requests before the hook input: there the node's
	// own firewall may drop them first, and before it the kernel those for ff02::1:2,
	// which it does not join.
	for _, chain := range []string{"broadcast4", "local4", "local6", "from_nobody6"} {
		f := ipv4
		if strings.HasSuffix(chain, ipv6.digit) {
			f = ipv6
		}
		r.addRequests(chain, f, q)
		r.add(chain, accept())
	}
}

// addUnrouted decides of packets whose source is not the port's.
func (r *ruleset) addUnrouted(q requests) {
	unspecified := netip.PrefixFrom(netip.IPv4Unspecified(), 32)
	// A guest that lost its address asks for it from there, and must hear that it has
	// another one.
	r.add("unrouted4", ipv4.source(expr.CmpOpEq, unspecified), ipv4.destination(expr.CmpOpEq, everybody4), goTo("broadcast4"))
	r.addRequests("unrouted4", ipv4, q, ipv4.destination(expr.CmpOpEq, everybody4)...)
	r.addRequests("unrouted4", ipv4, q, destinationIs(unix.RTN_LOCAL, false)...)
	r.add("unrouted4", r.drop(fabric.DropSource))
}

// addLinkLocal decides of link-local sources and destinations: they reach only the node,
// on the port itself.
func (r *ruleset) addLinkLocal(q requests) {
	r.add("from_link_local", sourceIs(unix.RTN_LOCAL), r.drop(fabric.DropSource)) // the gateway's
	r.addRequests("from_link_local", ipv6, q)
	r.add("from_link_local", jump("new_source"))
	r.toMetadata(q.metadata, "from_link_local", ipv6)
	r.add("from_link_local", ipv6.destination(expr.CmpOpEq, onLink6), accept())
	r.add("from_link_local", destinationIs(unix.RTN_LOCAL, true), accept())
	r.add("from_link_local", r.drop(fabric.DropDestination))
	r.toMetadata(q.metadata, "link_local", ipv6)
	r.add("link_local", destinationIs(unix.RTN_LOCAL, true), accept())
	r.add("link_local", r.drop(fabric.DropDestination))
}

// addNewSource limits how many sources a port brings that the node has not seen.
func (r *ruleset) addNewSource() {
	r.add("new_source", key(incoming, ipv6.saddr), found("neighbours"), leave())
	r.add("new_source", meter("new_sources", neighbourRate, expr.LimitTimeMinute, neighbourMax, true), r.drop(fabric.DropNewSource))
	r.add("new_source", key(incoming, ipv6.saddr), remember("neighbours", neighbourFor, false), leave())
	r.add("new_source", r.drop(fabric.DropNewSource))
}

// addToNode decides of packets for the node.
func (r *ruleset) addToNode(q requests, agents []expr.Any) {
	r.add("input", fromPort(), goTo("to_node"))
	r.add("to_node", agents, r.drop(fabric.DropNodePort))
	r.add("to_node", connected(), accept())
	for _, f := range []family{ipv4, ipv6} {
		r.addRequests("to_node", f, q) // to gateways that are not link-local, and from other sources
	}
	if q.metadata != 0 {
		r.add("to_node", marked(fabric.MetadataMark), goTo("metadata_clients"))
	}
	r.add("to_node", toServices(unix.IPPROTO_TCP, "tcp_ports"), accept())
	r.add("to_node", toServices(unix.IPPROTO_UDP, "udp_ports"), accept())
	for _, f := range []family{ipv4, ipv6} {
		r.add("to_node", f.is(), protocol(unix.IPPROTO_UDP), key(f.saddr, sport, f.daddr, dport), found("udp_flows"+f.digit), accept())
		for _, n := range f.echo {
			r.add("to_node", f.is(), f.icmpType(n), accept())
		}
	}
	r.add("to_node", ipv4.is(), protocol(ipv4.icmp), goTo("errors4"))
	for _, n := range solicitations6 {
		r.add("to_node", ipv6.is(), ipv6.icmpType(n), goTo("resolution"))
	}
	// An advertisement alone makes no neighbour in the kernel, so a guest may
	// answer for all of its addresses.
	r.add("to_node", ipv6.is(), ipv6.icmpType(advertisement6), meter("advertisements", solicitRate, expr.LimitTimeSecond, solicitBurst, true), r.drop(fabric.DropNeighbour))
	r.add("to_node", ipv6.is(), ipv6.icmpType(advertisement6), accept())
	r.add("to_node", ipv6.is(), ipv6.lateFragment(), accept())
	r.add("to_node", ipv6.is(), protocol(ipv6.icmp), goTo("errors6"))
	r.add("to_node", r.drop(fabric.DropNodePort))
	for _, f := range []family{ipv4, ipv6} {
		r.addErrors("errors"+f.digit, f)
		r.add("errors"+f.digit, r.drop(fabric.DropNodePort))
	}
}

// addResolution limits neighbor discovery from a port.
func (r *ruleset) addResolution() {
	r.add("resolution", meter("solicitations", solicitRate, expr.LimitTimeSecond, solicitBurst, true), r.drop(fabric.DropNeighbour))
	r.add("resolution", ipv6.source(expr.CmpOpEq, linkLocal6), accept()) // counted before
	r.add("resolution", ipv6.source(expr.CmpOpEq, netip.PrefixFrom(netip.IPv6Unspecified(), 128)), accept())
	r.add("resolution", jump("new_source"))
	r.add("resolution", accept())
}
