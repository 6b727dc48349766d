package agent_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// says has a node tell node1 that the guest of a pair runs there, or is about to.
func (p *pair) says(by *fake.Nodes, kind fabric.NoticeKind) fabric.Answer {
	p.t.Helper()
	answer, err := by.Ask(p.t.Context(), "node1", fabric.Notice{
		Kind: kind, VM: p.vm.Name, UUID: p.vm.UUID, Prefixes: p.vm.Prefixes(), Epoch: uint64(time.Now().Add(time.Second).UnixMilli()),
	})
	require.NoError(p.t, err)
	moment()
	return answer
}

// sentOn gives the prefixes whose packets node1 sends on, and what it tells of that.
func (p *pair) sentOn() ([]netip.Prefix, []fabric.DiversionStatus) {
	p.t.Helper()
	ps, err := p.one.dataplane.Diverted(p.t.Context())
	require.NoError(p.t, err)
	st, err := p.one.Status(p.t.Context())
	require.NoError(p.t, err)
	return ps, st.Diversions
}

// TestWordAlone: what another node says sends packets there for a moment, and not
// again; the guest runs here, as its hypervisor says.
func TestWordAlone(t *testing.T) {
	pairs(t, func(t *testing.T, p *pair) {
		began := time.Now()
		liar := p.ends[p.two]
		assert.True(t, p.says(liar, fabric.Arriving).Held)
		ps, told := p.sentOn()
		assert.Empty(t, ps, "it did not stop here")
		assert.Empty(t, told)
		p.says(liar, fabric.Arrived)
		ps, told = p.sentOn()
		require.ElementsMatch(t, p.vm.Prefixes(), ps)
		require.Len(t, told, 1)
		assert.Equal(t, []string{"web", "node2"}, []string{told[0].VM, told[0].Node})
		assert.Equal(t, p.vm.Prefixes(), told[0].Prefixes)
		assert.True(t, told[0].Ended.IsZero())
		assert.False(t, told[0].Confirmed || told[0].Since.Before(began))
		assert.Empty(t, p.one.problems(), "its hypervisor may say so in a moment")

		time.Sleep(6 * time.Second)
		for range 100 {
			ps, told = p.sentOn()
			require.Empty(t, ps)
			require.Len(t, told, 1)
			require.Equal(t, "the hypervisor here did not say that the guest left", told[0].Outcome)
			require.Less(t, told[0].Ended.Sub(told[0].Since), 6*time.Second)
			require.Len(t, p.one.problems(), 1)
			require.Contains(t, p.one.problems()[0], "guest web: node node2 said at ")
			require.Contains(t, p.one.problems()[0], "its packets went there for 5s and come here again; see whether it runs on both nodes")
			require.Equal(t, map[string]string{"203.0.113.10/32": "normal"}, p.first(p.one))
			p.says(liar, fabric.Arriving)
			p.says(liar, fabric.Arrived)
			time.Sleep(time.Second)
		}
		p.one.holds(want{p.vm, fabric.Live})
		p.says(liar, fabric.Cancelled)
		p.says(liar, fabric.Arrived)
		ps, _ = p.sentOn()
		assert.Empty(t, ps, "nor by another way")

		time.Sleep(5 * time.Minute)
		assert.Empty(t, p.one.problems())
		_, told = p.sentOn()
		assert.Empty(t, told)
	})
}

// TestWordConfirmed: the hypervisor's word may come before, soon after, or late.
func TestWordConfirmed(t *testing.T) {
	for name, after := range map[string]time.Duration{"before": -1, "soon after": time.Second, "late": 20 * time.Second} {
		t.Run(name, func(t *testing.T) {
			pairs(t, func(t *testing.T, p *pair) {
				p.arrives(p.two)
				if after < 0 {
					p.src[p.one].Leave(p.vm)
					moment()
				}
				p.says(p.ends[p.two], fabric.Arrived)
				if after >= 0 {
					time.Sleep(after)
					p.src[p.one].Leave(p.vm)
					moment()
				}
				for range 20 {
					ps, told := p.sentOn()
					require.ElementsMatch(t, p.vm.Prefixes(), ps)
					last := told[len(told)-1]
					require.True(t, last.Confirmed)
					require.True(t, last.Ended.IsZero())
					time.Sleep(time.Second)
				}
				p.src[p.two].Set(p.vm, fabric.Live)
				moment()
				p.leaves(p.one)
				p.lets(p.two)
				time.Sleep(6 * time.Second)
				ps, told := p.sentOn()
				assert.Empty(t, ps)
				last := told[len(told)-1]
				assert.False(t, last.Ended.IsZero())
				assert.Equal(t, "the routers know where it is", last.Outcome)
			})
		})
	}
}

