package kernel

import (
	"fmt"
	"strings"
)

// feature is a part of the kernel that not every kernel has on which the fabric runs:
// Linux 4.18 is too old for it, or it can be left out of a build.
type feature int

const (
	strictListings feature = iota
	ignoreOutgoing
	neighbourLookup
	altNames
	liveRename
	ipv6NextHops
	setCounters
	laterSettings
	linkModes
	ipv6Family
	tapDevice
	vethPairs
	policyRules
	packetSockets
	inetTables
	fibLookups
	limits
	counters
	arpTables
	packetLog
	redirection
	numFeatures
)

// featureFacts is what people are told of a feature. docs/versions.md has it as a table.
type featureFacts struct {
	name    string // as in "this kernel has no ..."
	since   string // the version of Linux; empty: all of them may have it
	source  string // the commit of Linux that brought it
	parts   string // modules, or options of the kernel's configuration
	use     string // what it is used for
	without string // what happens without it
	minor   bool   // without it all works in another way, or what few need does not
}

var featureTable = [numFeatures]featureFacts{
	strictListings: {
		name: "listings that the kernel filters", since: "4.20", source: "89d35528d17d", minor: true, use: "listing the fabric's own routes alone",
		without: "the kernel lists the routes of everybody, and the agent picks its own: a listing takes longer on a node that has many others",
	},
	ignoreOutgoing: {
		name: "packet sockets that leave out what is sent", since: "4.20", minor: true, use: "hearing the first frame of a guest",
		without: "the agent is woken by frames to such a guest, too, and passes over them",
	},
	neighbourLookup: {
		name: "look-up of one neighbour", since: "5.0", source: "82cbb5c631a0", minor: true, use: "the way to the node where a guest went",
		without: "the agent lists the neighbours of the link",
	},
	altNames: {
		name: "alternative names of links", since: "5.5", source: "36fbf1e52bd3", minor: true, use: "the full name of a port whose name was shortened",
		without: "the full name is in the link's alias only, where it always is",
	},
	liveRename: {
		name: "renaming of links that are up", since: "6.2", source: "bd039b5ea2a9", minor: true, use: "ports with names of an earlier version of vmfabric",
		without: "such a port is down for a moment when the agent starts, and its routes come again",
	},
	ipv6NextHops: {
		name: "IPv4 routes by IPv6 next hops", since: "5.2", source: "d15662682db2", minor: true, use: "IPv4 guests of nodes that have IPv6 addresses only",
		without: "packets to these guests go by the core gateways; `status` names the first of the routes",
	},
	setCounters: {
		name: "counters in sets of nftables", since: "5.7", source: "65038428b2c6", minor: true, use: "`accounting`",
		without: "packets of guests are not counted, and pay nothing for it; `status` says so where the cluster file asks for it",
	},
	laterSettings: {
		name: "settings `rpl_seg_enabled` and `accept_untracked_na`", since: "5.7 and 5.19", source: "8610c7c6e3bd", minor: true, use: "turning off on ports what they allow",
		without: "there is nothing to turn off",
	},
	linkModes: {
		name: "address generation mode of a link that is asked for without its statistics", since: "6.15, and the stable series from April 2025 on", source: "7ac6ea4a3e08", minor: true, use: "ports that are put again as they are",
		without: "the agent asks for links with their statistics, which takes the kernel longer",
	},
	ipv6Family: {
		name: "IPv6", parts: "`CONFIG_IPV6`; off by `ipv6.disable=1`", use: "IPv6 addresses of guests",
		without: "a guest with an IPv6 address is refused; `status` says so from the start where a pool has such",
	},
	tapDevice: {
		name: "tap devices", parts: "module `tun`, `/dev/net/tun`", use: "ports of virtual machines",
		without: "a port of kind tap is refused; `status` and `doctor` note it from the start, and call it a problem where a guest has such a port",
	},
	vethPairs: {
		name: "veth pairs", parts: "module `veth`", use: "the trial whether packets pass; ports of kind veth",
		without: "a port of kind veth is refused; `status` says that the trial cannot be made",
	},
	policyRules: {
		name: "policy routing", parts: "`CONFIG_IP_MULTIPLE_TABLES`, `CONFIG_IPV6_MULTIPLE_TABLES`", use: "guests that move while they run, the metadata service, the trial",
		without: "a guest that would arrive is refused, to one that moves away packets are lost until routes follow, and there is no metadata; `status` says so from the start",
	},
	packetSockets: {
		name: "packet sockets", parts: "module `af_packet`", use: "answers to DHCP and router solicitations, guests that move, the trial",
		without: "guests get no such answers; of a guest that moves, the agent sends nothing again and hears no first frame; `status` says so from the start",
	},
	inetTables: {
		name: "nftables for IPv4 and IPv6 together", parts: "modules `nf_tables` and, where it is one, `nf_tables_inet`", use: "the filter of the ports, firewalls, isolation, metadata, accounting",
		without: "the filter is off, and guests with a firewall or isolation are refused; `status` says so from the start",
	},
	fibLookups: {
		name: "look-ups of routes by nftables", parts: "modules `nft_fib`, `nft_fib_inet`, `nft_fib_ipv4`, `nft_fib_ipv6`", use: "the check of sources",
		without: "as without nftables: a filter that does not check sources is none",
	},
	limits: {
		name: "rate limits in nftables", parts: "module `nft_limit`", use: "the filter's limits of each port",
		without: "as without nftables",
	},
	counters: {
		name: "counters in nftables", parts: "module `nft_counter`; in `nf_tables` itself from 5.17 on", use: "the reasons why packets were dropped, accounting",
		without: "as without nftables",
	},
	arpTables: {
		name: "nftables for ARP", parts: "`CONFIG_NF_TABLES_ARP`", use: "the limit of ARP of each port",
		without: "the filter is off, as without nftables: a guest could fill the neighbour table of the host",
	},
	packetLog: {
		name: "log statement in nftables and its receiver", parts: "modules `nft_log`, `nfnetlink_log`", use: "requests of guests (DHCP, router solicitations)",
		without: "guests get no answers; `status` says so from the start",
	},
	redirection: {
		name: "redirection of packets to a link's ingress", parts: "modules `sch_ingress`, `cls_u32`, `act_mirred`", use: "the trial whether packets of guests pass this node",
		without: "`status` says that it cannot be tried",
	},
}

