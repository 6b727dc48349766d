package kernel

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
)

// A guest that is isolated, or has a firewall, has two chains of its own: one for the
// packets that it sends, one for those that it gets. The chain guardsChain of the hook
// forward finds them by one lookup of the port's name, which the link need not have yet:
// they stand before the link is there. That chain exists only while a guest needs it, and
// the way of a packet does not become longer with the number of guests.
//
// No connection is tracked: every packet of the node would pay for that, and one guest
// could fill the table of all. TCP needs no more than its flags. What a stateful firewall
// remembers of UDP and echo requests is in sets, by the guest's address.
const (
	guardsChain = "guards"
	guardFrom   = "guarded_from" // maps the name of a port to the chain of its guest's packets
	guardTo     = "guarded_to"

	flowsSize            = 1 << 19 // of all guests with stateful firewalls
	newFlows, flowsBurst = 500, 2000
)

// guard is what the filter does for one guest alone.
type guard struct {
	isolated bool
	firewall *fabric.Firewall
	mark     string // differs for different guards
}

// guardOf returns the guard that a port needs; nil: none.
func guardOf(p fabric.Port) *guard {
	g := &guard{isolated: p.Isolated, firewall: p.Firewall}
	if g.firewall != nil && !g.firewall.Ingress.Filters() && !g.firewall.Egress.Filters() {
		g.firewall = nil
	}
	if !g.isolated && g.firewall == nil {
		return nil
	}
	h := fnv.New64a()
	text, _ := json.Marshal(g.firewall) // plain values
	fmt.Fprintln(h, guardVersion, g.isolated, string(text))
	g.mark = fmt.Sprintf("vmfabric guard %x", h.Sum64())
	return g
}

// guardVersion grows when a guard of the same wishes gets other rules.
const guardVersion = 2

// side is one direction of the guards.
type side struct {
	direction   fabric.Direction
	way         string       // "from" or "to"
	ways        string       // the map of ports
	group, name expr.MetaKey // of the guest's port
	opposite    expr.MetaKey // the group of the other port
	port        func(register uint32) (expr.Any, uint32)
	drop        func(*ruleset, fabric.DropReason) []expr.Any
	reason      fabric.DropReason
}

var sides = []side{
	{fabric.Egress, "from", guardFrom, expr.MetaKeyIIFGROUP, expr.MetaKeyIIFNAME, expr.MetaKeyOIFGROUP, incoming, (*ruleset).drop, fabric.DropEgress},
	{fabric.Ingress, "to", guardTo, expr.MetaKeyOIFGROUP, expr.MetaKeyOIFNAME, expr.MetaKeyIIFGROUP, outgoing, (*ruleset).dropTo, fabric.DropIngress},
}

// chain names the chain of a port.
func (s side) chain(port string) string { return "guard_" + s.way + "_" + port }

// peer returns the offset of the address at the other end.
func (s side) peer(f family) uint32 {
	if s.direction == fabric.Egress {
		return f.dst
	}
	return f.src
}

// flow returns the key of a flow, the guest's end first.
func (s side) flow(f family) []func(uint32) (expr.Any, uint32) {
	if s.direction == fabric.Egress {
		return []func(uint32) (expr.Any, uint32){f.saddr, sport, f.daddr, dport}
	}
	return []func(uint32) (expr.Any, uint32){f.daddr, dport, f.saddr, sport}
}

// echo is the key of an echo request and of its reply.
func (s side) echo(f family) []func(uint32) (expr.Any, uint32) {
	flow := s.flow(f)
	return []func(uint32) (expr.Any, uint32){flow[0], flow[2], header(expr.PayloadBaseTransportHeader, 4, 2)}
}

