// Package domxml reads the few elements of a libvirt domain's XML that say which
// addresses the guest has, and on which interfaces. It needs no libvirt client, so
// that a hook which imports it stays small.
package domxml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/vmfabric/vmfabric/fabric"
)

// Namespace is the XML namespace of <fabric:vm> in a domain's <metadata>.
const Namespace = "urn:vmfabric:domain:1"

// Origin is the [fabric.VM.Origin] of libvirt's guests.
const Origin = "libvirt"

// family is the prefix of the namespaces of all versions of <fabric:vm>.
const family = "urn:vmfabric"

// Domain is the part of a domain's XML that the fabric uses.
type Domain struct {
	Name string
	UUID string
	ID   int  // 0: it does not run here
	Ours bool // it has <fabric:vm>; NICs is empty otherwise
	NICs []NIC
	// Resolve: <fabric:vm> is empty, so NICs is too. The guest's NICs are the
	// interfaces with the names of its ports. A resolver knows their addresses, or
	// else they get some from the pools.
	Resolve bool
	// NoDHCP, NoRA and NoMetadata: <fabric:vm dhcp='no' ra='no' metadata='no'>.
	NoDHCP, NoRA, NoMetadata bool
	Isolated                 bool             // <fabric:vm isolate='yes'>
	Firewall                 *fabric.Firewall // <fabric:firewall>; nil: none
	// Interfaces are all of the domain's, in its order. If libvirt made the link of
	// one, the XML of the stopped domain has no Dev for it.
	Interfaces []Interface
}

// NIC is a <fabric:nic>: the addresses and routes of one interface of the guest. It has
// an address or a pool.
type NIC struct {
	Addresses []netip.Addr // none with a zone, none IPv4-mapped
	Pools     []string     // one address more is to come from each; an empty <fabric:nic> has [fabric.AutoPool]
	Routes    []netip.Prefix
}

// Interface is an <interface> of the domain's devices.
type Interface struct {
	Type    string // "ethernet", "bridge", "network", ...
	Dev     string // the host's link
	Managed bool   // libvirt makes and removes the link (managed='yes', the default)
	MAC     fabric.MAC
	Queues  int // 0: not given; libvirt drops it for models that are not virtio
	MTU     int // bytes; 0: not given
}

// MayBeOurs reports quickly whether [Parse] could find <fabric:vm> in the XML.
func MayBeOurs(xml []byte) bool { return bytes.Contains(xml, []byte(family)) }

// Mentioned is [MayBeOurs] for XML of which only a part has been read. It reads the
// rest up to the first match, and keeps none of it.
func Mentioned(read []byte, rest io.Reader) (bool, error) {
	const overlap = len(family) - 1 // a match may lie across two pieces
	window := append([]byte(nil), read[max(0, len(read)-overlap):]...)
	piece := make([]byte, 64<<10)
	for {
		n, err := rest.Read(piece)
		window = append(window, piece[:n]...)
		if MayBeOurs(window) {
			return true, nil
		}
		switch {
		case errors.Is(err, io.EOF):
			return false, nil
		case err != nil:
			return false, err
		}
		window = append(window[:0], window[max(0, len(window)-overlap):]...)
	}
}

// VM returns the guest. The n-th <fabric:nic> takes its kind, MAC address, queues
// and MTU from the interface whose target is [fabric.PortName] n. Without such an
// interface it has only its addresses and routes, which is enough to tear a guest
// down, see [Domain.Plugged]. With Resolve the n-th NIC is that interface, without
// addresses.
func (d Domain) VM() fabric.VM {
	nics := d.nics()
	vm := fabric.VM{Name: d.Name, UUID: d.UUID, Origin: Origin, Resolve: d.Resolve, NoDHCP: d.NoDHCP, NoRA: d.NoRA, NoMetadata: d.NoMetadata, Isolated: d.Isolated, Firewall: d.Firewall, NICs: make([]fabric.NIC, len(nics))}
	for n, nic := range nics {
		vm.NICs[n] = fabric.NIC{Addresses: nic.Addresses, Pools: nic.Pools, Routes: nic.Routes}
		i, found := d.plug(n)
		if !found {
			continue
		}
		to := &vm.NICs[n]
		to.MAC, to.Queues, to.MTU = i.MAC, i.Queues, i.MTU
		to.Kind = fabric.Tap
		if i.Managed {
			to.Kind = fabric.Adopt
		}
	}
	return vm
}

