package kernel

import (
	"bytes"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
)

// tableName is the name of the fabric's nftables tables, of the families inet and
// arp. The filter touches no other table.
const tableName = "vmfabric"

// arrivingMap maps the name of a port whose guest is about to arrive to the chain
// that lets that guest's packets pass.
const arrivingMap = "arriving"

// filter decides by nftables which packets the node lets in from its ports. Its
// work for a packet does not grow with the number of guests, and a guest that
// starts or stops changes nothing in it.
//
//   - The routing table must lead to the port for a packet's source (BCP 38). IPv4
//     has rp_filter for that, too, which the host's own setting of conf.all can
//     loosen; IPv6 has no such sysctl. The lookup of an IPv6 route costs a quarter
//     of a small packet's way, that of an IPv4 route a tenth. So the filter remembers
//     a port and a source that passed for half a minute, and forgets them when the
//     dataplane takes an address from a port.
//   - One map of address ranges, without guests and the Internet, decides by the
//     destination. The filter drops packets to loopback, multicast and reserved
//     addresses whatever route_localnet says. To the underlay and 169.254.0.0/16
//     only answers pass: the host must have sent to that guest within the last day.
//     A TCP segment must not be a SYN, a UDP datagram must answer one of the last
//     minutes, an ICMP error must not quote a packet between other hosts of the
//     underlay. The filter does without connection tracking, which every packet of
//     the node would pay for.
//   - To the node itself pass echo, errors, neighbor discovery, answers, and
//     packets to the ports that the cluster file opens. DHCP requests and router
//     solicitations are logged for the responder, and dropped.
//   - A guest that is isolated, or has a firewall, has chains of its own, see guard.go.
//   - ARP and neighbor discovery have a rate limit for each port. Sources that are
//     new to the node in them have another, and so have new link-local sources of
//     any packet: the neighbour tables are the whole host's.
//
// The main table does not route a guest that is about to arrive to its port, and
// the guest may begin to run before the agent knows. A chain of its port lets
// packets from its own addresses pass.
type filter struct {
	ports     *ruleset // of the family inet
	neighbour *ruleset // of the family arp
	pools     bool     // it knows the prefixes of guests

	mu       sync.Mutex
	seen     uint32 // generation of the ruleset at which the fabric's tables were right; 0: none
	broken   bool   // the last change failed
	known    bool
	arriving map[string][]netip.Prefix // by port
	dropped  dropCounts
	guards   map[string]madeGuard // by port; nil: an earlier process made them

	// wantedGuards gives the guards of all ports, or of those whose guard has changed
	// since the call before; nil: whatever the kernel has stays.
	wantedGuards func(all bool) map[string]*guard
}

func newFilter(cfg Config, q requests) *filter {
	return &filter{ports: portRules(cfg, q), neighbour: arpRules(), pools: len(cfg.Pools) > 0}
}

// requests says which requests of guests the filter logs for the responder, to
// which group of nfnetlink_log, and where those for metadata go.
type requests struct {
	dhcp4, dhcp6, ra bool
	group            uint16
	metadata         uint16 // the TCP port of the metadata service; 0: there is none
}

// requestsOf returns what a cluster's guests ask the responder. A DHCP server that
// the operator runs on the nodes, and lets the guests reach, has precedence.
func requestsOf(g fabric.Guests, group uint16) requests {
	served := func(port uint16) bool {
		return slices.Contains(g.NodePorts, fabric.Service{Protocol: "udp", Port: port})
	}
	return requests{
		dhcp4: !g.NoDHCP && !served(serverPort4), dhcp6: !g.NoDHCP && !served(serverPort6), ra: !g.NoRA, group: group,
	}
}

// addRequests takes requests out of a chain, if need be only those that match, so that
// it takes no forwarded packet.
func (r *ruleset) addRequests(chain string, f family, q requests, match ...expr.Any) {
	four := f.proto == ipv4.proto
	if four && q.dhcp4 {
		r.add(chain, f.is(), toService(unix.IPPROTO_UDP, serverPort4), match, goTo("requests"))
	}
	if !four && q.dhcp6 {
		r.add(chain, f.is(), toService(unix.IPPROTO_UDP, serverPort6), match, goTo("requests"))
	}
	if !four && q.ra {
		r.add(chain, f.is(), f.icmpType(solicitation6), match, goTo("requests"))
	}
}

