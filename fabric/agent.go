package fabric

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
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric/internal/reservation"
)

// Config is what an [Agent] cannot do without.
type Config struct {
	Cluster   Cluster // defaults are filled in
	Node      string  // which of the cluster's nodes this is
	Dataplane Dataplane
	Speaker   Speaker
	Store     Store
}

// Option changes an [Agent] at its making.
type Option func(*Agent)

// WithSources lets the agent follow hypervisors.
func WithSources(s ...Source) Option { return func(a *Agent) { a.sources = append(a.sources, s...) } }

// WithLogger sets where the agent logs; it is silent without.
func WithLogger(l *slog.Logger) Option { return func(a *Agent) { a.log = l } }

// WithBoot tells the agent which boot of the machine this is (Linux:
// /proc/sys/kernel/random/boot_id). Guests of a [Source] that were wanted in
// another boot are forgotten when it starts: their hypervisor starts them again.
func WithBoot(id string) Option { return func(a *Agent) { a.boot = id } }

// Agent keeps the guests of one node as they are wanted. A program makes one
// with [New], calls [Agent.Adopt] before it opens BGP sessions, and
// [Agent.Run] until it ends; the other methods are safe for concurrent use
// from Adopt's return on. Work on one guest is serial, work on different
// guests is not.
type Agent struct {
	cluster   Cluster
	node      string
	dataplane Dataplane
	speaker   Speaker
	store     Store
	sources   []Source
	nodes     Nodes           // nil: this one is alone
	mover     Mover           // the dataplane, where it is one
	restarts  map[string]bool // the sources whose guests are to be heard: see [Restarter]
	couriers  couriers        // to the other nodes
	moves     moveLog         // what was seen of guests' moves
	diverted  diversionLog    // what the status tells of guests' packets that went elsewhere
	resolver  Resolver        // nil: none
	questions chan struct{}   // has one for each that the resolver has not answered
	events    events
	log       *slog.Logger
	boot      string
	began     time.Time

	guestLocks keyedLocks
	drain      sync.Mutex // held by whoever begins or ends a drain
	wake       chan struct{}

	mu       sync.Mutex // guards what follows, for moments only
	guests   map[string]*guest
	reserved *reservation.Table   // prefixes and port names, by guest
	handled  map[string]time.Time // when the last request about a guest was taken up, also one that is gone
	expected map[string]time.Time // incoming migrations, announced before anything else of them
	// lingering are the prefixes of guests that have left, and until when packets
	// for them are sent on.
	lingering map[netip.Prefix]time.Time
	met       map[string]bool // nodes whose agents have answered this one
	peers     peers           // what else is known of them
	// unsettled are the guests of which other nodes may still have to be told.
	unsettled map[string]bool
	ailments  map[string]string // problems of the node as a whole, by what they are about
	unlisted  map[string]bool   // sources that have not yet told their guests
	unknown   map[string]string // guests that run here and that nobody has resolved yet, with their source
	noPrune   bool              // the store did not tell everything
	drained   time.Time         // since when the node is being drained; zero: it is not
}

// guest is what the agent knows of one. Agent.mu guards it.
type guest struct {
	want      Desired
	announced bool   // the speaker has the prefixes of all NICs that are not down
	stand     stands // as last looked at
	told      told   // to the observers
	differs   string // what its hypervisor says of it now, where that is not what it started with
	trouble   error  // why it is not as it is wanted

	has       bool      // it is announced, and claimed of the other nodes
	claimed   time.Time // when that was
	kept      bool      // of an agent before this one: whom it waited for is waited for
	heard     uint64    // the highest generation that another node has, or had, it with
	claimants []string  // nodes that wait for this one to let go, or take it back when it does
	departure departure // its move to another node
	doubted   time.Time // when a diversion on the word of another node alone was ended
	orphan    bool      // nothing that could be read says what it is: its state on the disk is left alone
	came      bool      // it arrived by migration, and is not settled yet
	ready     bool      // arriving: packets for it are taken
	from      string    // arriving: the node that has it
	restart   restart   // its move by a start
	contention
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
		cluster: c, node: cfg.Node,
		dataplane: cfg.Dataplane, speaker: cfg.Speaker, store: cfg.Store,
		log: slog.New(slog.DiscardHandler), began: time.Now(),
		wake:   make(chan struct{}, 1),
		guests: map[string]*guest{}, handled: map[string]time.Time{}, expected: map[string]time.Time{},
		reserved: reservation.New(), ailments: map[string]string{}, unlisted: map[string]bool{}, unknown: map[string]string{},
		lingering: map[netip.Prefix]time.Time{}, unsettled: map[string]bool{}, met: map[string]bool{}, restarts: map[string]bool{},
		questions: make(chan struct{}, maxQuestions), peers: newPeers(),
	}
	a.moves.ended = make(chan struct{}, 1)
	a.mover, _ = cfg.Dataplane.(Mover)
	for _, o := range opts {
		o(a)
	}
	for _, s := range a.sources {
		a.unlisted[s.Name()] = true
		if r, ok := s.(Restarter); ok {
			a.restarts[s.Name()] = r.Restarts()
		}
	}
	return a, nil
}

