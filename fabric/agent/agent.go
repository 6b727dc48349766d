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
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/migration"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/plan"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/reservation"
	"github.com/vmfabric/vmfabric/fabric/internal/text"
)

// Config is what an [Agent] cannot do without.
type Config struct {
	Cluster   fabric.Cluster // defaults are filled in
	Node      string         // which of the cluster's nodes this is
	Dataplane fabric.Dataplane
	Speaker   fabric.Speaker
	Store     fabric.Store
}

// Option changes an [Agent] at its making.
type Option func(*Agent)

// WithSources lets the agent follow hypervisors.
func WithSources(s ...fabric.Source) Option {
	return func(a *Agent) { a.sources = append(a.sources, s...) }
}

// WithLogger sets where the agent logs; it is silent without.
func WithLogger(l *slog.Logger) Option { return func(a *Agent) { a.log = l } }

// WithBoot tells the agent which boot of the machine this is (Linux:
// /proc/sys/kernel/random/boot_id). Guests of a [fabric.Source] that were wanted in
// another boot are forgotten when it starts: their hypervisor starts them again.
func WithBoot(id string) Option { return func(a *Agent) { a.boot = id } }

// WithRemedies lets the agent end what it says for people with the way out, as far
// as that is in the commands and files of whoever runs it. An empty one adds nothing.
func WithRemedies(of func(fabric.Reason) string) Option { return func(a *Agent) { a.remedies = of } }

// WithClock sets who tells the time of day, of which other nodes are told: since
// when a guest is here, and its epoch. It is that of the machine without. How long
// something takes does not depend on it.
func WithClock(now func() time.Time) Option { return func(a *Agent) { a.clock = now } }

// Agent keeps the guests of one node as they are wanted. A program makes one
// with [New], calls [Agent.Adopt] before it opens BGP sessions, and
// [Agent.Run] until it ends; the other methods are safe for concurrent use
// from Adopt's return on. Work on one guest is serial, work on different
// guests is not.
type Agent struct {
	facts
	parts
	state  *guarded
	turns  turns         // of those who work on guests
	wake   chan struct{} // has one when a pass is to be made
	alarm  alarm         // of passes that are to be made later
	review chan struct{} // has one when guests that other nodes have, or want, are to be looked at

	peerQueues peerQueues    // to the other nodes
	moves      moveLog       // what was seen of guests' moves
	diverted   diversionLog  // what the status tells of guests' packets that went elsewhere
	questions  chan struct{} // has one for each that the resolver has not answered
	events     events
	conditions conditions
	inventory  inventory
}

// facts hold as long as an agent does.
type facts struct {
	cluster  fabric.Cluster
	node     string
	boot     string
	began    time.Time
	clock    func() time.Time // the time of day
	alone    bool             // no other node can be asked
	remedies func(fabric.Reason) string
	restarts map[string]bool // the sources that are followed; true: their guests are to be heard, see [fabric.Source]
}

// withRemedy gives a text with the way out.
func (f *facts) withRemedy(text string, r fabric.Reason) string {
	if f.remedies == nil {
		return text
	}
	if remedy := f.remedies(r); remedy != "" {
		return text + "; " + remedy
	}
	return text
}

// tells reports whether a source of that name says when its guests begin to run.
func (f *facts) tells(origin string) bool {
	restarts, followed := f.restarts[origin]
	return followed && !restarts
}

// parts are what an agent works with.
type parts struct {
	dataplane fabric.Dataplane
	speaker   fabric.Speaker
	store     fabric.Store
	sources   []fabric.Source
	nodes     fabric.Nodes    // nil: this one is alone
	resolver  fabric.Resolver // nil: none
	log       *slog.Logger
}

// expectation is how long an announced migration may take to begin.
const expectation = 5 * time.Minute

