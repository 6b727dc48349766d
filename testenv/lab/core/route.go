package core

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Route is a route in a host's kernel.
type Route struct {
	Prefix   netip.Prefix
	Hops     []Hop // several: equal-cost paths
	Protocol int   // rtm_protocol of rtnetlink(7): 147 is the fabric's, 12 BIRD's, 186 FRR's BGP
	Metric   int
	Table    int    // 254 is main
	Type     string // "unicast", "blackhole", ...
}

// Hop is a next hop of a route: a neighbour, or a link alone.
type Hop struct {
	Via  netip.Addr // invalid for a destination on the link itself
	Link string     // its name
}

// String returns the hop in the words of ip-route(8).
func (p Hop) String() string {
	if !p.Via.IsValid() {
		return "dev " + p.Link
	}
	return "via " + p.Via.String() + " dev " + p.Link
}

// String returns the route in the words of ip-route(8).
func (r Route) String() string {
	var b strings.Builder
	if r.Type != "unicast" {
		b.WriteString(r.Type + " ")
	}
	b.WriteString(r.Prefix.String())
	for _, hop := range r.Hops {
		b.WriteString(" " + hop.String())
	}
	fmt.Fprintf(&b, " proto %d", r.Protocol)
	if r.Metric != 0 {
		fmt.Fprintf(&b, " metric %d", r.Metric)
	}
	if r.Table != unix.RT_TABLE_MAIN {
		fmt.Fprintf(&b, " table %d", r.Table)
	}
	return b.String()
}

// Vias lists the neighbours that the route leads to.
func (r Route) Vias() []netip.Addr {
	var as []netip.Addr
	for _, hop := range r.Hops {
		if hop.Via.IsValid() {
			as = append(as, hop.Via)
		}
	}
	return as
}

// Routes4 lists the IPv4 routes of the host's main table, in the order of
// their prefixes.
func (h *Host) Routes4() ([]Route, error) { return h.Routes(netlink.FAMILY_V4, unix.RT_TABLE_MAIN) }

// Routes6 lists the IPv6 routes of the host's main table, in the order of
// their prefixes, without those of link-local and multicast addresses.
func (h *Host) Routes6() ([]Route, error) {
	rs, err := h.Routes(netlink.FAMILY_V6, unix.RT_TABLE_MAIN)
	return slices.DeleteFunc(rs, func(r Route) bool {
		return r.Prefix.Addr().IsLinkLocalUnicast() || r.Prefix.Addr().IsMulticast()
	}), err
}

// Routes lists the routes of a family (AF_INET, AF_INET6) in a table of the
// host, in the order of their prefixes; the table 0 means all but the local
// one.
func (h *Host) Routes(family, table int) ([]Route, error) {
	filter := &netlink.Route{Table: table}
	raw, err := dump(func() ([]netlink.Route, error) {
		return h.nl.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("routes of %s: %w", h.name, err)
	}
	links, err := h.linkNames()
	if err != nil {
		return nil, err
	}
	var rs []Route
	for _, r := range raw {
		if table == 0 && r.Table == unix.RT_TABLE_LOCAL {
			continue
		}
		rs = append(rs, routeOf(r, family, links))
	}
	slices.SortStableFunc(rs, func(a, b Route) int {
		return cmp.Or(a.Prefix.Compare(b.Prefix), cmp.Compare(a.Metric, b.Metric))
	})
	return rs, nil
}

// Route returns the host's route to exactly the prefix p in the main table; ok is
// false when there is none.
func (h *Host) Route(p netip.Prefix) (r Route, ok bool, err error) {
	list := h.Routes4
	if p.Addr().Is6() {
		list = h.Routes6
	}
	rs, err := list()
	for _, r := range rs {
		if r.Prefix == p {
			return r, true, err
		}
	}
	return Route{}, false, err
}

func (h *Host) linkNames() (map[int]string, error) {
	links, err := dump(h.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("links of %s: %w", h.name, err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	return names, nil
}

var routeTypes = map[int]string{
	unix.RTN_UNICAST: "unicast", unix.RTN_LOCAL: "local", unix.RTN_BROADCAST: "broadcast",
	unix.RTN_ANYCAST: "anycast", unix.RTN_MULTICAST: "multicast", unix.RTN_BLACKHOLE: "blackhole",
	unix.RTN_UNREACHABLE: "unreachable", unix.RTN_PROHIBIT: "prohibit", unix.RTN_THROW: "throw",
}

func routeOf(r netlink.Route, family int, links map[int]string) Route {
	out := Route{Prefix: prefixOf(r.Dst), Protocol: int(r.Protocol), Metric: r.Priority, Table: r.Table, Type: routeTypes[r.Type]}
	if r.Dst == nil {
		out.Prefix = defaultRoute(family == netlink.FAMILY_V6)
	}
	hop := func(index int, gw []byte, via netlink.Destination) {
		h := Hop{Via: addrOf(gw), Link: links[index]}
		if v, ok := via.(*netlink.Via); ok {
			h.Via = addrOf(v.Addr)
		}
		out.Hops = append(out.Hops, h)
	}
	if r.LinkIndex != 0 {
		hop(r.LinkIndex, r.Gw, r.Via)
	}
	for _, m := range r.MultiPath {
		hop(m.LinkIndex, m.Gw, m.Via)
	}
	return out
}

func defaultRoute(v6 bool) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// AddRoute sets the host's route to a prefix: through via when that is valid,
// which need not be in a prefix of the link, or else on to the link.
func (h *Host) AddRoute(p netip.Prefix, via netip.Addr, link string) error {
	l, err := h.Link(link)
	if err != nil {
		return err
	}
	r := &netlink.Route{Dst: ipNet(p), LinkIndex: l.Attrs().Index, Scope: netlink.SCOPE_LINK}
	if via.IsValid() {
		r.Gw, r.Flags, r.Scope = via.AsSlice(), int(netlink.FLAG_ONLINK), netlink.SCOPE_UNIVERSE
	}
	if err := h.nl.RouteReplace(r); err != nil {
		return fmt.Errorf("route %s of %s: %w", p, h.name, err)
	}
	return nil
}

// DeleteRoute removes the host's routes to exactly the prefix p from the main
// table. Absence is success.
func (h *Host) DeleteRoute(p netip.Prefix) error {
	for {
		_, ok, err := h.Route(p)
		if err != nil || !ok {
			return err
		}
		if err := h.nl.RouteDel(&netlink.Route{Dst: ipNet(p), Scope: netlink.SCOPE_NOWHERE}); err != nil {
			return fmt.Errorf("route %s of %s: delete: %w", p, h.name, err)
		}
	}
}
