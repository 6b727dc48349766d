package testenv

import (
	"fmt"
	"strings"

	"github.com/vmfabric/vmfabric/fabric"
)

// ClusterFile writes a cluster the way its file has it, for the agents of a
// lab. Passwords are left out: they are in files of their own.
func ClusterFile(c fabric.Cluster) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	quoted := make([]string, len(c.Communities))
	for i, community := range c.Communities {
		quoted[i] = fmt.Sprintf("%q", community)
	}
	line("name: %s", c.Name)
	line("asn: %d", c.ASN)
	line("community: [%s]", strings.Join(quoted, ", "))
	line("gateway: {ipv4: %q, ipv6: %q, mac: %q}", c.Gateway.IPv4, c.Gateway.IPv6, c.Gateway.MAC)
	line("timers: {hold: %s, connect_retry: %s, restart: %s}", c.Timers.Hold, c.Timers.ConnectRetry, c.Timers.Restart)
	line("pools:")
	for _, p := range c.Pools {
		line("  - {name: %s, prefix: %q}", p.Name, p.Prefix)
	}
	line("reflectors:")
	for _, r := range c.Reflectors {
		line("  - {name: %s, address: %q, gtsm: %v, bfd: %v}", r.Name, r.Address, r.GTSM, r.BFD)
	}
	line("core:")
	for _, r := range c.Core {
		line("  - {name: %s, address: %q}", r.Name, r.Address)
	}
	line("nodes:")
	for _, n := range c.Nodes {
		line("  - {name: %s, address: %q, address6: %q}", n.Name, n.Address, n.Address6)
	}
	return b.String()
}