// New makes an agent. It touches nothing yet.
func New(cfg Config, opts ...Option) (*Agent, error) {
	c := cfg.Cluster.WithDefaults()
	if ps := c.Validate(); len(ps) > 0 {
		errs := make([]error, len(ps))
		for i, p := range ps {
			errs[i] = p
		}
		return nil, fmt.Errorf("cluster %s: %w", c.Name, errors.Join(errs...))
	}
	if _, err := c.Node(cfg.Node); err != nil {
		return nil, err
	}
	a := &Agent{
		facts: facts{cluster: c, node: cfg.Node, began: time.Now(), clock: time.Now, restarts: map[string]bool{}},
		parts: parts{
			dataplane: cfg.Dataplane, speaker: cfg.Speaker, store: cfg.Store, log: slog.New(slog.DiscardHandler),
		},
		wake: make(chan struct{}, 1), review: make(chan struct{}, 1), questions: make(chan struct{}, maxQuestions),
	}
	a.moves.ended = make(chan struct{}, 1)
	for _, o := range opts {
		o(a)
	}
	for _, s := range a.sources {
		a.inventory.await(s.Name())
		a.restarts[s.Name()] = s.MovesByRestart()
	}
	a.alone = a.nodes == nil
	a.alarm.do = a.signal
	a.state = newGuarded(state{facts: &a.facts, later: a.alarm.after})
	return a, nil
}

// Apply brings a guest to a state on this node and returns when it is there.
// It is idempotent. A guest that breaks a rule is refused ([fabric.ErrRefused]) and
// nothing changes; after any other error the guest is as it was before, or
// still absent. Absent is the exception: it stays wanted, and the agent keeps
// trying.
func (a *Agent) Apply(ctx context.Context, vm fabric.VM, s fabric.State) error {
	switch s {
	case fabric.Absent:
		return a.remove(ctx, vm.Name, time.Time{})
	case fabric.Wired, fabric.Live:
		return a.ensure(ctx, vm, request{undo: true, anew: true, settle: func(prev fabric.Desired, known, incoming bool) (fabric.State, bool) {
			// A new start of a guest (Wired) may be the arrival of a migration;
			// that it is to be live ends it.
			return s, s == fabric.Wired && (incoming || known && prev.Incoming)
		}})
	}
	return fmt.Errorf("guest %s: %v is not a state", vm.Name, s)
}

// Started brings a guest live whose hypervisor says that it runs. A guest that
// is arriving by migration is only wired: it does not run here before the
// cutover, which its [fabric.Source] reports. On an error the guest stays wanted and
// the agent keeps trying.
func (a *Agent) Started(ctx context.Context, vm fabric.VM) error {
	return a.ensure(ctx, vm, request{runs: true, settle: func(prev fabric.Desired, known, incoming bool) (fabric.State, bool) {
		if incoming || known && prev.Incoming {
			return fabric.Wired, true
		}
		return fabric.Live, false
	}})
}

// Expect remembers that a guest is about to arrive by migration. It changes
// nothing, least of all a guest of that name that is here already.
func (a *Agent) Expect(_ context.Context, vm string) error {
	if err := fabric.ValidateName(vm); err != nil {
		return &fabric.RefusedError{VM: vm, Reason: fabric.RuleBroken, Err: err}
	}
	s, done := a.state.open()
	defer done()
	if g, here := s.guests[vm]; here && g.want.State != fabric.Absent {
		a.log.Info("migration to this node announced for a guest that is here; left alone", "vm", vm)
		return nil
	}
	s.expected[vm] = time.Now()
	a.moves.expect(vm, a.node)
	return nil
}

// Withdraw takes the announcement of a guest back and leaves its port. A
// guest that is not here is no error.
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
	d.Acquired = time.Time{} // it is over, whoever has the address next
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

// request is how a guest is to be brought up.
type request struct {
	settle func(prev fabric.Desired, known, incoming bool) (fabric.State, bool) // what is wanted, given what was
	undo   bool                                                                 // on an error, put things back as they were
	anew   bool                                                                 // a start, or the user's word: that it was lost to another node is past
	runs   bool                                                                 // it runs already, so it keeps what it started with
	run    string                                                               // see [fabric.Desired.Run]; empty: as before, unless anew
	asOf   time.Time                                                            // when the wish was true; zero: now
}

