package fabric

import (
	"context"
	"net/netip"
	"time"
)

// Resolver knows, from the operator's own inventory, the addresses of guests whose
// hypervisor does not ([VM.Resolve]). The agent asks when it brings up such a
// guest for the first time, and never about a guest that it has already. It may
// ask about different guests at the same time.
type Resolver interface {
	// Resolve returns the Addresses and Routes of each NIC of the guest, in the
	// order of the query; the agent ignores other fields. An error refuses the
	// guest; the person or program that starts it gets the text. ctx ends after a
	// few seconds.
	Resolve(ctx context.Context, q Query) ([]NIC, error)
}

// Query is the question about one guest to a [Resolver].
type Query struct {
	VM   string `json:"vm"`
	UUID string `json:"uuid,omitempty"` // as the hypervisor has it
	MACs []MAC  `json:"macs"`           // one for each NIC of the fabric, in their order; zero: not known
}

// Observer receives the events of a node: for billing, inventory, DNS. Events come
// one at a time and in order. A slow or absent observer delays no guest: the agent
// drops events that the observer does not take in time, and the next event says
// how many. The agent does not repeat an event after an error.
type Observer interface {
	Observe(ctx context.Context, e Event) error
}

// EventKind says what happened.
type EventKind string

// The kinds of event.
const (
	Attached       EventKind = "attach"   // a guest has its ports
	Detached       EventKind = "detach"   // a guest's ports are gone
	Announced      EventKind = "announce" // prefixes are announced, or their preference has changed
	Withdrawn      EventKind = "withdraw" // prefixes are not announced any more
	Moved          EventKind = "move"     // a guest that came by live migration has begun to run here
	SessionChanged EventKind = "session"  // a BGP session came up or went down
)

// Event is one thing that happened on a node.
type Event struct {
	At      time.Time `json:"at"`
	Kind    EventKind `json:"kind"`
	Cluster string    `json:"cluster"`
	Node    string    `json:"node"`

	// Of the guest; empty with session.
	VM         string         `json:"vm,omitempty"`
	UUID       string         `json:"uuid,omitempty"`
	Ports      []string       `json:"ports,omitempty"`      // names of links, with attach, detach and move
	Prefixes   []netip.Prefix `json:"prefixes,omitempty"`   // the prefixes of the event
	Preference Preference     `json:"preference,omitempty"` // with announce

	Session *Session `json:"session,omitempty"` // with session

	Dropped int `json:"dropped,omitempty"` // events that this observer did not get before this one
}
