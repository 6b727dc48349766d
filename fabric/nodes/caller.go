package nodes

import (
	"cmp"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

const (
	// maxNewcomers bounds the nodes that call and that the cluster file lacks.
	maxNewcomers = 256
	// renewed is how long a newcomer must be silent before a node at another
	// address may take its name.
	renewed = time.Minute
)

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

// named returns the node to which the cluster file gives an address.
func (n *Nodes) named(a netip.Addr) (fabric.Node, bool) {
	i := slices.IndexFunc(n.cluster.Nodes, func(node fabric.Node) bool { return a.IsValid() && (a == node.Address || a == node.Address6) })
	if i < 0 {
		return fabric.Node{}, false
	}
	return n.cluster.Nodes[i], true
}

// calledFrom finds the caller that is known to have an address. The caller holds
// n.mu.
func (n *Nodes) calledFrom(a netip.Addr) (fabric.Node, bool) {
	for _, c := range n.callers {
		if a == c.node.Source(a) {
			return c.node, true
		}
	}
	return fabric.Node{}, false
}

// saidToBe reports whether a node says that it has an address, and nothing confirms
// it yet. The caller holds n.mu.
func (n *Nodes) saidToBe(a netip.Addr) bool {
	for _, c := range n.callers {
		if a == c.says {
			return true
		}
	}
	return false
}

// saidBy reports whether a node that called has, or says that it has, an address.
func (n *Nodes) saidBy(name string, a netip.Addr) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.callers[name]
	return a == c.says || a == c.node.Source(a)
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
func (n *Nodes) topic(a netip.Addr) string {
	if node, ok := n.named(a); ok {
		return node.Name
	}
	return a.String()
}

// identify finds the node that calls from an address and says that it is s, and
// remembers it. The node that identify returns has no address that only its own
// word supports.
func (n *Nodes) identify(source netip.Addr, s sender) (fabric.Node, error) {
	says := fabric.Node{Name: s.Name, Address: s.Address, Address6: s.Address6}
	switch {
	case !nodeName.MatchString(s.Name):
		return says, disagree("%.40q is not a node name; use 1 to 32 letters, digits, '.', '_' and '-'", s.Name)
	case s.Name == n.self.Name:
		return says, disagree("%s says that it is node %s, which is at %s; give one of the two another name", source, s.Name, addresses(n.self))
	case s.Address.IsValid() && !s.Address.Is4(), s.Address6.IsValid() && (!s.Address6.Is6() || s.Address6.Is4In6()), s.Address6.Zone() != "":
		return says, disagree("node %s says that it is at %q and %q, which are not an IPv4 and an IPv6 address; upgrade the older of the two agents", s.Name, s.Address, s.Address6)
	}
	file, err := n.cluster.Node(s.Name)
	switch owner, taken := n.named(source); {
	case err == nil && file.Source(source).IsValid() && source != file.Source(source):
		return says, disagree("%s says that it is node %s, which has %s in the cluster file of %s; correct that, or give it a name of its own", source, s.Name, addresses(file), n.self.Name)
	case n.key == nil && !taken && !n.saidBy(s.Name, source):
		return says, disagree("%s says that it is node %s, and nothing shows it; name it in the cluster file of %s, or give the cluster a key_file", source, s.Name, n.self.Name)
	case err != nil && taken:
		return says, disagree("%s says that it is node %s, and has the address of node %s in the cluster file of %s; correct that, or the name that it goes by", source, s.Name, owner.Name, n.self.Name)
	}
	// Of a family that the file gives, the file's address counts.
	says.Address, says.Address6 = cmp.Or(file.Address, says.Address), cmp.Or(file.Address6, says.Address6)
	if source != says.Source(source) {
		return says, disagree("node %s says that it is at %s, and calls from %s; correct its addresses in its cluster file", s.Name, addresses(says), source)
	}
	for _, a := range []netip.Addr{says.Address, says.Address6} {
		if a.IsValid() && a != file.Source(a) {
			if err := n.plausible(source, s.Name, a); err != nil {
				return says, err
			}
		}
	}
	return n.remember(source, says, file)
}

// plausible checks an address that the caller at source says it has and that the
// cluster file does not give it: packets for guests may be sent there.
func (n *Nodes) plausible(source netip.Addr, name string, a netip.Addr) error {
	owner, taken := n.named(a)
	pool, _ := n.cluster.PoolOf(a)
	if !taken {
		n.mu.Lock()
		owner, taken = n.calledFrom(a)
		n.mu.Unlock()
		// It may be the caller itself, under an earlier name.
		taken = taken && source != owner.Source(source)
	}
	switch {
	case taken && owner.Name != name:
		return disagree("node %s says that it has %s, which is node %s's; correct one of the two", name, a, owner.Name)
	case a == n.self.Source(a):
		return disagree("node %s says that it has %s, which is node %s's; correct one of the two", name, a, n.self.Name)
	case n.reserved[a] != "":
		return disagree("node %s says that it has %s, which is that of %s; correct its addresses in its cluster file", name, a, n.reserved[a])
	case pool.Contains(a), slices.ContainsFunc(n.cluster.Routed, func(p netip.Prefix) bool { return p.Contains(a) }):
		return disagree("node %s says that it has %s, which is for guests; give it an address of the private network", name, a)
	case !a.IsGlobalUnicast(), a.Is4() && (a.As4()[0] == 0 || a.As4()[0] >= 240):
		return disagree("node %s says that it has %s, which cannot be; correct its addresses in its cluster file", name, a)
	}
	return nil
}

// remember keeps a node with the addresses at which it can be reached.
func (n *Nodes) remember(source netip.Addr, says, file fabric.Node) (fabric.Node, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	before, called := n.callers[says.Name]
	if file.Name == "" {
		switch {
		case called && !same(before.node, source, says) && time.Since(before.at) < renewed:
			return says, disagree("%s says that it is node %s, which called from %s a moment ago; give one of the two another name", source, says.Name, addresses(before.node))
		case !called && len(n.callers) >= maxNewcomers+len(n.cluster.Nodes):
			return says, disagree("node %s is not in the cluster file of %s, nor are %d others that called; add them under nodes", says.Name, n.self.Name, maxNewcomers)
		case !called:
			n.log.Info("a node called that is not in the cluster file", "node", says.Name, "address", source)
		}
		// A node has one name: forget an earlier name of this address.
		maps.DeleteFunc(n.callers, func(name string, c caller) bool { return name != says.Name && source == c.node.Source(source) })
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
	n.callers[says.Name] = now
	if now.says.IsValid() && now.says != before.says {
		n.peerOf(says.Name).due = time.Time{}
		n.look.Send()
	}
	return now.node, nil
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
