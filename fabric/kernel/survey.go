package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
)

// Survey looks at a node on which no [Dataplane] runs, such as one that is to become
// a node of the cluster. It uses the same means as a Dataplane, and words its findings
// alike. After [Survey.Close], the kernel is as it was before.
type Survey struct {
	cfg    Config
	rtnl   *socket
	trials trials
	ways   wayLookup

	trying sync.Mutex // held during a trial
}

// NewSurvey opens the sockets of a survey. Samples, Underlay, Private, Pools, Routers
// and Guests of the configuration count.
func NewSurvey(cfg Config) (*Survey, error) {
	s := &Survey{cfg: cfg, ways: newWayLookup(cfg)}
	var err error
	if s.rtnl, err = dial(); err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	s.trials.guests.set(samplesOf(cfg.Samples, hasIPv6()))
	s.trials.rtnl, s.trials.underlay, s.trials.ipv6 = s.rtnl, newUnderlay(s.rtnl, cfg.Underlay), hasIPv6()
	s.ways.rtnl = s.rtnl
	s.ways.port = func(bool) (int32, netip.Addr) { return 0, netip.Addr{} }
	return s, nil
}

// Close ends the survey.
func (s *Survey) Close() error { return s.rtnl.Close() }

// SurveyLink is a link of the underlay.
type SurveyLink struct {
	Name string
	MTU  int
	// ReversePath is the link's own rp_filter; the kernel takes the greater one of this
	// and that of all links.
	ReversePath int
}

// Underlay lists the links by which the kernel now reaches the cluster's other machines.
// It needs no rights.
func (s *Survey) Underlay() ([]SurveyLink, error) {
	links, err := s.trials.links()
	if err != nil {
		return nil, fmt.Errorf("underlay: %w", err)
	}
	var all []SurveyLink
	for _, l := range links {
		filter, _ := l.reversePath()
		all = append(all, SurveyLink{l.name, int(l.mtu), int(filter)})
	}
	return all, nil
}

// Ports lists the names of the links with the mark of a port of this cluster.
func (s *Survey) Ports() ([]string, error) {
	replies, err := s.rtnl.Do(rtnl.Message(unix.RTM_GETLINK, netlink.Dump, rtnl.IfInfoMsg(0, 0, 0), nil))
	if err != nil {
		return nil, fmt.Errorf("links: %w", err)
	}
	var names []string
	for _, reply := range replies {
		l, err := parseLink(reply.Data)
		if err != nil {
			continue
		}
		if cluster, _, _, ours := fabric.ParseAlias(l.alias); ours && cluster == s.cfg.Cluster {
			names = append(names, l.name)
		}
	}
	return names, nil
}

// CheckForwarding is that of [Dataplane], with a trial that changes no setting of the
// node. It needs CAP_NET_ADMIN and CAP_NET_RAW.
func (s *Survey) CheckForwarding(ctx context.Context) ([]fabric.ForwardingFault, error) {
	s.trying.Lock()
	defer s.trying.Unlock()
	faults := ForwardingOff("/", s.trials.ipv6)
	trials := trials{rtnl: s.rtnl, underlay: s.trials.underlay, ipv6: s.trials.ipv6}
	var guests []netip.Addr
	for _, guest := range s.trials.guests.get() {
		family := fmt.Sprintf("IPv%d", version(familyOf(guest)))
		if slices.ContainsFunc(faults, func(f fabric.ForwardingFault) bool { return f.Family == family }) {
			continue // nothing passes, and the kernel finds no way for what comes in
		}
		guests = append(guests, guest)
		text, err := s.ways.fault(guest)
		if err != nil {
			return faults, fmt.Errorf("way out: %w", err)
		}
		if text != "" {
			faults = append(faults, fabric.ForwardingFault{Family: family, Text: text})
		}
	}
	trials.guests.set(guests)
	links, err := s.trials.links()
	if err != nil {
		return faults, fmt.Errorf("underlay: %w", err)
	}
	found, err := inTime(ctx, func(ctx context.Context) (findings, error) { return trials.run(ctx, links) })
	s.forgetRule()
	if err != nil {
		return faults, err
	}
	return append(faults, found.faults...), nil
}

// ForwardingOff reports the families that the node does not forward, as the proc file
// system below a root directory shows it.
func ForwardingOff(root string, ipv6 bool) (faults []fabric.ForwardingFault) {
	for _, f := range []struct {
		family, path string
		counts       bool
	}{{"IPv4", "ipv4/ip_forward", true}, {"IPv6", "ipv6/conf/all/forwarding", ipv6}} {
		value, err := os.ReadFile(filepath.Join(root, sysctlRoot, f.path))
		if !f.counts || err != nil || strings.TrimSpace(string(value)) != "0" {
			continue
		}
		name := "net." + strings.ReplaceAll(f.path, "/", ".")
		faults = append(faults, fabric.ForwardingFault{
			Family: f.family,
			Text:   fmt.Sprintf("%s packets to and from guests do not pass this node: setting %s = 0 drops them; sysctl -w %[2]s=1", f.family, name),
		})
	}
	return faults
}

