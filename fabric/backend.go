package fabric

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// Dataplane is the node's kernel, or another forwarder of packets.
//
// Put is idempotent, repairs what differs and serves single and full passes
// alike; it refuses ([ErrForeign]) a link of the port's name that is not ours.
// For a port of kind [Adopt] whose link does not exist yet it returns an error
// that is [os.ErrNotExist]; Changed fires when the link appears. Removing an
// absent port succeeds. A guest that asks for its configuration ([ContactProtocol]) is
// told what its port was put with; a port that was not put since the dataplane started is
// told nothing. Remove takes the mark off an adopted link and leaves the
// link to its owner. Actual lists only ports of ours. All methods are safe for
// concurrent use, for different ports at the same time.
type Dataplane interface {
	Actual(ctx context.Context) ([]PortState, error)
	Put(ctx context.Context, p Port) error
	Remove(ctx context.Context, names ...string) error
	Changed() <-chan struct{} // something is not as it was put; coalesced, carries nothing

	// NextHop says why the node has no address of a family to announce as next
	// hop, and the way out; nil: it has one, or that is not known. Changed fires
	// when such an address comes or goes.
	NextHop(v6 bool) error
	// CheckForwarding tests, without a guest, whether packets of guests pass the
	// node between the underlay and a port. It lists what blocks them; empty: all
	// pass. An error says that the test could not run; one that is
	// [errors.ErrUnsupported] says that it never can.
	CheckForwarding(ctx context.Context) ([]ForwardingFault, error)
	// Drops counts the packets from ports and to them that the node dropped, by the
	// port's name, in the order of [DropReasons] and without those of which there were
	// none. An error that is [errors.ErrUnsupported] says that it counts nothing.
	Drops(ctx context.Context) (map[string][]Drops, error)
	// Discard drops packets that the node would forward to these prefixes, until the
	// time of each, also while no agent runs; and to no others.
	Discard(ctx context.Context, all []Blackhole) error

	// The rest helps guests move without loss. If a dataplane cannot do that, Record and
	// Divert return an error that is [errors.ErrUnsupported], Diverted lists nothing, and
	// Heard reports nothing.

	// Record keeps the last frames that go into a port from now on, until record
	// is false or the port is removed. For a port that does not exist it returns an
	// error that is [os.ErrNotExist].
	Record(ctx context.Context, port string, record bool) error
	// Divert forwards the packets for the guest behind ports to another node instead
	// of into the ports, which may be removed meanwhile. Then it sends the recorded
	// frames there again, from just before the guest was last heard. If the other
	// node has no address of a family, Divert returns an error for the prefixes of
	// that family and still diverts the others. It is idempotent, and sends no
	// recorded frame again twice.
	Divert(ctx context.Context, ports []Port, to Node) (Diversion, error)
	// Return ends the diversion of prefixes at once; absence is success.
	Return(ctx context.Context, prefixes ...netip.Prefix) error
	// Diverted lists the prefixes that this process, or an earlier one, diverts.
	Diverted(ctx context.Context) ([]netip.Prefix, error)
	// Heard sends the name of a [Port.Incoming] port, once, when the first frame
	// comes from its guest: the guest runs here. It also sends the name of a port
	// that stops being [PortState.Silent] because its guest was heard.
	Heard() <-chan string

	Diagnoser
}

// Announcer takes the routes that this node announces. Put and Remove return when
// the announcer has taken over the change. Sessions may be down: it announces the
// routes when they come up. As with [Dataplane], Put is idempotent, removing an
// absent route succeeds, Actual lists only routes of ours, and all methods are safe
// for concurrent use.
type Announcer interface {
	Actual(ctx context.Context) ([]Route, error)
	Put(ctx context.Context, routes ...Route) error
	Remove(ctx context.Context, prefixes ...netip.Prefix) error
	Changed() <-chan struct{} // a session or a route is not as it was; coalesced, carries nothing
}

// Speaker announces routes and reports on them. A method whose answer the speaker
// cannot know returns an error that is [errors.ErrUnsupported].
type Speaker interface {
	Announcer
	// Sessions lists the sessions with the reflectors.
	Sessions(ctx context.Context) ([]Session, error)
	// Advertisements reports, peer by peer, whether a prefix was sent.
	Advertisements(ctx context.Context, prefix netip.Prefix) ([]Advertisement, error)
	// Received lists the routes of other nodes to these prefixes, and to none in or
	// around them, that reflectors have sent, whether or not the speaker uses them. A
	// reflector sends a node only what its configuration lets it.
	Received(ctx context.Context, prefixes ...netip.Prefix) ([]ReceivedRoute, error)
	// Competitors reports, for each reflector, that another node announces a prefix
	// of this node as [Fresh], and reports it again when that route comes back. It
	// also reports when a reported route is gone, even if this node does not
	// announce the prefix any more. The channel is nil if the speaker does not
	// learn of such routes.
	Competitors() <-chan Competitor

	Diagnoser
}

// NewSpeaker makes a [Speaker] of an [Announcer]. The speaker reports nothing about
// sessions and routes, and no problems.
func NewSpeaker(a Announcer) Speaker { return silentSpeaker{a} }

type silentSpeaker struct{ Announcer }

func (silentSpeaker) Sessions(context.Context) ([]Session, error) {
	return nil, errors.ErrUnsupported
}

