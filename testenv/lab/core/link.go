package core

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link returns the host's link of that name.
func (h *Host) Link(name string) (netlink.Link, error) {
	link, err := h.nl.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("link %s of %s: %w", name, h.name, err)
	}
	return link, nil
}

// HasLink reports whether the host has a link of that name.
func (h *Host) HasLink(name string) bool {
	_, err := h.nl.LinkByName(name)
	return err == nil
}

// SetUp brings a link of the host up.
func (h *Host) SetUp(name string) error { return h.onLink(name, "up", h.nl.LinkSetUp) }

// SetDown takes a link of the host down. Its routes go, and the other end of a
// veth pair loses its carrier.
func (h *Host) SetDown(name string) error { return h.onLink(name, "down", h.nl.LinkSetDown) }

// DeleteLink removes a link of the host.
func (h *Host) DeleteLink(name string) error { return h.onLink(name, "delete", h.nl.LinkDel) }

func (h *Host) onLink(name, verb string, f func(netlink.Link) error) error {
	link, err := h.Link(name)
	if err != nil {
		return err
	}
	if err := f(link); err != nil {
		return fmt.Errorf("link %s of %s: %s: %w", name, h.name, verb, err)
	}
	return nil
}

// AddAddr adds addresses to a link of the host. They work at once.
func (h *Host) AddAddr(link string, prefixes ...netip.Prefix) error {
	for _, p := range prefixes {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := h.onLink(link, "address "+p.String(), func(l netlink.Link) error { return h.nl.AddrReplace(l, a) }); err != nil {
			return err
		}
	}
	return nil
}

// Addrs lists the addresses of a link of the host, of both families, without
// IPv6 link-local ones.
func (h *Host) Addrs(link string) ([]netip.Prefix, error) {
	l, err := h.Link(link)
	if err != nil {
		return nil, err
	}
	list, err := dump(func() ([]netlink.Addr, error) { return h.nl.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("addresses of %s of %s: %w", link, h.name, err)
	}
	var ps []netip.Prefix
	for _, a := range list {
		if p := prefixOf(a.IPNet); !p.Addr().Is6() || !p.Addr().IsLinkLocalUnicast() {
			ps = append(ps, p)
		}
	}
	return ps, nil
}

// Cable connects two hosts by a pair of veth links, both up.
func (l *Lab) Cable(a *Host, linkA string, b *Host, linkB string) error {
	veth := netlink.NewVeth(netlink.NewLinkAttrs())
	veth.Name, veth.PeerName, veth.PeerNamespace = linkA, linkB, netlink.NsFd(b.ns)
	if err := a.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("cable from %s of %s to %s of %s: %w", linkA, a.name, linkB, b.name, err)
	}
	return errors.Join(a.SetUp(linkA), b.SetUp(linkB))
}

// dump repeats a listing that a change interrupted.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	for {
		found, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return found, err
		}
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf converts n; nil becomes the zero Prefix.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if bits == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones)
}

// addrOf converts ip; nil becomes the zero Addr.
func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// GuestMAC returns a MAC address with QEMU's prefix that depends only on the
// guest's name and the number of its NIC.
func GuestMAC(vm string, n int) net.HardwareAddr {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", vm, n))
	return net.HardwareAddr{0x52, 0x54, 0x00, sum[0], sum[1], sum[2]}
}
