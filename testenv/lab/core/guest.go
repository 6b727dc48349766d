package core

import (
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
)

// Guest is a guest without a hypervisor: a network namespace whose NICs are
// the peer ends of ports of kind veth. eth<n> is NIC n. It answers on all its
// addresses, and on every address of the prefixes routed to it.
type Guest struct {
	*Host
	vm      fabric.VM
	gateway fabric.Gateway

	mu   sync.Mutex
	node *Host
}

// AddGuest adds a guest and plugs it into a node, which must have the ports of the
// vm already ([Guest.Plug]). The guest is a host of the vm's name.
func (l *Lab) AddGuest(node *Host, vm fabric.VM, gw fabric.Gateway) (*Guest, error) {
	g, err := l.newGuest(vm, gw)
	if err != nil {
		return nil, err
	}
	return g, g.Plug(node)
}

// AddUnconfigured is AddGuest for a guest that asks its node for its configuration: its
// NICs are up, and have no addresses and no routes until the next [Guest.Plug].
func (l *Lab) AddUnconfigured(node *Host, vm fabric.VM, gw fabric.Gateway) (*Guest, error) {
	g, err := l.newGuest(vm, gw)
	if err != nil {
		return nil, err
	}
	return g, g.plugAll(node, func(_ int, _ fabric.NIC, eth string) error { return g.SetUp(eth) })
}

// newGuest adds a guest that is not plugged in.
func (l *Lab) newGuest(vm fabric.VM, gw fabric.Gateway) (*Guest, error) {
	h, err := l.AddHost(vm.Name)
	if err != nil {
		return nil, err
	}
	g := &Guest{Host: h, vm: vm, gateway: gw}
	for _, nic := range vm.NICs {
		for _, p := range nic.Routes {
			if err := h.answerOn(p); err != nil {
				return nil, err
			}
		}
	}
	return g, nil
}

// answerOn makes every address of a prefix the host's own.
func (h *Host) answerOn(p netip.Prefix) error {
	lo, err := h.Link("lo")
	if err != nil {
		return err
	}
	r := &netlink.Route{
		Dst: ipNet(p), LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
	}
	if err := h.nl.RouteReplace(r); err != nil {
		return fmt.Errorf("answer on %s in %s: %w", p, h.name, err)
	}
	return nil
}

// Node returns the node that the guest is plugged into, or nil.
func (g *Guest) Node() *Host {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.node
}

// Plug connects the guest to a node, by the peer ends of its ports there
// (fabric.PeerName), and sets its NICs up as a guest does: the addresses as /32 and
// /128, the default route on the link through the gateway. It first unplugs a guest
// that is plugged in elsewhere, so that it also moves guests.
func (g *Guest) Plug(node *Host) error { return g.plugAll(node, g.configure) }

// plugAll plugs the NICs in, and configures each.
func (g *Guest) plugAll(node *Host, configure func(n int, nic fabric.NIC, eth string) error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.unplug(); err != nil {
		return err
	}
	for n, nic := range g.vm.NICs {
		eth := fmt.Sprintf("eth%d", n)
		err := g.plug(node, n, eth)
		if err == nil {
			err = configure(n, nic, eth)
		}
		if err != nil {
			return fmt.Errorf("plug %s into %s: %w", g.vm.Name, node.name, err)
		}
	}
	g.node = node
	return nil
}

// plug makes the peer end of a port the guest's link.
func (g *Guest) plug(node *Host, n int, eth string) error {
	peer, err := node.Link(fabric.PeerName(g.vm.Name, n))
	if err != nil {
		return err
	}
	if err := node.nl.LinkSetNsFd(peer, int(g.ns)); err != nil {
		return fmt.Errorf("take %s: %w", peer.Attrs().Name, err)
	}
	return g.onLink(peer.Attrs().Name, "name "+eth, func(l netlink.Link) error {
		if err := g.nl.LinkSetName(l, eth); err != nil {
			return err
		}
		return g.nl.LinkSetHardwareAddr(l, g.MAC(n))
	})
}

// configure gives a NIC its addresses and routes.
func (g *Guest) configure(n int, nic fabric.NIC, eth string) error {
	for _, a := range nic.Addresses {
		if err := g.AddAddr(eth, fabric.HostPrefix(a)); err != nil {
			return err
		}
	}
	if err := g.SetUp(eth); err != nil {
		return err
	}
	return g.routeNIC(n, nic, eth)
}

// routeNIC sets the way out of a NIC: the default route for the first, and for each
// other one a table that is chosen by source address, so that packets leave a NIC
// with an address of that NIC.
func (g *Guest) routeNIC(n int, nic fabric.NIC, eth string) error {
	link, err := g.Link(eth)
	if err != nil {
		return err
	}
	tables := map[int]bool{}
	for _, a := range nic.Addresses {
		gw := g.gateway.Addr(a)
		if !gw.IsValid() {
			continue
		}
		r := &netlink.Route{
			Dst: ipNet(defaultRoute(a.Is6())), Gw: gw.AsSlice(), LinkIndex: link.Attrs().Index, Flags: int(netlink.FLAG_ONLINK),
		}
		if n > 0 {
			r.Table = 100 + n
			rule := netlink.NewRule()
			rule.Src, rule.Table, rule.Family = ipNet(fabric.HostPrefix(a)), r.Table, familyOf(a)
			_ = g.nl.RuleDel(rule) // of an earlier plug
			if err := g.nl.RuleAdd(rule); err != nil {
				return fmt.Errorf("rule for %s: %w", a, err)
			}
		}
		if tables[familyOf(a)] {
			continue
		}
		tables[familyOf(a)] = true
		if err := g.nl.RouteReplace(r); err != nil {
			return fmt.Errorf("default route through %s: %w", gw, err)
		}
	}
	return nil
}

// MAC returns the MAC address of the guest's NIC n, the same on every node: the one
// that the vm has, or one that depends on its name.
func (g *Guest) MAC(n int) net.HardwareAddr {
	if m := g.vm.NICs[n].MAC; !m.IsZero() {
		return m[:]
	}
	return GuestMAC(g.vm.Name, n)
}

// Unplug moves the guest's links back to the node, down, as if the cables were
// pulled. Links whose port is gone have gone with it.
func (g *Guest) Unplug() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.unplug()
}

func (g *Guest) unplug() error {
	if g.node == nil {
		return nil
	}
	for n := range g.vm.NICs {
		eth := fmt.Sprintf("eth%d", n)
		if !g.HasLink(eth) {
			continue
		}
		if err := g.SetDown(eth); err != nil {
			return err
		}
		err := g.onLink(eth, "unplug", func(l netlink.Link) error {
			if err := g.nl.LinkSetName(l, fabric.PeerName(g.vm.Name, n)); err != nil {
				return err
			}
			return g.nl.LinkSetNsFd(l, int(g.node.ns))
		})
		if err != nil {
			return err
		}
	}
	g.node = nil
	return nil
}
