package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"golang.org/x/sys/unix"
)

// The far end of the way that packets take through a node (RFC 2544, RFC 5180).
var (
	far4 = netip.MustParsePrefix("198.18.0.1/32")
	far6 = netip.MustParsePrefix("2001:2::1/128")
)

// sitePlan is a node to be, and what is measured there.
type sitePlan struct {
	name     string
	guests   int
	sets     []ruleSet
	change   func(*fabric.Cluster) // of what the node's agent knows; nil: nothing
	firewall *fabric.Firewall      // of the measured guests
	toggled  bool                  // the agent answers guests by turns
	guarded  bool                  // more than the filter that each guest has is measured
}

// sitePlans has a node for each number of guests, and one for each choice of a cluster's
// or a guest's that changes the rules.
func sitePlans(guests []int) []sitePlan {
	plain := func(name string, change func(*fabric.Cluster)) sitePlan {
		return sitePlan{name: name, guests: guests[0], sets: []ruleSet{unfiltered, ours}, change: change}
	}
	var plans []sitePlan
	for _, n := range guests {
		plans = append(plans, sitePlan{name: count(n) + " guests", guests: n, sets: slices.Concat([]ruleSet{unfiltered, ours}, others)})
	}
	plans[0].sets = append(plans[0].sets, parts...)
	answering := plain("dhcp and ra on, and off", func(*fabric.Cluster) {}) // it has a file of its own
	answering.toggled = true
	answering.sets = append(answering.sets, unanswering, onceMore)
	counting := plain("accounting on", func(c *fabric.Cluster) { c.Accounting = true })
	counting.sets = []ruleSet{unfiltered, {name: ours.name, tables: []string{filterTable, accountingTable, accounting6}, checks: true}}
	rules := []fabric.Rule{
		{Protocol: fabric.TCP, Ports: []fabric.PortRange{{First: 22, Last: 22}, {First: 80, Last: 80}, {First: 443, Last: 443}}},
		{Protocol: fabric.UDP, Ports: []fabric.PortRange{{First: discard, Last: discard}, {First: 53, Last: 53}}},
		{Protocol: fabric.ICMP},
	}
	filter := fabric.Filter{Rules: rules, Drop: true}
	stateless, stateful := plain("a firewall", nil), plain("a stateful firewall", nil)
	stateless.firewall = &fabric.Firewall{Ingress: filter, Egress: filter}
	stateful.firewall = &fabric.Firewall{Ingress: filter, Egress: filter, Stateful: true}
	for _, p := range []*sitePlan{&counting, &stateless, &stateful} {
		p.guarded = true
	}
	return append(plans, answering, counting, stateless, stateful)
}

// cell is a figure of a node.
type cell struct {
	set string
	way key
}

// site is a node with guests, and ways through it. Its agent stands still.
type site struct {
	plan    sitePlan
	cluster fabric.Cluster
	node    *core.Host
	far     *core.Host // what is beyond the node
	agent   *agent
	tap     int // of the guest behind it; 0: none
	program *classifier
	tables  []string // all that there are
	ways    []*way
	foreign []*way // from the guest behind the tap, with another guest's source
	costs   map[cell][]float64
}

// newSite makes the n-th node of a lab a site. Also with an error its caller closes what
// is returned.
func (b *bench) newSite(ctx context.Context, l *lab, n int, p sitePlan) (*site, error) {
	gs := guests(n*10_000, p.guests)
	s := &site{plan: p, node: l.top.Nodes[fmt.Sprintf("node%d", n+1)], cluster: l.cluster, costs: map[cell][]float64{}}
	var err error
	if s.agent, err = b.startChanged(ctx, l, s.node.Name(), p.change); err != nil {
		return s, err
	}
	middle := (len(gs) - 1) / 2
	byVeth, byTap := gs[middle], gs[middle+1]
	guest, err := s.attach(ctx, l, gs, middle)
	if err != nil {
		return s, err
	}
	if s.tap, err = openTap(s.node, byTap.port()); err != nil {
		return s, err
	}
	if s.far, err = l.AddHost(fmt.Sprintf("far%d", n+1)); err != nil {
		return s, err
	}
	if err := s.cable(ctx, l, guest, byTap); err != nil {
		return s, err
	}
	if err := s.open(l.cluster.Gateway.MAC, guest, byVeth, byTap); err != nil {
		return s, err
	}
	if err := s.settled(ctx, gs); err != nil {
		return s, err
	}
	// It would make what is changed right.
	if err := syscall.Kill(s.agent.Pid(), syscall.SIGSTOP); err != nil {
		return s, err
	}
	if s.program, err = newClassifier(s.node, gs); err != nil {
		return s, err
	}
	return s, s.add(ctx, gs)
}

