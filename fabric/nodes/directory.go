package nodes

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

const (
	// maxNewcomers bounds the nodes that call and that the cluster file lacks.
	maxNewcomers = 256
	// renewed is how long a newcomer must be silent before a node at another
	// address may take its name.
	renewed = time.Minute
	// forgetAfter is how long a node that the cluster file lacks may be silent
	// before this one forgets it.
	forgetAfter = time.Hour
)

// directory says which nodes there are, which addresses each of them has, and how
// far an address is trusted: by the cluster file, and by the calls of nodes. It is
// safe for concurrent use.
type directory struct {
	file  atomic.Pointer[file]
	self  fabric.Node
	keyed bool // callers show that they have the cluster's key
	log   *slog.Logger

	mu      sync.Mutex
	callers callers
}

func newDirectory(c Config, keyed bool, log *slog.Logger) *directory {
	d := &directory{self: c.Node, keyed: keyed, log: log, callers: callers{}}
	d.reconfigure(c.Cluster)
	return d
}

// file is what the cluster file says of the cluster's machines.
type file struct {
	cluster  fabric.Cluster
	ranges   []netip.Prefix        // where nodes may call from
	reserved map[netip.Addr]string // addresses that no node can have, and their owners
}

// reconfigure has the directory go by another cluster. It returns the nodes that are not
// in it any more. They are forgotten: one that calls again is a newcomer.
func (d *directory) reconfigure(c fabric.Cluster) (gone []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if was := d.file.Swap(&file{cluster: c, ranges: c.NodeRanges(), reserved: reserve(&c)}); was != nil {
		for _, node := range was.cluster.Nodes {
			if _, err := c.Node(node.Name); err != nil {
				gone = append(gone, node.Name)
				delete(d.callers, node.Name)
			}
		}
	}
	return gone
}

// callers are the nodes that called, by name.
type callers map[string]caller

// caller is a node that called.
type caller struct {
	// node has the addresses that are known to be the caller's: those of the
	// cluster file, those that it called from, and those at which it answered.
	node fabric.Node
	// says is an address that the caller says it has, and that nothing confirms
	// yet.
	says netip.Addr
	at   time.Time // when it last called
}

