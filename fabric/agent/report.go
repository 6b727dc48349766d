package agent

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/migration"
)

const (
	underWay   = "under way"
	moved      = "moved"
	maxReports = 200
)

// moveLog keeps the reports of the last moves from and to this node.
type moveLog struct {
	mu    sync.Mutex
	all   []*report     // the oldest first
	ended chan struct{} // signals keepMoves
	over  func(m fabric.Move, arrival bool)
}

// recallMoves loads the reports that the store has kept.
func (a *Agent) recallMoves(ctx context.Context) {
	kept, err := a.store.KeptMoves(ctx)
	if err != nil {
		a.log.Warn("reports of earlier moves", "err", err)
	}
	s, done := a.state.open()
	defer done()
	a.moves.mu.Lock()
	defer a.moves.mu.Unlock()
	for _, m := range kept {
		arrival, g := m.To == a.node, s.guests[m.VM]
		if m.Outcome == underWay && (g == nil || arrival && g.arrival == migration.NoArrival) {
			m.Outcome = "not followed to its end, as the agent was restarted"
		}
		a.moves.all = append(a.moves.all, &report{m, arrival})
	}
}

// keepMoves stores the reports whenever a move begins or ends, until ctx ends.
func (a *Agent) keepMoves(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.moves.ended:
		}
		list, _ := a.Moves(ctx, "")
		slices.Reverse(list)
		if err := a.store.KeepMoves(ctx, list); err != nil {
			a.log.Warn("reports of moves not kept", "err", err)
		}
	}
}

// report is the report of one move.
type report struct {
	fabric.Move
	arrival bool // to this node
}

// Moves lists the moves from and to this node, the newest first. If vm is not
// empty, it lists only the moves of that guest.
func (a *Agent) Moves(_ context.Context, vm string) ([]fabric.Move, error) {
	a.moves.mu.Lock()
	defer a.moves.mu.Unlock()
	list := []fabric.Move{}
	for _, m := range slices.Backward(a.moves.all) {
		if vm == "" || m.VM == vm {
			list = append(list, m.copy())
		}
	}
	return list, nil
}

// current gives the report of the guest's last move, which may be under way; nil:
// none.
func (l *moveLog) current(vm string) *report {
	for _, m := range slices.Backward(l.all) {
		if m.VM == vm {
			return m
		}
	}
	return nil
}

// begin gives the report of a move in that direction: a new one unless it is under
// way.
func (l *moveLog) begin(vm fabric.VM, arrival bool) *report {
	m := l.current(vm.Name)
	if m == nil || m.Outcome != underWay || m.arrival != arrival {
		l.supersede(m)
		m = &report{fabric.Move{Outcome: underWay, VM: vm.Name}, arrival}
		if l.all = append(l.all, m); len(l.all) > maxReports {
			l.all = slices.Delete(l.all, 0, len(l.all)-maxReports)
		}
		l.keep()
	}
	m.UUID = cmp.Or(vm.UUID, m.UUID)
	if ps := vm.Prefixes(); len(ps) > 0 {
		m.Prefixes = ps
	}
	return m
}

// expect begins the report of an announced arrival.
func (l *moveLog) expect(vm, node string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.supersede(l.current(vm))
	m := l.begin(fabric.VM{Name: vm}, true)
	m.Expected, m.To = time.Now(), node
}

// arrive records an event of a guest's arrival here, and begins the report if need
// be.
func (l *moveLog) arrive(vm fabric.VM, node string, note func(*fabric.Move, time.Time)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.begin(vm, true)
	m.To = node
	note(&m.Move, time.Now())
}

// leave records the destination of a guest, and begins the report if need be.
func (l *moveLog) leave(vm fabric.VM, from, to string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.begin(vm, false)
	m.From, m.To = from, to
	if m.Learned.IsZero() {
		m.Learned = time.Now()
	}
}

// at records an event of a move that is under way; without one it does nothing.
func (l *moveLog) at(vm string, note func(*fabric.Move, time.Time)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m := l.current(vm); m != nil && m.Outcome == underWay {
		note(&m.Move, time.Now())
	}
}

// saw records when a reflector first had the destination's route.
func (l *moveLog) saw(vm, reflector string, at time.Time) {
	l.at(vm, func(m *fabric.Move, _ time.Time) {
		if m.Seen == nil {
			m.Seen = map[string]time.Time{}
		}
		if _, had := m.Seen[reflector]; !had {
			m.Seen[reflector] = at
		}
	})
}

// end records how a move ended, and gives its report; nil: none was under way.
func (l *moveLog) end(vm, outcome string) *fabric.Move {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.current(vm)
	if m == nil || m.Outcome != underWay {
		return nil
	}
	m.Outcome = outcome
	l.over(m.Move, m.arrival)
	l.keep()
	c := m.copy()
	return &c
}

// close ends the report of a guest that is not here any more.
func (l *moveLog) close(vm string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.supersede(l.current(vm)) {
		l.keep()
	}
}

// closeExpected ends the report of an announced arrival that did not begin.
func (l *moveLog) closeExpected(vm string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m := l.current(vm); m != nil && m.arrival && m.PortReady.IsZero() && l.supersede(m) {
		l.keep()
	}
}

// supersede ends a report, see [report.supersede].
func (l *moveLog) supersede(r *report) bool {
	if !r.supersede() {
		return false
	}
	l.over(r.Move, r.arrival)
	return true
}

// supersede ends a report whose move nothing further will be heard of: the guest has
// begun another one, or ended. It reports whether the move was under way.
func (r *report) supersede() bool {
	if r == nil || r.Outcome != underWay {
		return false
	}
	r.Outcome = "not heard of any more"
	if r.arrival && !r.Announced.IsZero() {
		r.Outcome = moved
	}
	return true
}

// keep lets keepMoves store the reports.
func (l *moveLog) keep() { signal(l.ended) }

// copy gives a copy that shares nothing that changes.
func (r *report) copy() fabric.Move {
	m := r.Move
	m.Seen = maps.Clone(m.Seen)
	return m
}

// settled records that the routes of a guest which arrived are not Fresh any more:
// the move is over.
func (l *moveLog) settled(vm string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m := l.current(vm); m != nil && m.arrival && m.Outcome == underWay { // else it has gone on already
		m.Normal, m.Outcome = time.Now(), moved
		l.over(m.Move, m.arrival)
		l.keep()
	}
}

// merge adds the source node's report of a move to this node.
func (l *moveLog) merge(vm string, seen *fabric.Move) {
	if seen == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.current(vm)
	if m == nil || !m.arrival || !m.Stopped.IsZero() {
		return
	}
	m.From = cmp.Or(seen.From, m.From)
	m.Learned, m.Stopped, m.Diverted = seen.Learned, seen.Stopped, seen.Diverted
	m.Resent, m.ResentAt, m.Seen, m.Withdrawn = seen.Resent, seen.ResentAt, seen.Seen, seen.Withdrawn
	l.keep()
}