// addGuards adds what all guards share. With all, every guest is isolated.
func (r *ruleset) addGuards(guests []netip.Prefix, all bool) {
	for _, f := range []family{ipv4, ipv6} {
		r.set(nftables.Set{Name: "guests" + f.digit, KeyType: f.address, Interval: true}, intervals(f.of(guests))...)
		var errors []nftables.SetElement
		for _, n := range f.errors {
			errors = append(errors, nftables.SetElement{Key: []byte{n}})
		}
		r.set(nftables.Set{Name: "icmp_errors" + f.digit, KeyType: octets[1]}, errors...)
		r.flows("flows"+f.digit, f.address, nftables.TypeInetService, f.address, nftables.TypeInetService)
		r.flows("echoes"+f.digit, f.address, f.address, nftables.TypeInetService)
	}
	for _, s := range sides {
		r.set(nftables.Set{Name: s.ways, KeyType: nftables.TypeIFName, IsMap: true, DataType: nftables.TypeVerdict})
		isolated := "isolated_" + s.way
		// Also prefixes that are routed to guests and lie outside of the pools, on this node.
		r.add(isolated, groupIs(s.opposite), s.drop(r, fabric.DropIsolation))
		for _, f := range []family{ipv4, ipv6} {
			r.add(isolated, f.is(), f.in(s.peer(f), "guests"+f.digit, false), s.drop(r, fabric.DropIsolation))
		}
		for _, f := range []family{ipv4, ipv6} {
			request := f.echo[slices.IndexFunc(f.echo, func(n byte) bool { return n != f.reply })]
			r.add("passed_"+s.way, f.is(), f.lateFragment(), leave()) // it has no ports, and what is read as such is its sender's choice
			r.addFlow(s, "flows"+f.digit, key(s.flow(f)...), f.is(), protocol(unix.IPPROTO_UDP))
			r.addFlow(s, "echoes"+f.digit, key(s.echo(f)...), f.is(), f.icmpType(request))
			r.add("answers_"+s.way, f.is(), protocol(unix.IPPROTO_UDP), key(s.flow(f)...), found("flows"+f.digit), remember("flows"+f.digit, flowFor, true), leave())
			r.add("answers_"+s.way, f.is(), f.icmpType(f.reply), key(s.echo(f)...), found("echoes"+f.digit), leave())
		}
		r.add("answers_"+s.way, s.drop(r, s.reason))
		for _, f := range []family{ipv4, ipv6} {
			// It would be put over the first one's flags of TCP (RFC 3128). Nobody sends eight bytes first.
			r.add("later_fragment_"+s.way, f.is(), f.fragmentAt(expr.CmpOpEq, 1), s.drop(r, s.reason))
		}
		r.add("first_fragment_"+s.way, []expr.Any{load(expr.PayloadBaseTransportHeader, 0, 4, 1)}, leave())
		r.add("first_fragment_"+s.way, s.drop(r, s.reason))
	}
	r.dynamic("new_flows", nftables.TypeIFIndex)
	if all {
		r.base("isolation", nftables.ChainHookForward, nftables.ChainPriorityFilter)
		for _, s := range sides {
			r.add("isolation", groupIs(s.group), jump("isolated_"+s.way))
		}
	}
}

// flows adds a set of what passed.
func (r *ruleset) flows(name string, parts ...nftables.SetDatatype) {
	r.dynamic(name, parts...)
	r.sets[len(r.sets)-1].Size = flowsSize
}

// addFlow remembers a packet that passed. Each port has a limit of new flows a second; a
// flow beyond it passes, and its answers do not.
func (r *ruleset) addFlow(s side, set string, key []expr.Any, match ...[]expr.Any) {
	is, chain := slices.Concat(match...), "passed_"+s.way
	r.add(chain, is, key, found(set), remember(set, flowFor, true), leave())
	r.add(chain, is, meterBy(s.port, "new_flows", newFlows, expr.LimitTimeSecond, flowsBurst, true), leave())
	r.add(chain, is, key, remember(set, flowFor, false), leave())
}

// guardRules are the rules of one chain, and the sets that they look up.
type guardRules struct {
	table *nftables.Table
	rules [][]expr.Any
	sets  []anonymous
	next  *uint32 // the number of the next set in the transaction
}

// anonymous is a set without a name, of one rule.
type anonymous struct {
	set      *nftables.Set
	elements []nftables.SetElement
}

func (g *guardRules) add(parts ...[]expr.Any) { g.rules = append(g.rules, slices.Concat(parts...)) }

// among matches what is in register 1 if it is in an interval.
func (g *guardRules) among(t nftables.SetDatatype, elements []nftables.SetElement) []expr.Any {
	*g.next++
	s := &nftables.Set{Table: g.table, ID: *g.next, Name: "__set%d", Anonymous: true, Constant: true, Interval: true, KeyType: t}
	g.sets = append(g.sets, anonymous{s, elements})
	return []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID}}
}