// nics returns the NICs of the metadata or, with Resolve, one for each interface
// with the name of a port, from the first on.
func (d Domain) nics() []NIC {
	if !d.Resolve {
		return d.NICs
	}
	n := 0
	for n <= fabric.MaxNICs {
		if _, found := d.plug(n); !found {
			break
		}
		n++
	}
	return make([]NIC, n)
}

// Plugged returns an error for the first <fabric:nic> without an interface of type
// ethernet: each needs one before the guest can start. An empty <fabric:vm> needs
// at least one such interface, and no gap in their numbers.
func (d Domain) Plugged() error {
	nics := d.nics()
	if d.Resolve {
		if err := d.gapless(len(nics)); err != nil {
			return fmt.Errorf("domain %s: %w", label(d.Name), err)
		}
	}
	for n := range nics {
		port := fabric.PortName(d.Name, n)
		i, found := d.plug(n)
		switch {
		case !found:
			return fmt.Errorf("domain %s: <fabric:nic> %d has no interface with <target dev='%s'>; "+
				"add <interface type='ethernet'><target dev='%[3]s' managed='no'/><model type='virtio'/></interface>",
				label(d.Name), n, port)
		case i.Type != "ethernet":
			return fmt.Errorf("domain %s: the interface of <fabric:nic> %d, %s, is of type %.40q, which libvirt connects itself; "+
				"make it <interface type='ethernet'>", label(d.Name), n, port, i.Type)
		}
	}
	return nil
}

// Renamed returns an error for the first interface whose target is the earlier name
// of its port ([fabric.FormerPortName]), from when a port's name could begin with
// another character than a letter or a digit; nil if there is none. A running guest
// has its port all the same, but a start would find no such link.
func (d Domain) Renamed() error {
	for n := range d.nics() {
		port := fabric.PortName(d.Name, n)
		if i, found := d.plug(n); found && i.Dev != port {
			return fmt.Errorf("domain %s: <target dev='%s'>: names of ports begin with a letter or a digit now; write <target dev='%s'> (virsh edit)",
				label(d.Name), i.Dev, port)
		}
	}
	return nil
}

// gapless returns an error unless the first n interfaces with names of ports are
// all of them.
func (d Domain) gapless(n int) error {
	port := fabric.PortName(d.Name, n)
	if n > fabric.MaxNICs {
		return fmt.Errorf("<fabric:vm> is empty, and more than %d interfaces are called like ports; a guest has at most that many", fabric.MaxNICs)
	}
	for later := n + 1; later < fabric.MaxNICs && n < len(d.Interfaces); later++ {
		if i, found := d.plug(later); found {
			return fmt.Errorf("<fabric:vm> is empty, and there is an interface with <target dev='%s'> but none with '%s'; number them without a gap", i.Dev, port)
		}
	}
	if n == 0 {
		return fmt.Errorf("<fabric:vm> is empty, and no interface has <target dev='%s'>; "+
			"add <interface type='ethernet'><target dev='%[1]s' managed='no'/><model type='virtio'/></interface> for addresses of the resolver or the pools, or a <fabric:nic> with its own", port)
	}
	return nil
}

// plug finds the interface of the n-th NIC.
func (d Domain) plug(n int) (Interface, bool) {
	port, former := fabric.PortName(d.Name, n), fabric.FormerPortName(d.Name, n)
	for _, i := range d.Interfaces {
		if i.Dev == port {
			return i, true
		}
	}
	for _, i := range d.Interfaces {
		if i.Dev == former {
			return i, true
		}
	}
	return Interface{}, false
}
