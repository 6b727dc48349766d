package agent_test

import (
	"cmp"
	"context"
	"encoding/json"
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

// reflects has a reflector tell each of the two nodes of the other's route where
// that is the best, and above the usual LOCAL_PREF, until the test ends. Of two
// alike the first node's is, or the second's.
func (p *pair) reflects(second bool) {
	ctx, cancel := context.WithCancel(p.t.Context())
	done := make(chan struct{})
	p.t.Cleanup(func() { cancel(); <-done })
	nodes := []*node{p.one, p.two}
	told := map[*node]map[netip.Prefix]fabric.Competitor{p.one: {}, p.two: {}}
	go func() {
		defer close(done)
		for look := time.NewTicker(10 * time.Millisecond); ; {
			select {
			case <-ctx.Done():
				look.Stop()
				return
			case <-look.C:
			}
			best := map[netip.Prefix]fabric.Competitor{}
			firsts := map[netip.Prefix]fabric.Route{}
			for i, n := range nodes {
				routes, err := n.speaker.Actual(ctx)
				if err != nil {
					continue
				}
				for _, r := range routes {
					was, there := firsts[r.Prefix]
					order := cmp.Or(cmp.Compare(r.Preference.LocalPref(), was.Preference.LocalPref()), rank(r.First)-rank(was.First), rank(second))
					if !there || order > 0 {
						firsts[r.Prefix] = r
						best[r.Prefix] = fabric.Competitor{Prefix: r.Prefix, Via: cluster().Nodes[i].Address, Preference: r.Preference, Reflector: "rr1", Holder: r.Holder}
					}
				}
			}
			for i, n := range nodes {
				for _, prefix := range p.vm.Prefixes() {
					r := best[prefix]
					better := r.Via.IsValid() && r.Via != cluster().Nodes[i].Address && r.Preference.LocalPref() > fabric.Normal.LocalPref()
					if had, has := told[n][prefix]; better && (!has || had != r) {
						told[n][prefix] = r
						r.At = time.Now()
						n.speaker.Compete(r)
					} else if !better && has {
						delete(told[n], prefix)
						had.Gone, had.At = true, time.Now()
						n.speaker.Compete(had)
					}
				}
			}
		}
	}()
}

func rank(b bool) int {
	if b {
		return 1
	}
	return 0
}

// apart has two guests with one address, of agents that cannot talk: gold on the
// first node, for a minute, and then newcomer on the second.
func apart(t *testing.T, second bool, newcomer fabric.VM, f func(*testing.T, *pair)) {
	t.Helper()
	golds(t, func(t *testing.T, p *pair) {
		time.Sleep(time.Minute)
		p.reflects(second)
		p.ends[p.one].Cut("node2", true)
		if newcomer.Origin == "" {
			p.two.apply(newcomer, fabric.Live)
		} else {
			p.runs(p.two, newcomer)
		}
		time.Sleep(100 * time.Millisecond)
		f(t, p)
	})
}

const (
	olderKeeps    = "guest sea_gold on node1: another guest on node2 has an address of it too, as its route at rr1 says; sea_gold has had it longer and keeps it, stop the one on node2, or give that another address"
	newcomerYield = "guest clone: another guest on node1 has an address of it, and has had it longer, as its route at rr1 says, so clone is not announced on node2"
	wayOut        = "; stop one of the two, or give it another address"
	inCase        = "; node1 does not answer now, so it is announced with LOCAL_PREF 10, in case nobody else has it"
)

// announces gives how a node announces all of its prefixes, "" where not at all.
func announces(t *testing.T, n *node) string {
	t.Helper()
	routes, err := n.speaker.Actual(t.Context())
	require.NoError(t, err)
	var all []string
	for _, r := range routes {
		as := r.Preference.String()
		if r.First {
			as += " first"
		}
		if !slices.Contains(all, as) {
			all = append(all, as)
		}
	}
	return strings.Join(all, ", ")
}

// TestTwoGuestsWhoseAgentsDoNotTalk: the older holder keeps its address, and the
// newcomer withdraws as soon as it hears of it from a reflector, whichever router
// id is the lower, and however it was started.
func TestTwoGuestsWhoseAgentsDoNotTalk(t *testing.T) {
	for name, newcomer := range map[string]fabric.VM{
		"both families": clone(),
		"IPv4":          known("clone", "uuid-of-clone", "203.0.113.10"),
		"IPv6":          known("clone", "uuid-of-clone", "203.0.113.9 2001:db8:100:1::10"),
		"by hand":       guest("clone", "203.0.113.10 2001:db8:100:1::10"),
	} {
		for _, second := range []bool{false, true} {
			t.Run(name+map[bool]string{false: "", true: ", whose router id is lower"}[second], func(t *testing.T) {
				apart(t, second, newcomer, func(t *testing.T, p *pair) {
					if newcomer.Origin == "" {
						time.Sleep(5 * time.Second) // one by hand does not come first before a node is known to be silent
					}
					assert.Equal(t, "fresh first", announces(t, p.one))
					assert.Empty(t, announces(t, p.two), "within moments")
					assert.Equal(t, []string{olderKeeps}, p.one.problems())
					assert.Equal(t, []string{newcomerYield + wayOut}, p.two.problems())

					time.Sleep(time.Minute)
					assert.Equal(t, "normal", announces(t, p.one), "the newcomer has had its time to hear")
					assert.Equal(t, "standby", announces(t, p.two), "behind the older one, which may end")
					p.forget()
					time.Sleep(5 * time.Minute)
					for _, n := range []*node{p.one, p.two} {
						for _, line := range n.journal.Take() {
							assert.NotRegexp(t, "^(announce|withdraw) ", line, "it goes to and fro on %s", n.name)
						}
					}
					assert.Equal(t, []string{olderKeeps}, p.one.problems())
					assert.Equal(t, []string{newcomerYield + inCase + wayOut}, p.two.problems())

					p.ends[p.one].Cut("node2", false)
					time.Sleep(5 * time.Second)
					assert.Equal(t, "normal", announces(t, p.one))
					assert.Empty(t, announces(t, p.two))
					p.names(p.one)
					p.names(p.two)

					p.over(p.two, newcomer)
					assert.Empty(t, p.one.problems())
					assert.Empty(t, p.two.problems())
					assert.Equal(t, "normal", announces(t, p.one))
				})
			})
		}
	}
}

// TestOlderGuestEndsWhileAgentsDoNotTalk: the newcomer is reached as soon as the
// route of the older one has gone, and has the address when the agents talk.
func TestOlderGuestEndsWhileAgentsDoNotTalk(t *testing.T) {
	for _, after := range []time.Duration{0, time.Minute} {
		apart(t, true, clone(), func(t *testing.T, p *pair) {
			time.Sleep(after)
			p.over(p.one, p.vm)
			time.Sleep(5 * time.Second)
			assert.Empty(t, announces(t, p.one))
			assert.Equal(t, "standby", announces(t, p.two))
			assert.Equal(t, []string{newcomerYield + inCase + wayOut}, p.two.problems())
			p.ends[p.one].Cut("node2", false)
			time.Sleep(5 * time.Second)
			assert.Equal(t, "normal", announces(t, p.two))
			assert.Empty(t, p.one.problems())
			assert.Empty(t, p.two.problems())
		})
	}
}

// TestNewcomerEndsWhileAgentsDoNotTalk: the older node hears that it is over when
// the agents talk, although nothing else is to be said then.
func TestNewcomerEndsWhileAgentsDoNotTalk(t *testing.T) {
	apart(t, false, clone(), func(t *testing.T, p *pair) {
		time.Sleep(time.Minute)
		p.over(p.two, clone())
		time.Sleep(time.Minute)
		assert.Equal(t, "normal", announces(t, p.one))
		assert.Equal(t, []string{olderKeeps}, p.one.problems(), "nobody has said that it is over")
		p.ends[p.one].Cut("node2", false)
		time.Sleep(5 * time.Second)
		assert.Empty(t, p.one.problems())
		p.forget()
		time.Sleep(10 * time.Minute)
		assert.Empty(t, p.talk.Take(), "nobody is asked any more")
	})
}

// TestAgentsRestartWhileTheyDoNotTalk: what a route said of another guest is known
// to the agent after.
func TestAgentsRestartWhileTheyDoNotTalk(t *testing.T) {
	var kept []fabric.Desired
	apart(t, true, clone(), func(t *testing.T, p *pair) {
		var err error
		kept, err = p.two.store.All(t.Context())
		require.NoError(t, err)
		require.Len(t, kept, 1)
	})
	text, err := json.Marshal(kept[0])
	require.NoError(t, err)
	synctest.Test(t, func(t *testing.T) {
		var d fabric.Desired
		require.NoError(t, json.Unmarshal(text, &d))
		j, src, ends := new(fake.Journal), fake.NewSource("libvirt"), fake.NewNodes(nil, cluster().Nodes[:2]...)
		src.SetQuietly(d.VM, fabric.Live)
		n := (&node{t: t, name: "node2", journal: j, dataplane: fake.NewDataplane(j), speaker: fake.NewSpeaker(j), store: fake.NewStore(j, d)}).
			start(agent.WithNodes(ends["node2"]), agent.WithSources(src))
		n.run(func() {
			time.Sleep(time.Second)
			assert.Empty(t, announces(t, n))
			assert.Equal(t, []string{newcomerYield + wayOut}, n.problems())
		})
	})
}

// TestSameGuestElsewhereWhileAgentsDoNotTalk: it was started again on another
// node, which has it; nobody claims to know when.
func TestSameGuestElsewhereWhileAgentsDoNotTalk(t *testing.T) {
	for _, second := range []bool{false, true} {
		apart(t, second, gold(), func(t *testing.T, p *pair) {
			time.Sleep(10 * time.Second)
			assert.Empty(t, announces(t, p.one))
			assert.Equal(t, "fresh", announces(t, p.two))
			assert.Equal(t, []string{"guest sea_gold: rr1 has a route to it via node2 with a higher LOCAL_PREF, and the agent of node2 does not answer, so it is not announced here; see what runs on node2, and stop the guest on one of the two, or start it anew to take it back"}, p.one.problems())
			assert.Empty(t, p.two.problems())
			p.ends[p.one].Cut("node2", false)
			time.Sleep(5 * time.Second)
			assert.Equal(t, []string{"guest sea_gold: node2 has it, and began to run it later, so it is not announced here; stop the guest here, or start it anew to take it back"}, p.one.problems())
			assert.Equal(t, "normal", announces(t, p.two))
		})
	}
}

// TestOlderRouteOfANodeThatAnswers: the word of its agent counts more than what a
// reflector still has.
func TestOlderRouteOfANodeThatAnswers(t *testing.T) {
	golds(t, func(t *testing.T, p *pair) {
		r := route(p.vm, "10.10.0.22")
		r.Holder = fabric.Holder{Guest: 1, Since: 1}
		p.forget()
		p.one.speaker.Compete(r)
		time.Sleep(time.Second)
		assert.NotContains(t, strings.Join(p.one.journal.Take(), "\n"), "withdraw", "node2 is asked first, and says that it has nothing")
		assert.NotEmpty(t, announces(t, p.one))
		time.Sleep(10 * time.Second)
		p.forget()
		time.Sleep(10 * time.Minute)
		assert.Empty(t, p.one.journal.Take(), "and is not asked over and over")
		assert.Equal(t, "normal", announces(t, p.one))
		require.Len(t, p.one.problems(), 1)
		assert.Contains(t, p.one.problems()[0], "a route for 203.0.113.10 via node2 comes before this node's at rr1, and the agent there says that the guest does not run there")

		// What it said was not about another route.
		p.ends[p.one].Cut("node2", true)
		r.Holder.Since = 2
		p.one.speaker.Compete(r)
		moment()
		assert.Empty(t, announces(t, p.one))
		r.Gone = true
		p.one.speaker.Compete(r)
		p.ends[p.one].Cut("node2", false)
		time.Sleep(5 * time.Second)
		assert.Equal(t, "normal", announces(t, p.one))
		assert.Empty(t, p.one.problems())
	})
}

// TestGuestThatDefendsItsAddressMoves: where it goes comes first.
func TestGuestThatDefendsItsAddressMoves(t *testing.T) {
	golds(t, func(t *testing.T, p *pair) {
		r := route(p.vm, "10.10.0.22")
		r.Holder = fabric.Holder{Guest: 1, Since: uint32(time.Now().Add(time.Hour).Unix())}
		p.one.speaker.Compete(r)
		moment()
		assert.Equal(t, "fresh first", announces(t, p.one))
		p.arrives(p.two)
		time.Sleep(time.Second)
		assert.Equal(t, "normal", announces(t, p.one))
	})
}

// TestGuestWhoseDestinationIsQuietDefendsItsAddress: the guest runs here yet, and no
// route of the destination needs to rank first before that one says again that the
// guest is to arrive.
func TestGuestWhoseDestinationIsQuietDefendsItsAddress(t *testing.T) {
	golds(t, func(t *testing.T, p *pair) {
		p.arrives(p.two)
		r := route(p.vm, "10.10.0.22")
		r.Holder = fabric.Holder{Guest: 1, Since: uint32(time.Now().Add(time.Hour).Unix())}
		p.one.speaker.Compete(r)
		time.Sleep(10 * time.Second)
		assert.Equal(t, "normal", announces(t, p.one), "the guest is about to leave")
		p.ends[p.two].Cut("node1", true)
		time.Sleep(5 * time.Second)
		assert.Equal(t, "fresh first", announces(t, p.one))
		p.ends[p.two].Cut("node1", false)
		time.Sleep(3 * time.Second)
		assert.Equal(t, "normal", announces(t, p.one))

		p.ends[p.two].Cut("node1", true)
		time.Sleep(5 * time.Second)
		p.src[p.one].Leave(p.vm)
		moment()
		assert.Equal(t, "normal", announces(t, p.one), "the hypervisor has stopped it here")
	})
}

// TestHolderAfterARestart: the first route that an agent sends says its holder, where
// the one before it waited for a node.
func TestHolderAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		vm, src := gold(), fake.NewSource("libvirt")
		options := []agent.Option{agent.WithNodes(fake.NewNodes(nil, cluster().Nodes[:2]...)["node1"]), agent.WithSources(src)}
		n := fresh(t, options...)
		n.run(func() {
			n.apply(vm, fabric.Wired)
			require.NoError(t, n.Started(t.Context(), vm))
			src.Set(vm, fabric.Live)
			time.Sleep(5 * time.Second)
		})
		n = n.again(options...)
		routes, err := n.speaker.Actual(t.Context())
		require.NoError(t, err)
		require.NotEmpty(t, routes)
		assert.NotZero(t, routes[0].Holder)
	})
}

