package fabric

import (
	"cmp"
	"encoding"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Protocol is the route protocol number (rtm_protocol, rtnetlink(7)) that
// marks every route of the fabric in the kernel. Routes with another number
// are never touched.
const Protocol = 147

// LinkGroup is the interface group (IFLA_GROUP) of every port, one match for
// packet filters and one key for removal.
const LinkGroup = 147

// DefaultMAC is the gateway's MAC address where the cluster names none. It is
// locally administered and the same on every port of every node, so that a
// guest that moves finds the gateway that it knew.
var DefaultMAC = MAC{0x02, 0x00, 0x5e, 0x00, 0x01, 0x01}

// MAC is an Ethernet address (EUI-48). The zero value means "none".
type MAC [6]byte

// ParseMAC reads the forms that net.ParseMAC reads, six bytes long.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 {
		return MAC{}, fmt.Errorf("%q is not a MAC address; write it as 02:00:5e:00:01:01", s)
	}
	return MAC(hw), nil
}

// IsZero reports whether m is unset.
func (m MAC) IsZero() bool { return m == MAC{} }

// String gives the address in lower case with colons, "" when unset.
func (m MAC) String() string {
	if m.IsZero() {
		return ""
	}
	return net.HardwareAddr(m[:]).String()
}

// MarshalText implements [encoding.TextMarshaler].
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler]; empty text is the zero MAC.
func (m *MAC) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*m = MAC{}
		return nil
	}
	v, err := ParseMAC(string(b))
	if err == nil {
		*m = v
	}
	return err
}

// Community is a BGP community (RFC 1997, two 16-bit halves) or, when Large,
// a large community (RFC 8092, three 32-bit parts).
type Community struct {
	Large   bool
	A, B, C uint32
}

// ParseCommunity reads "64512:100" or, for a large community, "64512:1:100".
func ParseCommunity(s string) (Community, error) {
	parts := strings.Split(s, ":")
	bad := fmt.Errorf("%q is not a community; write 64512:100, or 64512:1:100 for a large one", s)
	if len(parts) != 2 && len(parts) != 3 {
		return Community{}, bad
	}
	c := Community{Large: len(parts) == 3}
	bits := 16
	if c.Large {
		bits = 32
	}
	for i, dst := range []*uint32{&c.A, &c.B, &c.C}[:len(parts)] {
		v, err := strconv.ParseUint(parts[i], 10, bits)
		if err != nil {
			return Community{}, bad
		}
		*dst = uint32(v)
	}
	return c, nil
}

// String gives the community in the form that [ParseCommunity] reads.
func (c Community) String() string {
	if c.Large {
		return fmt.Sprintf("%d:%d:%d", c.A, c.B, c.C)
	}
	return fmt.Sprintf("%d:%d", c.A, c.B)
}

// Gateway is what every port of every node carries: the guests' first hop.
type Gateway struct {
	IPv4 netip.Addr // a /32 on each port; invalid in a cluster without IPv4
	IPv6 netip.Addr // usually link-local; invalid in a cluster without IPv6
	MAC  MAC
}

// Addr gives the gateway of the family of a, or the zero Addr.
func (g Gateway) Addr(a netip.Addr) netip.Addr {
	if a.Is4() {
		return g.IPv4
	}
	return g.IPv6
}

// Pool is a prefix whose addresses guests may have.
type Pool struct {
	Name    string
	Prefix  netip.Prefix
	Exclude []netip.Prefix // addresses and prefixes inside Prefix that no guest may have
}

// Contains reports whether a guest may have the address a from this pool.
func (p Pool) Contains(a netip.Addr) bool {
	return p.Prefix.Contains(a) &&
		!slices.ContainsFunc(p.Exclude, func(x netip.Prefix) bool { return x.Contains(a) })
}

// RR is a route reflector (RFC 4456) as the nodes see it.
type RR struct {
	Name     string
	Address  netip.Addr
	ASN      uint32 // the cluster's where it is iBGP, the usual case
	Port     uint16 // 179 when zero
	Password string // TCP MD5 key (RFC 2385); empty for none
	GTSM     bool   // send with TTL 255 and accept no lower (RFC 5082)
	BFD      bool   // single-hop BFD (RFC 5881)
}

