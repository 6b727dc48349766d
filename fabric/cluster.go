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

// PeerProtocol is the route protocol number of routes to guests on other nodes. A
// node learns them from the reflectors if [Cluster.EastWest] is set.
const PeerProtocol = 148

// Metrics of the fabric's routes in the kernel's main table (RTA_PRIORITY); of
// several routes to a prefix the kernel uses the lowest. Metrics below PortMetric
// are for announcements that a routing daemon reads from the kernel: there the
// metric is the value of LOCAL_PREF, see [Preference.LocalPref].
const (
	PortMetric = 1024 // of the route to a port, announced or not; the kernel's default for IPv6 too
	PeerMetric = 4096 // of a route to another node, so that the route to a port of this node wins
)

// Routing tables of the fabric, and the priorities of the rules (ip-rule(8)) that
// lead packets there before the rule of the main table, 32766. Routing daemons read
// the main table, so a move of a guest must not change it. The rule for arriving
// guests comes before that for diverted ones: packets that another node diverts to
// this one must not meet a diversion that an earlier move left.
const (
	ArrivingTable = 147   // routes to ports that are [Port.Incoming], for packets from the underlay
	DivertedTable = 148   // routes to the nodes that guests went to, for all packets; see [Dataplane.Divert]
	ArrivingRule  = 14700 // one rule for each link of the underlay
	DivertedRule  = 14800
	TrialTable    = 149 // routes for the packets of [Dataplane.CheckForwarding]
	TrialRule     = 14600
	MetadataTable = 150 // the route by which guests' packets to [Metadata4] reach the node; see [Guests]
	MetadataRule  = 14900
)

// MetadataMark is the mark (SO_MARK) of guests' packets to the metadata service on this
// node. The packet filter sets it on packets from ports, and on no others.
const MetadataMark = 0x766d6d64

// The addresses at which a guest finds its metadata, TCP port 80. No node has the first
// as its own: on a node that is itself a guest of a cloud, it leads to that cloud's
// service. The second is an address of the port.
var (
	Metadata4 = netip.AddrFrom4([4]byte{169, 254, 169, 254})
	Metadata6 = netip.MustParseAddr("fe80::a9fe:a9fe")
)

// LinkGroup is the interface group (IFLA_GROUP) of every port, one match for
// packet filters and one key for removal.
const LinkGroup = 147

// DefaultMAC is the gateway's MAC address if the cluster names none. It is locally
// administered and the same on every port of every node: a guest that has moved
// goes on with the gateway in its neighbour table.
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

// Multicast reports whether m is a group address (IEEE 802, 8.2), as broadcast is.
func (m MAC) Multicast() bool { return m[0]&1 != 0 }

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

// GracefulShutdown is the well-known community GRACEFUL_SHUTDOWN (RFC 8326): the
// route is about to be withdrawn, and routers prefer another one if they have it.
var GracefulShutdown = Community{A: 65535, B: 0}

// BlackholeCommunity is the well-known community BLACKHOLE (RFC 7999): routers discard
// the packets to the prefix.
var BlackholeCommunity = Community{A: 65535, B: 666}

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

// Gateway is the guests' first hop. Every port of every node has its addresses.
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

// RR is a route reflector (RFC 4456) as the nodes see it.
type RR struct {
	Name     string
	Address  netip.Addr
	ASN      uint32 // with iBGP, the usual case, that of the cluster
	Port     uint16 // TCP port; zero: 179
	Password string // TCP MD5 key (RFC 2385); empty for none
	GTSM     bool   // send with TTL 255 and accept no lower (RFC 5082)
	BFD      bool   // single-hop BFD (RFC 5881)
}

// Core is a core gateway: the router between the fabric and the Internet.
type Core struct {
	Name    string
	Address netip.Addr
	ASN     uint32
	BFD     bool // with the reflectors: it detects a dead peer sooner, and can cut graceful restart short
}

// Node is a hypervisor host. At least one of its addresses is valid. They are the
// source addresses of its BGP sessions and the next hops of its announcements.
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
// addresses, either of which may be invalid: the IPv4 address, or if there is none,
// four bytes of a hash of v6, which hardly another speaker has.
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
	LongLived    time.Duration // long-lived stale time after that (RFC 9494); zero: off
}

// DefaultTimers are the timers of a cluster that names none.
var DefaultTimers = Timers{Hold: 9 * time.Second, ConnectRetry: time.Second, Restart: 120 * time.Second}

