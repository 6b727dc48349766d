package kernel

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
)

// obstacle is the part of the node that drops packets of a trial, and the commands
// that let them pass.
type obstacle struct {
	where  string // subject of "... drops them"
	wayOut string
}

// chain is a chain of an nftables table.
type chain struct {
	family      uint8 // NFPROTO_*
	table, name string
}

// evidence is the state of the node that explains a lost packet when the trace does
// not.
type evidence struct {
	chains  []chain                  // of nf_tables, also those of iptables-nft
	legacy  []string                 // tables of the family that iptables-legacy has
	setting func(path string) string // of /proc/sys/net; empty: cannot be read
}

// explain finds the obstacle that dropped a packet of a trial.
func explain(w way, o outcome, e evidence) obstacle {
	if last := o.dropper(); last.table != "" {
		return chainObstacle(w, last, base(o.steps), e.chains, o.forwarded())
	}
	if s, ok := settingObstacle(w, e); ok {
		return s
	}
	count, _ := strconv.Atoi(e.setting("netfilter/nf_conntrack_count"))
	limit, _ := strconv.Atoi(e.setting("netfilter/nf_conntrack_max"))
	if len(o.steps) > 0 && !o.forwarded() && limit > 0 && count >= limit {
		return obstacle{
			fmt.Sprintf("connection tracking, whose table is full (%d of %d),", count, limit),
			fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d", 2*limit),
		}
	}
	in := trialPort
	if w.inbound {
		in = w.link
	}
	hook, tables := "PREROUTING", []string{"raw", "mangle", "nat"}
	if o.forwarded() {
		hook, tables = "FORWARD", []string{"filter", "mangle", "security"}
	}
	tables = slices.DeleteFunc(tables, func(t string) bool { return !slices.Contains(e.legacy, t) })
	switch {
	case len(o.steps) == 0:
		return obstacle{
			"something at the ingress of " + in + ", before the chains of nftables,",
			fmt.Sprintf("see nft list ruleset netdev; tc filter show dev %s ingress; ip -d link show %[1]s", in),
		}
	case len(tables) > 0:
		return obstacle{
			fmt.Sprintf("chain %s of iptables-legacy (table %s)", hook, strings.Join(tables, " or ")),
			iptables(legacyCommand(w.family)+tableOption(tables[0]), hook, o.forwarded()) + "; what outlives a reload of ufw or firewalld is in packaging/README.md (of the package: /usr/share/doc/vmfabric/README.md)",
		}
	case o.steps[len(o.steps)-1].verdict == verdictQueue:
		s := o.steps[len(o.steps)-1]
		return obstacle{fmt.Sprintf("the program that %s queues packets for", s.place()), "see cat /proc/net/netfilter/nfnetlink_queue"}
	case !o.forwarded():
		return obstacle{"the routing of what comes in from " + in, fmt.Sprintf("see ip -%d rule; ip route get %s from %s iif %s", version(w.family), "GUEST", remotes[w.family], in)}
	}
	return obstacle{"something between nftables' hooks forward and postrouting, and neither nftables nor iptables,", "see bpftool net list; ipvsadm -Ln"}
}

// forwarded reports whether the packet got as far as the hook forward.
func (o outcome) forwarded() bool {
	return slices.ContainsFunc(o.steps, func(s traceStep) bool { return s.ours() && s.chain == "forward" })
}

// settingObstacle finds a kernel setting that stops the forwarding of a way's
// packets.
func settingObstacle(w way, e evidence) (obstacle, bool) {
	set := func(path, value string) (obstacle, bool) {
		name := "net." + strings.ReplaceAll(path, "/", ".")
		return obstacle{fmt.Sprintf("setting %s = %s", name, e.setting(path)), "sysctl -w " + name + "=" + value}, true
	}
	in := trialPort
	if w.inbound {
		in = w.link
	}
	if w.family == unix.AF_INET6 {
		if e.setting("ipv6/conf/"+w.link+"/disable_ipv6") == "1" {
			return set("ipv6/conf/"+w.link+"/disable_ipv6", "0")
		}
		if e.setting("ipv6/conf/all/forwarding") == "0" {
			return set("ipv6/conf/all/forwarding", "1")
		}
		return obstacle{}, false
	}
	if e.setting("ipv4/conf/"+in+"/forwarding") == "0" {
		return set("ipv4/conf/"+in+"/forwarding", "1")
	}
	return obstacle{}, false
}

// base returns the base chain of a packet's last step: the first chain that it
// entered since another base chain let it pass.
func base(steps []traceStep) traceStep {
	entered := steps[0]
	for i, s := range steps[1:] {
		if before := steps[i]; before.policy || before.verdict == verdictAccept || before.table != s.table || before.family != s.family {
			entered = s
		}
	}
	return entered
}