// Core is a core gateway: the router between the fabric and the Internet.
type Core struct {
	Name    string
	Address netip.Addr
	ASN     uint32
}

// Node is a hypervisor host. At least one of its addresses is valid. They are
// the source of its BGP sessions and the next hop of what it announces.
type Node struct {
	Name     string
	Address  netip.Addr // IPv4
	Address6 netip.Addr // IPv6
}

// Source gives the node's address of the family of peer, or the zero Addr.
func (n Node) Source(peer netip.Addr) netip.Addr {
	if peer.Is4() {
		return n.Address
	}
	return n.Address6
}

// Timers are the BGP timers towards the reflectors.
type Timers struct {
	Hold         time.Duration // hold time (RFC 4271), 9 s by default; keepalives every third of it
	ConnectRetry time.Duration // 1 s by default
	Restart      time.Duration // graceful restart time (RFC 4724), 120 s by default
}

// DefaultTimers are used where the cluster names none.
var DefaultTimers = Timers{Hold: 9 * time.Second, ConnectRetry: time.Second, Restart: 120 * time.Second}

// Cluster is what every node, reflector and core gateway agrees on. A cluster
// that came from fabric/clusterfile, or passed [Cluster.Validate], is valid.
type Cluster struct {
	Name        string
	ASN         uint32
	Communities []Community // on everything that is announced
	Gateway     Gateway
	Pools       []Pool
	Routed      []netip.Prefix // where prefixes routed to guests must lie; empty: anywhere that is free
	Reflectors  []RR
	Core        []Core
	Nodes       []Node
	Timers      Timers
}

// WithDefaults gives the cluster with [DefaultMAC] and [DefaultTimers] where it
// names none, and its own AS number for reflectors and core gateways.
func (c Cluster) WithDefaults() Cluster {
	c.Gateway.MAC = cmp.Or(c.Gateway.MAC, DefaultMAC)
	c.Timers.Hold = cmp.Or(c.Timers.Hold, DefaultTimers.Hold)
	c.Timers.ConnectRetry = cmp.Or(c.Timers.ConnectRetry, DefaultTimers.ConnectRetry)
	c.Timers.Restart = cmp.Or(c.Timers.Restart, DefaultTimers.Restart)
	c.Reflectors, c.Core = slices.Clone(c.Reflectors), slices.Clone(c.Core)
	for i := range c.Reflectors {
		c.Reflectors[i].ASN = cmp.Or(c.Reflectors[i].ASN, c.ASN)
		c.Reflectors[i].Port = cmp.Or(c.Reflectors[i].Port, 179)
	}
	for i := range c.Core {
		c.Core[i].ASN = cmp.Or(c.Core[i].ASN, c.ASN)
	}
	return c
}

// Node gives the node of that name.
func (c *Cluster) Node(name string) (Node, error) {
	names := make([]string, 0, len(c.Nodes))
	for _, n := range c.Nodes {
		if n.Name == name {
			return n, nil
		}
		names = append(names, n.Name)
	}
	return Node{}, fmt.Errorf("node %q is not in cluster %s (it has %s); add it under nodes, or name another with --node",
		name, c.Name, strings.Join(names, ", "))
}

// PoolOf gives the pool whose prefix has a, excluded or not.
func (c *Cluster) PoolOf(a netip.Addr) (Pool, bool) {
	for _, p := range c.Pools {
		if p.Prefix.Contains(a) {
			return p, true
		}
	}
	return Pool{}, false
}

// Problem is one thing that is wrong with a cluster. Path says where, in the
// words of the cluster file: "pools[1].prefix".
type Problem struct {
	Path string
	Text string // the reason and the way out
}

func (p Problem) Error() string { return p.Path + ": " + p.Text }

