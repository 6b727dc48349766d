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
	Trouble   string         `json:"trouble,omitempty"` // why the port is not as it is wanted
}

// SourceStatus is how a [Source] fares.
type SourceStatus struct {
	Name      string    `json:"name"`
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since,omitzero"`      // of the connection, or of its absence
	LastEvent time.Time `json:"last_event,omitzero"` // zero before the first
	Guests    int       `json:"guests"`              // of ours, seen running
}

// Status is the health of a node, or of an embedded reflector, which has no
// guests.
type Status struct {
	Cluster  string `json:"cluster"`
	Node     string `json:"node"`           // its name, or the reflector's
	Role     string `json:"role,omitempty"` // "reflector"; empty: a node
	Healthy  bool   `json:"healthy"`        // no problems
	Draining bool   `json:"draining,omitempty"`
	// DrainingSince is when the drain was asked for; zero: the node is not being drained.
	DrainingSince time.Time      `json:"draining_since,omitzero"`
	Since         time.Time      `json:"since"` // start of the agent
	Sessions      []Session      `json:"sessions"`
	Sources       []SourceStatus `json:"sources"`
	Ports         int            `json:"ports"`
	Live          int            `json:"live"`     // ports whose guest is announced
	Problems      []string       `json:"problems"` // one line each: the thing, the reason, the way out

	Diversions []DiversionStatus `json:"diversions,omitempty"` // under way, or ended in the last minutes
}

// DiversionStatus is the sending of a guest's packets on to another node, under
// way or ended a short while ago.
type DiversionStatus struct {
	VM       string         `json:"vm,omitempty"`   // empty: of an agent before this one
	Node     string         `json:"node,omitempty"` // where they go; likewise
	Prefixes []netip.Prefix `json:"prefixes"`
	Since    time.Time      `json:"since"`
	// Confirmed says that the hypervisor of this node stopped the guest, or ended
	// it. Without, it is the other node's word alone, and the diversion ends by itself.
	Confirmed bool      `json:"confirmed"`
	Ended     time.Time `json:"ended,omitzero"`    // zero: under way
	Outcome   string    `json:"outcome,omitempty"` // why it ended
}