// compile makes the rules of one side of a guard. A packet that passes leaves the chain:
// the guest at the other end may have a guard, too.
func (s side) compile(r *ruleset, w *guard, next *uint32) *guardRules {
	g := &guardRules{table: r.table, next: next}
	if w.isolated {
		g.add(jump("isolated_" + s.way))
	}
	if w.firewall == nil {
		return g
	}
	filter, pass := w.firewall.Ingress, leave()
	if s.direction == fabric.Egress {
		filter = w.firewall.Egress
	}
	if w.firewall.Stateful {
		pass = goTo("passed_" + s.way)
	}
	drop := goTo(droppedChain(s.reason, s.direction == fabric.Ingress))
	if filter.Filters() {
		for _, f := range []family{ipv4, ipv6} {
			g.add(f.is(), f.lateFragment(), goTo("later_fragment_"+s.way)) // what is read of it as a header is its sender's choice
			g.add(f.is(), protocol(f.icmp), []expr.Any{
				load(expr.PayloadBaseTransportHeader, 0, 1, 1), &expr.Lookup{SourceRegister: 1, SetName: "icmp_errors" + f.digit},
			}, leave())
		}
		// One whose extension headers leave the ports to a later one hides them from every rule (RFC 7112).
		g.add(ipv6.is(), []expr.Any{fragmentOffset}, jump("first_fragment_"+s.way))
	}
	for _, rule := range filter.Rules {
		verdict := pass
		if rule.Drop {
			verdict = drop
		}
		s.add(g, rule, verdict)
	}
	switch {
	case !filter.Drop:
		g.add(pass)
	case w.firewall.Stateful:
		g.add(connected(), leave())
		g.add(goTo("answers_" + s.way))
	default:
		g.add(connected(), leave())
		g.add(drop)
	}
	return g
}

// add adds a rule of a firewall, once for both families if it can be.
func (s side) add(g *guardRules, rule fabric.Rule, verdict []expr.Any) {
	if len(rule.Peers) == 0 && rule.Protocol != fabric.ICMP {
		g.add(g.protocol(rule, ipv4), verdict)
		return
	}
	for _, f := range []family{ipv4, ipv6} {
		for _, part := range (fabric.Filter{Rules: []fabric.Rule{rule}}).Of(f.size == 4).Rules {
			g.add(f.is(), g.protocol(part, f), g.peers(part.Peers, f, s.peer(f)), verdict)
		}
	}
}

func (g *guardRules) peers(peers []netip.Prefix, f family, offset uint32) []expr.Any {
	switch len(peers) {
	case 0:
		return nil
	case 1:
		return f.compare(offset, expr.CmpOpEq, peers[0])
	}
	return append([]expr.Any{load(expr.PayloadBaseNetworkHeader, offset, f.size, 1)}, g.among(f.address, intervals(joined(f.of(peers))))...)
}

// protocol matches the protocol and the ports of a rule.
func (g *guardRules) protocol(r fabric.Rule, f family) []expr.Any {
	var is []expr.Any
	switch r.Protocol {
	case fabric.ICMP:
		return protocol(f.icmp)
	case fabric.TCP:
		is = protocol(unix.IPPROTO_TCP)
	case fabric.UDP:
		is = protocol(unix.IPPROTO_UDP)
	}
	if len(r.Ports) == 0 {
		return is
	}
	is = append(is, load(expr.PayloadBaseTransportHeader, 2, 2, 1))
	first, last := binaryutil.BigEndian.PutUint16(r.Ports[0].First), binaryutil.BigEndian.PutUint16(r.Ports[0].Last)
	switch {
	case len(r.Ports) > 1:
		return append(is, g.among(nftables.TypeInetService, portIntervals(r.Ports))...)
	case r.Ports[0].First == r.Ports[0].Last:
		return append(is, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: first})
	}
	return append(is, &expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: first, ToData: last})
}

// portIntervals returns the elements of a set of ports. Ranges that touch become one.
func portIntervals(ranges []fabric.PortRange) (elements []nftables.SetElement) {
	sorted := slices.SortedFunc(slices.Values(ranges), func(a, b fabric.PortRange) int { return int(a.First) - int(b.First) })
	for i := 0; i < len(sorted); {
		first, last := sorted[i].First, int(sorted[i].Last)
		for i++; i < len(sorted) && int(sorted[i].First) <= last+1; i++ {
			last = max(last, int(sorted[i].Last))
		}
		elements = append(elements, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(first)})
		if last < 65535 {
			elements = append(elements, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(uint16(last + 1)), IntervalEnd: true})
		}
	}
	return elements
}

// joined makes one of sorted spans that touch.
func joined(spans []span) (all []span) {
	for _, s := range spans {
		n := len(all) - 1
		switch {
		case n >= 0 && (s.first.Compare(all[n].last) <= 0 || s.first == all[n].last.Next()):
			if s.last.Compare(all[n].last) > 0 {
				all[n].last = s.last
			}
		default:
			all = append(all, s)
		}
	}
	return all
}