// forgetRule removes the rules of a trial, which a dataplane would leave.
func (s *Survey) forgetRule() {
	var msgs []netlink.Message
	for _, f := range []uint8{unix.AF_INET, unix.AF_INET6} {
		msgs = append(msgs, rule{family: f, priority: fabric.TrialRule, mark: trialMark, table: fabric.TrialTable}.request(unix.RTM_DELRULE, 0))
	}
	_, _ = s.rtnl.Batch(msgs...) // a family that was not tried has no rule
}

// CheckService sends a packet of its own from the address of another machine to a TCP
// port of this node, as if it had come in by the underlay, and drops it before any
// program gets it. It describes what keeps such packets out; empty: nothing does. It
// needs CAP_NET_ADMIN and CAP_NET_RAW.
func (s *Survey) CheckService(ctx context.Context, from, to netip.Addr, port uint16) (text string, err error) {
	s.trying.Lock()
	defer s.trying.Unlock()
	links, err := newUnderlay(s.rtnl, []netip.Addr{from}).links()
	if err != nil || len(links) == 0 {
		return "", err
	}
	l, err := s.rtnl.linkByName(links[0])
	if err != nil {
		return "", fmt.Errorf("link %s: %w", links[0], err)
	}
	ctx, cancel := context.WithTimeout(ctx, trialBound)
	defer cancel()
	c := course{family: familyOf(from), link: l, guest: to, sender: from, service: port}
	o, err := s.knock(ctx, c)
	if err != nil {
		return "", fmt.Errorf("whether TCP port %d is open could not be tried: %w", port, err)
	}
	if o.passed || len(o.steps) > 0 && o.dropper().table == tableName {
		return "", nil
	}
	return closedService(c, o), nil
}

// knock sends the packet of a course to the node itself.
func (s *Survey) knock(ctx context.Context, c course) (o outcome, err error) {
	t, err := openTrial(ctx, s.rtnl, s.trials.ipv6)
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	if err := t.prepare(c); err != nil {
		return o, err
	}
	w := way{c.family, true, unix.IPPROTO_TCP, c.link.name}
	if o, err = t.send(ctx, c, w, trialWait); err == nil && !o.passed {
		o, err = t.send(ctx, c, w, trialPatience)
	}
	return o, err
}

// closedService describes what keeps packets from a port of the node.
func closedService(c course, o outcome) string {
	v := map[uint8]string{unix.AF_INET6: "6"}[c.family]
	accept := fmt.Sprintf("ip%stables -I INPUT -p tcp -s %s --dport %d -j ACCEPT", v, c.sender, c.service)
	where, wayOut := "something at the ingress of "+c.link.name+", before the chains of nftables,", fmt.Sprintf("see nft list ruleset netdev; tc filter show dev %s ingress", c.link.name)
	last := o.dropper()
	switch {
	case last.table == "firewalld":
		where, wayOut = last.place(), fmt.Sprintf("firewall-cmd --permanent --add-rich-rule='rule family=ipv%d source address=%s port port=%d protocol=tcp accept'; firewall-cmd --reload", version(c.family), c.sender, c.service)
	case strings.HasPrefix(last.chain, "ufw"), last.policy && hasUFW():
		where, wayOut = last.place(), fmt.Sprintf("ufw allow proto tcp from %s to any port %d", c.sender, c.service)
	case last.table != "" && last.family != unix.NFPROTO_INET && last.chain == strings.ToUpper(last.chain):
		where, wayOut = last.place(), accept
	case last.table != "":
		b := base(o.steps)
		where, wayOut = last.place(), fmt.Sprintf("nft insert rule %s %s %s ip%s saddr %s tcp dport %d accept", familyWord(b.family), b.table, b.chain, v, c.sender, c.service)
	case slices.Contains(legacyTables(c.family), "filter"):
		where, wayOut = "chain INPUT of iptables-legacy", strings.Replace(accept, "tables", "tables-legacy", 1)
	case len(o.steps) > 0:
		where, wayOut = "the routing of what comes in from "+c.link.name, fmt.Sprintf("see ip -%d route get %s from %s iif %s", version(c.family), c.guest, c.sender, c.link.name)
	}
	if last.policy {
		where += " (policy drop)"
	}
	return fmt.Sprintf("packets of %s to TCP port %d of this node (%s) do not come in: %s drops them; %s", c.sender, c.service, c.guest, where, wayOut)
}

