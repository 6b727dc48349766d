package fabric

import (
	"cmp"
	"encoding"
	"fmt"
	"hash/fnv"
	"math"
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

// PeerProtocol is the route protocol number of routes to guests on other nodes,
// which a node learns where the cluster is [Cluster.EastWest].
const PeerProtocol = 148

// Metrics of the fabric's routes in the kernel's main table (RTA_PRIORITY); of
// several routes to a prefix the lowest is used. Metrics below PortMetric are
// for announcements that a routing daemon reads from the kernel: the value of
// LOCAL_PREF stands for itself there, see [Preference.LocalPref].
const (
	PortMetric = 1024 // of the route to a port, announced or not; what the kernel gives IPv6 routes too
	PeerMetric = 4096 // of a route to another node, so that a guest which is here wins
)

// Routing tables of the fabric beside the main one, which routing daemons read
// and which a move of a guest leaves as it is, and the priorities of the rules
// (ip-rule(8)) by which packets get there before the main table's, 32766. Who is
// about to arrive comes first: what the other node diverts to this one must not
// meet a diversion that an earlier move left.
const (
	ArrivingTable = 147   // routes to ports that are [Port.Incoming], for what comes in from the underlay
	DivertedTable = 148   // routes to the nodes that guests went to, for all packets; see [Mover]
	ArrivingRule  = 14700 // one for each link of the underlay
	DivertedRule  = 14800
	TrialTable    = 149 // where the dataplane's own packets go with which it tries whether the node forwards
	TrialRule     = 14600
)

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

// GracefulShutdown is the well-known community GRACEFUL_SHUTDOWN (RFC 8326):
// whoever takes the route is about to lose it, and takes another where there is one.
var GracefulShutdown = Community{A: 65535, B: 0}

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
	IPv4 netip.Addr `json:"ipv4"` // a /32 on each port; invalid in a cluster without IPv4
	IPv6 netip.Addr `json:"ipv6"` // usually link-local; invalid in a cluster without IPv6
	MAC  MAC        `json:"mac"`
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
	BFD     bool // between it and the reflectors; that notices a dead one sooner, and can cut graceful restart short
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

// RouterID gives the BGP identifier (RFC 6286) of a speaker with these
// addresses, either of which may be invalid: the IPv4 address, or where there is
// none, four bytes that are always the same for v6 and that hardly another
// speaker has.
func RouterID(v4, v6 netip.Addr) netip.Addr {
	if v4.Is4() {
		return v4
	}
	h := fnv.New32a()
	h.Write(v6.AsSlice())
	sum := [4]byte(h.Sum(nil))
	sum[0] = sum[0]%223 + 1
	return netip.AddrFrom4(sum)
}

// Timers are the BGP timers of all sessions of a cluster.
type Timers struct {
	Hold         time.Duration // hold time (RFC 4271), 9 s by default; keepalives every third of it
	ConnectRetry time.Duration // 1 s by default
	Restart      time.Duration // graceful restart time (RFC 4724), 120 s by default
	LongLived    time.Duration // long-lived stale time after that (RFC 9494); off when zero
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
	// Underlay is where a node may open a session to a reflector from, so that
	// a new one needs no change there; empty: as [Cluster.NodeRanges] has it.
	Underlay []netip.Prefix
	// MaxPrefixes is how many prefixes of each family a reflector takes from
	// one node, DefaultMaxPrefixes when zero; it warns at 80 % of them.
	MaxPrefixes int
	// EastWest has nodes take each other's routes from the reflectors, so that
	// guests on two nodes reach each other without the core gateway.
	EastWest bool
	// Speaker says what talks BGP on the nodes: "gobgp" (the default), "bird",
	// "frr", or the path of a plugin.
	Speaker string
	// Resolver is the path of a plugin that knows the addresses of guests whose
	// hypervisor does not; empty for none. Observers are those of plugins that
	// are told what happens.
	Resolver  string
	Observers []string
	// Key is the secret that the agents' messages to each other are proven with,
	// what is in the file that key_file names. Empty: the reflectors' passwords
	// are; without these, only the cluster's Nodes are heard, by their address.
	Key string
	// AgentPort is the TCP port on which the agents of the nodes hear each
	// other, on the nodes' addresses; DefaultAgentPort when zero.
	AgentPort uint16
	Moves     Moves
	Guests    Guests
}

// MinKey is how many bytes a [Cluster.Key] has at least.
const MinKey = 16

// DefaultAgentPort is used where the cluster names none.
const DefaultAgentPort = 7147

// Moves says what a live migration has to hold out: packets that come for a
// guest while it runs on neither node wait for it.
type Moves struct {
	Rate  int           // packets a second for one guest; 10,000 when zero
	Pause time.Duration // how long the guest may stand still; 900 ms when zero
}

// Queue gives the packets that a port has to hold for a guest on its way.
func (m Moves) Queue() int {
	const slack = 100 * time.Millisecond
	return int(math.Ceil(float64(m.Rate) * (m.Pause + slack).Seconds()))
}

// DefaultMoves are used where the cluster names none.
var DefaultMoves = Moves{Rate: 10_000, Pause: 900 * time.Millisecond}

// DefaultMaxPrefixes is twice what a node was measured with.
const DefaultMaxPrefixes = 10_000

// The speakers that come with the fabric, in the words of [Cluster.Speaker].
const (
	SpeakerGoBGP = "gobgp" // embedded in the agent
	SpeakerBIRD  = "bird"  // a BIRD on the node, which reads routes from the kernel
	SpeakerFRR   = "frr"   // an FRR on the node, likewise
)

// PrefixRange is the set of prefixes inside Prefix whose length in bits is Min
// to Max.
type PrefixRange struct {
	Prefix   netip.Prefix
	Min, Max int
}

// Contains reports whether p is in the set.
func (r PrefixRange) Contains(p netip.Prefix) bool {
	return within(p, r.Prefix) && r.Min <= p.Bits() && p.Bits() <= r.Max
}

// Announceable lists what a node may announce of a family, pools first: the
// host routes of the pools, and every prefix inside those routed to guests.
// What is in [Cluster.Excluded] is not.
func (c *Cluster) Announceable(v6 bool) []PrefixRange {
	var rs []PrefixRange
	for _, p := range c.Pools {
		if a := p.Prefix.Addr(); a.Is6() == v6 {
			rs = append(rs, PrefixRange{p.Prefix, a.BitLen(), a.BitLen()})
		}
	}
	for _, r := range c.Routed {
		if a := r.Addr(); a.Is6() == v6 {
			rs = append(rs, PrefixRange{r, r.Bits(), a.BitLen()})
		}
	}
	return rs
}

// Excluded lists the prefixes of a family that pools keep from guests, and with
// them everything inside.
func (c *Cluster) Excluded(v6 bool) []netip.Prefix {
	var ps []netip.Prefix
	for _, p := range c.Pools {
		if p.Prefix.Addr().Is6() == v6 {
			ps = append(ps, p.Exclude...)
		}
	}
	return ps
}

// RR gives the reflector of that name.
func (c *Cluster) RR(name string) (RR, error) {
	return named(c, "reflector", "reflectors", name, c.Reflectors, func(r RR) string { return r.Name })
}

// CoreGateway gives the core gateway of that name.
func (c *Cluster) CoreGateway(name string) (Core, error) {
	return named(c, "core gateway", "core", name, c.Core, func(g Core) string { return g.Name })
}

// named finds one of the cluster's machines, or says which there are.
func named[T any](c *Cluster, what, key, name string, all []T, nameOf func(T) string) (T, error) {
	names := make([]string, 0, len(all))
	for _, v := range all {
		if nameOf(v) == name {
			return v, nil
		}
		names = append(names, nameOf(v))
	}
	const most = 5
	if more := len(names) - most; more > 1 {
		names = append(names[:most], fmt.Sprintf("%d more", more))
	}
	var none T
	return none, fmt.Errorf("%s %q is not in cluster %s (it has %s); add it under %s, or name another",
		what, name, c.Name, cmp.Or(strings.Join(names, ", "), "none"), key)
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
	c.MaxPrefixes = cmp.Or(c.MaxPrefixes, DefaultMaxPrefixes)
	c.Speaker = cmp.Or(c.Speaker, SpeakerGoBGP)
	c.AgentPort = cmp.Or(c.AgentPort, DefaultAgentPort)
	c.Moves.Rate = cmp.Or(c.Moves.Rate, DefaultMoves.Rate)
	c.Moves.Pause = cmp.Or(c.Moves.Pause, DefaultMoves.Pause)
	return c
}

// NodeRanges lists where nodes may open sessions to the reflectors from, in
// order: the cluster's Underlay, or else the /24 and the /64 around each address
// of a node; where guests' prefixes are in that, the address alone, lest guests pose as
// nodes.
func (c *Cluster) NodeRanges() []netip.Prefix {
	if len(c.Underlay) > 0 {
		return slices.SortedFunc(slices.Values(c.Underlay), netip.Prefix.Compare)
	}
	var ps []netip.Prefix
	add := func(a netip.Addr, bits int) {
		p := netip.PrefixFrom(a, bits).Masked()
		switch {
		case !a.IsValid():
			return
		case slices.ContainsFunc(c.Pools, func(pool Pool) bool { return pool.Prefix.Overlaps(p) }), slices.ContainsFunc(c.Routed, p.Overlaps):
			p = HostPrefix(a)
		}
		ps = append(ps, p)
	}
	for _, n := range c.Nodes {
		add(n.Address, 24)
		add(n.Address6, 64)
	}
	slices.SortFunc(ps, netip.Prefix.Compare)
	return slices.Compact(ps)
}

// Node gives the node of that name.
func (c *Cluster) Node(name string) (Node, error) {
	return named(c, "node", "nodes", name, c.Nodes, func(n Node) string { return n.Name })
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

// host is an address of the fabric itself, which no guest may have.
type host struct {
	addr netip.Addr
	what string // such as "node node1"
}

// hosts lists the addresses of the fabric itself that are given, in the order
// of the cluster file.
func (c *Cluster) hosts() []host {
	all := []host{{c.Gateway.IPv4, "the gateway"}, {c.Gateway.IPv6, "the gateway"}}
	for _, r := range c.Reflectors {
		all = append(all, host{r.Address, "reflector " + r.Name})
	}
	for _, g := range c.Core {
		all = append(all, host{g.Address, "core gateway " + g.Name})
	}
	for _, n := range c.Nodes {
		all = append(all, host{n.Address, "node " + n.Name}, host{n.Address6, "node " + n.Name})
	}
	return slices.DeleteFunc(all, func(h host) bool { return !h.addr.IsValid() })
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
