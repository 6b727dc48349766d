package agent_test

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// pair is two nodes whose agents talk, with a hypervisor each.
type pair struct {
	t        *testing.T
	one, two *node
	src      map[*node]*fake.Source
	ends     map[*node]*fake.Nodes
	talk     *fake.Journal // of what the agents tell each other
	vm       fabric.VM
	more     []func(node string) []agent.Option
}

// pairs runs two agents while f works with them. The guest runs on the first.
func pairs(t *testing.T, f func(*testing.T, *pair)) {
	t.Helper()
	pairsOf(t, fake.NewSource, from("libvirt", web()), func(t *testing.T, p *pair) {
		p.boots(p.one)
		f(t, p)
	})
}

// pairsOf runs two agents of which each follows a hypervisor while f works with them.
func pairsOf(t *testing.T, source func(string) *fake.Source, vm fabric.VM, f func(*testing.T, *pair), more ...func(node string) []agent.Option) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := &pair{t: t, src: map[*node]*fake.Source{}, ends: map[*node]*fake.Nodes{}, talk: new(fake.Journal), vm: vm, more: more}
		c := cluster()
		ends := fake.NewNodes(p.talk, c.Nodes[:2]...)
		for i, at := range []**node{&p.one, &p.two} {
			j := new(fake.Journal)
			n := &node{t: t, name: c.Nodes[i].Name, pools: prefixPools(), journal: j, dataplane: fake.NewDataplane(j), speaker: fake.NewSpeaker(j), store: fake.NewStore(j)}
			p.src[n], p.ends[n] = source(vm.Origin), ends[n.name]
			*at = n.start(p.options(n)...)
		}
		defer p.one.begin()()
		defer p.two.begin()()
		moment()
		f(t, p)
	})
}

func (p *pair) options(n *node) []agent.Option {
	options := []agent.Option{agent.WithSources(p.src[n]), agent.WithNodes(p.ends[n])}
	for _, more := range p.more {
		options = append(options, more(n.name)...)
	}
	return options
}

// boots starts the guest on a node, and waits until all have let go of it.
func (p *pair) boots(n *node) {
	p.t.Helper()
	n.apply(p.vm, fabric.Wired)
	require.NoError(p.t, n.Started(p.t.Context(), p.vm))
	p.src[n].Set(p.vm, fabric.Live)
	p.lets(n)
}

// lets waits until a node has the guest as usual, and forgets what was done.
func (p *pair) lets(n *node) {
	p.t.Helper()
	time.Sleep(3 * time.Second)
	moment()
	assert.Equal(p.t, map[string]string{"203.0.113.10/32": "normal"}, p.first(n))
	p.forget()
}

func (p *pair) forget() {
	for _, j := range []*fake.Journal{p.one.journal, p.two.journal, p.talk} {
		j.Take()
	}
}

// first is how a node announces the guest's first prefix.
func (p *pair) first(n *node) map[string]string {
	p.t.Helper()
	routes, err := n.speaker.Actual(p.t.Context())
	require.NoError(p.t, err)
	as := map[string]string{}
	for _, r := range routes {
		if r.Prefix == netip.MustParsePrefix("203.0.113.10/32") {
			as[r.Prefix.String()] = r.Preference.String()
		}
	}
	return as
}

// arrives has the destination's hooks and events up to before the cutover.
func (p *pair) arrives(to *node) {
	p.t.Helper()
	ctx := p.t.Context()
	require.NoError(p.t, to.Expect(ctx, p.vm.Name))
	to.apply(p.vm, fabric.Wired)
	p.src[to].Set(p.vm, fabric.Wired)
	require.NoError(p.t, to.Started(ctx, p.vm))
	moment()
}

// leaves has the source's hooks run after the cutover.
func (p *pair) leaves(at *node) {
	p.t.Helper()
	require.NoError(p.t, at.Withdraw(p.t.Context(), p.vm.Name))
	require.NoError(p.t, at.Apply(p.t.Context(), p.vm, fabric.Absent))
	p.src[at].Set(p.vm, fabric.Absent)
}

