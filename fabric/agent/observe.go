package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/plural"
)

const (
	maxEvents   = 1000            // events that wait for one observer
	observeTime = 5 * time.Second // for an observer to take one event
	sessionTime = 2 * time.Second // for the speaker to list its sessions
	farewell    = time.Second     // for the waiting events when the agent ends
	lossMemory  = time.Minute     // Status lists dropped events so long
)

// WithObservers adds observers, which get the events of the node. The agent reports
// changes only, not what it finds at its start. When [Agent.Run] ends, it goes on
// delivering waiting events for about a second.
func WithObservers(o ...fabric.Observer) Option {
	return func(a *Agent) {
		for _, observer := range o {
			a.events.listeners = append(a.events.listeners, &listener{
				number: len(a.events.listeners) + 1, observer: observer, wake: make(chan struct{}, 1),
			})
		}
	}
}

// lastReported is what the observers know of a guest. The agent compares with it, to
// report changes only.
type lastReported struct {
	ports    map[string]bool
	routes   map[netip.Prefix]fabric.Preference
	incoming bool // the guest arrives by migration
}

// reportedBefore gives what an earlier agent must have reported of a guest; there has
// the names of the ports that exist.
func (a *Agent) reportedBefore(d fabric.Desired, there map[string]bool) lastReported {
	t := lastReported{incoming: d.Incoming}
	for _, p := range d.VM.Ports(a.cluster()) {
		if !there[p.Name] || a.events.none() {
			continue
		}
		t.addPort(p.Name)
		if d.State == fabric.Live {
			for _, prefix := range p.NIC.Prefixes() {
				t.addRoute(fabric.Route{Prefix: prefix})
			}
		}
	}
	return t
}

// addPort adds a port, and reports whether it is new.
func (t *lastReported) addPort(name string) bool {
	if t.ports == nil {
		t.ports = map[string]bool{}
	}
	news := !t.ports[name]
	t.ports[name] = true
	return news
}

// addRoute adds a route, and reports whether the route or its preference is new.
func (t *lastReported) addRoute(r fabric.Route) bool {
	if t.routes == nil {
		t.routes = map[netip.Prefix]fabric.Preference{}
	}
	as, is := t.routes[r.Prefix]
	t.routes[r.Prefix] = r.Preference
	return !is || as != r.Preference
}

// emitAttached emits the event that ports of a guest were made.
func (t *task) emitAttached(vm fabric.VM, ports []fabric.Port) {
	if t.events.none() {
		return
	}
	s, done := t.state.open()
	defer done()
	g, e := s.guests[vm.Name], fabric.Event{Kind: fabric.Attached}
	for _, p := range ports {
		if g.reported.addPort(p.Name) {
			e.Ports, e.Prefixes = append(e.Ports, p.Name), append(e.Prefixes, p.NIC.Prefixes()...)
		}
	}
	if len(e.Ports) > 0 {
		t.emit(vm, e)
	}
}

// emitDetached emits the event that ports of a guest are gone.
func (t *task) emitDetached(vm fabric.VM, names ...string) {
	if t.events.none() {
		return
	}
	s, done := t.state.open()
	defer done()
	g, e := s.guests[vm.Name], fabric.Event{Kind: fabric.Detached}
	behind := map[string][]netip.Prefix{}
	for _, p := range vm.Ports(t.cluster()) {
		behind[p.Name] = p.NIC.Prefixes()
	}
	for _, name := range names {
		if g.reported.ports[name] {
			delete(g.reported.ports, name)
			e.Ports, e.Prefixes = append(e.Ports, name), append(e.Prefixes, behind[name]...)
		}
	}
	if len(e.Ports) > 0 {
		t.emit(vm, e)
	}
}

