package kernel

import (
	"errors"
	"fmt"
	"math"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/capture"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
)

// nowhere is a next hop that no machine has (RFC 6666), and noLink an index of no link.
var nowhere = netip.MustParseAddr("100::147")

const noLink = math.MaxInt32

// probe tries which features the kernel has. It asks for what cannot be done, so that the
// answer tells a kernel that knows the question from one that does not, and changes
// nothing. Only an answer that such a kernel gives counts as a lack: what fails otherwise
// fails again when it is needed, with its reason.
//
// Whether sets count is tried where somebody wants to know: that takes a node with many
// rules a moment. It does not try redirection and veth pairs, which the trial of forwarding needs and
// makes itself, nor whether links can be renamed while they are up, or say their mode: the
// kernel says so when one is, or does.
func (r *socket) probe(ipv6, setsCount bool) *features {
	f := &features{}
	if !r.Strict() {
		f.lacks[strictListings] = unix.ENOPROTOOPT
	}
	if !ipv6 {
		f.lacks[ipv6Family] = errors.New("there is no /proc/sys/net/ipv6")
	}
	f.lacks[altNames] = unknownTo(r.addAltName(noLink, "vmfabric"), unix.EOPNOTSUPP)
	_, err := r.Do(rtnl.Message(unix.RTM_GETNEIGH, 0, ndmsg(netip.IPv4Unspecified(), loopbackIndex, 0, 0), func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.NDA_DST, netip.IPv4Unspecified().AsSlice())
	}))
	f.lacks[neighbourLookup] = unknownTo(err, unix.EOPNOTSUPP)
	f.lacks[policyRules] = r.probeRules(ipv6)
	f.lacks[ipv6NextHops] = r.probeNextHops()
	f.lacks[tapDevice] = probeTaps()
	f.lacks[ignoreOutgoing], f.lacks[packetSockets] = probePacketSockets()
	f.probeFilter()
	if setsCount && f.has(inetTables) {
		f.lacks[setCounters] = probeSetCounters()
	}
	return f
}

// unknownTo returns an error if it is one of those that a kernel gives which does not know
// what it is asked.
func unknownTo(err error, answers ...unix.Errno) error {
	for _, a := range answers {
		if rtnl.Errno(err) == a {
			return err
		}
	}
	return nil
}

// noPolicyRouting are the answers of a kernel without it.
var noPolicyRouting = []unix.Errno{unix.EOPNOTSUPP, unix.EAFNOSUPPORT}

func (r *socket) probeRules(ipv6 bool) error {
	for _, family := range (&host{ipv6: ipv6}).families() {
		head := make([]byte, 12) // struct fib_rule_hdr
		head[0] = family
		_, err := r.Do(rtnl.Message(unix.RTM_GETRULE, netlink.Dump, head, nil))
		if err := unknownTo(err, noPolicyRouting...); err != nil {
			return err
		}
	}
	return nil
}

// probeNextHops asks to change an IPv4 route by an IPv6 next hop, which is not there: where
// the node's way out leads to any next hop, as by a point-to-point link, a new route would
// be made. A kernel that does not know such hops says that the request is invalid, or,
// before 5.0, passes over the hop and misses a link.
func (r *socket) probeNextHops() error {
	routes := newFIBRoutes(fabric.PeerProtocol, fabric.PeerMetric, nil)
	_, err := r.Do(routes.message(unix.RTM_NEWROUTE, 0, fibKey{fabric.HostPrefix(fabric.Metadata4), fabric.PeerMetric}, nowhere))
	return unknownTo(err, unix.EINVAL, unix.ENODEV, unix.EAFNOSUPPORT)
}

func probeTaps() error {
	fd, err := openTun()
	if err == nil {
		defer unix.Close(fd)
		_, err = unix.IoctlGetUint32(fd, unix.TUNGETFEATURES)
	}
	return unknownTo(err, unix.ENOENT, unix.ENXIO, unix.ENODEV, unix.ENOTTY)
}

func probePacketSockets() (outgoing, any error) {
	s, err := capture.Socket(0)
	if err != nil {
		return nil, unknownTo(err, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT)
	}
	defer s.Close()
	err = capture.Control(s, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1) })
	return unknownTo(err, unix.ENOPROTOOPT), nil
}

// probeTable is the name of the tables that a probe makes and removes in one transaction.
const probeTable = tableName + "_trial"

// filterProbe is what a part of the filter needs.
type filterProbe struct {
	feature
	family nftables.TableFamily
	exprs  func() []expr.Any
}

var filterProbes = []filterProbe{
	{inetTables, nftables.TableFamilyINet, accept},
	{fibLookups, nftables.TableFamilyINet, func() []expr.Any { return routed(true) }},
	{limits, nftables.TableFamilyINet, func() []expr.Any {
		return []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: learnRate, Unit: expr.LimitTimeSecond, Burst: learnBurst}}
	}},
	{counters, nftables.TableFamilyINet, func() []expr.Any { return []expr.Any{&expr.Counter{}} }},
	{arpTables, nftables.TableFamilyARP, accept},
	{packetLog, nftables.TableFamilyINet, func() []expr.Any { return logTo(requestGroups[0]) }},
}

// probeFilter tries all that filters need at once, and, where that fails, one thing after
// the other.
func (f *features) probeFilter() {
	if tryRules(filterProbes...) == nil {
		return
	}
	for _, p := range filterProbes {
		f.lacks[p.feature] = unknownTo(tryRules(p), noTables...)
		if !f.has(inetTables) {
			return // the others show nothing then
		}
	}
}

// tryRules makes rules, and removes them in the same transaction.
func tryRules(probes ...filterProbe) error {
	c, err := openTables(nftables.WithSockOptions(roomForAnswers))
	if err != nil {
		return err
	}
	for _, p := range probes {
		table := c.AddTable(&nftables.Table{Family: p.family, Name: probeTable})
		chain := c.AddChain(&nftables.Chain{Name: "rules", Table: table})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: p.exprs()})
		c.DelTable(table)
	}
	return c.Flush()
}

var errCountsNothing = errors.New("the elements of a set have none")

// probeSetCounters looks whether the elements of a set count. A kernel that does not know
// that passes over it without a word.
func probeSetCounters() error {
	c, err := openTables()
	if err != nil {
		return nil
	}
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: probeTable}
	c.AddTable(table)
	c.DelTable(table) // of a probe that was killed
	c.AddTable(table)
	set := &nftables.Set{Table: table, Name: "counting", KeyType: nftables.TypeIPAddr, Counter: true}
	if err := c.AddSet(set, []nftables.SetElement{{Key: netip.IPv4Unspecified().AsSlice()}}); err != nil {
		return nil
	}
	if err := c.Flush(); err != nil {
		return unknownTo(err, noTables...)
	}
	found, counts := false, false
	d, err := openSetDump()
	if err == nil {
		err = d.elements(set, func(e counted) { found, counts = true, e.counts })
		d.close()
	}
	c.DelTable(table)
	if err := errors.Join(err, c.Flush()); err != nil || !found || counts {
		return nil
	}
	return errCountsNothing
}

// openTun opens the device that makes taps.
func openTun() (int, error) {
	// Not by package os, which would register the file with Go's poller for nothing.
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/net/tun: %w; load the tun module: modprobe tun", err)
	}
	return fd, nil
}