func diverted(lines []string) (n int) {
	for _, l := range lines {
		if strings.HasPrefix(l, "divert ") {
			n++
		}
	}
	return n
}

// TestMove is a live migration from the first hook to the last.
func TestMove(t *testing.T) {
	pairs(t, func(t *testing.T, p *pair) {
		p.arrives(p.two)
		assert.Equal(t, join("store web wired", as("incoming", webWired)), p.two.journal.Take())
		assert.Contains(t, p.talk.Take(), "node2 tells node1 arriving web")
		assert.Equal(t, []string{"record web_net0", "record web_net1"}, p.one.journal.Take())
		time.Sleep(10 * time.Second) // the copy takes its time
		assert.Empty(t, p.first(p.two), "not announced before it runs")
		p.forget()

		p.one.dataplane.Miss("web_net0", 7)
		p.src[p.one].Leave(p.vm)
		moment()
		assert.Equal(t, len(p.vm.Prefixes()), diverted(p.one.journal.Take()))
		assert.Equal(t, map[string]string{"203.0.113.10/32": "normal"}, p.first(p.one), "BGP is left alone")

		p.src[p.two].Set(p.vm, fabric.Live)
		moment()
		assert.Equal(t, join(webWired, as("fresh", webAnnounced), "store web live"), p.two.journal.Take())
		assert.Contains(t, p.talk.Take(), "node2 tells node1 arrived web")
		assert.Empty(t, p.one.journal.Take())
		time.Sleep(5 * time.Second)
		assert.Equal(t, map[string]string{"203.0.113.10/32": "fresh"}, p.first(p.two), "as long as the source has not let go")

		p.leaves(p.one)
		moment()
		assert.Contains(t, p.talk.Take(), "node1 tells node2 released web")
		ps, err := p.one.dataplane.Diverted(t.Context())
		require.NoError(t, err)
		assert.ElementsMatch(t, p.vm.Prefixes(), ps, "packets are sent on after the port has gone")
		p.lets(p.two)
		time.Sleep(6 * time.Second)
		ps, err = p.one.dataplane.Diverted(t.Context())
		require.NoError(t, err)
		assert.Empty(t, ps)
		p.one.holds()
		p.two.holds(want{p.vm, fabric.Live})

		source, err := p.one.Moves(t.Context(), "web")
		require.NoError(t, err)
		destination, err := p.two.Moves(t.Context(), "")
		require.NoError(t, err)
		require.Len(t, source, 1)
		require.Len(t, destination, 1)
		d := destination[0]
		assert.Equal(t, []string{"moved", "node1", "node2", "libvirt"}, []string{d.Outcome, d.From, d.To, d.RunningBy})
		assert.Equal(t, 7, d.Resent, "as the source said")
		assert.True(t, source[0].Stopped.Equal(d.Stopped))
		var last time.Time
		for i, at := range []time.Time{d.Expected, d.PortReady, d.Stopped, d.Diverted, d.Running, d.Announced, d.Withdrawn, d.Normal} {
			assert.False(t, at.IsZero() || at.Before(last), "%d: %+v", i, d)
			last = at
		}
	})
}