// TestWordContradicted: what the hypervisor says after the other node's word counts
// at once; what it said before does not.
func TestWordContradicted(t *testing.T) {
	pairs(t, func(t *testing.T, p *pair) {
		p.says(p.ends[p.two], fabric.Arriving)
		p.says(p.ends[p.two], fabric.Arrived)
		p.src[p.one].SetQuietly(p.vm, fabric.Live)
		ps, _ := p.sentOn()
		require.ElementsMatch(t, p.vm.Prefixes(), ps)
		p.src[p.one].Set(p.vm, fabric.Live)
		moment()
		ps, told := p.sentOn()
		assert.Empty(t, ps)
		assert.Equal(t, "the hypervisor here says that the guest runs here", told[len(told)-1].Outcome)
		p.says(p.ends[p.two], fabric.Arrived)
		ps, _ = p.sentOn()
		assert.Empty(t, ps)
		p.one.holds(want{p.vm, fabric.Live})
	})
}

// TestWordConfirmedByTheHooks: the hypervisor's event is lost, and the guest's
// removal takes its time.
func TestWordConfirmedByTheHooks(t *testing.T) {
	pairs(t, func(t *testing.T, p *pair) {
		p.arrives(p.two)
		p.src[p.two].Set(p.vm, fabric.Live)
		moment()
		full := errors.New("no space left on device")
		p.one.store.Fail("store", full)
		p.one.store.Fail("forget", full)
		require.Error(t, p.one.Withdraw(t.Context(), p.vm.Name))
		require.Error(t, p.one.Apply(t.Context(), p.vm, fabric.Absent))
		p.src[p.one].SetQuietly(p.vm, fabric.Absent)
		time.Sleep(30 * time.Second)
		p.one.store.Fail("store", nil)
		p.one.store.Fail("forget", nil)
		time.Sleep(30 * time.Second)
		assert.Empty(t, p.one.problems())
		p.one.holds()
		p.lets(p.two)
	})
}

// TestWordOfAThird: a guest on its way to one node goes to no other.
func TestWordOfAThird(t *testing.T) {
	pairs(t, func(t *testing.T, p *pair) {
		third := p.ends[p.two].Join(fabric.Node{Name: "node9", Address: netip.MustParseAddr("10.10.0.99"), Address6: netip.MustParseAddr("fd00:10:10::99")})
		p.arrives(p.two)
		p.src[p.one].Leave(p.vm)
		moment()
		p.says(third, fabric.Arriving)
		p.says(third, fabric.Arrived)
		p.says(third, fabric.Cancelled)
		ps, told := p.sentOn()
		assert.ElementsMatch(t, p.vm.Prefixes(), ps)
		require.Len(t, told, 1)
		assert.Equal(t, "node2", told[0].Node)
		for _, line := range p.one.journal.Take() {
			assert.NotContains(t, line, "node9")
		}
		p.src[p.two].Set(p.vm, fabric.Live)
		p.leaves(p.one)
		p.lets(p.two)
	})
}

// TestDiversionOfAnAgentThatWasKilled: the move failed meanwhile, and the guest
// runs where it was.
func TestDiversionOfAnAgentThatWasKilled(t *testing.T) {
	pairs(t, func(t *testing.T, p *pair) {
		p.arrives(p.two)
		p.src[p.one].Leave(p.vm)
		moment()
		ps, err := p.one.dataplane.Diverted(t.Context())
		require.NoError(t, err)
		require.NotEmpty(t, ps)
		p.src[p.one].SetQuietly(p.vm, fabric.Live) // nobody heard of it
		again := p.one.again(agent.WithSources(p.src[p.one]))
		again.run(func() {
			ps, err := again.dataplane.Diverted(t.Context())
			require.NoError(t, err)
			assert.Empty(t, ps)
		})
	})
}