// Validate lists what is wrong with the cluster, in the order of the cluster
// file; nil when nothing is. It has no side effects.
func (c *Cluster) Validate() []Problem {
	var ps []Problem
	add := func(path, format string, args ...any) {
		ps = append(ps, Problem{path, fmt.Sprintf(format, args...)})
	}
	names := func(kind string) func(path, name string) {
		seen := map[string]string{}
		return func(path, name string) {
			switch first, dup := seen[name]; {
			case !plainName(name):
				add(path, "%q is not a %s name; use 1 to 32 letters, digits, '.', '_' and '-'", name, kind)
			case dup:
				add(path, "%s %q is already at %s; rename one", kind, name, first)
			default:
				seen[name] = path
			}
		}
	}
	if !plainName(c.Name) {
		add("name", "%q is not a cluster name; use 1 to 32 letters, digits, '.', '_' and '-'", c.Name)
	}
	if c.ASN == 0 || c.ASN == 23456 || c.ASN == 65535 || c.ASN == 1<<32-1 {
		add("asn", "%d is a reserved AS number; use your own, or a private one (64512 to 65534)", c.ASN)
	}
	if len(c.Communities) == 0 {
		add("community", "missing; the routers recognise the guests' routes by it, for example \"%d:100\"", min(c.ASN, 65534))
	}
	c.validateGateway(add)
	c.validatePools(add, names("pool"))

	taken := map[netip.Addr]string{}
	take := func(path string, a netip.Addr) {
		if first, dup := taken[a]; dup {
			add(path, "%s is already at %s; each needs an address of its own", a, first)
			return
		}
		taken[a] = path
		if p, in := c.PoolOf(a); in {
			add(path, "%s lies in pool %s, whose addresses are for guests; exclude it there or move it", a, p.Name)
		}
		if a == c.Gateway.IPv4 || a == c.Gateway.IPv6 {
			add(path, "%s is the guests' gateway, which must be used nowhere else", a)
		}
		if a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
			add(path, "%s cannot be the address of a host", a)
		}
	}
	if len(c.Reflectors) == 0 {
		add("reflectors", "missing; without a route reflector nothing can be announced, name at least one (two are better)")
	}
	name := names("reflector")
	for i, r := range c.Reflectors {
		at := fmt.Sprintf("reflectors[%d].", i)
		name(at+"name", r.Name)
		if !r.Address.IsValid() {
			add(at+"address", "missing; give the reflector's IPv4 or IPv6 address")
			continue
		}
		take(at+"address", r.Address)
		for j, n := range c.Nodes {
			if !n.Source(r.Address).IsValid() {
				family, key := "IPv4", "address"
				if r.Address.Is6() {
					family, key = "IPv6", "address6"
				}
				add(at+"address", "%s is %s but node %s (nodes[%d]) has no %s address; give the node an %s, or the reflector an address of the other family",
					r.Address, family, n.Name, j, family, key)
				break
			}
		}
	}
	name = names("core gateway")
	for i, g := range c.Core {
		at := fmt.Sprintf("core[%d].", i)
		name(at+"name", g.Name)
		if !g.Address.IsValid() {
			add(at+"address", "missing; give the core gateway's address")
			continue
		}
		take(at+"address", g.Address)
	}
	if len(c.Nodes) == 0 {
		add("nodes", "missing; name at least one node with its address")
	}
	name = names("node")
	for i, n := range c.Nodes {
		at := fmt.Sprintf("nodes[%d].", i)
		name(at+"name", n.Name)
		if !n.Address.IsValid() && !n.Address6.IsValid() {
			add(at+"address", "missing; give the node's address on the private network")
		}
		if n.Address.IsValid() {
			take(at+"address", n.Address)
		}
		if n.Address6.IsValid() {
			take(at+"address6", n.Address6)
		}
	}
	if h := c.Timers.Hold; h < 3*time.Second || h > 65535*time.Second {
		add("timers.hold", "%v is out of range; RFC 4271 allows 3s to 65535s", h)
	}
	if r := c.Timers.Restart; r < time.Second || r > 4095*time.Second {
		add("timers.restart", "%v is out of range; RFC 4724 allows 1s to 4095s", r)
	}
	if r := c.Timers.ConnectRetry; r < time.Second || r > time.Hour {
		add("timers.connect_retry", "%v is out of range; give 1s to 1h", r)
	}
	return ps
}