// Apply brings a guest to a state on this node and returns when it is there.
// It is idempotent. A guest that breaks a rule is refused ([ErrRefused]) and
// nothing changes; after any other error the guest is as it was before, or
// still absent. Absent is the exception: it stays wanted, and the agent keeps
// trying.
func (a *Agent) Apply(ctx context.Context, vm VM, s State) error {
	switch s {
	case Absent:
		return a.remove(ctx, vm.Name, time.Time{})
	case Wired, Live:
		return a.bring(ctx, vm, request{undo: true, anew: true, settle: func(prev Desired, known, incoming bool) (State, bool) {
			// A new start of a guest (Wired) may be the arrival of a migration;
			// that it is to be live ends it.
			return s, s == Wired && (incoming || known && prev.Incoming)
		}})
	}
	return fmt.Errorf("guest %s: %v is not a state", vm.Name, s)
}

// Started brings a guest live whose hypervisor says that it runs. A guest that
// is arriving by migration is only wired: it does not run here before the
// cutover, which its [Source] reports. On an error the guest stays wanted and
// the agent keeps trying.
func (a *Agent) Started(ctx context.Context, vm VM) error {
	return a.bring(ctx, vm, request{runs: true, settle: func(prev Desired, known, incoming bool) (State, bool) {
		if incoming || known && prev.Incoming {
			return Wired, true
		}
		return Live, false
	}})
}

