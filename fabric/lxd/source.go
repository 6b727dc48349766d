package lxd

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/hypervisor"
)

// Config is what a [Source] may be told; its zero value serves.
type Config struct {
	// Socket is where LXD listens; empty: the first of
	// /var/snap/lxd/common/lxd/unix.socket and /var/lib/lxd/unix.socket that
	// answers, and whose LXD was used before: systemd listens there for one
	// that was never, and to connect would start it.
	Socket string
	Logger *slog.Logger // nil: silent
	// Links lets the source see that a guest starts before LXD tells, and lets
	// Diagnose tell of ports that LXD has left behind. Nil: nobody looks. It is
	// asked for single links at any time, also by several at once.
	Links Links
}

// Source follows the instances of one LXD, in a cluster those on this member.
// [Source.Run] holds the connection; all methods are safe for concurrent use.
type Source struct {
	dialect
	log    *slog.Logger
	links  Links
	queue  *hypervisor.Queue
	daemon *hypervisor.Daemon[*conn]
	times  times
	// given: the socket was named, so it is connected to whatever it is.
	given bool

	mu         sync.Mutex
	connected  time.Time            // when there last was a new connection
	unlisted   string               // why the last list is missing
	listed     bool                 // known is complete: there was a list since connecting
	known      map[string]*observed // guests that are not absent, by name
	read       map[key]time.Time    // when an instance was last read, ours or not
	conditions map[key]condition
	stopped    stoppedInstances
}

var (
	_ fabric.Source         = (*Source)(nil)
	_ fabric.Looker         = (*Source)(nil)
	_ fabric.Restarter      = (*Source)(nil)
	_ fabric.SourceReporter = (*Source)(nil)
	_ fabric.Diagnoser      = (*Source)(nil)
)

// observed is a guest of ours as it was last seen.
type observed struct {
	key   key // whose name the guest has
	vm    fabric.VM
	state fabric.State
	at    time.Time
	// until is not zero of one that was seen to start by its link: before it,
	// LXD may take it for stopped yet.
	until time.Time
}

// condition is why an instance of ours is no guest, or not as it is written.
type condition struct {
	text         string
	nameConflict bool // only because another has its name
}

// times are how long things may take that are LXD's alone.
type times struct {
	list time.Duration // a list, for which a cluster's members ask one another
	leak time.Duration // how long a port of a stopped instance may stay
}

// New makes a source. It connects to nothing yet.
func New(cfg Config) *Source {
	s := &Source{
		dialect: ofLXD, given: cfg.Socket != "",
		log: cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler)), links: cfg.Links, queue: hypervisor.NewQueue(),
		times: times{list: 20 * time.Second, leak: 15 * time.Second},
		known: map[string]*observed{}, read: map[key]time.Time{}, conditions: map[key]condition{}, stopped: newStoppedInstances(),
	}
	if s.links == nil {
		s.links = noLinks{}
	}
	if s.given {
		s.sockets = []string{cfg.Socket}
	}
	s.daemon = hypervisor.NewDaemon(hypervisor.Config[*conn]{
		Name: s.name, Sockets: s.sockets, Logger: s.log, Queue: s.queue,
		Dial: s.connect, Unreachable: s.unreachable, Connected: s.reconnected, Alive: s.search,
	})
	return s
}

// unreachable says why nobody answers on a socket, or nobody who can be of use.
func (s *Source) unreachable(socket string, err error) *hypervisor.Unreachable {
	e := hypervisor.NewUnreachable(s.name, s.name, socket, err)
	if hasCode(err, http.StatusServiceUnavailable) {
		e.Remedy = "wait until it is up, and see its log if it does not come"
	}
	return e
}

// reconnected forgets what holds for one connection.
func (s *Source) reconnected(*conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.connected, s.unlisted, s.listed = time.Now(), "", false
}

// Run connects, and connects again whenever the connection is lost, until ctx
// ends; then it returns nil. It waits for LXD quietly where there is none.
// Call it once.
func (s *Source) Run(ctx context.Context) error { return s.daemon.Run(ctx, s.watchLinks) }

// Name implements [fabric.Source].
func (s *Source) Name() string { return s.name }

// Restarts implements [fabric.Restarter]: LXD starts an instance on the other
// server before it stops it here, and does not say when that one takes over.
func (s *Source) Restarts() bool { return true }