// ensure is the one way up, for hooks, the command line and the sources alike.
func (a *Agent) ensure(ctx context.Context, vm fabric.VM, r request) error {
	t, end := a.begin(vm.Name)
	defer end()
	began := time.Now()
	if a.outdated(vm.Name, r.asOf) {
		return nil // something newer was asked of this guest since the source looked
	}
	if r.runs {
		vm = t.asStarted(vm)
	}
	vm, err := t.resolve(ctx, vm)
	if a.outdated(vm.Name, r.asOf) {
		return nil // it ended while the resolver was asked
	}
	var other holder
	others := a.others()
	if err == nil {
		other, err = t.acquire(ctx, vm, r)
		if a.outdated(vm.Name, r.asOf) {
			return nil // or while the other nodes were
		}
	}

	s, done := a.state.open()
	var is admission
	if err == nil {
		is, err = s.admit(vm, r, other, others, began)
	}
	s.handled[vm.Name] = cmp.Or(r.asOf, began)
	done()
	if err != nil {
		return refused(vm.Name, err)
	}
	a.recovered(vm)
	d, prev, known := is.want, is.was, is.known

	if !known || d.Incoming {
		t.stopForwarding(ctx, vm)
	}
	var stored, raised error
	cutover := known && prev.Incoming && d.State == fabric.Live // every packet waits for it
	if !cutover {
		stored = a.store.Put(ctx, d)
	}
	if stored == nil || !r.undo { // a guest that runs gets its network whatever ails the disk
		raised = t.converge(ctx, d, prev)
	}
	if cutover {
		stored = a.store.Put(ctx, d)
	}
	err = errors.Join(stored, raised)
	if err != nil && r.undo {
		t.undo(ctx, is)
		return fmt.Errorf("guest %s: %w", vm.Name, err)
	}
	if !known || prev.State != d.State {
		t.step(ctx, migration.SourceStarted, fabric.Node{}, "")
	}
	t.settle(d, announced(d) && raised == nil, err)
	a.peerQueues.kick()
	if err != nil {
		a.signal()
		return fmt.Errorf("guest %s: %w; the agent keeps trying", vm.Name, err)
	}
	a.log.Info(d.State.String(), "vm", vm.Name, "port", fabric.PortName(vm.Name, 0), "took", time.Since(began))
	if d.State == fabric.Live && (a.restarts[vm.Origin] || slices.ContainsFunc(vm.NICs, func(n fabric.NIC) bool { return n.Kind == fabric.Adopt })) {
		a.signal() // its owner may have had it running before it was ours to look at
	}
	return nil
}

// admission is a request that was admitted: the guest as it is to be, and as it was
// wanted before.
type admission struct {
	want, was fabric.Desired
	known     bool              // it was here
	arrived   migration.Arrival // how far its move to this node had come
}

// admit takes a guest in, which holds from then on what it asks for, or tells why
// not. other is who has it, or an address of it, on another node.
func (s *state) admit(vm fabric.VM, r request, other holder, others []string, now time.Time) (admission, error) {
	var is admission
	g, there := s.guests[vm.Name]
	if there {
		// One whose removal is unfinished is not here, but what is left of it is.
		is.was, is.known = g.want, g.want.State != fabric.Absent
	}
	// One that runs on another node moves, although nobody announced it: the hook
	// did, to an agent that was being restarted. Its source says when it runs here.
	incoming := s.expects(vm.Name) || other.same && !is.known && s.tells(vm.Origin)
	d := fabric.Desired{VM: vm, Run: r.run, Since: now, Boot: s.boot}
	d.State, d.Incoming = r.settle(is.was, is.known, incoming)
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
	if err := s.acceptable(vm, is.known); err != nil {
		return is, err
	}
	if err := s.reserve(vm); err != nil {
		return is, err
	}
	event := migration.StartedAnew
	switch {
	case d.Incoming:
		event = migration.Prepared
	case d.State == fabric.Live:
		event = migration.GuestRuns
	}
	is.arrived = s.arrival(vm.Name)
	delete(s.expected, vm.Name)
	if !there {
		g = &guest{want: d}
		s.guests[vm.Name] = g
	}
	g.orphan = false
	g.heard = max(g.heard, other.epoch)                            // a start here is later than that, whatever the clocks say
	g.nics = plan.Begin(vm, is.was, g.nics, s.restarts[vm.Origin]) // how it stands in truth, the next pass sees
	g.arrival = migration.NextArrival(is.arrived, event).To
	g.acquires(&d, is.was)
	if r.anew {
		g.differs = ""
	}
	s.takeOwnership(g, &d, g.nics, others)
	is.want = d
	return is, nil
}

