package fabric

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// maxLinkName is the longest link name in bytes: IFNAMSIZ without its NUL.
const maxLinkName = 15

// Port is the host side of a guest's NIC.
type Port struct {
	Name    string // the link's name
	Cluster string
	VM      string
	Index   int // 0 for _net0
	NIC     NIC // Kind is never empty
	Gateway Gateway
	// Incoming: the guest arrives by live migration and does not run here yet.
	// Only packets from the underlay go through the port then. Packets of the node
	// itself, and of its other guests, go where they would go without the port.
	// The guest's addresses are neighbour entries with NIC.MAC, if that is known:
	// a guest that does not run cannot answer ARP or neighbour discovery.
	Incoming bool
	// Queue is the least number of packets that the port holds for a guest that
	// takes none (txqueuelen of a tap); 0: 1,000, the kernel's default. A longer
	// queue stays as it is while a guest has the port open.
	Queue int
	// NoDHCP, NoRA and NoMetadata are those of the [VM].
	NoDHCP, NoRA, NoMetadata bool
	// Isolated and Firewall are those of the [VM]. A dataplane that cannot do what they
	// ask for refuses the port. They hold from before its first packet on.
	Isolated bool
	Firewall *Firewall // nil: none
	// Listen: the guest has carrier before it answers, and may run elsewhere until
	// then. The dataplane listens for its first frame: see [PortState.Silent].
	Listen bool
}

// ListenFor is the longest time after carrier for which a port is [PortState.Silent].
const ListenFor = 5 * time.Second

// PortState is a port of ours as a [Dataplane] finds it.
type PortState struct {
	Name    string
	Cluster string
	VM      string
	Index   int
	NIC     NIC  // as far as the kernel shows it: kind, addresses and routes
	Carrier bool // a process or a container has the other end
	// Lost: the port had carrier since it was put and has none now, so the guest's
	// process is gone. Also true for a port of kind [Adopt] that had no carrier
	// when the dataplane started: its owner had it in use before.
	Lost bool
	// Silent: the dataplane listens for the guest ([Port.Listen]); the port got
	// carrier at most [ListenFor] ago, and no frame has come from an address of
	// the guest since. False if the port had carrier when the dataplane started.
	Silent bool
	// Contacts has the last request of the guest for its configuration by each
	// protocol, since the dataplane started.
	Contacts []Contact
	// Faults lists, in words, how the port differs from what Put made; empty: it
	// does not differ. A port that was not put since the dataplane started has the
	// fault that it is unverified.
	Faults []string
}

// Alias is the mark of ownership that the link carries in the kernel
// (IFLA_IFALIAS): vmfabric:<cluster>:<vm>:<n>.
func (p Port) Alias() string {
	return fmt.Sprintf("vmfabric:%s:%s:%d", p.Cluster, p.VM, p.Index)
}

// ParseAlias reads a mark of ownership back; ok is false for a link that is
// not ours. A VM name may have colons, a cluster name cannot.
func ParseAlias(alias string) (cluster, vm string, index int, ok bool) {
	rest, found := strings.CutPrefix(alias, "vmfabric:")
	first, last := strings.IndexByte(rest, ':'), strings.LastIndexByte(rest, ':')
	if !found || first < 1 || last <= first+1 {
		return "", "", 0, false
	}
	digits := rest[last+1:]
	n, err := strconv.Atoi(digits)
	if err != nil || n < 0 || strconv.Itoa(n) != digits {
		return "", "", 0, false
	}
	return rest[:first], rest[first+1 : last], n, true
}

// PortName gives the link name of the n-th port of a VM: <vm>_net<n> where
// that is a legal link name of at most 15 bytes that begins with a letter or a
// digit, otherwise a shortening that depends on the VM's name alone: its first
// plain characters from the first letter or digit on, seven of a hash, and
// _net<n>. Programs take a name that begins with '-' for an option.
func PortName(vm string, n int) string { return linkName(vm, namePart(vm), "_net"+strconv.Itoa(n)) }

// FormerPortName gives the name of the n-th port of a VM by the former rule, under
// which it could begin with '-', '.' or '_'. It differs from [PortName] only for
// VMs whose first plain character is one of these. Guests of such VMs that have
// run since then have the former name, in the kernel and in their definitions.
func FormerPortName(vm string, n int) string {
	return linkName(vm, plainPart(vm), "_net"+strconv.Itoa(n))
}

// PeerName gives the name of the guest's end of a veth port: <vm>_peer<n>,
// shortened like [PortName].
func PeerName(vm string, n int) string { return linkName(vm, namePart(vm), "_peer"+strconv.Itoa(n)) }

// FullPortName gives <vm>_net<n>, however long: the link's alternative name
// (altname, Linux 5.5) if Name is a shortening.
func (p Port) FullPortName() string { return p.VM + "_net" + strconv.Itoa(p.Index) }

// linkName gives the VM's name and a suffix if part is the whole name and the result
// fits, otherwise a shortening that begins with part.
func linkName(vm, part, suffix string) string {
	if full := vm + suffix; part == vm && vm != "" && len(full) <= maxLinkName {
		return full
	}
	sum := sha256.Sum256([]byte(vm))
	hash := strings.ToLower(base32.StdEncoding.EncodeToString(sum[:5]))[:7]
	// The hash has 35 bits: 5,000 long names on one node collide with a chance
	// of 1 in 2,700, and the agent refuses the second of a pair that does.
	room := max(0, maxLinkName-len(suffix)-len(hash))
	return part[:min(room, len(part))] + hash + suffix
}

// namePart gives the part of a VM's name that a link name can begin with: the plain
// characters from the first letter or digit on.
func namePart(vm string) string {
	return strings.TrimLeft(plainPart(vm), "-._")
}

// plainPart gives a name without the characters that are not plain.
func plainPart(vm string) string {
	return strings.Map(func(r rune) rune {
		if plainRune(r) {
			return r
		}
		return -1
	}, vm)
}
