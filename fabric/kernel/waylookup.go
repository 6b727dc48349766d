package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
)

// wayLookup asks the kernel how it would route packets of guests to the outside.
// One goroutine at a time asks.
type wayLookup struct {
	pools   []netip.Prefix // the prefixes of guests
	inside  []netip.Prefix // the prefixes of the cluster's own machines and its guests
	routers []netip.Addr   // the core gateways, one of which may be the way
	rtnl    *socket
	port    func(v6 bool) (index int32, guest netip.Addr)
	proven  map[uint8]netip.Addr // by family, a destination outside that had a way
}

func newWayLookup(cfg Config) wayLookup {
	w := wayLookup{proven: map[uint8]netip.Addr{}}
	w.configure(cfg)
	return w
}

func (w *wayLookup) configure(cfg Config) {
	w.pools, w.inside, w.routers = cfg.Pools, slices.Concat(cfg.Private, cfg.Pools), cfg.Routers
	clear(w.proven)
}

// fault returns the text of a fault if guests of a family have no way out, or "".
// An error says that the kernel did not answer.
func (w *wayLookup) fault(guest netip.Addr) (string, error) {
	family := familyOf(guest)
	asked := []netip.Addr{remotes[family]}
	if a, known := w.proven[family]; known {
		asked = append(asked, a)
	}
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
			w.proven[family] = a
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
func (w *wayLookup) marks(family uint8) ([]uint32, error) {
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
func (w *wayLookup) way(guest, to netip.Addr, mark uint32) error {
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
func (w *wayLookup) outside(guest netip.Addr) ([]netip.Addr, error) {
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
func (w *wayLookup) destination(data []byte, public bool) (netip.Addr, bool) {
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
func (w *wayLookup) public(guest netip.Addr) bool {
	return isPublic(guest) || slices.ContainsFunc(w.pools, func(p netip.Prefix) bool {
		return p.Addr().Is4() == guest.Is4() && isPublic(p.Addr())
	})
}

// shared is the address space of carriers (RFC 6598). It counts as private.
var shared = netip.MustParsePrefix("100.64.0.0/10")

func isPublic(a netip.Addr) bool { return a.IsGlobalUnicast() && !a.IsPrivate() && !shared.Contains(a) }

// sentence describes the fault and the way out, for people.
func (w *wayLookup) sentence(family uint8, why noWay) string {
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
func (w *wayLookup) router(family uint8) string {
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
