package fabric

import (
	"fmt"
	"net/netip"
)

// claims is who holds which address, routed prefix and port name on this
// node. The cost of a claim does not grow with the number of guests, but for
// routed prefixes, which are few.
type claims struct {
	cluster  *Cluster
	prefixes map[netip.Prefix]string // to the VM's name
	ports    map[string]string       // link name to the VM's name
	lengths  map[int]int             // how many routed prefixes there are of each length
}

func newClaims(c *Cluster) *claims {
	return &claims{c, map[netip.Prefix]string{}, map[string]string{}, map[int]int{}}
}

// check tells why the guest cannot be on this node, or nil. It changes nothing.
func (c *claims) check(vm VM) error {
	if err := vm.complete(); err != nil {
		return err
	}
	if err := c.permit(vm); err != nil {
		return err
	}
	return c.free(vm)
}

// permit applies the cluster's rules, whoever else is on the node.
func (c *claims) permit(vm VM) error {
	for n, nic := range vm.NICs {
		for _, a := range nic.Addresses {
			if err := c.permitAddress(a); err != nil {
				return fmt.Errorf("NIC %d: address %s: %w", n, a, err)
			}
		}
		for _, r := range nic.Routes {
			if err := c.permitRoute(r); err != nil {
				return fmt.Errorf("NIC %d: route %s: %w", n, r, err)
			}
		}
	}
	return nil
}

// free reports what of the guest is held by another.
func (c *claims) free(vm VM) error {
	for n, nic := range vm.NICs {
		for _, p := range nic.Prefixes() {
			if err := c.freePrefix(vm.Name, p); err != nil {
				return fmt.Errorf("NIC %d: %s: %w", n, pretty(p), err)
			}
		}
		port := PortName(vm.Name, n)
		if holder, taken := c.ports[port]; taken && holder != vm.Name {
			return fmt.Errorf("NIC %d: port %s is that of VM %q, whose name shortens to the same; rename one of the two", n, port, holder)
		}
	}
	return nil
}

// permitAddress applies the cluster's rules to an address.
func (c *claims) permitAddress(a netip.Addr) error {
	family := "IPv4"
	if a.Is6() {
		family = "IPv6"
	}
	pool, in := c.cluster.PoolOf(a)
	switch {
	case a == c.cluster.Gateway.IPv4 || a == c.cluster.Gateway.IPv6:
		return fmt.Errorf("it is the cluster's gateway; choose one from the pools")
	case a.Zone() != "" || a.Is4In6():
		return fmt.Errorf("zones and IPv4-mapped addresses are not for guests; write the plain address")
	case !in:
		for _, p := range c.cluster.Pools {
			if p.Prefix.Addr().Is4() == a.Is4() {
				return fmt.Errorf("outside the pools of cluster %s; choose one from %s (%s), or add a pool", c.cluster.Name, p.Name, p.Prefix)
			}
		}
		return fmt.Errorf("cluster %s has no %s pool; add one, or leave the address out", c.cluster.Name, family)
	case !pool.Contains(a):
		return fmt.Errorf("excluded from pool %s; choose another from %s", pool.Name, pool.Prefix)
	case !c.cluster.Gateway.Addr(a).IsValid():
		return fmt.Errorf("cluster %s has no %s gateway; add it to the cluster file", c.cluster.Name, family)
	}
	return nil
}

// permitRoute applies the cluster's rules to a routed prefix.
func (c *claims) permitRoute(r netip.Prefix) error {
	if !r.IsValid() || r.Addr().Is4In6() {
		return fmt.Errorf("not a prefix; write 198.51.100.0/29")
	}
	if martian(r) != "" {
		return fmt.Errorf("not a prefix of unicast addresses; route one that is yours")
	}
	var inside bool
	for _, p := range c.cluster.Pools {
		if r.Overlaps(p.Prefix) {
			if r.Bits() <= p.Prefix.Bits() {
				return fmt.Errorf("it holds all of pool %s; route a prefix that is not other guests'", p.Name)
			}
			inside = true
		}
	}
	if err := c.cluster.permitUnderlay(r); err != nil {
		return err
	}
	for _, p := range c.cluster.Routed {
		inside = inside || p.Overlaps(r) && p.Bits() <= r.Bits()
	}
	if !inside && len(c.cluster.Routed) > 0 {
		return fmt.Errorf("outside the prefixes that cluster %s routes to guests (%s); choose one there, or add it under routed", c.cluster.Name, c.cluster.Routed[0])
	}
	return nil
}

// freePrefix reports who else holds p, a prefix around it or one inside it.
func (c *claims) freePrefix(vm string, p netip.Prefix) error {
	if holder, held := c.prefixes[p]; held && holder != vm {
		return fmt.Errorf("held by VM %q on this node; detach that first, or choose another", holder)
	}
	for bits := range c.lengths {
		if bits >= p.Bits() || bits > p.Addr().BitLen() {
			continue
		}
		around, _ := p.Addr().Prefix(bits)
		if holder, held := c.prefixes[around]; held && holder != vm {
			return fmt.Errorf("inside %s, which is routed to VM %q on this node; choose another", around, holder)
		}
	}
	if p.IsSingleIP() {
		return nil
	}
	for q, holder := range c.prefixes {
		if holder != vm && p.Overlaps(q) {
			return fmt.Errorf("%s in it is held by VM %q on this node; choose another", pretty(q), holder)
		}
	}
	return nil
}

// take claims everything of vm, which passed check.
func (c *claims) take(vm VM) {
	for n, nic := range vm.NICs {
		c.ports[PortName(vm.Name, n)] = vm.Name
		for _, p := range nic.Prefixes() {
			c.prefixes[p] = vm.Name
		}
		for _, r := range nic.Routes {
			c.lengths[r.Bits()]++
		}
	}
}

// drop gives back everything of vm.
func (c *claims) drop(vm VM) {
	for n, nic := range vm.NICs {
		if name := PortName(vm.Name, n); c.ports[name] == vm.Name {
			delete(c.ports, name)
		}
		for _, p := range nic.Prefixes() {
			if c.prefixes[p] == vm.Name {
				delete(c.prefixes, p)
			}
		}
		for _, r := range nic.Routes {
			if c.lengths[r.Bits()]--; c.lengths[r.Bits()] <= 0 {
				delete(c.lengths, r.Bits())
			}
		}
	}
}