// origin says where a feature comes from.
func (f featureFacts) origin() string {
	if f.since != "" {
		return "Linux " + f.since
	}
	return strings.ReplaceAll(f.parts, "`", "")
}

// wayOut says how to come by it.
func (f featureFacts) wayOut() string {
	if f.since != "" {
		return "boot a newer kernel"
	}
	return "load it, or boot a kernel that has it"
}

// features says which features the kernel was found to lack, and how that showed. It is
// made once, by [socket.probe].
type features struct{ lacks [numFeatures]error }

// has reports whether the kernel has a feature. One that is not tried before it is used
// counts as there.
func (f *features) has(which feature) bool { return f.lacks[which] == nil }

// lackError says that the kernel lacks a feature.
type lackError struct {
	feature
	cause error
}

func (e *lackError) Error() string {
	f := featureTable[e.feature]
	return fmt.Sprintf("this kernel has no %s (%s): %v; %s", f.name, f.origin(), e.cause, f.wayOut())
}

func (e *lackError) Unwrap() error { return e.cause }

// lack returns the first of some features that the kernel lacks, as an error.
func (f *features) lack(of ...feature) error {
	for _, which := range of {
		if err := f.lacks[which]; err != nil {
			return &lackError{which, err}
		}
	}
	return nil
}

// noTaps says what does not work without tap devices; empty: they are there.
func (f *features) noTaps() string {
	if err := f.lack(tapDevice); err != nil {
		return fmt.Sprintf("virtual machines with taps cannot be attached: %v", err)
	}
	return ""
}

// filtering are the features without which there is no filter.
var filtering = []feature{inetTables, fibLookups, limits, counters, arpTables}

// notes says of each minor feature that is missing how it goes without.
func (f *features) notes() (lines []string) {
	for which, facts := range featureTable {
		if facts.minor && f.lacks[which] != nil {
			lines = append(lines, fmt.Sprintf("this kernel has no %s (%s); %s", facts.name, facts.origin(), strings.ReplaceAll(facts.without, "`", "")))
		}
	}
	return lines
}

// report sets conditions of what is off from the start, as far as no part of the dataplane
// has one of its own.
func (f *features) report(c *conditions, cfg Config) {
	set := func(about, off string, of ...feature) {
		if err := f.lack(of...); err != nil {
			c.set(about, off+": "+err.Error())
		}
	}
	set("moves", "guests cannot move to this node while they run, those that move away lose packets, and none gets metadata", policyRules)
	set("listening", "of guests that move, nothing is sent again and no first frame is heard", packetSockets)
	if len(samplesOf(cfg.Samples, true)) > len(samplesOf(cfg.Samples, false)) {
		set("ipv6", "guests cannot have IPv6 addresses on this node", ipv6Family)
	}
	if cfg.Accounting != nil {
		set("accounting", "accounting: packets of guests are not counted", inetTables, setCounters)
	}
}
