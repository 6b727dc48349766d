package kernel

import (
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
)

// netlinkCache has the ports and their addresses and routes in the kernel.
// Notifications keep it up to date, so that neither an attach nor a look at all
// ports has to list the whole node.
type netlinkCache struct {
	mu    sync.Mutex
	ports portLinks
}

// open locks the cache for the caller, until it calls done.
func (c *netlinkCache) open() (p *portLinks, done func()) {
	c.mu.Lock()
	return &c.ports, c.mu.Unlock
}

// portLinks are the links that are marked as ports, or once were. A goroutine that
// has them, by [netlinkCache.open], has them alone.
type portLinks struct {
	links  map[int32]*cachedLink
	byName map[string]int32
	owner  map[place]int32 // the link of each route of the fabric

	// early are addresses of links whose own notification is still to come.
	early map[int32][]netip.Addr

	flaps []flap // since this was last reset
}

// flap is a change of a link's carrier.
type flap struct {
	name  string
	index int32
	up    bool
}

// cachedLink is a link that is, or once was, marked as a port.
type cachedLink struct {
	link
	hadCarrier bool
	found      bool // marked before this process began
	addrs      map[netip.Addr]bool
	routes     map[place]route        // of our protocol, but for announcements
	competing  map[netip.Prefix]route // routes of others, which the kernel uses in the place of the port's
	settings   []string               // faults of sysctls, as last looked at
	neighbours []string               // faults of the neighbours, as last looked at
}

// place is the table and the prefix of a route: each table can have one to the same
// prefix.
type place struct {
	table  uint32
	prefix netip.Prefix
}

func (r route) place() place { return place{r.table, r.prefix} }

// route is a route to a port.
type route struct {
	table  uint32 // 0: the main one
	prefix netip.Prefix
	index  int32
	via    netip.Addr
	proto  uint8
	metric uint32
}

// announces reports whether a route is an announcement: the kernel has it beside
// the route to the port, for a routing daemon to read.
func (r route) announces() bool {
	return r.proto == routeProtocol && r.metric > 0 && r.metric < fabric.PortMetric
}

func newNetlinkCache() *netlinkCache {
	c := &netlinkCache{}
	c.ports.reset()
	return c
}

func (m *portLinks) reset() {
	m.links, m.byName, m.owner = map[int32]*cachedLink{}, map[string]int32{}, map[place]int32{}
	m.early = map[int32][]netip.Addr{}
}

// load fills the netlink cache from a listing; with first, for the first time.
func (c *netlinkCache) load(l rtnl.Listing, first bool) {
	m, done := c.open()
	defer done()
	before := m.links
	m.reset()
	for _, part := range [][]netlink.Message{l.Links, l.Addresses, l.Routes[routeProtocol]} {
		for _, msg := range part {
			m.apply(msg)
		}
	}
	for i, l := range m.links {
		l.found = first
		if had := before[i]; had != nil {
			l.hadCarrier, l.found = l.hadCarrier || had.hadCarrier, had.found
			// The listing has only the fabric's own routes. The next Put finds out
			// whether the others are still there.
			l.competing = had.competing
		}
	}
}

// apply updates the cache by a notification or a part of a listing. It returns the
// names of the links that are concerned.
func (m *portLinks) apply(msg netlink.Message) []string {
	switch msg.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		l, err := parseLink(msg.Data)
		if err != nil || msg.Data[0] != unix.AF_UNSPEC {
			return nil // the kernel notifies of bridge ports a second time, with their own family
		}
		return m.applyLink(l, msg.Header.Type == unix.RTM_DELLINK)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		index, addr, err := parseAddr(msg.Data)
		l := m.links[index]
		if err != nil || l == nil {
			return nil
		}
		if msg.Header.Type == unix.RTM_NEWADDR {
			l.addrs[addr] = true
		} else {
			delete(l.addrs, addr)
			if !l.hasIPv4() {
				m.flush4(l)
			}
		}
		return []string{l.name}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		r, err := parseTableRoute(msg.Data)
		if err != nil || r.table != 0 && r.table != fabric.ArrivingTable {
			return nil
		}
		return m.applyRoute(r, msg)
	}
	return nil
}

