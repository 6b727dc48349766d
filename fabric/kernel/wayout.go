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

// waysOut knows, for each family of guests, whether the kernel has a route to the
// outside for their packets. A trial cannot tell: a table of its own routes its
// packets.
type waysOut struct {
	guests   []netip.Addr   // one address that a guest may have, of each family
	pools    []netip.Prefix // the prefixes of guests
	inside   []netip.Prefix // the prefixes of the cluster's own machines and its guests
	routers  []netip.Addr   // the core gateways, one of which may be the way
	rtnl     *socket
	port     func(v6 bool) (index int32, guest netip.Addr)
	withheld func(v6 bool) bool // the node announces nothing of the family, so no guest needs a way
	log      func(msg string, args ...any)
	kick     signal.Signal
	stop     chan struct{}
	wg       sync.WaitGroup

	looking sync.Mutex // held during a look

	mu     sync.Mutex
	proven map[uint8]netip.Addr // by family, a destination outside that had a way
	faults map[uint8]string
}

// lookShare bounds the cost of looks: on a node without a way each lists all
// routes. After a look, the next waits lookShare times as long as it took.
const lookShare = 20

func newWaysOut(cfg Config, guests []netip.Addr) *waysOut {
	return &waysOut{
		guests: guests, pools: cfg.Pools, inside: slices.Concat(cfg.Private, cfg.Pools), routers: cfg.Routers,
		kick: signal.New(), stop: make(chan struct{}), proven: map[uint8]netip.Addr{}, faults: map[uint8]string{},
	}
}

// startWaysOut looks for the first time, and starts run, which looks again after
// every change.
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

// run looks after each change that a way may depend on. It waits until the changes
// have settled, and at least in proportion to the time of the last look.
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

// changed makes run look soon.
func (w *waysOut) changed() { w.kick.Send() }

// concerns reports whether a way may depend on the subject of a notification: a
// route that is not the fabric's, a rule, or a link or address, with which the
// kernel drops routes without a notification.
func (w *waysOut) concerns(m netlink.Message) bool {
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return len(m.Data) >= unix.SizeofRtMsg && m.Data[5] != routeProtocol && m.Data[5] != fabric.PeerProtocol
	case unix.RTM_NEWRULE, unix.RTM_DELRULE, unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return true
	}
	return isLink(m)
}

// look asks the kernel for each family, and keeps the results.
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

// list returns the faults that the last look found.
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

// fault returns the text of a fault if guests of a family have no way out, or "".
// An error says that the kernel did not tell.
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

// marks lists the packet marks for which there are routing rules: a packet filter
// may set such a mark on packets that come in from ports.
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

// noWay is the reason why the kernel routes a packet nowhere.
type noWay struct{ error }

// loopbackIndex is the index of lo in each network namespace.
const loopbackIndex = 1

// way asks the kernel how it would route a packet that comes in from a guest by a
// port, with a mark or none (0). It returns nil if there is a way, [noWay] if there
// is none.
//
// The kernel checks the source once it has found a way. way ignores a refusal by
// that check (EXDEV): without a port, the source is no guest's.
func (w *waysOut) way(guest, to netip.Addr, mark uint32) error {
	index, from := w.port(guest.Is6())
	if index == 0 {
		// Without a port, ask for the loopback link. The kernel routes its packets
		// like a port's, but for rules about the incoming link.
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
		// For IPv6 the kernel returns a route that refuses like one that leads
		// somewhere.
		if len(reply.Data) >= unix.SizeofRtMsg && reply.Data[7] != unix.RTN_UNICAST && reply.Data[7] != unix.RTN_LOCAL {
			return noWay{unix.ENETUNREACH}
		}
	}
	return nil
}

// outside lists destinations of routes to the outside, for a node whose routes are
// more specific than a default route. If guests have public addresses, only public
// destinations count: for them a private network next door is not the outside.
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

// destination returns the first address of a route that may lead outside: it is not
// the fabric's, not to a network of the node itself, and not to the cluster.
func (w *waysOut) destination(data []byte, public bool) (netip.Addr, bool) {
	r, err := parseTableRoute(data)
	if err != nil || r.table == unix.RT_TABLE_LOCAL || r.proto == routeProtocol || r.proto == fabric.PeerProtocol || r.proto == unix.RTPROT_KERNEL {
		return netip.Addr{}, false
	}
	if data[7] != unix.RTN_UNICAST || r.prefix.Bits() == 0 || nativeUint32(data[8:])&unix.RTM_F_CLONED != 0 {
		return netip.Addr{}, false // fault asks for the usual destinations of a default route
	}
	if slices.ContainsFunc(w.inside, r.prefix.Overlaps) {
		return netip.Addr{}, false
	}
	a := r.prefix.Addr()
	return a, a.IsGlobalUnicast() && (!public || isPublic(a))
}

// public reports whether guests have public addresses of a family.
func (w *waysOut) public(guest netip.Addr) bool {
	return isPublic(guest) || slices.ContainsFunc(w.pools, func(p netip.Prefix) bool {
		return p.Addr().Is4() == guest.Is4() && isPublic(p.Addr())
	})
}

// shared is the address space of carriers (RFC 6598). It counts as private.
var shared = netip.MustParsePrefix("100.64.0.0/10")

func isPublic(a netip.Addr) bool { return a.IsGlobalUnicast() && !a.IsPrivate() && !shared.Contains(a) }

// sentence describes the fault and the way out, for people.
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

// router returns the core gateway of the family if there is only one, or a
// placeholder.
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

// anyPort returns a port that is up, and an address of a family that its guest has,
// or zero values.
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
