package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/migration"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/plan"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/reservation"
	"github.com/vmfabric/vmfabric/fabric/internal/text"
)

// Config has the required parts of an [Agent].
type Config struct {
	Cluster   fabric.Cluster // New fills the defaults in
	Node      string         // the name of this node in Cluster
	Dataplane fabric.Dataplane
	Speaker   fabric.Speaker
	Store     fabric.Store
}

// Option sets an optional part of an [Agent].
type Option func(*Agent)

// WithSources lets the agent follow hypervisors.
func WithSources(s ...fabric.Source) Option {
	return func(a *Agent) { a.sources = append(a.sources, s...) }
}

// WithLogger sets the logger; without it, the agent does not log.
func WithLogger(l *slog.Logger) Option { return func(a *Agent) { a.log = l } }

// WithBoot sets the ID of the machine's present boot (Linux:
// /proc/sys/kernel/random/boot_id). At its start the agent forgets guests of a
// [fabric.Source] that were wanted in another boot: their hypervisor starts them
// again.
func WithBoot(id string) Option { return func(a *Agent) { a.boot = id } }

// WithRemedies sets the function that gives the way out of a problem, in terms of
// the program that runs the agent: its commands and files. The agent appends it to
// its texts for people; an empty remedy adds nothing.
func WithRemedies(of func(fabric.Reason) string) Option { return func(a *Agent) { a.remedies = of } }

// WithClock sets the clock whose time of day the agent tells other nodes: since when
// it has a guest, and the guest's epoch. The default is the machine's. Durations do
// not depend on it.
func WithClock(now func() time.Time) Option { return func(a *Agent) { a.clock = now } }

// WithTraffic sets the function that reads what the node has forwarded for guests.
// Without it [Agent.Traffic] returns an error that is [errors.ErrUnsupported].
func WithTraffic(read func(context.Context) ([]fabric.Traffic, error)) Option {
	return func(a *Agent) { a.traffic = read }
}

// Agent keeps the guests of one node in their wanted state. A program makes one
// with [New], calls [Agent.Adopt] before it opens BGP sessions, and then
// [Agent.Run], which returns when its context ends. The other methods are safe for
// concurrent use once Adopt has returned. The agent works on one guest in one
// goroutine at a time, and on different guests side by side.
type Agent struct {
	facts
	parts
	state  *guarded
	turns  turns         // of the tasks, by guest
	wake   chan struct{} // wakes Run for a pass
	alarm  alarm         // wakes Run for a pass later
	review chan struct{} // wakes reconsider, which reviews guests that other nodes have or want

	peerQueues peerQueues    // messages to the other nodes
	moves      moveLog       // reports of guests' moves
	diverted   diversionLog  // diversions of guests' packets, for Status
	questions  chan struct{} // one item for each question that the resolver has not answered
	events     events
	conditions conditions
	inventory  inventory

	registration registration
	registries   registries // of other nodes
	counts       *statistics
}

// facts are the properties of an agent that never change, but for the cluster.
type facts struct {
	current  atomic.Pointer[fabric.Cluster] // see Reconfigure
	node     string
	boot     string
	began    time.Time
	clock    func() time.Time // the time of day
	alone    bool             // the agent can ask no other node
	fenced   bool             // the epochs are those of a registry that all nodes share
	remedies func(fabric.Reason) string
	restarts map[string]bool // the names of its sources; true: see [fabric.Source.MovesByRestart]
}

// withRemedy appends the way out to a text.
func (f *facts) withRemedy(text string, r fabric.Reason) string {
	if f.remedies == nil {
		return text
	}
	if remedy := f.remedies(r); remedy != "" {
		return text + "; " + remedy
	}
	return text
}

// tells reports whether the agent has a source of that name which reports when its
// guests begin to run.
func (f *facts) tells(origin string) bool {
	restarts, followed := f.restarts[origin]
	return followed && !restarts
}

