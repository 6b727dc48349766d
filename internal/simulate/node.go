package simulate

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// node is a node of the cluster: the state that outlives its agent, and the agent.
type node struct {
	world *world
	self  fabric.Node
	end   *fake.Nodes
	faults
	storage *storage

	drain sync.Mutex // held while somebody drains the node

	mu     sync.Mutex
	kernel *fake.Dataplane // as the newest agent sees it
	life   *life           // nil: no agent runs
	boot   int
	power  bool
	downs  int // reasons why no agent runs
}

// life is an agent from its start to its end.
type life struct {
	agent    *agent.Agent
	sources  map[string]source // by the origin of their guests
	speaker  *speaker
	since    time.Time
	mortal   *mortal
	cancel   context.CancelFunc
	adopted  chan struct{}   // closed when the agent answers hooks
	diverted map[*guest]bool // the guests whose packets the node sent to another one when the agent began
	ended    chan struct{}
}

// mortal delays the effects of an agent, and makes them fail once the agent is
// killed.
type mortal struct {
	node *node
	mu   sync.Mutex
	rnd  *rand.Rand
	dead bool
}

func (m *mortal) die() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
}

func (m *mortal) err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return errDead
	}
	return nil
}

// take waits for the time that an effect takes. After an error the effect must not
// happen.
func (m *mortal) take() error {
	m.mu.Lock()
	span := between(m.rnd, 0, time.Millisecond)
	m.mu.Unlock()
	time.Sleep(span * m.node.slowness())
	return m.err()
}

// ports is the dataplane of an agent, until the agent is killed.
type ports struct {
	*fake.Dataplane
	*mortal
}

func (p ports) Put(ctx context.Context, port fabric.Port) error {
	if err := p.take(); err != nil {
		return err
	}
	before, err := p.Dataplane.Actual(ctx)
	if err != nil {
		return err
	}
	if err := p.Dataplane.Put(ctx, port); err != nil {
		return err
	}
	there := slices.ContainsFunc(before, func(s fabric.PortState) bool { return s.Name == port.Name })
	if port.NIC.Kind == fabric.Tap && !there { // nobody holds the other end of a new one
		p.SetCarrier(port.Name, false)
	}
	return nil
}

func (p ports) Remove(ctx context.Context, names ...string) error {
	if err := p.take(); err != nil {
		return err
	}
	return p.Dataplane.Remove(ctx, names...)
}

func (p ports) Divert(ctx context.Context, all []fabric.Port, to fabric.Node) (fabric.Diversion, error) {
	if err := p.take(); err != nil {
		return fabric.Diversion{}, err
	}
	return p.Dataplane.Divert(ctx, all, to)
}

func (p ports) Return(ctx context.Context, prefixes ...netip.Prefix) error {
	if err := p.take(); err != nil {
		return err
	}
	return p.Dataplane.Return(ctx, prefixes...)
}

// source is a hypervisor that takes a while to list its guests. Meanwhile they may
// change. It does not answer while its daemon is away.
type source struct {
	*fake.Source
	*mortal
}

// Guests implements [fabric.Source].
func (s source) Guests(ctx context.Context) ([]fabric.Desired, error) {
	if s.Name() == "libvirt" && s.node.isHypervisorAway() {
		return nil, errDaemon
	}
	guests, err := s.Source.Guests(ctx)
	s.mortal.mu.Lock()
	span := between(s.mortal.rnd, 0, 500*time.Millisecond)
	s.mortal.mu.Unlock()
	time.Sleep(span)
	return guests, err
}

var errDaemon = errors.New("connection refused")

// isHypervisorAway reports whether the node's libvirt says nothing of its guests.
func (n *node) isHypervisorAway() bool {
	return slices.ContainsFunc(n.world.all(), func(g *guest) bool { p := g.now(); return p.left == n && p.away })
}

