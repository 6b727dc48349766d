package fabric

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// Dataplane is the node's kernel, or whatever else carries packets.
//
// Put is idempotent, repairs what differs and serves single and full passes
// alike; it refuses ([ErrForeign]) a link of the port's name that is not ours.
// A port of kind [Adopt] whose link is not there yet gives an error that is
// [os.ErrNotExist]; Changed fires when the link appears. Remove of what is
// absent succeeds, and gives back, unmarked, a link that was adopted.
// Actual lists only what is ours. All methods are safe for concurrent use, for
// different ports at the same time.
type Dataplane interface {
	Actual(ctx context.Context) ([]PortState, error)
	Put(ctx context.Context, p Port) error
	Remove(ctx context.Context, names ...string) error
	Changed() <-chan struct{} // something is not as it was put; coalesced, carries nothing

	// NextHop says why the node has no address of a family to announce as next
	// hop, and the way out; nil where it has one, or where that is not known.
	// Changed fires when one goes or comes.
	NextHop(v6 bool) error
	// CheckForwarding tries whether packets of guests pass the node between the
	// underlay and a port, without a guest, and gives what is in the way; nothing
	// when all pass. An error says that it could not be tried; one that is
	// [errors.ErrUnsupported] says that it never can.
	CheckForwarding(ctx context.Context) ([]ForwardingFault, error)

	Mover
}

// Announcer takes the routes that this node announces. Put and Remove return
// when it has taken the change over; sessions may be down, it announces when they
// come up. The laws of [Dataplane] hold here too.
type Announcer interface {
	Actual(ctx context.Context) ([]Route, error)
	Put(ctx context.Context, routes ...Route) error
	Remove(ctx context.Context, prefixes ...netip.Prefix) error
	Changed() <-chan struct{} // a session or a route is not as it was; coalesced, carries nothing
}

// Speaker announces routes, and tells what became of them. What it cannot tell
// is an error that is [errors.ErrUnsupported].
type Speaker interface {
	Announcer
	// Sessions tells how the sessions with the reflectors are.
	Sessions(ctx context.Context) ([]Session, error)
	// Advertisements tells, peer by peer, whether a prefix was sent.
	Advertisements(ctx context.Context, prefix netip.Prefix) ([]Advertisement, error)
	// Competitors tells, from each reflector, that another node announces one of
	// this node's prefixes as [Fresh], and again when that route comes back. That
	// one which was told is gone is told too, although the prefix may not be
	// announced here any more. It is nil of a speaker that does not hear of them.
	Competitors() <-chan Competitor
}

// NewSpeaker makes a [Speaker] of an [Announcer] that tells nothing.
func NewSpeaker(a Announcer) Speaker { return silentSpeaker{a} }

type silentSpeaker struct{ Announcer }

func (silentSpeaker) Sessions(context.Context) ([]Session, error) {
	return nil, errors.ErrUnsupported
}

func (silentSpeaker) Advertisements(context.Context, netip.Prefix) ([]Advertisement, error) {
	return nil, errors.ErrUnsupported
}

func (silentSpeaker) Competitors() <-chan Competitor { return nil }

// Store keeps the wanted state over restarts.
//
// All returns every guest that can be read; when something cannot be read the
// error says what, and the guests that could be read come with it. After an
// error nothing may be removed on the store's word.
type Store interface {
	All(ctx context.Context) ([]Desired, error)
	Put(ctx context.Context, d Desired) error
	Delete(ctx context.Context, vm string) error

	// Drained tells since when the node is being drained; zero: it is not.
	Drained(ctx context.Context) (since time.Time, err error)
	// SetDrained keeps since when; zero: that it is not any more.
	SetDrained(ctx context.Context, since time.Time) error

	// KeptMoves gives the reports that KeepMoves was last given; nothing at first.
	KeptMoves(ctx context.Context) ([]Move, error)
	KeepMoves(ctx context.Context, moves []Move) error
}

// Source is a hypervisor that knows which guests run.
type Source interface {
	Name() string // what [VM.Origin] of its guests says
	// Guests lists all guests of ours that run here now. Absent ones are not
	// listed; one that runs but cannot be described is listed with the zero
	// State, so that nobody takes it for gone, and so is every other that runs
	// here and that nothing says to be ours: it may be one whose description was
	// taken away. It returns an error in bounded
	// time when the hypervisor does not answer; one that is os.ErrNotExist says
	// that this machine has no such hypervisor.
	Guests(ctx context.Context) ([]Desired, error)
	// Changes tells what happened since, also while Guests is under way. A change with Lost set says that
	// others may have been missed, and Guests must be asked again.
	Changes() <-chan Change
	// Describe reads the guest that the hypervisor knows by a name, whether it
	// runs or not, for hooks and people who know no more of it; ours is false of
	// one that it does not know, or that is none of ours. The error of one of ours
	// that is not as the fabric needs it says what to do about it; one that is
	// os.ErrNotExist says that this machine has no such hypervisor. It answers in
	// bounded time.
	Describe(ctx context.Context, name string) (vm VM, ours bool, err error)
	// MovesByRestart reports whether the hypervisor moves guests by starting them
	// anew: on the other node before it ends them on this one, which goes on
	// answering for them until then. So that such a guest is started, and that its
	// port has carrier, does not say that traffic is to come here: it is announced
	// as [Standby] until it was heard ([PortState.Silent]). Where a hypervisor says
	// at which moment a guest begins to run, to wait would lose time.
	MovesByRestart() bool
	// Status tells how the source fares.
	Status() SourceStatus
}

// Change is something that happened to a guest.
type Change struct {
	// Guest as it is after the event. Its Since is the time just before its
	// state was read, so that late news cannot undo newer. Without NICs it is one
	// that is not described any more.
	Guest Desired
	Lost  bool // changes may have been missed; Guest is empty
}

// Diagnoser is implemented by a backend that can say, in words for people,
// what it cannot do on this machine or what ails it now.
type Diagnoser interface {
	Diagnose() []string
}