// parts are the backends of an agent.
type parts struct {
	dataplane fabric.Dataplane
	speaker   fabric.Speaker
	store     fabric.Store
	sources   []fabric.Source
	nodes     fabric.Nodes    // nil: the agent can ask no other node
	resolver  fabric.Resolver // nil: none
	registry  fabric.Registry // nil: none
	adoption  Adoption        // of the registry
	// registryIdentity gives that of the registry; nil: it cannot be told from another.
	registryIdentity func() fabric.RegistryIdentity
	// highestEpoch is that of all guests by the registry, as far as this node has seen.
	highestEpoch func() uint64
	log          *slog.Logger

	diagnosers []fabric.Diagnoser                              // of further parts
	traffic    func(context.Context) ([]fabric.Traffic, error) // nil: the node does not count
}

// expectation is how long after its announcement a migration to this node may begin.
const expectation = 5 * time.Minute

// New makes an agent. It calls no backend but [fabric.Source.Name] and
// [fabric.Source.MovesByRestart]. Its error lists all faults of the cluster, or says
// that the cluster has no such node.
func New(cfg Config, opts ...Option) (*Agent, error) {
	c := cfg.Cluster.WithDefaults()
	if err := fit(&c, cfg.Node); err != nil {
		return nil, err
	}
	a := &Agent{
		facts: facts{node: cfg.Node, began: time.Now(), clock: time.Now, restarts: map[string]bool{}},
		parts: parts{
			dataplane: cfg.Dataplane, speaker: cfg.Speaker, store: cfg.Store, log: slog.New(slog.DiscardHandler),
			highestEpoch: func() uint64 { return 0 },
		},
		wake: make(chan struct{}, 1), review: make(chan struct{}, 1), questions: make(chan struct{}, maxQuestions),
		registration: newRegistration(), counts: newStatistics(),
	}
	a.current.Store(&c)
	a.moves.ended, a.moves.over = make(chan struct{}, 1), a.counts.moved
	for _, o := range opts {
		o(a)
	}
	for _, s := range a.sources {
		a.inventory.await(s.Name())
		a.restarts[s.Name()] = s.MovesByRestart()
	}
	a.alone = a.nodes == nil
	a.fenced = a.registry != nil && a.registry.Shared() && !a.alone
	a.alarm.do = a.signal
	a.state = newGuarded(state{facts: &a.facts, later: a.alarm.after})
	return a, nil
}

// Apply brings a guest to a state on this node and returns when it is there. It is
// idempotent. If the guest breaks a rule, the agent refuses it
// ([fabric.ErrRefused]) and nothing changes. After any other error the guest is as
// it was before, or still absent. Absent is the exception: after an error it stays
// wanted, and the agent keeps trying.
func (a *Agent) Apply(ctx context.Context, vm fabric.VM, s fabric.State) error {
	switch s {
	case fabric.Absent:
		return a.remove(ctx, vm.Name, time.Time{})
	case fabric.Wired, fabric.Live:
		return a.ensure(ctx, vm, request{undo: true, anew: true, settle: func(prev fabric.Desired, known, incoming bool) (fabric.State, bool) {
			// A request for Wired may be the arrival of a migration. A request for
			// Live ends the migration.
			return s, s == fabric.Wired && (incoming || known && prev.Incoming)
		}})
	}
	return fmt.Errorf("guest %s: %v is not a state", vm.Name, s)
}

// Started brings a guest live whose hypervisor says that it runs. It only wires a
// guest that arrives by migration: that guest does not run here before the cutover,
// which its [fabric.Source] reports. After an error the guest stays wanted and the
// agent keeps trying.
func (a *Agent) Started(ctx context.Context, vm fabric.VM) error {
	return a.ensure(ctx, vm, request{runs: true, settle: func(prev fabric.Desired, known, incoming bool) (fabric.State, bool) {
		if incoming || known && prev.Incoming {
			return fabric.Wired, true
		}
		return fabric.Live, false
	}})
}

