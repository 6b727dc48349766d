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
//	                                     Divert to the destination, resend what
//	                                     the guest did not take any more
//	the guest runs: routes, announced as
//	Fresh; Arrived ────────────────────▶ diverts, if it did not know
//	                                     the hypervisor drops the guest:
//	◀───────────────────────── Released  withdrawn, port gone, diverted for a while
//	announced as Normal
//
// And whoever has a guest, after a migration or any other start, claims its
// prefixes (Claimed) of every node of the cluster: until all of them have let
// go, it is announced as Fresh, so that none takes an address back.

// Mover is the part of a [Dataplane] that helps guests move without loss. One that
// cannot gives errors of Record and Divert that are [errors.ErrUnsupported], has
// nothing to return, and hears nobody.
type Mover interface {
	// Record keeps the last frames that go into a port from now on, until
	// record is false or the port is removed. A port that is not there is an
	// error that is [os.ErrNotExist].
	Record(ctx context.Context, port string, record bool) error
	// Divert sends what comes for what is behind ports to another node, in
	// place of the ports, which may be removed meanwhile. Then it sends there
	// again what was recorded since just before the guest was last heard. Prefixes of a
	// family that the other node has no address of are an error, which keeps
	// the others from nothing. It is idempotent; what was sent again is not
	// sent once more.
	Divert(ctx context.Context, ports []Port, to Node) (Diversion, error)
	// Return ends the diversion of prefixes at once; absence is success.
	Return(ctx context.Context, prefixes ...netip.Prefix) error
	// Diverted lists the prefixes that are diverted, by this process or an
	// earlier one.
	Diverted(ctx context.Context) ([]netip.Prefix, error)
	// Heard tells the name of an [Port.Incoming] port, once, when the first
	// frame comes from its guest: it runs here. Of a port that is
	// [PortState.Silent] it tells when that ends because the guest was heard.
	Heard() <-chan string
}

// Diversion is what [Mover.Divert] did.
type Diversion struct {
	At     time.Time // when packets went to the other node
	Resent int       // frames
	Done   time.Time // when these had been sent
}

// Nodes are the agents of the other nodes of the cluster.
type Nodes interface {
	// Names lists them: those that the cluster names, and those that called.
	Names() []string
	// Ask tells the agent of a node something and gives its answer. It is an
	// error when that one does not answer in some seconds, as much as an agent
	// may need whose processors are taken, or before ctx ends.
	Ask(ctx context.Context, node string, n Notice) (Answer, error)
	// Serve answers what the others tell until ctx ends, then returns nil. It
	// calls answer for several nodes at the same time, and never with one that
	// is not of the cluster.
	Serve(ctx context.Context, answer func(ctx context.Context, from Node, n Notice) Answer) error
}

// NoticeKind says what a [Notice] is about.
type NoticeKind string

// The kinds of notice.
const (
	Arriving  NoticeKind = "arriving"  // the guest is about to arrive at the sender, which takes packets for it already
	Arrived   NoticeKind = "arrived"   // it runs there
	Cancelled NoticeKind = "cancelled" // it does not arrive after all
	Claimed   NoticeKind = "claimed"   // the sender has it: whoever has it from before lets go
	Released  NoticeKind = "released"  // the sender announces it no more
	Acquiring NoticeKind = "acquiring" // the sender is about to start it: who has an address of it, for another guest, says so
)

// Notice is what the agent of one node tells that of another about a guest.
type Notice struct {
	Kind     NoticeKind     `json:"kind"`
	VM       string         `json:"vm"`
	UUID     string         `json:"uuid,omitempty"`
	Prefixes []netip.Prefix `json:"prefixes"`
	// Epoch orders the claims of all nodes to one address: of two, the
	// higher is the later.
	Epoch uint64 `json:"generation,omitempty"`
	Move  *Move  `json:"move,omitempty"` // with Released: what the source saw
	// Identity is the guest's; empty where the sender's agent is an older one.
	// Two guests with one address are not ordered by epochs.
	Identity Identity `json:"identity,omitempty"`
	// Acquired is since when the guest has its addresses. Of two guests with one
	// address, the first keeps it.
	Acquired time.Time `json:"acquired,omitzero"`
}

// Answer is what is said to a [Notice].
type Answer struct {
	Held  bool   `json:"held"`                 // one of the prefixes is announced there, or about to be
	Epoch uint64 `json:"generation,omitempty"` // with which, or with which it last was

	// Which guest has it, and since when: told to those whose notice has an identity.
	VM       string       `json:"vm,omitempty"`
	Identity Identity     `json:"identity,omitempty"`
	Acquired time.Time    `json:"acquired,omitzero"`
	Prefix   netip.Prefix `json:"prefix,omitzero"` // to [Acquiring]: the first of the prefixes that is not free
}

// Move is the report of a guest's move, as one node saw it, or both. Times are
// zero for what did not happen, or has not yet.
type Move struct {
	VM       string         `json:"vm"`
	UUID     string         `json:"uuid,omitempty"`
	Prefixes []netip.Prefix `json:"prefixes"`
	From     string         `json:"from,omitempty"` // the nodes' names
	To       string         `json:"to,omitempty"`
	Outcome  string         `json:"outcome"` // under way, moved, or why not

	// At the destination.
	Expected  time.Time `json:"expected,omitzero"`    // its hook announced it
	PortReady time.Time `json:"port_ready,omitzero"`  // packets for it are taken, and wait
	Running   time.Time `json:"running,omitzero"`     // the guest runs here
	RunningBy string    `json:"running_by,omitempty"` // what told it: a source, by name, a frame of the guest's, or its carrier
	Announced time.Time `json:"announced,omitzero"`
	Normal    time.Time `json:"normal,omitzero"` // everybody let go, and the preference is the usual one

	// At the source.
	Learned   time.Time            `json:"learned,omitzero"` // where it goes
	Stopped   time.Time            `json:"stopped,omitzero"` // the guest stopped there
	Diverted  time.Time            `json:"diverted,omitzero"`
	Resent    int                  `json:"resent"`             // frames
	ResentAt  time.Time            `json:"resent_at,omitzero"` // when they had been sent
	Seen      map[string]time.Time `json:"seen,omitempty"`     // the destination's announcement, by reflector
	Withdrawn time.Time            `json:"withdrawn,omitzero"`
}

// Competitor is another node's better route to a prefix that this node announces,
// as a reflector tells it.
type Competitor struct {
	Prefix     netip.Prefix
	Via        netip.Addr // next hop: an address of the other node
	Preference Preference
	Reflector  string // by name
	Holder     Holder // the guest that it is for; zero: it does not say
	At         time.Time
	Gone       bool // it is not there any more, or not better than others
}
