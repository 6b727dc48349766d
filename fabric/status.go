package fabric

import (
	"net/netip"
	"time"
)

// PortEntry is one port in the list that people and programs see.
type PortEntry struct {
	VM        string         `json:"vm"`
	Port      string         `json:"port"`
	Kind      Kind           `json:"kind"`
	State     State          `json:"state"` // Wired or Live, as it is, not as it is wanted
	Addresses []netip.Addr   `json:"addresses"`
	Routes    []netip.Prefix `json:"routes"`
	Since     time.Time      `json:"since"`
	Origin    string         `json:"origin,omitempty"`
	Trouble   string         `json:"trouble,omitempty"`  // why the port is not as it is wanted
	Node      string         `json:"node,omitempty"`     // where it is; empty: on the node that lists it
	Contacts  []Contact      `json:"contacts,omitempty"` // the guest's last requests for its configuration; empty: it never asked
	// Isolated, Firewall and Drops, the packets that this node dropped, are not known of
	// other nodes' ports.
	Isolated bool      `json:"isolated,omitempty"`
	Firewall *Firewall `json:"firewall,omitempty"`
	Drops    []Drops   `json:"drops,omitempty"`
}

// GuestEntry is a guest of a node, as the node's agent lists it.
type GuestEntry struct {
	VM     VM        `json:"vm"`
	States []State   `json:"states"` // of the ports: Wired or Live, as they are, not as they are wanted
	Since  time.Time `json:"since"`
	// Contacts has the last requests for its configuration of the guest, by port; the
	// outer list is empty if it never asked.
	Contacts [][]Contact `json:"contacts,omitempty"`
	Trouble  string      `json:"trouble,omitempty"` // why the guest is not as it is wanted
	// Orphan: the agent lost what it knew of the guest. What it has is read from its
	// ports, and its identity is not known.
	Orphan bool `json:"orphan,omitempty"`
}

// Ports lists the guest's ports.
func (g GuestEntry) Ports(c *Cluster) []PortEntry {
	entries := make([]PortEntry, len(g.States))
	for i, p := range g.VM.Ports(c) {
		entries[i] = PortEntry{
			VM: g.VM.Name, Port: p.Name, Kind: p.NIC.Kind, State: g.States[i], Addresses: p.NIC.Addresses, Routes: p.NIC.Routes,
			Since: g.Since, Origin: g.VM.Origin, Trouble: g.Trouble, Isolated: p.Isolated, Firewall: p.Firewall,
		}
		if i < len(g.Contacts) {
			entries[i].Contacts = g.Contacts[i]
		}
		if entries[i].Routes == nil {
			entries[i].Routes = []netip.Prefix{}
		}
	}
	return entries
}

// PortPage is a part of the list of a node's ports, in the order of VM name and index.
type PortPage struct {
	Ports []PortEntry `json:"ports"`
	Next  string      `json:"next,omitempty"` // the guest after which the next part begins; empty: there is none
}

// SourceStatus is the state of a [Source].
type SourceStatus struct {
	Name      string    `json:"name"`
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since,omitzero"`      // since when it is connected, or not connected
	LastEvent time.Time `json:"last_event,omitzero"` // zero before the first event
	Guests    int       `json:"guests"`              // guests of the fabric that it sees running
}

// Status is the health of a node, or of an embedded reflector, which has no
// guests.
type Status struct {
	Cluster  string `json:"cluster"`
	Node     string `json:"node"`           // its name, or the reflector's
	Role     string `json:"role,omitempty"` // "reflector"; empty: a node
	Healthy  bool   `json:"healthy"`        // no problems
	Draining bool   `json:"draining,omitempty"`
	// DrainingSince is the time of the first drain request; zero: the node is not
	// being drained.
	DrainingSince time.Time      `json:"draining_since,omitzero"`
	Since         time.Time      `json:"since"` // start of the agent
	Sessions      []Session      `json:"sessions"`
	Sources       []SourceStatus `json:"sources"`
	Ports         int            `json:"ports"`
	Live          int            `json:"live"`     // ports whose guest is announced
	Problems      []string       `json:"problems"` // one line each: the thing, the reason, the way out
	// Pending lists, one line each, what the configuration says that the agent does not go
	// by: it waits for a restart or a reload, or has a mistake. It is no problem of the node.
	Pending []string `json:"pending,omitempty"`
	// Notes lists, one line each, what does not work on this node and no guest of it needs.
	// It is no problem of the node.
	Notes []string `json:"notes,omitempty"`
	// Registry is the node's registry of addresses; nil: it has none.
	Registry *RegistryStatus `json:"registry,omitempty"`

	Diversions []DiversionStatus `json:"diversions,omitempty"` // under way, or ended in the last minutes
}

// RegistryStatus is the health of a node's [Registry].
type RegistryStatus struct {
	Kind     string   `json:"kind"`     // see [RegistryConfig.Kind]
	Shared   bool     `json:"shared"`   // all nodes of the cluster have it
	Healthy  bool     `json:"healthy"`  // no problems
	Problems []string `json:"problems"` // of the registry itself; the status has them, too
}

// DiversionStatus describes the forwarding of a guest's packets to another node,
// under way or ended a short while ago.
type DiversionStatus struct {
	VM       string         `json:"vm,omitempty"`   // empty: an earlier agent began the diversion
	Node     string         `json:"node,omitempty"` // where the packets go; empty likewise
	Prefixes []netip.Prefix `json:"prefixes"`
	Since    time.Time      `json:"since"`
	// Confirmed: the hypervisor of this node stopped or ended the guest. Otherwise
	// only the other node says that the guest runs there, and the diversion ends
	// after some seconds.
	Confirmed bool      `json:"confirmed"`
	Ended     time.Time `json:"ended,omitzero"`    // zero: under way
	Outcome   string    `json:"outcome,omitempty"` // why it ended
}
