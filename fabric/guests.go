package fabric

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Guests says what guests may reach beside each other and the Internet, and what the
// node tells them of their network. By default the node itself gives a guest address
// resolution, echo replies, ICMP errors and its configuration, and nothing more. The
// node forwards no packets of guests to the underlay or to 169.254.0.0/16, except
// replies to packets that came from there.
type Guests struct {
	// Reach lists prefixes of the underlay and of 169.254.0.0/16 that guests may
	// reach nevertheless.
	Reach []netip.Prefix
	// NodePorts lists services of the node that its guests may reach, on any
	// address of the node.
	NodePorts []Service

	// The node answers its guests' DHCPv4 and DHCPv6 requests and router
	// solicitations: a guest learns its addresses, its gateway and what follows here.
	NoDHCP bool         // the node answers no DHCP
	NoRA   bool         // the node sends no router advertisements
	DNS    []netip.Addr // resolvers
	Search []string     // domains in which guests look names up
	NTP    []netip.Addr // time servers
	MTU    int          // of guests' links whose NIC has none of its own, in bytes; 0: nothing is said

	// Lifetimes are how long what a guest is told holds. The zero value is for all
	// clusters but those that want to see what happens at the end of them: see package
	// autoconf. The cluster file has no key for it.
	Lifetimes Lifetimes

	// Isolate: no packets pass between guests ([VM.Isolated] says so for one).
	Isolate bool

	// Metadata: the node serves each guest its metadata, at [Metadata4] and [Metadata6].
	Metadata bool
}

// Lifetimes are how long what a guest is told holds. A zero one is autoconf's own.
type Lifetimes struct {
	Lease  time.Duration // of addresses, prefixes, resolvers and search domains
	Renew  time.Duration // after which the guest asks its server (T1)
	Rebind time.Duration // after which it asks all servers (T2)
	Router time.Duration // of the node as a default router
	// Advertise is the longest time between two router advertisements that no guest asks
	// for; the shortest is half of it.
	Advertise time.Duration
}

// Service is a TCP or UDP port.
type Service struct {
	Protocol string // "tcp" or "udp"
	Port     uint16
}

// ParseService reads "tcp/53".
func ParseService(s string) (Service, error) {
	protocol, digits, _ := strings.Cut(s, "/")
	port, err := strconv.ParseUint(digits, 10, 16)
	if protocol != "tcp" && protocol != "udp" || err != nil || port == 0 || strconv.FormatUint(port, 10) != digits {
		return Service{}, fmt.Errorf("%q is not a service; write tcp/53 or udp/53", s)
	}
	return Service{protocol, uint16(port)}, nil
}

// String gives the form that [ParseService] reads.
func (s Service) String() string { return fmt.Sprintf("%s/%d", s.Protocol, s.Port) }

// Private lists the prefixes of the cluster's own machines, which guests do not
// reach unless [Guests.Reach] has them: those of [Cluster.NodeRanges], and the
// addresses of all machines that lie outside of them. They do not overlap.
func (c *Cluster) Private() []netip.Prefix {
	ps := c.NodeRanges()
	for _, h := range c.hosts() {
		if h.addr == c.Gateway.IPv4 || h.addr == c.Gateway.IPv6 {
			continue // the node itself has it
		}
		ps = append(ps, HostPrefix(h.addr))
	}
	return disjoint(ps)
}

// GuestPrefixes lists the prefixes of which guests have addresses and routes: the blocks
// of the pools, and [Cluster.Routed]. They may overlap.
func (c *Cluster) GuestPrefixes() []netip.Prefix {
	ps := slices.Clone(c.Routed)
	for _, p := range c.Pools {
		ps = append(ps, p.Blocks()...)
	}
	return ps
}

// disjoint leaves out prefixes that lie in another one, and sorts.
func disjoint(ps []netip.Prefix) []netip.Prefix {
	ps = slices.Clone(ps)
	slices.SortFunc(ps, netip.Prefix.Compare) // a prefix comes before those in it
	var kept []netip.Prefix
	for _, p := range ps {
		if n := len(kept); n == 0 || !kept[n-1].Overlaps(p) {
			kept = append(kept, p)
		}
	}
	return kept
}

// guests checks what guests may reach.
func (v *validator) guests() {
	private := append(v.c.Private(), linkLocal4)
	for i, p := range v.c.Guests.Reach {
		at := fmt.Sprintf("guests.reach[%d]", i)
		around := slices.IndexFunc(v.c.Guests.Reach[:i], func(q netip.Prefix) bool { return q.Overlaps(p) })
		switch {
		case !p.IsValid():
			v.add(at, "not a prefix; for example 10.10.0.53/32")
		case unfit(p) != "" && !within(p, linkLocal4) || p != p.Masked():
			v.add(at, "%s", unfit(p))
		case around >= 0:
			v.add(at, "%s overlaps %s (guests.reach[%d]); keep the larger one", p, v.c.Guests.Reach[around], around)
		case !slices.ContainsFunc(private, p.Overlaps):
			v.add(at, "%s lies neither in the underlay nor in 169.254.0.0/16, so that guests reach it anyway; remove it", p)
		}
	}
	for i, s := range v.c.Guests.NodePorts {
		at := fmt.Sprintf("guests.node_ports[%d]", i)
		_, err := ParseService(s.String())
		first := slices.Index(v.c.Guests.NodePorts[:i], s)
		switch {
		case err != nil:
			v.add(at, "%v", err)
		case first >= 0:
			v.add(at, "%s is already at guests.node_ports[%d]; remove one", s, first)
		case s == Service{"tcp", v.c.AgentPort}:
			v.add(at, "%s is the port on which the agents hear each other (agent_port), which no guest may reach; remove it", s)
		}
	}
}

// linkLocal4 is the link-local block of RFC 3927. Clouds serve their metadata there.
var linkLocal4 = netip.MustParsePrefix("169.254.0.0/16")

// permitUnderlay says why no guest can have the route r, or nil: with an address
// of the underlay, a guest could pose as one of the cluster's machines.
func (c *Cluster) permitUnderlay(r netip.Prefix) error {
	for _, h := range c.hosts() {
		if r.Contains(h.addr) {
			return fmt.Errorf("it holds the address of %s (%s); route a prefix that is yours", h.what, h.addr)
		}
	}
	for _, p := range c.Private() {
		if r.Overlaps(p) {
			return fmt.Errorf("it overlaps %s, where the cluster's own machines are, so that the guest could pose as one; route a prefix that is not the underlay's", p)
		}
	}
	return nil
}
