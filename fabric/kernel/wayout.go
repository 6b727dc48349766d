package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
	"github.com/vmfabric/vmfabric/internal/signal"
	"golang.org/x/sys/unix"
)

// waysOut knows, for each family that guests have, whether the kernel has a way
// to the outside for what guests send. A trial cannot tell: its packets are routed
// by a table of their own.
type waysOut struct {
	guests   []netip.Addr   // of each family, one address that a guest may have
	pools    []netip.Prefix // what guests have
	inside   []netip.Prefix // what is no outside: the cluster's own machines and its guests
	routers  []netip.Addr   // the core gateways, one of which may be the way
	rtnl     *socket
	port     func(v6 bool) (index int32, guest netip.Addr)
	withheld func(v6 bool) bool // nothing of the family is announced: nobody's packets wait for a way
	log      func(msg string, args ...any)
	kick     signal.Signal
	stop     chan struct{}
	wg       sync.WaitGroup

	looking sync.Mutex // held by whoever looks

	mu     sync.Mutex
	proven map[uint8]netip.Addr // by family, a destination outside that had a way
	faults map[uint8]string
}

// A look at a node without a way lists its routes. It may take one part of so
// many of the time, however often routes change.
const lookShare = 20

func newWaysOut(cfg Config, guests []netip.Addr) *waysOut {
	return &waysOut{
		guests: guests, pools: cfg.Pools, inside: slices.Concat(cfg.Private, cfg.Pools), routers: cfg.Routers,
		kick: signal.New(), stop: make(chan struct{}), proven: map[uint8]netip.Addr{}, faults: map[uint8]string{},
	}
}

// startWaysOut looks for the first time, and goes on at every change.
func (d *Dataplane) startWaysOut() error {
	w := d.waysOut
	if len(w.guests) == 0 {
		return nil
	}
	var err error
	if w.rtnl, err = dial(); err != nil {
		return err
	}
	w.port, w.log = d.watch.cache.anyPort, d.log.Warn
	w.withheld = func(v6 bool) bool { return d.NextHop(v6) != nil }
	w.look()
	w.wg.Go(w.run)
	return nil
}

func (w *waysOut) close() error {
	if w.rtnl == nil {
		return nil
	}
	close(w.stop)
	w.wg.Wait()
	return w.rtnl.Close()
}

// run looks whenever something changed that a way may depend on: a while later,
// when who changes it has done so, and rests in proportion to what the look took.
func (w *waysOut) run() {
	rest := time.Duration(0)
	wait := time.NewTimer(0)
	defer wait.Stop()
	for {
		select {
		case <-w.stop:
			return
		case <-w.kick:
		}
		wait.Reset(max(settleAfter, rest))
		select {
		case <-w.stop:
			return
		case <-wait.C:
		}
		began := time.Now()
		w.look()
		rest = lookShare * time.Since(began)
	}
}

// changed has the ways looked at soon.
func (w *waysOut) changed() { w.kick.Send() }

// concerns tells whether a notification is about what a way may depend on: routes
// that are not ours, rules, links and their addresses, with which routes go
// without a word.
func (w *waysOut) concerns(m netlink.Message) bool {
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return len(m.Data) >= unix.SizeofRtMsg && m.Data[5] != routeProtocol && m.Data[5] != fabric.PeerProtocol
	case unix.RTM_NEWRULE, unix.RTM_DELRULE, unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return true
	}
	return isLink(m)
}

// look asks the kernel for each family, and keeps what comes of it.
func (w *waysOut) look() {
	w.looking.Lock()
	defer w.looking.Unlock()
	for _, guest := range w.guests {
		family := familyOf(guest)
		text, err := w.fault(guest)
		w.mu.Lock()
		if err == nil && w.faults[family] != text {
			w.faults[family] = text
			if text != "" {
				w.log("way out", "fault", text)
			}
		}
		w.mu.Unlock()
	}
}