// TestReportsOutlastARestart: also that of a move whose end nobody saw.
// A report ends with the guest, and with what makes it clear that nothing more is heard
// of the move.
func TestReportsEnd(t *testing.T) {
	vm := from("libvirt", web())
	for _, tt := range []struct {
		name    string
		then    func(t *testing.T, n *node, src *fake.Source)
		outcome string
	}{
		{"announced, and given up", func(t *testing.T, n *node, _ *fake.Source) {
			n.apply(vm, fabric.Absent)
		}, "not heard of any more"},
		{"announced, and it does not come", func(*testing.T, *node, *fake.Source) {
			time.Sleep(6 * time.Minute)
		}, "not heard of any more"},
		{"on its way, and given up", func(t *testing.T, n *node, _ *fake.Source) {
			n.apply(vm, fabric.Wired)
			n.apply(vm, fabric.Absent)
		}, "it did not arrive here"},
		{"arrived, and ends", func(t *testing.T, n *node, src *fake.Source) {
			n.apply(vm, fabric.Wired)
			src.Set(vm, fabric.Live)
			moment()
			n.apply(vm, fabric.Absent)
		}, "moved"},
		{"arrived, and expected again", func(t *testing.T, n *node, src *fake.Source) {
			n.apply(vm, fabric.Wired)
			src.Set(vm, fabric.Live)
			moment()
			n.apply(vm, fabric.Absent)
			require.NoError(t, n.Expect(t.Context(), vm.Name))
			n.apply(vm, fabric.Absent)
		}, "not heard of any more"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			following(t, func(t *testing.T, n *node, src *fake.Source) {
				require.NoError(t, n.Expect(t.Context(), vm.Name))
				tt.then(t, n, src)
				moves, err := n.Moves(t.Context(), "")
				require.NoError(t, err)
				assert.Equal(t, tt.outcome, moves[0].Outcome)
				assert.False(t, slices.ContainsFunc(moves, func(m fabric.Move) bool { return m.Outcome == "under way" }))
			})
		})
	}
}

// TestReportOfAMoveThatGoesOn: the guest goes back before its source has let go.
func TestReportOfAMoveThatGoesOn(t *testing.T) {
	pairs(t, func(t *testing.T, p *pair) {
		p.arrives(p.two)
		p.src[p.one].Leave(p.vm)
		moment()
		p.src[p.two].Set(p.vm, fabric.Live)
		moment()
		_, err := p.ends[p.one].Ask(t.Context(), "node2", fabric.Notice{
			Kind: fabric.Arriving, VM: p.vm.Name, UUID: p.vm.UUID, Prefixes: p.vm.Prefixes(),
		})
		require.NoError(t, err)
		moves, err := p.two.Moves(t.Context(), p.vm.Name)
		require.NoError(t, err)
		require.Len(t, moves, 2)
		assert.Equal(t, []string{"node2", "under way"}, []string{moves[0].From, moves[0].Outcome})
		assert.Equal(t, []string{"node2", "moved"}, []string{moves[1].To, moves[1].Outcome})
	})
}

// TestMoveThatIsNotHeardOf: a notice that comes late is about an attempt that is over.
func TestMoveThatIsNotHeardOf(t *testing.T) {
	pairs(t, func(t *testing.T, p *pair) {
		outcome := func() string {
			moves, err := p.one.Moves(t.Context(), p.vm.Name)
			require.NoError(t, err)
			require.Len(t, moves, 1)
			return moves[0].Outcome
		}
		p.says(p.ends[p.two], fabric.Arriving)
		p.ends[p.one].Cut("node2", true)
		time.Sleep(2 * time.Minute)
		assert.Equal(t, "under way", outcome(), "nobody can say")

		p.ends[p.one].Cut("node2", false)
		p.says(p.ends[p.two], fabric.Arriving)
		assert.Equal(t, "under way", outcome())
		time.Sleep(2 * time.Minute)
		assert.Equal(t, "not heard of any more", outcome())
	})
}

func TestReportsOutlastARestart(t *testing.T) {
	pairs(t, func(t *testing.T, p *pair) {
		p.arrives(p.two)
		p.src[p.one].Leave(p.vm)
		moment()
		p.src[p.two].Set(p.vm, fabric.Live)
		p.leaves(p.one)
		p.lets(p.two)
		again := p.two.again(agent.WithSources(p.src[p.two]))
		moves, err := again.Moves(t.Context(), "web")
		require.NoError(t, err)
		require.Len(t, moves, 1)
		assert.Equal(t, "moved", moves[0].Outcome)

		p.arrives(p.one)
		p.leaves(p.one)
		moment()
		moves, err = p.two.again(agent.WithSources(p.src[p.two])).Moves(t.Context(), "web")
		require.NoError(t, err)
		require.Len(t, moves, 2)
		assert.Equal(t, "cancelled: it did not arrive at node1", moves[0].Outcome)
	})
}

