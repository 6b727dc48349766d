package endure

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// lived follows a world through episodes in which all succeeds.
func lived(seed uint64, n int) (all []Episode) {
	p, w := NewPlanner(seed), small()
	for range n {
		e := p.Next(w)
		all = append(all, e)
		w = e.in(w)
	}
	return all
}

// in returns the world after an episode in which all succeeds.
func (e Episode) in(w World) World {
	for _, d := range e.Doings {
		w = w.Moved(d.Guest, d.To)
	}
	return w
}

// TestPlans: a seed is one history, another one another; every act and every fault comes,
// and none is about what is not there.
func TestPlans(t *testing.T) {
	all := lived(1, 3000)
	assert.Equal(t, all, lived(1, 3000))
	assert.NotEqual(t, all[:20], lived(2, 20))
	seen, w := map[string]int{}, small()
	for _, e := range all {
		for _, d := range e.Doings {
			seen[string(d.Act)]++
			assert.Equal(t, w.Guest(d.Guest).On, d.From, "%v", e)
			assert.Equal(t, d, e.Of(d.Guest), "one thing at a time: %v", e)
		}
		targets := map[string]bool{}
		for _, f := range e.Faults {
			seen[f.Kind]++
			k := KindOf(f.Kind)
			require.Positive(t, k.Right, f.Kind)
			assert.GreaterOrEqual(t, e.Right(), k.Right)
			assert.False(t, f.Kind == AgentKilled && f.At == w.Witness, "%v", e)
			if f.Guest != "" {
				assert.Equal(t, w.Guest(f.Guest).On, f.At, "%v", e)
				assert.Empty(t, e.Of(f.Guest), "%v", e)
			}
			if strings.HasPrefix(f.Kind, "agent ") {
				assert.False(t, targets[f.At], "two faults of one agent: %v", e)
				targets[f.At] = true
			}
			assert.False(t, f.Other != "" && f.Other == f.At, "%v", e)
		}
		w = e.in(w)
	}
	for _, k := range FaultKinds {
		assert.Positive(t, seen[k.Name], k.Name)
	}
	for _, act := range []Act{Start, Stop, Crash, Move} {
		assert.Greater(t, seen[string(act)], 50, act)
	}
}

// TestKills: an hour of episodes that take half a minute each has 500 kills of agents, if
// the world lets one die often.
func TestKills(t *testing.T) {
	w, p, kills := small(), NewPlanner(1), 0
	w.Deaths = 12
	const episodes = 3000
	for range episodes {
		for _, f := range p.Next(w).Faults {
			assert.LessOrEqual(t, f.Times, w.Deaths)
			kills += f.Times
		}
	}
	assert.Greater(t, kills*120/episodes, 500)
}

// TestAccount: losses count where they belong, and only what may not be lost is wrong.
func TestAccount(t *testing.T) {
	var a Account
	o := Outcome{
		Episode: Episode{[]Doing{{Act: Move, Guest: "web"}}, []Fault{{Kind: AgentKilled}}}, Right: 3 * time.Second, Stall: 50 * time.Millisecond,
		Losses: []Loss{{"web", 100, 7, 70 * time.Millisecond}, {"db", 200, 3, 3 * time.Second}},
	}
	a.Add(o)
	for _, kind := range []string{"agent", "reflector", "agent"} {
		a.Killed(kind)
	}
	assert.Equal(t, []string{"db lost 3 of 200, for up to 3s, and the machine stalled for 50ms"}, o.Lost(time.Second))
	assert.Empty(t, o.Lost(3*time.Second))
	assert.Equal(t, resumed*11/10, o.Bound())
	assert.False(t, o.Late())
	o.Waited = time.Second
	assert.Equal(t, resumed*11/10+3*time.Second, o.Bound())
	o.Waited = 0
	o.Right = o.Bound() + 1
	assert.True(t, o.Late())
	assert.Empty(t, Outcome{Episode: o.Episode, Losses: o.Losses, Dying: outlasts}.Lost(0), "its peers find it silent")
	assert.Empty(t, Outcome{Episode: o.Episode, Losses: o.Losses, Waited: scans}.Lost(0), "routers that read their kernel are silent")
	o.Episode.Faults[0].Kind = DaemonKilled
	assert.NotEmpty(t, o.Lost(0))
	assert.Empty(t, Outcome{Episode: o.Episode, Losses: o.Losses, Waited: connects + 1}.Lost(0), "BIRD does not read the kernel in time")
	o.Episode.Faults[0].Kind = NodeCut
	assert.Empty(t, o.Lost(0), "a node that is cut off costs packets")
	a.Add(o)
	text := a.String()
	for _, line := range []string{
		"acts: move 2", "faults: agent killed 1, node cut off 1", "processes killed: agent 2, reflector 1",
		"agent killed                    | 1 | 200 | 3 | 3s | 3s |", "guest: move under faults        | 2 | 200 | 14 | 70ms | 22s |",
	} {
		assert.Contains(t, text, line)
	}
}

// TestStrayed: routes may lead to where a guest goes, and to no other node.
func TestStrayed(t *testing.T) {
	w := small()
	moves := Episode{[]Doing{{Move, "web", "node1", "node2"}}, []Fault{{Kind: AgentKilled}}}
	to := func(node string) []Change { return []Change{{web[0], node}, {web[1], node}} }
	for node, wrong := range map[string]int{"node1": 0, "node2": 0, "": 0, "node3": 2} {
		assert.Len(t, Outcome{Episode: moves, Changes: to(node)}.Strayed(w), wrong, node)
	}
	rests := Episode{Faults: []Fault{{Kind: AgentKilled}}}
	for node, wrong := range map[string]int{"node1": 0, "node2": 2, "": 2} {
		assert.Len(t, Outcome{Episode: rests, Changes: to(node)}.Strayed(w), wrong, node)
	}
	rests.Faults = append(rests.Faults, Fault{Kind: NodeCut})
	assert.Empty(t, Outcome{Episode: rests, Changes: to("")}.Strayed(w), "a node that is cut off costs routes")
	assert.Equal(t, []string{"the core gateway sent packets for 203.0.113.11/32 of db to node2, and it was on no node"},
		Outcome{Episode: rests, Changes: []Change{{w.Guest("db").Prefixes[0], "node2"}}}.Strayed(w))
}
