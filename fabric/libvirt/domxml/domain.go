// Package domxml reads the few elements of a libvirt domain's XML that say
// what the fabric gives the guest, and through which interfaces. It needs no
// libvirt client, so that a hook which imports it stays small.
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

// Origin is what [fabric.VM.Origin] says of libvirt's guests.
const Origin = "libvirt"

// family begins the namespaces of every version of <fabric:vm>.
const family = "urn:vmfabric"

// Domain is what a domain's XML says to the fabric.
type Domain struct {
	Name string
	UUID string
	ID   int  // 0 in the XML of a domain that does not run here
	Ours bool // it has <fabric:vm>; NICs is empty otherwise
	NICs []NIC
	// Resolve: <fabric:vm> is empty, so NICs is too. The fabric's are the
	// interfaces that are called so, and what they receive somebody else knows.
	Resolve bool
	// Interfaces are all of the domain's, in its order. Those that libvirt
	// made itself have lost their Dev in the XML of a stopped domain.
	Interfaces []Interface
}

// NIC is a <fabric:nic>: what one interface of the guest receives.
type NIC struct {
	Addresses []netip.Addr // at least one; without zones and IPv4-mapped ones
	Routes    []netip.Prefix
}

// Interface is an <interface> of the domain's devices.
type Interface struct {
	Type    string // "ethernet", "bridge", "network", ...
	Dev     string // the host's link
	Managed bool   // libvirt makes and removes the link (managed='yes', the default)
	MAC     fabric.MAC
	Queues  int // 0 when not given; libvirt drops it for models that are not virtio
	MTU     int // bytes; 0 when not given
}

// MayBeOurs tells quickly whether [Parse] could find <fabric:vm> in the XML.
func MayBeOurs(xml []byte) bool { return bytes.Contains(xml, []byte(family)) }

// Mentioned is [MayBeOurs] for XML that goes on after what was read of it. It
// reads the rest to where it finds something, and keeps none of it.
func Mentioned(read []byte, rest io.Reader) (bool, error) {
	const overlap = len(family) - 1 // it may lie across two pieces
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

// VM gives the guest. The n-th <fabric:nic> takes its kind, MAC address,
// queues and MTU from the interface whose target is [fabric.PortName] n; one
// without such an interface has only its addresses and routes, which is enough
// to bring a guest down, see [Domain.Plugged]. Of one to be resolved the n-th
// NIC is that interface, without addresses.
func (d Domain) VM() fabric.VM {
	nics := d.nics()
	vm := fabric.VM{Name: d.Name, UUID: d.UUID, Origin: Origin, Resolve: d.Resolve, NICs: make([]fabric.NIC, len(nics))}
	for n, nic := range nics {
		vm.NICs[n] = fabric.NIC{Addresses: nic.Addresses, Routes: nic.Routes}
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

// nics gives those that the metadata names, or else one for each interface
// that is called like a port, from the first on.
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

// Plugged reports the first <fabric:nic> that has no interface of type
// ethernet, as each needs before the guest can be brought up. An empty
// <fabric:vm> needs at least one, and none called so after a gap.
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

// Renamed reports the first interface whose target is what its port was called
// before names of ports were to begin with a letter or a digit
// ([fabric.FormerPortName]): nil when all have the names of now. A guest that
// runs has its port all the same; one that is to start would find no such link.
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

// gapless reports what keeps the first n interfaces that are called like ports
// from being all of them.
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
			"add <interface type='ethernet'><target dev='%[1]s' managed='no'/><model type='virtio'/></interface> for the resolver's addresses, or a <fabric:nic> with its own", port)
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