// Expect remembers for five minutes that a guest is about to arrive by migration. It
// does nothing if a guest of that name is here already, unless that one may have ended
// unheard: all its ports have lost carrier, or it is known from the store alone, as its
// hypervisor has not listed its guests yet. Its error is a [fabric.RefusedError] for an
// invalid name.
func (a *Agent) Expect(_ context.Context, vm string) error {
	if err := fabric.ValidateName(vm); err != nil {
		return &fabric.RefusedError{VM: vm, Reason: fabric.RuleBroken, Err: err}
	}
	s, done := a.state.open()
	defer done()
	if g, here := s.guests[vm]; here && g.want.State != fabric.Absent && !g.hasNoCarrier() && !a.inventory.awaits(g.want.VM.Origin) {
		a.log.Info("migration to this node announced for a guest that is here; left alone", "vm", vm)
		return nil
	}
	s.expected[vm] = time.Now()
	a.moves.expect(vm, a.node)
	return nil
}

// hasNoCarrier reports whether a live guest has no port with carrier: its process is gone.
func (g *guest) hasNoCarrier() bool {
	return g.want.State == fabric.Live && len(g.want.VM.NICs) > 0 && g.nics.Down() == len(g.want.VM.NICs)
}

// Withdraw withdraws the routes of a guest and leaves its ports. It does nothing
// for a guest that is not here. After an error the agent keeps trying.
func (a *Agent) Withdraw(ctx context.Context, vm string) error {
	t, end := a.begin(vm)
	defer end()
	d, known := a.take(vm, time.Now())
	if !known || d.State == fabric.Absent {
		return nil
	}
	if d.State != fabric.Wired {
		d.State, d.Since = fabric.Wired, time.Now()
	}
	d.Acquired = time.Time{} // another guest may have the address from now on
	t.ends(d)
	t.arrive(d, migration.Ended)
	d.Incoming = false
	err := t.withdraw(ctx, d.VM.Prefixes())
	if err == nil {
		t.release(d)
	}
	err = errors.Join(err, a.store.Put(ctx, d))
	t.settle(d, false, err)
	if err != nil {
		a.signal()
		return fmt.Errorf("guest %s: %w; the agent keeps trying", vm, err)
	}
	return nil
}

// request says how ensure brings a guest up.
type request struct {
	// settle gives the wanted state, and whether the guest is Incoming. prev is the
	// guest before, if known; incoming: its migration to this node was announced.
	settle func(prev fabric.Desired, known, incoming bool) (fabric.State, bool)
	undo   bool      // on an error, bring the guest back to the state before
	anew   bool      // a start or a request of the user: an earlier preemption does not count any more
	runs   bool      // the guest runs already, so it keeps the addresses that it started with
	run    string    // see [fabric.Desired.Run]; empty: as before, or unknown with anew
	asOf   time.Time // when the source looked at the guest; zero: now
}