// madeGuard is a guard as the kernel has it.
type madeGuard struct {
	mark  string
	rules [2]int // how many, by side
}

// setGuards queues on c the changes that make the guards as they are wanted. intact says
// that the table was there already. It returns the guards as they are after that.
func (f *filter) setGuards(c *nftables.Conn, intact bool) (is map[string]madeGuard, changed bool, err error) {
	is = f.guards
	switch {
	case !intact:
		is = map[string]madeGuard{}
	case is == nil:
		if is, err = f.listGuards(); err != nil {
			return nil, false, err
		}
	}
	var want map[string]*guard
	if f.wantedGuards != nil {
		want = f.wantedGuards(!intact || f.guards == nil)
	}
	hooked, next := len(is) > 0, uint32(len(f.ports.sets))
	for _, port := range slices.Sorted(maps.Keys(want)) {
		g := want[port]
		was, there := is[port]
		switch {
		case g == keepGuard, g == nil && !there, g != nil && there && was.mark == g.mark:
			continue
		case g == nil:
			err = f.dropGuard(c, port)
			delete(is, port)
		default:
			is[port], err = f.putGuard(c, port, g, there, &next)
		}
		if changed = true; err != nil {
			return nil, true, err
		}
	}
	f.hookGuards(c, hooked, len(is) > 0)
	return is, changed, nil
}

// hookGuards adds the chain that finds the guards, or removes it.
func (f *filter) hookGuards(c *nftables.Conn, was, is bool) {
	chain := &nftables.Chain{Name: guardsChain, Table: f.ports.table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter}
	switch {
	case is && !was:
		c.AddChain(chain)
		for _, s := range sides {
			c.AddRule(&nftables.Rule{Table: f.ports.table, Chain: chain, UserData: f.ports.mark, Exprs: slices.Concat(
				groupIs(s.group), []expr.Any{&expr.Meta{Key: s.name, Register: 1}}, byMap(1, s.ways))})
		}
	case was && !is:
		c.FlushChain(chain)
		c.DelChain(chain)
	}
}

func (f *filter) putGuard(c *nftables.Conn, port string, w *guard, there bool, next *uint32) (made madeGuard, err error) {
	made.mark = w.mark
	mark := userdata.AppendString(nil, userdata.TypeComment, w.mark)
	for i, s := range sides {
		chain := c.AddChain(&nftables.Chain{Name: s.chain(port), Table: f.ports.table})
		if there {
			c.FlushChain(chain)
		}
		compiled := s.compile(f.ports, w, next)
		for _, set := range compiled.sets {
			if err := c.AddSet(set.set, set.elements); err != nil {
				return made, fmt.Errorf("firewall of %s: %w", port, err)
			}
		}
		made.rules[i] = len(compiled.rules)
		for _, exprs := range compiled.rules {
			c.AddRule(&nftables.Rule{Table: f.ports.table, Chain: chain, Exprs: exprs, UserData: mark})
		}
		if there {
			continue
		}
		if err := c.SetAddElements(f.guardMap(s), []nftables.SetElement{s.element(port)}); err != nil {
			return made, fmt.Errorf("firewall of %s: %w", port, err)
		}
	}
	return made, nil
}

func (f *filter) dropGuard(c *nftables.Conn, port string) error {
	for _, s := range sides {
		if err := c.SetDeleteElements(f.guardMap(s), []nftables.SetElement{s.element(port)}); err != nil {
			return fmt.Errorf("firewall of %s: %w", port, err)
		}
		chain := &nftables.Chain{Name: s.chain(port), Table: f.ports.table}
		c.FlushChain(chain)
		c.DelChain(chain)
	}
	return nil
}

func (f *filter) guardMap(s side) *nftables.Set {
	return &nftables.Set{Table: f.ports.table, Name: s.ways, KeyType: nftables.TypeIFName, IsMap: true, DataType: nftables.TypeVerdict}
}

func (s side) element(port string) nftables.SetElement {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, port)
	return nftables.SetElement{Key: name, VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: s.chain(port)}}
}

