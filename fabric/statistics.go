package fabric

// RepairKind says what a repair was about.
type RepairKind string

// The kinds of repair. A repair of several is of the first.
const (
	RepairRetry        RepairKind = "retry"        // an earlier attempt did not succeed
	RepairPort         RepairKind = "port"         // a port was missing
	RepairSettings     RepairKind = "settings"     // a port was not as it was put: its link, addresses, routes or sysctls
	RepairAnnouncement RepairKind = "announcement" // a route was not announced as it is to be
	RepairCarrier      RepairKind = "carrier"      // a port lost or found its carrier
	RepairLeftover     RepairKind = "leftover"     // a port or a route that no guest has was removed
)

// RepairKinds lists all kinds.
func RepairKinds() []RepairKind {
	return []RepairKind{RepairRetry, RepairPort, RepairSettings, RepairAnnouncement, RepairCarrier, RepairLeftover}
}

// Histogram counts values by their size.
type Histogram struct {
	Bounds []float64 // the upper bound of each class, inclusive, in ascending order
	Counts []uint64  // of each class alone; the last, for which there is no bound, has larger values
	Sum    float64   // of all values
}

// NewHistogram makes an empty histogram.
func NewHistogram(bounds ...float64) Histogram {
	return Histogram{Bounds: bounds, Counts: make([]uint64, len(bounds)+1)}
}

// Add counts a value.
func (h *Histogram) Add(v float64) {
	i := 0
	for i < len(h.Bounds) && v > h.Bounds[i] {
		i++
	}
	h.Counts[i]++
	h.Sum += v
}

// MoveKind says how a move went for a node.
type MoveKind string

// The kinds of move.
const (
	MovedIn    MoveKind = "in"     // the guest came to the node
	MovedOut   MoveKind = "out"    // the guest went to another node
	MoveFailed MoveKind = "failed" // the guest did not move after all, or nothing was heard of it any more
)

// MoveKinds lists all kinds.
func MoveKinds() []MoveKind { return []MoveKind{MovedIn, MovedOut, MoveFailed} }

// GuestCondition is how a guest stands on a node.
type GuestCondition string

// The conditions of guests.
const (
	GuestWired    GuestCondition = "wired"    // it has its ports, and is not announced
	GuestLive     GuestCondition = "live"     // it is announced
	GuestArriving GuestCondition = "arriving" // it is about to arrive from another node
	GuestLeaving  GuestCondition = "leaving"  // it was stopped to run on another node
	GuestTrouble  GuestCondition = "trouble"  // it is not as it is wanted, whatever else
)

// GuestConditions lists all conditions.
func GuestConditions() []GuestCondition {
	return []GuestCondition{GuestWired, GuestLive, GuestArriving, GuestLeaving, GuestTrouble}
}

// Statistics has what an agent counted since it started, and how its guests stand.
type Statistics struct {
	Guests        map[GuestCondition]int
	Announcements map[Family]int // routes that the speaker has to announce; nil: not known

	Attach        Histogram // seconds from a request to the guest's network, of those that succeeded
	AttachRefused uint64
	AttachFailed  uint64
	Repairs       map[RepairKind]uint64
	Moves         map[MoveKind]uint64
	// MoveGap has, of moves to this node, the seconds from the stop of the guest at the
	// source, by that node's clock, until it ran here, by this one's.
	MoveGap Histogram
	// MoveResent has, of moves from this node, how many packets waited for the guest when
	// it stopped, and were sent again to the other node.
	MoveResent Histogram
}
