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

// Limits of one guest. They are far above the number of devices that a
// hypervisor's machine types take, and they bound the work of one request.
const (
	MaxNICs      = 64       // NICs of a guest
	MaxAddresses = 256      // addresses of a NIC; the same limit holds for its routed prefixes
	MaxUserData  = 64 << 10 // bytes of [Source.UserData], which no clouds exceed
	MaxNameBytes = 180      // so that the mark of a port fits a link alias (IFALIASZ, 256)
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
	Adopt Kind = "adopt" // another program makes and removes the link; the fabric takes it over once it exists
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
	UUID   string `json:"uuid,omitempty"`   // as the hypervisor has it: see [VM.Identity]
	Origin string `json:"origin,omitempty"` // the [Source] that knows the guest, such as "libvirt"; empty when attached by hand
	NICs   []NIC  `json:"nics"`             // the n-th is port <name>_net<n>
	// Resolve: the hypervisor does not know the addresses of the NICs, so the
	// agent asks a [Resolver]. It stays true after the resolver has answered.
	Resolve bool `json:"resolve,omitempty"`
	// NoDHCP and NoRA: the node answers no DHCP requests of the guest, and sends it no
	// router advertisements ([Guests] says so for all).
	NoDHCP bool `json:"no_dhcp,omitempty"`
	NoRA   bool `json:"no_ra,omitempty"`
	// NoMetadata: the node serves the guest no metadata, also if [Guests.Metadata] is set.
	NoMetadata bool `json:"no_metadata,omitempty"`
	// Isolated: no packets pass between the guest and other guests of the cluster
	// ([Guests] says so for all).
	Isolated bool `json:"isolated,omitempty"`
	// Firewall is the guest's own; nil: none. Nobody changes what it points to.
	Firewall *Firewall `json:"firewall,omitempty"`
	// Container: the guest shares the node's kernel. Its links have no permanent
	// MAC address, by which some programs find links.
	Container bool `json:"container,omitempty"`
}

// NIC is one network interface of a guest, with its addresses and routed prefixes.
type NIC struct {
	Addresses []netip.Addr   `json:"addresses"`
	Routes    []netip.Prefix `json:"routes,omitempty"` // prefixes behind the guest, reached through its first address of that family
	// Pools are those of which the NIC gets an address or a prefix each, from the
	// [Registry]; also [AutoPool].
	Pools []string `json:"pools,omitempty"`
	// Dynamic and DynamicRoutes are how many Addresses and Routes, the last ones, the
	// registry gave the NIC. A prefix is in Routes, and the guest's address in it, if it
	// has one ([Allocation.Address]), in Addresses.
	Dynamic       int    `json:"dynamic,omitempty"`
	DynamicRoutes int    `json:"dynamic_routes,omitempty"`
	Kind          Kind   `json:"kind,omitempty"`   // empty: Tap
	MAC           MAC    `json:"mac,omitzero"`     // of the guest's end; zero: not known
	Queues        int    `json:"queues,omitempty"` // of a multi-queue tap; 0 and 1: one queue
	MTU           int    `json:"mtu,omitempty"`    // bytes; 0: the kernel's default
	Link          string `json:"link,omitempty"`   // its name in the guest; empty: not known
}

// Desired is the wanted state of a guest on this node. A [Store] keeps it, a
// [Source] reports it.
type Desired struct {
	VM       VM    `json:"vm"`
	State    State `json:"state"`
	Incoming bool  `json:"incoming,omitempty"` // a migration to this node is under way: not live before its cutover
	// Leaving: the hypervisor stopped the guest for a migration to another node,
	// where it is about to run. State keeps its value from before the stop.
	Leaving bool `json:"leaving,omitempty"`
	// Epoch orders the claims of several nodes to the guest: see [Notice].
	Epoch uint64 `json:"generation,omitempty"`
	// Unreleased lists the nodes that have not confirmed yet that they do not
	// announce the guest.
	Unreleased []string `json:"unreleased,omitempty"`
	// Lost is the node that has the guest by a later start, or that has another
	// guest with an address of it. This node does not announce the guest then, or
	// announces it as Standby. Empty: no node preempted this one.
	Lost string `json:"lost,omitempty"`
	// LostGuest is the name of the other guest that has the address on node Lost.
	// Empty: it is the same guest, or the name is not known.
	LostGuest string `json:"lost_guest,omitempty"`
	// LostOther: another guest has the address, and its name is not known.
	LostOther bool `json:"lost_other,omitempty"`
	// LostRoute is the reflector whose route shows that node Lost has the guest;
	// empty when the agent of that node said so itself.
	LostRoute string `json:"lost_route,omitempty"`
	// Standby: this node announces the guest again, with preference [Standby],
	// because nobody can ask the agent of node Lost.
	Standby bool `json:"standby,omitempty"`
	// Acquired is the time since which the guest has had its addresses without a
	// break, on any node: see [Notice].
	Acquired time.Time `json:"acquired,omitzero"`
	// Run identifies this run of the guest, if its hypervisor distinguishes runs
	// and does not change a guest during one. Until the next run the guest keeps
	// what it started with, whatever its description says now. Empty: the run is
	// not known; from a [Source] it means that a changed description applies at
	// once.
	Run   string    `json:"run,omitempty"`
	Since time.Time `json:"since"`          // when State last changed
	Boot  string    `json:"boot,omitempty"` // the machine's boot ID when the guest was wanted
}