// ensure brings a guest up. Hooks, the command line and the sources all use it.
func (a *Agent) ensure(ctx context.Context, vm fabric.VM, r request) error {
	t, end := a.begin(vm.Name)
	defer end()
	began := time.Now()
	s, done := a.state.open()
	outdated := s.outdated(vm.Name, r.asOf)
	done()
	if outdated {
		return nil // a newer request for this guest was handled since the source looked
	}
	vm, found, err := t.inquire(ctx, vm, r)

	s, done = a.state.open()
	if s.outdated(vm.Name, r.asOf) {
		done()
		return nil // the guest ended while the resolver or the other nodes were asked
	}
	var is admission
	if err == nil {
		is, err = s.admit(vm, r, found, began)
	}
	if err == nil {
		if s.guests[vm.Name].registered = found.registered; a.registry != nil && !s.recorded(s.guests[vm.Name]) {
			signal(a.registration.wake)
		}
	}
	s.handled[vm.Name] = cmp.Or(r.asOf, began)
	done()
	if err != nil {
		err = refused(vm.Name, err)
		t.giveBack(ctx, found.fresh)
		a.handBack(vm, found.grant)
		a.counts.attached(time.Since(began), err)
		return err
	}
	a.recovered(vm)
	if found.asked {
		a.setUnrecorded(vm.Name, found.unrecorded)
	}
	d := is.want
	if !is.known || d.Incoming {
		t.stopForwarding(ctx, vm)
	}
	stored, converged := t.commit(ctx, is, r.undo)
	err = errors.Join(stored, converged)
	changed := !is.known || is.was.State != d.State
	if err != nil || changed {
		a.counts.attached(time.Since(began), err)
	}
	if err != nil && r.undo {
		t.undo(ctx, is)
		t.giveBack(ctx, found.fresh)
		if !is.known {
			a.handBack(vm, found.grant)
		}
		return fmt.Errorf("guest %s: %w", vm.Name, err)
	}
	if changed {
		t.step(ctx, migration.SourceStarted, fabric.Node{}, "")
	}
	t.settle(d, announced(d) && converged == nil, err)
	a.peerQueues.kick()
	if err != nil {
		a.signal()
		return fmt.Errorf("guest %s: %w; the agent keeps trying", vm.Name, err)
	}
	a.log.Info(d.State.String(), "vm", vm.Name, "port", fabric.PortName(vm.Name, 0), "took", time.Since(began))
	if d.State == fabric.Live && (a.restarts[vm.Origin] || slices.ContainsFunc(vm.NICs, func(n fabric.NIC) bool { return n.Kind == fabric.Adopt })) {
		a.signal() // the guest may have run before the port was ours: let a pass look at carrier and frames
	}
	return nil
}

// admission is an admitted request: the guest as wanted now, and as wanted before.
type admission struct {
	want, was fabric.Desired
	known     bool              // the guest was here before
	orphan    bool              // only its port was known
	arrived   migration.Arrival // the state of its move to this node before
}

// inquiry is what a task found out about a guest before it is admitted.
type inquiry struct {
	holder             // the guest that has an address of it on another node
	allotment          // what the registry did
	grant     grant    // the ownership that the registry gave this node for its start
	others    []string // all other nodes
}

// inquire asks everybody who has a say in what a guest has: resolvers, the registry and
// the other nodes. It returns the guest with its addresses.
func (t *task) inquire(ctx context.Context, vm fabric.VM, r request) (fabric.VM, inquiry, error) {
	found := inquiry{others: t.others()}
	if r.runs {
		vm = t.asStarted(vm)
	}
	vm, err := t.resolve(ctx, vm)
	if err == nil {
		vm, found.allotment, err = t.allocate(ctx, vm, r)
	}
	if err == nil {
		found.holder, err = t.acquire(ctx, vm, r, found.others)
	}
	if err == nil && t.fenced {
		found.grant, err = t.own(ctx, vm, r, found)
	}
	return vm, found, err
}

// commit stores an admitted guest as it is wanted, and brings the backends to that. With
// undo, what could not be stored is not begun.
func (t *task) commit(ctx context.Context, is admission, undo bool) (stored, converged error) {
	d, prev := is.want, is.was
	cutover := is.known && prev.Incoming && d.State == fabric.Live // all packets wait: store it afterwards
	if !cutover {
		stored = t.store.Put(ctx, d)
	}
	if stored == nil || !undo { // a guest that runs gets its network even if the store fails
		converged = t.converge(ctx, d, prev)
	}
	if cutover {
		stored = t.store.Put(ctx, d)
	}
	return stored, converged
}

// settles says how a request finds a guest, and what it makes of it.
func (s *state) settles(vm fabric.VM, r request, other holder) (is admission) {
	if g, there := s.guests[vm.Name]; there {
		// A guest whose removal is not finished is not here, but its remains are.
		is.was, is.known = g.want, g.want.State != fabric.Absent
	}
	// A guest that runs on another node arrives by migration even if this agent did
	// not see the announcement: the hook may have sent it while the agent was
	// restarting. The source reports when the guest runs here.
	incoming := s.expects(vm.Name) || other.same && !is.known && s.tells(vm.Origin)
	is.want = fabric.Desired{VM: vm, Run: r.run, Boot: s.boot}
	is.want.State, is.want.Incoming = r.settle(is.was, is.known, incoming)
	return is
}