// TestSourceOfAMoveLosesItsProcess: what leaves is announced until it is gone.
func TestSourceOfAMoveLosesItsProcess(t *testing.T) {
	pairs(t, func(t *testing.T, p *pair) {
		p.arrives(p.two)
		p.src[p.one].Leave(p.vm)
		moment()
		p.one.dataplane.SetCarrier("web_net0", false)
		p.one.dataplane.SetCarrier("web_net1", false)
		time.Sleep(time.Minute)
		assert.Equal(t, map[string]string{"203.0.113.10/32": "normal"}, p.first(p.one))
		p.src[p.two].Set(p.vm, fabric.Live)
		p.leaves(p.one)
		assert.Empty(t, p.first(p.one))
		p.lets(p.two)
	})
}

// TestMoveThereAndBack: a guest that comes back while packets for it are still
// sent after it.
func TestMoveThereAndBack(t *testing.T) {
	pairs(t, func(t *testing.T, p *pair) {
		for range 3 {
			for _, way := range [][2]*node{{p.one, p.two}, {p.two, p.one}} {
				p.arrives(way[1])
				ps, err := way[1].dataplane.Diverted(t.Context())
				require.NoError(t, err)
				assert.Empty(t, ps, "it would come back for ever")
				p.src[way[0]].Leave(p.vm)
				moment()
				p.src[way[1]].Set(p.vm, fabric.Live)
				moment()
				assert.Equal(t, map[string]string{"203.0.113.10/32": "fresh"}, p.first(way[1]))
				assert.Equal(t, map[string]string{"203.0.113.10/32": "normal"}, p.first(way[0]), "after the destination's")
				p.leaves(way[0])
				moment()
			}
		}
		p.lets(p.one)
	})
}

// TestMoveByAFrame: the guest is heard before its hypervisor says anything.
func TestMoveByAFrame(t *testing.T) {
	pairs(t, func(t *testing.T, p *pair) {
		p.arrives(p.two)
		p.forget()
		p.two.dataplane.Hear("web_net1")
		moment()
		assert.Equal(t, map[string]string{"203.0.113.10/32": "fresh"}, p.first(p.two))
		assert.Equal(t, len(p.vm.Prefixes()), diverted(p.one.journal.Take()), "the source hears it from the destination")
		assert.Equal(t, map[string]string{"203.0.113.10/32": "normal"}, p.first(p.one), "until the routers know the destination")
		time.Sleep(3 * time.Second)
		assert.Empty(t, p.first(p.one))
		moves, err := p.two.Moves(t.Context(), "web")
		require.NoError(t, err)
		assert.Equal(t, "frame", moves[0].RunningBy)
		p.src[p.two].Set(p.vm, fabric.Live)
		p.leaves(p.one)
		p.lets(p.two)
	})
}

// comesBack holds once a move has failed: the first node has the guest as before it.
func (p *pair) comesBack() {
	p.t.Helper()
	time.Sleep(3 * time.Second)
	ps, err := p.one.dataplane.Diverted(p.t.Context())
	require.NoError(p.t, err)
	assert.Empty(p.t, ps)
	assert.Equal(p.t, map[string]string{"203.0.113.10/32": "normal"}, p.first(p.one))
	p.two.holds()
	p.one.holds(want{p.vm, fabric.Live})
	for _, n := range []*node{p.one, p.two} {
		assert.Empty(p.t, n.problems())
		moves, err := n.Moves(p.t.Context(), "web")
		require.NoError(p.t, err)
		require.NotEmpty(p.t, moves)
		assert.NotContains(p.t, []string{"moved", "under way"}, moves[0].Outcome)
	}
}

// endsAt has a node's hypervisor end the guest there.
func (p *pair) endsAt(n *node) {
	p.t.Helper()
	require.NoError(p.t, n.Withdraw(p.t.Context(), "web"))
	require.NoError(p.t, n.Apply(p.t.Context(), p.vm, fabric.Absent))
	p.src[n].Set(p.vm, fabric.Absent)
	moment()
}

