package kernel

import (
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"
)

const accepts, jumps, queues = 1, -3, 3

var (
	arrived   = traceStep{family: unix.NFPROTO_INET, table: trialName, chain: "arrive", policy: true, verdict: accepts}
	forwarded = traceStep{family: unix.NFPROTO_INET, table: trialName, chain: "forward", policy: true, verdict: accepts}

	inbound4, outbound6 = way{family: unix.AF_INET, inbound: true, link: "eth0"}, way{family: unix.AF_INET6, link: "eth0"}

	wellSet = settingsWith("ipv6/conf/eth0/disable_ipv6", "0")
)

// settingsWith reads settings of a kernel: those that are given, of connection tracking
// none, and 1 for the rest.
func settingsWith(kv ...string) func(string) string {
	return func(path string) string {
		for i := 0; i < len(kv); i += 2 {
			if kv[i] == path {
				return kv[i+1]
			}
		}
		if strings.HasPrefix(path, "netfilter/") {
			return "" // no connection tracking
		}
		return "1"
	}
}

// obstacles are what a packet did on its way, and what then kept it.
var obstacles = map[string]struct {
	way
	steps []traceStep
	evidence
	where, wayOut string
}{
	"nothing was seen": {
		inbound4, nil,
		evidence{setting: wellSet},
		"something at the ingress of eth0, before the chains of nftables,", "see nft list ruleset netdev; tc filter show dev eth0 ingress; ip -d link show eth0",
	},
	"IPv6 is off": {outbound6, nil, evidence{setting: settingsWith()}, "setting net.ipv6.conf.eth0.disable_ipv6 = 1", "sysctl -w net.ipv6.conf.eth0.disable_ipv6=0"},
	"IPv6 is not forwarded": {
		outbound6,
		[]traceStep{arrived},
		evidence{setting: settingsWith("ipv6/conf/eth0/disable_ipv6", "0", "ipv6/conf/all/forwarding", "0")},
		"setting net.ipv6.conf.all.forwarding = 0", "sysctl -w net.ipv6.conf.all.forwarding=1",
	},
	"iptables-legacy, before routing": {
		inbound4,
		[]traceStep{arrived},
		evidence{setting: wellSet, legacy: []string{"filter", "mangle"}},
		"chain PREROUTING of iptables-legacy (table mangle)", "iptables-legacy -t mangle -I PREROUTING -m devgroup --src-group 147 -j ACCEPT; and with each pool for POOL, iptables-legacy -t mangle -I PREROUTING -d POOL -j ACCEPT; what outlives a reload of ufw or firewalld is in packaging/README.md (of the package: /usr/share/doc/vmfabric/README.md)",
	},
	"iptables-legacy": {
		outbound6,
		[]traceStep{arrived, forwarded},
		evidence{setting: wellSet, legacy: []string{"filter", "mangle", "nat"}},
		"chain FORWARD of iptables-legacy (table filter or mangle)", "ip6tables-legacy -I FORWARD -m devgroup --src-group 147 -j ACCEPT; ip6tables-legacy -I FORWARD -m devgroup --dst-group 147 -j ACCEPT; what outlives a reload of ufw or firewalld is in packaging/README.md (of the package: /usr/share/doc/vmfabric/README.md)",
	},
	"connection tracking is full": {
		inbound4,
		[]traceStep{arrived},
		evidence{setting: settingsWith("ipv6/conf/eth0/disable_ipv6", "0", "netfilter/nf_conntrack_count", "4096", "netfilter/nf_conntrack_max", "4096")},
		"connection tracking, whose table is full (4096 of 4096),", "sysctl -w net.netfilter.nf_conntrack_max=8192",
	},
	"no route": {inbound4, []traceStep{arrived}, evidence{setting: wellSet}, "the routing of what comes in from eth0", "see ip -4 rule; ip route get GUEST from 198.41.0.4 iif eth0"},
	"queued for a program": {
		inbound4,
		[]traceStep{arrived, forwarded, {family: unix.NFPROTO_IPV4, table: "ips", chain: "c", rule: 3, verdict: queues}},
		evidence{setting: wellSet},
		"the program that table ip ips chain c queues packets for", "see cat /proc/net/netfilter/nfnetlink_queue",
	},
	"none of these": {inbound4, []traceStep{arrived, forwarded}, evidence{setting: wellSet}, "something between nftables' hooks forward and postrouting, and neither nftables nor iptables,", "see bpftool net list; ipvsadm -Ln"},
	"firewalld over iptables": {
		outbound6,
		[]traceStep{
			arrived, forwarded,
			{family: unix.NFPROTO_IPV6, table: "filter", chain: "FORWARD", rule: 2, verdict: jumps},
			{family: unix.NFPROTO_IPV6, table: "filter", chain: "FWD_public", rule: 60},
		},
		evidence{setting: wellSet, chains: []chain{{unix.NFPROTO_IPV6, "filter", "FORWARD_direct"}}},
		"table ip6 filter chain FWD_public (rule with handle 60, see nft -a list chain ip6 filter FWD_public)",
		"firewall-cmd --permanent --direct --add-rule ipv6 filter FORWARD 0 -m devgroup --src-group 147 -j ACCEPT; the same with --dst-group; firewall-cmd --reload",
	},
	"firewalld": {
		outbound6,
		[]traceStep{arrived, forwarded, {family: unix.NFPROTO_INET, table: "firewalld", chain: "filter_FORWARD", rule: 5}},
		evidence{setting: wellSet},
		"table inet firewalld chain filter_FORWARD (rule with handle 5, see nft -a list chain inet firewalld filter_FORWARD)",
		"make a zone of the pools and a policy for each way, as the section on firewalld in packaging/README.md (of the package: /usr/share/doc/vmfabric/README.md) has them",
	},
	"ufw beside Docker, dropped by ufw": {
		inbound4,
		[]traceStep{
			arrived, forwarded,
			{family: unix.NFPROTO_IPV4, table: "filter", chain: "FORWARD", rule: 2, verdict: jumps},
			{family: unix.NFPROTO_IPV4, table: "filter", chain: "ufw-user-forward", rule: 9},
		},
		evidence{setting: wellSet, chains: []chain{{unix.NFPROTO_IPV4, "filter", "DOCKER-USER"}, {unix.NFPROTO_IPV4, "filter", "ufw-before-forward"}}},
		"table ip filter chain ufw-user-forward (rule with handle 9, see nft -a list chain ip filter ufw-user-forward)",
		"put '-A ufw-before-forward -m devgroup --src-group 147 -j ACCEPT' and '-A ufw-before-forward -m devgroup --dst-group 147 -j ACCEPT' before COMMIT of /etc/ufw/before.rules, then ufw reload",
	},
	"the second chain of a table, after the first has let it go": {
		inbound4,
		[]traceStep{
			arrived, forwarded,
			{family: unix.NFPROTO_INET, table: "t", chain: "one", rule: 2, verdict: accepts},
			{family: unix.NFPROTO_INET, table: "t", chain: "two", rule: 3, verdict: jumps},
			{family: unix.NFPROTO_INET, table: "t", chain: "inner", rule: 4},
		},
		evidence{setting: wellSet},
		"table inet t chain inner (rule with handle 4, see nft -a list chain inet t inner)",
		"nft insert rule inet t two iifgroup 147 accept; nft insert rule inet t two oifgroup 147 accept",
	},
	"before routing": {
		outbound6,
		[]traceStep{arrived, {family: unix.NFPROTO_INET, table: "t", chain: "pre", policy: true}},
		evidence{setting: wellSet},
		"table inet t chain pre (policy drop)",
		"nft insert rule inet t pre iifgroup 147 accept; and with each pool for POOL, nft insert rule inet t pre ip6 daddr POOL accept",
	},
}

