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
	"github.com/vmfabric/vmfabric/internal/oneline"
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
	times times
	// given: the socket was named, so it is connected to whatever it is.
	given bool

	mu sync.Mutex // of what changes in the view
	view
	connected time.Time // when there last was a new connection
	unlisted  string    // why the last list is missing
}

var (
	_ fabric.Source    = (*Source)(nil)
	_ fabric.Diagnoser = (*Source)(nil)
)

// times are how long things may take that are LXD's alone.
type times struct {
	list time.Duration // a list, for which a cluster's members ask one another
	leak time.Duration // how long a port of a stopped instance may stay
}

// New makes a source. It connects to nothing yet.
func New(cfg Config) *Source {
	s := &Source{given: cfg.Socket != "", times: times{list: 20 * time.Second, leak: 15 * time.Second}, view: view{
		dialect: ofLXD, log: cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler)), links: cfg.Links, queue: hypervisor.NewQueue(),
		known: map[string]*observed{}, read: map[key]time.Time{}, conditions: map[key]condition{}, stopped: newStoppedInstances(),
	}}
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

// MovesByRestart implements [fabric.Source]: LXD starts an instance on the other
// server before it stops it here, and does not say when that one takes over.
func (s *Source) MovesByRestart() bool { return true }

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
		s.unlisted = oneline.Of(err.Error())
	}
	return guests, err
}

// Status implements [fabric.Source].
func (s *Source) Status() fabric.SourceStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.daemon.Status(len(s.known))
}

// Diagnose implements [fabric.Diagnoser]. That there is no LXD is no problem
// on a node where there never was one.
func (s *Source) Diagnose(context.Context) []string {
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

// knows is owns, with the lock taken.
func (s *Source) knows(k key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.owns(k)
}

func absent(vm fabric.VM, at time.Time) fabric.Desired {
	return fabric.Desired{VM: vm, State: fabric.Absent, Since: at}
}