// TestMoveThatFails: whichever way, the source has its guest back, first of all.
func TestMoveThatFails(t *testing.T) {
	t.Run("before the guest stops", func(t *testing.T) {
		pairs(t, func(t *testing.T, p *pair) {
			p.arrives(p.two)
			p.one.journal.Take()
			p.endsAt(p.two)
			assert.Equal(t, []string{"record web_net0 no more", "record web_net1 no more"}, p.one.journal.Take())
			p.comesBack()
		})
	})
	t.Run("after it stopped, and it goes on", func(t *testing.T) {
		pairs(t, func(t *testing.T, p *pair) {
			p.arrives(p.two)
			p.src[p.one].Leave(p.vm)
			moment()
			p.forget()
			p.src[p.one].Set(p.vm, fabric.Live)
			moment()
			lines := p.one.journal.Take()
			require.GreaterOrEqual(t, len(lines), len(p.vm.Prefixes()))
			for _, l := range lines[:len(p.vm.Prefixes())] {
				assert.Contains(t, l, "return ")
			}
			p.endsAt(p.two)
			p.comesBack()

			// The next attempt, soon after, is a move like any other.
			p.arrives(p.two)
			p.src[p.one].Leave(p.vm)
			moment()
			moves, err := p.one.Moves(t.Context(), "web")
			require.NoError(t, err)
			assert.Equal(t, "under way", moves[0].Outcome)
			assert.False(t, moves[0].Learned.IsZero() || moves[0].Stopped.IsZero(), "%+v", moves[0])
			p.src[p.two].Set(p.vm, fabric.Live)
			p.leaves(p.one)
			p.lets(p.two)
		})
	})
	t.Run("the destination ends first", func(t *testing.T) {
		pairs(t, func(t *testing.T, p *pair) {
			p.arrives(p.two)
			p.src[p.one].Leave(p.vm)
			moment()
			p.endsAt(p.two)
			ps, err := p.one.dataplane.Diverted(t.Context())
			require.NoError(t, err)
			assert.Empty(t, ps, "its packets wait in its port again")
			p.src[p.one].Set(p.vm, fabric.Live)
			moment()
			p.comesBack()
		})
	})
	t.Run("after it ran at the destination", func(t *testing.T) {
		pairs(t, func(t *testing.T, p *pair) {
			p.arrives(p.two)
			p.src[p.one].Leave(p.vm)
			moment()
			p.src[p.two].Set(p.vm, fabric.Live)
			time.Sleep(2 * time.Second)
			p.src[p.one].Set(p.vm, fabric.Live) // and the hypervisor takes the source's for the true one
			moment()
			assert.Contains(t, p.one.journal.Take(), "announce 203.0.113.10/32 fresh", "it comes before the destination's again")
			assert.Empty(t, p.first(p.two))
			p.endsAt(p.two)
			p.lets(p.one)
			p.one.holds(want{p.vm, fabric.Live})
			p.two.holds()
		})
	})
}

// TestMoveWithoutTheOthersAgent: what an agent does not hear, it does not need.
func TestMoveWithoutTheOthersAgent(t *testing.T) {
	pairs(t, func(t *testing.T, p *pair) {
		p.ends[p.one].Cut("node2", true)
		p.arrives(p.two)
		p.src[p.one].Leave(p.vm)
		moment()
		p.src[p.two].Set(p.vm, fabric.Live)
		moment()
		p.leaves(p.one)
		time.Sleep(time.Hour)
		assert.Equal(t, map[string]string{"203.0.113.10/32": "fresh"}, p.first(p.two), "nobody said that it let go")
		p.ends[p.one].Cut("node2", false)
		time.Sleep(5 * time.Second)
		p.lets(p.two)
	})
}

