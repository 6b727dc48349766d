package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
	"github.com/vmfabric/vmfabric/internal/signal"
)

// fibRoutes has the routes of a [FIB] as they were put and as they are in the
// kernel. It decides which requests bring the kernel in step, and sends none. A
// goroutine that has it, by [FIB.open], has it alone.
type fibRoutes struct {
	protocol uint8
	metric   uint32
	wake     signal.Signal // there are routes to compare, or to list

	want    map[netip.Prefix]netip.Addr
	have    map[fibKey]netip.Addr // the routes in the kernel, by its notifications
	found   map[fibKey]bool       // routes in have of an earlier process, not put again yet
	dirty   map[fibKey]bool       // routes to compare
	refused map[netip.Prefix]error
	links   map[int32]bool // to which routes of the FIB have led
	loaded  bool
	stale   bool // have must be listed anew
	closed  bool // changes are ignored
}

// fibKey identifies a route of the FIB.
type fibKey struct {
	prefix netip.Prefix
	metric uint32
}

// fibChange is a request about a route of the FIB.
type fibChange struct {
	fibKey
	message netlink.Message
}

func newFIBRoutes(protocol uint8, metric uint32, wake signal.Signal) fibRoutes {
	return fibRoutes{
		protocol: protocol, metric: metric, wake: wake,
		want: map[netip.Prefix]netip.Addr{}, have: map[fibKey]netip.Addr{}, found: map[fibKey]bool{}, dirty: map[fibKey]bool{},
		refused: map[netip.Prefix]error{}, links: map[int32]bool{},
	}
}

func (r *fibRoutes) put(p netip.Prefix, via netip.Addr) {
	if r.closed {
		return
	}
	r.want[p] = via
	delete(r.refused, p)
	r.touch(r.key(p))
}

func (r *fibRoutes) remove(p netip.Prefix) {
	if r.closed {
		return
	}
	delete(r.want, p)
	delete(r.refused, p)
	delete(r.found, r.key(p))
	r.touch(r.key(p))
}

// settle makes the routes of an earlier process that were not put again unwanted.
func (r *fibRoutes) settle() {
	if r.closed {
		return
	}
	for k := range r.found {
		r.touch(k)
	}
	clear(r.found)
}

// refusals describes the routes that the kernel refuses, for people.
func (r *fibRoutes) refusals() []string {
	if len(r.refused) == 0 {
		return nil
	}
	var first netip.Prefix
	for p := range r.refused {
		if !first.IsValid() || p.Compare(first) < 0 {
			first = p
		}
	}
	more := ""
	if n := len(r.refused) - 1; n > 0 {
		more = fmt.Sprintf(" (and %d more)", n)
	}
	return []string{fmt.Sprintf("route %s via %s%s is not in the kernel: %v; its packets go by the node's other routes", first, r.want[first], more, r.refused[first])}
}

// close makes put, remove and settle do nothing from now on, and reports whether
// they did so already.
func (r *fibRoutes) close() (already bool) {
	already, r.closed = r.closed, true
	return already
}

// drop makes all routes unwanted, also those of an earlier process.
func (r *fibRoutes) drop() {
	clear(r.want)
	clear(r.found)
	clear(r.refused)
}

// retry queues the refused routes for comparison.
func (r *fibRoutes) retry() {
	for p := range r.refused {
		r.dirty[r.key(p)] = true
	}
}

func (r *fibRoutes) key(p netip.Prefix) fibKey { return fibKey{p, r.metric} }

// touch queues a route for comparison.
func (r *fibRoutes) touch(k fibKey) {
	r.dirty[k] = true
	r.wake.Send()
}

// touchAll queues every route for comparison.
func (r *fibRoutes) touchAll() {
	for p := range r.want {
		r.touch(r.key(p))
	}
	for k := range r.have {
		r.touch(k)
	}
}

// markStale makes have stale, so that the routes are listed anew.
func (r *fibRoutes) markStale() {
	r.stale = true
	r.wake.Send()
}

// load replaces have by a listing.
func (r *fibRoutes) load(routes []netlink.Message) {
	r.have = map[fibKey]netip.Addr{}
	for _, m := range routes {
		if have, err := parseRoute(m.Data); err == nil {
			k := fibKey{have.prefix, have.metric}
			r.have[k] = have.via
			r.links[have.index] = true
			if !r.loaded {
				r.found[k] = true
			}
		}
	}
	r.loaded = true
}

