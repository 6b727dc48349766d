package fabric

import (
	"context"
	"net/netip"
	"time"
)

// A live migration, as the agents of both nodes see it:
//
//	destination                          source
//	prepare: port wired as Incoming
//	Arriving  ─────────────────────────▶ records what goes into the port
//	  (again and again, until it runs)
//	                                     the guest stops (Desired.Leaving):
//	                                     Divert to the destination, replay the
//	                                     frames that the guest did not take
//	the guest runs: routes, announced as
//	Fresh; Arrived ────────────────────▶ diverts, if it did not know
//	                                     the hypervisor drops the guest:
//	◀───────────────────────── Released  withdrawn, port gone, diverted for a while
//	announced as Normal
//
// After a migration, and after any other start, the node that has a guest sends
// Claimed, with the guest's prefixes, to every node of the cluster. It announces
// the guest as Fresh until all of them have released it, so that no late
// announcement of another node wins.

// Diversion is what [Dataplane.Divert] did.
type Diversion struct {
	At     time.Time // when packets began to go to the other node
	Resent int       // recorded frames that were sent again
	Done   time.Time // when the last of these had been sent
}

// Nodes are the agents of the other nodes of the cluster.
type Nodes interface {
	// Names lists the other nodes: those in the cluster file, and those that called.
	Names() []string
	// Ask sends a notice to the agent of a node and returns its answer. It returns
	// an error if no answer comes before ctx ends, or within some seconds, the time
	// that an agent may need on a busy machine. An error that is
	// [errors.ErrUnsupported] says that the agent is an older one, which does not know
	// the kind of notice.
	Ask(ctx context.Context, node string, n Notice) (Answer, error)
	// Serve answers the notices of the other nodes until ctx ends, then returns nil.
	// It calls answer for several nodes at the same time, and only for nodes of the
	// cluster.
	Serve(ctx context.Context, answer func(ctx context.Context, from Node, n Notice) Answer) error

	Diagnoser
}

// NoticeKind says what a [Notice] is about.
type NoticeKind string

// The kinds of notice.
const (
	Arriving  NoticeKind = "arriving"  // the guest is about to arrive at the sender, which takes packets for it already
	Arrived   NoticeKind = "arrived"   // the guest runs at the sender
	Cancelled NoticeKind = "cancelled" // the guest does not arrive at the sender after all
	Claimed   NoticeKind = "claimed"   // the sender has the guest: a node that had it before withdraws it
	Released  NoticeKind = "released"  // the sender does not announce the guest any more
	Acquiring NoticeKind = "acquiring" // the sender is about to start the guest: does another guest have an address of it?
	// Describing: the sender is about to start the guest, which does not say what it
	// has. Which addresses has it? Nodes whose registries are their own ask that.
	Describing NoticeKind = "describing"
	Forgotten  NoticeKind = "forgotten" // the guest is gone for good, after it was at the sender: its addresses can be given back
	// Listing: which guests has the node? The answer has those whose names come after
	// that of the notice, which may be empty, as many as fit a message.
	Listing    NoticeKind = "listing"
	Explaining NoticeKind = "explaining" // what does the node know of an address, the only prefix of the notice?
	Comparing  NoticeKind = "comparing"  // the sender has the registry of the notice; which one has the node?
)

// Notice is a message about a guest from the agent of one node to that of another.
type Notice struct {
	Kind     NoticeKind     `json:"kind"`
	VM       string         `json:"vm"`
	UUID     string         `json:"uuid,omitempty"`
	Prefixes []netip.Prefix `json:"prefixes"`
	// Epoch orders the claims of all nodes to one guest: the node with the higher
	// epoch began to run it later.
	Epoch uint64 `json:"generation,omitempty"`
	Move  *Move  `json:"move,omitempty"` // with Released: the report of the source
	// Identity is that of the guest; empty: the sender's agent is an older version.
	// Epochs do not order two different guests with one address.
	Identity Identity `json:"identity,omitempty"`
	// Acquired is the time since which the guest has had its addresses. Of two
	// guests with one address, the one that had it first keeps it.
	Acquired time.Time         `json:"acquired,omitzero"`
	Registry *RegistryIdentity `json:"registry,omitempty"` // with Comparing
}

// Answer is the reply to a [Notice].
type Answer struct {
	Held  bool   `json:"held"`                 // the answering node announces one of the prefixes, or is about to
	Epoch uint64 `json:"generation,omitempty"` // the epoch of the guest there, now or when it was last announced

	// The guest that has the prefix, and since when; only if the notice has an
	// identity.
	VM       string       `json:"vm,omitempty"`
	Identity Identity     `json:"identity,omitempty"`
	Acquired time.Time    `json:"acquired,omitzero"`
	Prefix   netip.Prefix `json:"prefix,omitzero"` // to [Acquiring]: the first of the prefixes that is not free
	// NICs, to [Describing], have the addresses of the guest; Held is set with them.
	NICs []NIC `json:"nics,omitempty"`
	// Guests answers [Listing], in the order of their names; More: there are others
	// after the last one.
	Guests []GuestEntry `json:"guests,omitempty"`
	More   bool         `json:"more,omitempty"`
	// Finding answers [Explaining].
	Finding *Finding `json:"finding,omitempty"`
	// Registry answers [Comparing]; nil: the node has none.
	Registry *RegistryIdentity `json:"registry,omitempty"`
}

// Move is the report of a guest's move, as one node saw it, or both. A time is
// zero if the event did not happen, or has not happened yet.
type Move struct {
	VM       string         `json:"vm"`
	UUID     string         `json:"uuid,omitempty"`
	Prefixes []netip.Prefix `json:"prefixes"`
	From     string         `json:"from,omitempty"` // name of the source node
	To       string         `json:"to,omitempty"`   // name of the destination node
	Outcome  string         `json:"outcome"`        // "under way", "moved", or why it did not move

	// At the destination.
	Expected  time.Time `json:"expected,omitzero"`    // the hypervisor's hook announced the migration
	PortReady time.Time `json:"port_ready,omitzero"`  // the ports take packets for the guest and hold them
	Running   time.Time `json:"running,omitzero"`     // the guest runs here
	RunningBy string    `json:"running_by,omitempty"` // how the agent knows: the name of a source, "frame" or "carrier"
	Announced time.Time `json:"announced,omitzero"`   // the speaker took the routes
	Normal    time.Time `json:"normal,omitzero"`      // the routes are not Fresh any more: no other node announces the guest

	// At the source.
	Learned   time.Time            `json:"learned,omitzero"`   // the agent knew the destination
	Stopped   time.Time            `json:"stopped,omitzero"`   // the hypervisor stopped the guest
	Diverted  time.Time            `json:"diverted,omitzero"`  // packets began to go to the destination
	Resent    int                  `json:"resent"`             // recorded frames that were sent again
	ResentAt  time.Time            `json:"resent_at,omitzero"` // when the last of these had been sent
	Seen      map[string]time.Time `json:"seen,omitempty"`     // when reflectors had the destination's route, by their names
	Withdrawn time.Time            `json:"withdrawn,omitzero"` // the source withdrew its routes
}

// Competitor is another node's better route to a prefix that this node announces,
// as a reflector sends it.
type Competitor struct {
	Prefix     netip.Prefix
	Via        netip.Addr // next hop: an address of the other node
	Preference Preference
	Reflector  string // its name
	Holder     Holder // the guest of the route; zero: the route has no holder
	At         time.Time
	Gone       bool // the route is gone, or not better any more
}
