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
	// What is behind the port is then reached through it by packets that come
	// in from the underlay alone; the node's own, and those of its other
	// guests, go where they would go without the port. The guest's addresses
	// are neighbours at NIC.MAC, if that is known, so that nobody has to ask a
	// guest that does not run.
	Incoming bool
	// Queue is how many packets wait in the port for a guest that takes none
	// (txqueuelen of a tap), at least; 0: 1,000, what the kernel gives. A queue
	// that was longer stays so while a guest has the port open.
	Queue int
	// Listen: the guest has carrier before it answers, and may run elsewhere
	// until it does, so it is listened for: see [PortState.Silent].
	Listen bool
}

// ListenFor is how long a guest that has carrier may be [PortState.Silent].
const ListenFor = 5 * time.Second

// PortState is a port of ours as a [Dataplane] finds it.
type PortState struct {
	Name    string
	Cluster string
	VM      string
	Index   int
	NIC     NIC  // what can be seen of it: kind, addresses and routes
	Carrier bool // somebody holds the other end
	// Lost: it had carrier since it was put, and has none now, so the guest's
	// process is gone. Or its kind is [Adopt], and it was without carrier when
	// the dataplane started: its owner had brought it into use before.
	Lost bool
	// Silent: its guest is listened for ([Port.Listen]), has carrier, and since it
	// got that, for at most [ListenFor], no frame has come from any of its
	// addresses. False for a guest that had carrier when the dataplane started.
	Silent bool
	// Faults lists, in words, how the port differs from what Put made; empty
	// for a port that is as it should be. A port that was not put since the
	// dataplane started has the fault that it is unverified.
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
// _net<n>. A name that begins with '-' is an option to every program that is
// given it.
func PortName(vm string, n int) string { return linkName(vm, "_net"+strconv.Itoa(n)) }

// FormerPortName gives the name that the n-th port of a VM had before names of
// ports were to begin with a letter or a digit. It is that of [PortName], but for
// VMs whose first plain character is neither; guests of theirs that have run since
// then have it, in the kernel and in their definitions.
func FormerPortName(vm string, n int) string { return formerLinkName(vm, "_net"+strconv.Itoa(n)) }

// PeerName gives the name of the guest's end of a veth port: <vm>_peer<n>,
// shortened like [PortName].
func PeerName(vm string, n int) string { return linkName(vm, "_peer"+strconv.Itoa(n)) }

// FullPortName gives <vm>_net<n>, however long: the link's alternative name
// (altname, Linux 5.5) where Name is a shortening.
func (p Port) FullPortName() string { return p.VM + "_net" + strconv.Itoa(p.Index) }

func linkName(vm, suffix string) string {
	former := formerLinkName(vm, suffix)
	if !leadingSign(rune(former[0])) {
		return former
	}
	return shorten(vm, strings.TrimLeftFunc(plainPart(vm), leadingSign), suffix)
}

func formerLinkName(vm, suffix string) string {
	plain := plainPart(vm)
	if full := vm + suffix; plain == vm && len(full) <= maxLinkName {
		return full
	}
	return shorten(vm, plain, suffix)
}

// leadingSign holds for the plain characters with which no port's name begins.
func leadingSign(r rune) bool { return r == '-' || r == '.' || r == '_' }

// plainPart drops what is not plain from a name.
func plainPart(vm string) string {
	return strings.Map(func(r rune) rune {
		if plainRune(r) {
			return r
		}
		return -1
	}, vm)
}

func shorten(vm, plain, suffix string) string {
	sum := sha256.Sum256([]byte(vm))
	hash := strings.ToLower(base32.StdEncoding.EncodeToString(sum[:5]))[:7]
	// The hash has 35 bits: 5,000 long names on one node collide with a chance
	// of 1 in 2,700, and the agent refuses the second of a pair that does.
	room := max(0, maxLinkName-len(suffix)-len(hash))
	return plain[:min(room, len(plain))] + hash + suffix
}