// apply updates have by one notification.
func (r *fibRoutes) apply(m netlink.Message) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR, unix.RTM_DELADDR:
		// The kernel drops the IPv4 routes of a link that goes down without a
		// notification. The link's index is at the same place in ifinfomsg and
		// ifaddrmsg.
		if len(m.Data) >= 8 && r.links[int32(binary.NativeEndian.Uint32(m.Data[4:]))] {
			r.markStale()
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		changed, err := parseRoute(m.Data)
		if err != nil {
			return
		}
		k := fibKey{changed.prefix, changed.metric}
		ours, gone := changed.proto == r.protocol, m.Header.Type == unix.RTM_DELROUTE
		switch {
		case ours && gone:
			delete(r.have, k)
			delete(r.found, k)
		case ours:
			r.have[k] = changed.via
			r.links[changed.index] = true
		case gone && r.refused[changed.prefix] != nil:
			r.touch(k) // perhaps the route that was in the way
			return
		case m.Header.Flags&netlink.Replace != 0:
			delete(r.have, k) // somebody else's route replaced it
		default:
			return
		}
		if _, differs := r.difference(k); differs {
			r.touch(k)
		}
	}
}

// differences takes a batch of routes out of dirty, and returns the changes of
// those that differ.
func (r *fibRoutes) differences() (changes []fibChange) {
	for k := range r.dirty {
		if len(changes) == fibBatch {
			break
		}
		delete(r.dirty, k)
		if m, differs := r.difference(k); differs {
			changes = append(changes, fibChange{k, m})
		}
	}
	return changes
}

// difference returns the message that brings one route in step.
func (r *fibRoutes) difference(k fibKey) (netlink.Message, bool) {
	have, there := r.have[k]
	via, wanted := r.want[k.prefix]
	wanted = wanted && k.metric == r.metric
	switch {
	case !wanted && there && !r.found[k]:
		return r.message(unix.RTM_DELROUTE, 0, k, netip.Addr{}), true
	case !wanted, there && have == via:
		return netlink.Message{}, false
	case there:
		// Replace alone leaves no moment without a route. Without Create the kernel
		// refuses if the FIB's route has gone, and somebody else's may have come.
		return r.message(unix.RTM_NEWROUTE, netlink.Replace, k, via), true
	}
	return r.message(unix.RTM_NEWROUTE, netlink.Create|netlink.Excl, k, via), true
}

// note handles the kernel's answer to a change: it records or forgets a refusal,
// and reports whether it is the first one of that route. have changes only with the
// notification.
func (r *fibRoutes) note(c fibChange, err error) (first bool) {
	errno := rtnl.Errno(err)
	if err == nil || c.message.Header.Type == unix.RTM_DELROUTE && errno == unix.ESRCH {
		delete(r.refused, c.prefix)
		return false
	}
	_, known := r.refused[c.prefix]
	if !known && (errno == unix.EEXIST || errno == unix.ENOENT) {
		r.markStale() // only at the first refusal: have may have missed a route of the FIB
	}
	four, six := c.prefix.Addr().Is4(), r.want[c.prefix].Is6()
	switch errno {
	case unix.EINVAL, unix.ENODEV:
		if four && six {
			err = &lackError{ipv6NextHops, err}
		}
	case unix.EEXIST:
		err = fmt.Errorf("there is one of metric %d already, and it is not ours; see ip route show %s", c.metric, c.prefix)
	case unix.ENETUNREACH, unix.EHOSTUNREACH:
		err = fmt.Errorf("%w; the next hop must be a neighbour on one of the node's links", err)
	}
	r.refused[c.prefix] = err
	return !known
}

// message makes a request about one of the FIB's routes.
func (r *fibRoutes) message(typ netlink.HeaderType, flags netlink.HeaderFlags, k fibKey, via netip.Addr) netlink.Message {
	family, scope, kind := uint8(unix.AF_INET), uint8(unix.RT_SCOPE_UNIVERSE), uint8(unix.RTN_UNICAST)
	if k.prefix.Addr().Is6() {
		family = unix.AF_INET6
	}
	if typ == unix.RTM_DELROUTE {
		scope, kind = unix.RT_SCOPE_NOWHERE, unix.RTN_UNSPEC // of any scope and type
	}
	head := make([]byte, unix.SizeofRtMsg)
	head[0], head[1] = family, uint8(k.prefix.Bits())
	head[4], head[5], head[6], head[7] = unix.RT_TABLE_MAIN, r.protocol, scope, kind
	return rtnl.Message(typ, flags|netlink.Acknowledge, head, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.RTA_DST, k.prefix.Addr().AsSlice())
		ae.Uint32(unix.RTA_PRIORITY, k.metric)
		switch {
		case !via.IsValid():
		case via.Is4() == k.prefix.Addr().Is4():
			ae.Bytes(unix.RTA_GATEWAY, via.AsSlice())
		default: // of the other family (RFC 8950, ipv6NextHops)
			ae.Bytes(unix.RTA_VIA, append(binary.NativeEndian.AppendUint16(nil, unix.AF_INET6), via.AsSlice()...))
		}
	})
}