// TestGuestThatCameBackDefendsItsAddress: that it ran elsewhere for a time, and that
// it was to go there, is past.
func TestGuestThatCameBackDefendsItsAddress(t *testing.T) {
	golds(t, func(t *testing.T, p *pair) {
		p.runs(p.two, gold())
		time.Sleep(time.Minute)
		require.Empty(t, announces(t, p.one))
		p.over(p.two, gold())
		time.Sleep(time.Minute)
		require.Equal(t, "normal", announces(t, p.one))

		p.reflects(true)
		p.ends[p.one].Cut("node2", true)
		p.runs(p.two, clone())
		time.Sleep(5 * time.Second)
		assert.Equal(t, "fresh first", announces(t, p.one))
		assert.Empty(t, announces(t, p.two))
	})
}

// TestReportOfAGuestThatCameBack ends when the other node gives the guest back.
func TestReportOfAGuestThatCameBack(t *testing.T) {
	golds(t, func(t *testing.T, p *pair) {
		outcome := func() string {
			moves, err := p.one.Moves(t.Context(), gold().Name)
			require.NoError(t, err)
			require.NotEmpty(t, moves)
			return moves[0].Outcome
		}
		p.runs(p.two, gold())
		time.Sleep(5 * time.Second)
		assert.Equal(t, "under way", outcome())
		p.over(p.two, gold())
		time.Sleep(5 * time.Second)
		assert.Equal(t, "it does not run at node2 any more", outcome())
	})
}