// Cluster is the configuration that all nodes, reflectors and core gateways share.
// A cluster from fabric/clusterfile, or one that passed [Cluster.Validate], is
// valid.
type Cluster struct {
	Name        string
	ASN         uint32
	Communities []Community // on every announcement
	Gateway     Gateway
	Pools       []Pool
	Routed      []netip.Prefix // prefixes routed to guests must lie in one of these; empty: anywhere that is free
	Reflectors  []RR
	Core        []Core
	Nodes       []Node
	Labels      map[string][]string // of nodes, by their names: see [Pool.NodeLabels]
	Timers      Timers
	// Underlay lists the prefixes from which nodes may open sessions to the
	// reflectors, so that a new node needs no change there. Empty: see
	// [Cluster.NodeRanges].
	Underlay []netip.Prefix
	// MaxPrefixes is how many prefixes of each family a reflector accepts from one
	// node; zero: [DefaultMaxPrefixes]. The reflector warns at 80 % of them.
	MaxPrefixes int
	// EastWest lets nodes accept each other's routes from the reflectors, so that
	// guests on two nodes reach each other without the core gateway.
	EastWest bool
	// Speaker names the BGP speaker of the nodes: "gobgp" (the default), "bird",
	// "frr", or the path of a plugin.
	Speaker string
	// Resolver is the path of a plugin that knows the addresses of guests whose
	// hypervisor does not; empty: none.
	Resolver string
	// Observers are the paths of plugins that receive the events of the nodes.
	Observers []string
	// Key is the secret that authenticates the messages between the agents: the
	// content of the file that key_file names. If it is empty, the reflectors'
	// passwords serve; without these, agents answer only the cluster's Nodes, which
	// they know by address.
	Key string
	// AgentPort is the TCP port on which the agents listen for each other, on the
	// nodes' addresses; zero: [DefaultAgentPort].
	AgentPort uint16
	Registry  RegistryConfig
	Moves     Moves
	Guests    Guests
	// Accounting: the nodes count the packets of guests, see [Traffic].
	Accounting bool
	// Metrics is where the agents serve their metrics, over HTTP; the zero value:
	// nowhere.
	Metrics netip.AddrPort
}

// Internal lists the prefixes of the cluster: what its guests may have, and its
// underlay. They do not overlap.
func (c *Cluster) Internal() []netip.Prefix {
	ps := append(c.Private(), c.Routed...)
	for _, p := range c.Pools {
		ps = append(ps, p.Blocks()...)
	}
	return disjoint(ps)
}

// RegistryConfig says which [Registry] the nodes share. The zero value is none: each
// node has its own.
type RegistryConfig struct {
	Etcd *EtcdConfig // nil: no etcd
}

// Kind names the registry that the nodes have: "etcd", or "file" for each node's own.
func (r RegistryConfig) Kind() string {
	if r.Etcd != nil {
		return "etcd"
	}
	return "file"
}

// EtcdConfig says where the etcd is that has the registry of a cluster.
type EtcdConfig struct {
	Endpoints []string // URLs, https://10.10.0.11:2379; one for each member
	// CA has the certificates, in PEM, of which one signed the members' certificates;
	// empty: those that the system trusts. Cert and Key are this node's certificate
	// and its key; empty: none.
	CA, Cert, Key string
	Prefix        string // of all keys, /vmfabric; the cluster's name follows; empty: [DefaultEtcdPrefix]
}

// DefaultEtcdPrefix is the [EtcdConfig.Prefix] of a cluster that names none.
const DefaultEtcdPrefix = "/vmfabric"

// MinKey is the least length of [Cluster.Key] in bytes.
const MinKey = 16

// DefaultAgentPort is the [Cluster.AgentPort] of a cluster that names none.
const DefaultAgentPort = 7147

// Moves is the load for which live migrations are planned. While a guest runs on
// neither node, its port holds the packets that come for it.
type Moves struct {
	Rate  int           // packets per second to one guest; zero: 10,000
	Pause time.Duration // longest pause of the guest; zero: 900 ms
}

// Queue gives the number of packets that the port of an arriving guest must hold.
func (m Moves) Queue() int {
	const slack = 100 * time.Millisecond
	return int(math.Ceil(float64(m.Rate) * (m.Pause + slack).Seconds()))
}

// DefaultMoves is the [Cluster.Moves] of a cluster that names none.
var DefaultMoves = Moves{Rate: 10_000, Pause: 900 * time.Millisecond}

