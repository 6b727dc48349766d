package agent_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// preferences tells with which preferences the speaker announces.
func (n *node) preferences() map[fabric.Preference]int {
	n.t.Helper()
	routes, err := n.speaker.Actual(n.t.Context())
	require.NoError(n.t, err)
	count := map[fabric.Preference]int{}
	for _, r := range routes {
		count[r.Preference]++
	}
	return count
}

func TestDrain(t *testing.T) {
	n := fresh(t)
	n.apply(web(), fabric.Live)
	n.apply(db(), fabric.Wired)
	n.journal.Take()
	require.NoError(t, n.Drain(t.Context()))
	n.did(join("store drained", as("draining", webAnnounced))...)
	n.holds(want{web(), fabric.Live}, want{db(), fabric.Wired})
	st, err := n.Status(t.Context())
	require.NoError(t, err)
	since := st.DrainingSince
	assert.WithinDuration(t, time.Now(), since, time.Minute)
	text := "draining since " + since.Format(time.DateTime) + ": 2 guests are left, new ones are refused"
	assert.Equal(t, []string{text}, n.problems())

	// Guests that are here go on, and change; others are refused, however they come.
	require.NoError(t, n.Started(t.Context(), db()))
	n.did("store db live", "announce 203.0.113.20/32 draining")
	require.NoError(t, n.Expect(t.Context(), "new"))
	for _, state := range []fabric.State{fabric.Wired, fabric.Live} {
		err := n.Apply(t.Context(), guest("new", "203.0.113.30"), state)
		require.EqualError(t, err, "guest new refused: node node1 is draining")
		require.ErrorIs(t, err, fabric.ErrRefused)
	}
	n.did()

	// Once more is the same drain, and so it is after a restart.
	require.NoError(t, n.Drain(t.Context()))
	n.did()
	n = n.again()
	n.did(join("announce 203.0.113.20/32 draining", as("draining", webAnnounced))...)
	st, err = n.Status(t.Context())
	require.NoError(t, err)
	assert.True(t, since.Equal(st.DrainingSince), st.DrainingSince)
	require.ErrorContains(t, n.Apply(t.Context(), guest("new", "203.0.113.30"), fabric.Live), "is draining")

	n.apply(db(), fabric.Absent)
	n.did("withdraw 203.0.113.20/32", "unwire db_net0", "forget db")
	assert.ErrorContains(t, n.Apply(t.Context(), db(), fabric.Live), "is draining", "it has left")
	assert.Contains(t, n.problems()[0], ": 1 guest is left")

	require.NoError(t, n.Undrain(t.Context()))
	n.did(join("forget drained", webAnnounced)...)
	assert.Empty(t, n.problems())
	n.apply(db(), fabric.Live)
	n.journal.Take()
	require.NoError(t, n.Undrain(t.Context()))
	n.did()
	n = n.again()
	assert.Equal(t, map[fabric.Preference]int{fabric.Normal: 7}, n.preferences())
}

// A guest of a hypervisor has other preferences in turn. A drain changes the last
// of them alone: one that has just begun to run here comes before the node that it
// left, whose agent may be away.
func TestDrainOfEveryStanding(t *testing.T) {
	var src *fake.Source
	libvirt := func(*node) []agent.Option {
		src = fake.NewSource("libvirt")
		return []agent.Option{agent.WithSources(src)}
	}
	runs(t, libvirt, func(t *testing.T, n *node) {
		vm := guest("vm", "203.0.113.30 2001:db8:100:1::30")
		vm.Origin = "libvirt"
		n.apply(vm, fabric.Live)
		n.dataplane.SetCarrier("vm_net0", true)
		src.Set(vm, fabric.Live)
		moment()
		assert.Equal(t, map[fabric.Preference]int{fabric.Fresh: 2}, n.preferences())
		require.NoError(t, n.Drain(t.Context()))
		assert.Equal(t, map[fabric.Preference]int{fabric.Fresh: 2}, n.preferences())
		time.Sleep(10 * time.Second)
		assert.Equal(t, map[fabric.Preference]int{fabric.Fresh: 2}, n.preferences())
		n.journal.Take()
		time.Sleep(time.Minute)
		n.did("announce 203.0.113.30/32 draining", "announce 2001:db8:100:1::30/128 draining")
		require.NoError(t, n.Drain(t.Context()))
		time.Sleep(2 * time.Minute)
		n.did()
		require.NoError(t, n.Undrain(t.Context()))
		assert.Equal(t, map[fabric.Preference]int{fabric.Normal: 2}, n.preferences())
	})
}

