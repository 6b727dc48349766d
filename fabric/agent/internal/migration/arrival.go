package migration

// Arrival is the state of a guest's move to this node, at its destination.
type Arrival uint8

// The states of an arrival.
const (
	NoArrival Arrival = iota // no move is known, or it is over
	Expected                 // the hypervisor announced the move, and nothing else is known of it
	Arriving                 // the guest is wired: its ports are being made
	Ready                    // its ports take packets for it: the source may send them
	Running                  // the guest runs here; its routes are about to be announced
	Arrived                  // its routes rank before those of the source, which may still announce it
)

var arrivals = [...]string{
	NoArrival: "no arrival", Expected: "expected", Arriving: "arriving", Ready: "ready", Running: "running", Arrived: "arrived",
}

// String gives the name of the state, as docs/moves.md has it.
func (a Arrival) String() string { return arrivals[a] }

// Awaits reports whether the guest has ports here and still runs at the source.
func (a Arrival) Awaits() bool { return a == Arriving || a == Ready }

// Runs reports whether the guest runs here, and not all other nodes have released it.
func (a Arrival) Runs() bool { return a == Running || a == Arrived }

// ArrivalEvent is something that happens to a guest's arrival.
type ArrivalEvent uint8

// The events of an arrival.
const (
	Announced     ArrivalEvent = iota // the hypervisor says that the guest is to come
	Prepared                          // a request wants the guest's ports here, while it runs at the source
	StartedAnew                       // a request wants them for a start that is no arrival
	PortsReady                        // the ports take packets for the guest
	GuestRuns                         // the guest runs here, by its hypervisor or its first frame
	RoutesSent                        // the speaker announces the guest
	OthersLetGo                       // the guest is not Fresh any more: no other node announces it
	Ended                             // the guest is withdrawn or absent
	NotHeardAgain                     // the announced move did not begin in time
)

var arrivalEvents = [...]string{
	Announced: "announced", Prepared: "prepared", StartedAnew: "started anew", PortsReady: "ports ready", GuestRuns: "guest runs",
	RoutesSent: "routes sent", OthersLetGo: "others let go", Ended: "ended", NotHeardAgain: "not heard again",
}

// String gives the name of the event, as docs/moves.md has it.
func (e ArrivalEvent) String() string { return arrivalEvents[e] }

// ArrivalEffect is an action that the caller carries out after an event of an
// arrival.
type ArrivalEffect uint8

// The effects of an arrival.
const (
	TellArriving  ArrivalEffect = iota // send Arriving to the other nodes, again and again
	TellArrived                        // send Arrived to the source
	TellCancelled                      // send Cancelled to the other nodes
	Report                             // end the report of the move
)

var arrivalEffects = [...]string{
	TellArriving: "tell arriving", TellArrived: "tell arrived", TellCancelled: "tell cancelled", Report: "report",
}

// String gives the name of the effect, as docs/moves.md has it.
func (e ArrivalEffect) String() string { return arrivalEffects[e] }

// ArrivalTransition is a step of a move at its destination.
type ArrivalTransition = Step[Arrival, ArrivalEvent, ArrivalEffect]

// Arrivals has all transitions that change something. [ArrivalsIgnored] has the
// others.
var Arrivals = []ArrivalTransition{
	{NoArrival, Announced, Expected, nil},
	{NoArrival, Prepared, Arriving, nil},

	{Expected, Prepared, Arriving, nil},
	{Expected, StartedAnew, NoArrival, nil},
	{Expected, GuestRuns, NoArrival, nil},
	{Expected, Ended, NoArrival, nil},
	{Expected, NotHeardAgain, NoArrival, nil},

	{Arriving, PortsReady, Ready, []ArrivalEffect{TellArriving}},
	{Arriving, StartedAnew, NoArrival, nil},
	{Arriving, GuestRuns, Running, nil},
	{Arriving, Ended, NoArrival, []ArrivalEffect{TellCancelled}},

	{Ready, StartedAnew, NoArrival, nil},
	{Ready, GuestRuns, Running, nil},
	{Ready, Ended, NoArrival, []ArrivalEffect{TellCancelled}},

	{Running, Prepared, Arriving, nil},
	{Running, StartedAnew, NoArrival, nil},
	{Running, RoutesSent, Arrived, []ArrivalEffect{TellArrived}},
	{Running, OthersLetGo, NoArrival, []ArrivalEffect{Report}},
	{Running, Ended, NoArrival, nil},

	{Arrived, Prepared, Arriving, nil},
	{Arrived, StartedAnew, NoArrival, nil},
	{Arrived, OthersLetGo, NoArrival, []ArrivalEffect{Report}},
	{Arrived, Ended, NoArrival, nil},
}

// ArrivalsIgnored has, for each state of an arrival, the events that change nothing,
// and why.
var ArrivalsIgnored = map[Arrival]map[ArrivalEvent]string{
	NoArrival: {
		StartedAnew:   "it is a start",
		PortsReady:    "nobody sends packets for it from elsewhere",
		GuestRuns:     "it is a start",
		RoutesSent:    "no move is known",
		OthersLetGo:   "no move is known",
		Ended:         "no move is known",
		NotHeardAgain: "nothing was announced",
	},
	Expected: {
		Announced:   "it is said again",
		PortsReady:  "it has no ports yet",
		RoutesSent:  "it has no ports yet",
		OthersLetGo: "who has it is not known here yet",
	},
	Arriving: {
		Announced:     "it has begun",
		Prepared:      "it is said again",
		RoutesSent:    "it is not announced before it runs",
		OthersLetGo:   "it runs at the source",
		NotHeardAgain: "it has begun",
	},
	Ready: {
		Announced:     "it has begun",
		Prepared:      "it is said again",
		PortsReady:    "it is known",
		RoutesSent:    "it is not announced before it runs",
		OthersLetGo:   "it runs at the source",
		NotHeardAgain: "it has begun",
	},
	Running: {
		Announced:     "a guest that is here does not come",
		PortsReady:    "it runs already",
		GuestRuns:     "it is known",
		NotHeardAgain: "it has come",
	},
	Arrived: {
		Announced:     "a guest that is here does not come",
		PortsReady:    "it runs already",
		GuestRuns:     "it is known",
		RoutesSent:    "it is known",
		NotHeardAgain: "it has come",
	},
}

// NextArrival gives the transition of an event in a state. If [Arrivals] has none, it
// gives one that changes nothing.
func NextArrival(a Arrival, e ArrivalEvent) ArrivalTransition { return next(Arrivals, a, e) }
