package render

import (
	"cmp"
	"fmt"
	"net/netip"

	"github.com/vmfabric/vmfabric/fabric"
)

// family is the IPv4 or the IPv6 part of the templates' data.
type family struct {
	V6        bool
	Excluded  []netip.Prefix
	Guests    []fabric.PrefixRange // the prefixes that may be announced
	Pools     []netip.Prefix
	Martians  []netip.Prefix
	Announced []netip.Prefix // prefixes that contain all of Guests
}

// families returns both: every session carries both, and the policy passes nothing
// of a family that guests do not have.
func families(c fabric.Cluster) []family {
	var all []family
	for _, v6 := range []bool{false, true} {
		f := family{V6: v6, Excluded: c.Excluded(v6), Guests: c.Announceable(v6), Martians: fabric.Martians(v6)}
		for _, p := range c.Pools {
			if p.Is6() == v6 {
				f.Pools = append(f.Pools, p.Blocks()...)
			}
		}
		seen := map[netip.Prefix]bool{}
		for _, g := range f.Guests {
			if !seen[g.Prefix] {
				f.Announced = append(f.Announced, g.Prefix)
			}
			seen[g.Prefix] = true
		}
		all = append(all, f)
	}
	return all
}

// Title is the family's name for people, Name that of BGP's tables, IP that of
// FRR's commands, and N distinguishes the names that exist once for each family.
func (f family) Title() string { return "IPv" + f.N() }

func (f family) Name() string { return "ipv" + f.N() }

func (f family) IP() string {
	if f.V6 {
		return "ipv6"
	}
	return "ip"
}

func (f family) N() string {
	if f.V6 {
		return "6"
	}
	return "4"
}

// Default is the default route.
func (f family) Default() netip.Prefix {
	if f.V6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// Command returns the command that renders the text.
func (r router) Command() string {
	command := fmt.Sprintf("vmfabric render %s --for %s", r.Format, r.Name)
	if _, err := RoleOf(r.Cluster, r.Name); err != nil {
		command += " --role " + string(r.Role)
	}
	return command
}

// Secret reports whether the text has a password.
func (r router) Secret() bool {
	for _, rr := range r.secrets() {
		if rr.Password != "" {
			return true
		}
	}
	return false
}

// BFD reports whether any session has BFD.
func (r router) BFD() bool {
	if r.RR.BFD {
		return true
	}
	for _, s := range r.Sessions {
		if s.BFD {
			return true
		}
	}
	return false
}

// External reports whether any session is eBGP.
func (r router) External() bool {
	for _, s := range r.Sessions {
		if s.External {
			return true
		}
	}
	return false
}

// Warning is the number of prefixes of a node at which the log warns.
func (r router) Warning() int { return r.MaxPrefixes * 8 / 10 }

// Protocol and PortMetric are the agent's marks on its routes in the kernel;
// PeerMetric is that of other nodes' routes.
func (r router) Protocol() int { return fabric.Protocol }

func (r router) PortMetric() int { return fabric.PortMetric }

func (r router) PeerMetric() int { return fabric.PeerMetric }

// Standard and Large list the cluster's communities by their kinds.
func (r router) Standard() []fabric.Community { return r.communities(false) }

func (r router) Large() []fabric.Community { return r.communities(true) }

func (r router) communities(large bool) []fabric.Community {
	var all []fabric.Community
	for _, c := range r.Communities {
		if c.Large == large {
			all = append(all, c)
		}
	}
	return all
}

// JunosLarge lists the large communities as Junos writes them.
func (r router) JunosLarge() []string {
	var all []string
	for _, c := range r.Large() {
		all = append(all, "large:"+c.String())
	}
	return all
}

// Hop returns the next hop of a family that a node's configuration must set; nil if
// it is the session's own address, or if the cluster file has none.
func (r router) Hop(v6 bool, local netip.Addr) *netip.Addr {
	hop := r.Node.Address
	if v6 {
		hop = r.Node.Address6
	}
	if !hop.IsValid() || hop == local {
		return nil
	}
	return &hop
}

// group is a peer group of FRR: sessions that differ only in their addresses.
type group struct {
	Group    string
	Password string
	GTSM     bool
	ASN      uint32
	External bool
	Local    netip.Addr
	Members  []session
}

// NodeGroup returns the peer group of a reflector's nodes.
func (r router) NodeGroup() group {
	return group{Group: "NODES", ASN: r.ASN, Password: r.RR.Password, GTSM: r.RR.GTSM}
}

// Groups returns the peer groups of the sessions, in their order.
func (r router) Groups() []group {
	var gs []group
	for _, s := range r.Sessions {
		i := 0
		for i < len(gs) && !gs[i].takes(s) {
			i++
		}
		if i == len(gs) {
			gs = append(gs, group{Password: s.Password, GTSM: s.GTSM, ASN: s.ASN, External: s.External, Local: s.Local})
		}
		gs[i].Members = append(gs[i].Members, s)
	}
	base := "REFLECTORS"
	if r.Role == Reflector {
		base = "CORE"
	}
	for i := range gs {
		gs[i].Group = base
		if len(gs) > 1 {
			gs[i].Group = fmt.Sprintf("%s%d", base, i+1)
		}
	}
	return gs
}

func (g group) takes(s session) bool {
	return g.Password == s.Password && g.GTSM == s.GTSM && g.ASN == s.ASN && g.External == s.External && g.Local == s.Local
}

// CustomPort returns the port of a reflector; 0 if it is BGP's.
func (r router) CustomPort() uint16 {
	if cmp.Or(r.RR.Port, 179) == 179 {
		return 0
	}
	return r.RR.Port
}
