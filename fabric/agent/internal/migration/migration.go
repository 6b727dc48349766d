// Package migration has the state machines of a guest's move: one for its source
// ([Table]), one for its destination ([Arrivals]). It is pure: the caller passes an
// event in, and carries out the effects that come back.
package migration

// State is the state of a guest's move to another node, at its source.
type State uint8

// The states.
const (
	Staying   State = iota // no move is known
	Awaited                // the destination takes packets for the guest; frames into its ports here are recorded
	Stopped                // the hypervisor here stopped the guest; the destination is not known; packets wait in its ports
	Diverted               // the guest's packets go to the destination, which says that the guest runs there
	Confirmed              // the hypervisor here stopped the guest too: its packets go to the destination
)

var states = [...]string{Staying: "staying", Awaited: "awaited", Stopped: "stopped", Diverted: "diverted", Confirmed: "confirmed"}

// String gives the name of the state, as docs/moves.md has it.
func (s State) String() string { return states[s] }

// Stops reports whether the hypervisor here has stopped the guest to run it
// elsewhere.
func (s State) Stops() bool { return s == Stopped || s == Confirmed }

// Diverts reports whether the guest's packets go to the destination.
func (s State) Diverts() bool { return s == Diverted || s == Confirmed }

// Event is something that happens to a guest's move.
type Event uint8

// The events.
const (
	DestinationReady     Event = iota // another node takes packets for the guest, which is about to arrive there
	DestinationRuns                   // another node says that the guest runs there
	DestinationClaims                 // another node, maybe a third one, sends Claimed for a guest that was stopped here
	DestinationCancelled              // the guest does not arrive there after all
	SourceStopped                     // the hypervisor here stopped the guest to run it elsewhere
	SourceResumed                     // the guest goes on here
	SourceStarted                     // the guest is started here anew: its earlier stop does not count any more
	WordUnconfirmed                   // the hypervisor here contradicts the destination, or does not confirm it in time
)

var events = [...]string{
	DestinationReady: "destination ready", DestinationRuns: "destination runs", DestinationClaims: "destination claims",
	DestinationCancelled: "destination cancelled", SourceStopped: "source stopped", SourceResumed: "source resumed",
	SourceStarted: "source started", WordUnconfirmed: "word unconfirmed",
}

// String gives the name of the event, as docs/moves.md has it.
func (e Event) String() string { return events[e] }

// Effect is an action that the caller carries out after an event.
type Effect uint8

// The effects. The caller carries them out in the order of a transition's list.
const (
	Record  Effect = iota // record the frames into the guest's ports, to send them again
	Divert                // forward the guest's packets to the destination, and send the recorded frames there
	Confirm               // note that the hypervisor has confirmed the diversion
	Return                // lead the guest's packets into its ports again; remember the destination
	Restore               // as Return, and end the recording, and forget the destination
)

var effects = [...]string{Record: "record", Divert: "divert", Confirm: "confirm", Return: "return", Restore: "restore"}

// String gives the name of the effect, as docs/moves.md has it.
func (e Effect) String() string { return effects[e] }

// Step is one transition of a state machine: the new state and the effects of an
// event in a state. The effects come in this order.
type Step[S, E comparable, F any] struct {
	From    S
	On      E
	To      S
	Effects []F
}

// Transition is a step of a move at its source.
type Transition = Step[State, Event, Effect]

// Table has all transitions that change something. [Ignored] has the others.
var Table = []Transition{
	{Staying, DestinationReady, Awaited, []Effect{Record}},
	{Staying, DestinationRuns, Diverted, []Effect{Divert}},
	{Staying, SourceStopped, Stopped, nil},

	{Awaited, DestinationReady, Awaited, []Effect{Record}},
	{Awaited, DestinationRuns, Diverted, []Effect{Divert}},
	{Awaited, DestinationCancelled, Staying, []Effect{Restore}},
	{Awaited, SourceStopped, Confirmed, []Effect{Divert}},
	{Awaited, SourceResumed, Staying, []Effect{Restore}},

	{Stopped, DestinationReady, Confirmed, []Effect{Record, Divert}},
	{Stopped, DestinationRuns, Confirmed, []Effect{Divert}},
	{Stopped, DestinationClaims, Confirmed, []Effect{Divert}},
	{Stopped, SourceResumed, Staying, []Effect{Restore}},
	{Stopped, SourceStarted, Staying, nil},

	{Diverted, DestinationReady, Diverted, []Effect{Record}},
	{Diverted, DestinationCancelled, Staying, []Effect{Restore}},
	{Diverted, SourceStopped, Confirmed, []Effect{Confirm}},
	{Diverted, SourceResumed, Staying, []Effect{Restore}},
	{Diverted, WordUnconfirmed, Awaited, []Effect{Return}},

	{Confirmed, DestinationReady, Confirmed, []Effect{Record}},
	{Confirmed, DestinationClaims, Confirmed, []Effect{Divert}},
	{Confirmed, DestinationCancelled, Staying, []Effect{Restore}},
	{Confirmed, SourceResumed, Staying, []Effect{Restore}},
	{Confirmed, SourceStarted, Diverted, nil},
}

// Ignored has, for each state, the events that change nothing, and why.
var Ignored = map[State]map[Event]string{
	Staying: {
		DestinationClaims:    "who has the guest is a matter of ownership while its hypervisor did not stop it",
		DestinationCancelled: "no arrival was known",
		SourceResumed:        "no move was known",
		SourceStarted:        "no move was known",
		WordUnconfirmed:      "no packets go elsewhere",
	},
	Awaited: {
		DestinationClaims: "as in staying",
		SourceStarted:     "its hypervisor did not stop it",
		WordUnconfirmed:   "no packets go elsewhere",
	},
	Stopped: {
		DestinationCancelled: "nobody said where it goes, so it was another one's attempt",
		SourceStopped:        "it is said again",
		WordUnconfirmed:      "no packets go elsewhere",
	},
	Diverted: {
		DestinationRuns:   "it is said again",
		DestinationClaims: "as in staying",
		SourceStarted:     "its hypervisor did not stop it",
	},
	Confirmed: {
		DestinationRuns: "it is known",
		SourceStopped:   "it is said again",
		WordUnconfirmed: "the hypervisor here has confirmed it",
	},
}

// Next gives the transition of an event in a state. If [Table] has none, it gives one
// that changes nothing.
func Next(s State, e Event) Transition { return next(Table, s, e) }

func next[S, E comparable, F any](table []Step[S, E, F], s S, e E) Step[S, E, F] {
	for _, t := range table {
		if t.From == s && t.On == e {
			return t
		}
	}
	return Step[S, E, F]{From: s, On: e, To: s}
}