// Route is a prefix that this node announces, with itself as next hop.
type Route struct {
	Prefix     netip.Prefix
	Preference Preference
	// Holder is the guest that the route is for. The agent sets it on fresh routes
	// while another node's agent does not answer. A speaker that cannot announce it
	// leaves it out, and [Announcer.Actual] then gives the zero value.
	Holder Holder
	// First ranks the route before others of its preference: its guest has had the
	// address longer than the guest of a competing route. A speaker that cannot
	// announce a holder reports no competing routes, so it never sees First.
	First bool
}

// Preference ranks the announcements of one prefix by several nodes, as they
// occur while a guest moves. Its value is that of LOCAL_PREF (RFC 4271, 5.1.5),
// except for the zero value. The node where the guest runs ranks first: a node
// that only expects the guest ranks even behind a node that is being drained.
type Preference uint32

// The preferences.
const (
	Normal   Preference = 0  // LOCAL_PREF 100, its default
	Standby  Preference = 10 // counts only if no other node announces the prefix: the guest is about to run here
	Draining Preference = 50 // the guest runs here, and the node is being drained (RFC 8326): another node where it runs comes first
	// Blackholed: the guest runs here, and packets to it are to be discarded on their way
	// (RFC 7999); see [Blackhole].
	Blackholed Preference = 90
	Fresh      Preference = 200 // the guest has just begun to run here: another node's announcement is out of date
)

// Preferences lists all preferences, the lowest LOCAL_PREF first.
func Preferences() []Preference { return []Preference{Standby, Draining, Blackholed, Normal, Fresh} }

// LocalPref gives the value of the attribute LOCAL_PREF.
func (p Preference) LocalPref() uint32 {
	if p == Normal {
		return 100
	}
	return uint32(p)
}

// Communities lists the communities of an announcement beside those of the
// cluster: [GracefulShutdown] while its node is being drained, [BlackholeCommunity]
// while it is to be discarded.
func (p Preference) Communities() []Community {
	switch p {
	case Draining:
		return []Community{GracefulShutdown}
	case Blackholed:
		return []Community{BlackholeCommunity}
	}
	return nil
}

// String gives "normal", "draining", "blackholed", "standby" or "fresh", or else the
// number.
func (p Preference) String() string {
	switch p {
	case Normal:
		return "normal"
	case Draining:
		return "draining"
	case Blackholed:
		return "blackholed"
	case Standby:
		return "standby"
	case Fresh:
		return "fresh"
	}
	return fmt.Sprintf("Preference(%d)", uint32(p))
}

// Unresolved reports whether a [Resolver] or a [Registry] still has to supply
// addresses of the guest.
func (v VM) Unresolved() bool {
	return v.Resolve && !slices.ContainsFunc(v.NICs, func(n NIC) bool { return len(n.Addresses)+len(n.Routes) > 0 }) ||
		slices.ContainsFunc(v.NICs, NIC.Unallocated)
}

// Unallocated reports whether the NIC asks for addresses of pools and has none of them
// yet.
func (n NIC) Unallocated() bool { return len(n.Pools) > 0 && n.Dynamic+n.DynamicRoutes == 0 }

// Static gives the NIC with the addresses and routes of the guest's description: without
// those that the registry gave it.
func (n NIC) Static() NIC {
	n.Addresses = slices.Clone(n.Addresses[:len(n.Addresses)-n.Dynamic])
	n.Routes = slices.Clone(n.Routes[:len(n.Routes)-n.DynamicRoutes])
	n.Dynamic, n.DynamicRoutes = 0, 0
	return n
}

// Allocated lists what the registry gave the NIC, in the order of the addresses: those,
// or the prefixes that they are in.
func (n NIC) Allocated() (ps []netip.Prefix) {
	routes := n.Routes[len(n.Routes)-n.DynamicRoutes:]
	for _, a := range n.Addresses[len(n.Addresses)-n.Dynamic:] {
		p := HostPrefix(a)
		if i := slices.IndexFunc(routes, func(r netip.Prefix) bool { return r.Contains(a) }); i >= 0 {
			p = routes[i]
		}
		if !slices.Contains(ps, p) {
			ps = append(ps, p)
		}
	}
	for _, r := range routes { // the description may name the address, or there is none
		if !slices.Contains(ps, r) {
			ps = append(ps, r)
		}
	}
	return ps
}

// Bare reports whether a prefix that the registry gave the NIC has no address of the NIC
// in its place: it is routed through another one.
func (n NIC) Bare(p netip.Prefix) bool {
	return !slices.Contains(n.Addresses, Allocation{Prefix: p}.Address())
}