// attach attaches guests, those in the middle as the ones that are measured. It returns
// the one behind a veth.
func (s *site) attach(ctx context.Context, l *lab, gs []guest, middle int) (*core.Host, error) {
	others := slices.Concat(gs[:middle], gs[middle+2:])
	if _, err := s.agent.askAll(ctx, hooks.Live, others, 64); err != nil {
		return nil, err
	}
	var guest *core.Guest
	for i, kind := range []fabric.Kind{fabric.Veth, fabric.Tap} {
		vm := gs[middle+i].vm(kind)
		vm.Firewall = s.plan.firewall
		_, err := s.agent.ask(ctx, hooks.Live, vm)
		if err == nil && kind == fabric.Veth {
			guest, err = l.AddGuest(s.node, vm, l.cluster.Gateway)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", vm.Name, err)
		}
	}
	return guest.Host, s.agent.adopted(ctx, len(gs))
}

// cable makes a link from the node to the far host. There, as at the guest, packets for
// discard are dropped as they come in. The guest behind the tap answers nobody, so the
// node is told its Ethernet address.
func (s *site) cable(ctx context.Context, l *lab, guest *core.Host, byTap guest) error {
	if err := l.Cable(s.node, "far0", s.far, "far1"); err != nil {
		return err
	}
	if err := s.far.AddAddr("far1", far4, far6); err != nil {
		return err
	}
	if err := errors.Join(lead(s.node, "far0", s.far, "far1", far4, far6), lead(s.far, "far1", s.node, "far0", pool4, pool6)); err != nil {
		return err
	}
	port, err := s.node.Link(byTap.port())
	if err != nil {
		return err
	}
	for _, a := range []netip.Addr{byTap.a4, byTap.a6} {
		n := &netlink.Neigh{LinkIndex: port.Attrs().Index, IP: a.AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}, State: netlink.NUD_PERMANENT}
		if err := s.node.Netlink().NeighSet(n); err != nil {
			return fmt.Errorf("neighbour %s: %w", a, err)
		}
	}
	for host, link := range map[*core.Host]string{s.far: "far1", guest: "eth0"} {
		rules := fmt.Sprintf("table netdev sink { chain in { type filter hook ingress device %s priority 0; udp dport %d drop; }; }", link, discard)
		if _, err := host.Run(ctx, "nft", rules); err != nil {
			return err
		}
	}
	return nil
}

