package simulate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// world is a cluster and its guests, and what is true of them, whatever the
// agents know.
type world struct {
	cluster fabric.Cluster
	routers *routers
	nodes   []*node
	guests  []*guest // those that a history names
	seed    uint64
	delay   time.Duration // between two agents, one way
	spread  time.Duration // from a node to the core gateway
	began   time.Time

	mu       sync.Mutex
	copies   []*guest  // others with their addresses
	steps    int       // under way
	idle     time.Time // since when there are none
	faults   int       // steps under way that are out of the ordinary
	calm     time.Time // since when there are none
	troubles int       // of these, those that disturb an agent
	quiet    time.Time // since when there are none of them
	forgot   time.Time // when a node lost its disk, or came back without: nobody knows any more who had an address first
	clocks   bool      // one is wrong, or was
	failures []string
}

// guest is a domain and where it truly runs.
type guest struct {
	vm       fabric.VM
	prefixes []netip.Prefix // that it has
	busy     sync.Mutex     // held by whoever starts, stops or moves it, as libvirt's job

	mu       sync.Mutex
	at       *node // nil: it does not run
	since    time.Time
	paused   bool // its processor stands still, for a move
	to       *node
	starting *node          // where its process is about to begin
	ran      map[*node]bool // where it ran
	left     *node          // where it moved away, and its process stands still yet
	quiet    bool           // nobody heard it there yet
	also     *node          // where it runs a second time
	twice    time.Time      // when it last ran twice
	settled  bool           // its hooks are through
	moved    bool           // it came here by a live migration, when the routers knew where it was
	started  time.Time
	first    time.Time // since when it has its addresses, wherever
	orphan   time.Time // when the node that was taking it over lost its power
	untold   bool      // it moves to a node which takes that for a start
	told     time.Time // when it last did
	taker    *life     // the agent that its start was told to
	ageless  bool      // nobody may know any more since when it has its addresses
	refused  string
}

// place is what is true of a guest at one moment.
type place struct {
	at, to   *node
	also     *node
	left     *node
	starting *node
	quiet    bool
	twice    time.Time
	since    time.Time
	paused   bool
	settled  bool
	moved    bool
	orphan   time.Time
	first    time.Time
	ageless  bool
	untold   bool
	taker    *life
}

func (g *guest) place() place {
	g.mu.Lock()
	defer g.mu.Unlock()
	return place{g.at, g.to, g.also, g.left, g.starting, g.quiet, g.twice, g.since, g.paused, g.settled, g.moved, g.orphan, g.first, g.ageless, g.untold, g.taker}
}

func (g *guest) set(f func(*guest)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	ran := g.at != nil
	f(g)
	g.since = time.Now()
	for _, n := range []*node{g.at, g.also} {
		if n != nil {
			g.ran[n] = true
		}
	}
	if !ran && g.at != nil {
		g.first, g.ageless = g.since, false
	}
}

// aging watches a move of the guest between two nodes. What it gives is called when
// the guest has arrived: since when it has its addresses, the one node says to the
// other, where both are well from the first to the last.
func (g *guest) aging(from, to *node) (arrived func()) {
	well := func() (a, b *life) {
		for _, n := range []*node{from, to} {
			if n.isGarbled() || n.broken() || n.slowness() > 1 {
				return nil, nil
			}
		}
		if from.isCut(to.self.Name) {
			return nil, nil
		}
		return from.alive(), to.alive()
	}
	source, destination := well()
	return func() {
		a, b := well()
		g.mu.Lock()
		defer g.mu.Unlock()
		g.ageless = g.ageless || a == nil || b == nil || a != source || b != destination
	}
}

// once notes that the guest runs on a node alone, after it ran on two.
func (g *guest) once(at *node) {
	g.set(func(g *guest) {
		g.at, g.also, g.paused, g.settled, g.moved, g.twice = at, nil, false, true, false, time.Now()
	})
}

// forget notes that a node does not know any more what it knew.
func (w *world) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forgot = time.Now()
}

// disturb notes that a step that is out of the ordinary begins, or ends.
func (w *world) disturb(k Kind, by int) {
	if k == Forget {
		w.forget()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if k != Copy && k != Twice {
		if w.troubles += by; w.troubles == 0 {
			w.quiet = time.Now()
		}
	}
	if w.faults += by; w.faults == 0 {
		w.calm = time.Now()
	}
}

// isCalm reports whether nothing out of the ordinary happens, or did lately.
func (w *world) isCalm() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.faults == 0 && time.Since(w.calm) > aftermath
}

// act notes that a step begins, or ends.
func (w *world) act(by int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.steps += by; w.steps == 0 {
		w.idle = time.Now()
	}
}

// isIdle reports whether nothing happens, or did lately.
func (w *world) isIdle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.steps == 0 && time.Since(w.idle) > silent
}

// isQuiet reports whether no agent was disturbed for a time.
func (w *world) isQuiet(d time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.troubles == 0 && time.Since(w.quiet) > d
}

// refuse notes why the guest was not started.
func (g *guest) refuse(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refused = err.Error()
}

