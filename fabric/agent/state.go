package agent

import (
	"net/netip"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/migration"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/plan"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/reservation"
)

// state is what an agent knows of its node's guests and of the other nodes. A
// goroutine that has it, by [guarded.open], has it alone. The methods of state and
// guest decide and record, and never wait; the caller acts on the backends after it
// has closed the state.
type state struct {
	*facts
	later func(time.Duration) // requests a pass after that time

	guests   map[string]*guest
	reserved *reservation.Table   // prefixes and port names, by guest
	handled  map[string]time.Time // the time of the last request about a guest, also if the guest is gone
	expected map[string]time.Time // guests whose migration to this node was announced, and when
	// forwarding has the diverted prefixes of guests that have left, and until when
	// they stay diverted.
	forwarding map[netip.Prefix]time.Time
	peers      peers
	unsettled  map[string]bool // guests about which there may be lasting notices
	drained    time.Time       // since when the node is being drained; zero: it is not
	blackholes []fabric.Blackhole
}

// guest is what an agent knows of one guest.
type guest struct {
	want      fabric.Desired
	announced bool           // the speaker has the prefixes of all NICs that are not down
	nics      plan.NICStates // as the last pass or event found them
	reported  lastReported   // what the observers know of the guest
	differs   string         // how the hypervisor's description differs from that at the start; empty: it does not
	trouble   error          // why the last attempt to reach the wanted state failed
	admitted  time.Time      // when a request for it was last admitted: asking the resolver and the registry can take seconds

	has          bool              // this node has the guest: see takeOwnership
	claimed      time.Time         // when this node acquired the guest
	kept         bool              // restored from disk: keep waiting for the nodes that were listed then
	unasked      []string          // restored from disk: nodes that have not said since then whether they have the guest
	heard        uint64            // the highest epoch of another node for the guest
	waitingNodes []string          // nodes that get Released when this node does not announce the guest any more
	departure    departure         // its move to another node
	doubted      time.Time         // when the agent ended an unconfirmed diversion of its packets
	sentOn       bool              // an agent before this one sent its packets to another node, and nobody has said since that it runs here
	orphan       bool              // no readable file describes the guest: leave its file alone
	registered   bool              // the registry has its addresses
	grant        grant             // the ownership that the registry gave this node for a start that has not begun yet
	taken        uint64            // the epoch with which it last began to run here; want has it only when that start is over
	acquired     bool              // the registry has this node, or a later one, as its owner
	unowned      unowned           // that the registry could not be told so
	arrival      migration.Arrival // its move to this node
	from         string            // the node that it comes from
	restart      restart           // its move by a start
	contention
}

// guarded gives the state to one goroutine at a time.
type guarded struct {
	mu    sync.Mutex
	state state
}

func newGuarded(s state) *guarded {
	s.guests, s.reserved = map[string]*guest{}, reservation.New()
	s.handled, s.expected = map[string]time.Time{}, map[string]time.Time{}
	s.forwarding, s.unsettled, s.peers = map[netip.Prefix]time.Time{}, map[string]bool{}, newPeers()
	return &guarded{state: s}
}

// open locks the state for the caller, until it calls done.
func (g *guarded) open() (s *state, done func()) {
	g.mu.Lock()
	return &g.state, g.mu.Unlock
}