// TestReturningNode: of two nodes that have the guest, the later one keeps it.
func TestReturningNode(t *testing.T) {
	pairs(t, func(t *testing.T, p *pair) {
		p.ends[p.one].Cut("node2", true)
		p.two.apply(p.vm, fabric.Wired)
		require.NoError(t, p.two.Started(t.Context(), p.vm))
		p.src[p.two].Set(p.vm, fabric.Live)
		time.Sleep(time.Hour)
		assert.Equal(t, map[string]string{"203.0.113.10/32": "fresh"}, p.first(p.two), "the other cannot take it back when it returns")

		p.ends[p.one].Cut("node2", false)
		time.Sleep(5 * time.Second)
		assert.Empty(t, p.first(p.one))
		require.Len(t, p.one.problems(), 1)
		assert.Contains(t, p.one.problems()[0], "guest web: node2 has it")
		assert.Equal(t, fabric.Wired, p.one.states()["web_net0"])
		assert.Empty(t, p.two.problems())
		p.lets(p.two)

		// It stays so, whatever is restarted.
		require.NoError(t, p.one.Started(t.Context(), p.vm)) // libvirtd: reconnect
		p.src[p.one].Lose()
		time.Sleep(5 * time.Minute)
		assert.Empty(t, p.first(p.one))

		// Until the other lets go.
		require.NoError(t, p.two.Withdraw(t.Context(), "web"))
		require.NoError(t, p.two.Apply(t.Context(), p.vm, fabric.Absent))
		p.src[p.two].Set(p.vm, fabric.Absent)
		time.Sleep(5 * time.Second)
		assert.Empty(t, p.one.problems())
		p.lets(p.one)
	})
}

// TestRivalOfAReflector: a node that hears from the reflectors alone.
func TestRivalOfAReflector(t *testing.T) {
	pairs(t, func(t *testing.T, p *pair) {
		p.ends[p.one].Cut("node2", true)
		c := cluster()
		p.one.speaker.Compete(fabric.Competitor{Prefix: p.vm.Prefixes()[0], Via: c.Nodes[1].Address, Preference: fabric.Fresh, Reflector: "rr1", At: time.Now()})
		moment()
		assert.Empty(t, p.first(p.one))
		assert.Contains(t, strings.Join(p.one.problems(), "\n"), "guest web: rr1 has a route to it via node2 with a higher LOCAL_PREF, and the agent of node2 does not answer, so it is not announced here; see what runs on node2")
	})
}

// TestNodeThatNobodyHasMet: no announcement waits for ever for an agent that may
// not be there, and claims go on.
func TestNodeThatNobodyHasMet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, talk := cluster(), new(fake.Journal)
		ends := fake.NewNodes(talk, c.Nodes[:2]...)
		vm := from("libvirt", web())
		src := fake.NewSource("libvirt")
		n := fresh(t, agent.WithNodes(ends["node1"]), agent.WithSources(src))
		as := func() fabric.Preference {
			routes, err := n.speaker.Actual(t.Context())
			require.NoError(t, err)
			return routes[0].Preference
		}
		n.run(func() {
			n.apply(vm, fabric.Wired)
			require.NoError(t, n.Started(t.Context(), vm))
			src.Set(vm, fabric.Live)
			time.Sleep(50 * time.Second)
			assert.Equal(t, fabric.Fresh, as())
			time.Sleep(45 * time.Second)
			assert.Equal(t, fabric.Normal, as())
			ctx, cancel := context.WithCancel(t.Context())
			served := make(chan error)
			go func() {
				served <- ends["node2"].Serve(ctx, func(context.Context, fabric.Node, fabric.Notice) fabric.Answer { return fabric.Answer{} })
			}()
			time.Sleep(5 * time.Second)
			assert.Contains(t, talk.Take(), "node1 tells node2 claimed web")
			cancel()
			require.NoError(t, <-served)
		})
	})
}

// TestFreshOutlastsARestart: an agent that was restarted still knows who has not
// let go.
func TestFreshOutlastsARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster()
		ends := fake.NewNodes(nil, c.Nodes[:2]...)
		vm := from("libvirt", web())
		src := fake.NewSource("libvirt")
		n := fresh(t, agent.WithNodes(ends["node1"]), agent.WithSources(src))
		n.run(func() {
			n.apply(vm, fabric.Wired)
			require.NoError(t, n.Started(t.Context(), vm))
			src.Set(vm, fabric.Live)
			moment()
		})
		n = n.again(agent.WithNodes(ends["node1"]), agent.WithSources(src))
		n.run(func() {
			time.Sleep(time.Minute)
			routes, err := n.speaker.Actual(t.Context())
			require.NoError(t, err)
			assert.Equal(t, fabric.Fresh, routes[0].Preference)
			ctx, cancel := context.WithCancel(t.Context())
			served := make(chan error)
			go func() {
				served <- ends["node2"].Serve(ctx, func(context.Context, fabric.Node, fabric.Notice) fabric.Answer { return fabric.Answer{} })
			}()
			time.Sleep(10 * time.Second)
			routes, err = n.speaker.Actual(t.Context())
			require.NoError(t, err)
			assert.Equal(t, fabric.Normal, routes[0].Preference)
			cancel()
			require.NoError(t, <-served)
		})
	})
}

