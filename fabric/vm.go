package fabric

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/vmfabric/vmfabric/fabric/internal/text"
)

// Limits on what one guest may ask for. They are far beyond what a
// hypervisor's machine types can plug, and bound the work of one request.
const (
	MaxNICs      = 64  // NICs of a guest
	MaxAddresses = 256 // addresses, and likewise routed prefixes, of a NIC
	MaxNameBytes = 180 // so that the mark of a port fits a link alias (IFALIASZ, 256)
)

// State is how far a guest is brought up on this node. States are ordered;
// each includes the work of the one before. The zero value is invalid, so
// that a forgotten field cannot remove a guest.
type State uint8

// The states of a guest on a node.
const (
	Absent State = iota + 1 // no port, no route, no announcement
	Wired                   // port up, addressed and routed; not announced
	Live                    // wired and announced
)

var stateNames = [...]string{Absent: "absent", Wired: "wired", Live: "live"}

// String gives "absent", "wired" or "live".
func (s State) String() string {
	if s < Absent || s > Live {
		return fmt.Sprintf("State(%d)", uint8(s))
	}
	return stateNames[s]
}

// MarshalText implements encoding.TextMarshaler; the zero State is an error.
func (s State) MarshalText() ([]byte, error) {
	if s < Absent || s > Live {
		return nil, fmt.Errorf("state %d is not one of absent, wired, live", uint8(s))
	}
	return []byte(stateNames[s]), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *State) UnmarshalText(b []byte) error {
	for v := Absent; v <= Live; v++ {
		if stateNames[v] == string(b) {
			*s = v
			return nil
		}
	}
	return fmt.Errorf("state %q is not one of absent, wired, live", b)
}

// Kind says who makes a port's link, and of what type.
type Kind string

// The kinds of port.
const (
	Tap   Kind = "tap"   // the fabric makes a persistent tap; a hypervisor opens it
	Veth  Kind = "veth"  // the fabric makes a veth pair; the peer end is for a container
	Adopt Kind = "adopt" // somebody else makes and removes the link; the fabric takes it over when it is there
)

// ParseKind reads the name of a kind.
func ParseKind(s string) (Kind, error) {
	switch k := Kind(s); k {
	case Tap, Veth, Adopt:
		return k, nil
	}
	return "", fmt.Errorf("kind %q is not one of tap, veth, adopt", s)
}

// VM is a guest: a KVM domain, an LXD instance, or anything else behind a port.
type VM struct {
	Name   string `json:"name"`             // unique on the node
	UUID   string `json:"uuid,omitempty"`   // the hypervisor's: see [VM.Identity]
	Origin string `json:"origin,omitempty"` // the [Source] that knows the guest, such as "libvirt"; empty when attached by hand
	NICs   []NIC  `json:"nics"`             // the n-th is port <name>_net<n>
	// Resolve: the hypervisor does not know what the NICs have; a [Resolver] is
	// asked. It stays set when that has answered.
	Resolve bool `json:"resolve,omitempty"`
	// Container: it has the node's kernel, and its links have no permanent MAC
	// address, which some programs find links by.
	Container bool `json:"container,omitempty"`
}

// NIC is one network interface of a guest, and what is routed to it.
type NIC struct {
	Addresses []netip.Addr   `json:"addresses"`
	Routes    []netip.Prefix `json:"routes,omitempty"` // prefixes behind the guest, reached through its first address of that family
	Kind      Kind           `json:"kind,omitempty"`   // empty: Tap
	MAC       MAC            `json:"mac,omitzero"`     // the guest's own, where the hypervisor tells
	Queues    int            `json:"queues,omitempty"` // of a multi-queue tap; 0 and 1: a single queue
	MTU       int            `json:"mtu,omitempty"`    // bytes; 0: the kernel's default
	Link      string         `json:"link,omitempty"`   // its name in the guest, where the hypervisor tells
}