// addAnswering logs requests for the responder. They end there: the node has no socket
// for them, and would answer by an ICMP error.
func (r *ruleset) addAnswering(q requests) {
	if !q.dhcp4 && !q.dhcp6 && !q.ra {
		return
	}
	r.add("requests", meter("requesting", requestRate, expr.LimitTimeSecond, requestBurst, true), r.drop(fabric.DropRequest))
	r.add("requests", logTo(q.group), discard())
}

// toMetadata takes the packets to the metadata service. They come from closed4, before
// what is decided of 169.254.0.0/16, and from chains of link-local addresses: no other
// packet is looked at.
func (r *ruleset) toMetadata(number uint16, chain string, f family) {
	switch {
	case number == 0:
	case f.size == 4:
		r.add(chain, f.destination(expr.CmpOpEq, fabric.HostPrefix(fabric.Metadata4)), toService(unix.IPPROTO_TCP, metadataPort), goTo("metadata"))
	case chain != "closed6":
		// A port whose guest is to have no metadata lacks the address.
		r.add(chain, f.destination(expr.CmpOpEq, fabric.HostPrefix(fabric.Metadata6)), toService(unix.IPPROTO_TCP, metadataPort), destinationIs(unix.RTN_LOCAL, true), goTo("metadata"))
	}
}

// addMetadata adds the chains of the packets to the metadata service, and the rules that
// give its answers the port to which the guest connected.
func (r *ruleset) addMetadata(number uint16) {
	if number == 0 {
		return
	}
	r.add("metadata", setPort(2, number), setMark(fabric.MetadataMark), accept())
	r.add("metadata_clients", meter("metadata_rate", requestRate, expr.LimitTimeSecond, requestBurst, true), r.drop(fabric.DropMetadata))
	r.add("metadata_clients", accept())
	r.dynamic("metadata_rate", nftables.TypeIFIndex)
	r.add("output", groupIs(expr.MetaKeyOIFGROUP), ipv4.is(), ipv4.source(expr.CmpOpEq, fabric.HostPrefix(fabric.Metadata4)), fromService(number), setPort(0, metadataPort))
	r.add("output", groupIs(expr.MetaKeyOIFGROUP), ipv6.is(), ipv6.source(expr.CmpOpEq, fabric.HostPrefix(fabric.Metadata6)), fromService(number), setPort(0, metadataPort))
}

// addErrors lets ICMP errors pass, but for those that quote a packet to the
// underlay: by these a guest could slow down the connections between machines of
// the underlay.
func (r *ruleset) addErrors(chain string, f family) {
	for _, n := range f.errors {
		r.add(chain, f.icmpType(n), f.quotes("private"+f.digit, true), accept())
	}
}

// arpIn is NF_ARP_IN of <linux/netfilter_arp.h>, which x/sys does not have.
const arpIn = 0

// arpRules is the table for ARP. The kernel makes a neighbour of each sender of a
// request.
func arpRules() *ruleset {
	sender := header(expr.PayloadBaseNetworkHeader, 14, 4)
	reply := []expr.Any{
		load(expr.PayloadBaseNetworkHeader, 6, 2, 1),
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, 2}},
	}
	r := newRuleset(nftables.TableFamilyARP)
	r.base("input", nftables.ChainHookRef(arpIn), nftables.ChainPriorityFilter)
	r.counted()
	r.dynamic("solicitations", nftables.TypeIFIndex)
	r.dynamic("new_sources", nftables.TypeIFIndex)
	r.dynamic("replies", nftables.TypeIFIndex)
	r.dynamic("neighbours", nftables.TypeIFIndex, nftables.TypeIPAddr)
	r.add("input", fromPort(), goTo("resolution"))
	r.add("resolution", meter("solicitations", solicitRate, expr.LimitTimeSecond, solicitBurst, true), r.drop(fabric.DropNeighbour))
	r.add("resolution", key(incoming, sender), found("neighbours"), accept())
	r.add("resolution", reply, goTo("replies"))
	r.add("resolution", meter("new_sources", neighbourRate, expr.LimitTimeMinute, neighbourMax, true), r.drop(fabric.DropNewSource))
	r.add("resolution", key(incoming, sender), remember("neighbours", neighbourFor, false), accept())
	r.add("resolution", r.drop(fabric.DropNewSource))
	// The kernel makes a neighbour of the sender of a reply only with arp_accept
	// on. A guest may answer for all of its addresses.
	r.add("replies", meter("replies", neighbourRate, expr.LimitTimeMinute, replyMax, true), r.drop(fabric.DropNewSource))
	r.add("replies", key(incoming, sender), remember("neighbours", neighbourFor, false), accept())
	r.add("replies", r.drop(fabric.DropNewSource))
	return r.finish()
}