func (silentSpeaker) Advertisements(context.Context, netip.Prefix) ([]Advertisement, error) {
	return nil, errors.ErrUnsupported
}

func (silentSpeaker) Received(context.Context, ...netip.Prefix) ([]ReceivedRoute, error) {
	return nil, errors.ErrUnsupported
}

func (silentSpeaker) Competitors() <-chan Competitor { return nil }

func (silentSpeaker) Diagnose(context.Context) []string { return nil }

// Store keeps the wanted state over restarts.
//
// All returns every guest that it can read. If it cannot read something, the
// error says what, and the readable guests come with it. After an error the
// caller must not remove a guest because the store did not list it.
type Store interface {
	All(ctx context.Context) ([]Desired, error)
	// Fresh reports that this store has no earlier state: nobody stored any, or it
	// is lost. Then it does not follow from an empty All that no guest is wanted, so
	// the agent removes no port that it finds. Fresh is false for a store whose
	// guests were all deleted.
	Fresh() bool
	Put(ctx context.Context, d Desired) error
	Delete(ctx context.Context, vm string) error

	// Drained returns since when the node is being drained; zero: it is not.
	Drained(ctx context.Context) (since time.Time, err error)
	// SetDrained keeps since when the node is being drained; zero: it is not.
	SetDrained(ctx context.Context, since time.Time) error

	// KeptMoves returns the reports of the last KeepMoves; none before the first.
	KeptMoves(ctx context.Context) ([]Move, error)
	KeepMoves(ctx context.Context, moves []Move) error

	// KeptGone returns the guests of the last KeepGone; none before the first. They are
	// gone for good, and their addresses are to be given back.
	KeptGone(ctx context.Context) ([]VM, error)
	KeepGone(ctx context.Context, guests []VM) error

	// KeptBlackholes returns those of the last KeepBlackholes; none before the first.
	KeptBlackholes(ctx context.Context) ([]Blackhole, error)
	KeepBlackholes(ctx context.Context, all []Blackhole) error

	Diagnoser
}

// Source is a hypervisor that knows which guests run.
type Source interface {
	Name() string // the [VM.Origin] of its guests
	// Guests lists all guests of ours that run here now, and none that are absent.
	// A guest that runs but cannot be described has the zero State, so that the
	// agent does not take it for gone. The list also has, with the zero State, every
	// running guest that nothing marks as ours: its description may have been
	// removed. Guests returns an error in bounded time if the hypervisor does not
	// answer; an error that is [os.ErrNotExist] says that this machine has no such
	// hypervisor.
	Guests(ctx context.Context) ([]Desired, error)
	// Changes reports what happened since, also while Guests is under way. A change
	// with Lost set says that changes may be missing: call Guests again.
	Changes() <-chan Change
	// Describe reads the guest that the hypervisor knows by a name, running or not,
	// for hooks and people who know only the name. ours is false if the hypervisor
	// does not know the guest or it is not of the fabric. If a guest of ours is not
	// as the fabric needs it, the error says what to do; an error that is
	// [os.ErrNotExist] says that this machine has no such hypervisor. Describe
	// answers in bounded time.
	Describe(ctx context.Context, name string) (vm VM, ours bool, err error)
	// UserData returns what the owner of a guest left for the programs in it; nil: there
	// is none. It never returns another guest's, also if that has the name by now. It
	// answers in bounded time.
	UserData(ctx context.Context, vm VM) ([]byte, error)
	// MovesByRestart reports whether the hypervisor moves a guest by a second start:
	// it starts the guest on the other node before it ends it on this one, and the
	// guest on this node answers until then. So neither the start nor carrier says
	// that the traffic should come here. The agent announces such a guest as
	// [Standby] until the dataplane has heard it ([PortState.Silent]). It does not
	// wait for a frame if the hypervisor reports when a guest begins to run.
	MovesByRestart() bool
	// Status gives the state of the source.
	Status() SourceStatus

	Diagnoser
}

// Change is something that happened to a guest.
type Change struct {
	// Guest is the guest after the event. Its Since is a time just before the source
	// read its state, so that late news cannot undo newer news. A guest without NICs
	// has no description any more.
	Guest Desired
	Lost  bool // changes may be missing; Guest is empty
	// Gone: the hypervisor forgot the guest, because it was undefined or deleted. Guest
	// is Absent, and has the name, the UUID and the origin; NICs only if the source
	// knew the guest. Such a change comes for guests of others than the fabric, too:
	// their descriptions cannot be read any more. Another guest may have the name by
	// now.
	//
	// A guest without a definition (libvirt: a transient domain, as is one that was
	// undefined while it ran) is gone when it stops, and not before.
	//
	// A hypervisor also forgets a guest that moved to another node. A source does not
	// report what it knows to be a move, but it does not know all moves: the agent
	// decides whether the guest is gone for good, by what the other nodes have.
	//
	// A source may miss that a guest is gone, as it may miss any change (Lost), and no
	// list makes up for it. The guest's addresses then stay its own until another guest
	// of the node wants one, or the operator releases them.
	Gone bool
}

// Diagnoser says, in words for people, what a part of the agent cannot do on this
// machine, or what is wrong with it now. Every backend is one; a backend that knows
// of no problem returns nothing. It answers in bounded time.
type Diagnoser interface {
	Diagnose(ctx context.Context) []string
}