func (c *Cluster) validateGateway(add func(path, format string, args ...any)) {
	g := c.Gateway
	for _, f := range []struct {
		path string
		addr netip.Addr
		four bool
	}{{"gateway.ipv4", g.IPv4, true}, {"gateway.ipv6", g.IPv6, false}} {
		family := map[bool]string{true: "IPv4", false: "IPv6"}[f.four]
		example := map[bool]string{true: "169.254.1.1", false: "fe80::1"}[f.four]
		if !f.addr.IsValid() {
			for _, p := range c.Pools {
				if p.Prefix.Addr().Is4() == f.four {
					add(f.path, "missing, and pool %s is %s; any address that is used nowhere else will do, for example %s", p.Name, family, example)
					break
				}
			}
			continue
		}
		switch {
		case f.addr.Is4() != f.four:
			add(f.path, "%s is not an %s address; for example %s", f.addr, family, example)
		case f.addr.IsUnspecified() || f.addr.IsMulticast() || f.addr.IsLoopback():
			add(f.path, "%s cannot be the address of a host; for example %s", f.addr, example)
		}
		if p, in := c.PoolOf(f.addr); in {
			add(f.path, "%s lies in pool %s; the gateway must be an address that no guest can have, for example %s", f.addr, p.Name, example)
		}
	}
	if g.MAC[0]&1 != 0 || g.MAC.IsZero() {
		add("gateway.mac", "%q is not a unicast MAC address; leave it out for %s", g.MAC, DefaultMAC)
	}
}

func (c *Cluster) validatePools(add func(path, format string, args ...any), name func(path, name string)) {
	if len(c.Pools) == 0 {
		add("pools", "missing; name at least one prefix whose addresses guests may have")
	}
	for i, p := range c.Pools {
		at := fmt.Sprintf("pools[%d].", i)
		name(at+"name", p.Name)
		if !p.Prefix.IsValid() {
			add(at+"prefix", "missing; for example 203.0.113.0/24")
			continue
		}
		if p.Prefix != p.Prefix.Masked() {
			add(at+"prefix", "%s has bits beyond its length; write %s", p.Prefix, p.Prefix.Masked())
		}
		if p.Prefix.Bits() == 0 {
			add(at+"prefix", "%s is the whole Internet; name the prefixes that were given to you", p.Prefix)
		}
		if a := p.Prefix.Addr(); a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() {
			add(at+"prefix", "%s holds no addresses that a guest can use on the Internet or a private network", p.Prefix)
		}
		for j, q := range c.Pools[:i] {
			if q.Prefix.IsValid() && p.Prefix.Overlaps(q.Prefix) {
				add(at+"prefix", "%s overlaps %s of pool %s (pools[%d]); make them disjoint", p.Prefix, q.Prefix, q.Name, j)
			}
		}
		for j, x := range p.Exclude {
			if !p.Prefix.Overlaps(x) || x.Bits() < p.Prefix.Bits() {
				add(fmt.Sprintf("%sexclude[%d]", at, j), "%s lies outside %s; remove it or correct it", x, p.Prefix)
			}
		}
	}
	for i, r := range c.Routed {
		at := fmt.Sprintf("routed[%d]", i)
		if r != r.Masked() {
			add(at, "%s has bits beyond its length; write %s", r, r.Masked())
		}
		if r.Bits() == 0 {
			add(at, "%s is the whole Internet; name the prefixes that were given to you", r)
		}
	}
}

// plainName holds for names that mean nothing special in a file name, a link
// alias or a router's configuration.
func plainName(s string) bool {
	if s == "" || len(s) > 32 || s[0] == '.' || s[0] == '-' {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return !plainRune(r) })
}

func plainRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-' || r == '.'
}

var (
	_ encoding.TextMarshaler   = MAC{}
	_ encoding.TextUnmarshaler = (*MAC)(nil)
)
