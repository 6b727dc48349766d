package fabric

import (
	"fmt"
	"net/netip"
	"slices"
)

// Permits applies the cluster's rules to the addresses, routes and MAC addresses of a
// guest's NICs. It does not look at other guests. Its error names the NIC, the address
// or route, and the way out.
func (c *Cluster) Permits(vm VM) error {
	for n, nic := range vm.NICs {
		if err := c.permitMAC(nic.MAC); err != nil {
			return fmt.Errorf("NIC %d: MAC address %s: %w", n, nic.MAC, err)
		}
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

// permitMAC refuses MAC addresses with which no frame reaches the guest. Two guests may
// have the same one: each is alone on its link.
func (c *Cluster) permitMAC(m MAC) error {
	switch {
	case m == c.Gateway.MAC && !m.IsZero():
		return fmt.Errorf("it is the gateway's, which the other end of the link has; give the NIC another one")
	case m.Multicast():
		return fmt.Errorf("it is not that of one host; give the NIC a unicast address, such as 52:54:00:12:34:56")
	}
	return nil
}

func (c *Cluster) permitAddress(a netip.Addr) error {
	family := "IPv4"
	if a.Is6() {
		family = "IPv6"
	}
	pool, in := c.PoolOf(a)
	switch {
	case a == c.Gateway.IPv4 || a == c.Gateway.IPv6:
		return fmt.Errorf("it is the cluster's gateway; choose one from the pools")
	case a.Zone() != "" || a.Is4In6():
		return fmt.Errorf("zones and IPv4-mapped addresses are not for guests; write the plain address")
	case !in:
		for _, p := range c.Pools {
			if p.Is6() == a.Is6() {
				return fmt.Errorf("outside the pools of cluster %s; choose one from %s (%s), or add a pool", c.Name, p.Name, p.Extent())
			}
		}
		return fmt.Errorf("cluster %s has no %s pool; add one, or leave the address out", c.Name, family)
	case !pool.Contains(a):
		return fmt.Errorf("excluded from pool %s; choose another from %s", pool.Name, pool.Extent())
	case !c.Gateway.Addr(a).IsValid():
		return fmt.Errorf("cluster %s has no %s gateway; add it to the cluster file", c.Name, family)
	}
	return nil
}

func (c *Cluster) permitRoute(r netip.Prefix) error {
	if !r.IsValid() || r.Addr().Is4In6() {
		return fmt.Errorf("not a prefix; write 198.51.100.0/29")
	}
	if martian(r) != "" {
		return fmt.Errorf("not a prefix of unicast addresses; route one that is yours")
	}
	var inside bool
	for _, p := range c.Pools {
		if !p.Overlaps(r) {
			continue
		}
		if err := p.permitRoute(r); err != nil {
			return err
		}
		inside = true
	}
	if err := c.permitUnderlay(r); err != nil {
		return err
	}
	for _, p := range c.Routed {
		inside = inside || p.Overlaps(r) && p.Bits() <= r.Bits()
	}
	if !inside && len(c.Routed) > 0 {
		return fmt.Errorf("outside the prefixes that cluster %s routes to guests (%s); choose one there, or add it under routed", c.Name, c.Routed[0])
	}
	return nil
}

// permitRoute applies the pool's rules to a route that has addresses of it.
func (p Pool) permitRoute(r netip.Prefix) error {
	inside := p.HasPrefix(r)
	all := !slices.ContainsFunc(p.Blocks(), func(b netip.Prefix) bool { return !within(b, r) })
	switch {
	case all && !(inside && r.Bits() == p.PerGuest):
		return fmt.Errorf("it holds all of pool %s; route a prefix that is not other guests'", p.Name)
	case !inside:
		return fmt.Errorf("it is partly in pool %s (%s); route a prefix that is inside of it, or outside", p.Name, p.Extent())
	}
	return nil
}