// list gives what is missing, by the last look.
func (w *waysOut) list() (faults []fabric.ForwardingFault) {
	for _, guest := range w.guests {
		w.mu.Lock()
		text := w.faults[familyOf(guest)]
		w.mu.Unlock()
		if text != "" && !w.withheld(guest.Is6()) {
			faults = append(faults, fabric.ForwardingFault{Family: fmt.Sprintf("IPv%d", version(familyOf(guest))), Text: text})
		}
	}
	return faults
}

// fault says what guests of a family lack; empty: they have a way out. An error
// says that it could not be found out.
func (w *waysOut) fault(guest netip.Addr) (string, error) {
	family := familyOf(guest)
	asked := []netip.Addr{remotes[family]}
	w.mu.Lock()
	if a, known := w.proven[family]; known {
		asked = append(asked, a)
	}
	w.mu.Unlock()
	var why noWay
	for i := len(asked) - 1; i >= 0; i-- {
		if err := w.way(guest, asked[i], 0); !errors.As(err, &why) {
			return "", err
		}
	}
	outside, err := w.outside(guest)
	if err != nil {
		return "", err
	}
	for _, a := range outside {
		if err := w.way(guest, a, 0); !errors.As(err, new(noWay)) {
			w.mu.Lock()
			w.proven[family] = a
			w.mu.Unlock()
			return "", err
		}
	}
	marks, err := w.marks(family)
	if err != nil {
		return "", err
	}
	for _, mark := range marks {
		for _, a := range append(outside, remotes[family]) {
			if err := w.way(guest, a, mark); !errors.As(err, new(noWay)) {
				return "", err
			}
		}
	}
	return w.sentence(family, why), nil
}

// marks lists those of which somebody has packets looked up in a table of their
// own: a rule of a packet filter may mark what comes in from ports so.
func (w *waysOut) marks(family uint8) ([]uint32, error) {
	head := make([]byte, 12) // struct fib_rule_hdr
	head[0] = family
	replies, err := w.rtnl.Do(rtnl.Message(unix.RTM_GETRULE, netlink.Dump, head, nil))
	if err != nil {
		return nil, err
	}
	var all []uint32
	for _, reply := range replies {
		if len(reply.Data) < len(head) {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(reply.Data[len(head):])
		if err != nil {
			return nil, err
		}
		for ad.Next() {
			if ad.Type() != unix.FRA_FWMARK {
				continue
			}
			if mark := ad.Uint32(); mark != 0 && mark != trialMark && !slices.Contains(all, mark) {
				all = append(all, mark)
			}
		}
	}
	return all, nil
}

// noWay is why the kernel routes a packet nowhere.
type noWay struct{ error }

// loopbackIndex is that of lo in each network namespace.
const loopbackIndex = 1

// way asks the kernel how it would route a packet, with a mark or none (0), that
// comes from a guest in by a port. nil: it has a way; [noWay]: it has none.
//
// The kernel checks the source once it has found a way. What that finds is not of
// interest here: the source is a guest's only where a port is one's.
func (w *waysOut) way(guest, to netip.Addr, mark uint32) error {
	index, from := w.port(guest.Is6())
	if index == 0 {
		// No port is there: the loopback link routes like one, but for rules about
		// the link that a packet comes in by.
		index, from = loopbackIndex, guest
	}
	head := routeQuery(to, 0)
	head[2] = uint8(from.BitLen())
	replies, err := w.rtnl.Do(rtnl.Message(unix.RTM_GETROUTE, 0, head, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.RTA_DST, to.AsSlice())
		ae.Bytes(unix.RTA_SRC, from.AsSlice())
		ae.Uint32(unix.RTA_IIF, uint32(index))
		if mark != 0 {
			ae.Uint32(unix.RTA_MARK, mark)
		}
	}))
	switch rtnl.Errno(err) {
	case 0:
	case unix.EXDEV:
		return nil
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL, unix.EAGAIN:
		return noWay{err}
	}
	if err != nil {
		return err
	}
	for _, reply := range replies {
		// An IPv6 route that refuses is told of like one that leads somewhere.
		if len(reply.Data) >= unix.SizeofRtMsg && reply.Data[7] != unix.RTN_UNICAST && reply.Data[7] != unix.RTN_LOCAL {
			return noWay{unix.ENETUNREACH}
		}
	}
	return nil
}