// admit admits a guest and reserves its addresses and port names, or says why not.
func (s *state) admit(vm fabric.VM, r request, found inquiry, now time.Time) (admission, error) {
	g, there := s.guests[vm.Name]
	expected := s.expects(vm.Name)
	is, other := s.settles(vm, r, found.holder), found.holder
	d := is.want
	d.Since = now
	if is.known {
		d.Epoch, d.Unreleased, d.Acquired = is.was.Epoch, is.was.Unreleased, is.was.Acquired
		lostAs(&d, is.was)
		if is.was.State == d.State {
			d.Since = is.was.Since
		}
	}
	if r.anew {
		lostAs(&d, fabric.Desired{})
	} else if is.known {
		d.Run = cmp.Or(r.run, is.was.Run)
	}
	if other.node != "" && !other.same {
		lostAs(&d, fabric.Desired{Lost: other.node, LostGuest: other.vm})
	}
	err := s.acceptable(vm, is.known)
	if err == nil && r.undo && is.known && !g.orphan { // of an orphan nobody knows who made its links
		err = keepsMaker(is.was.VM, vm)
	}
	if err == nil {
		err = s.reserve(vm)
	}
	if err != nil {
		return is, err
	}
	event := migration.StartedAnew
	switch {
	case d.Incoming:
		event = migration.Prepared
	case d.State == fabric.Live:
		event = migration.GuestRuns
	}
	switch {
	case is.known:
		is.arrived = g.arrival
	case expected:
		is.arrived = migration.Expected
	}
	delete(s.expected, vm.Name)
	if !there {
		g = &guest{want: d}
		s.guests[vm.Name] = g
	}
	g.admitted = time.Now()
	is.orphan, g.orphan = g.orphan, false
	g.heard = max(g.heard, other.epoch, found.ownedBefore(s.node)) // this start is later, whatever the clocks say
	if found.grant != (grant{}) {
		g.grant = found.grant
	}
	g.nics = plan.Begin(vm, is.was, g.nics, s.restarts[vm.Origin]) // the next pass finds the actual states
	g.arrival = migration.NextArrival(is.arrived, event).To
	g.acquires(&d, is.was)
	if r.anew {
		g.differs = ""
	}
	s.takeOwnership(g, &d, g.nics, found.others)
	is.want = d
	if is.orphan {
		g.want = d // its port says no identity: nobody may take it for another guest meanwhile
	}
	return is, nil
}

// expects reports whether the migration of a guest to this node was announced in the
// last minutes (expectation).
func (s *state) expects(vm string) bool {
	at, announced := s.expected[vm]
	return announced && time.Since(at) < expectation
}