var (
	everybody4 = netip.MustParsePrefix("255.255.255.255/32")
	linkLocal6 = netip.MustParsePrefix("fe80::/10")
	onLink6    = netip.MustParsePrefix("ff02::/16") // multicast that no router passes on
)

// octets has the set types of one octet and of two.
var octets = map[uint32]nftables.SetDatatype{1: nftables.TypeInetProto, 2: nftables.TypeInetService}

func services(cfg Config, protocol string) (elements []nftables.SetElement) {
	for _, s := range cfg.Guests.NodePorts {
		if s.Protocol == protocol {
			elements = append(elements, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(s.Port)})
		}
	}
	return elements
}

func portName() []expr.Any { return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}} }

// routed matches a packet whose source is routed to the port that it came in by;
// with false, one whose source is not.
func routed(is bool) []expr.Any {
	op := expr.CmpOpEq
	if is {
		op = expr.CmpOpNeq
	}
	return []expr.Any{
		&expr.Fib{Register: 1, FlagSADDR: true, FlagIIF: true, ResultOIF: true},
		&expr.Cmp{Op: op, Register: 1, Data: binaryutil.NativeEndian.PutUint32(0)},
	}
}

// ensure makes the tables that are missing or wrong. It calls arriving under its
// lock: an older list could take away the chain of a port that another goroutine
// has just made. If arriving is nil, the chains of arriving guests stay.
func (f *filter) ensure(arriving func() map[string][]netip.Prefix) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list map[string][]netip.Prefix
	if arriving != nil {
		list = arriving()
	}
	c, err := openTables(nftables.AsLasting(), nftables.WithSockOptions(roomForAnswers))
	if err != nil {
		return err
	}
	defer func() { _ = c.CloseLasting() }()
	// The next call checks what others change after this.
	generation, err := rulesGeneration()
	if err != nil {
		return err
	}
	intact := generation == f.seen && generation != 0
	if !intact {
		rules, err := listRules(f.ports.table)
		intact = err == nil && !f.broken && f.ports.intact(c, rules) && f.arrivingIntact(c) && f.guardsIntact(c, rules)
		if !intact {
			f.readDrops(c) // what the tables have counted goes with them
			if err := f.ports.rebuild(c); err != nil {
				return err
			}
		}
		if rules, err := listRules(f.neighbour.table); err != nil || !f.neighbour.intact(c, rules) {
			if err := f.neighbour.rebuild(c); err != nil {
				return err
			}
			generation = 0
		}
	}
	changed, err := f.setArriving(c, list, intact)
	if err != nil {
		return err
	}
	guards, guarded, err := f.setGuards(c, intact)
	if err != nil {
		f.seen, f.broken = 0, true
		return err
	}
	if err := c.Flush(); err != nil {
		f.seen, f.broken = 0, true // the next call makes all anew
		return err
	}
	f.seen, f.broken, f.guards = f.seenAfter(generation, intact, changed || guarded), false, guards
	if list != nil {
		f.arriving, f.known = list, true
	}
	return nil
}

// reconfigure changes the table for IP into that of another configuration, in one
// transaction. If that cannot be, the next call of ensure makes it anew.
func (f *filter) reconfigure(cfg Config, q requests) error {
	next := portRules(cfg, q)
	f.mu.Lock()
	defer f.mu.Unlock()
	was := f.ports
	f.ports, f.pools = next, len(cfg.Pools) > 0
	if bytes.Equal(was.mark, next.mark) {
		return nil
	}
	f.seen = 0 // ensure looks at all of it
	c, err := openTables(nftables.AsLasting(), nftables.WithSockOptions(roomForAnswers))
	if err != nil {
		return err
	}
	defer func() { _ = c.CloseLasting() }()
	if rules, err := listRules(was.table); err != nil || !was.intact(c, rules) {
		return nil // somebody has changed it
	}
	err = next.replace(c, was)
	if err == nil {
		err = c.Flush()
	}
	f.broken = f.broken || err != nil
	return err
}