// outside lists destinations outside to which somebody has routed something, as on
// a node whose routes are more specific than a default route. Where guests have
// public addresses, only those that are public count: a private network next door
// is no outside for them.
func (w *waysOut) outside(guest netip.Addr) ([]netip.Addr, error) {
	head := make([]byte, unix.SizeofRtMsg)
	head[0] = familyOf(guest)
	replies, err := w.rtnl.Do(rtnl.Message(unix.RTM_GETROUTE, netlink.Dump, head, nil))
	if err != nil {
		return nil, err
	}
	var all []netip.Addr
	for _, reply := range replies {
		if a, ok := w.destination(reply.Data, w.public(guest)); ok {
			all = append(all, a)
		}
	}
	return all, nil
}

// destination gives the first address of a route that may lead outside: one that is
// not ours, not to a network that the node itself is in, and not to the cluster.
func (w *waysOut) destination(data []byte, public bool) (netip.Addr, bool) {
	r, err := parseTableRoute(data)
	if err != nil || r.table == unix.RT_TABLE_LOCAL || r.proto == routeProtocol || r.proto == fabric.PeerProtocol || r.proto == unix.RTPROT_KERNEL {
		return netip.Addr{}, false
	}
	if data[7] != unix.RTN_UNICAST || r.prefix.Bits() == 0 || nativeUint32(data[8:])&unix.RTM_F_CLONED != 0 {
		return netip.Addr{}, false // of a default route the usual destinations tell
	}
	if slices.ContainsFunc(w.inside, r.prefix.Overlaps) {
		return netip.Addr{}, false
	}
	a := r.prefix.Addr()
	return a, a.IsGlobalUnicast() && (!public || isPublic(a))
}

// public tells whether guests have public addresses of a family.
func (w *waysOut) public(guest netip.Addr) bool {
	return isPublic(guest) || slices.ContainsFunc(w.pools, func(p netip.Prefix) bool {
		return p.Addr().Is4() == guest.Is4() && isPublic(p.Addr())
	})
}

// shared is the address space of carriers (RFC 6598), which is as good as private.
var shared = netip.MustParsePrefix("100.64.0.0/10")

func isPublic(a netip.Addr) bool { return a.IsGlobalUnicast() && !a.IsPrivate() && !shared.Contains(a) }

// sentence says what is missing and how to get it.
func (w *waysOut) sentence(family uint8, why noWay) string {
	v := version(family)
	text := fmt.Sprintf("IPv%d packets of guests have no way out of this node: its routes lead nowhere outside, such as to %s (%v); ", v, remotes[family], why.error)
	if rtnl.Errno(why.error) != unix.ENETUNREACH {
		return text + fmt.Sprintf("remove the route or the rule that refuses them (ip -%d route; ip -%[1]d rule), or ip -%[1]d route add default via %s", v, w.router(family))
	}
	text += fmt.Sprintf("ip -%d route add default via %s, and in the network's configuration of this node", v, w.router(family))
	if family == unix.AF_INET6 {
		text += "; a node that forwards takes a default route from router advertisements only where net.ipv6.conf.LINK.accept_ra is 2"
	}
	return text
}

// router names who may be the way: the core gateway of the family where there is
// one alone.
func (w *waysOut) router(family uint8) string {
	var all []string
	for _, a := range w.routers {
		if familyOf(a) == family {
			all = append(all, a.String())
		}
	}
	if len(all) == 1 {
		return all[0]
	}
	return "ROUTER"
}

// anyPort gives a port that is up, and an address of its guest, of a family; zero
// where there is none.
func (m *netlinkCache) anyPort(v6 bool) (index int32, guest netip.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, l := range m.links {
		if _, _, _, ours := fabric.ParseAlias(l.alias); !ours || !l.up() {
			continue
		}
		for _, r := range l.routes {
			if r.prefix.IsSingleIP() && !r.via.IsValid() && r.prefix.Addr().Is6() == v6 {
				return i, r.prefix.Addr()
			}
		}
	}
	return 0, netip.Addr{}
}