// converge brings the kernel and the speaker from prev (zero: the guest was absent)
// to d. It withdraws routes before it touches ports, and announces routes after
// that.
func (t *task) converge(ctx context.Context, d, prev fabric.Desired) error {
	vm := d.VM.Name
	s, done := t.state.open()
	g := s.guests[vm]
	st, ports, holds := g.nics, s.portsOf(g, d), s.reserved.Held(vm)
	want := plan.Guest{Standby: d.Standby, Draining: s.draining(), Defends: g.defends(time.Now()), Holder: s.saysHolder(g, d), Blackholed: s.blackholed()}
	g.reported.incoming = d.Incoming || g.reported.incoming && d.State == fabric.Live
	done()

	hops := t.missingHops()
	live := announced(d)
	var announce []fabric.Route
	quiet := without(holds.Prefixes, d.VM.Prefixes())
	for i, p := range ports {
		for _, prefix := range p.NIC.Prefixes() {
			live := live && hops.Of(prefix) == nil
			if live && st[i] != plan.Down {
				announce = append(announce, want.Route(prefix, st[i]))
			} else if len(prev.VM.NICs) > 0 {
				quiet = append(quiet, prefix)
			}
		}
	}
	if err := t.withdraw(ctx, quiet); err != nil {
		return err
	}
	if gone := without(holds.Ports, portNames(d.VM)); len(gone) > 0 {
		if err := t.dataplane.Remove(ctx, gone...); err != nil {
			return fmt.Errorf("remove %s: %w", gone[0], err)
		}
		t.emitDetached(prev.VM, gone...)
	}
	var there []fabric.Port
	for _, p := range ports {
		began := time.Now()
		err := t.dataplane.Put(ctx, p)
		if errors.Is(err, os.ErrNotExist) && p.NIC.Kind == fabric.Adopt {
			// The owner has not made the link yet, or has removed it. The dataplane
			// reports when the link appears, and the pass then comes back to it.
			if err := t.withdraw(ctx, p.NIC.Prefixes()); err != nil {
				return err
			}
			announce = slices.DeleteFunc(announce, func(r fabric.Route) bool { return slices.Contains(p.NIC.Prefixes(), r.Prefix) })
			t.setDown(p.Index)
			t.emitDetached(d.VM, p.Name)
			continue
		}
		if err != nil {
			return fmt.Errorf("port %s: %w", p.Name, err)
		}
		t.log.Debug("wired", "vm", vm, "port", p.Name, "took", time.Since(began))
		there = append(there, p)
	}
	t.emitAttached(d.VM, there)
	if d.Incoming && d.State == fabric.Wired {
		t.arrive(d, migration.PortsReady)
		t.peerQueues.kick()
	}
	if len(announce) > 0 {
		began := time.Now()
		if err := t.speaker.Put(ctx, announce...); err != nil {
			return fmt.Errorf("announce %s: %w", text.Prefix(announce[0].Prefix), err)
		}
		t.log.Debug("announced", "vm", vm, "prefix", announce[0].Prefix, "prefixes", len(announce), "took", time.Since(began))
		t.arrive(d, migration.RoutesSent)
		t.restarted()
	}
	t.keepOnly(d.VM)
	t.emitAnnounced(d, announce)
	return nil
}

// undo brings a guest back to its state before a request that failed.
func (t *task) undo(ctx context.Context, is admission) {
	d, prev := is.want, is.was
	// The caller may be gone, so that ctx has ended; undo must finish nevertheless.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if is.known {
		s, done := t.state.open()
		s.guests[t.vm].arrival, s.guests[t.vm].orphan = is.arrived, is.orphan
		done()
		err := t.store.Put(ctx, prev)
		if err == nil {
			err = t.converge(ctx, prev, d)
		}
		t.settle(prev, announced(prev) && err == nil, err)
		t.signal()
		return
	}
	d.State = fabric.Absent
	t.settle(d, false, nil)
	if err := t.tearDown(ctx, d, false); err != nil {
		t.settle(d, false, err)
		t.log.Warn("half-made guest not undone yet; trying again", "vm", d.VM.Name, "err", err)
		t.signal()
	}
}

// reconcile brings a guest to its wanted state again. st are the states of its NICs
// as just found; nil: keep the known ones.
func (t *task) reconcile(ctx context.Context, st plan.NICStates) error {
	others := t.others()
	s, done := t.state.open()
	is, known := s.reassess(t.vm, st, others)
	done()
	if !known {
		return nil
	}
	d := is.want
	if d.State == fabric.Absent {
		err := t.tearDown(ctx, d, false)
		if err != nil {
			t.settle(d, false, err)
		}
		return err
	}
	converged := t.converge(ctx, d, d)
	err := converged
	if is.unsaved { // the store may have caused the trouble
		err = errors.Join(err, t.keepState(ctx, d))
	}
	t.settle(d, announced(d) && converged == nil, err)
	t.peerQueues.kick()
	if is.settled {
		t.moves.settled(t.vm)
	}
	return err
}