// TestHolderOf: what a route says of its holder comes back, and nothing from what
// is not whole, or is the cluster's own.
func TestHolderOf(t *testing.T) {
	c := cluster()
	c.Communities = []fabric.Community{{Large: true, A: c.ASN, B: fabric.HolderFunction, C: 7}}
	d := fabric.Desired{VM: gold(), Acquired: time.Date(2026, 11, 29, 12, 0, 0, 5, time.UTC)}
	said := d.Holder()
	assert.NotZero(t, said.Guest)
	assert.EqualValues(t, d.Acquired.Unix(), said.Since)
	both := said.Communities(c.ASN)
	require.Len(t, both, 2)
	other := d
	other.VM = clone()
	assert.NotEqual(t, said.Guest, other.Holder().Guest)
	d.VM.Name = "renamed"
	assert.Equal(t, said, d.Holder(), "it is the same guest")

	none := fabric.Holder{}
	assert.Empty(t, none.Communities(c.ASN))
	for _, at := range []time.Time{{}, time.Unix(0, 0), time.Unix(-1, 0), time.Unix(1<<32, 0)} {
		assert.Equal(t, none, fabric.Desired{VM: gold(), Acquired: at}.Holder())
	}
	own := c.Communities[0]
	for name, tc := range map[string]struct {
		all  []fabric.Community
		want fabric.Holder
	}{
		"alone":                {both, said},
		"beside the cluster's": {append([]fabric.Community{own, {Large: true, A: c.ASN, B: 1, C: 2}, {A: 1, B: 2}}, both...), said},
		"one is missing":       {both[:1], none},
		"the other is missing": {both[1:], none},
		"one is there twice":   {append(slices.Clone(both), fabric.Community{Large: true, A: c.ASN, B: fabric.HeldSinceFunction, C: 1}), none},
		"of another AS":        {said.Communities(c.ASN + 1), none},
		"the cluster's alone":  {[]fabric.Community{own}, none},
		"none":                 {nil, none},
	} {
		assert.Equal(t, tc.want, c.HolderOf(tc.all), name)
	}
}
