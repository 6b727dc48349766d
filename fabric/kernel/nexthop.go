package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// nextHops knows which links have the next hops of announcements as addresses.
type nextHops struct {
	v4, v6 netip.Addr // without v6, v4 in IPv6 notation is the next hop of IPv6 routes, too (RFC 4291, 2.5.5.2)

	mu    sync.Mutex
	links map[netip.Addr]map[int32]bool
	read  time.Time // when off was read
	off   error     // IPv6 is disabled where v4 is
}

// readEvery is how long off counts as current: the kernel notifies nobody of that
// setting.
const readEvery = time.Second

func newNextHops(v4, v6 netip.Addr) *nextHops { return &nextHops{v4: v4, v6: v6} }

// load replaces all links by those of a listing. Afterwards apply keeps them up to
// date.
func (h *nextHops) load(addresses []netlink.Message) {
	h.mu.Lock()
	h.links = map[netip.Addr]map[int32]bool{}
	h.mu.Unlock()
	for _, m := range addresses {
		h.apply(m)
	}
}

// apply updates the links by a notification, and reports whether the state of a
// next hop may have changed.
func (h *nextHops) apply(m netlink.Message) bool {
	if m.Header.Type != unix.RTM_NEWADDR && m.Header.Type != unix.RTM_DELADDR {
		return false
	}
	index, a, err := parseAddr(m.Data)
	if err != nil {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if a != h.v4 && a != h.v6 {
		// Without v6, the next hop of IPv6 depends on the IPv6 setting of v4's
		// link.
		if h.v6.IsValid() || !a.Is6() || !h.links[h.v4][index] {
			return false
		}
		h.read = time.Time{}
		return true
	}
	// The kernel does not use an address that another machine has, too (RFC 4862,
	// 5.4.5).
	there := m.Header.Type == unix.RTM_NEWADDR && m.Data[2]&unix.IFA_F_DADFAILED == 0
	if there == h.links[a][index] {
		return false
	}
	if h.links[a] == nil {
		h.links[a] = map[int32]bool{}
	}
	if there {
		h.links[a][index] = true
	} else {
		delete(h.links[a], index)
	}
	return true
}

// on lists the links that have an address.
func (h *nextHops) on(a netip.Addr) (indexes []int32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for index := range h.links[a] {
		indexes = append(indexes, index)
	}
	return indexes
}

// NextHop implements [fabric.Dataplane].
func (d *Dataplane) NextHop(v6 bool) error {
	h := d.hops
	family, a := "IPv4", h.v4
	if v6 {
		family = "IPv6"
		if h.v6.IsValid() {
			a = h.v6
		}
	}
	if !a.IsValid() {
		return nil // the configuration names none
	}
	links := h.on(a)
	if len(links) == 0 {
		return fmt.Errorf("%s is announced for no guest: next hop %s is no address of this node any more; give it back (ip addr add; for IPv6, sysctl net.ipv6.conf.all.disable_ipv6 must be 0), or write the node's address in the cluster file and restart the agent", family, a)
	}
	if !v6 || a.Is6() {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.read) > readEvery {
		h.off, h.read = d.disabled6(links), time.Now()
	}
	return h.off
}

// disabled6 returns an error if IPv6 is disabled on all of the links.
func (d *Dataplane) disabled6(links []int32) error {
	var off error
	for _, index := range links {
		l, err := d.rtnl.linkByIndex(index)
		if err != nil {
			continue
		}
		path := "ipv6/conf/" + l.name + "/disable_ipv6"
		if value, err := readSysctl(path); err == nil && value == "0" {
			return nil
		}
		off = errors.Join(off, fmt.Errorf("IPv6 is announced for no guest: it is disabled on %s; sysctl -w net.ipv6.conf.%[1]s.disable_ipv6=0", l.name))
	}
	return off
}