// TestOrderOfPreferences: of two nodes that announce a guest the one where it runs
// comes first, and of those the one that it came to last, or that stays.
func TestOrderOfPreferences(t *testing.T) {
	order := []fabric.Preference{fabric.Standby, fabric.Draining, fabric.Blackholed, fabric.Normal, fabric.Fresh}
	assert.Equal(t, order, fabric.Preferences())
	for i, p := range order[1:] {
		assert.Greater(t, p.LocalPref(), order[i].LocalPref(), "%v comes before %v", p, order[i])
	}
}

// What is lost behind the agent's back comes back as it was announced.
func TestDrainRepairs(t *testing.T) {
	runs(t, nil, func(t *testing.T, n *node) {
		n.apply(web(), fabric.Live)
		require.NoError(t, n.Drain(t.Context()))
		moment()
		n.speaker.Lose(prefix("203.0.113.10/32"))
		time.Sleep(time.Second)
		assert.Equal(t, map[fabric.Preference]int{fabric.Draining: 6}, n.preferences())
	})
}

func TestDrainTroubles(t *testing.T) {
	n := fresh(t)
	n.apply(web(), fabric.Live)
	n.store.Fail("store drained", errBoom)
	err := n.Drain(t.Context())
	require.EqualError(t, err, "node node1: keep whether it is drained: boom")
	assert.Empty(t, n.problems())
	n.apply(db(), fabric.Live)
	n.store.Fail("store drained", nil)

	n.speaker.Fail("announce 203.0.113.20/32 draining", errBoom)
	require.ErrorContains(t, n.Drain(t.Context()), "the agent keeps trying")
	assert.Equal(t, map[fabric.Preference]int{fabric.Draining: 6, fabric.Normal: 1}, n.preferences())
	n.speaker.Fail("announce 203.0.113.20/32 draining", nil)
	require.NoError(t, n.Drain(t.Context()))
	assert.Equal(t, map[fabric.Preference]int{fabric.Draining: 7}, n.preferences())

	n.store.Fail("load drained", errors.New("state: read error; check the disk"))
	n = n.again()
	assert.Equal(t, map[fabric.Preference]int{fabric.Normal: 7}, n.preferences())
	assert.Equal(t, []string{"whether the node is drained: state: read error; check the disk (it is taken for not drained)"}, n.problems())
	require.NoError(t, n.Undrain(t.Context()))
	assert.Empty(t, n.problems())
}

// forgetful is a store that keeps no drain.
type forgetful struct{ fabric.Store }

func TestDrainWithoutKeeper(t *testing.T) {
	n := fresh(t)
	n.make(forgetful{n.store})
	require.NoError(t, n.Adopt(t.Context()))
	n.apply(web(), fabric.Live)
	require.NoError(t, n.Drain(t.Context()))
	assert.Equal(t, map[fabric.Preference]int{fabric.Draining: 6}, n.preferences())
	assert.True(t, strings.HasPrefix(n.problems()[0], "draining since "))
	require.NoError(t, n.Undrain(t.Context()))
	assert.Empty(t, n.problems())
}

// TestRemedies: whoever runs an agent says by which of his commands a problem is solved.
func TestRemedies(t *testing.T) {
	n := fresh(t, agent.WithRemedies(func(r fabric.Reason) string { return "see " + string(r) }))
	require.NoError(t, n.Drain(t.Context()))
	require.Len(t, n.problems(), 1)
	assert.Contains(t, n.problems()[0], "new ones are refused; see drain under way")
	err := n.Apply(t.Context(), web(), fabric.Wired)
	var refused *fabric.RefusedError
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, fabric.RefusedError{VM: "web", Reason: fabric.NodeDrained, Err: refused.Err}, *refused)
	require.EqualError(t, err, "guest web refused: node node1 is draining; see node drained")
}