// Desired is a guest as it is wanted on this node: what a [Store] keeps and a
// [Source] reports.
type Desired struct {
	VM       VM    `json:"vm"`
	State    State `json:"state"`
	Incoming bool  `json:"incoming,omitempty"` // a migration to this node is under way: not live before its cutover
	// Leaving: it was stopped for a migration to another node, where it is about
	// to run. Its State is what it was.
	Leaving bool `json:"leaving,omitempty"`
	// Epoch orders what several nodes say of the guest: see [Notice].
	Epoch uint64 `json:"generation,omitempty"`
	// Unreleased are the nodes that have not yet said that they do not announce
	// the guest.
	Unreleased []string `json:"unreleased,omitempty"`
	// Lost says which node has the guest, where it was found out that one has it
	// later than this node, which announces it no more.
	Lost string `json:"lost,omitempty"`
	// LostGuest is the guest that has the address there, where it is another one.
	LostGuest string `json:"lost_guest,omitempty"`
	// LostOther: it is another one, of which nobody has said the name.
	LostOther bool `json:"lost_other,omitempty"`
	// LostRoute is the reflector whose route says so, where no agent does.
	LostRoute string `json:"lost_route,omitempty"`
	// Standby: the agent of that node does not answer. The guest is announced
	// again, behind whoever else has it.
	Standby bool `json:"standby,omitempty"`
	// Acquired is since when the guest has its addresses without a break, on
	// whichever node it ran: see [Notice].
	Acquired time.Time `json:"acquired,omitzero"`
	// Run names this run of the guest, where its hypervisor tells one from another
	// and does not change what a guest has in the middle of one: until the next,
	// the guest keeps what it started with, whatever its description says. Empty:
	// it is not known, or, from a [Source], a description counts at once.
	Run   string    `json:"run,omitempty"`
	Since time.Time `json:"since"`          // when State last changed
	Boot  string    `json:"boot,omitempty"` // the boot of the machine in which it was wanted
}

// Route is a prefix that this node announces, with itself as next hop.
type Route struct {
	Prefix     netip.Prefix
	Preference Preference
	// Holder is the guest that the route is for, where the agent says it: on fresh
	// routes, while another node's agent does not answer. A speaker that cannot say it
	// leaves it out, and [Speaker.Actual] then gives the zero value.
	Holder Holder
	// First puts the route before others of its preference: it is that of a guest
	// that has had the address longer than the one whose route competes. A speaker
	// that cannot say the holder hears of no such route, and is not asked for it.
	First bool
}

// Preference ranks the announcements of one prefix by several nodes, which
// there are while a guest moves. Its value is that of LOCAL_PREF (RFC 4271,
// 5.1.5), but for the zero value. Of two nodes that announce a guest, the one
// where it truly runs comes first: a node that only expects it is behind one that
// is being drained, too.
type Preference uint32

// The preferences.
const (
	Normal   Preference = 0   // LOCAL_PREF 100, its default
	Standby  Preference = 10  // for when nobody else has the prefix: the guest is about to run here
	Draining Preference = 50  // the guest runs here, and the node is being drained (RFC 8326): another node where it runs comes first
	Fresh    Preference = 200 // the guest has just begun to run here: whoever announces it yet is late
)

// Preferences lists all of them, the least preferred first.
func Preferences() []Preference { return []Preference{Standby, Draining, Normal, Fresh} }

// LocalPref gives the value of the attribute LOCAL_PREF.
func (p Preference) LocalPref() uint32 {
	if p == Normal {
		return 100
	}
	return uint32(p)
}

// Communities lists what an announcement carries beside the communities of the
// cluster: [GracefulShutdown] while its node is being drained.
func (p Preference) Communities() []Community {
	if p == Draining {
		return []Community{GracefulShutdown}
	}
	return nil
}

// String gives "normal", "draining", "standby" or "fresh", or else the number.
func (p Preference) String() string {
	switch p {
	case Normal:
		return "normal"
	case Draining:
		return "draining"
	case Standby:
		return "standby"
	case Fresh:
		return "fresh"
	}
	return fmt.Sprintf("Preference(%d)", uint32(p))
}

// Unresolved reports whether a [Resolver] is still to say what the guest has.
func (v VM) Unresolved() bool {
	return v.Resolve && !slices.ContainsFunc(v.NICs, func(n NIC) bool { return len(n.Addresses)+len(n.Routes) > 0 })
}

// Validate reports the first thing that is wrong with the guest on its own,
// whatever the cluster: nil means that its name and NICs are well formed. NICs
// without addresses are so while the guest is [VM.Unresolved].
func (v VM) Validate() error {
	if err := ValidateName(v.Name); err != nil {
		return err
	}
	return v.ValidateNICs()
}

