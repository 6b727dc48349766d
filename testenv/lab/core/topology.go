package core

import (
	"fmt"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/vmfabric/vmfabric/fabric"
)

// The lab's addresses.
var (
	UnderlayPrefix4 = netip.MustParsePrefix("10.10.0.0/24")    // the private network between the nodes
	UnderlayPrefix6 = netip.MustParsePrefix("fd00:10:10::/64") // likewise

	CoreAddr4 = Underlay4(1) // the core gateway on the underlay: the nodes' way out
	CoreAddr6 = Underlay6(1) // likewise

	CoreClient4 = netip.MustParsePrefix("192.0.2.1/30")        // the core gateway's leg to the client
	CoreClient6 = netip.MustParsePrefix("2001:db8:ffff::1/64") // likewise
	ClientAddr4 = netip.MustParseAddr("192.0.2.2")             // the client, which stands for the Internet
	ClientAddr6 = netip.MustParseAddr("2001:db8:ffff::2")      // likewise
)

// Underlay4 returns the n-th address of the IPv4 underlay: 10.10.0.n.
func Underlay4(n byte) netip.Addr {
	a := UnderlayPrefix4.Addr().As4()
	a[3] = n
	return netip.AddrFrom4(a)
}

// Underlay6 returns the address of the IPv6 underlay that reads like the n-th of
// the IPv4 one: fd00:10:10::n, n in decimal digits.
func Underlay6(n byte) netip.Addr {
	a := UnderlayPrefix6.Addr().As16()
	a[14], a[15] = n/100, n/10%10<<4|n%10
	return netip.AddrFrom16(a)
}

// SmallCluster returns a valid cluster with that many nodes (node1 is 10.10.0.21),
// two reflectors (rr1 10.10.0.11, rr2 10.10.0.12), a core gateway (core1,
// 10.10.0.1) and a pool of each family.
func SmallCluster(nodes int) fabric.Cluster {
	c := fabric.Cluster{
		Name:        "lab",
		ASN:         64512,
		Communities: []fabric.Community{{A: 64512, B: 100}, {Large: true, A: 64512, B: 1, C: 100}},
		Gateway: fabric.Gateway{
			IPv4: netip.MustParseAddr("169.254.1.1"),
			IPv6: netip.MustParseAddr("fe80::1"),
		},
		Pools: []fabric.Pool{
			{Name: "public4", Prefix: netip.MustParsePrefix("203.0.113.0/24")},
			{Name: "public6", Prefix: netip.MustParsePrefix("2001:db8:100::/48")},
		},
		Reflectors: []fabric.RR{
			{Name: "rr1", Address: Underlay4(11)},
			{Name: "rr2", Address: Underlay4(12)},
		},
		Core: []fabric.Core{{Name: "core1", Address: CoreAddr4}},
	}
	for n := range nodes {
		at := byte(21 + n)
		c.Nodes = append(c.Nodes, fabric.Node{Name: fmt.Sprintf("node%d", n+1), Address: Underlay4(at), Address6: Underlay6(at)})
	}
	return c.WithDefaults()
}

// Topology is a cluster's hosts.
type Topology struct {
	Core, Client      *Host
	Nodes, Reflectors map[string]*Host
}