// Expect remembers that a guest is about to arrive by migration. It changes
// nothing, least of all a guest of that name that is here already.
func (a *Agent) Expect(_ context.Context, vm string) error {
	if err := ValidateName(vm); err != nil {
		return refusal{err}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if g, here := a.guests[vm]; here && g.want.State != Absent {
		a.log.Info("migration to this node announced for a guest that is here; left alone", "vm", vm)
		return nil
	}
	a.expected[vm] = time.Now()
	a.moves.expect(vm, a.node)
	return nil
}

// Withdraw takes the announcement of a guest back and leaves its port. A
// guest that is not here is no error.
func (a *Agent) Withdraw(ctx context.Context, vm string) error {
	defer a.guestLocks.lock(vm)()
	d, known := a.take(vm, time.Now())
	if !known || d.State == Absent {
		return nil
	}
	if d.State != Wired {
		d.State, d.Since = Wired, time.Now()
	}
	d.Acquired = time.Time{} // it is over, whoever has the address next
	a.ends(d)
	a.cancel(d)
	d.Incoming = false
	err := a.withdraw(ctx, vm, d.VM.Prefixes())
	if err == nil {
		a.release(d)
	}
	err = errors.Join(err, a.store.Put(ctx, d))
	a.settle(d, false, err)
	if err != nil {
		a.poke()
		return fmt.Errorf("guest %s: %w; the agent keeps trying", vm, err)
	}
	return nil
}

// tells reports whether a source of that name says when its guests begin to run.
func (a *Agent) tells(origin string) bool {
	return slices.ContainsFunc(a.sources, func(s Source) bool { return s.Name() == origin }) && !a.restarts[origin]
}

// request is how a guest is to be brought up.
type request struct {
	settle func(prev Desired, known, incoming bool) (State, bool) // what is wanted, given what was
	undo   bool                                                   // on an error, put things back as they were
	anew   bool                                                   // a start, or the user's word: that it was lost to another node is past
	runs   bool                                                   // it runs already, so it keeps what it started with
	run    string                                                 // see [Desired.Run]; empty: as before, unless anew
	asOf   time.Time                                              // when the wish was true; zero: now
}

// bring is the one way up, for hooks, the command line and the sources alike.
func (a *Agent) bring(ctx context.Context, vm VM, r request) error {
	defer a.guestLocks.lock(vm.Name)()
	began := time.Now()
	if a.outdated(vm.Name, r.asOf) {
		return nil // something newer was asked of this guest since the source looked
	}
	if r.runs {
		vm = a.asStarted(vm)
	}
	vm, err := a.resolve(ctx, vm)
	if a.outdated(vm.Name, r.asOf) {
		return nil // it ended while the resolver was asked
	}
	var other holder
	if err == nil {
		other, err = a.acquire(ctx, vm, r)
		if a.outdated(vm.Name, r.asOf) {
			return nil // or while the other nodes were
		}
	}

	a.mu.Lock()
	prev, known := Desired{}, false
	if g, ok := a.guests[vm.Name]; ok {
		// One whose removal is unfinished is not here, but what is left of it is.
		prev, known = g.want, g.want.State != Absent
	}
	expectedAt, incoming := a.expected[vm.Name]
	// One that runs on another node moves, although nobody announced it: the hook
	// did, to an agent that was being restarted. Its source says when it runs here.
	incoming = incoming && time.Since(expectedAt) < expectation || other.same && !known && a.tells(vm.Origin)
	d := Desired{VM: vm, Run: r.run, Since: began, Boot: a.boot}
	d.State, d.Incoming = r.settle(prev, known, incoming)
	if known {
		d.Generation, d.Unreleased, d.Acquired = prev.Generation, prev.Unreleased, prev.Acquired
		d.Lost, d.LostGuest, d.Standby = prev.Lost, prev.LostGuest, prev.Standby
		if prev.State == d.State {
			d.Since, d.Leaving = prev.Since, prev.Leaving
		}
	}
	if r.anew {
		d.Lost, d.LostGuest, d.Standby = "", "", false
	} else if known {
		d.Run = cmp.Or(r.run, prev.Run)
	}
	if other.node != "" && !other.same {
		d.Lost, d.LostGuest, d.Standby = other.node, other.vm, false
	}
	if err == nil {
		err = a.admit(d, known)
	}
	if err == nil {
		delete(a.expected, vm.Name)
		g := a.guests[vm.Name]
		if g == nil {
			g = &guest{want: d}
			a.guests[vm.Name] = g
		}
		g.orphan = false
		g.stand = begins(vm, prev, g.stand, a.restarts[vm.Origin]) // how it stands in truth, the next pass sees
		g.came = d.Incoming || g.came && d.State == Live
		g.ready = g.ready && d.Incoming
		g.acquires(&d, prev)
		if r.anew {
			g.differs = ""
		}
		a.claim(g, &d, g.stand)
		a.recovered(vm)
	}
	a.handled[vm.Name] = cmp.Or(r.asOf, began)
	a.mu.Unlock()
	if err != nil {
		return fmt.Errorf("guest %s refused: %w", vm.Name, refusal{err})
	}

	if !known || d.Incoming {
		a.ashore(ctx, vm)
	}
	var stored, raised error
	cutover := known && prev.Incoming && d.State == Live // every packet waits for it
	if !cutover {
		stored = a.store.Put(ctx, d)
	}
	if stored == nil || !r.undo { // a guest that runs gets its network whatever ails the disk
		raised = a.raise(ctx, d, prev)
	}
	if cutover {
		stored = a.store.Put(ctx, d)
	}
	err = errors.Join(stored, raised)
	if err != nil && r.undo {
		a.undo(ctx, d, prev, known)
		return fmt.Errorf("guest %s: %w", vm.Name, err)
	}
	a.settle(d, d.announced() && raised == nil, err)
	a.couriers.hurry()
	if err != nil {
		a.poke()
		return fmt.Errorf("guest %s: %w; the agent keeps trying", vm.Name, err)
	}
	a.log.Info(d.State.String(), "vm", vm.Name, "port", PortName(vm.Name, 0), "took", time.Since(began))
	if d.State == Live && (a.restarts[vm.Origin] || slices.ContainsFunc(vm.NICs, func(n NIC) bool { return n.Kind == Adopt })) {
		a.poke() // its owner may have had it running before it was ours to look at
	}
	return nil
}

// admit takes a guest in, which holds from then on what it asks for, or tells why
// not. a.mu is held.
func (a *Agent) admit(d Desired, known bool) error {
	if err := a.acceptable(d.VM, known); err != nil {
		return err
	}
	return a.reserve(d.VM)
}

// raise makes the guest as d says, where it was as prev says (zero when it was
// not). What is not to be announced is withdrawn before ports are touched, and
// what is, is announced after.
func (a *Agent) raise(ctx context.Context, d, prev Desired) error {
	vm := d.VM.Name
	a.mu.Lock()
	g := a.guests[vm]
	st, draining := g.stand, a.draining()
	g.told.incoming = d.Incoming || g.told.incoming && d.State == Live
	a.mu.Unlock()

	hops := a.missingHops()
	ports := a.portsOf(d)
	live := d.announced()
	var announce []Route
	holds := a.holds(d.VM)
	quiet := without(holds.Prefixes, d.VM.Prefixes())
	for i, p := range ports {
		for _, prefix := range p.NIC.Prefixes() {
			live := live && hops.of(prefix) == nil
			if live && st[i] != down {
				announce = append(announce, Route{prefix, st[i].behind(d.Standby).on(draining)})
			} else if len(prev.VM.NICs) > 0 {
				quiet = append(quiet, prefix)
			}
		}
	}
	if err := a.withdraw(ctx, vm, quiet); err != nil {
		return err
	}
	if gone := without(holds.Ports, portNames(d.VM)); len(gone) > 0 {
		if err := a.dataplane.Remove(ctx, gone...); err != nil {
			return fmt.Errorf("remove %s: %w", gone[0], err)
		}
		a.tellDetached(prev.VM, gone...)
	}
	var there []Port
	for _, p := range ports {
		began := time.Now()
		err := a.dataplane.Put(ctx, p)
		if errors.Is(err, os.ErrNotExist) && p.NIC.Kind == Adopt {
			// Its owner has not made it yet, or took it away; the pass that the
			// dataplane's change wakes comes back to it.
			if err := a.withdraw(ctx, vm, p.NIC.Prefixes()); err != nil {
				return err
			}
			announce = slices.DeleteFunc(announce, func(r Route) bool { return slices.Contains(p.NIC.Prefixes(), r.Prefix) })
			a.setDown(vm, p.Index)
			a.tellDetached(d.VM, p.Name)
			continue
		}
		if err != nil {
			return fmt.Errorf("port %s: %w", p.Name, err)
		}
		a.log.Debug("wired", "vm", vm, "port", p.Name, "took", time.Since(began))
		there = append(there, p)
	}
	a.tellAttached(d.VM, there)
	if d.Incoming && d.State == Wired {
		a.ready(d)
	}
	if len(announce) > 0 {
		began := time.Now()
		if err := a.speaker.Put(ctx, announce...); err != nil {
			return fmt.Errorf("announce %s: %w", pretty(announce[0].Prefix), err)
		}
		a.log.Debug("announced", "vm", vm, "prefix", announce[0].Prefix, "prefixes", len(announce), "took", time.Since(began))
		a.tellMoved(d)
	}
	a.keepOnly(d.VM)
	a.tellRaised(d, announce)
	return nil
}

// undo puts a guest back as it was before a request that went wrong.
func (a *Agent) undo(ctx context.Context, d, prev Desired, known bool) {
	// The caller may be gone, and with it ctx; what was begun is undone all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if known {
		err := a.store.Put(ctx, prev)
		if err == nil {
			err = a.raise(ctx, prev, d)
		}
		a.settle(prev, prev.announced() && err == nil, err)
		a.poke()
		return
	}
	d.State = Absent
	a.settle(d, false, nil)
	if err := a.lower(ctx, d); err != nil {
		a.settle(d, false, err)
		a.log.Warn("half-made guest not undone yet; trying again", "vm", d.VM.Name, "err", err)
		a.poke()
	}
}