// chainObstacle describes an nf_tables chain that drops packets. The way out
// depends on the program that owns the chain.
func chainObstacle(w way, s, base traceStep, chains []chain, forwarded bool) obstacle {
	o := obstacle{where: s.place()}
	switch {
	case s.policy:
		o.where += " (policy drop)"
	default:
		o.where += fmt.Sprintf(" (rule with handle %d, see nft -a list chain %s %s %s)", s.rule, familyWord(s.family), s.table, s.chain)
	}
	has := func(name string) bool { return slices.Contains(chains, chain{s.family, s.table, name}) }
	command := "iptables"
	if s.family == unix.NFPROTO_IPV6 {
		command = "ip6tables"
	}
	six := map[bool]string{true: "6"}[s.family == unix.NFPROTO_IPV6]
	switch xtables := s.family != unix.NFPROTO_INET && base.chain == strings.ToUpper(base.chain); {
	case s.table == tableName:
		o.wayOut = "it is the fabric's own; see the agent's log: journalctl -u vmfabric"
	case s.table == "firewalld":
		o.wayOut = "make a zone of the pools and a policy for each way, as the section on firewalld in packaging/README.md (of the package: /usr/share/doc/vmfabric/README.md) has them"
	case xtables && has("DOCKER-USER") && !strings.HasPrefix(s.chain, "ufw"):
		o.wayOut = iptables(command, "DOCKER-USER", true)
	case xtables && has("ufw"+six+"-before-forward"):
		o.wayOut = fmt.Sprintf("put '-A ufw%s-before-forward -m devgroup --src-group %d -j ACCEPT' and '-A ufw%[1]s-before-forward -m devgroup --dst-group %[2]d -j ACCEPT' before COMMIT of /etc/ufw/before%[1]s.rules, then ufw reload", six, fabric.LinkGroup)
	case xtables && has("FORWARD_direct"):
		o.wayOut = fmt.Sprintf("firewall-cmd --permanent --direct --add-rule ipv%d filter FORWARD 0 -m devgroup --src-group %d -j ACCEPT; the same with --dst-group; firewall-cmd --reload", map[string]int{"": 4, "6": 6}[six], fabric.LinkGroup)
	case xtables:
		o.wayOut = iptables(command+tableOption(s.table), base.chain, forwarded)
	case forwarded:
		into := fmt.Sprintf("%s %s %s", familyWord(s.family), s.table, base.chain)
		o.wayOut = fmt.Sprintf("nft insert rule %s iifgroup %d accept; nft insert rule %[1]s oifgroup %[2]d accept", into, fabric.LinkGroup)
	default:
		into := fmt.Sprintf("%s %s %s", familyWord(s.family), s.table, base.chain)
		o.wayOut = fmt.Sprintf("nft insert rule %s iifgroup %d accept; and with each pool for POOL, nft insert rule %[1]s ip%[3]s daddr POOL accept",
			into, fabric.LinkGroup, map[uint8]string{unix.AF_INET6: "6"}[w.family])
	}
	return o
}

// iptables returns the commands that let packets from and to ports pass a chain.
// Before the kernel has routed a packet, only its destination address can tell that
// it goes to a port.
func iptables(command, chain string, forwarded bool) string {
	from := fmt.Sprintf("%s -I %s -m devgroup --src-group %d -j ACCEPT", command, chain, fabric.LinkGroup)
	if !forwarded {
		return fmt.Sprintf("%s; and with each pool for POOL, %s -I %s -d POOL -j ACCEPT", from, command, chain)
	}
	return fmt.Sprintf("%s; %s -I %s -m devgroup --dst-group %d -j ACCEPT", from, command, chain, fabric.LinkGroup)
}

// tableOption returns the option by which iptables needs a table other than filter.
func tableOption(table string) string {
	if table == "filter" {
		return ""
	}
	return " -t " + table
}

func legacyCommand(family uint8) string {
	if family == unix.AF_INET6 {
		return "ip6tables-legacy"
	}
	return "iptables-legacy"
}

func (s traceStep) place() string {
	return fmt.Sprintf("table %s %s chain %s", familyWord(s.family), s.table, s.chain)
}

// familyWord returns nft's name of a family of tables.
func familyWord(family uint8) string {
	switch family {
	case unix.NFPROTO_IPV4:
		return "ip"
	case unix.NFPROTO_IPV6:
		return "ip6"
	case unix.NFPROTO_INET:
		return "inet"
	}
	return fmt.Sprintf("of family %d", family)
}

func version(family uint8) int {
	if family == unix.AF_INET6 {
		return 6
	}
	return 4
}

// lost is a way whose packet got lost in a trial.
type lost struct {
	way
	obstacle
	unnotified bool // the obstacle goes without a notification
}

// faults returns one fault for each obstacle and family.
func faults(all []lost, links int) []fabric.ForwardingFault {
	type key struct {
		family uint8
		obstacle
	}
	ways := map[key][]way{}
	var order []key
	for _, l := range all {
		k := key{l.family, l.obstacle}
		if ways[k] == nil {
			order = append(order, k)
		}
		ways[k] = append(ways[k], l.way)
	}
	var lines []fabric.ForwardingFault
	for _, k := range order {
		family := fmt.Sprintf("IPv%d", version(k.family))
		lines = append(lines, fabric.ForwardingFault{
			Family: family,
			Text:   fmt.Sprintf("%s packets %s do not pass this node: %s drops them; %s", family, describeWays(ways[k], links), k.where, k.wayOut),
		})
	}
	return lines
}

// describeWays describes the packets of some ways, such as "(TCP) to guests".
func describeWays(ways []way, links int) string {
	any := func(f func(way) bool) bool { return slices.ContainsFunc(ways, f) }
	tcp, udp := any(func(w way) bool { return w.proto == unix.IPPROTO_TCP }), any(func(w way) bool { return w.proto == unix.IPPROTO_UDP })
	in, out := any(func(w way) bool { return w.inbound }), any(func(w way) bool { return !w.inbound })
	text := map[[2]bool]string{{true, false}: "(TCP) ", {false, true}: "(UDP) "}[[2]bool{tcp, udp}] +
		map[[2]bool]string{{true, true}: "to and from guests", {true, false}: "to guests", {false, true}: "from guests"}[[2]bool{in, out}]
	var names []string
	for _, w := range ways {
		if !slices.Contains(names, w.link) {
			names = append(names, w.link)
		}
	}
	if len(names) < links {
		text += " by " + strings.Join(names, ", ")
	}
	return text
}
