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

// world is a cluster and its guests, and their true state, whatever the agents
// know.
type world struct {
	cluster fabric.Cluster
	routers *routers
	nodes   []*node
	guests  []*guest  // the guests that a history names
	shared  *registry // of all nodes; nil: there is none
	setting
	activity

	mu       sync.Mutex
	copies   []*guest // further guests with the same addresses
	lost     losses
	failures []string
}

// losses are what the agents cannot know any more.
type losses struct {
	last   time.Time // when a node lost its disk, or state that it could not store: the agents may not know any more which guest had an address first
	disk   bool      // a node lost its disk
	clocks bool      // a clock is wrong, or was
}

// setting is what never changes in a world.
type setting struct {
	seed   uint64
	delay  time.Duration // between two agents, one way
	spread time.Duration // from a node to the core gateway
	began  time.Time
}

// guest is a guest and its true place.
type guest struct {
	vm       fabric.VM
	prefixes []netip.Prefix // of its addresses
	lease    lease
	busy     sync.Mutex // held during a start, stop or move, like libvirt's job lock

	mu sync.Mutex
	place
	started time.Time
	ran     map[*node]bool // the nodes where it ran
	told    time.Time      // when an agent last took its move for a start
	refused string
}

// place is the true state of a guest at one moment.
type place struct {
	at       *node // nil: it does not run
	since    time.Time
	paused   bool // its processor stands still during a move
	to       *node
	starting *node     // the node where its process is about to begin
	left     *node     // the node that it left, and where its process still stands
	away     bool      // the hypervisor's daemon there is away, and does not say so
	waited   bool      // the agent there still waited for another node to let go of it when it began to leave
	quiet    bool      // it has sent no frame at its destination yet
	also     *node     // the second node where it runs
	later    bool      // the first of the two nodes knew that it runs there, and with which epoch, when the second began
	twice    time.Time // when it last ran on two nodes
	settled  bool      // its hooks have succeeded
	moved    bool      // it came by a live migration, and the routers knew its former node
	first    time.Time // since when it has its addresses, on any node
	orphan   time.Time // when the node that was taking it over lost its power
	untold   bool      // it moves to a node whose agent takes the move for a start
	taker    *life     // the agent that was asked about its start
	ageless  bool      // the agents may not know any more since when it has its addresses
}

// now returns the guest's place.
func (g *guest) now() place {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.place
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

// aging watches a move of the guest between two nodes. Call arrived when the guest
// has arrived. The source tells the destination since when the guest has its
// addresses, if the agents of both run undisturbed during the whole move. If not,
// arrived notes that the destination may not know.
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

// once notes that the guest runs on one node alone, after it ran on two.
func (g *guest) once(at *node) {
	g.set(func(g *guest) {
		g.at, g.also, g.paused, g.settled, g.moved, g.twice = at, nil, false, true, false, time.Now()
	})
}

// forget notes that a node has lost state.
func (w *world) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost.last = time.Now()
}

// hasLostDisk reports whether a node lost its disk.
func (w *world) hasLostDisk() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost.disk
}

// disturb notes that a step that is not ordinary begins, or ends.
func (w *world) disturb(k Kind, by int) {
	if k == Forget {
		w.forget()
		w.mu.Lock()
		w.lost.disk = true
		w.mu.Unlock()
	}
	w.disturbed(by, k != Copy && k != Twice)
}

// refuse notes why the agent refused to start the guest.
func (g *guest) refuse(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refused = err.Error()
}

func newWorld(seed uint64, delay, spread time.Duration) *world {
	ip, prefix := netip.MustParseAddr, netip.MustParsePrefix
	w := &world{setting: setting{seed: seed, delay: delay, spread: spread, began: time.Now()}, cluster: fabric.Cluster{
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
		w.nodes = append(w.nodes, &node{world: w, self: self, end: ends[self.Name], power: true, boot: 1, faults: faults{cuts: map[string]cutOff{}}, storage: newStorage()})
	}
	for i := range guests {
		vm := domain(guestName(i), i, i)
		if i >= domains {
			vm = instance(vm)
		}
		w.guests = append(w.guests, w.describe(vm))
	}
	return w
}

// describe makes a guest.
func (w *world) describe(vm fabric.VM) *guest {
	return &guest{vm: vm, prefixes: vm.Prefixes(), lease: leaseOf(vm, &w.cluster), ran: map[*node]bool{}}
}

// domain makes a guest of libvirt with an address of each family.
func domain(name string, id, address int) fabric.VM {
	return fabric.VM{
		Name: name, UUID: fmt.Sprintf("6b9c1c3e-7b0a-4b61-9c59-0000000000%02d", id), Origin: "libvirt",
		NICs: []fabric.NIC{{
			Addresses: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("203.0.113.%d", 10+address)), netip.MustParseAddr(fmt.Sprintf("2001:db8:100::%d", 10+address))},
			Kind:      fabric.Tap, MAC: fabric.MAC{0x52, 0x54, 0, 0, 0, byte(id)},
		}},
	}
}

// instance makes a guest of libvirt one of LXD.
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

// all lists the guests, and copies, too.
func (w *world) all() []*guest {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Concat(w.guests, w.copies)
}

// runningOn sets the guests that the sources of an agent list: those that run on
// the node now, and no others.
func (w *world) runningOn(n *node, l *life) {
	for _, g := range w.all() {
		s := l.sources[g.vm.Origin]
		s.Know(g.vm.Name, g.vm)
		switch p := g.now(); {
		case p.at == n || p.also == n || g.instance() && p.to == n:
			s.SetQuietly(g.vm, fabric.Live)
		case p.to == n || p.starting == n:
			s.SetQuietly(g.vm, fabric.Wired)
		case p.left == n && !p.away:
			s.Leave(g.vm)
		default:
			s.SetQuietly(g.vm, fabric.Absent)
		}
	}
}

// died ends the guests of a node that lost its power.
func (w *world) died(n *node) {
	for _, g := range w.all() {
		switch p := g.now(); {
		case p.also == n:
			g.once(p.at)
		case p.at == n && p.also != nil:
			g.once(p.also)
		case p.at == n && g.instance() && p.to != nil && p.to != n && p.to.on(): // it goes on at its destination
			g.set(func(g *guest) { g.at, g.to, g.paused = p.to, nil, p.quiet })
		case p.at != nil && p.to == n:
			g.set(func(g *guest) { g.orphan = time.Now() })
		case p.at == n:
			g.set(func(g *guest) { g.at, g.paused, g.settled = nil, false, false })
		}
	}
}

// way follows a packet for a prefix from the core gateway. It returns the node at
// whose port the packet ends, or nil, and the path, with the reason if the packet
// is lost.
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