func (m *portLinks) applyLink(l link, gone bool) []string {
	have := m.links[l.index]
	_, _, _, ours := fabric.ParseAlias(l.alias)
	switch {
	case gone && have == nil:
		delete(m.early, l.index)
		return []string{l.name} // perhaps the link that an adopted port awaits
	case gone:
		delete(m.links, l.index)
		if m.byName[have.name] == l.index {
			delete(m.byName, have.name)
		}
		for at := range have.routes {
			// The kernel flushes the IPv4 routes of a link without a notification.
			if m.owner[at] == l.index {
				delete(m.owner, at)
			}
		}
		return []string{have.name}
	case have == nil && !ours:
		return []string{l.name}
	case have == nil:
		have = &cachedLink{addrs: map[netip.Addr]bool{}, routes: map[place]route{}, competing: map[netip.Prefix]route{}}
		m.links[l.index] = have
		for _, a := range m.early[l.index] {
			have.addrs[a] = true
		}
		delete(m.early, l.index)
	}
	if have.name != l.name && m.byName[have.name] == l.index {
		delete(m.byName, have.name)
	}
	if have.carrier() != l.carrier() {
		m.flaps = append(m.flaps, flap{l.name, l.index, l.carrier()})
	}
	if have.up() && !l.up() {
		m.flush4(have)
	}
	have.link = l
	have.hadCarrier = have.hadCarrier || l.carrier()
	have.settings = l.settingFaults()
	m.byName[l.name] = l.index
	return []string{l.name}
}

// added notes an address that the kernel has accepted. For an IPv6 address, the
// notification comes only later, out of a work queue.
func (c *netlinkCache) added(index int32, a netip.Addr) {
	m, done := c.open()
	defer done()
	if l := m.links[index]; l != nil {
		l.addrs[a] = true
	} else {
		m.early[index] = append(m.early[index], a)
	}
}

// flush4 forgets the IPv4 routes of a link that went down or lost its last IPv4
// address: the kernel drops them without a notification.
func (m *portLinks) flush4(l *cachedLink) {
	for at := range l.routes {
		if at.prefix.Addr().Is4() {
			delete(l.routes, at)
			delete(m.owner, at)
		}
	}
}

func (l *cachedLink) hasIPv4() bool {
	for a := range l.addrs {
		if a.Is4() {
			return true
		}
	}
	return false
}

func (m *portLinks) applyRoute(r route, msg netlink.Message) []string {
	index, ours := m.owner[r.place()]
	var names []string
	drop := func() {
		delete(m.owner, r.place())
		if l := m.links[index]; l != nil {
			delete(l.routes, r.place())
			names = append(names, l.name)
		}
	}
	switch {
	case r.announces():
	case msg.Header.Type == unix.RTM_DELROUTE:
		l := m.links[index]
		switch {
		case !ours || l == nil:
		case r.proto == routeProtocol && index == r.index && l.routes[r.place()].metric == r.metric:
			drop()
		case l.competing[r.prefix] == r:
			delete(l.competing, r.prefix)
			names = append(names, l.name)
		}
	case r.proto == routeProtocol:
		if ours && index != r.index {
			drop()
		}
		if l := m.links[r.index]; l != nil {
			l.routes[r.place()], m.owner[r.place()] = r, r.index
			names = append(names, l.name)
		}
	case ours && msg.Header.Flags&netlink.Replace != 0 && r.metric == fabric.PortMetric:
		drop() // somebody replaced the port's route by their own
	case ours && r.table == 0 && r.metric < fabric.PortMetric:
		if l := m.links[index]; l != nil {
			l.competing[r.prefix] = r
			names = append(names, l.name)
		}
	}
	return names
}

// seen returns copies of a link's addresses and routes.
func (c *netlinkCache) seen(index int32) (addrs map[netip.Addr]bool, routes map[place]route, competing map[netip.Prefix]route) {
	m, done := c.open()
	defer done()
	if l := m.links[index]; l != nil {
		return maps.Clone(l.addrs), maps.Clone(l.routes), maps.Clone(l.competing)
	}
	return nil, map[place]route{}, nil
}