// emitAnnounced emits the events that the speaker took routes, and that an arriving
// guest has moved here.
func (t *task) emitAnnounced(d fabric.Desired, routes []fabric.Route) {
	if t.events.none() {
		return
	}
	s, done := t.state.open()
	defer done()
	g := s.guests[d.VM.Name]
	news := map[fabric.Preference][]netip.Prefix{}
	for _, r := range routes {
		if g.reported.addRoute(r) {
			news[r.Preference] = append(news[r.Preference], r.Prefix)
		}
	}
	for _, as := range slices.Sorted(maps.Keys(news)) {
		t.emit(d.VM, fabric.Event{Kind: fabric.Announced, Prefixes: news[as], Preference: as})
	}
	if d.State == fabric.Live && g.reported.incoming {
		g.reported.incoming = false
		t.emit(d.VM, fabric.Event{Kind: fabric.Moved, Ports: portNames(d.VM), Prefixes: d.VM.Prefixes()})
	}
}

// emitWithdrawn emits the event that the speaker has withdrawn prefixes of a guest.
func (t *task) emitWithdrawn(vm string, prefixes []netip.Prefix) {
	if t.events.none() {
		return
	}
	s, done := t.state.open()
	defer done()
	g, e := s.guests[vm], fabric.Event{Kind: fabric.Withdrawn}
	for _, p := range prefixes {
		if _, is := g.reported.routes[p]; is {
			delete(g.reported.routes, p)
			e.Prefixes = append(e.Prefixes, p)
		}
	}
	if len(e.Prefixes) > 0 {
		t.emit(g.want.VM, e)
	}
}

// emitPruned emits the events that routes and ports which no guest had are gone.
// found are all such ports; by them it knows the guests that once had them.
func (a *Agent) emitPruned(found []fabric.PortState, routes []netip.Prefix, ports []string) {
	if a.events.none() {
		return
	}
	withdrawn, detached := map[string]*fabric.Event{}, map[string]*fabric.Event{}
	of := func(m map[string]*fabric.Event, vm string, kind fabric.EventKind) *fabric.Event {
		if m[vm] == nil {
			m[vm] = &fabric.Event{Kind: kind}
		}
		return m[vm]
	}
	owner := map[netip.Prefix]string{}
	for _, p := range found {
		for _, prefix := range p.NIC.Prefixes() {
			owner[prefix] = p.VM
		}
		if slices.Contains(ports, p.Name) {
			e := of(detached, p.VM, fabric.Detached)
			e.Ports, e.Prefixes = append(e.Ports, p.Name), append(e.Prefixes, p.NIC.Prefixes()...)
		}
	}
	for _, r := range routes {
		e := of(withdrawn, owner[r], fabric.Withdrawn)
		e.Prefixes = append(e.Prefixes, r)
	}
	for _, events := range []map[string]*fabric.Event{withdrawn, detached} {
		for _, vm := range sortedKeys(events) {
			a.emit(fabric.VM{Name: vm}, *events[vm])
		}
	}
}

// emitSessions emits an event for each BGP session that came up or went down since
// the last call. The pass calls it.
func (a *Agent) emitSessions(ctx context.Context) {
	if a.events.none() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, sessionTime)
	defer cancel()
	sessions, err := a.speaker.Sessions(ctx)
	if err != nil {
		return // no change is known
	}
	for _, s := range a.events.changed(sessions) {
		a.emit(fabric.VM{}, fabric.Event{Kind: fabric.SessionChanged, Session: &s})
	}
}

// emit queues an event for all observers. It does not wait for them.
func (a *Agent) emit(vm fabric.VM, e fabric.Event) {
	e.Cluster, e.Node, e.VM, e.UUID = a.cluster().Name, a.node, vm.Name, vm.UUID
	a.events.put(e)
}

// events has the observers and their queues.
type events struct {
	listeners []*listener
	sessions  map[string]fabric.Session // established sessions, by peer and address; only the pass uses it
	mu        sync.Mutex                // one event at a time, so that all observers get them in one order
}

func (es *events) none() bool { return len(es.listeners) == 0 }

func (es *events) put(e fabric.Event) {
	es.mu.Lock()
	defer es.mu.Unlock()
	e.At = time.Now()
	for _, l := range es.listeners {
		l.put(e)
	}
}

