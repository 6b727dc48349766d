package core

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// ClusterFile writes the cluster file of a cluster, for the agents of a lab. It
// leaves out passwords: they are in files of their own.
func ClusterFile(c fabric.Cluster) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("name: %s", c.Name)
	line("asn: %d", c.ASN)
	line("community: [%s]", quotedList(c.Communities))
	line("gateway: {ipv4: %q, ipv6: %q, mac: %q}", c.Gateway.IPv4, c.Gateway.IPv6, c.Gateway.MAC)
	line("timers: {hold: %s, connect_retry: %s, restart: %s%s}", c.Timers.Hold, c.Timers.ConnectRetry, c.Timers.Restart, longLived(c.Timers.LongLived))
	line("underlay: [%s]", quotedList(c.Underlay))
	line("routed: [%s]", quotedList(c.Routed))
	line("max_prefixes: %d", c.MaxPrefixes)
	if c.EastWest {
		line("east_west: direct")
	}
	line("speaker: %s", c.Speaker)
	if c.Resolver != "" {
		line("resolver: %q", c.Resolver)
	}
	line("observers: [%s]", quotedList(c.Observers))
	if c.AgentPort != 0 && c.AgentPort != fabric.DefaultAgentPort {
		line("agent_port: %d", c.AgentPort)
	}
	if m := c.WithDefaults().Moves; m != fabric.DefaultMoves {
		line("moves: {packets_per_second: %d, pause: %s}", m.Rate, m.Pause)
	}
	g := c.Guests
	line("guests: {reach: [%s], node_ports: [%s], dns: [%s], search: [%s], ntp: [%s], dhcp: %t, ra: %t, metadata: %t, isolate: %t%s}", quotedList(g.Reach), quotedList(g.NodePorts),
		quotedList(g.DNS), strings.Join(g.Search, ", "), quotedList(g.NTP), !g.NoDHCP, !g.NoRA, g.Metadata, g.Isolate, strings.ReplaceAll(optional("mtu", g.MTU), `"`, ""))
	line("accounting: %t", c.Accounting)
	if c.Metrics.IsValid() {
		line("metrics: %q", c.Metrics)
	}
	if e := c.Registry.Etcd; e != nil {
		line("registry: {etcd: {endpoints: [%s]}}", quotedList(e.Endpoints))
	}
	line("pools:")
	for _, p := range c.Pools {
		line("  - {name: %s%s, prefixes: [%s], ranges: [%s]%s%s, exclude: [%s], nodes: [%s], node_labels: [%s], quarantine: %s}", p.Name,
			optional("prefix", p.Prefix), quotedList(p.Prefixes), quotedList(p.Ranges), optional("per_guest", p.PerGuest), map[bool]string{true: ", guest_address: false"}[p.NoAddress], quotedList(p.Exclude),
			quotedList(p.Nodes), quotedList(p.NodeLabels), cmp.Or(p.Quarantine, fabric.DefaultQuarantine))
	}
	line("reflectors:")
	for _, r := range c.Reflectors {
		line("  - {name: %s, address: %q, gtsm: %v, bfd: %v}", r.Name, r.Address, r.GTSM, r.BFD)
	}
	line("core:")
	for _, r := range c.Core {
		line("  - {name: %s, address: %q, bfd: %v}", r.Name, r.Address, r.BFD)
	}
	line("nodes:")
	for _, n := range c.Nodes {
		line("  - {name: %s, address: %q, address6: %q, labels: [%s]}", n.Name, n.Address, n.Address6, quotedList(c.Labels[n.Name]))
	}
	return b.String()
}

func quotedList[T any](values []T) string {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = fmt.Sprintf("%q", fmt.Sprint(v))
	}
	return strings.Join(quoted, ", ")
}

// optional gives a key of a mapping that is left out if the value is zero.
func optional[T comparable](key string, value T) string {
	if value == *new(T) {
		return ""
	}
	return fmt.Sprintf(", %s: %q", key, fmt.Sprint(value))
}

func longLived(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return ", long_lived: " + d.String()
}
