package migration

// Arrival is how far a guest's move to this node has come, at its destination.
type Arrival uint8

// The states of an arrival.
const (
	NoArrival Arrival = iota // no move is known, or it is over
	Expected                 // the hypervisor announced it, and nothing else is known of it
	Arriving                 // the guest is wired: its ports are made
	Ready                    // its ports take packets for it: the source may send them
	Running                  // it runs here; its routes are about to be announced
	Arrived                  // its routes are announced before those of the source, which may have them yet
)

var arrivals = [...]string{
	NoArrival: "no arrival", Expected: "expected", Arriving: "arriving", Ready: "ready", Running: "running", Arrived: "arrived",
}

// String gives the name of the state, as docs/moves.md has it.
func (a Arrival) String() string { return arrivals[a] }

// Awaits reports whether the guest has ports here and runs at the source yet.
func (a Arrival) Awaits() bool { return a == Arriving || a == Ready }

// Runs reports whether the guest runs here, and not everybody has let go of it.
func (a Arrival) Runs() bool { return a == Running || a == Arrived }

// ArrivalEvent is something that happens to a guest's arrival.
type ArrivalEvent uint8

// The events of an arrival.
const (
	Announced     ArrivalEvent = iota // the hypervisor says that the guest is to come
	Prepared                          // its ports are wanted here, while it runs at the source
	StartedAnew                       // they are wanted for a start of its own
	PortsReady                        // they take packets for it
	GuestRuns                         // it runs here, by its hypervisor's word or its first frame
	RoutesSent                        // the speaker announces it
	OthersLetGo                       // no other node announces it any more
	Ended                             // it is withdrawn, or absent
	NotHeardAgain                     // nothing came of what the hypervisor had announced
)

var arrivalEvents = [...]string{
	Announced: "announced", Prepared: "prepared", StartedAnew: "started anew", PortsReady: "ports ready", GuestRuns: "guest runs",
	RoutesSent: "routes sent", OthersLetGo: "others let go", Ended: "ended", NotHeardAgain: "not heard again",
}

// String gives the name of the event, as docs/moves.md has it.
func (e ArrivalEvent) String() string { return arrivalEvents[e] }

// ArrivalEffect is something that is done because of an event of an arrival.
type ArrivalEffect uint8

// The effects of an arrival.
const (
	TellArriving  ArrivalEffect = iota // the other nodes are told, again and again, that it arrives here
	TellArrived                        // the source is told that it runs here
	TellCancelled                      // the other nodes are told that it does not arrive
	Report                             // the move is over, and reported
)

var arrivalEffects = [...]string{
	TellArriving: "tell arriving", TellArrived: "tell arrived", TellCancelled: "tell cancelled", Report: "report",
}

// String gives the name of the effect, as docs/moves.md has it.
func (e ArrivalEffect) String() string { return arrivalEffects[e] }

// ArrivalTransition is what follows of an event in a state of an arrival.
type ArrivalTransition struct {
	From    Arrival
	On      ArrivalEvent
	To      Arrival
	Effects []ArrivalEffect
}

// Arrivals has every transition but those of [NextArrival] that change nothing.
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

// ArrivalsIgnored has the events that change nothing in a state of an arrival, and
// why that is so.
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

// NextArrival gives what follows of an event in a state: its transition, or one
// that changes nothing.
func NextArrival(a Arrival, e ArrivalEvent) ArrivalTransition {
	for _, t := range Arrivals {
		if t.From == a && t.On == e {
			return t
		}
	}
	return ArrivalTransition{From: a, On: e, To: a}
}