// knows reports whether there is a link of a name in the cache.
func (c *netlinkCache) knows(name string) bool {
	m, done := c.open()
	defer done()
	_, known := m.byName[name]
	return known
}

// nameOf returns the name of a port's link.
func (c *netlinkCache) nameOf(index int32) (name string, known bool) {
	m, done := c.open()
	defer done()
	if l := m.links[index]; l != nil {
		return l.name, true
	}
	return "", false
}

func (c *netlinkCache) isPort(index int32) bool {
	_, known := c.nameOf(index)
	return known
}

// lacksNeighbours reports whether the last check found that neighbours of a link
// are missing.
func (c *netlinkCache) lacksNeighbours(index int32) bool {
	m, done := c.open()
	defer done()
	l := m.links[index]
	return l != nil && len(l.neighbours) > 0
}

// noneCompetes notes that the kernel uses our route to a prefix.
func (c *netlinkCache) noneCompetes(index int32, p netip.Prefix) {
	m, done := c.open()
	defer done()
	if l := m.links[index]; l != nil {
		delete(l.competing, p)
	}
}

// put notes that a port was put on a link, so that its neighbours were made. It
// reports whether the port had its guest before this process.
func (c *netlinkCache) put(index int32) (here bool) {
	m, done := c.open()
	defer done()
	l := m.links[index]
	if l == nil {
		return false
	}
	l.neighbours = nil
	return l.found && l.carrier()
}

func parseAddr(data []byte) (index int32, addr netip.Addr, err error) {
	if len(data) < unix.SizeofIfAddrmsg {
		return 0, netip.Addr{}, errors.New("rtnetlink: short address message")
	}
	index = int32(binary.NativeEndian.Uint32(data[4:]))
	ad, err := netlink.NewAttributeDecoder(data[unix.SizeofIfAddrmsg:])
	if err != nil {
		return 0, netip.Addr{}, err
	}
	for ad.Next() {
		// IFA_LOCAL is the address itself; IPv6 has only IFA_ADDRESS.
		if t := ad.Type(); t == unix.IFA_LOCAL || t == unix.IFA_ADDRESS && !addr.IsValid() {
			addr, _ = netip.AddrFromSlice(ad.Bytes())
		}
	}
	return index, addr, ad.Err()
}

var errOtherTable = errors.New("not in the main table")

// parseRoute reads a route of the main table. A route of another table is an error.
func parseRoute(data []byte) (route, error) {
	r, err := parseTableRoute(data)
	if err == nil && r.table != 0 {
		return route{}, errOtherTable
	}
	return r, err
}

// parseTableRoute reads a route of any table.
func parseTableRoute(data []byte) (route, error) {
	if len(data) < unix.SizeofRtMsg {
		return route{}, errors.New("rtnetlink: short route message")
	}
	family, bits, table := data[0], int(data[1]), uint32(data[4])
	r := route{proto: data[5]}
	var dst netip.Addr
	switch family {
	case unix.AF_INET:
		dst = netip.IPv4Unspecified()
	case unix.AF_INET6:
		dst = netip.IPv6Unspecified()
	default:
		return route{}, errors.New("not IP")
	}
	ad, err := netlink.NewAttributeDecoder(data[unix.SizeofRtMsg:])
	if err != nil {
		return route{}, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(ad.Bytes())
		case unix.RTA_OIF:
			r.index = int32(ad.Uint32())
		case unix.RTA_GATEWAY:
			r.via, _ = netip.AddrFromSlice(ad.Bytes())
		case unix.RTA_VIA: // of the other family; its number comes first
			if b := ad.Bytes(); len(b) > 2 {
				r.via, _ = netip.AddrFromSlice(b[2:])
			}
		case unix.RTA_PRIORITY:
			r.metric = ad.Uint32()
		case unix.RTA_TABLE:
			table = ad.Uint32()
		}
	}
	if err := ad.Err(); err != nil {
		return route{}, err
	}
	if table != unix.RT_TABLE_MAIN {
		r.table = table
	}
	r.prefix = netip.PrefixFrom(dst, bits)
	return r, nil
}