// knowsPools reports whether the filter knows the prefixes of guests.
func (f *filter) knowsPools() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pools
}

// seenAfter returns the generation at which the tables are right after a change, if
// nobody else has made one meanwhile; 0: the next call checks that.
func (f *filter) seenAfter(before uint32, intact, changed bool) uint32 {
	if !intact || before == 0 {
		return 0
	}
	if !changed {
		return before
	}
	if after, err := rulesGeneration(); err == nil && after == before+1 {
		return after
	}
	return 0
}

// setArriving queues on c the changes to the chains of ports whose guests are about
// to arrive. intact says that the table is there already, and not made anew.
func (f *filter) setArriving(c *nftables.Conn, list map[string][]netip.Prefix, intact bool) (changed bool, err error) {
	have, want := f.arriving, list
	if want == nil {
		want = f.arriving
	}
	switch {
	case !intact:
		have = nil
	case list == nil:
		return false, nil
	case !f.known:
		// An earlier process left them.
		if have, err = f.listArriving(c); err != nil {
			return false, err
		}
	}
	ways := f.arrivingSet()
	for _, port := range slices.Sorted(maps.Keys(have)) {
		if _, still := want[port]; still {
			continue
		}
		changed = true
		chain := &nftables.Chain{Name: chainOf(port), Table: f.ports.table}
		if err := c.SetDeleteElements(ways, []nftables.SetElement{wayOf(port)}); err != nil {
			return changed, err
		}
		c.FlushChain(chain)
		c.DelChain(chain)
	}
	for _, port := range slices.Sorted(maps.Keys(want)) {
		was, there := have[port]
		if there && slices.Equal(was, want[port]) {
			continue
		}
		changed = true
		chain := c.AddChain(&nftables.Chain{Name: chainOf(port), Table: f.ports.table})
		if there {
			c.FlushChain(chain)
		}
		for _, p := range want[port] {
			family := ipv4
			if p.Addr().Is6() {
				family = ipv6
			}
			c.AddRule(&nftables.Rule{Table: f.ports.table, Chain: chain, Exprs: slices.Concat(
				family.is(), family.source(expr.CmpOpEq, p), goTo("destination"+family.digit))})
		}
		if err := c.SetAddElements(ways, []nftables.SetElement{wayOf(port)}); err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// arrivingIntact reports whether the chains of arriving guests are as they were
// made.
func (f *filter) arrivingIntact(c *nftables.Conn) bool {
	if !f.known {
		return true // an earlier process made them
	}
	elements, err := c.GetSetElements(f.arrivingSet())
	if err != nil || len(elements) != len(f.arriving) {
		return false
	}
	for port, prefixes := range f.arriving {
		rules, err := c.GetRules(f.ports.table, &nftables.Chain{Name: chainOf(port), Table: f.ports.table})
		if err != nil || len(rules) != len(prefixes) {
			return false
		}
	}
	return true
}

func (f *filter) arrivingSet() *nftables.Set {
	return &nftables.Set{Table: f.ports.table, Name: arrivingMap, KeyType: nftables.TypeIFName, IsMap: true, DataType: nftables.TypeVerdict}
}

func chainOf(port string) string { return arrivingMap + "_" + port }

func wayOf(port string) nftables.SetElement {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, port)
	return nftables.SetElement{Key: name, VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: chainOf(port)}}
}

// listArriving lists the ports that have a chain, without their prefixes.
func (f *filter) listArriving(c *nftables.Conn) (map[string][]netip.Prefix, error) {
	chains, err := c.ListChainsOfTableFamily(f.ports.table.Family)
	if err != nil {
		return nil, err
	}
	ports := map[string][]netip.Prefix{}
	for _, chain := range chains {
		if port, is := strings.CutPrefix(chain.Name, arrivingMap+"_"); is && chain.Table.Name == tableName {
			ports[port] = nil
		}
	}
	return ports, nil
}

// forget empties the sets of checked sources, so that the filter checks each anew.
func (f *filter) forget() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := openTables()
	if err != nil {
		return err
	}
	for _, of := range []family{ipv4, ipv6} {
		c.FlushSet(&nftables.Set{Table: f.ports.table, Name: "checked" + of.digit})
	}
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

const sizeofNfgenmsg = 4 // struct nfgenmsg of <linux/netfilter/nfnetlink.h>