// listGuards lists the ports that have both chains, with the marks of their guards.
func (f *filter) listGuards() (map[string]madeGuard, error) {
	rules, err := listRules(f.ports.table)
	if err != nil {
		return nil, err
	}
	ports := map[string]madeGuard{}
	for chain, marks := range rules {
		port, is := strings.CutPrefix(chain, sides[0].chain(""))
		if to := rules[sides[1].chain(port)]; is && len(to) > 0 {
			mark, _ := userdata.GetString([]byte(marks[0]), userdata.TypeComment)
			ports[port] = madeGuard{mark, [2]int{len(marks), len(to)}}
		}
	}
	return ports, nil
}

// guardsIntact reports whether the guards are as they were made.
func (f *filter) guardsIntact(c *nftables.Conn, rules map[string][]string) bool {
	if f.guards == nil {
		return true // an earlier process made them
	}
	if want := min(len(f.guards), 1) * len(sides); len(rules[guardsChain]) != want {
		return false
	}
	for i, s := range sides {
		elements, err := c.GetSetElements(f.guardMap(s))
		if err != nil || len(elements) != len(f.guards) {
			return false
		}
		for port, made := range f.guards {
			is := rules[s.chain(port)]
			comment := string(userdata.AppendString(nil, userdata.TypeComment, made.mark))
			if len(is) != made.rules[i] || slices.ContainsFunc(is, func(m string) bool { return m != comment }) {
				return false
			}
		}
	}
	return true
}

// listRules lists the marks of the rules of a table, by chain.
func listRules(t *nftables.Table) (map[string][]string, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	data, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: []byte(t.Name + "\x00")}})
	if err != nil {
		return nil, err
	}
	replies, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{byte(t.Family), unix.NFNETLINK_V0, 0, 0}, data...),
	})
	if err != nil {
		return nil, err
	}
	rules := map[string][]string{}
	for _, reply := range replies {
		if len(reply.Data) < sizeofNfgenmsg {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(reply.Data[sizeofNfgenmsg:])
		if err != nil {
			return nil, err
		}
		var table, chain, mark string
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_RULE_TABLE:
				table = ad.String()
			case unix.NFTA_RULE_CHAIN:
				chain = ad.String()
			case unix.NFTA_RULE_USERDATA:
				mark = string(ad.Bytes())
			}
		}
		if table == t.Name {
			rules[chain] = append(rules[chain], mark)
		}
	}
	return rules, nil
}

// keepGuard is the guard of a port that was found at the start, and neither put nor
// removed since: whatever it has stays.
var keepGuard = &guard{}

// guarded has the guards of ports. The lock of [ports] is its own.
type guarded struct {
	want    map[string]*guard // by port
	changed map[string]bool   // ports whose guard may be another one since they were taken
}

// set notes the guard of a port; nil: it needs none.
func (t *guarded) set(port string, g *guard) {
	was, had := t.want[port]
	switch {
	case g == nil && !had, g != nil && had && was.mark == g.mark:
		return
	case g == nil:
		delete(t.want, port)
	default:
		t.want[port] = g
	}
	t.changed[port] = true
}

// take gives the guards that are wanted, of all ports or of those that have changed
// since; nil: the port needs none.
func (t *guarded) take(all bool) map[string]*guard {
	taken := map[string]*guard{}
	if all {
		maps.Copy(taken, t.want)
	}
	for port := range t.changed {
		taken[port] = t.want[port]
	}
	clear(t.changed)
	return taken
}

// guards is [guarded.take]. After an error the caller takes all.
func (t *ports) guards(all bool) map[string]*guard {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.guarded.take(all)
}

// guard has the guard of a port stand before the port does.
func (d *Dataplane) guard(p, was fabric.Port) error {
	if guardOf(p) == nil && guardOf(was) == nil {
		return nil
	}
	if p.Isolated && !d.host.filter.knowsPools() {
		return fmt.Errorf("the guest is isolated, and this dataplane does not know the prefixes of other guests; name the pools")
	}
	if err := d.host.filter.ensure(nil); err != nil {
		return fmt.Errorf("firewall: %w", d.host.whyNoFilter(err))
	}
	return nil
}

// findGuards notes which ports have a guard already, and which the caller of [New] knows.
func (d *Dataplane) findGuards(known []fabric.Port) {
	d.host.filter.wantedGuards = d.ports.guards
	d.ports.mu.Lock()
	defer d.ports.mu.Unlock()
	have, _ := d.host.filter.listGuards() // without a table there are none
	for name := range have {
		d.ports.guarded.want[name] = keepGuard
	}
	for _, p := range known {
		if g := guardOf(p); g != nil {
			d.ports.guarded.want[p.Name] = g
		}
	}
}