// arrival gives how far a guest's move to this node has come.
func (s *state) arrival(vm string) migration.Arrival {
	if g := s.guests[vm]; g != nil && g.want.State != fabric.Absent {
		return g.arrival
	}
	if s.expects(vm) {
		return migration.Expected
	}
	return migration.NoArrival
}

// expects reports whether the migration of a guest to this node was announced of late.
func (s *state) expects(vm string) bool {
	at, announced := s.expected[vm]
	return announced && time.Since(at) < expectation
}

// converge makes the guest as d says, where it was as prev says (zero when it was
// not). What is not to be announced is withdrawn before ports are touched, and
// what is, is announced after.
func (t *task) converge(ctx context.Context, d, prev fabric.Desired) error {
	vm := d.VM.Name
	s, done := t.state.open()
	g := s.guests[vm]
	st := g.nics
	want := plan.Guest{Standby: d.Standby, Draining: s.draining(), Defends: g.defends(), Holder: s.saysHolder(g, d)}
	g.reported.incoming = d.Incoming || g.reported.incoming && d.State == fabric.Live
	done()

	hops := t.missingHops()
	ports := t.portsOf(d)
	live := announced(d)
	var announce []fabric.Route
	holds := t.holds(d.VM)
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
		t.tellDetached(prev.VM, gone...)
	}
	var there []fabric.Port
	for _, p := range ports {
		began := time.Now()
		err := t.dataplane.Put(ctx, p)
		if errors.Is(err, os.ErrNotExist) && p.NIC.Kind == fabric.Adopt {
			// Its owner has not made it yet, or took it away; the pass that the
			// dataplane's change wakes comes back to it.
			if err := t.withdraw(ctx, p.NIC.Prefixes()); err != nil {
				return err
			}
			announce = slices.DeleteFunc(announce, func(r fabric.Route) bool { return slices.Contains(p.NIC.Prefixes(), r.Prefix) })
			t.setDown(p.Index)
			t.tellDetached(d.VM, p.Name)
			continue
		}
		if err != nil {
			return fmt.Errorf("port %s: %w", p.Name, err)
		}
		t.log.Debug("wired", "vm", vm, "port", p.Name, "took", time.Since(began))
		there = append(there, p)
	}
	t.tellAttached(d.VM, there)
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
	t.tellRaised(d, announce)
	return nil
}

// undo puts a guest back as it was before a request that went wrong.
func (t *task) undo(ctx context.Context, is admission) {
	d, prev := is.want, is.was
	// The caller may be gone, and with it ctx; what was begun is undone all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if is.known {
		s, done := t.state.open()
		s.guests[t.vm].arrival = is.arrived
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
	if err := t.tearDown(ctx, d); err != nil {
		t.settle(d, false, err)
		t.log.Warn("half-made guest not undone yet; trying again", "vm", d.VM.Name, "err", err)
		t.signal()
	}
}

// reconcile brings a guest to what is wanted of it again. A nil st leaves what is
// known of its NICs.
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
		err := t.tearDown(ctx, d)
		if err != nil {
			t.settle(d, false, err)
		}
		return err
	}
	raised := t.converge(ctx, d, d)
	err := raised
	if is.unsaved { // the trouble may have been the store's
		err = errors.Join(err, t.keepState(ctx, d))
	}
	t.settle(d, announced(d) && raised == nil, err)
	t.peerQueues.kick()
	if is.settled {
		t.moves.settled(t.vm)
	}
	return err
}

// reassessment is a guest that is to be as it is wanted again.
type reassessment struct {
	want    fabric.Desired
	unsaved bool // the store may not have it so
	settled bool // it came from another node, and does not come before others any more
}