// reassessment is the wanted state of a guest after a look at its NICs.
type reassessment struct {
	want    fabric.Desired
	unsaved bool // the store may have an older state
	settled bool // the guest came from another node, and its routes are not Fresh any more
}

// reassess takes over the states of a guest's NICs as found (nil: keep the known
// ones), and gives the wanted state now.
func (s *state) reassess(vm string, st plan.NICStates, others []string) (is reassessment, known bool) {
	g := s.guests[vm]
	if g == nil {
		return is, false
	}
	if st != nil {
		g.nics = st
	}
	d := g.want
	if g.has && g.hasNoCarrier() {
		lostAs(&d, fabric.Desired{}) // the guest's process is gone; its next start is later than that of the other node
	}
	if d.State == fabric.Live && !s.fresh(g, time.Now()) {
		next := migration.NextArrival(g.arrival, migration.OthersLetGo)
		is.settled = slices.Contains(next.Effects, migration.Report) || g.restart.moving
		g.arrival, g.restart.moving = next.To, false
	}
	is.unsaved = s.takeOwnership(g, &d, g.nics, others) || g.trouble != nil || d.Lost != g.want.Lost
	is.want = d
	return is, true
}

// remove brings a guest down, as a source saw it at asOf (zero: now). For a guest
// that is not here it deletes a file that the store may have.
func (a *Agent) remove(ctx context.Context, vm string, asOf time.Time) error {
	t, end := a.begin(vm)
	defer end()
	s, done := a.state.open()
	outdated := s.outdated(vm, asOf)
	done()
	if outdated {
		return nil
	}
	began := time.Now()
	d, known := a.take(vm, cmp.Or(asOf, began))
	if !known {
		a.moves.close(vm) // it was only expected
		if err := a.store.Delete(ctx, vm); err != nil {
			return fmt.Errorf("guest %s: forget: %w", vm, err)
		}
		a.recovered(fabric.VM{Name: vm})
		if a.registry != nil { // an agent that was killed can have allocated for one that was attached by hand
			a.registration.forget(fabric.VM{Name: vm})
		}
		return nil
	}
	d.State = fabric.Absent
	byHand := d.VM.Origin == "" // nobody else keeps a description of it
	err := t.tearDown(ctx, d, byHand)
	if err != nil {
		t.settle(d, false, err)
		a.signal()
	}
	if byHand {
		a.goneForGood(ctx, d.VM)
	}
	if err != nil {
		return fmt.Errorf("guest %s: %w; the agent keeps trying", vm, err)
	}
	a.log.Info("absent", "vm", vm, "port", fabric.PortName(vm, 0), "took", time.Since(began))
	return nil
}

// tearDown withdraws a guest's routes, then removes its ports, then deletes its
// state. Of a guest that is gone for good the agent keeps that before its state goes, and
// no withdrawal waits for the disk.
func (t *task) tearDown(ctx context.Context, d fabric.Desired, forGood bool) error {
	vm := d.VM.Name
	t.ends(d)
	s, done := t.state.open()
	holds := s.reserved.Held(vm) // with what an unfinished change has left
	unused := s.takeGrant(vm)
	done()
	t.handBack(d.VM, unused)
	if err := t.withdraw(ctx, holds.Prefixes); err != nil {
		return err
	}
	if forGood {
		t.endsForGood(ctx, d.VM)
	}
	t.arrive(d, migration.Ended)
	t.release(d)
	t.moves.close(vm)
	began := time.Now()
	if err := t.dataplane.Remove(ctx, holds.Ports...); err != nil {
		return fmt.Errorf("remove %s: %w", fabric.PortName(vm, 0), err)
	}
	t.log.Debug("unwired", "vm", vm, "port", fabric.PortName(vm, 0), "took", time.Since(began))
	t.emitDetached(d.VM, holds.Ports...)
	if err := t.store.Delete(ctx, vm); err != nil {
		return fmt.Errorf("forget: %w", err)
	}
	s, done = t.state.open()
	s.reserved.Keep(vm, reservation.Set{})
	diverted, to := false, ""
	if g := s.guests[vm]; g != nil {
		diverted, to = s.gone(g), g.departure.to.Name
	}
	delete(s.guests, vm)
	done()
	if diverted {
		t.diverted.confirm(vm)
		t.wentFor(d.VM, to)
	}
	t.setUnrecorded(vm, nil)
	t.recovered(d.VM)
	return nil
}

