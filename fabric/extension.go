package fabric

import (
	"context"
	"net/netip"
	"time"
)

// Resolver knows, from the operator's own inventory, which addresses a guest
// has whose hypervisor does not say ([VM.Resolve]). It is asked when such a
// guest is brought up that the agent does not know yet, and never about one
// that it knows. It may be called for different guests at the same time.
type Resolver interface {
	// Resolve answers what each NIC of the guest has, in their order; of a NIC
	// only Addresses and Routes count. An error refuses the guest, and says why
	// to whoever starts it. ctx ends after a few seconds.
	Resolve(ctx context.Context, q Query) ([]NIC, error)
}

// Query is what a [Resolver] is told of a guest.
type Query struct {
	VM   string `json:"vm"`
	UUID string `json:"uuid,omitempty"` // the hypervisor's
	MACs []MAC  `json:"macs"`           // of the NICs that are the fabric's, in their order; zero where it is not known
}

// Observer is told what happens on a node: for billing, inventory, DNS. Events
// come one at a time and in order. One that is slow or gone delays no guest:
// what it has not taken up in time is dropped, and the next event says how much
// was. After an error the event is not told again.
type Observer interface {
	Observe(ctx context.Context, e Event) error
}

// EventKind says what happened.
type EventKind string

// The kinds of event.
const (
	Attached       EventKind = "attach"   // a guest has its ports
	Detached       EventKind = "detach"   // its ports are gone
	Announced      EventKind = "announce" // prefixes are announced, or with another preference
	Withdrawn      EventKind = "withdraw" // they are not any more
	Moved          EventKind = "move"     // a guest that came by live migration has begun to run here
	SessionChanged EventKind = "session"  // a BGP session came up or went down
)

// Event is one thing that happened on a node.
type Event struct {
	At      time.Time `json:"at"`
	Kind    EventKind `json:"kind"`
	Cluster string    `json:"cluster"`
	Node    string    `json:"node"`

	// Of a guest: all but session.
	VM         string         `json:"vm,omitempty"`
	UUID       string         `json:"uuid,omitempty"`
	Ports      []string       `json:"ports,omitempty"`      // names of links, with attach, detach and move
	Prefixes   []netip.Prefix `json:"prefixes,omitempty"`   // those concerned
	Preference Preference     `json:"preference,omitempty"` // with announce

	Session *Session `json:"session,omitempty"` // with session

	Dropped int `json:"dropped,omitempty"` // events that this observer missed before this one
}