// lead routes prefixes to the other end of a link. Only the link is between the two, so
// that any next hop will do.
func lead(h *core.Host, name string, other *core.Host, peer string, prefixes ...netip.Prefix) error {
	link, err := h.Link(name)
	if err != nil {
		return err
	}
	end, err := other.Link(peer)
	if err != nil {
		return err
	}
	for _, p := range prefixes {
		via := netip.MustParseAddr("198.18.0.254")
		if p.Addr().Is6() {
			via = netip.MustParseAddr("fe80::fe")
		}
		route := &netlink.Route{Dst: ipNet(p), Gw: via.AsSlice(), LinkIndex: link.Attrs().Index, Flags: int(netlink.FLAG_ONLINK), Priority: 1}
		neighbour := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: via.AsSlice(), HardwareAddr: end.Attrs().HardwareAddr, State: netlink.NUD_PERMANENT}
		if err := errors.Join(h.Netlink().NeighSet(neighbour), h.Netlink().RouteAdd(route)); err != nil {
			return fmt.Errorf("route to %s: %w", p, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// open opens the ways through the node.
func (s *site) open(gateway fabric.MAC, guest *core.Host, byVeth, byTap guest) error {
	for _, octets := range frameSizes {
		for _, from := range []bool{true, false} {
			for _, v6 := range []bool{false, true} {
				far, veth, tap := far4.Addr(), byVeth.a4, byTap.a4
				if v6 {
					far, veth, tap = far6.Addr(), byVeth.a6, byTap.a6
				}
				if err := s.openVeth(key{fabric.Veth, octets, from, v6}, guest, veth, far); err != nil {
					return err
				}
				if err := s.openTap(key{fabric.Tap, octets, from, v6}, gateway, tap, veth, far); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (s *site) openVeth(k key, guest *core.Host, inside, outside netip.Addr) (err error) {
	w := &way{key: k}
	if k.from {
		w.arrived = received(s.far, "far1")
		w.send, w.close, err = datagrams(guest, inside, outside, k.payload())
	} else {
		w.arrived = received(guest, "eth0")
		w.send, w.close, err = datagrams(s.far, outside, inside, k.payload())
	}
	if err != nil {
		return fmt.Errorf("%s: %w", k.name(), err)
	}
	s.ways = append(s.ways, w)
	return nil
}

func (s *site) openTap(k key, gateway fabric.MAC, inside, another, outside netip.Addr) error {
	if k.from {
		open := func(src netip.Addr) *way {
			return &way{k, frames(s.tap, k, gateway, src, outside), received(s.far, "far1"), func() error { return nil }}
		}
		s.ways = append(s.ways, open(inside))
		if k.octets == frameSizes[0] {
			s.foreign = append(s.foreign, open(another))
		}
		return nil
	}
	send, done, err := datagrams(s.far, outside, inside, k.payload())
	if err != nil {
		return fmt.Errorf("%s: %w", k.name(), err)
	}
	send, arrived := drained(s.tap, send)
	s.ways = append(s.ways, &way{k, send, arrived, done})
	return nil
}

// settled waits until the agent has made all tables. The counters of guests come last.
func (s *site) settled(ctx context.Context, gs []guest) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	wanted := []string{"list chain inet vmfabric from6"}
	if slices.ContainsFunc(s.plan.sets, func(r ruleSet) bool { return slices.Contains(r.tables, accounting6) }) {
		for _, g := range gs {
			wanted = append(wanted, fmt.Sprintf("get element %s sent_external { %s }", accounting6, g.a6))
		}
	}
	return core.Until(ctx, func() error {
		for _, w := range wanted {
			if _, err := s.node.Run(ctx, "nft", w); err != nil {
				return err
			}
		}
		return nil
	})
}

// add adds the tables that are not the agent's, asleep.
func (s *site) add(ctx context.Context, gs []guest) error {
	var text strings.Builder
	for _, set := range s.plan.sets {
		for _, t := range set.tables {
			if rules := rulesOf[t]; rules != nil && !slices.Contains(s.tables, t) {
				fmt.Fprintf(&text, "table %s {\nflags dormant;\n%s}\n", t, rules(gs))
			}
			if !slices.Contains(s.tables, t) {
				s.tables = append(s.tables, t)
			}
		}
	}
	file := filepath.Join(s.node.Dir(), "tables.nft")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		return err
	}
	_, err := s.node.Run(ctx, "nft", "-f", file)
	return err
}

// use has one rule set work, and no other.
func (s *site) use(ctx context.Context, set ruleSet) error {
	var change strings.Builder
	for _, t := range s.tables {
		flags := ""
		if !slices.Contains(set.tables, t) {
			flags = " { flags dormant; }"
		}
		fmt.Fprintf(&change, "add table %s%s\n", t, flags)
	}
	if _, err := s.node.Run(ctx, "nft", change.String()); err != nil {
		return err
	}
	if s.plan.toggled && slices.Contains(set.tables, filterTable) {
		if err := s.answer(ctx, !set.silent); err != nil {
			return err
		}
	}
	if set.program {
		return s.program.attach()
	}
	return s.program.detach()
}

// answer has the agent answer its guests from now on, or not. It stands still again when
// the packet filter is as that needs it. The agent reads its file also where nothing
// changes: no rule set is measured after a longer rest than another.
func (s *site) answer(ctx context.Context, on bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := changedFile(s.agent.file, s.cluster, func(c *fabric.Cluster) { c.Guests.NoDHCP, c.Guests.NoRA = !on, !on }); err != nil {
		return err
	}
	if err := errors.Join(syscall.Kill(s.agent.Pid(), syscall.SIGCONT), syscall.Kill(s.agent.Pid(), syscall.SIGHUP)); err != nil {
		return err
	}
	err := core.Until(ctx, func() error {
		_, err := s.node.Run(ctx, "nft", "list chain "+filterTable+" requests")
		if on == (err == nil) {
			return nil
		}
		return errors.Join(fmt.Errorf("it has not changed the packet filter: %s", s.agent.Log()), err)
	})
	time.Sleep(aside)
	return errors.Join(err, syscall.Kill(s.agent.Pid(), syscall.SIGSTOP))
}

// close lets the agent go on, which the lab then ends.
func (s *site) close() (err error) {
	for _, w := range s.ways {
		err = errors.Join(err, w.close())
	}
	if s.program != nil {
		err = errors.Join(err, s.program.close())
	}
	if s.tap > 0 {
		err = errors.Join(err, unix.Close(s.tap))
	}
	if s.agent != nil && s.agent.Running() {
		err = errors.Join(err, syscall.Kill(s.agent.Pid(), syscall.SIGCONT))
	}
	return err
}

// rulesOf has the rules of the tables that are not the agent's.
var rulesOf = map[string]func([]guest) string{
	"inet bare_hook": func([]guest) string {
		return "chain sources { type filter hook prerouting priority raw; iifgroup 147 accept; }\n"
	},
	"inet lookups": func([]guest) string {
		return `chain sources {
	type filter hook prerouting priority raw
	iifgroup 147 meta nfproto ipv4 fib saddr . iif oif 0 drop
	iifgroup 147 meta nfproto ipv6 fib saddr . iif oif 0 drop
}
`
	},
	"inet pairs": func(gs []guest) string {
		var four, six []string
		for _, g := range gs {
			four, six = append(four, g.port()+" . "+g.a4.String()), append(six, g.port()+" . "+g.a6.String())
		}
		set := func(name, kind string, elements []string) string {
			return fmt.Sprintf("set %s { typeof iif . %s; size 65536; elements = { %s }; }\n", name, kind, strings.Join(elements, ", "))
		}
		return set("four", "ip saddr", four) + set("six", "ip6 saddr", six) + `chain sources {
	type filter hook prerouting priority raw
	iifgroup 147 goto from_ports
}
chain from_ports {
	meta nfproto ipv4 iif . ip saddr @four accept
	iif . ip6 saddr @six accept
	ip6 saddr fe80::/10 accept
	drop
}
`
	},
	"inet walked": func(gs []guest) string {
		var walk strings.Builder
		for _, g := range gs {
			fmt.Fprintf(&walk, "iifname %q jump from_%s\noifname %[1]q jump to_%[2]s\n", g.port(), g.name)
		}
		return guestChains(gs) + "chain forward {\ntype filter hook forward priority filter;\n" + walk.String() + "}\n"
	},
	"inet mapped": func(gs []guest) string {
		var from, to []string
		for _, g := range gs {
			from, to = append(from, fmt.Sprintf("%q : jump from_%s", g.port(), g.name)), append(to, fmt.Sprintf("%q : jump to_%s", g.port(), g.name))
		}
		return guestChains(gs) + fmt.Sprintf(`map senders { type ifname : verdict; elements = { %s }; }
map receivers { type ifname : verdict; elements = { %s }; }
chain forward { type filter hook forward priority filter; iifname vmap @senders; oifname vmap @receivers; }
`, strings.Join(from, ", "), strings.Join(to, ", "))
	},
}

// guestChains has two chains for each guest: what it sends has its addresses, and what it
// gets passes.
func guestChains(gs []guest) string {
	var b strings.Builder
	for _, g := range gs {
		fmt.Fprintf(&b, "chain from_%s { ip saddr %s return; ip6 saddr %s return; drop; }\nchain to_%[1]s { return; }\n", g.name, g.a4, g.a6)
	}
	return b.String()
}
