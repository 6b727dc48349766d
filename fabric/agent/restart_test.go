package agent_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// restarts runs two agents that follow an LXD each; the guest runs on the first.
func restarts(t *testing.T, f func(*testing.T, *pair)) {
	t.Helper()
	pairsOf(t, fake.NewMovesByRestart, from("lxd", guest("web", "203.0.113.10 2001:db8:100:1::10 198.51.100.0/29 adopt")), func(t *testing.T, p *pair) {
		p.begins(p.one)
		p.one.dataplane.Hear("web_net0")
		p.lets(p.one)
		moves, err := p.one.Moves(t.Context(), "")
		require.NoError(t, err)
		assert.Empty(t, moves, "nobody had it")
		f(t, p)
	})
}

// begins starts the guest on a node, up to where it has carrier.
func (p *pair) begins(n *node) {
	p.t.Helper()
	n.dataplane.AddLink("web_net0")
	n.dataplane.SetCarrier("web_net0", false)
	p.src[n].Set(p.vm, fabric.Live)
	moment()
	n.dataplane.SetCarrier("web_net0", true)
	moment()
	assert.Equal(p.t, map[string]string{"203.0.113.10/32": "standby"}, p.first(n))
}

// stops has the guest's process end on a node, and a while later its hypervisor say so.
func (p *pair) stops(n *node) {
	n.dataplane.SetCarrier("web_net0", false)
	synctest.Wait()
	n.dataplane.RemoveLink("web_net0")
	time.Sleep(650 * time.Millisecond)
	p.src[n].Set(p.vm, fabric.Absent)
}

// TestRestartLeavesDrained: a guest that leaves a drained node is reached there
// until the other one heard it. A node that is drained while it expects a guest
// stays behind the one where it runs, too.
func TestRestartLeavesDrained(t *testing.T) {
	restarts(t, func(t *testing.T, p *pair) {
		time.Sleep(10 * time.Second)
		require.NoError(t, p.one.Drain(t.Context()))
		assert.Equal(t, map[string]string{"203.0.113.10/32": "draining"}, p.first(p.one))
		p.begins(p.two) // as a standby
		assert.Less(t, fabric.Standby.LocalPref(), fabric.Draining.LocalPref())
		require.NoError(t, p.two.Drain(t.Context()))
		assert.Equal(t, map[string]string{"203.0.113.10/32": "standby"}, p.first(p.two))
		p.two.dataplane.Hear("web_net0")
		moment()
		assert.Equal(t, map[string]string{"203.0.113.10/32": "fresh"}, p.first(p.two))
		assert.Empty(t, p.first(p.one))
	})
}

// TestRestartMoves: a guest starts on the other node before it ends on the first.
func TestRestartMoves(t *testing.T) {
	restarts(t, func(t *testing.T, p *pair) {
		for _, tt := range []struct {
			name     string
			from, to *node
			end      func(from, to *node)
			by       string
		}{
			{"heard while it still runs at the source", p.one, p.two, func(from, to *node) {
				to.dataplane.Hear("web_net0")
				moment()
				assert.Equal(t, map[string]string{"203.0.113.10/32": "fresh"}, p.first(to))
				assert.Empty(t, p.first(from))
				p.stops(from)
			}, "frame"},
			{"ends at the source before it is heard", p.two, p.one, func(from, to *node) {
				from.dataplane.SetCarrier("web_net0", false)
				synctest.Wait()
				time.Sleep(50 * time.Millisecond)
				assert.Empty(t, p.first(from))
				assert.Equal(t, map[string]string{"203.0.113.10/32": "standby"}, p.first(to))
				to.dataplane.Hear("web_net0")
				moment()
				assert.Equal(t, map[string]string{"203.0.113.10/32": "fresh"}, p.first(to))
				p.stops(from)
			}, "frame"},
			{"never heard", p.one, p.two, func(from, to *node) {
				time.Sleep(fabric.ListenFor)
				p.stops(from)
			}, "carrier"},
		} {
			t.Logf("%s", tt.name)
			p.begins(tt.to)
			assert.Equal(t, map[string]string{"203.0.113.10/32": "normal"}, p.first(tt.from))
			tt.end(tt.from, tt.to)
			p.lets(tt.to)
			tt.from.holds()
			tt.to.holds(want{p.vm, fabric.Live})
			assert.Empty(t, tt.from.problems())

			// Late news of the source's changes nothing.
			p.src[tt.from].Set(p.vm, fabric.Absent)
			moment()
			assert.Empty(t, tt.from.journal.Take())
			assert.Empty(t, tt.to.journal.Take())

			for _, n := range []*node{tt.from, tt.to} {
				moves, err := n.Moves(t.Context(), "web")
				require.NoError(t, err)
				m := moves[0]
				assert.Equal(t, []string{"moved", tt.from.name, tt.to.name}, []string{m.Outcome, m.From, m.To}, n.name)
				assert.ElementsMatch(t, p.vm.Prefixes(), m.Prefixes)
				assert.False(t, m.Learned.IsZero() || m.Withdrawn.IsZero(), "%+v", m)
				if n == tt.from {
					continue
				}
				assert.Equal(t, tt.by, m.RunningBy)
				assert.False(t, m.Running.IsZero() || m.Announced.Before(m.Running) || m.Normal.Before(m.Announced), "%+v", m)
			}
		}
		moves, err := p.one.Moves(t.Context(), "")
		require.NoError(t, err)
		assert.Len(t, moves, 3, "one report each")
	})
}

// TestRestartIsNoMove: a guest that ended on one node before it is started on
// another did not move, as far as anybody has seen.
func TestRestartIsNoMove(t *testing.T) {
	restarts(t, func(t *testing.T, p *pair) {
		p.stops(p.one)
		moment()
		p.one.holds()
		p.begins(p.two)
		p.two.dataplane.Hear("web_net0")
		p.lets(p.two)
		for _, n := range []*node{p.one, p.two} {
			moves, err := n.Moves(t.Context(), "")
			require.NoError(t, err)
			assert.Empty(t, moves)
		}
	})
}
