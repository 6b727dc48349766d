package kernel

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
)

// routeCache has every route of [fabric.Protocol] in the main table, by its prefix:
// routes to ports and announcements. Notifications keep it up to date, so that an
// announcement needs no listing.
type routeCache struct {
	routes map[netip.Prefix][]route
	via    map[int32]map[netip.Prefix]bool // the prefixes of a link's routes
	addrs  map[int32]map[netip.Addr]bool   // the IPv4 addresses of each link

	// unnotified are announcements that the kernel dropped with a link's last IPv4
	// address, while the link is up. It notified nobody of them, so no daemon
	// knows.
	unnotified []route
}

func newRouteCache() *routeCache {
	return &routeCache{routes: map[netip.Prefix][]route{}, via: map[int32]map[netip.Prefix]bool{}, addrs: map[int32]map[netip.Addr]bool{}}
}

// readRoutes fills a route cache from a listing.
func readRoutes(l rtnl.Listing) *routeCache {
	s := newRouteCache()
	for _, part := range [][]netlink.Message{l.Addresses, l.Routes[routeProtocol]} {
		for _, m := range part {
			s.apply(m)
		}
	}
	return s
}

// apply updates the cache by a notification or a part of a listing, and returns the
// prefixes that are concerned.
func (s *routeCache) apply(m netlink.Message) []netip.Prefix {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if len(m.Data) < unix.SizeofIfInfomsg || m.Data[0] != unix.AF_UNSPEC {
			return nil // the kernel notifies of bridge ports a second time, with their own family
		}
		index, flags := int32(binary.NativeEndian.Uint32(m.Data[4:])), binary.NativeEndian.Uint32(m.Data[8:])
		if m.Header.Type == unix.RTM_DELLINK || flags&unix.IFF_UP == 0 {
			return s.flush(index, func(netip.Prefix) bool { return true })
		}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		index, addr, err := parseAddr(m.Data)
		if err != nil || !addr.Is4() {
			return nil
		}
		if m.Header.Type == unix.RTM_NEWADDR {
			if s.addrs[index] == nil {
				s.addrs[index] = map[netip.Addr]bool{}
			}
			s.addrs[index][addr] = true
			return nil
		}
		delete(s.addrs[index], addr)
		if len(s.addrs[index]) == 0 {
			delete(s.addrs, index)
			is4 := func(p netip.Prefix) bool { return p.Addr().Is4() }
			for p := range s.via[index] {
				if is4(p) {
					s.unnotified = append(s.unnotified, s.announcements(p)...)
				}
			}
			return s.flush(index, is4)
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if r, err := parseRoute(m.Data); err == nil {
			return s.applyRoute(r, m.Header)
		}
	}
	return nil
}

func (s *routeCache) applyRoute(r route, h netlink.Header) []netip.Prefix {
	var touched []netip.Prefix
	drop := func(gone func(route) bool) {
		for _, have := range slices.Clone(s.routes[r.prefix]) {
			if gone(have) {
				s.remove(have)
				touched = []netip.Prefix{r.prefix}
			}
		}
	}
	switch {
	case h.Type == unix.RTM_DELROUTE:
		drop(func(have route) bool { return have == r })
		return touched
	case h.Flags&netlink.Replace != 0: // the kernel does not notify of the replaced one
		drop(func(have route) bool { return have.metric == r.metric })
	}
	if r.proto != routeProtocol || slices.Contains(s.routes[r.prefix], r) {
		return touched
	}
	s.routes[r.prefix] = append(s.routes[r.prefix], r)
	if s.via[r.index] == nil {
		s.via[r.index] = map[netip.Prefix]bool{}
	}
	s.via[r.index][r.prefix] = true
	return []netip.Prefix{r.prefix}
}

// flush forgets routes of a link that went down, was removed or lost its last IPv4
// address. The kernel drops the IPv4 routes without a notification, and the IPv6
// routes, too, where net.ipv6.route.skip_notify_on_dev_down is set.
func (s *routeCache) flush(index int32, gone func(netip.Prefix) bool) []netip.Prefix {
	var touched []netip.Prefix
	for p := range s.via[index] {
		if !gone(p) {
			continue
		}
		touched = append(touched, p)
		for _, r := range slices.Clone(s.routes[p]) {
			if r.index == index {
				s.remove(r)
			}
		}
	}
	return touched
}

func (s *routeCache) remove(r route) {
	left := slices.DeleteFunc(s.routes[r.prefix], func(have route) bool { return have == r })
	s.routes[r.prefix] = left
	if len(left) == 0 {
		delete(s.routes, r.prefix)
	}
	if !slices.ContainsFunc(left, func(have route) bool { return have.index == r.index }) {
		delete(s.via[r.index], r.prefix)
		if len(s.via[r.index]) == 0 {
			delete(s.via, r.index)
		}
	}
}

// port returns the route to the port that has a prefix.
func (s *routeCache) port(p netip.Prefix) (route, bool) {
	for _, r := range s.routes[p] {
		if r.metric == fabric.PortMetric {
			return r, true
		}
	}
	return route{}, false
}

// announcements lists the routes that announce a prefix. The first one counts:
// daemons take the one that the kernel would use.
func (s *routeCache) announcements(p netip.Prefix) []route {
	var rs []route
	for _, r := range s.routes[p] {
		if r.announces() {
			rs = append(rs, r)
		}
	}
	slices.SortFunc(rs, func(a, b route) int { return int(a.metric) - int(b.metric) })
	return rs
}

// astray lists the announcements of a prefix that lead elsewhere than to its port.
func (s *routeCache) astray(p netip.Prefix) []route {
	port, ok := s.port(p)
	if !ok {
		return nil
	}
	return slices.DeleteFunc(s.announcements(p), func(r route) bool { return r.index == port.index && r.via == port.via })
}
