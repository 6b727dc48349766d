package render

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vmfabric/vmfabric/fabric"
)

// guestLink is a NIC as the guest sees it.
type guestLink struct {
	Index    int
	Name     string // empty: the MAC selects the link, which keeps its name
	MAC      fabric.MAC
	ByMAC    bool // the MAC selects the link, which is then named Name if that is known
	MTU      int  // 0: unchanged
	Families []guestFamily
	Routed   []netip.Prefix
	DNS      []netip.Addr // resolvers, of the first link alone
	Search   []string
}

// newGuestLink returns the link of a NIC, without a name and in the main table.
func newGuestLink(n int, nic fabric.NIC, network fabric.Network) (guestLink, error) {
	gw := network.Gateway
	l := guestLink{Index: n, MAC: nic.MAC, MTU: cmp.Or(nic.MTU, network.MTU), Routed: nic.Routes}
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

// ID identifies the link among the guest's.
func (l guestLink) ID() string {
	if l.Name != "" {
		return l.Name
	}
	return fmt.Sprintf("net%d", l.Index)
}

// IPv6 reports whether the link has IPv6 addresses.
func (l guestLink) IPv6() bool { return l.has(true) }

// has reports whether the link has addresses of a family.
func (l guestLink) has(v6 bool) bool {
	return slices.ContainsFunc(l.Families, func(f guestFamily) bool { return f.IPv6 == v6 })
}

// AcceptRA returns the kernel's switch for router advertisements on the link. A
// guest that runs without IPv6 has no such file.
func (l guestLink) AcceptRA() string { return "/proc/sys/net/ipv6/conf/" + l.Name + "/accept_ra" }

// Rules lists the policy rules of all families.
func (l guestLink) Rules() []guestRule {
	var rs []guestRule
	for _, f := range l.Families {
		rs = append(rs, f.Rules()...)
	}
	return rs
}

// guestFamily is the IPv4 or the IPv6 part of a link.
type guestFamily struct {
	IPv6      bool
	Addresses []netip.Prefix // at least one
	Routed    []netip.Prefix // to the guest, through the link
	Gateway   netip.Addr
	Table     int // the table of its default route; 0: main
}

// N distinguishes the names that exist once for each family.
func (f guestFamily) N() string {
	if f.IPv6 {
		return "6"
	}
	return "4"
}

// Default returns the destination of the default route. The netplan of Ubuntu 20.04
// does not have the word "default" yet.
func (f guestFamily) Default() netip.Prefix {
	if f.IPv6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// guestRoute is a route for cloud-init. Via is the unspecified address if no router
// is on the way.
type guestRoute struct {
	To    netip.Prefix
	Via   netip.Addr
	Table int
}

// CloudRoutes lists the routes that cloud-init needs beside gateway4 and gateway6:
// those to the gateways, and the default routes of other tables.
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

// onEveryLink reports whether the gateway needs no route, as a link-local address
// of IPv6 does not.
func (f guestFamily) onEveryLink() bool { return f.IPv6 && f.Gateway.IsLinkLocalUnicast() }

// Routing tables and priorities of rules, ip-rule(8). Lower priorities come
// first; the kernel's own main table has 32766.
const (
	mainTable  = 254
	toPriority = 100
	firstTable = 100 // of NIC 0; also the priority of the rules that choose it
)

// guestRule makes packets from, or to, a prefix use a table.
type guestRule struct {
	Side            string // "from" or "to"
	Prefix          netip.Prefix
	Table, Priority int
}

// Rules returns the policy that sends packets with a source of this link out of it.
// Packets to a prefix that is routed to the guest stay on the guest's own link that
// has it.
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

// Commands returns the lines of an ifupdown stanza for the settings that its
// options lack, for the ip of iproute2 and of busybox. A route to the gateway puts
// it on the link: older busyboxes do not know the word onlink. All commands but the
// rules can run twice; rules have no "replace".
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