// hasUFW reports whether ufw has made its chains.
func hasUFW() bool {
	chains, err := listChains()
	return err == nil && slices.ContainsFunc(chains, func(c chain) bool { return strings.HasPrefix(c.name, "ufw") && strings.HasSuffix(c.name, "-input") })
}

// HasFilter reports whether the fabric's nftables tables are there.
func (s *Survey) HasFilter() (bool, error) {
	c, err := openTables()
	if err != nil {
		return false, fmt.Errorf("nftables: %w", err)
	}
	tables, err := c.ListTables()
	if err != nil {
		return false, fmt.Errorf("nftables: %w", err)
	}
	found := 0
	for _, t := range tables {
		if t.Name == tableName && (t.Family == nftables.TableFamilyINet || t.Family == nftables.TableFamilyARP) {
			found++
		}
	}
	return found == 2, nil
}

// RestoreFilter makes the fabric's nftables tables, as far as they work without an agent.
func (s *Survey) RestoreFilter() error {
	if err := newFilter(s.cfg, requests{}).ensure(nil); err != nil {
		return fmt.Errorf("nftables table %s: %w", tableName, err)
	}
	return nil
}

// Probed says how a kernel was found.
type Probed struct {
	Faults []string `json:"faults"` // what does not work
	Notes  []string `json:"notes"`  // what works in another way than with a newer kernel, or does not, and not every node needs
}

// ProbeFeatures tries in an empty network namespace what a node needs of its kernel:
// it opens a dataplane there, makes ports of all kinds, and lets the dataplane try
// forwarding. The whole process must be in that namespace.
func ProbeFeatures(ctx context.Context) (p Probed) {
	r, err := dial()
	if err != nil {
		p.Faults = []string{err.Error()}
		return p
	}
	defer r.Close()
	p.Faults, p.Notes = r.probeNode(ctx)
	slices.Sort(p.Faults)
	p.Faults = slices.Compact(p.Faults)
	return p
}

func (r *socket) probeNode(ctx context.Context) (lines, notes []string) {
	v4, v6 := netip.MustParseAddr("10.147.0.2"), netip.MustParseAddr("fd00:147::2")
	if err := r.probeUnderlay(v4, v6); err != nil {
		return []string{fmt.Sprintf("make a veth pair: %v; load veth", err)}, nil
	}
	d, err := New(ctx, Config{
		Cluster: "probe", Underlay: []netip.Addr{v4, v6}, NextHop: v4.Prev(), NextHop6: v6.Prev(),
		Samples: []netip.Addr{netip.MustParseAddr("203.0.113.254"), netip.MustParseAddr("2001:db8::254")},
	})
	if err != nil {
		return []string{err.Error()}, nil
	}
	defer d.Close()
	for i, kind := range []fabric.Kind{fabric.Tap, fabric.Veth} {
		if kind == fabric.Tap && !d.features.has(tapDevice) {
			continue // it is noted
		}
		p := fabric.Port{
			Cluster: "probe", VM: "probe", Index: i, Name: fabric.PortName("probe", i), Gateway: fabric.Gateway{IPv4: v4, MAC: fabric.DefaultMAC},
			NIC: fabric.NIC{Kind: kind, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)})}},
		}
		if err := d.Put(ctx, p); err != nil {
			lines = append(lines, fmt.Sprintf("a port of kind %v cannot be made: %v", kind, err))
		}
	}
	lines = append(lines, d.conditions.list()...)
	if _, err := d.forwarding.check(ctx); err != nil {
		lines = append(lines, err.Error())
	}
	d.features.lacks[setCounters] = probeSetCounters() // New does so where packets are counted
	return lines, append(d.features.notes(), d.Notes()...)
}

// probeUnderlay makes a link with routes to two addresses.
func (r *socket) probeUnderlay(v4, v6 netip.Addr) error {
	const near, far = "under0", "under1"
	if err := r.addVeth(near, far, trialMAC, 0, txQueueLength); err != nil {
		return err
	}
	var msgs []netlink.Message
	var index int32
	for _, name := range []string{far, near} {
		l, err := r.linkByName(name)
		if err != nil {
			return err
		}
		index = l.index
		msgs = append(msgs, rtnl.Message(unix.RTM_SETLINK, netlink.Acknowledge, rtnl.IfInfoMsg(index, unix.IFF_UP, unix.IFF_UP), nil))
	}
	for _, a := range []netip.Addr{v4, v6} {
		msgs = append(msgs, routeMessage(unix.RTM_NEWROUTE, netlink.Create|netlink.Replace, route{prefix: fabric.HostPrefix(a), index: index}))
	}
	errs, err := r.Batch(msgs...)
	if !hasIPv6() {
		errs = errs[:len(errs)-1]
	}
	return errors.Join(append(errs, err)...)
}