// ValidateNICs is [VM.Validate] without the name.
func (v VM) ValidateNICs() error {
	if len(v.NICs) > MaxNICs {
		return fmt.Errorf("%d NICs; a guest has at most %d", len(v.NICs), MaxNICs)
	}
	unresolved := v.Unresolved()
	if unresolved && len(v.NICs) == 0 {
		return fmt.Errorf("no NIC to resolve addresses for; name each that is the fabric's")
	}
	seen := map[netip.Prefix]int{}
	for n, nic := range v.NICs {
		if len(nic.Addresses) > MaxAddresses || len(nic.Routes) > MaxAddresses {
			return fmt.Errorf("NIC %d: more than %d addresses or routes", n, MaxAddresses)
		}
		if len(nic.Addresses) == 0 && !unresolved {
			return fmt.Errorf("NIC %d: no address; give it at least one from the pools", n)
		}
		switch nic.Kind {
		case "", Tap, Veth, Adopt:
		default:
			return fmt.Errorf("NIC %d: kind %q is not one of tap, veth, adopt", n, nic.Kind)
		}
		if nic.MTU != 0 && (nic.MTU < 1280 || nic.MTU > 65521) {
			return fmt.Errorf("NIC %d: MTU %d is out of range; IPv6 needs 1280, a tap takes at most 65521", n, nic.MTU)
		}
		for _, p := range nic.Prefixes() {
			if !p.IsValid() {
				return fmt.Errorf("NIC %d: an address or a route is empty; write 203.0.113.10 or 198.51.100.0/29", n)
			}
			if first, dup := seen[p]; dup {
				return fmt.Errorf("NIC %d: %s is given twice (also to NIC %d); remove one", n, text.Prefix(p), first)
			}
			seen[p] = n
		}
		for _, r := range nic.Routes {
			switch {
			case r != r.Masked():
				return fmt.Errorf("NIC %d: route %s has bits beyond its length; write %s", n, r, r.Masked())
			case r.Bits() == 0:
				return fmt.Errorf("NIC %d: route %s is the whole Internet; route a prefix that is yours", n, r)
			case !nic.Via(r).IsValid():
				return fmt.Errorf("NIC %d: route %s has no address of its family to be routed through; add one to the NIC", n, r)
			}
		}
	}
	return nil
}

// ValidateName reports what keeps s from being the name of a VM.
func ValidateName(s string) error {
	if err := ValidateKnownName(s); err != nil {
		return err
	}
	if i := strings.IndexFunc(s, blank); i >= 0 {
		r, _ := utf8.DecodeRuneInString(s[i:])
		return fmt.Errorf("VM name %+q has %U, which cannot be seen, looks like a space or turns text around; rename the VM", s, r)
	}
	if strings.Trim(s, " ") != s {
		return fmt.Errorf("VM name %q begins or ends with a space, which cannot be seen; rename the VM", s)
	}
	return nil
}

// blank holds for characters that show nothing of themselves or look like a
// space, so that two names look alike, and for those that change the order of
// what is shown around them (UAX #9): Unicode's separators but for the space that
// everybody types, format characters, fillers and variation selectors.
func blank(r rune) bool {
	switch r {
	case ' ':
		return false
	case '\u2800', '\U00016fe4', '\U0001d159': // Braille without dots, a Khitan filler, a null notehead: symbols and marks that are empty
		return true
	}
	return unicode.In(r, unicode.Z, unicode.Cf, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// ValidateKnownName is [ValidateName] for a guest that there is already: it is
// adopted, and can be removed, also under a name that no new guest may have.
func ValidateKnownName(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("the VM has no name")
	case len(s) > MaxNameBytes:
		return fmt.Errorf("VM name of %d bytes; at most %d", len(s), MaxNameBytes)
	case !utf8.ValidString(s):
		return fmt.Errorf("VM name %q is not UTF-8", s)
	case s == "." || s == ".." || strings.ContainsRune(s, '/'):
		return fmt.Errorf("VM name %q: '/', '.' and '..' cannot be names; rename the VM", s)
	case strings.ContainsFunc(s, unicode.IsControl):
		return fmt.Errorf("VM name %q has control characters; rename the VM", s)
	}
	return nil
}

// Prefixes lists what the NIC receives: its addresses as host prefixes, then
// its routed prefixes. These are announced while the guest is live.
func (n NIC) Prefixes() []netip.Prefix {
	ps := make([]netip.Prefix, 0, len(n.Addresses)+len(n.Routes))
	for _, a := range n.Addresses {
		ps = append(ps, HostPrefix(a))
	}
	return append(ps, n.Routes...)
}

// Via gives the NIC's first address of the family of p, through which p is
// routed, or the zero Addr.
func (n NIC) Via(p netip.Prefix) netip.Addr {
	for _, a := range n.Addresses {
		if a.Is4() == p.Addr().Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// Ports lists the guest's ports in a cluster.
func (v VM) Ports(c *Cluster) []Port {
	ports := make([]Port, len(v.NICs))
	for n, nic := range v.NICs {
		if nic.Kind == "" {
			nic.Kind = Tap
		}
		ports[n] = Port{Name: PortName(v.Name, n), Cluster: c.Name, VM: v.Name, Index: n, NIC: nic, Gateway: c.Gateway}
	}
	return ports
}

// Prefixes lists what all NICs of the guest receive.
func (v VM) Prefixes() []netip.Prefix {
	var ps []netip.Prefix
	for _, n := range v.NICs {
		ps = append(ps, n.Prefixes()...)
	}
	return ps
}

// HostPrefix gives the /32 or /128 of an address.
func HostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