// WithAllocated gives the NIC what the registry has for it, beside what it has already.
func (n NIC) WithAllocated(a Allocation) NIC {
	if at := a.Address(); at.IsValid() && !slices.Contains(n.Addresses, at) {
		n.Addresses, n.Dynamic = append(slices.Clone(n.Addresses), at), n.Dynamic+1
	}
	if !a.Prefix.IsSingleIP() {
		n.Routes, n.DynamicRoutes = append(slices.Clone(n.Routes), a.Prefix), n.DynamicRoutes+1
	}
	return n
}

// Validate reports the first fault in the guest's name and NICs, without the
// rules of a cluster ([Cluster.Permits]); nil: they are well formed. A NIC may
// lack addresses while the guest is [VM.Unresolved].
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
		if nic.Dynamic < 0 || nic.Dynamic > len(nic.Addresses) || nic.DynamicRoutes < 0 || nic.DynamicRoutes > len(nic.Routes) {
			return fmt.Errorf("NIC %d: %d of %d addresses and %d of %d routes are said to come from pools", n, nic.Dynamic, len(nic.Addresses), nic.DynamicRoutes, len(nic.Routes))
		}
		if len(nic.Pools) > MaxAddresses {
			return fmt.Errorf("NIC %d: more than %d pools", n, MaxAddresses)
		}
		for _, pool := range nic.Pools {
			if err := ValidatePool(pool); err != nil {
				return fmt.Errorf("NIC %d: %w", n, err)
			}
		}
		if len(nic.Addresses) == 0 && !unresolved {
			return fmt.Errorf("NIC %d: no address; give it at least one from the pools", n)
		}
		switch nic.Kind {
		case "", Tap, Veth, Adopt:
		default:
			return fmt.Errorf("NIC %d: kind %q is not one of tap, veth, adopt", n, nic.Kind)
		}
		if nic.MTU != 0 && !ValidMTU(nic.MTU) {
			return fmt.Errorf("NIC %d: MTU %d is out of range; IPv6 needs %d, a tap takes at most %d", n, nic.MTU, MinMTU, MaxMTU)
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
			case !nic.Via(r).IsValid() && !nic.Unallocated():
				return fmt.Errorf("NIC %d: route %s has no address of its family to be routed through; add one to the NIC", n, r)
			}
		}
	}
	return v.Firewall.Validate()
}

// ValidateName reports why s cannot be the name of a new VM; nil: it can.
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

// blank reports characters that are invisible or look like a space, so that two
// names would look alike, and characters that reorder the text around them
// (UAX #9): Unicode's separators except the plain space, format characters,
// fillers and variation selectors.
func blank(r rune) bool {
	switch r {
	case ' ':
		return false
	case '\u2800', '\U00016fe4', '\U0001d159': // Braille without dots, a Khitan filler, a null notehead: empty symbols and marks
		return true
	}
	return unicode.In(r, unicode.Z, unicode.Cf, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// ValidateKnownName is [ValidateName] for a guest that exists already. The agent
// adopts and removes such a guest even under a name that no new guest may have.
func ValidateKnownName(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("the VM has no name")
	case len(s) > MaxNameBytes:
		return fmt.Errorf("VM name of %d bytes; at most %d", len(s), MaxNameBytes)
	case !utf8.ValidString(s):
		return fmt.Errorf("VM name %q is not UTF-8", s)
	case s == "." || s == ".." || strings.ContainsRune(s, '/'):
		return fmt.Errorf("VM name %q: a name has no '/', and is not '.' or '..'; rename the VM", s)
	case strings.ContainsFunc(s, unicode.IsControl):
		return fmt.Errorf("VM name %q has control characters; rename the VM", s)
	}
	return nil
}

// Prefixes lists what the NIC receives: its addresses as host prefixes, then
// its routed prefixes. The node announces them while the guest is live.
func (n NIC) Prefixes() []netip.Prefix {
	ps := make([]netip.Prefix, 0, len(n.Addresses)+len(n.Routes))
	for _, a := range n.Addresses {
		ps = append(ps, HostPrefix(a))
	}
	return append(ps, n.Routes...)
}

// Via gives the NIC's first address of the family of p, or the zero Addr. The
// node routes p through that address.
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
		ports[n] = Port{Name: PortName(v.Name, n), Cluster: c.Name, VM: v.Name, Index: n, NIC: nic, Gateway: c.Gateway, NoDHCP: v.NoDHCP, NoRA: v.NoRA, NoMetadata: v.NoMetadata, Isolated: v.Isolated, Firewall: v.Firewall}
	}
	return ports
}

// SharesMAC reports whether another NIC of the guest has the MAC address of the n-th, which
// then selects neither link.
func (v VM) SharesMAC(n int) bool {
	for i, other := range v.NICs {
		if i != n && other.MAC == v.NICs[n].MAC && !other.MAC.IsZero() {
			return true
		}
	}
	return false
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
