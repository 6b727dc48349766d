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
		w = w.Moved(e.Guest, e.To)
	}
	return all
}

// TestPlans: a seed is one history, another one another; every act and every fault comes,
// and none is about what is not there.
func TestPlans(t *testing.T) {
	all := lived(1, 3000)
	assert.Equal(t, all, lived(1, 3000))
	assert.NotEqual(t, all[:20], lived(2, 20))
	seen, w := map[string]int{}, small()
	for _, e := range all {
		seen[string(e.Act)]++
		assert.Equal(t, w.Guest(e.Guest).On, e.From, "%v", e)
		targets := map[string]bool{}
		for _, f := range e.Faults {
			seen[f.Kind]++
			k := KindOf(f.Kind)
			require.Positive(t, k.Right, f.Kind)
			assert.GreaterOrEqual(t, e.Right(), k.Right)
			assert.False(t, f.Kind == AgentKilled && f.At == w.Witness, "%v", e)
			assert.NotEqual(t, f.At, f.Other+" ", "%v", e)
			if f.Guest != "" {
				assert.Equal(t, w.Guest(f.Guest).On, f.At, "%v", e)
				assert.NotEqual(t, e.Guest, f.Guest, "%v", e)
			}
			if strings.HasPrefix(f.Kind, "agent ") {
				assert.False(t, targets[f.At], "two faults of one agent: %v", e)
				targets[f.At] = true
			}
			assert.False(t, f.Other != "" && f.Other == f.At, "%v", e)
		}
		w = w.Moved(e.Guest, e.To)
	}
	for _, k := range FaultKinds {
		assert.Positive(t, seen[k.Name], k.Name)
	}
	for _, act := range []Act{Rest, Start, Stop, Crash, Move} {
		assert.Greater(t, seen[string(act)], 50, act)
	}
}

// TestAccount: losses count where they belong, and only what may not be lost is wrong.
func TestAccount(t *testing.T) {
	var a Account
	o := Outcome{
		Episode: Episode{Act: Move, Guest: "web", Faults: []Fault{{Kind: AgentKilled}}}, Right: 3 * time.Second, Stall: 50 * time.Millisecond,
		Losses: []Loss{{"web", 100, 7, 70 * time.Millisecond}, {"db", 200, 3, 3 * time.Second}},
	}
	a.Add(o)
	a.Killed(2)
	assert.Equal(t, []string{"db lost 3 of 200, for up to 3s, and the machine stalled for 50ms"}, o.Lost(time.Second))
	assert.Empty(t, o.Lost(3*time.Second))
	assert.Equal(t, resumed*11/10, o.Bound())
	assert.False(t, o.Late())
	o.Right = o.Bound() + 1
	assert.True(t, o.Late())
	o.Episode.Faults[0].Kind = NodeCut
	assert.Empty(t, o.Lost(0), "a node that is cut off costs packets")
	a.Add(o)
	text := a.String()
	for _, line := range []string{
		"acts: move 2", "faults: agent killed 1, node cut off 1", "agents killed: 2",
		"agent killed                    | 1 | 200 | 3 | 3s | 3s |", "guest: move under faults        | 2 | 200 | 14 | 70ms | 22s |",
	} {
		assert.Contains(t, text, line)
	}
}