// DefaultMaxPrefixes is twice the number of prefixes that nodes were measured with.
const DefaultMaxPrefixes = 10_000

// The speakers that come with the fabric, in the words of [Cluster.Speaker].
const (
	SpeakerGoBGP = "gobgp" // embedded in the agent
	SpeakerBIRD  = "bird"  // BIRD on the node, which reads routes from the kernel
	SpeakerFRR   = "frr"   // FRR on the node, likewise
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

// Announceable lists the prefixes of a family that a node may announce, pools
// first: the host routes of the pools, the prefixes of guests in pools with
// [Pool.PerGuest], and every prefix inside those routed to guests. [Cluster.Excluded]
// lists the exceptions.
func (c *Cluster) Announceable(v6 bool) []PrefixRange {
	var rs []PrefixRange
	for _, p := range c.Pools {
		if p.Is6() != v6 {
			continue
		}
		for _, b := range p.Blocks() {
			if p.PerGuest > 0 {
				rs = append(rs, PrefixRange{b, p.PerGuest, p.PerGuest})
			}
			rs = append(rs, PrefixRange{b, b.Addr().BitLen(), b.Addr().BitLen()})
		}
	}
	for _, r := range c.Routed {
		if a := r.Addr(); a.Is6() == v6 {
			rs = append(rs, PrefixRange{r, r.Bits(), a.BitLen()})
		}
	}
	return rs
}

// Excluded lists the prefixes of a family that pools exclude. No guest may have an
// address inside one.
func (c *Cluster) Excluded(v6 bool) []netip.Prefix {
	var ps []netip.Prefix
	for _, p := range c.Pools {
		if p.Is6() == v6 {
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

// named finds a machine of the cluster by name; its error lists the names there are.
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

// WithDefaults gives the cluster with the defaults of all fields that are zero, and
// with its own AS number for reflectors and core gateways without one.
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
	c.Pools = slices.Clone(c.Pools)
	for i := range c.Pools {
		c.Pools[i].Quarantine = cmp.Or(c.Pools[i].Quarantine, DefaultQuarantine)
	}
	c.MaxPrefixes = cmp.Or(c.MaxPrefixes, DefaultMaxPrefixes)
	c.Speaker = cmp.Or(c.Speaker, SpeakerGoBGP)
	c.AgentPort = cmp.Or(c.AgentPort, DefaultAgentPort)
	if c.Registry.Etcd != nil {
		e := *c.Registry.Etcd
		e.Prefix = cmp.Or(e.Prefix, DefaultEtcdPrefix)
		c.Registry.Etcd = &e
	}
	c.Moves.Rate = cmp.Or(c.Moves.Rate, DefaultMoves.Rate)
	c.Moves.Pause = cmp.Or(c.Moves.Pause, DefaultMoves.Pause)
	return c
}

// NodeRanges lists the prefixes from which nodes may open sessions to the
// reflectors, in order: the cluster's Underlay, or else the /24 or /64 around each
// address of a node. If that overlaps prefixes of guests it is the address alone,
// so that no guest can pose as a node.
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
		case slices.ContainsFunc(c.Pools, func(pool Pool) bool { return pool.Overlaps(p) }), slices.ContainsFunc(c.Routed, p.Overlaps):
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

// NamedPlugin is a program that the cluster file names.
type NamedPlugin struct {
	Key  string // of the file, such as "observers[1]"
	Path string // absolute
}

// Plugins lists the programs that the cluster names: the speaker if it is one, the
// resolver, and the observers.
func (c *Cluster) Plugins() (all []NamedPlugin) {
	if strings.HasPrefix(c.Speaker, "/") {
		all = append(all, NamedPlugin{"speaker", c.Speaker})
	}
	if c.Resolver != "" {
		all = append(all, NamedPlugin{"resolver", c.Resolver})
	}
	for i, path := range c.Observers {
		all = append(all, NamedPlugin{fmt.Sprintf("observers[%d]", i), path})
	}
	return all
}

// Node gives the node of that name.
func (c *Cluster) Node(name string) (Node, error) {
	return named(c, "node", "nodes", name, c.Nodes, func(n Node) string { return n.Name })
}

// PoolOf gives the pool that has a, even if the pool excludes a.
func (c *Cluster) PoolOf(a netip.Addr) (Pool, bool) {
	for _, p := range c.Pools {
		if p.Has(a) {
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

// plainName reports names without special meaning in a file name, a link alias or
// a router's configuration.
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
