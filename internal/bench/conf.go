package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
)

// nodeBird returns the configuration of a BIRD that announces a node's guests
// without an agent. It learns guests by source, and announces those in the pools
// with the node as next hop and the cluster's communities.
func (l *lab) nodeBird(node *core.Host, source string) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("log stderr { warning, error, fatal, bug };")
	line("router id %s;", node.Addr4())
	line("protocol device { scan time 10; }")
	line("%s", source)
	line("filter guests {")
	line("\tif net.type = NET_IP4 then { if net !~ [ %s{32,32} ] then reject; }", pool4)
	line("\telse { if net !~ [ %s{128,128} ] then reject; }", pool6)
	for _, c := range l.cluster.Communities {
		if c.Large {
			line("\tbgp_large_community.add((%d, %d, %d));", c.A, c.B, c.C)
		} else {
			line("\tbgp_community.add((%d, %d));", c.A, c.B)
		}
	}
	line("\taccept;\n}")
	hold := int(l.cluster.Timers.Hold.Seconds())
	for i, rr := range l.cluster.Reflectors {
		line("protocol bgp rr%d {", i+1)
		line("\tlocal as %d; neighbor %s as %d; direct;", l.cluster.ASN, rr.Address, rr.ASN)
		line("\thold time %d; keepalive time %d; connect retry time 1; connect delay time 1; error wait time 1, 5;", hold, hold/3)
		line("\tgraceful restart on;")
		line("\tipv4 { import none; export filter guests; next hop self; };")
		line("\tipv6 { import none; export filter guests; next hop self; };")
		line("}")
	}
	return b.String()
}

// The sources from which such a BIRD learns guests.
const (
	// Routes that somebody else put into the kernel's main table.
	birdLearns = `protocol kernel { learn; ipv4 { import all; export none; }; scan time 60; }
protocol kernel { learn; ipv6 { import all; export none; }; scan time 60; }`
	// Addresses of ports, whose peers are the guests.
	birdReads = `protocol direct { ipv4; ipv6; interface "*_net0"; }`
)

// birdFiles returns a source that reads two files of static routes.
func birdFiles(file4, file6 string) string {
	return fmt.Sprintf("protocol static guests4 {\n\tipv4;\ninclude %q;\n}\nprotocol static guests6 {\n\tipv6;\ninclude %q;\n}", file4, file6)
}

// startNodeBird starts such a BIRD and waits for its sessions.
func (l *lab) startNodeBird(ctx context.Context, node *core.Host, source string) (*routers.Bird, error) {
	bird, err := routers.StartBird(ctx, node, l.nodeBird(node, source))
	if err != nil {
		return nil, err
	}
	return bird, established(ctx, bird)
}

// nodeFRR returns the configuration of an FRR that announces its static routes.
func (l *lab) nodeFRR(node *core.Host) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	// A nexthop object needs carrier, which the tap of a guest that does not run
	// yet lacks. A plain route does not need it.
	line("no zebra nexthop kernel enable")
	line("ip prefix-list guests seq 5 permit %s ge 32", pool4)
	line("ipv6 prefix-list guests6 seq 5 permit %s ge 128", pool6)
	var plain, large []string
	for _, c := range l.cluster.Communities {
		if c.Large {
			large = append(large, c.String())
		} else {
			plain = append(plain, c.String())
		}
	}
	for i, list := range []string{"ip address prefix-list guests", "ipv6 address prefix-list guests6"} {
		line("route-map guests permit %d", 10*(i+1))
		line(" match %s", list)
		line(" set community %s", strings.Join(plain, " "))
		line(" set large-community %s", strings.Join(large, " "))
		line("exit")
	}
	hold := int(l.cluster.Timers.Hold.Seconds())
	line("router bgp %d", l.cluster.ASN)
	line(" bgp router-id %s", node.Addr4())
	line(" no bgp default ipv4-unicast")
	line(" bgp graceful-restart")
	line(" timers bgp %d %d", hold/3, hold)
	for _, rr := range l.reflectors() {
		line(" neighbor %s remote-as %d", rr, l.cluster.ASN)
		line(" neighbor %s timers connect 1", rr)
		line(" neighbor %s advertisement-interval 0", rr)
	}
	for _, family := range []string{"ipv4", "ipv6"} {
		line(" address-family %s unicast", family)
		for _, rr := range l.reflectors() {
			line("  neighbor %s activate", rr)
		}
		line("  redistribute static route-map guests")
		line(" exit-address-family")
	}
	return b.String()
}