var nodeName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}$`)

// from finds the caller that is known to have an address.
func (c callers) from(a netip.Addr) (fabric.Node, bool) {
	for _, one := range c {
		if a == one.node.Source(a) {
			return one.node, true
		}
	}
	return fabric.Node{}, false
}

// unconfirmed reports whether a caller says that it has an address, and nothing
// confirms it yet.
func (c callers) unconfirmed(a netip.Addr) bool {
	for _, one := range c {
		if a == one.says {
			return true
		}
	}
	return false
}

// names lists the cluster's other nodes in the order of its file, then the other
// nodes that called, by name.
func (d *directory) names() []string {
	var names []string
	for _, node := range d.file.Load().cluster.Nodes {
		if node.Name != d.self.Name {
			names = append(names, node.Name)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(d.callers)) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// node returns another node by its name, with the addresses of its last call if it
// called.
func (d *directory) node(name string) (fabric.Node, error) {
	if name == d.self.Name {
		return fabric.Node{}, fmt.Errorf("node %s is this one; ask another", name)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if c, called := d.callers[name]; called {
		return c.node, nil
	}
	return d.file.Load().cluster.Node(name)
}

// named returns the node to which the cluster file gives an address.
func (d *directory) named(a netip.Addr) (fabric.Node, bool) {
	nodes := d.file.Load().cluster.Nodes
	i := slices.IndexFunc(nodes, func(node fabric.Node) bool { return a.IsValid() && (a == node.Address || a == node.Address6) })
	if i < 0 {
		return fabric.Node{}, false
	}
	return nodes[i], true
}

// calledFrom finds the caller that is known to have an address.
func (d *directory) calledFrom(a netip.Addr) (fabric.Node, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.callers.from(a)
}

// saidBy reports whether a node that called has, or says that it has, an address.
func (d *directory) saidBy(name string, a netip.Addr) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.callers[name]
	return a == c.says || a == c.node.Source(a)
}

// trustOf returns how far this node trusts an address. Without a key only the
// addresses of nodes are heard: anybody could say that it is a new node.
func (d *directory) trustOf(a netip.Addr) trust {
	if a == d.self.Source(a) {
		return nobody // a program of this machine
	}
	if _, named := d.named(a); named {
		return known
	}
	d.mu.Lock()
	_, called := d.callers.from(a)
	unconfirmed := d.callers.unconfirmed(a)
	d.mu.Unlock()
	switch {
	case called:
		return known
	case unconfirmed: // the caller must still say that it is that node
		return stranger
	case !d.keyed, d.file.Load().reserved[a] != "":
		return nobody
	case slices.ContainsFunc(d.file.Load().ranges, func(p netip.Prefix) bool { return p.Contains(a) }):
		return stranger
	}
	return nobody
}

// reserve lists the addresses of the cluster's machines that are not nodes, with
// their owners. A node can have such an address only by the cluster file.
func reserve(c *fabric.Cluster) map[netip.Addr]string {
	all := map[netip.Addr]string{}
	for _, a := range []netip.Addr{c.Gateway.IPv4, c.Gateway.IPv6} {
		all[a] = "the gateway of all ports"
	}
	for _, r := range c.Reflectors {
		all[r.Address] = "reflector " + r.Name
	}
	for _, g := range c.Core {
		all[g.Address] = "core gateway " + g.Name
	}
	delete(all, netip.Addr{})
	return all
}

// topic returns the key of troubles with the caller at an address.
func (d *directory) topic(a netip.Addr) string {
	if node, ok := d.named(a); ok {
		return node.Name
	}
	return a.String()
}

// identify finds the node that calls from an address and says that it is s, and
// remembers it. The node that identify returns has no address that only its own
// word supports. unconfirmed reports that it newly says that it has such an
// address, which a greeting can confirm.
func (d *directory) identify(source netip.Addr, s sender) (node fabric.Node, unconfirmed bool, err error) {
	says := fabric.Node{Name: s.Name, Address: s.Address, Address6: s.Address6}
	switch {
	case !nodeName.MatchString(s.Name):
		return says, false, disagree("%.40q is not a node name; use 1 to 32 letters, digits, '.', '_' and '-'", s.Name)
	case s.Name == d.self.Name:
		return says, false, disagree("%s says that it is node %s, which is at %s; give one of the two another name", source, s.Name, addresses(d.self))
	case s.Address.IsValid() && !s.Address.Is4(), s.Address6.IsValid() && (!s.Address6.Is6() || s.Address6.Is4In6()), s.Address6.Zone() != "":
		return says, false, disagree("node %s says that it is at %q and %q, which are not an IPv4 and an IPv6 address; upgrade the older of the two agents", s.Name, s.Address, s.Address6)
	}
	file, err := d.file.Load().cluster.Node(s.Name)
	switch owner, taken := d.named(source); {
	case err == nil && file.Source(source).IsValid() && source != file.Source(source):
		return says, false, disagree("%s says that it is node %s, which has %s in the cluster file of %s; correct that, or give it a name of its own", source, s.Name, addresses(file), d.self.Name)
	case !d.keyed && !taken && !d.saidBy(s.Name, source):
		return says, false, disagree("%s says that it is node %s, and nothing shows it; name it in the cluster file of %s, or give the cluster a key_file", source, s.Name, d.self.Name)
	case err != nil && taken:
		return says, false, disagree("%s says that it is node %s, and has the address of node %s in the cluster file of %s; correct that, or the name that it goes by", source, s.Name, owner.Name, d.self.Name)
	}
	// Of a family that the file gives, the file's address counts.
	says.Address, says.Address6 = cmp.Or(file.Address, says.Address), cmp.Or(file.Address6, says.Address6)
	if source != says.Source(source) {
		return says, false, disagree("node %s says that it is at %s, and calls from %s; correct its addresses in its cluster file", s.Name, addresses(says), source)
	}
	for _, a := range []netip.Addr{says.Address, says.Address6} {
		if a.IsValid() && a != file.Source(a) {
			if err := d.plausible(source, s.Name, a); err != nil {
				return says, false, err
			}
		}
	}
	return d.remember(source, says, file)
}

// plausible checks an address that the caller at source says it has and that the
// cluster file does not give it: packets for guests may be sent there.
func (d *directory) plausible(source netip.Addr, name string, a netip.Addr) error {
	owner, taken := d.named(a)
	pool, _ := d.file.Load().cluster.PoolOf(a)
	if !taken {
		owner, taken = d.calledFrom(a)
		// It may be the caller itself, under an earlier name.
		taken = taken && source != owner.Source(source)
	}
	switch {
	case taken && owner.Name != name:
		return disagree("node %s says that it has %s, which is node %s's; correct one of the two", name, a, owner.Name)
	case a == d.self.Source(a):
		return disagree("node %s says that it has %s, which is node %s's; correct one of the two", name, a, d.self.Name)
	case d.file.Load().reserved[a] != "":
		return disagree("node %s says that it has %s, which is that of %s; correct its addresses in its cluster file", name, a, d.file.Load().reserved[a])
	case pool.Contains(a), slices.ContainsFunc(d.file.Load().cluster.Routed, func(p netip.Prefix) bool { return p.Contains(a) }):
		return disagree("node %s says that it has %s, which is for guests; give it an address of the private network", name, a)
	case !a.IsGlobalUnicast(), a.Is4() && (a.As4()[0] == 0 || a.As4()[0] >= 240):
		return disagree("node %s says that it has %s, which cannot be; correct its addresses in its cluster file", name, a)
	}
	return nil
}

// remember keeps a node with the addresses at which it can be reached. Its results
// are those of identify.
func (d *directory) remember(source netip.Addr, says, file fabric.Node) (node fabric.Node, unconfirmed bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before, called := d.callers[says.Name]
	if file.Name == "" {
		switch {
		case called && !same(before.node, source, says) && time.Since(before.at) < renewed:
			return says, false, disagree("%s says that it is node %s, which called from %s a moment ago; give one of the two another name", source, says.Name, addresses(before.node))
		case !called && len(d.callers) >= maxNewcomers+len(d.file.Load().cluster.Nodes):
			return says, false, disagree("node %s is not in the cluster file of %s, nor are %d others that called; add them under nodes", says.Name, d.self.Name, maxNewcomers)
		case !called:
			d.log.Info("a node called that is not in the cluster file", "node", says.Name, "address", source)
		}
		// A node has one name: forget an earlier name of this address.
		maps.DeleteFunc(d.callers, func(name string, c caller) bool { return name != says.Name && source == c.node.Source(source) })
	}
	now := caller{node: fabric.Node{Name: says.Name, Address: file.Address, Address6: file.Address6}, at: time.Now()}
	for _, a := range []netip.Addr{says.Address, says.Address6} {
		switch {
		case !a.IsValid() || a == file.Source(a):
		case a == source || a == before.node.Source(a):
			now.node = with(now.node, a)
		default:
			now.says = a
		}
	}
	d.callers[says.Name] = now
	return now.node, now.says.IsValid() && now.says != before.says, nil
}

// same reports whether the node at source, with the addresses that it says it has,
// is the one that called before.
func same(before fabric.Node, source netip.Addr, says fabric.Node) bool {
	if was := before.Source(source); was.IsValid() {
		return was == source
	}
	// It had no known address of this family.
	return before.Address.IsValid() && before.Address == says.Address || before.Address6.IsValid() && before.Address6 == says.Address6
}

// with returns a node with one more address.
func with(node fabric.Node, a netip.Addr) fabric.Node {
	if a.Is4() {
		node.Address = a
	} else {
		node.Address6 = a
	}
	return node
}

// unconfirmed returns a caller and the address that it says it has and that nothing
// confirms yet; an invalid one if there is none.
func (d *directory) unconfirmed(name string) (fabric.Node, netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.callers[name]
	return c.node, c.says
}

// confirm gives a caller the address that it says it has, unless it says another
// one by now.
func (d *directory) confirm(name string, a netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c, there := d.callers[name]
	if !there || c.says != a {
		return
	}
	c.node, c.says = with(c.node, a), netip.Addr{}
	d.callers[name] = c
	d.log.Info("node answers at an address that the cluster file does not give it", "node", name, "address", a)
}

// quiet lists the nodes that the cluster file lacks and that have not called for
// forgetAfter.
func (d *directory) quiet(now time.Time) (names []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, c := range d.callers {
		if _, err := d.file.Load().cluster.Node(name); err != nil && now.Sub(c.at) > forgetAfter {
			names = append(names, name)
		}
	}
	return names
}

// forget drops a node, unless it has called by now.
func (d *directory) forget(name string, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c, there := d.callers[name]; there && now.Sub(c.at) > forgetAfter {
		delete(d.callers, name)
		d.log.Info("node that is not in the cluster file forgotten: it is silent for long", "node", name)
	}
}