func (t *task) withdraw(ctx context.Context, prefixes []netip.Prefix) error {
	if len(prefixes) == 0 {
		return nil
	}
	if err := t.speaker.Remove(ctx, prefixes...); err != nil {
		return fmt.Errorf("withdraw %s: %w", text.Prefix(prefixes[0]), err)
	}
	t.log.Debug("withdrawn", "vm", t.vm, "prefix", prefixes[0], "prefixes", len(prefixes))
	t.emitWithdrawn(t.vm, prefixes)
	return nil
}

// take gives the wanted state of the guest of a request. It records the time of the
// request, also for a guest that is not here.
func (a *Agent) take(vm string, asOf time.Time) (fabric.Desired, bool) {
	s, done := a.state.open()
	defer done()
	s.handled[vm] = asOf
	if !s.expected[vm].After(asOf) { // else this end came before the guest's return was announced
		delete(s.expected, vm)
	}
	g, known := s.guests[vm]
	if !known {
		return fabric.Desired{}, false
	}
	return g.want, true
}

// outdated reports whether a request for a guest newer than asOf was handled; never
// for the zero time, which stands for now.
func (s *state) outdated(vm string, asOf time.Time) bool {
	return !asOf.IsZero() && s.handled[vm].After(asOf)
}

// recovered clears the conditions of a guest, when a request for it was admitted or
// it is gone.
func (a *Agent) recovered(vm fabric.VM) {
	a.conditions.clear("guest "+vm.Name, permitKey(vm.Name), refusedKey(vm.Origin, vm.Name))
	a.inventory.resolved(vm.Name)
}

// refusedKey is the key of the condition that the agent refuses a guest of a source.
func refusedKey(source, vm string) string { return "refused " + source + " " + vm }

// settle records the outcome of an attempt to bring a guest to d.
func (t *task) settle(d fabric.Desired, announced bool, trouble error) {
	s, done := t.state.open()
	defer done()
	g := s.guests[d.VM.Name]
	if g == nil {
		g = &guest{}
		s.guests[d.VM.Name] = g
	}
	if g.want.Epoch == d.Epoch {
		// Answers of other nodes may have changed these meanwhile.
		d.Unreleased, d.Acquired = g.want.Unreleased, g.want.Acquired
	}
	g.want, g.announced, g.trouble = d, announced, trouble
	if g.unsettled() {
		s.unsettled[d.VM.Name] = true
	}
}

func (t *task) setDown(nic int) {
	s, done := t.state.open()
	defer done()
	st := plan.NICStates{}
	maps.Copy(st, s.guests[t.vm].nics)
	st[nic] = plan.Down
	s.guests[t.vm].nics = st
}

// signal wakes the pass.
func (a *Agent) signal() { signal(a.wake) }

func portNames(vm fabric.VM) []string {
	names := make([]string, len(vm.NICs))
	for n := range vm.NICs {
		names[n] = fabric.PortName(vm.Name, n)
	}
	return names
}

// without gives the elements of all that are not in some.
func without[T comparable](all, some []T) []T {
	set := make(map[T]struct{}, len(some))
	for _, v := range some {
		set[v] = struct{}{}
	}
	return slices.DeleteFunc(slices.Clone(all), func(v T) bool { _, in := set[v]; return in })
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