// begin starts the node's agent, unless one runs, or something keeps it from
// running.
func (n *node) begin() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.life != nil || n.downs > 0 || !n.power {
		return
	}
	if n.kernel == nil {
		n.kernel = fake.NewDataplane(nil)
	} else {
		n.kernel = n.kernel.Again()
	}
	l := &life{mortal: &mortal{node: n, rnd: rand.New(rand.NewPCG(uint64(time.Since(n.world.began)), n.world.seed))}, since: time.Now(), sources: map[string]source{}, speaker: newSpeaker(n.self.Name, n.world.routers), adopted: make(chan struct{}), diverted: map[*guest]bool{}, ended: make(chan struct{})}
	for name, s := range map[string]*fake.Source{"libvirt": fake.NewSource("libvirt"), "lxd": fake.NewMovesByRestart("lxd")} {
		l.sources[name] = source{s, l.mortal}
	}
	n.world.runningOn(n, l)
	for _, g := range n.world.all() {
		_, l.diverted[g] = n.kernel.DivertedTo(g.prefixes[0])
	}
	options := []agent.Option{
		agent.WithSources(l.sources["libvirt"], l.sources["lxd"]), agent.WithNodes(wire{n.end, l.mortal, n.world.delay}),
		agent.WithBoot(fmt.Sprint("boot ", n.boot)), agent.WithClock(n.clock),
	}
	if shared := n.world.shared; shared != nil {
		options = append(options, agent.WithRegistry(reach{shared, l.mortal, l.since}))
	}
	agent, err := agent.New(agent.Config{
		Cluster: n.world.cluster, Node: n.self.Name,
		Dataplane: ports{n.kernel, l.mortal}, Speaker: l.speaker, Store: disk{n.storage.current(), l.mortal},
	}, options...)
	if err != nil {
		n.world.fail("node %s: %v", n.self.Name, err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.agent, l.cancel = agent, cancel
	n.life = l
	n.storage.begin()
	go func() {
		defer close(l.ended)
		if err := agent.Adopt(ctx); err != nil && l.mortal.err() == nil {
			n.world.fail("node %s: %v", n.self.Name, err)
		}
		if l.mortal.err() != nil {
			return
		}
		n.world.routers.open(l.speaker)
		close(l.adopted)
		if err := agent.Run(ctx); err != nil {
			n.world.fail("node %s: %v", n.self.Name, err)
		}
	}()
}

// kill ends the node's agent at once.
func (n *node) kill() {
	n.mu.Lock()
	l := n.life
	n.life = nil
	power := !n.power
	n.mu.Unlock()
	if l == nil {
		return
	}
	if n.broken() { // the node forgets what the agent could not store
		n.world.forget()
	}
	l.mortal.die()
	l.speaker.die()
	n.world.routers.lost(n.self.Name, power)
	l.cancel()
	<-l.ended
}

// down keeps the node without an agent for a time.
func (n *node) down(d time.Duration) {
	n.mu.Lock()
	n.downs++
	n.mu.Unlock()
	n.kill()
	time.Sleep(d)
	n.mu.Lock()
	n.downs--
	n.mu.Unlock()
	n.begin()
}

// forget empties the node's disk, and keeps the node without an agent for a time.
func (n *node) forget(d time.Duration) {
	n.mu.Lock()
	n.downs++
	n.mu.Unlock()
	n.kill()
	n.storage.lose()
	time.Sleep(d)
	n.mu.Lock()
	n.downs--
	n.mu.Unlock()
	n.begin()
}

// powerOff takes the node's power for a time. Only its disk survives.
func (n *node) powerOff(d time.Duration) {
	n.mu.Lock()
	if !n.power {
		n.mu.Unlock()
		return
	}
	n.power = false
	n.boot++
	n.mu.Unlock()
	n.world.died(n)
	n.kill()
	n.mu.Lock()
	n.kernel = nil
	n.mu.Unlock()
	n.storage.tear(n.slowness(), n.world.setting)
	time.Sleep(d)
	n.mu.Lock()
	n.power = true
	n.mu.Unlock()
	n.begin()
}

// cut adds a reason why the agents of two nodes do not reach each other, or removes
// one.
func (n *node) cut(other *node, by int) {
	for _, ends := range [][2]*node{{n, other}, {other, n}} {
		ends[0].addCut(ends[0].end, ends[1].self.Name, by)
	}
}

// isDrained reports whether the node is drained, or its drain is under way.
func (n *node) isDrained() bool {
	since, _ := n.storage.current().Drained(context.Background())
	return !since.IsZero()
}

// hasEpoch reports whether the disk has the epoch with which a guest runs, and the node
// has not lost it to another one: it says the epoch to a node that asks.
func (n *node) hasEpoch(g *guest) bool {
	all, _ := n.storage.current().All(context.Background())
	return slices.ContainsFunc(all, func(d fabric.Desired) bool {
		return d.VM.Name == g.vm.Name && d.State == fabric.Live && d.Lost == "" && d.Epoch > 0
	})
}

// boots returns the number of the node's last boot, or of the next one while it has
// no power.
func (n *node) boots() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.boot
}

// setClock sets by how much the node's clock is ahead.
func (n *node) setClock(by time.Duration) {
	n.world.mu.Lock()
	n.world.lost.clocks = true
	n.world.mu.Unlock()
	n.faults.setAhead(by)
}

// alive returns the node's agent, or nil.
func (n *node) alive() *life {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.life
}

// links returns the node's kernel, or nil without power.
func (n *node) links() *fake.Dataplane {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.power {
		return nil
	}
	return n.kernel
}

// tell makes the hypervisor emit an event, unless the node is deaf. A list of its
// guests is true in any case.
func (n *node) tell(g *guest, state fabric.State) {
	l, deaf := n.alive(), n.isDeaf()
	switch {
	case l == nil:
	case deaf:
		l.sources[g.vm.Origin].SetQuietly(g.vm, state)
	default:
		l.sources[g.vm.Origin].Set(g.vm, state)
	}
	time.Sleep(time.Microsecond) // what the hypervisor does next is later
}

// leaves makes the hypervisor emit that a guest stopped to run elsewhere.
func (n *node) leaves(g *guest) {
	l, deaf := n.alive(), n.isDeaf()
	if l != nil && !deaf {
		l.sources[g.vm.Origin].Leave(g.vm)
	}
}

// deafen makes the hypervisor emit no event for a time, then that some were lost.
func (n *node) deafen(d time.Duration) {
	if !n.setDeaf(true) {
		return
	}
	time.Sleep(d)
	n.setDeaf(false)
	l := n.alive()
	if l != nil {
		n.world.runningOn(n, l)
		for _, s := range l.sources {
			s.Lose()
		}
	}
}

// hook asks the node's agent as a hook does. It waits for an agent that restarts,
// up to wait, and for the answer.
func (n *node) hook(wait time.Duration, ask func(ctx context.Context, a *agent.Agent) error) error {
	end := time.Now().Add(wait)
	for {
		if l := n.alive(); l != nil {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			err := errDead
			select {
			case <-l.adopted:
				err = ask(ctx, l.agent)
			case <-l.ended:
			}
			cancel()
			if l.mortal.err() == nil {
				return err
			}
		}
		if !time.Now().Before(end) {
			return errDead
		}
		time.Sleep(100 * time.Millisecond)
	}
}