func newWorld(seed uint64, delay, spread time.Duration) *world {
	ip, prefix := netip.MustParseAddr, netip.MustParsePrefix
	w := &world{seed: seed, delay: delay, spread: spread, began: time.Now(), cluster: fabric.Cluster{
		Name: "sim", ASN: 64512, Communities: []fabric.Community{{A: 64512, B: 100}},
		Gateway:    fabric.Gateway{IPv4: ip("169.254.1.1"), IPv6: ip("fe80::1")},
		Pools:      []fabric.Pool{{Name: "public4", Prefix: prefix("203.0.113.0/24")}, {Name: "public6", Prefix: prefix("2001:db8:100::/48")}},
		Reflectors: []fabric.RR{{Name: "rr1", Address: ip("10.10.0.11")}},
		Core:       []fabric.Core{{Name: "core1", Address: ip("10.10.0.1")}},
	}}
	for i := range nodes {
		w.cluster.Nodes = append(w.cluster.Nodes, fabric.Node{
			Name: nodeName(i), Address: ip(fmt.Sprintf("10.10.0.%d", 21+i)), Address6: ip(fmt.Sprintf("fd00:10:10::%d", 21+i)),
		})
	}
	w.cluster = w.cluster.WithDefaults()
	w.routers = newRouters(w.cluster.Nodes, spread)
	ends := fake.NewNodes(nil, w.cluster.Nodes...)
	for _, self := range w.cluster.Nodes {
		w.nodes = append(w.nodes, &node{world: w, self: self, end: ends[self.Name], store: fake.NewStore(nil), power: true, boot: 1, cuts: map[string]int{}, unsafe: map[string][]change{}, tried: map[string]fabric.Desired{}})
	}
	for i := range guests {
		vm := domain(guestName(i), i, i)
		if i >= domains {
			vm = instance(vm)
		}
		w.guests = append(w.guests, &guest{vm: vm, prefixes: vm.Prefixes(), ran: map[*node]bool{}})
	}
	return w
}

// domain is a guest of libvirt with an address of each family.
func domain(name string, id, address int) fabric.VM {
	return fabric.VM{
		Name: name, UUID: fmt.Sprintf("6b9c1c3e-7b0a-4b61-9c59-0000000000%02d", id), Origin: "libvirt",
		NICs: []fabric.NIC{{
			Addresses: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("203.0.113.%d", 10+address)), netip.MustParseAddr(fmt.Sprintf("2001:db8:100::%d", 10+address))},
			Kind:      fabric.Tap, MAC: fabric.MAC{0x52, 0x54, 0, 0, 0, byte(id)},
		}},
	}
}

// instance makes a guest one of LXD.
func instance(vm fabric.VM) fabric.VM {
	vm.Origin = "lxd"
	vm.NICs[0].Kind = fabric.Adopt
	return vm
}

func (w *world) fail(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	line := fmt.Sprintf("%8.3fs  ", time.Since(w.began).Seconds()) + fmt.Sprintf(format, args...)
	if len(w.failures) < 20 {
		w.failures = append(w.failures, line)
	}
}

func (w *world) failed() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.failures)
}

// all lists the guests, copies too.
func (w *world) all() []*guest {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Concat(w.guests, w.copies)
}

// runningOn has the sources of an agent know the guests that run on a node now,
// and no others.
func (w *world) runningOn(n *node, l *life) {
	for _, g := range w.all() {
		s := l.sources[g.vm.Origin]
		s.Know(g.vm.Name, g.vm)
		switch p := g.place(); {
		case p.at == n || p.also == n || g.instance() && p.to == n:
			s.SetQuietly(g.vm, fabric.Live)
		case p.to == n || p.starting == n:
			s.SetQuietly(g.vm, fabric.Wired)
		case p.left == n:
			s.Leave(g.vm)
		default:
			s.SetQuietly(g.vm, fabric.Absent)
		}
	}
}

// died ends the guests of a node that has no power.
func (w *world) died(n *node) {
	for _, g := range w.all() {
		switch p := g.place(); {
		case p.also == n:
			g.once(p.at)
		case p.at == n && p.also != nil:
			g.once(p.also)
		case p.at == n && g.instance() && p.to != nil && p.to != n && p.to.on(): // it goes on where it is moved to
			g.set(func(g *guest) { g.at, g.to, g.paused = p.to, nil, p.quiet })
		case p.at != nil && p.to == n:
			g.set(func(g *guest) { g.orphan = time.Now() })
		case p.at == n:
			g.set(func(g *guest) { g.at, g.paused, g.settled = nil, false, false })
		}
	}
}

// way follows a packet for a prefix from the core gateway, and tells where it
// ends: at a node's port, or nowhere, and why.
func (w *world) way(p netip.Prefix) (at *node, why string) {
	name := w.routers.best(p)
	if name == "" {
		return nil, "no node announces it"
	}
	var stations [nodes + 1]string
	path := func(hops int) string { return strings.Join(stations[:hops+1], " -> ") }
	for hop := range stations {
		stations[hop] = name
		n := w.node(name)
		links := n.links()
		if links == nil {
			return nil, path(hop) + ": without power"
		}
		if to, diverted := links.DivertedTo(p); diverted {
			name = to.Name
			continue
		}
		if !links.Routed(p) {
			return nil, path(hop) + ": no port there has a route to it"
		}
		if hop == 0 {
			return n, name
		}
		return n, path(hop)
	}
	return nil, path(nodes) + ": a loop"
}

func (w *world) node(name string) *node {
	for _, n := range w.nodes {
		if n.self.Name == name {
			return n
		}
	}
	return nil
}