// changed gives the sessions that came up or went down since the last call. A session
// that the speaker does not list any more went down.
func (es *events) changed(now []fabric.Session) []fabric.Session {
	up := map[string]fabric.Session{}
	var news []fabric.Session
	listed := map[string]bool{}
	for _, s := range now {
		key := s.Peer + " " + s.Address
		listed[key] = true
		_, was := es.sessions[key]
		is := s.State == "established"
		if is {
			up[key] = s
		}
		if is != was {
			news = append(news, s)
		}
	}
	for _, key := range sortedKeys(es.sessions) {
		if s := es.sessions[key]; !listed[key] {
			s.State, s.Since = "idle", time.Now()
			news = append(news, s)
		}
	}
	es.sessions = up
	return news
}

// deliver starts the delivery of events to the observers. stop ends it; it waits a
// moment for the observers to take the events that wait.
func (es *events) deliver(ctx context.Context, log *slog.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ending, ended := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	for _, l := range es.listeners {
		wg.Go(func() { l.deliver(ctx, ending, log) })
	}
	go func() { wg.Wait(); close(ended) }()
	return func() {
		defer cancel()
		close(ending)
		deadline := time.AfterFunc(farewell, cancel)
		defer deadline.Stop()
		select {
		case <-ended:
		case <-time.After(2 * farewell): // an observer ignores its context
		}
	}
}

// problems gives a line for each observer that does not keep up.
func (es *events) problems() []string {
	var all []string
	for _, l := range es.listeners {
		if text := l.problem(time.Now()); text != "" {
			all = append(all, text)
		}
	}
	return all
}

// listener is an observer with its queue.
type listener struct {
	number   int // from 1
	observer fabric.Observer
	wake     chan struct{}

	mu        sync.Mutex
	queue     []fabric.Event
	missed    int       // events since the last one that it took, which were dropped or returned an error
	dropped   int       // dropped events; starts anew after a minute without one
	droppedAt time.Time // when the last event was dropped
	began     time.Time // when the call under way began; zero: none is under way
	failure   error     // the error of the last call
}

func (l *listener) put(e fabric.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == maxEvents {
		if e.At.Sub(l.droppedAt) > lossMemory {
			l.dropped = 0
		}
		l.dropped, l.droppedAt = l.dropped+1, e.At
		l.missed++
		l.queue = l.queue[1:]
	}
	l.queue = append(l.queue, e)
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// next takes the oldest event from the queue.
func (l *listener) next() (e fabric.Event, some bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return e, false
	}
	e, l.queue = l.queue[0], l.queue[1:]
	e.Dropped, l.missed = l.missed, 0
	l.began = time.Now()
	return e, true
}

// deliver passes one event after the other to the observer, until ctx ends, or until
// ending is closed and the queue is empty.
func (l *listener) deliver(ctx context.Context, ending <-chan struct{}, log *slog.Logger) {
	for ctx.Err() == nil {
		if e, some := l.next(); some {
			l.observe(ctx, e, log)
			continue
		}
		select {
		case <-l.wake:
		case <-ending:
			if len(l.wake) == 0 {
				return
			}
		}
	}
}

func (l *listener) observe(ctx context.Context, e fabric.Event, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, observeTime)
	defer cancel()
	err := l.observer.Observe(ctx, e)
	if err != nil {
		err = shortened{err}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.began = time.Time{}
	if err != nil {
		l.missed += 1 + e.Dropped
		if l.failure == nil {
			log.Warn("event not taken up", "observer", l.number, "event", string(e.Kind), "vm", e.VM, "err", err)
		}
	}
	l.failure = err
}

// problem says why the observer does not get all events; empty: it does.
func (l *listener) problem(now time.Time) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var why []string
	if l.failure != nil {
		why = append(why, fmt.Sprintf("it did not take the last event (%v)", l.failure))
	}
	if !l.began.IsZero() && now.Sub(l.began) > observeTime+time.Second {
		why = append(why, fmt.Sprintf("it has had the same event since %s", l.began.Format(time.TimeOnly)))
	}
	if now.Sub(l.droppedAt) <= lossMemory {
		why = append(why, fmt.Sprintf("%s dropped, the last at %s", plural.Of(l.dropped, "event was", "events were"), l.droppedAt.Format(time.TimeOnly)))
	}
	if len(why) == 0 {
		return ""
	}
	return fmt.Sprintf("observer %d: %s; guests are not concerned, see why it is slow or gone", l.number, strings.Join(why, ", "))
}