// TestGuestWhosePacketsAnAgentBeforeSentOn: it runs at the other node, as far as that
// agent knew, and comes first there until the hypervisor says that it runs here.
func TestGuestWhosePacketsAnAgentBeforeSentOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, vm, src := cluster(), from("libvirt", web()), fake.NewSource("libvirt")
		ends := fake.NewNodes(nil, c.Nodes[:2]...)
		n := fresh(t, agent.WithNodes(ends["node1"]), agent.WithSources(src))
		n.run(func() {
			n.apply(vm, fabric.Wired)
			require.NoError(t, n.Started(t.Context(), vm))
			src.Set(vm, fabric.Live)
			moment()
			_, err := n.dataplane.Divert(t.Context(), vm.Ports(&c), c.Nodes[1])
			require.NoError(t, err)
		})
		says := src.Hang("list guests")
		n = n.again(agent.WithNodes(ends["node1"]), agent.WithSources(src))
		n.run(func() {
			as := func() fabric.Preference {
				routes, err := n.speaker.Actual(t.Context())
				require.NoError(t, err)
				return routes[0].Preference
			}
			time.Sleep(time.Minute)
			diverted, err := n.dataplane.Diverted(t.Context())
			require.NoError(t, err)
			require.Empty(t, diverted)
			assert.Equal(t, fabric.Normal, as())
			says()
			time.Sleep(time.Second)
			assert.Equal(t, fabric.Fresh, as(), "node2 does not answer")
		})
	})
}

// TestStoppedGuestOfALostState: an agent that has lost its state does not take a guest
// which was stopped to run elsewhere for one that has just begun to run.
func TestStoppedGuestOfALostState(t *testing.T) {
	for name, tc := range map[string]struct {
		leaving bool
		want    fabric.Preference
	}{
		"it runs":     {false, fabric.Fresh},
		"it has left": {true, fabric.Normal},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				vm, src := gold(), fake.NewSource("libvirt")
				n := fresh(t, agent.WithNodes(fake.NewNodes(nil, cluster().Nodes[:2]...)["node1"]), agent.WithSources(src))
				src.SetQuietly(vm, fabric.Live)
				if tc.leaving {
					src.Leave(vm)
					<-src.Changes() // which was before the agent
				}
				n.run(func() {
					time.Sleep(5 * time.Second)
					assert.Equal(t, map[fabric.Preference]int{tc.want: 2}, n.preferences())
				})
			})
		})
	}
}

// TestDiversionOfALostState: where the guest runs, what an agent that lost its state
// sends on for it comes back as soon as the hypervisor says so.
func TestDiversionOfALostState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, vm, src := cluster(), gold(), fake.NewSource("libvirt")
		src.SetQuietly(vm, fabric.Live)
		n := fresh(t, agent.WithSources(src))
		n.apply(vm, fabric.Live)
		_, err := n.dataplane.Divert(t.Context(), vm.Ports(&c), c.Nodes[1])
		require.NoError(t, err)
		n.store = fake.NewStore(n.journal)
		n = n.again(agent.WithSources(src))
		n.run(func() {
			time.Sleep(time.Second)
			diverted, err := n.dataplane.Diverted(t.Context())
			require.NoError(t, err)
			assert.Empty(t, diverted)
		})
	})
}

