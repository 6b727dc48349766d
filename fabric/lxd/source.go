package lxd

import (
	"cmp"
	"context"
	"errors"
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

// Config has the options of a [Source]; its zero value serves.
type Config struct {
	Product Product // a daemon that says it is the other is not followed
	// Socket is the socket of LXD; empty: the first of
	// /var/snap/lxd/common/lxd/unix.socket and /var/lib/lxd/unix.socket that
	// answers and whose LXD was used before; for Incus, /var/lib/incus/unix.socket. For
	// an LXD that never was used, systemd listens there, and a connection would start it.
	Socket string
	Logger *slog.Logger // nil: no log
	// Links lets the source see the start of a guest before LXD reports it, and
	// lets Diagnose report ports that LXD has left behind. Nil: neither. The source
	// calls Link at any time, also from several goroutines at once.
	Links Links
}

// Source follows the instances of one LXD or Incus, in a cluster those on this member.
// What is said of LXD is true of both.
// [Source.Run] holds the connection; all methods are safe for concurrent use.
type Source struct {
	times times
	// given: the configuration names the socket, so the source connects even if LXD
	// was never used.
	given bool

	mu sync.Mutex // guards what changes in the view, and the fields below
	view
	connected time.Time // when the last connection was made
	unlisted  string    // why the last list failed; empty: it did not
}

var (
	_ fabric.Source    = (*Source)(nil)
	_ fabric.Diagnoser = (*Source)(nil)
)

// times bounds how long things may take that only LXD has.
type times struct {
	list time.Duration // a list, for which the members of a cluster ask one another
	leak time.Duration // how long a port of a stopped instance may stay
}

// New makes a source, which does not connect before Run.
func New(cfg Config) *Source {
	s := &Source{given: cfg.Socket != "", times: times{list: 20 * time.Second, leak: 15 * time.Second}, view: view{
		dialect: dialects[cfg.Product], log: cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler)), links: cfg.Links, queue: hypervisor.NewQueue(),
		known: map[string]*observed{}, read: map[key]time.Time{}, seen: map[key]lastSeen{}, migrations: map[key]time.Time{}, conditions: map[key]condition{}, stopped: newStoppedInstances(),
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

// unreachable says why LXD does not answer on a socket, or is of no use yet.
func (s *Source) unreachable(socket string, err error) *hypervisor.Unreachable {
	e := hypervisor.NewUnreachable(s.name, s.name, socket, err)
	if hasCode(err, http.StatusServiceUnavailable) {
		e.Remedy = "wait until it is up, and see its log if it does not come"
	}
	if other, is := errors.AsType[*otherProduct](err); is {
		e.Remedy = fmt.Sprintf("start the agent with --%s %s in place of --%s", other.name, socket, s.name)
	}
	return e
}

// reconnected resets the state of one connection.
func (s *Source) reconnected(*conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.connected, s.unlisted, s.listed = time.Now(), "", false
	clear(s.migrations) // whose ends were missed
}

// Run connects, and connects again whenever the connection is lost, until ctx ends;
// then it returns nil. If there never was an LXD, it waits without a warning. Call
// it once.
func (s *Source) Run(ctx context.Context) error { return s.daemon.Run(ctx, s.watchLinks) }

// Name implements [fabric.Source].
func (s *Source) Name() string { return s.name }

// MovesByRestart implements [fabric.Source]: LXD starts an instance on the other
// server before it stops it here, and does not report when that server takes over.
func (s *Source) MovesByRestart() bool { return true }

// Changes implements [fabric.Source]. If the agent has not taken a guest's change
// yet, a newer one replaces it. The first change after each connect has Lost set.
// The channel is never closed.
func (s *Source) Changes() <-chan fabric.Change { return s.queue.Out() }

// Guests implements [fabric.Source]: the fabric's instances on this member that are
// not absent, with the time just before the read in Since. It works without Run,
// too, and waits at most 20 s.
//
// A guest has the name of its instance, in any project. If two instances have one
// name, one of them is the guest: the one that was it before, or else the one that
// runs, or is in the default project. Diagnose reports the other. It also reports a
// running instance with wrong keys or devices; Guests lists that one as it was when
// they were right. If they never were, it lists only the name, as of every other
// running instance.
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

// Diagnose implements [fabric.Diagnoser]. A missing LXD is no problem on a node
// that never had one.
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

// list reads all instances of this member, and forgets those that are gone.
func (s *Source) list(ctx context.Context, c *conn) ([]fabric.Desired, error) {
	// Each time: a daemon can form a cluster, and a member change its name.
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
		// Without it the agent would take it for gone.
		switch again, err := c.instance(ctx, i.key()); {
		case hasCode(err, http.StatusNotFound):
			here[n].Code = codeStopped // it is gone, which counts as stopped
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

// takeAll takes the list of all instances of this member.
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
	maps.DeleteFunc(s.seen, func(_ key, was lastSeen) bool { return began.Sub(was.at) > forgetAfter })
	maps.DeleteFunc(s.migrations, func(k key, _ time.Time) bool { return !s.migrated(k) })
	maps.DeleteFunc(s.read, func(k key, _ time.Time) bool { return gone(k) })

	slices.SortStableFunc(here, s.before)
	var guests, others []fabric.Desired
	for _, i := range here {
		switch d, ours := s.take(i, began); {
		case ours && d.State != fabric.Absent:
			guests = append(guests, d)
			s.queue.Refresh(d)
		case !ours && i.Code != codeStopped && !s.read[i.key()].After(began):
			// If the agent knows it as a guest, it must not count as gone.
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

// knows is owns for a caller that does not hold s.mu.
func (s *Source) knows(k key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.owns(k)
}

func absent(vm fabric.VM, at time.Time) fabric.Desired {
	return fabric.Desired{VM: vm, State: fabric.Absent, Since: at}
}
