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
	// maxNewcomers is how many nodes that the cluster file lacks are taken.
	maxNewcomers = 256
	// renewed is how long a newcomer has to be silent before another address
	// can have its name.
	renewed = time.Minute
)

// caller is a node that called.
type caller struct {
	node fabric.Node
	at   time.Time // the last time
}

var nodeName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}$`)

// mayCall reports whether a node can be at an address.
func (n *Nodes) mayCall(a netip.Addr) bool {
	_, named := n.named(a)
	return named || slices.ContainsFunc(n.ranges, func(p netip.Prefix) bool { return p.Contains(a) })
}

// named gives the node that the cluster file has at an address.
func (n *Nodes) named(a netip.Addr) (fabric.Node, bool) {
	i := slices.IndexFunc(n.cluster.Nodes, func(node fabric.Node) bool { return a.IsValid() && (a == node.Address || a == node.Address6) })
	if i < 0 {
		return fabric.Node{}, false
	}
	return n.cluster.Nodes[i], true
}

// topic gives the key of troubles with who calls from an address.
func (n *Nodes) topic(a netip.Addr) string {
	if node, ok := n.named(a); ok {
		return node.Name
	}
	return a.String()
}

// identify finds who calls from an address that [Nodes.mayCall], saying that it
// is s, and remembers it.
func (n *Nodes) identify(source netip.Addr, s sender) (fabric.Node, error) {
	node := fabric.Node{Name: s.Name, Address: s.Address, Address6: s.Address6}
	switch {
	case !nodeName.MatchString(s.Name):
		return node, disagree("%.40q is not a node name; use 1 to 32 letters, digits, '.', '_' and '-'", s.Name)
	case s.Name == n.self.Name:
		return node, disagree("%s says that it is node %s, which is at %s; give one of the two another name with --node", source, s.Name, addresses(n.self))
	case s.Address.IsValid() && !s.Address.Is4(), s.Address6.IsValid() && (!s.Address6.Is6() || s.Address6.Is4In6()), s.Address6.Zone() != "":
		return node, disagree("node %s says that it is at %q and %q, which are not an IPv4 and an IPv6 address; upgrade the older of the two agents", s.Name, s.Address, s.Address6)
	}
	if file, err := n.cluster.Node(s.Name); err == nil {
		if source != file.Source(source) {
			return node, disagree("%s says that it is node %s, which has %s in the cluster file of %s; correct that, or give it a name of its own with --node", source, s.Name, addresses(file), n.self.Name)
		}
		// It may have found an address that the file leaves out.
		node.Address, node.Address6 = cmp.Or(file.Address, node.Address), cmp.Or(file.Address6, node.Address6)
	} else if owner, taken := n.named(source); taken {
		return node, disagree("%s says that it is node %s, and has the address of node %s in the cluster file of %s; correct that, or its --node", source, s.Name, owner.Name, n.self.Name)
	}
	if source != node.Source(source) {
		return node, disagree("node %s says that it is at %s, and calls from %s; correct its addresses in its cluster file", s.Name, addresses(node), source)
	}
	for _, a := range []netip.Addr{node.Address, node.Address6} {
		if err := n.plausible(s.Name, a); err != nil {
			return node, err
		}
	}
	fresh, err := n.remember(source, node)
	if fresh {
		n.log.Info("a node called that is not in the cluster file", "node", node.Name, "address", source)
	}
	return node, err
}

// plausible checks an address that a node says it has, to which packets for
// guests may be sent.
func (n *Nodes) plausible(name string, a netip.Addr) error {
	owner, taken := n.named(a)
	pool, _ := n.cluster.PoolOf(a)
	switch {
	case !a.IsValid():
	case taken && owner.Name != name:
		return disagree("node %s says that it has %s, which is node %s's in the cluster file of %s; correct one of the two", name, a, owner.Name, n.self.Name)
	case pool.Contains(a), slices.ContainsFunc(n.cluster.Routed, func(p netip.Prefix) bool { return p.Contains(a) }):
		return disagree("node %s says that it has %s, which is for guests; give it an address of the private network", name, a)
	case a.IsUnspecified(), a.IsMulticast(), a.IsLinkLocalUnicast(), a == n.self.Source(a):
		return disagree("node %s says that it has %s, which cannot be; correct its addresses in its cluster file", name, a)
	}
	return nil
}

// remember has a node be reached at the addresses that it said; fresh is true of
// one that neither the file has nor has called before.
func (n *Nodes) remember(source netip.Addr, node fabric.Node) (fresh bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	before, known := n.callers[node.Name]
	if _, err := n.cluster.Node(node.Name); err != nil {
		switch {
		case known && source != before.node.Source(source) && time.Since(before.at) < renewed:
			return false, disagree("%s says that it is node %s, which called from %s a moment ago; give one of the two another name with --node", source, node.Name, addresses(before.node))
		case !known && len(n.callers) >= maxNewcomers+len(n.cluster.Nodes):
			return false, disagree("node %s is not in the cluster file of %s, nor are %d others that called; add them under nodes", node.Name, n.self.Name, maxNewcomers)
		}
		// A node has one name: it may have got another.
		maps.DeleteFunc(n.callers, func(name string, c caller) bool { return name != node.Name && source == c.node.Source(source) })
		fresh = !known
	}
	n.callers[node.Name] = caller{node, time.Now()}
	return fresh, nil
}
