package agent

import (
	"cmp"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/migration"
)

// restart is what a node sees of a move by a start elsewhere ([fabric.Source]). No
// hook and no event tells of it: that it was one the source learns by the other
// node's claim, and the destination by what the source says then.
type restart struct {
	heard     bool      // a frame told that it runs
	announced time.Time // before others
	moving    bool      // it came from another node, and is not settled yet
	left      time.Time // it was announced here until then: its process ended
}

// restarted notes that a guest which was started here, and did not arrive by a
// migration, is announced before others.
func (t *task) restarted() {
	s, done := t.state.open()
	defer done()
	if g := s.guests[t.vm]; g != nil && g.has && g.arrival == migration.NoArrival && g.restart.announced.IsZero() {
		g.restart.announced = time.Now()
	}
}

// wentTo reports that a guest runs on another node, which claimed it at a time,
// and tells that one. It was announced here until withdrawn.
func (t *task) wentTo(d fabric.Desired, to string, claimed, withdrawn time.Time) {
	if !t.restarts[d.VM.Origin] {
		return
	}
	t.moves.leave(d.VM, t.node, to)
	t.moves.at(d.VM.Name, func(m *fabric.Move, _ time.Time) { m.Learned, m.Withdrawn = claimed, withdrawn })
	n := t.notice(fabric.Released, d)
	n.Move = t.moves.end(d.VM.Name, "moved")
	t.peerQueues.send(n, to)
}

// cameFrom reports that a guest which was started here came from another node,
// which saw this of its move.
func (a *Agent) cameFrom(vm string, seen *fabric.Move) {
	if seen == nil {
		return
	}
	s, done := a.state.open()
	g := s.guests[vm]
	if g == nil || !g.has || !a.restarts[g.want.VM.Origin] || a.moves.has(vm, seen.Learned) {
		done()
		return
	}
	r, d, running := g.restart, g.want, g.claimed
	settled := !s.fresh(g, time.Now())
	g.restart.moving = !settled
	done()
	a.moves.arrive(d.VM, a.node, func(m *fabric.Move, _ time.Time) {
		m.Running, m.RunningBy, m.Announced = running, "carrier", cmp.Or(r.announced, running)
		if r.heard {
			m.RunningBy = "frame"
		}
	})
	a.moves.merge(vm, seen)
	if settled {
		a.moves.settled(vm)
	}
}

// has tells whether there is a report of a guest's arrival of which the source
// learned at a time.
func (l *moveLog) has(vm string, learned time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.all, func(r *report) bool { return r.VM == vm && r.arrival && r.Learned.Equal(learned) })
}