// TestArrivalIsToldAtOnce: the node that a guest came from hears that it arrived
// although its start is not over: the disk is slow.
func TestArrivalIsToldAtOnce(t *testing.T) {
	pairs(t, func(t *testing.T, p *pair) {
		p.arrives(p.two)
		p.src[p.one].Leave(p.vm)
		moment()
		p.forget()
		release := p.two.store.Hang("store web live")
		p.src[p.two].Set(p.vm, fabric.Live)
		time.Sleep(time.Second)
		told := p.talk.Take()
		release()
		assert.Contains(t, told, "node2 tells node1 arrived web")
	})
}

// TestArrivalThatIsPast: that a guest arrived, which has gone on since, is not told
// when the other node can be reached again.
func TestArrivalThatIsPast(t *testing.T) {
	for name, tc := range map[string]struct {
		goes func(*pair)
		told bool
	}{
		"it runs there yet": {func(*pair) {}, true},
		"it was stopped":    {func(p *pair) { p.src[p.two].Leave(p.vm) }, false},
		"it ended":          {func(p *pair) { p.leaves(p.two) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			pairs(t, func(t *testing.T, p *pair) {
				p.arrives(p.two)
				p.ends[p.one].Cut("node2", true)
				p.src[p.one].Leave(p.vm)
				p.src[p.two].Set(p.vm, fabric.Live)
				moment()
				tc.goes(p)
				moment()
				p.forget()
				p.ends[p.one].Cut("node2", false)
				time.Sleep(5 * time.Second)
				assert.Equal(t, tc.told, slices.Contains(p.talk.Take(), "node2 tells node1 arrived web"))
			})
		})
	}
}

// TestStoppedForAnUnknownNode: of a guest that was stopped to run elsewhere, and no
// agent says where, the route comes behind that of the other node at once.
func TestStoppedForAnUnknownNode(t *testing.T) {
	pairs(t, func(t *testing.T, p *pair) {
		p.over(p.one, p.vm)
		p.ends[p.one].Cut("node2", true)
		p.runs(p.one, p.vm)
		time.Sleep(10 * time.Second)
		require.Equal(t, map[string]string{"203.0.113.10/32": "fresh"}, p.first(p.one))
		p.src[p.one].Leave(p.vm)
		moment()
		assert.Equal(t, map[string]string{"203.0.113.10/32": "normal"}, p.first(p.one))
	})
}

// TestOnwardMoveWhileANodeIsSilent: the route that a silent node may have left at
// the reflectors does not come first while the guest is copied to a third.
func TestOnwardMoveWhileANodeIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster()
		ends := fake.NewNodes(nil, c.Nodes[:2]...)
		third := ends["node1"].Join(fabric.Node{Name: "node3", Address: netip.MustParseAddr("10.10.0.99")})
		vm := from("libvirt", web())
		src := fake.NewSource("libvirt")
		n := fresh(t, agent.WithNodes(ends["node1"]), agent.WithSources(src))
		as := func() fabric.Preference {
			moment()
			routes, err := n.speaker.Actual(t.Context())
			require.NoError(t, err)
			return routes[0].Preference
		}
		n.run(func() {
			n.apply(vm, fabric.Wired)
			require.NoError(t, n.Started(t.Context(), vm))
			src.Set(vm, fabric.Live)
			time.Sleep(5 * time.Second)
			require.Equal(t, fabric.Fresh, as())

			_, err := third.Ask(t.Context(), "node1", fabric.Notice{
				Kind: fabric.Arriving, VM: vm.Name, UUID: vm.UUID, Identity: vm.Identity(), Prefixes: vm.Prefixes(),
			})
			require.NoError(t, err)
			assert.Equal(t, fabric.Fresh, as(), "node2 does not answer")

			ctx, cancel := context.WithCancel(t.Context())
			served := make(chan error)
			go func() {
				served <- ends["node2"].Serve(ctx, func(context.Context, fabric.Node, fabric.Notice) fabric.Answer { return fabric.Answer{} })
			}()
			time.Sleep(5 * time.Second)
			assert.Equal(t, fabric.Normal, as())
			cancel()
			require.NoError(t, <-served)
		})
	})
}
