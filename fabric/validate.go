package fabric

import (
	"cmp"
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"
)

// maxPassword is the longest TCP MD5 key that Linux takes, in bytes
// (TCP_MD5SIG_MAXKEYLEN, linux/tcp.h).
const maxPassword = 80

// martians are blocks in which neither a guest nor a machine can have an address
// (RFC 6890). Documentation, private and shared prefixes are not among them:
// laboratories and private clouds give them to guests.
var martians = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "unspecified"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	{netip.MustParsePrefix("::/96"), "unspecified"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4-mapped"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// Martians lists the blocks of a family in which neither a guest nor a machine can
// have an address (RFC 6890). Reflectors accept no prefix in them from a node.
// Documentation, private and shared prefixes are not among them.
func Martians(v6 bool) []netip.Prefix {
	var ps []netip.Prefix
	for _, m := range martians {
		if m.prefix.Addr().Is6() == v6 {
			ps = append(ps, m.prefix)
		}
	}
	return ps
}

// martian names the special block that p overlaps, "" when it overlaps none.
func martian(p netip.Prefix) string {
	for _, m := range martians {
		if p.Overlaps(m.prefix) {
			return m.what
		}
	}
	return ""
}

// Problem is one fault of a cluster. Path is its place in the cluster file:
// "pools[1].prefix".
type Problem struct {
	Path string
	Text string // the reason and the way out
}

func (p Problem) Error() string { return p.Path + ": " + p.Text }

// Validate lists the faults of the cluster, in the order of the cluster file; nil:
// there are none. Fill in the defaults first ([Cluster.WithDefaults]). It has no
// side effects.
func (c *Cluster) Validate() []Problem {
	v := validator{c: c, routers: map[netip.Addr]string{}}
	v.identity()
	v.communities()
	v.gateway("gateway.ipv4", c.Gateway.IPv4, "IPv4", "169.254.1.1")
	v.gateway("gateway.ipv6", c.Gateway.IPv6, "IPv6", "fe80::1")
	v.mac()
	v.pools()
	v.routed()
	v.reflectors()
	v.core()
	v.nodes()
	v.timers()
	v.underlay()
	v.limits()
	v.key()
	v.plugins()
	v.etcd()
	v.moves()
	v.guests()
	v.told()
	return v.problems
}

// validator gathers the problems of a cluster.
type validator struct {
	c        *Cluster
	problems []Problem
	routers  map[netip.Addr]string // addresses of core gateways and nodes, to their paths
}

func (v *validator) add(path, format string, args ...any) {
	v.problems = append(v.problems, Problem{path, fmt.Sprintf(format, args...)})
}

// names gives a function that checks names of one kind, and that none occurs twice.
func (v *validator) names(kind string) func(path, name string) {
	seen := map[string]string{}
	return func(path, name string) {
		switch first, dup := seen[name]; {
		case name == "":
			v.add(path, "missing; name the %s with 1 to 32 letters, digits, '.', '_' and '-'", kind)
		case !plainName(name):
			v.add(path, "%q is not a %s name; use 1 to 32 letters, digits, '.', '_' and '-'", name, kind)
		case dup:
			v.add(path, "%s %q is already at %s; rename one", kind, name, first)
		default:
			seen[name] = path
		}
	}
}

func (v *validator) identity() {
	v.names("cluster")("name", v.c.Name)
	switch asn := v.c.ASN; {
	case asn == 0:
		v.add("asn", "missing; give your own AS number, or a private one (64512 to 65534)")
	case reservedASN(asn):
		v.add("asn", "%d is a reserved AS number; use your own, or a private one (64512 to 65534)", asn)
	}
}

// reservedASN reports the AS numbers of RFC 7607, RFC 6793 and RFC 7300.
func reservedASN(n uint32) bool { return n == 0 || n == 23456 || n == 65535 || n == 1<<32-1 }

// peerASN checks the AS number of a router if it differs from the cluster's.
func (v *validator) peerASN(path string, asn uint32) {
	if asn != v.c.ASN && reservedASN(asn) {
		v.add(path, "%d is a reserved AS number; leave it out for the cluster's own", asn)
	}
}

func (v *validator) communities() {
	example := v.communityExample()
	if len(v.c.Communities) == 0 {
		v.add("community", "missing; the routers recognise the guests' routes by it, for example %q", example)
	}
	seen := map[Community]string{}
	for i, m := range v.c.Communities {
		path := "community"
		if len(v.c.Communities) > 1 {
			path = fmt.Sprintf("community[%d]", i)
		}
		first, dup := seen[m]
		switch {
		case !m.Large && (m.A > 65535 || m.B > 65535):
			v.add(path, "%s has a half above 65535; write a large community, for example \"%d:1:%d\"", m, m.A, m.B)
		case !m.Large && m.A == 65535:
			v.add(path, "%s is a well-known community, which means something to every router (RFC 1997); use one of your own, for example %q", m, example)
		case dup:
			v.add(path, "%s is already at %s; remove one", m, first)
		}
		seen[m] = path
	}
}

// communityExample gives a community that the cluster could use, for an error text.
func (v *validator) communityExample() string {
	switch asn := v.c.ASN; {
	case reservedASN(asn):
		return "64512:100"
	case asn > 65535:
		return Community{Large: true, A: asn, B: 1, C: 100}.String()
	default:
		return Community{A: asn, B: 100}.String()
	}
}

func (v *validator) gateway(path string, a netip.Addr, family, example string) {
	four := family == "IPv4"
	if !a.IsValid() {
		for _, p := range v.c.Pools {
			if len(p.Blocks()) > 0 && p.Is6() != four {
				v.add(path, "missing, and pool %s is %s; any address that is used nowhere else will do, for example %s", p.Name, family, example)
				return
			}
		}
		return
	}
	what := martian(HostPrefix(a))
	p, in := v.c.PoolOf(a)
	switch {
	case misspelt(a) != "":
		v.add(path, "%s", misspelt(a))
	case a.Is4() != four:
		v.add(path, "%s is not an %s address; for example %s", a, family, example)
	case what != "" && what != "link-local":
		v.add(path, "%s cannot be the address of a host (%s); for example %s", a, what, example)
	case in:
		v.add(path, "%s lies in pool %s; the gateway must be an address that no guest can have, for example %s", a, p.Name, example)
	}
}

func (v *validator) mac() {
	if m := v.c.Gateway.MAC; m.Multicast() || m.IsZero() {
		v.add("gateway.mac", "%q is not a unicast MAC address; leave it out for %s", m, DefaultMAC)
	}
}

func (v *validator) pools() {
	if len(v.c.Pools) == 0 {
		v.add("pools", "missing; name at least one prefix whose addresses guests may have")
	}
	name := v.names("pool")
	parts := make([][]poolPart, 0, len(v.c.Pools))
	for i, p := range v.c.Pools {
		at := fmt.Sprintf("pools[%d].", i)
		name(at+"name", p.Name)
		parts = append(parts, p.parts())
		if len(parts[i]) == 0 {
			v.add(at+"prefix", "missing; for example 203.0.113.0/24")
			continue
		}
		for j, part := range parts[i] {
			v.poolPart(at, part, parts[i][:j], parts[:i])
		}
		if len(p.Blocks()) == 0 {
			continue
		}
		v.perGuest(at, p)
		v.exclude(at+"exclude", p)
		v.reserve(at+"reserve", p)
		v.poolNodes(at+"nodes", p)
		v.nodeLabels(at+"node_labels", p)
		if q := p.Quarantine; q < 0 || q > maxQuarantine {
			v.add(at+"quarantine", "%v is out of range; give at most %v, or leave the key out for %v", q, maxQuarantine, DefaultQuarantine)
		}
		if p.Name == AutoPool {
			v.add(at+"name", "%q stands for the first pool of each family where a guest asks for addresses; choose another name", p.Name)
		}
	}
}

// poolPart checks a prefix or a range of a pool. own are those of the pool before it,
// pools those of the pools before.
func (v *validator) poolPart(at string, part poolPart, own []poolPart, pools [][]poolPart) {
	if part.flaw != "" {
		v.add(at+part.key, "%s", part.flaw)
		return
	}
	for _, o := range own {
		switch {
		case o.flaw != "":
		case o.addresses.First.Is4() != part.addresses.First.Is4():
			v.add(at+part.key, "%s is of another family than %s (%s%s); a pool has one, make two pools", part.text, o.text, at, o.key)
			return
		case o.addresses.Overlaps(part.addresses):
			v.add(at+part.key, "%s overlaps %s (%s%s); leave out what is in both", part.text, o.text, at, o.key)
			return
		}
	}
	for i, of := range pools {
		for _, o := range of {
			if o.addresses.Overlaps(part.addresses) {
				v.add(at+part.key, "%s overlaps %s of pool %s (pools[%d]); make them disjoint", part.text, o.text, v.c.Pools[i].Name, i)
				return
			}
		}
	}
}

// perGuest checks that the pool is made of whole prefixes for guests.
func (v *validator) perGuest(at string, p Pool) {
	n, most, usual := p.PerGuest, 31, 29
	if p.Is6() {
		most, usual = 127, 64
	}
	if p.NoAddress && n == 0 {
		v.add(at+"guest_address", "pool %s gives single addresses, which are the guests'; leave the key out, or give the length of a prefix for each guest under per_guest, such as %d", p.Name, usual)
	}
	switch {
	case n == 0:
		return
	case n < 0 || n > most:
		v.add(at+"per_guest", "%d is no length of a prefix of several addresses; give one up to %d, such as %d, or leave the key out for single addresses", n, most, usual)
		return
	}
	for _, part := range p.parts() {
		if part.flaw != "" {
			continue
		}
		for _, b := range part.addresses.Prefixes() {
			if b.Bits() > n {
				v.add(at+part.key, "%s is not made of whole prefixes of length %d, of which each guest gets one (per_guest); give it ends that fit, or a longer per_guest", part.text, n)
				break
			}
		}
	}
}

// maxQuarantine is the longest [Pool.Quarantine].
const maxQuarantine = 365 * 24 * time.Hour

// maxNote is the longest note of a reservation, in bytes.
const maxNote = 200

func (v *validator) reserve(at string, p Pool) {
	seen := map[netip.Prefix]int{}
	for i, r := range p.Reserve {
		path := fmt.Sprintf("%s[%d]", at, i)
		x := r.Prefix
		first, dup := seen[x]
		switch {
		case !x.IsValid():
			v.add(path+".address", "missing; name an address or a prefix inside %s", p.Extent())
		case x.Addr().Is4In6():
			v.add(path+".address", "%s", mapped(x))
		case !p.HasPrefix(x):
			v.add(path+".address", "%s lies outside %s; remove it or correct it", x, p.Extent())
		case x != x.Masked():
			v.add(path+".address", "%s has bits beyond its length; write %s", x, x.Masked())
		case dup:
			v.add(path+".address", "%s is already at %s[%d]; remove one", x, at, first)
		case slices.ContainsFunc(p.Exclude, x.Overlaps):
			v.add(path+".address", "%s is excluded, too; remove one of the two", x)
		}
		if err := plain(r.Note, maxNote); err != nil {
			v.add(path+".note", "%v; write one line for people", err)
		}
		seen[x] = i
	}
}

func (v *validator) poolNodes(at string, p Pool) {
	seen := map[string]int{}
	for i, name := range p.Nodes {
		path := fmt.Sprintf("%s[%d]", at, i)
		first, dup := seen[name]
		switch {
		case dup:
			v.add(path, "%q is already at %s[%d]; remove one", name, at, first)
		case !slices.ContainsFunc(v.c.Nodes, func(n Node) bool { return n.Name == name }):
			v.add(path, "%q is no node of this file; correct the name, or add it under nodes", name)
		}
		seen[name] = i
	}
}

// nodeLabels checks that there are nodes of a pool's labels.
func (v *validator) nodeLabels(at string, p Pool) {
	label := v.labels(at)
	for i, name := range p.NodeLabels {
		if !label(i, name) {
			continue
		}
		if !slices.ContainsFunc(v.c.Nodes, func(n Node) bool { return slices.Contains(v.c.Labels[n.Name], name) }) {
			v.add(fmt.Sprintf("%s[%d]", at, i), "no node of this file has the label %q; correct it, or add it to the labels of a node", name)
		}
	}
}

// labels gives a function that checks the labels of one list, and reports whether one is
// good.
func (v *validator) labels(at string) func(i int, label string) bool {
	seen := map[string]int{}
	return func(i int, label string) bool {
		path := fmt.Sprintf("%s[%d]", at, i)
		first, dup := seen[label]
		switch {
		case !plainName(label):
			v.add(path, "%q is not a label; use 1 to 32 letters, digits, '.', '_' and '-'", label)
			return false
		case dup:
			v.add(path, "%q is already at %s[%d]; remove one", label, at, first)
			return false
		}
		seen[label] = i
		return true
	}
}

func (v *validator) exclude(at string, p Pool) {
	seen := map[netip.Prefix]int{}
	for i, x := range p.Exclude {
		path := fmt.Sprintf("%s[%d]", at, i)
		first, dup := seen[x]
		switch {
		case !x.IsValid():
			v.add(path, "not a prefix; name an address or a prefix inside %s, or remove it", p.Extent())
		case x.Addr().Is4In6():
			v.add(path, "%s", mapped(x))
		case !p.HasPrefix(x):
			v.add(path, "%s lies outside %s; remove it or correct it", x, p.Extent())
		case x != x.Masked():
			v.add(path, "%s has bits beyond its length; write %s", x, x.Masked())
		case dup:
			v.add(path, "%s is already at %s[%d]; remove one", x, at, first)
		}
		seen[x] = i
	}
	if p.exhausted() {
		v.add(at, "leaves no address of %s; exclude less, or remove the pool", p.Extent())
	}
}

// exhausted reports whether the pool excludes all of its addresses.
func (p Pool) exhausted() bool {
	xs := slices.DeleteFunc(slices.Clone(p.Exclude), func(x netip.Prefix) bool { return !p.HasPrefix(x) })
	slices.SortFunc(xs, func(a, b netip.Prefix) int { return a.Masked().Addr().Compare(b.Masked().Addr()) })
	for _, part := range p.parts() {
		free := part.addresses.First // the first address that is not known to be excluded
		for _, x := range xs {
			if is := RangeOf(x); is.Contains(free) {
				free = is.Last.Next()
			}
		}
		if part.addresses.Contains(free) {
			return false
		}
	}
	return true
}

// within reports whether around contains all of p.
func within(p, around netip.Prefix) bool { return p.Overlaps(around) && p.Bits() >= around.Bits() }

func (v *validator) routed() {
	hosts := v.c.hosts()
	for i, r := range v.c.Routed {
		at := fmt.Sprintf("routed[%d]", i)
		around := slices.IndexFunc(v.c.Routed[:i], func(q netip.Prefix) bool { return q.Overlaps(r) })
		inside := slices.IndexFunc(hosts, func(h host) bool { return r.Contains(h.addr) })
		switch {
		case !r.IsValid():
			v.add(at, "not a prefix; for example 198.51.100.0/24")
		case unfit(r) != "":
			v.add(at, "%s", unfit(r))
		case around >= 0:
			v.add(at, "%s overlaps %s (routed[%d]); keep the larger one", r, v.c.Routed[around], around)
		case inside >= 0:
			v.add(at, "%s holds the address of %s (%s); name prefixes that are for guests alone", r, hosts[inside].what, hosts[inside].addr)
		}
	}
}

func (v *validator) reflectors() {
	if len(v.c.Reflectors) == 0 {
		v.add("reflectors", "missing; without a route reflector nothing can be announced, name at least one (two are better)")
	}
	name, taken := v.names("reflector"), map[netip.Addr]string{}
	for i, r := range v.c.Reflectors {
		at := fmt.Sprintf("reflectors[%d].", i)
		name(at+"name", r.Name)
		if !r.Address.IsValid() {
			v.add(at+"address", "missing; give the reflector's IPv4 or IPv6 address")
		} else {
			// In small clusters a reflector runs on a node or a core gateway, with
			// its address.
			v.host(at+"address", r.Address, taken)
			if misspelt(r.Address) == "" {
				v.reachable(at+"address", r.Address)
			}
		}
		v.peerASN(at+"asn", r.ASN)
		if n := len(r.Password); n > maxPassword {
			v.add(at+"password_file", "the password has %d bytes; Linux takes TCP MD5 keys of at most %d, choose a shorter one", n, maxPassword)
		}
	}
}

// key checks the length of the secret.
func (v *validator) key() {
	if n := len(v.c.Key); n > 0 && n < MinKey {
		v.add("key_file", "the key has %d bytes and can be guessed; give it at least %d", n, MinKey)
	}
}

// reachable reports the first node that has no address of a reflector's family. It
// skips a node whose addresses are missing or wrong: nodes reports that.
func (v *validator) reachable(path string, a netip.Addr) {
	family, key := "IPv4", "address"
	if a.Is6() {
		family, key = "IPv6", "address6"
	}
	for i, n := range v.c.Nodes {
		none := !n.Address.IsValid() && !n.Address6.IsValid()
		wrong := n.Address.Is6() || n.Address6.Is4()
		if none || wrong || n.Source(a).IsValid() {
			continue
		}
		v.add(path, "%s is %s but node %s (nodes[%d]) has no %s address; give the node an %s, or the reflector an address of the other family",
			a, family, n.Name, i, family, key)
		return
	}
}

func (v *validator) core() {
	name := v.names("core gateway")
	for i, g := range v.c.Core {
		at := fmt.Sprintf("core[%d].", i)
		name(at+"name", g.Name)
		if !g.Address.IsValid() {
			v.add(at+"address", "missing; give the core gateway's address")
		} else {
			v.host(at+"address", g.Address, v.routers)
		}
		v.peerASN(at+"asn", g.ASN)
	}
}

func (v *validator) nodes() {
	if len(v.c.Nodes) == 0 {
		v.add("nodes", "missing; name at least one node with its address")
	}
	name := v.names("node")
	for i, n := range v.c.Nodes {
		at := fmt.Sprintf("nodes[%d].", i)
		name(at+"name", n.Name)
		label := v.labels(at + "labels")
		for j, l := range v.c.Labels[n.Name] {
			label(j, l)
		}
		if !n.Address.IsValid() && !n.Address6.IsValid() {
			v.add(at+"address", "missing; give the node's address on the private network")
		}
		switch a := n.Address; {
		case !a.IsValid():
		case a.Is6() && misspelt(a) == "":
			v.add(at+"address", "%s is not an IPv4 address; write it as address6", a)
		default:
			v.host(at+"address", a, v.routers)
		}
		switch a := n.Address6; {
		case !a.IsValid():
		case a.Is4():
			v.add(at+"address6", "%s is not an IPv6 address; write it as address", a)
		default:
			v.host(at+"address6", a, v.routers)
		}
	}
}

// host checks the address of a machine, which must differ from those in taken, and
// adds it there.
func (v *validator) host(path string, a netip.Addr, taken map[netip.Addr]string) {
	if text := misspelt(a); text != "" {
		v.add(path, "%s", text)
		return
	}
	first, dup := taken[a]
	pool, _ := v.c.PoolOf(a)
	what := martian(HostPrefix(a))
	switch {
	case dup:
		v.add(path, "%s is already at %s; each needs an address of its own", a, first)
		return
	case a == v.c.Gateway.IPv4 || a == v.c.Gateway.IPv6:
		v.add(path, "%s is the guests' gateway, which must be used nowhere else; change one of the two", a)
	case what != "":
		v.add(path, "%s cannot be the address of a host (%s); give the one that it has on the private network", a, what)
	case pool.Contains(a):
		v.add(path, "%s lies in pool %s, whose addresses are for guests; exclude it there or move it", a, pool.Name)
	}
	taken[a] = path
}

func (v *validator) timers() {
	t := v.c.Timers
	v.timer("timers.hold", t.Hold, 3*time.Second, 65535*time.Second, "RFC 4271 allows 3s to 65535s")
	v.timer("timers.connect_retry", t.ConnectRetry, time.Second, time.Hour, "give 1s to 1h")
	v.timer("timers.restart", t.Restart, time.Second, 4095*time.Second, "RFC 4724 allows 1s to 4095s")
	if t.LongLived != 0 {
		v.timer("timers.long_lived", t.LongLived, time.Second, (1<<24-1)*time.Second, "RFC 9494 allows 1s to 16777215s; leave it out for none")
	}
}

// underlay checks the prefixes from which nodes may open sessions to reflectors: a
// machine there may announce the addresses of guests.
func (v *validator) underlay() {
	for i, p := range v.c.Underlay {
		at := fmt.Sprintf("underlay[%d]", i)
		around := slices.IndexFunc(v.c.Underlay[:i], func(q netip.Prefix) bool { return q.Overlaps(p) })
		pool := slices.IndexFunc(v.c.Pools, func(q Pool) bool { return q.Overlaps(p) })
		switch {
		case !p.IsValid():
			v.add(at, "not a prefix; for example 10.10.0.0/24")
		case unfit(p) != "":
			v.add(at, "%s", unfit(p))
		case around >= 0:
			v.add(at, "%s overlaps %s (underlay[%d]); keep the larger one", p, v.c.Underlay[around], around)
		case slices.ContainsFunc(v.c.Routed, p.Overlaps):
			v.add(at, "%s overlaps what is routed to guests, so that a guest could pose as a node; name the private network's own prefixes", p)
		case pool >= 0:
			v.add(at, "%s overlaps %s of pool %s, so that a guest could pose as a node; name the private network's own prefixes", p, v.c.Pools[pool].Extent(), v.c.Pools[pool].Name)
		}
	}
	for i, n := range v.c.Nodes {
		for _, a := range []netip.Addr{n.Address, n.Address6} {
			if a.IsValid() && len(v.c.Underlay) > 0 && misspelt(a) == "" && !slices.ContainsFunc(v.c.Underlay, func(p netip.Prefix) bool { return p.Contains(a) }) {
				v.add("underlay", "node %s (nodes[%d]) has %s, which is in none of them; add the prefix that it is in", n.Name, i, a)
			}
		}
	}
}

func (v *validator) limits() {
	if n := v.c.MaxPrefixes; n < 10 || n > 1_000_000 {
		v.add("max_prefixes", "%d is out of range; give 10 to 1000000, or leave it out for %d", n, DefaultMaxPrefixes)
	}
}

// moves limits the packets that ports hold for arriving guests: they take memory of
// the kernel.
func (v *validator) moves() {
	const (
		maxRate, maxQueue  = 1_000_000, 1_000_000
		minPause, maxPause = time.Millisecond, time.Minute
	)
	m := v.c.Moves
	rate, pause := m.Rate >= 1 && m.Rate <= maxRate, m.Pause >= minPause && m.Pause <= maxPause
	if !rate {
		v.add("moves.packets_per_second", "%d is out of range; give 1 to %d, or leave it out for %d", m.Rate, maxRate, DefaultMoves.Rate)
	}
	if !pause {
		v.add("moves.pause", "%v is out of range; give %v to %v, or leave it out for %v", m.Pause, minPause, maxPause, DefaultMoves.Pause)
	}
	if rate && pause && m.Queue() > maxQueue {
		v.add("moves", "%d packets a second for %v and a little more are %d packets to hold for one guest; %d are the most, give less of one of the two", m.Rate, m.Pause, m.Queue(), maxQueue)
	}
}

func (v *validator) plugins() {
	switch s := v.c.Speaker; s {
	case SpeakerGoBGP, SpeakerBIRD, SpeakerFRR:
	default:
		v.program("speaker", s, "one of gobgp, bird, frr or ")
	}
	if v.c.Resolver != "" {
		v.program("resolver", v.c.Resolver, "")
	}
	for i, o := range v.c.Observers {
		v.program(fmt.Sprintf("observers[%d]", i), o, "")
		if j := slices.Index(v.c.Observers[:i], o); j >= 0 {
			v.add(fmt.Sprintf("observers[%d]", i), "%s is already at observers[%d]; remove one", o, j)
		}
	}
}

// etcd checks where the shared registry is.
func (v *validator) etcd() {
	e := v.c.Registry.Etcd
	if e == nil {
		return
	}
	if len(e.Endpoints) == 0 {
		v.add("registry.etcd.endpoints", "missing; name the members of etcd, for example https://10.10.0.11:2379")
	}
	secured := e.CA != "" || e.Cert != "" || e.Key != ""
	seen, first := map[string]int{}, ""
	for i, text := range e.Endpoints {
		at := fmt.Sprintf("registry.etcd.endpoints[%d]", i)
		u, err := url.Parse(text)
		before, dup := seen[text]
		switch {
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "":
			v.add(at, "%q is not the URL of a member of etcd; write it as https://10.10.0.11:2379", text)
			continue
		case u.Port() == "":
			v.add(at, "%s has no port; write %s:2379, which is etcd's own", text, text)
		case dup:
			v.add(at, "%s is already at registry.etcd.endpoints[%d]; remove one", text, before)
		case u.Scheme == "http" && secured:
			v.add(at, "%s is not encrypted, and there are files for TLS; write https, or leave ca_file, cert_file and key_file out", text)
		case first != "" && u.Scheme != first:
			v.add(at, "%s is %s and registry.etcd.endpoints[0] is %s; all members need the same", text, u.Scheme, first)
		}
		seen[text] = i
		first = cmp.Or(first, u.Scheme)
	}
	switch {
	case e.Cert != "" && e.Key == "":
		v.add("registry.etcd.cert_file", "there is no key to the certificate; name its file under key_file")
	case e.Key != "" && e.Cert == "":
		v.add("registry.etcd.key_file", "there is no certificate to the key; name its file under cert_file")
	}
	if p := e.Prefix; p != path.Clean(p) || !strings.HasPrefix(p, "/") || p == "/" || len(p) > 128 || strings.ContainsFunc(p, func(r rune) bool { return !plainRune(r) && r != '/' }) {
		v.add("registry.etcd.prefix", "%q is not the beginning of the keys; write one such as %s, or leave the key out for that", p, DefaultEtcdPrefix)
	}
}

// program checks the path of a plugin. The node that runs the plugin sees whether
// the file exists.
func (v *validator) program(at, path, or string) {
	if !strings.HasPrefix(path, "/") || strings.ContainsFunc(path, unicode.IsControl) {
		v.add(at, "%q is not %sthe absolute path of a plugin, such as /usr/local/lib/vmfabric/my-plugin", path, or)
	}
}

func (v *validator) timer(path string, d, least, most time.Duration, wayOut string) {
	switch {
	case d < least || d > most:
		v.add(path, "%v is out of range; %s", d, wayOut)
	case d%time.Second != 0:
		v.add(path, "%v is not in whole seconds, which is how routers count; write %v", d, d.Truncate(time.Second))
	}
}

// misspelt says why a is not the plain form of an address; empty: it is.
func misspelt(a netip.Addr) string {
	switch {
	case a.Zone() != "":
		return fmt.Sprintf("%s has a zone, which means nothing to other hosts; write the address without it", a)
	case a.Is4In6():
		return fmt.Sprintf("%s is an IPv4 address in IPv6 form; write %s", a, a.Unmap())
	}
	return ""
}

// mapped gives the error text for a prefix in IPv4-mapped form.
func mapped(p netip.Prefix) string {
	if p.Bits() < 96 {
		return fmt.Sprintf("%s is an IPv4 prefix in IPv6 form; write it as IPv4", p)
	}
	return fmt.Sprintf("%s is an IPv4 prefix in IPv6 form; write %s", p, netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96))
}

// unfit says why guests cannot have addresses of p; empty: they can.
func unfit(p netip.Prefix) string {
	switch what := martian(p); {
	case p.Addr().Is4In6():
		return mapped(p)
	case p != p.Masked():
		return fmt.Sprintf("%s has bits beyond its length; write %s", p, p.Masked())
	case p.Bits() == 0:
		return fmt.Sprintf("%s is the whole Internet; name the prefixes that were given to you", p)
	case what != "":
		return fmt.Sprintf("%s holds %s addresses, which no guest can have; name the prefixes that were given to you", p, what)
	}
	return ""
}
