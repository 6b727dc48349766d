package render

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vmfabric/vmfabric/fabric"
)

// Format names a format of configuration.
type Format string

// The formats of [Guest].
const (
	Netplan   Format = "netplan"    // YAML of netplan(5): Ubuntu, and Debian's cloud images
	Ifupdown  Format = "ifupdown"   // interfaces(5), for Debian's ifupdown and busybox's alike
	Networkd  Format = "networkd"   // systemd.network(5), a file for each NIC
	CloudInit Format = "cloud-init" // cloud-init's network configuration, version 2
)

var formats = []Format{Netplan, Ifupdown, Networkd, CloudInit}

// ParseFormat reads the name of a format.
func ParseFormat(s string) (Format, error) {
	if f := Format(s); slices.Contains(formats, f) {
		return f, nil
	}
	names := make([]string, len(formats))
	for i, f := range formats {
		names[i] = string(f)
	}
	return "", fmt.Errorf("format %q is not one of %s", s, strings.Join(names, ", "))
}

// Guest returns a guest's own network configuration: each address as /32 or /128,
// and the gateway as default route on the link. The guest asks neither by DHCP nor for
// router advertisements. Comments say where the text goes.
//
// The n-th of interfaces is the name of the link of NIC n in the guest. If it is
// missing or empty, the NIC's MAC address selects the link, and netplan and
// cloud-init give it the name that the hypervisor knows ([fabric.NIC] Link), if
// any. In these cases that name, or else eth<n>, selects the link instead: the MAC
// address is unknown, or that of two NICs; ifupdown, which knows only names; and the links of containers
// in netplan (which serves cloud-init too), since a veth has no permanent MAC
// address.
//
// The default route of a family goes through the first NIC with addresses of it.
// Nodes drop packets from a NIC whose source is not routed to that NIC. So policy
// routing sends packets with a source of another NIC n out of that NIC: its
// addresses, and the prefixes routed to it, choose table 100+n. The kernel of the
// guest then needs policy routing, which all distributions have.
//
// The error says what is wrong with the guest, the gateway or the names. A guest
// without NICs is an error.
func Guest(vm fabric.VM, network fabric.Network, f Format, interfaces []string) (string, error) {
	if _, err := ParseFormat(string(f)); err != nil {
		return "", err
	}
	if err := vm.Validate(); err != nil {
		return "", fmt.Errorf("guest %q: %w", vm.Name, err)
	}
	g := guest{VM: vm.Name, Links: make([]guestLink, len(vm.NICs))}
	for n, nic := range vm.NICs {
		l, err := newGuestLink(n, nic, network)
		if err != nil {
			return "", fmt.Errorf("guest %q: NIC %d: %w", vm.Name, n, err)
		}
		g.Links[n] = l
	}
	if err := g.name(vm, f, interfaces); err != nil {
		return "", fmt.Errorf("guest %q: %w", vm.Name, err)
	}
	g.route()
	g.resolve(network)
	return g.text(f), nil
}

// guest is the data of the templates.
type guest struct {
	VM      string
	Links   []guestLink
	Assumed []string // assumed names of links
	DNS     bool     // a link has resolvers
}

// resolve gives the first link the cluster's resolvers of the guest's families, and the
// domains.
func (g *guest) resolve(network fabric.Network) {
	first := &g.Links[0]
	for _, a := range network.DNS {
		if slices.ContainsFunc(g.Links, func(l guestLink) bool { return l.has(a.Is6()) }) {
			first.DNS = append(first.DNS, a)
		}
	}
	if g.DNS = len(first.DNS) > 0; g.DNS {
		first.Search = network.Search
	}
}

// name sets how each link is selected: by a given name, or by what the format can
// use.
func (g *guest) name(vm fabric.VM, f Format, given []string) error {
	if len(vm.NICs) == 0 {
		return fmt.Errorf("no NIC, so there is nothing to configure; give it an address")
	}
	if len(given) > len(vm.NICs) {
		return fmt.Errorf("more link names (%d) than NICs (%d); give at most one for each", len(given), len(vm.NICs))
	}
	taken := map[string]int{}
	for n, nic := range vm.NICs {
		l := &g.Links[n]
		l.Name = nic.Link
		switch {
		case n < len(given) && given[n] != "":
			l.Name = given[n]
		case f == Ifupdown, nic.MAC.IsZero(), vm.SharesMAC(n), f != Networkd && inContainer(vm, nic):
			if l.Name == "" {
				l.Name = fmt.Sprintf("eth%d", n)
				g.Assumed = append(g.Assumed, l.Name)
			}
		default:
			l.ByMAC = true
		}
		if err := validateLinkName(l.ID()); err != nil {
			return fmt.Errorf("NIC %d: %w", n, err)
		}
		if first, dup := taken[l.ID()]; dup {
			return fmt.Errorf("NIC %d: link %s is that of NIC %d already; name the links of both", n, l.ID(), first)
		}
		taken[l.ID()] = n
	}
	return nil
}

// inContainer reports whether the link of a NIC is a veth.
func inContainer(vm fabric.VM, nic fabric.NIC) bool { return vm.Container || nic.Kind == fabric.Veth }

// validateLinkName returns an error if s is not a link's name in all formats. The
// kernel allows more, but shells and globs read the text of ifupdown and networkd.
func validateLinkName(s string) error {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r)
	}
	if len(s) > 15 || strings.TrimFunc(s, plain) != "" || strings.Trim(s, ".") == "" || s[0] == '-' {
		return fmt.Errorf("link name %q: not at most 15 letters, digits, '.', '_' and '-'; write it as the guest shows it, such as eth0", s)
	}
	return nil
}

// route chooses the routing table of each link's families.
func (g *guest) route() {
	mainTaken := map[bool]bool{} // by whether it is IPv6
	for n := range g.Links {
		for i := range g.Links[n].Families {
			family := &g.Links[n].Families[i]
			if mainTaken[family.IPv6] {
				family.Table = firstTable + n
			}
			mainTaken[family.IPv6] = true
		}
	}
}

// Rules lists the policy rules of all links.
func (g guest) Rules() []guestRule {
	var rs []guestRule
	for _, l := range g.Links {
		rs = append(rs, l.Rules()...)
	}
	return rs
}

// IPv6MTU reports whether a link with an MTU has only IPv6.
func (g guest) IPv6MTU() bool {
	return slices.ContainsFunc(g.Links, func(l guestLink) bool { return l.MTU != 0 && len(l.Families) == 1 && l.IPv6() })
}

// ShellName returns the name of the guest for a command line, or a placeholder if
// LXD does not allow the name.
func (g guest) ShellName() string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-'
	}
	if strings.TrimFunc(g.VM, plain) != "" || g.VM[0] == '-' {
		return "NAME"
	}
	return g.VM
}
