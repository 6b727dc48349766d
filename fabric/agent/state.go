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

// state is what an agent knows: of the guests of its node, and of the other nodes.
// Whoever has it, by [guarded.open], has it alone. Its methods, and those of a
// guest, decide and take note, and wait for nothing: what follows is done after.
type state struct {
	*facts
	later func(time.Duration) // has the pass look again after that

	guests   map[string]*guest
	reserved *reservation.Table   // prefixes and port names, by guest
	handled  map[string]time.Time // when the last request about a guest was taken up, also one that is gone
	expected map[string]time.Time // incoming migrations, announced before anything else of them
	// forwarding are the prefixes of guests that have left, and until when packets
	// for them are sent on.
	forwarding map[netip.Prefix]time.Time
	peers      peers
	unsettled  map[string]bool // guests of which other nodes may still have to be told
	drained    time.Time       // since when the node is being drained; zero: it is not
}

// guest is what an agent knows of one.
type guest struct {
	want      fabric.Desired
	announced bool           // the speaker has the prefixes of all NICs that are not down
	nics      plan.NICStates // as last looked at
	reported  lastReported   // to the observers
	differs   string         // what its hypervisor says of it now, where that is not what it started with
	trouble   error          // why it is not as it is wanted

	has       bool              // it is announced, and claimed of the other nodes
	claimed   time.Time         // when that was
	kept      bool              // of an agent before this one: the nodes that it waited for are waited for
	unasked   []string          // likewise: nodes that have not said since whether they have it, which that one may have known and not kept
	heard     uint64            // the highest epoch that another node has, or had, it with
	claimants []string          // nodes that wait for this one to let go, or take it back when it does
	departure departure         // its move to another node
	doubted   time.Time         // when a diversion on the word of another node alone was ended
	orphan    bool              // nothing that could be read says what it is: its state on the disk is left alone
	arrival   migration.Arrival // its move to this node
	from      string            // the node that it comes from
	restart   restart           // its move by a start
	contention
}

// guarded lets one goroutine at a time have the state.
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

// open gives the state, until done is called.
func (g *guarded) open() (s *state, done func()) {
	g.mu.Lock()
	return &g.state, g.mu.Unlock
}