// Changes implements [fabric.Source]. Changes of one guest that nobody took
// yet are one change, the newest. The first after each connect has Lost set.
// The channel is never closed.
func (s *Source) Changes() <-chan fabric.Change { return s.queue.Out() }

// Guests implements [fabric.Source]: the instances of ours on this member that
// are not absent, each with the time just before it was read in Since. It
// works without Run too, and waits no longer than 20 s.
//
// A guest has the name of its instance, in whatever project that is. Of two
// with one name, one is a guest: the one that was it before, or else the one
// that runs, or is in the default project; Diagnose tells of the other. It
// tells too of an instance that runs and whose keys or devices are wrong, which
// is listed as it was when they were right, or as one that nothing is known of;
// so is any other that runs.
func (s *Source) Guests(ctx context.Context) ([]fabric.Desired, error) {
	ctx, cancel := context.WithTimeout(ctx, s.times.list)
	defer cancel()
	c, release, err := s.daemon.Borrow(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	guests, err := s.list(ctx, c)
	if err != nil {
		err = fmt.Errorf("%s: list instances: %w; see the log of %[1]s, the agent asks again", s.name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unlisted = ""
	if err != nil {
		s.unlisted = hypervisor.OneLine(err)
	}
	return guests, err
}

// Status implements [fabric.SourceReporter].
func (s *Source) Status() fabric.SourceStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.daemon.Status(len(s.known))
}

// Diagnose implements [fabric.Diagnoser]. That there is no LXD is no problem
// on a node where there never was one.
func (s *Source) Diagnose() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var problems []string
	if text := s.daemon.Condition(); text != "" {
		problems = append(problems, text)
	}
	if _, connected := s.daemon.Conn(); connected && s.unlisted != "" {
		problems = append(problems, s.unlisted)
	}
	for _, c := range s.conditions {
		problems = append(problems, s.name+": "+c.text)
	}
	slices.Sort(problems)
	return append(problems, s.leaks()...)
}

// list reads all instances that are here, and forgets those that are not.
func (s *Source) list(ctx context.Context, c *conn) ([]fabric.Desired, error) {
	// Anew each time: a daemon can form a cluster, and a member change its name.
	about, err := c.ask(ctx)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	all, err := c.instances(ctx, about)
	if err != nil {
		return nil, err
	}
	here := slices.DeleteFunc(all, func(i instance) bool { return !about.holds(i.Location) || s.passing(i.Name) })
	for n, i := range here {
		if !i.unreadable() || s.knows(i.key()) {
			continue
		}
		// To leave it out would say that it is gone.
		switch again, err := c.instance(ctx, i.key()); {
		case hasCode(err, http.StatusNotFound):
			here[n].Code = codeStopped // for good
		case err != nil:
			return nil, fmt.Errorf("instance %s: %w", i.Name, err)
		default:
			here[n] = again
		}
	}
	guests := s.takeAll(here, began)
	s.search()
	return guests, nil
}

// passing reports whether an instance has its name only while it is copied.
func (s *Source) passing(name string) bool { return strings.HasPrefix(name, s.moving) }

// takeAll takes up a list of all instances that are here.
func (s *Source) takeAll(here []instance, began time.Time) []fabric.Desired {
	listed := map[key]bool{}
	for _, i := range here {
		listed[i.key()] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := func(k key) bool { return !listed[k] && !s.read[k].After(began) }
	maps.DeleteFunc(s.known, func(_ string, g *observed) bool { return gone(g.key) })
	maps.DeleteFunc(s.conditions, func(k key, _ condition) bool { return gone(k) })
	for k := range s.stopped.byKey {
		if gone(k) {
			s.stopped.remove(k)
		}
	}
	maps.DeleteFunc(s.read, func(k key, _ time.Time) bool { return gone(k) })

	slices.SortStableFunc(here, s.before)
	var guests, others []fabric.Desired
	for _, i := range here {
		switch d, ours := s.take(i, began); {
		case ours && d.State != fabric.Absent:
			guests = append(guests, d)
			s.queue.Refresh(d)
		case !ours && i.Code != codeStopped && !s.read[i.key()].After(began):
			// Should it be a guest that the agent knows, it must not pass for gone.
			others = append(others, fabric.Desired{VM: s.bare(i), Since: began})
		}
	}
	for _, d := range others {
		if s.known[d.VM.Name] == nil {
			guests = append(guests, d)
		}
	}
	s.listed = s.listed || began.After(s.connected)
	return guests
}

// before orders instances such that of several with one name, the one that
// shall be the guest comes first. s.mu is held.
func (s *Source) before(a, b instance) int {
	rank := func(i instance) int {
		rank := 0
		if !s.owns(i.key()) {
			rank += 4
		}
		if stateOf(i.Code, fabric.VM{}, 0) != fabric.Live {
			rank += 2
		}
		if i.key().project != defaultProject {
			rank++
		}
		return rank
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Project, b.Project))
}

// take takes up what was read of an instance at a time, and gives the guest
// that it is. s.mu is held.
func (s *Source) take(i instance, at time.Time) (d fabric.Desired, ours bool) {
	k := i.key()
	last := s.known[i.Name]
	mine := last != nil && last.key == k
	if mine && (s.read[k].After(at) || i.unreadable()) {
		return fabric.Desired{VM: last.vm, State: last.state, Since: last.at}, true
	}
	if s.read[k].After(at) {
		return d, false
	}
	s.read[k] = at
	vm, ours, err := s.guest(i)
	var was fabric.State
	if mine {
		was = last.state
	}
	if i.Code == codeStopped && !mine {
		err = nil // nothing is amiss as long as nobody starts it; who does is told
	}
	switch {
	case err != nil && mine:
		vm = last.vm
	case !ours && mine && i.Code != codeStopped:
		// Its keys were taken away: it has what it had, until it ends.
		seen := *last
		seen.state, seen.at = stateOf(i.Code, fabric.VM{}, last.state), at
		s.known[i.Name] = &seen
		s.setCondition(k, nil, false)
		return fabric.Desired{VM: s.bare(i), State: seen.state, Since: at}, true
	case !ours && mine: // likewise, and it has ended
		delete(s.known, i.Name)
		s.stopped.remove(k)
		s.setCondition(k, nil, false)
		return absent(last.vm, at), true
	case !ours:
		s.stopped.remove(k)
		s.setCondition(k, err, false)
		return d, false
	}
	d = fabric.Desired{VM: vm, State: stateOf(i.Code, vm, was), Since: at}
	seen := &observed{key: k, vm: vm, state: d.State, at: at}
	if mine && d.State != fabric.Live && s.starts(last) {
		d.State, seen.state, seen.until = fabric.Live, fabric.Live, last.until
	}
	s.setStopped(k, vm, i.Code == codeStopped && seen.until.IsZero())
	if last != nil && !mine {
		if d.State != fabric.Absent {
			err = s.nameConflict(i, last)
		}
		s.setCondition(k, err, true)
		return d, false
	}
	s.setCondition(k, err, false)
	if d.State == fabric.Absent {
		delete(s.known, i.Name)
	} else {
		s.known[i.Name] = seen
	}
	return d, true
}

// nameConflict says why an instance is no guest while another of its name is.
func (s *Source) nameConflict(i instance, other *observed) error {
	return fmt.Errorf("its name is that of the instance in project %s, and a node has one guest of a name; rename one: %s",
		other.key.project, s.command(i, "rename", i.Name, "NAME"))
}

// setCondition says what is wrong with an instance of ours, in the log once;
// nil: nothing is. s.mu is held.
func (s *Source) setCondition(k key, err error, nameConflict bool) {
	if err == nil {
		delete(s.conditions, k)
		return
	}
	text := "instance " + k.name
	if k.project != defaultProject {
		text += " in project " + k.project
	}
	text += ": " + hypervisor.OneLine(err)
	if s.conditions[k].text != text {
		s.log.Warn("instance not as the fabric needs it", "vm", k.name, "err", text)
	}
	s.conditions[k] = condition{text, nameConflict}
}

// owns reports whether the guest of its name is this instance. s.mu is held.
func (s *Source) owns(k key) bool {
	last := s.known[k.name]
	return last != nil && last.key == k
}

// knows is owns for one who does not hold s.mu.
func (s *Source) knows(k key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.owns(k)
}

func absent(vm fabric.VM, at time.Time) fabric.Desired {
	return fabric.Desired{VM: vm, State: fabric.Absent, Since: at}
}