// reassess takes up how the NICs of a guest were found, with nil that nobody has
// looked, and says what is wanted of it now.
func (s *state) reassess(vm string, st plan.NICStates, others []string) (is reassessment, known bool) {
	g := s.guests[vm]
	if g == nil {
		return is, false
	}
	if st != nil {
		g.nics = st
	}
	d := g.want
	if g.has && g.nics.Down() == len(d.VM.NICs) {
		lostAs(&d, fabric.Desired{}) // nobody holds it any more; who takes it up again has it later
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

// remove is the one way down. The wish was true at asOf, or is new when that
// is zero. Of a guest that is not here, what the store may keep goes.
func (a *Agent) remove(ctx context.Context, vm string, asOf time.Time) error {
	t, end := a.begin(vm)
	defer end()
	if a.outdated(vm, asOf) {
		return nil
	}
	began := time.Now()
	d, known := a.take(vm, cmp.Or(asOf, began))
	if !known {
		if err := a.store.Delete(ctx, vm); err != nil {
			return fmt.Errorf("guest %s: forget: %w", vm, err)
		}
		a.recovered(fabric.VM{Name: vm})
		return nil
	}
	d.State = fabric.Absent
	if err := t.tearDown(ctx, d); err != nil {
		t.settle(d, false, err)
		a.signal()
		return fmt.Errorf("guest %s: %w; the agent keeps trying", vm, err)
	}
	a.log.Info("absent", "vm", vm, "port", fabric.PortName(vm, 0), "took", time.Since(began))
	return nil
}

// tearDown withdraws a guest, then removes its ports, then forgets it.
func (t *task) tearDown(ctx context.Context, d fabric.Desired) error {
	vm := d.VM.Name
	t.ends(d)
	holds := t.holds(d.VM)
	if err := t.withdraw(ctx, holds.Prefixes); err != nil {
		return err
	}
	t.arrive(d, migration.Ended)
	t.release(d)
	began := time.Now()
	if err := t.dataplane.Remove(ctx, holds.Ports...); err != nil {
		return fmt.Errorf("remove %s: %w", fabric.PortName(vm, 0), err)
	}
	t.log.Debug("unwired", "vm", vm, "port", fabric.PortName(vm, 0), "took", time.Since(began))
	t.tellDetached(d.VM, holds.Ports...)
	if err := t.store.Delete(ctx, vm); err != nil {
		return fmt.Errorf("forget: %w", err)
	}
	s, done := t.state.open()
	s.reserved.Keep(vm, reservation.Set{})
	diverted := false
	if g := s.guests[vm]; g != nil {
		diverted = s.gone(g)
	}
	delete(s.guests, vm)
	done()
	if diverted {
		t.diverted.confirm(vm)
	}
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
	t.tellWithdrawn(t.vm, prefixes)
	return nil
}

// take gives what is wanted of a guest that a request is about, and notes when
// the wish was true, also for a guest that is not here.
func (a *Agent) take(vm string, asOf time.Time) (fabric.Desired, bool) {
	s, done := a.state.open()
	defer done()
	s.handled[vm] = asOf
	delete(s.expected, vm)
	g, known := s.guests[vm]
	if !known {
		return fabric.Desired{}, false
	}
	return g.want, true
}

// outdated reports whether something was asked of a guest after asOf; nothing
// is newer than the zero time, which stands for now.
func (a *Agent) outdated(vm string, asOf time.Time) bool {
	s, done := a.state.open()
	defer done()
	return !asOf.IsZero() && s.handled[vm].After(asOf)
}

// recovered drops what was the matter with a guest before it was asked for
// anew, or went.
func (a *Agent) recovered(vm fabric.VM) {
	a.conditions.clear("guest "+vm.Name, refusedKey(vm.Origin, vm.Name))
	a.inventory.resolved(vm.Name)
}

// refusedKey is the condition of a guest of a source that is refused.
func refusedKey(source, vm string) string { return "refused " + source + " " + vm }

// settle records how an attempt ended.
func (t *task) settle(d fabric.Desired, announced bool, trouble error) {
	s, done := t.state.open()
	defer done()
	g := s.guests[d.VM.Name]
	if g == nil {
		g = &guest{}
		s.guests[d.VM.Name] = g
	}
	if g.want.Epoch == d.Epoch {
		d.Unreleased, d.Acquired = g.want.Unreleased, g.want.Acquired // some may have let go, or told more, meanwhile
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