// redo brings a guest to what is wanted of it again. A nil st leaves what is
// known of its NICs. The guest's lock is held.
func (a *Agent) redo(ctx context.Context, vm string, st stands) error {
	a.mu.Lock()
	g := a.guests[vm]
	if g == nil {
		a.mu.Unlock()
		return nil
	}
	if st != nil {
		g.stand = st
	}
	d := g.want
	unsaved := g.trouble != nil
	if g.has && g.stand.down() == len(d.VM.NICs) {
		d.Lost = "" // nobody holds it any more; who takes it up again has it later
	}
	settled := (g.came || g.restart.moving) && d.State == Live && !a.fresh(g, time.Now())
	g.came, g.restart.moving = g.came && !settled, g.restart.moving && !settled
	unsaved = a.claim(g, &d, g.stand) || unsaved || d.Lost != g.want.Lost
	a.mu.Unlock()
	if d.State == Absent {
		err := a.lower(ctx, d)
		if err != nil {
			a.settle(d, false, err)
		}
		return err
	}
	raised := a.raise(ctx, d, d)
	err := raised
	if unsaved { // the trouble may have been the store's
		err = errors.Join(err, a.keepState(ctx, d))
	}
	a.settle(d, d.announced() && raised == nil, err)
	a.couriers.hurry()
	if settled {
		a.moves.settled(vm)
	}
	return err
}

