package agent

import (
	"cmp"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/migration"
)

// restart is what a node knows of a guest's move by a start elsewhere
// ([fabric.Source.MovesByRestart]). No hook and no event announces such a move: the
// source node learns of it by the Claimed notice of the destination, and the
// destination by the Released notice of the source node.
type restart struct {
	heard     bool      // a frame has shown that the guest runs here
	announced time.Time // when this node first announced the guest after it had acquired it
	moving    bool      // the guest came from another node, and its routes are still Fresh
	left      time.Time // until when the guest was announced here; then its process ended
}

// restarted notes when the routes of a guest were first announced that was started
// here and did not arrive by a migration.
func (t *task) restarted() {
	s, done := t.state.open()
	defer done()
	if g := s.guests[t.vm]; g != nil && g.has && g.arrival == migration.NoArrival && g.restart.announced.IsZero() {
		g.restart.announced = time.Now()
	}
}

// wentTo reports the move of a guest that another node has started, and sends the
// report to that node. claimed is when that node's Claimed came; withdrawn is until
// when the guest was announced here.
func (t *task) wentTo(d fabric.Desired, to string, claimed, withdrawn time.Time) {
	if !t.restarts[d.VM.Origin] {
		return
	}
	t.moves.leave(d.VM, t.node, to)
	t.moves.at(d.VM.Name, func(m *fabric.Move, _ time.Time) { m.Learned, m.Withdrawn = claimed, withdrawn })
	n := t.notice(fabric.Released, d)
	n.Move = t.moves.end(d.VM.Name, moved)
	t.peerQueues.send(n, to)
}

// cameFrom reports that a guest which was started here came from another node; seen
// is that node's report of the move.
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

// has reports whether the log has the arrival of a guest of which the source node
// learned at that time.
func (l *moveLog) has(vm string, learned time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.all, func(r *report) bool { return r.VM == vm && r.arrival && r.Learned.Equal(learned) })
}