// Build adds the hosts of a cluster: its nodes, its reflectors, its first core
// gateway, and a client behind that. If the cluster has a host's address of one
// family only, the other is that of [Underlay4] or [Underlay6] for the same number.
func (l *Lab) Build(c fabric.Cluster) (*Topology, error) {
	t := &Topology{Nodes: map[string]*Host{}, Reflectors: map[string]*Host{}}
	core := fabric.Core{Name: "core", Address: CoreAddr4}
	if len(c.Core) > 0 {
		core = c.Core[0]
	}
	var err error
	if t.Core, err = l.AddCore(core.Name, both(core.Address)...); err != nil {
		return nil, err
	}
	if t.Client, err = l.AddClient("client", t.Core); err != nil {
		return nil, err
	}
	for _, r := range c.Reflectors {
		if t.Reflectors[r.Name], err = l.AddReflector(r.Name, both(r.Address)...); err != nil {
			return nil, err
		}
	}
	for _, n := range c.Nodes {
		if t.Nodes[n.Name], err = l.AddNode(n.Name, both(n.Address, n.Address6)...); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// both adds the address of the other family to a single one of the underlay.
func both(addrs ...netip.Addr) []netip.Addr {
	var given []netip.Addr
	for _, a := range addrs {
		if a.IsValid() {
			given = append(given, a)
		}
	}
	if len(given) != 1 {
		return given
	}
	switch a := given[0]; {
	case UnderlayPrefix4.Contains(a):
		return append(given, Underlay6(a.As4()[3]))
	case UnderlayPrefix6.Contains(a):
		b := a.As16()
		return append(given, Underlay4(b[14]*100+b[15]>>4*10+b[15]&15))
	}
	return given
}

// AddNode adds a hypervisor host: it forwards, and its way out is the core
// gateway at 10.10.0.1 and fd00:10:10::1, which need not be there yet. The
// addresses, one of each family or one alone, are on its eth0.
func (l *Lab) AddNode(name string, addrs ...netip.Addr) (*Host, error) {
	return l.addRouter(name, addrs, true)
}

// AddReflector adds a host for a route reflector. It does not forward.
func (l *Lab) AddReflector(name string, addrs ...netip.Addr) (*Host, error) {
	h, err := l.addConnected(name, addrs)
	if err == nil {
		err = h.routeOut("eth0", CoreAddr4, CoreAddr6)
	}
	return h, err
}

// AddCore adds a core gateway: a host that forwards and has no way out.
func (l *Lab) AddCore(name string, addrs ...netip.Addr) (*Host, error) {
	return l.addRouter(name, addrs, false)
}

// AddClient adds a host behind the core gateway, at [ClientAddr4] and
// [ClientAddr6] on its eth0; the core gateway's end of the cable is eth1.
func (l *Lab) AddClient(name string, core *Host) (*Host, error) {
	h, err := l.AddHost(name)
	if err != nil {
		return nil, err
	}
	if err := l.Cable(core, "eth1", h, "eth0"); err != nil {
		return nil, err
	}
	if err := core.AddAddr("eth1", CoreClient4, CoreClient6); err != nil {
		return nil, err
	}
	err = h.AddAddr("eth0", netip.PrefixFrom(ClientAddr4, CoreClient4.Bits()), netip.PrefixFrom(ClientAddr6, CoreClient6.Bits()))
	if err != nil {
		return nil, err
	}
	return h, h.routeOut("eth0", CoreClient4.Addr(), CoreClient6.Addr())
}

func (l *Lab) addRouter(name string, addrs []netip.Addr, wayOut bool) (*Host, error) {
	h, err := l.addConnected(name, addrs)
	if err != nil {
		return nil, err
	}
	err = h.SetSysctls(map[string]string{"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"})
	if err == nil && wayOut {
		err = h.routeOut("eth0", CoreAddr4, CoreAddr6)
	}
	return h, err
}

// routeOut sets the default routes of the families that the host has addresses
// of.
func (h *Host) routeOut(link string, vias ...netip.Addr) error {
	have, err := h.Addrs(link)
	if err != nil {
		return err
	}
	for _, via := range vias {
		for _, p := range have {
			if !p.Contains(via) {
				continue
			}
			if err := h.AddRoute(defaultRoute(via.Is6()), via, link); err != nil {
				return err
			}
		}
	}
	return nil
}

// switchName is the host whose bridge br0 is the underlay.
const switchName = "switch"

// addConnected adds a host with its eth0 on the underlay.
func (l *Lab) addConnected(name string, addrs []netip.Addr) (*Host, error) {
	sw, err := l.underlay.theSwitch(l)
	if err != nil {
		return nil, err
	}
	h, err := l.AddHost(name)
	if err != nil {
		return nil, err
	}
	h.port = name
	if len(h.port) > 15 {
		h.port = fmt.Sprintf("p%d", len(l.Hosts()))
	}
	if err := l.Cable(sw, h.port, h, "eth0"); err != nil {
		return nil, err
	}
	for _, a := range addrs {
		p := UnderlayPrefix4
		switch {
		case !a.IsValid():
			continue
		case a.Is4():
			h.addr4 = a
		default:
			h.addr6, p = a, UnderlayPrefix6
		}
		if err := h.AddAddr("eth0", netip.PrefixFrom(a, p.Bits())); err != nil {
			return nil, err
		}
	}
	return h, l.Reconnect(h)
}

// underlay is the network between the hosts of a lab. It is safe for concurrent use.
type underlay struct {
	mu sync.Mutex
	sw *Host // the switch, when there is one
}

// theSwitch returns the switch; the first call adds it to the lab.
func (u *underlay) theSwitch(l *Lab) (*Host, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.sw != nil {
		return u.sw, nil
	}
	sw, err := l.AddHost(switchName)
	if err != nil {
		return nil, err
	}
	if err := sw.addBridge("br0"); err != nil {
		return nil, err
	}
	u.sw = sw
	return sw, nil
}

func (h *Host) addBridge(name string) error {
	// Nobody queries for group members here, and without a querier a snooping
	// bridge forgets which ports want neighbour solicitations.
	snoop := false
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs(), MulticastSnooping: &snoop}
	bridge.Name = name
	if err := h.nl.LinkAdd(bridge); err != nil {
		return fmt.Errorf("bridge of the underlay: %w", err)
	}
	return h.SetUp(name)
}

// AddTap adds a tap to the underlay for a machine that is no host of the lab, such as one
// that QEMU emulates, and returns the host of the underlay's switch, which has the tap.
func (l *Lab) AddTap(name string) (*Host, error) {
	sw, err := l.underlay.theSwitch(l)
	if err != nil {
		return nil, err
	}
	bridge, err := sw.Link("br0")
	if err != nil {
		return nil, err
	}
	tap := &netlink.Tuntap{LinkAttrs: netlink.NewLinkAttrs(), Mode: netlink.TUNTAP_MODE_TAP}
	tap.Name = name
	// A tap belongs to the namespace of the thread that opens the tun device.
	if err := sw.Do(func() error { return netlink.LinkAdd(tap) }); err != nil {
		return nil, fmt.Errorf("tap %s of the underlay: %w", name, err)
	}
	err = sw.onLink(name, "connect", func(l netlink.Link) error { return sw.nl.LinkSetMaster(l, bridge) })
	if err == nil {
		err = sw.SetUp(name)
	}
	return sw, err
}

// Disconnect cuts a host off from the underlay as a fault further away does: its
// link keeps carrier.
func (l *Lab) Disconnect(h *Host) error {
	sw, err := l.switchOf(h)
	if err != nil {
		return err
	}
	return sw.onLink(h.port, "disconnect", sw.nl.LinkSetNoMaster)
}

// Reconnect undoes [Lab.Disconnect].
func (l *Lab) Reconnect(h *Host) error {
	sw, err := l.switchOf(h)
	if err != nil {
		return err
	}
	bridge, err := sw.Link("br0")
	if err != nil {
		return err
	}
	return sw.onLink(h.port, "connect", func(port netlink.Link) error { return sw.nl.LinkSetMaster(port, bridge) })
}

// Split cuts hosts off from the rest of the underlay, as [Lab.Disconnect] does, but not
// from each other. [Lab.Reconnect] undoes it for each.
func (l *Lab) Split(hosts ...*Host) error {
	const name = "br1"
	for _, h := range hosts {
		sw, err := l.switchOf(h)
		if err != nil {
			return err
		}
		if !sw.HasLink(name) {
			if err := sw.addBridge(name); err != nil {
				return err
			}
		}
		bridge, err := sw.Link(name)
		if err == nil {
			err = sw.onLink(h.port, "split off", func(port netlink.Link) error { return sw.nl.LinkSetMaster(port, bridge) })
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) switchOf(h *Host) (*Host, error) {
	if h.port == "" {
		return nil, fmt.Errorf("host %s is not on the underlay; add it as a node, a reflector or a core gateway", h.name)
	}
	return l.underlay.theSwitch(l)
}