// remove is the one way down. The wish was true at asOf, or is new when that
// is zero. Of a guest that is not here, what the store may keep goes.
func (a *Agent) remove(ctx context.Context, vm string, asOf time.Time) error {
	defer a.guestLocks.lock(vm)()
	if a.outdated(vm, asOf) {
		return nil
	}
	began := time.Now()
	d, known := a.take(vm, cmp.Or(asOf, began))
	if !known {
		if err := a.store.Delete(ctx, vm); err != nil {
			return fmt.Errorf("guest %s: forget: %w", vm, err)
		}
		a.mu.Lock()
		a.recovered(VM{Name: vm})
		a.mu.Unlock()
		return nil
	}
	d.State = Absent
	if err := a.lower(ctx, d); err != nil {
		a.settle(d, false, err)
		a.poke()
		return fmt.Errorf("guest %s: %w; the agent keeps trying", vm, err)
	}
	a.log.Info("absent", "vm", vm, "port", PortName(vm, 0), "took", time.Since(began))
	return nil
}

// lower withdraws a guest, then removes its ports, then forgets it.
func (a *Agent) lower(ctx context.Context, d Desired) error {
	vm := d.VM.Name
	a.ends(d)
	holds := a.holds(d.VM)
	if err := a.withdraw(ctx, vm, holds.Prefixes); err != nil {
		return err
	}
	a.cancel(d)
	a.release(d)
	began := time.Now()
	if err := a.dataplane.Remove(ctx, holds.Ports...); err != nil {
		return fmt.Errorf("remove %s: %w", PortName(vm, 0), err)
	}
	a.log.Debug("unwired", "vm", vm, "port", PortName(vm, 0), "took", time.Since(began))
	a.tellDetached(d.VM, holds.Ports...)
	if err := a.store.Delete(ctx, vm); err != nil {
		return fmt.Errorf("forget: %w", err)
	}
	a.mu.Lock()
	a.reserved.Keep(vm, reservation.Set{})
	if g := a.guests[vm]; g != nil {
		a.gone(g)
	}
	delete(a.guests, vm)
	a.recovered(d.VM)
	a.mu.Unlock()
	return nil
}

func (a *Agent) withdraw(ctx context.Context, vm string, prefixes []netip.Prefix) error {
	if len(prefixes) == 0 {
		return nil
	}
	if err := a.speaker.Remove(ctx, prefixes...); err != nil {
		return fmt.Errorf("withdraw %s: %w", pretty(prefixes[0]), err)
	}
	a.log.Debug("withdrawn", "vm", vm, "prefix", prefixes[0], "prefixes", len(prefixes))
	a.tellWithdrawn(vm, prefixes)
	return nil
}

// take gives what is wanted of a guest that a request is about, and notes when
// the wish was true, also for a guest that is not here.
func (a *Agent) take(vm string, asOf time.Time) (Desired, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.handled[vm] = asOf
	delete(a.expected, vm)
	g, known := a.guests[vm]
	if !known {
		return Desired{}, false
	}
	return g.want, true
}

// outdated reports whether something was asked of a guest after asOf; nothing
// is newer than the zero time, which stands for now.
func (a *Agent) outdated(vm string, asOf time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !asOf.IsZero() && a.handled[vm].After(asOf)
}

// recovered drops what was the matter with a guest before it was asked for
// anew, or went. a.mu is held.
func (a *Agent) recovered(vm VM) {
	delete(a.ailments, "guest "+vm.Name)
	delete(a.ailments, refusedKey(vm.Origin, vm.Name))
	delete(a.unknown, vm.Name)
}

// refusedKey is the ailment of a guest of a source that is refused.
func refusedKey(source, vm string) string { return "refused " + source + " " + vm }

// settle records how an attempt ended.
func (a *Agent) settle(d Desired, announced bool, trouble error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	g := a.guests[d.VM.Name]
	if g == nil {
		g = &guest{}
		a.guests[d.VM.Name] = g
	}
	if g.want.Generation == d.Generation {
		d.Unreleased, d.Acquired = g.want.Unreleased, g.want.Acquired // some may have let go, or told more, meanwhile
	}
	g.want, g.announced, g.trouble = d, announced, trouble
	if g.unsettled() {
		a.unsettled[d.VM.Name] = true
	}
}

func (a *Agent) setDown(vm string, nic int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	st := stands{}
	maps.Copy(st, a.guests[vm].stand)
	st[nic] = down
	a.guests[vm].stand = st
}

// poke wakes the pass.
func (a *Agent) poke() { rouse(a.wake) }

func portNames(vm VM) []string {
	names := make([]string, len(vm.NICs))
	for n := range vm.NICs {
		names[n] = PortName(vm.Name, n)
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
