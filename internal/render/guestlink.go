package render

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vmfabric/vmfabric/fabric"
)

// guestLink is a NIC as the guest sees it.
type guestLink struct {
	Index    int
	Name     string // empty: matched by MAC, and called as it is
	MAC      fabric.MAC
	ByMAC    bool // found by it, and called Name if that is known
	MTU      int  // 0: as it is
	Families []guestFamily
	Routed   []netip.Prefix
}

// newGuestLink gives the link of a NIC, without a name and in the main table.
func newGuestLink(n int, nic fabric.NIC, gw fabric.Gateway) (guestLink, error) {
	l := guestLink{Index: n, MAC: nic.MAC, MTU: nic.MTU, Routed: nic.Routes}
	v4, v6 := guestFamily{Gateway: gw.IPv4.WithZone("")}, guestFamily{Gateway: gw.IPv6.WithZone(""), IPv6: true}
	for _, a := range nic.Addresses {
		if a.Zone() != "" || a.Is4In6() {
			return l, fmt.Errorf("address %q: zones and IPv4-mapped addresses are not for guests; write the plain address", a)
		}
		if !gw.Addr(a).IsValid() {
			family := map[bool]string{false: "IPv4", true: "IPv6"}[a.Is6()]
			return l, fmt.Errorf("address %s: the cluster has no %s gateway; add it to the cluster file, or leave the address out", a, family)
		}
		to := &v4
		if a.Is6() {
			to = &v6
		}
		to.Addresses = append(to.Addresses, fabric.HostPrefix(a))
	}
	for _, r := range nic.Routes {
		if r.Addr().Is6() {
			v6.Routed = append(v6.Routed, r)
		} else {
			v4.Routed = append(v4.Routed, r)
		}
	}
	for _, family := range []guestFamily{v4, v6} {
		if len(family.Addresses) > 0 {
			l.Families = append(l.Families, family)
		}
	}
	return l, nil
}

// ID tells the link from the guest's others.
func (l guestLink) ID() string {
	if l.Name != "" {
		return l.Name
	}
	return fmt.Sprintf("net%d", l.Index)
}

// IPv6 reports whether the link has IPv6 addresses.
func (l guestLink) IPv6() bool {
	return slices.ContainsFunc(l.Families, func(f guestFamily) bool { return f.IPv6 })
}

// AcceptRA gives the kernel's switch for router advertisements on the link. A
// guest that runs without IPv6 has no such file.
func (l guestLink) AcceptRA() string { return "/proc/sys/net/ipv6/conf/" + l.Name + "/accept_ra" }

// Rules lists the policy of all families.
func (l guestLink) Rules() []guestRule {
	var rs []guestRule
	for _, f := range l.Families {
		rs = append(rs, f.Rules()...)
	}
	return rs
}

// guestFamily is what a link has of IPv4 or of IPv6.
type guestFamily struct {
	IPv6      bool
	Addresses []netip.Prefix // at least one
	Routed    []netip.Prefix // to the guest, through the link
	Gateway   netip.Addr
	Table     int // where its default route is; 0: main
}

// N tells apart what there is one of for each family.
func (f guestFamily) N() string {
	if f.IPv6 {
		return "6"
	}
	return "4"
}

// Default gives the destination of the default route. The word "default" is
// younger than the netplan of Ubuntu 20.04.
func (f guestFamily) Default() netip.Prefix {
	if f.IPv6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// guestRoute is a route in cloud-init's words: by the unspecified address where
// there is no router on the way.
type guestRoute struct {
	To    netip.Prefix
	Via   netip.Addr
	Table int
}

// CloudRoutes lists what cloud-init has to be told beside gateway4 and gateway6:
// how gateways are reached, and the default routes of other tables.
func (l guestLink) CloudRoutes() []guestRoute {
	var rs []guestRoute
	for _, f := range l.Families {
		switch {
		case f.Table != 0:
			rs = append(rs, guestRoute{f.Default(), f.Gateway, f.Table})
		case !f.onEveryLink():
			rs = append(rs, guestRoute{To: fabric.HostPrefix(f.Gateway), Via: f.Default().Addr()})
		}
	}
	return rs
}

// onEveryLink reports whether the gateway needs no route to be reached, as
// link-local addresses of IPv6 do not.
func (f guestFamily) onEveryLink() bool { return f.IPv6 && f.Gateway.IsLinkLocalUnicast() }

// Routing tables and priorities of rules, ip-rule(8). Lower priorities come
// first; the kernel's own main table has 32766.
const (
	mainTable  = 254
	toPriority = 100
	firstTable = 100 // of NIC 0; also the priority of the rules that choose it
)

// guestRule sends what is from, or to, a prefix by a table.
type guestRule struct {
	Side            string // "from" or "to"
	Prefix          netip.Prefix
	Table, Priority int
}

// Rules gives the policy that sends what has a source of this link out of it.
// What goes to a prefix that is routed to the guest stays with the link of the
// guest's own that has it.
func (f guestFamily) Rules() []guestRule {
	if f.Table == 0 {
		return nil
	}
	var rs []guestRule
	for _, p := range f.Routed {
		rs = append(rs, guestRule{"to", p, mainTable, toPriority})
	}
	for _, p := range slices.Concat(f.Addresses, f.Routed) {
		rs = append(rs, guestRule{"from", p, f.Table, f.Table})
	}
	return rs
}

// Commands gives the lines of an ifupdown stanza that do what its options
// cannot, for the ip of iproute2 as for busybox's. A route to the gateway puts
// it on the link: older busyboxes do not know the word onlink. All but the
// rules can be done twice, those have no "replace".
func (f guestFamily) Commands(link string) []string {
	ip, table := "ip -4", ""
	if f.IPv6 {
		ip = "ip -6"
	}
	if f.Table != 0 {
		table = fmt.Sprintf(" table %d", f.Table)
	}
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for _, p := range f.Addresses[1:] {
		add("up %s addr replace %s dev %s", ip, p, link)
	}
	if !f.onEveryLink() {
		add("up %s route replace %s dev %s%s", ip, fabric.HostPrefix(f.Gateway), link, table)
	}
	add("up %s route replace default via %s dev %s%s", ip, f.Gateway, link, table)
	for _, r := range f.Rules() {
		rule := fmt.Sprintf("%s %s lookup %d priority %d", r.Side, r.Prefix, r.Table, r.Priority)
		add("up %s rule add %s", ip, rule)
		add("down %s rule del %s || true", ip, rule)
	}
	return lines
}