func TestExplain(t *testing.T) {
	for name, c := range obstacles {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, obstacle{c.where, c.wayOut}, explain(c.way, outcome{steps: c.steps}, c.evidence))
		})
	}
}

func TestFaults(t *testing.T) {
	one, other := obstacle{"a", "b"}, obstacle{"c", "d"}
	at := func(family uint8, inbound bool, proto uint8, link string, o obstacle) lost {
		return lost{way: way{family, inbound, proto, link}, obstacle: o}
	}
	const tcp, udp = unix.IPPROTO_TCP, unix.IPPROTO_UDP
	var texts []string
	for _, f := range faults([]lost{
		at(unix.AF_INET, true, tcp, "eth0", one), at(unix.AF_INET, false, tcp, "eth0", one), at(unix.AF_INET, true, udp, "eth1", other),
		at(unix.AF_INET6, false, tcp, "eth0", one), at(unix.AF_INET6, false, udp, "eth1", one),
	}, 2) {
		texts = append(texts, f.Family+": "+f.Text)
	}
	assert.Equal(t, []string{
		"IPv4: IPv4 packets (TCP) to and from guests by eth0 do not pass this node: a drops them; b",
		"IPv4: IPv4 packets (UDP) to guests by eth1 do not pass this node: c drops them; d",
		"IPv6: IPv6 packets from guests do not pass this node: a drops them; b",
	}, texts)
}

// FuzzNetfilterMessages: whatever the kernel's messages are, they are read or not.
func FuzzNetfilterMessages(f *testing.F) {
	f.Add(uint16(unix.NFT_MSG_TRACE), []byte{2, 0, 0, 0, 6, 0, 1, 0, 't', 0, 0, 0, 8, 0, 4, 0, 0, 0, 0, 1, 8, 0, 16, 0, 0, 0, 0, 0})
	f.Add(uint16(unix.NFT_MSG_NEWRULE), []byte{2, 0, 0, 0, 6, 0, 1, 0, 't', 0, 0, 0})
	f.Fuzz(func(t *testing.T, kind uint16, data []byte) {
		m := netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind&0xff)}, Data: data}
		if s, ok := parseTrace(m); ok && s.policy && s.drops() {
			assert.NotEmpty(t, s.place())
		}
		ruleChange(m)
	})
}

func TestRuleChange(t *testing.T) {
	table := func(kind uint16, name string) netlink.Message {
		ae := netlink.NewAttributeEncoder()
		ae.String(1, name)
		b, err := ae.Encode()
		assert.NoError(t, err)
		return netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind)}, Data: append([]byte{1, 0, 0, 0}, b...)}
	}
	for _, c := range []struct {
		kind            uint16
		table           string
		concerns, rules bool
	}{
		{unix.NFT_MSG_NEWRULE, "filter", true, true},
		{unix.NFT_MSG_DELTABLE, "filter", true, true},
		{unix.NFT_MSG_NEWSETELEM, "f2b", true, false},
		{unix.NFT_MSG_NEWRULE, tableName, false, true},
		{unix.NFT_MSG_NEWCHAIN, trialName, false, true},
		{unix.NFT_MSG_NEWGEN, "filter", false, false},
	} {
		concerns, rules := ruleChange(table(c.kind, c.table))
		assert.Equal(t, c.concerns, concerns, "%+v", c)
		if concerns {
			assert.Equal(t, c.rules, rules, "%+v", c)
		}
	}
}
