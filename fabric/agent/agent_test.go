package agent_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

var errBoom = errors.New("boom")

var (
	webAnnounced = lines("announce", "203.0.113.10/32", "2001:db8:100:1::10/128", "198.51.100.0/29", "203.0.113.11/32", "2001:db8:100:1::11/128", "2001:db8:200:8::/64")
	webWithdrawn = lines("withdraw", "203.0.113.10/32", "2001:db8:100:1::10/128", "198.51.100.0/29", "203.0.113.11/32", "2001:db8:100:1::11/128", "2001:db8:200:8::/64")
	webWired     = lines("wire", "web_net0", "web_net1")
	webUnwired   = lines("unwire", "web_net0", "web_net1")
)

func lines(verb string, objects ...string) []string {
	var all []string
	for _, o := range objects {
		all = append(all, verb+" "+o)
	}
	return all
}

// join strings lines together: a string is a line, a []string many.
func join(parts ...any) []string {
	var all []string
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			all = append(all, p)
		case []string:
			all = append(all, p...)
		}
	}
	return all
}

func TestApplyFromEachStateToEach(t *testing.T) {
	const absent, wired, live = fabric.Absent, fabric.Wired, fabric.Live
	for _, tt := range []struct {
		from, to fabric.State
		want     []string
	}{
		{absent, absent, nil},
		{absent, wired, join("store web wired", webWired)},
		{absent, live, join("store web live", webWired, webAnnounced)},
		{wired, absent, join(webUnwired, "forget web")},
		{wired, wired, nil},
		{wired, live, join("store web live", webAnnounced)},
		{live, absent, join(webWithdrawn, webUnwired, "forget web")},
		{live, wired, join("store web wired", webWithdrawn)},
		{live, live, nil},
	} {
		t.Run(fmt.Sprintf("%v to %v", tt.from, tt.to), func(t *testing.T) {
			n := fresh(t)
			n.apply(db(), live)
			n.apply(web(), tt.from)
			n.journal.Take()
			n.apply(web(), tt.to)
			n.did(tt.want...)
			n.holds(want{db(), live}, want{web(), tt.to})
			n.apply(web(), tt.to)
			n.did()
			assert.Empty(t, n.problems())
		})
	}
}

func TestApplyChangesAGuestThatIsHere(t *testing.T) {
	before := guest("web", "203.0.113.10 2001:db8:100:1::10", "203.0.113.11")
	for _, tt := range []struct {
		name  string
		after fabric.VM
		want  []string
	}{
		{"address for another", guest("web", "203.0.113.12 2001:db8:100:1::10", "203.0.113.11"), []string{
			"store web live", "withdraw 203.0.113.10/32", "wire web_net0", "announce 203.0.113.12/32",
		}},
		{"IPv6 address for another", guest("web", "203.0.113.10 2001:db8:100:1::12", "203.0.113.11"), []string{
			"store web live", "withdraw 2001:db8:100:1::10/128", "wire web_net0", "announce 2001:db8:100:1::12/128",
		}},
		{"a NIC less", guest("web", "203.0.113.10 2001:db8:100:1::10"), []string{
			"store web live", "withdraw 203.0.113.11/32", "unwire web_net1",
		}},
		{"a NIC more", guest("web", "203.0.113.10 2001:db8:100:1::10", "203.0.113.11", "2001:db8:100:1::12"), []string{
			"store web live", "wire web_net2", "announce 2001:db8:100:1::12/128",
		}},
		{"a route more", guest("web", "203.0.113.10 2001:db8:100:1::10 2001:db8:200::/64", "203.0.113.11"), []string{
			"store web live", "wire web_net0", "announce 2001:db8:200::/64",
		}},
		{"an address moved to the other NIC", guest("web", "203.0.113.10", "203.0.113.11 2001:db8:100:1::10"), []string{
			"store web live", "wire web_net0", "wire web_net1",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := fresh(t)
			n.apply(before, fabric.Live)
			n.journal.Take()
			n.apply(tt.after, fabric.Live)
			n.did(tt.want...)
			n.holds(want{tt.after, fabric.Live})
			// What it gave back, another may have.
			n.apply(before, fabric.Live)
			n.holds(want{before, fabric.Live})
		})
	}
}

func TestApplyRandomWalk(t *testing.T) {
	variants := [][]fabric.VM{
		{web(), guest("web", "203.0.113.10"), guest("web", "2001:db8:100:1::10 2001:db8:200:8::/64", "203.0.113.12 198.51.100.0/29", "203.0.113.11")},
		{db(), guest("db", "203.0.113.20 203.0.113.21 203.0.113.22"), guest("db", "2001:db8:100:1::20 2001:db8:200:20::/64 veth")},
		{guest("a name that is far too long", "203.0.113.30 veth", "2001:db8:100:1::30 tap"), guest("a name that is far too long", "2001:db8:100:1::30")},
		{guest("сервер", "203.0.113.40 198.51.100.64/26", "203.0.113.41 2001:db8:100:1::41")},
		{guest("six", "2001:db8:100:1::50 2001:db8:200:40::/60"), guest("six", "2001:db8:100:1::50 2001:db8:100:1::51")},
	}
	states := []fabric.State{fabric.Absent, fabric.Wired, fabric.Live}
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 147))
			n := fresh(t)
			now := make([]want, len(variants))
			for i := range now {
				now[i] = want{variants[i][0], fabric.Absent}
			}
			for step := range 60 {
				i := rnd.IntN(len(variants))
				now[i] = want{variants[i][rnd.IntN(len(variants[i]))], states[rnd.IntN(len(states))]}
				if step%20 == 19 {
					n = n.again() // whatever the state, a new agent takes it over
				}
				n.apply(now[i].vm, now[i].state)
				n.holds(now...)
				if t.Failed() {
					t.Fatalf("step %d: %s %v", step, now[i].vm.Name, now[i].state)
				}
			}
			assert.Empty(t, n.problems())
		})
	}
}

var (
	was   = guest("web", "203.0.113.10", "203.0.113.11")
	moved = guest("web", "203.0.113.12", "203.0.113.11")
)

// failedSteps are changes of a guest of which one step fails.
var failedSteps = []struct {
	name   string
	before want // zero: not there
	to     want
	fail   string
	err    string
	did    []string
}{
	{"new, store", want{}, want{web(), fabric.Live}, "store", "guest web: boom", nil},
	{
		"new, first NIC",
		want{},
		want{web(), fabric.Wired},
		"wire web_net0", "guest web: port web_net0: boom",
		join("store web wired", "forget web"),
	},
	{
		"new, second NIC",
		want{},
		want{web(), fabric.Live},
		"wire web_net1", "guest web: port web_net1: boom",
		join("store web live", "wire web_net0", "unwire web_net0", "forget web"),
	},
	{
		"new, first announcement",
		want{},
		want{web(), fabric.Live},
		"announce", "guest web: announce 203.0.113.10: boom",
		join("store web live", webWired, webUnwired, "forget web"),
	},
	{
		"new, an IPv6 announcement",
		want{},
		want{web(), fabric.Live},
		"announce 2001:db8:100:1::11/128", "guest web: announce 203.0.113.10: boom",
		join("store web live", webWired, webAnnounced[:4], webWithdrawn[:4], webUnwired, "forget web"),
	},
	{"up, store", want{was, fabric.Wired}, want{was, fabric.Live}, "store web live", "guest web: boom", nil},
	{
		"up, second announcement",
		want{was, fabric.Wired},
		want{was, fabric.Live},
		"announce 203.0.113.11/32", "guest web: announce 203.0.113.10: boom",
		join("store web live", "announce 203.0.113.10/32", "store web wired", "withdraw 203.0.113.10/32"),
	},
	{
		"down, withdrawal",
		want{was, fabric.Live},
		want{was, fabric.Wired},
		"withdraw 203.0.113.11/32", "guest web: withdraw 203.0.113.10: boom",
		join("store web wired", "withdraw 203.0.113.10/32", "store web live", "announce 203.0.113.10/32"),
	},
	{
		"change, announcement",
		want{was, fabric.Live},
		want{moved, fabric.Live},
		"announce 203.0.113.12/32", "guest web: announce 203.0.113.12: boom",
		join("store web live", "withdraw 203.0.113.10/32", "wire web_net0", "store web live", "wire web_net0", "announce 203.0.113.10/32"),
	},
	{
		"change, a NIC more",
		want{was, fabric.Live},
		want{guest("web", "203.0.113.10", "203.0.113.11", "203.0.113.12"), fabric.Live},
		"wire web_net2", "guest web: port web_net2: boom",
		join("store web live", "store web live"),
	},
	{
		"change, a NIC less",
		want{was, fabric.Live},
		want{guest("web", "203.0.113.10"), fabric.Live},
		"unwire web_net1", "guest web: remove web_net1: boom",
		join("store web live", "withdraw 203.0.113.11/32", "store web live", "announce 203.0.113.11/32"),
	},
}

// Each step of the way can go wrong. What then is there, is what was there.
func TestApplyUndoesWhatWentWrong(t *testing.T) {
	for _, tt := range failedSteps {
		t.Run(tt.name, func(t *testing.T) {
			n := fresh(t)
			others := want{db(), fabric.Live}
			n.apply(others.vm, others.state)
			if tt.before.state != 0 {
				n.apply(tt.before.vm, tt.before.state)
			}
			n.journal.Take()
			n.dataplane.Fail(tt.fail, errBoom)
			n.speaker.Fail(tt.fail, errBoom)
			n.store.Fail(tt.fail, errBoom)
			err := n.Apply(t.Context(), tt.to.vm, tt.to.state)
			require.EqualError(t, err, tt.err)
			require.ErrorIs(t, err, errBoom)
			require.NotErrorIs(t, err, fabric.ErrRefused)
			n.did(tt.did...)
			before := tt.before
			if before.state == 0 {
				before = want{web(), fabric.Absent}
			}
			n.holds(others, before)
			assert.Empty(t, n.problems())

			// Nothing of it is held any more: another guest may have what it wanted.
			n.dataplane.Fail(tt.fail, nil)
			n.speaker.Fail(tt.fail, nil)
			n.store.Fail(tt.fail, nil)
			n.apply(fabric.VM{Name: "web"}, fabric.Absent)
			heir := tt.to.vm
			heir.Name = "heir"
			n.apply(heir, fabric.Live)
			n.holds(others, want{heir, fabric.Live})
		})
	}
}

func TestApplyOutlivesItsCaller(t *testing.T) {
	n := fresh(t)
	release := n.dataplane.Hang("wire web_net1")
	defer release()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Apply(ctx, web(), fabric.Live) }()
	eventually(t, func() bool { return len(n.journal.Lines()) == 2 })
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	n.did("store web live", "wire web_net0", "unwire web_net0", "forget web")
	n.holds()
}

// A removal that does not succeed is wanted all the same, and finished later.
func TestApplyAbsentIsFinishedLater(t *testing.T) {
	for _, tt := range []struct {
		fail, err   string
		first, then []string
	}{
		{
			"withdraw 2001:db8:100:1::10/128", "guest web: withdraw 203.0.113.10: boom; the agent keeps trying",
			webWithdrawn[:1], join(webWithdrawn[1:], webUnwired, "forget web"),
		},
		{
			"unwire web_net1", "guest web: remove web_net0: boom; the agent keeps trying",
			join(webWithdrawn, "unwire web_net0"), join("unwire web_net1", "forget web"),
		},
		{
			"forget", "guest web: forget: boom; the agent keeps trying",
			join(webWithdrawn, webUnwired),
			[]string{"forget web"},
		},
	} {
		t.Run(tt.fail, func(t *testing.T) {
			runs(t, nil, func(t *testing.T, n *node) {
				n.apply(web(), fabric.Live)
				moment()
				n.journal.Take()
				n.dataplane.Fail(tt.fail, errBoom)
				n.speaker.Fail(tt.fail, errBoom)
				n.store.Fail(tt.fail, errBoom)
				require.EqualError(t, n.Apply(t.Context(), web(), fabric.Absent), tt.err)
				n.did(tt.first...)
				assert.Empty(t, n.states())
				time.Sleep(5 * time.Second)
				n.did()
				require.Len(t, n.problems(), 1)
				// It holds what it has until it is gone.
				taken := guest("db", "203.0.113.10")
				require.ErrorIs(t, n.Apply(t.Context(), taken, fabric.Live), fabric.ErrRefused)

				n.dataplane.Fail(tt.fail, nil)
				n.speaker.Fail(tt.fail, nil)
				n.store.Fail(tt.fail, nil)
				time.Sleep(2 * time.Second)
				n.did(tt.then...)
				assert.Empty(t, n.problems())
				n.holds()
				n.apply(taken, fabric.Live)
			})
		})
	}
}

// A guest that comes back while its removal is unfinished leaves nothing of
// what it was.
func TestApplyOverAnUnfinishedRemoval(t *testing.T) {
	runs(t, nil, func(t *testing.T, n *node) {
		n.apply(web(), fabric.Live)
		n.dataplane.Fail("unwire", errBoom)
		require.Error(t, n.Apply(t.Context(), web(), fabric.Absent))
		n.dataplane.Fail("unwire", nil)
		back := guest("web", "203.0.113.10")
		n.apply(back, fabric.Live)
		n.holds(want{back, fabric.Live})
		n.apply(guest("db", "203.0.113.11 2001:db8:100:1::10 2001:db8:200:8::/64"), fabric.Live)
		assert.Empty(t, n.problems())
	})
}

func TestApplyRefusesWhatIsNoState(t *testing.T) {
	n := fresh(t)
	require.EqualError(t, n.Apply(t.Context(), web(), 0), "guest web: State(0) is not a state")
	require.EqualError(t, n.Apply(t.Context(), web(), 4), "guest web: State(4) is not a state")
	n.did()
}

// TestMakerOfALinkStays: a link that the node made is not adopted from nobody, and one that
// it adopted does not become its own, which it would remove.
func TestMakerOfALinkStays(t *testing.T) {
	for first, second := range map[fabric.Kind]fabric.Kind{fabric.Tap: fabric.Adopt, fabric.Veth: fabric.Adopt, fabric.Adopt: fabric.Tap} {
		n := fresh(t)
		vm, other := guest("web", "203.0.113.10 2001:db8:100:1::10"), guest("web", "203.0.113.11 2001:db8:100:1::10")
		vm.NICs[0].Kind, other.NICs[0].Kind = first, second
		if first == fabric.Adopt {
			n.dataplane.AddLink("web_net0")
		}
		n.apply(vm, fabric.Live)
		err := n.Apply(t.Context(), other, fabric.Live)
		require.ErrorIs(t, err, fabric.ErrRefused)
		require.ErrorContains(t, err, "web_net0")
		require.ErrorContains(t, err, "detach the guest first, or leave it of kind "+string(first))
		n.holds(want{vm, fabric.Live})
		n.apply(vm, fabric.Live)
		n.apply(vm, fabric.Absent)
	}
}

func TestApplyLeavesForeignLinksAlone(t *testing.T) {
	n := fresh(t)
	n.dataplane.AddLink("web_net1")
	err := n.Apply(t.Context(), web(), fabric.Live)
	require.EqualError(t, err, "guest web: port web_net1: link web_net1 is there already and not ours; remove or rename it")
	require.ErrorIs(t, err, fabric.ErrForeign)
	n.did("store web live", "wire web_net0", "unwire web_net0", "forget web")
	assert.True(t, n.dataplane.Foreign("web_net1"))
	n.holds()
}

// A migration to this node: the port waits, the announcement comes at the
// cutover, of which the source tells.
func TestMigrationToThisNode(t *testing.T) {
	arriving := from("libvirt", web())
	synctest.Test(t, func(t *testing.T) {
		src := fake.NewSource("libvirt")
		n := fresh(t, agent.WithSources(src))
		n.run(func() {
			ctx := t.Context()
			require.NoError(t, n.Expect(ctx, "web"))
			n.did()
			n.apply(arriving, fabric.Wired) // prepare
			n.did(join("store web wired", as("incoming", webWired))...)
			n.apply(arriving, fabric.Wired) // start
			src.Set(arriving, fabric.Wired)
			moment()
			require.NoError(t, n.Started(ctx, arriving))
			moment()
			require.NoError(t, n.Started(ctx, arriving)) // reconnect, after a restart of libvirt
			time.Sleep(2 * time.Minute)                  // passes and lists of the source change nothing
			n.did()
			n.holds(want{arriving, fabric.Wired})

			src.Set(arriving, fabric.Live)
			moment()
			// Its packets come before the state on disk.
			n.did(join(webWired, as("fresh", webAnnounced), "store web live")...)
			require.NoError(t, n.Started(ctx, arriving))
			n.did()
			n.holds(want{arriving, fabric.Live})
		})
	})
}

// A guest that ended while nobody could say so comes back by a migration.
func TestMigrationOfAGuestThatEndedUnheard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		vm := from("libvirt", web())
		n := fresh(t, agent.WithSources(fake.NewSource("libvirt")))
		n.run(func() {
			carrier := func(up bool) {
				n.dataplane.SetCarrier("web_net0", up)
				n.dataplane.SetCarrier("web_net1", up)
				moment()
			}
			expected := func() (is bool) {
				require.NoError(t, n.Expect(t.Context(), "web"))
				n.apply(vm, fabric.Wired)
				require.NoError(t, n.Started(t.Context(), vm))
				kept, err := n.store.All(t.Context())
				require.NoError(t, err)
				return kept[0].Incoming
			}
			n.apply(vm, fabric.Live)
			carrier(true)
			assert.False(t, expected(), "it runs")
			carrier(false)
			assert.True(t, expected())
			_, announced := n.actual()
			assert.Empty(t, announced)
		})
	})
}

// slow is a source that takes a second to list its guests, of which it has none.
type slow struct{ *fake.Source }

func (s slow) Guests(ctx context.Context) ([]fabric.Desired, error) {
	defer time.Sleep(time.Second)
	return s.Source.Guests(ctx)
}

// A guest that ended while no agent ran comes back by a migration, before or after the
// hypervisor has said that it is gone.
func TestMigrationBeforeTheFirstList(t *testing.T) {
	for name, wait := range map[string]time.Duration{"before": 0, "after": time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				vm := from("libvirt", web())
				n := fresh(t, agent.WithSources(fake.NewSource("libvirt")))
				n.apply(vm, fabric.Live)
				n = n.again(agent.WithSources(slow{fake.NewSource("libvirt")}))
				n.run(func() {
					time.Sleep(500 * time.Millisecond)
					require.NoError(t, n.Expect(t.Context(), "web"))
					time.Sleep(wait)
					n.apply(vm, fabric.Wired)
					require.NoError(t, n.Started(t.Context(), vm))
					time.Sleep(time.Second)
					n.holds(want{vm, fabric.Wired})
					kept, err := n.store.All(t.Context())
					require.NoError(t, err)
					require.Len(t, kept, 1)
					assert.True(t, kept[0].Incoming)
				})
			})
		})
	}
}

func TestMigrationSurvivesARestart(t *testing.T) {
	n := fresh(t)
	require.NoError(t, n.Expect(t.Context(), "web"))
	n.apply(web(), fabric.Wired)
	n.journal.Take()
	n = n.again()
	require.NoError(t, n.Started(t.Context(), web()))
	n.did()
	n.holds(want{web(), fabric.Wired})
	n.apply(web(), fabric.Live) // that it is to be live ends it
	n.did(join(webWired, webAnnounced, "store web live")...)
}

func TestStarted(t *testing.T) {
	t.Run("announces", func(t *testing.T) {
		n := fresh(t)
		n.apply(web(), fabric.Wired)
		n.journal.Take()
		require.NoError(t, n.Started(t.Context(), web()))
		n.did(join("store web live", webAnnounced)...)
	})
	t.Run("without prepare", func(t *testing.T) {
		n := fresh(t)
		require.NoError(t, n.Started(t.Context(), web()))
		n.did(join("store web live", webWired, webAnnounced)...)
	})
	t.Run("refused", func(t *testing.T) {
		n := fresh(t)
		err := n.Started(t.Context(), guest("web", "192.0.2.1"))
		require.ErrorIs(t, err, fabric.ErrRefused)
		n.did()
	})
	t.Run("expected and not arrived", func(t *testing.T) {
		n := fresh(t)
		require.NoError(t, n.Expect(t.Context(), "web"))
		require.NoError(t, n.Started(t.Context(), web()))
		n.holds(want{web(), fabric.Wired})
	})
	t.Run("expected long ago", func(t *testing.T) {
		runs(t, nil, func(t *testing.T, n *node) {
			require.NoError(t, n.Expect(t.Context(), "web"))
			time.Sleep(6 * time.Minute)
			n.apply(web(), fabric.Wired)
			require.NoError(t, n.Started(t.Context(), web()))
			n.holds(want{web(), fabric.Live})
		})
	})
	t.Run("expected, and the migration given up", func(t *testing.T) {
		n := fresh(t)
		require.NoError(t, n.Expect(t.Context(), "web"))
		n.apply(web(), fabric.Wired)
		require.NoError(t, n.Withdraw(t.Context(), "web")) // stopped
		n.apply(web(), fabric.Absent)                      // release
		n.apply(web(), fabric.Wired)
		require.NoError(t, n.Started(t.Context(), web()))
		n.holds(want{web(), fabric.Live})
	})
	// The guest runs: whatever goes wrong, it stays wanted.
	for _, fail := range []string{"store web live", "wire web_net1", "announce 2001:db8:100:1::11/128"} {
		t.Run("keeps trying after "+fail, func(t *testing.T) {
			runs(t, nil, func(t *testing.T, n *node) {
				n.dataplane.Fail(fail, errBoom)
				n.speaker.Fail(fail, errBoom)
				n.store.Fail(fail, errBoom)
				err := n.Started(t.Context(), web())
				require.ErrorIs(t, err, errBoom)
				assert.Regexp(t, "^guest web: .*boom; the agent keeps trying$", err.Error())
				time.Sleep(5 * time.Second)
				require.Len(t, n.problems(), 1)
				assert.Contains(t, n.problems()[0], "guest web: ")
				n.dataplane.Fail(fail, nil)
				n.speaker.Fail(fail, nil)
				n.store.Fail(fail, nil)
				time.Sleep(2 * time.Second)
				n.holds(want{web(), fabric.Live})
				assert.Empty(t, n.problems())
			})
		})
	}
}

func TestStoreThatFailsKeepsNoGuestFromTheNetwork(t *testing.T) {
	runs(t, nil, func(t *testing.T, n *node) {
		n.store.Fail("store", errBoom)
		require.Error(t, n.Started(t.Context(), db()))
		moment()
		n.did("wire db_net0", "announce 203.0.113.20/32")
		assert.Equal(t, []string{"guest db: boom"}, n.problems())
	})
}

func TestExpectLeavesAGuestThatIsHereAlone(t *testing.T) {
	for _, state := range []fabric.State{fabric.Wired, fabric.Live} {
		n := fresh(t)
		n.apply(web(), state)
		n.journal.Take()
		require.NoError(t, n.Expect(t.Context(), "web"))
		n.did()
		require.NoError(t, n.Started(t.Context(), web()))
		n.holds(want{web(), fabric.Live})
	}
	n := fresh(t)
	require.EqualError(t, n.Expect(t.Context(), "a/b"), `guest a/b refused: VM name "a/b": a name has no '/', and is not '.' or '..'; rename the VM`)
	require.ErrorIs(t, n.Expect(t.Context(), ""), fabric.ErrRefused)
}

func TestWithdraw(t *testing.T) {
	n := fresh(t)
	require.NoError(t, n.Withdraw(t.Context(), "web"))
	n.apply(web(), fabric.Live)
	n.journal.Take()
	for range 2 {
		require.NoError(t, n.Withdraw(t.Context(), "web"))
	}
	n.did(join(webWithdrawn, "store web wired")...)
	n.holds(want{web(), fabric.Wired})
	n.apply(web(), fabric.Live)
	n.holds(want{web(), fabric.Live})
}

func TestWithdrawIsFinishedLater(t *testing.T) {
	for _, tt := range []struct{ fail, err string }{
		{"withdraw 2001:db8:100:1::11/128", "guest web: withdraw 203.0.113.10: boom; the agent keeps trying"},
		{"store web wired", "guest web: boom; the agent keeps trying"},
	} {
		t.Run(tt.fail, func(t *testing.T) {
			runs(t, nil, func(t *testing.T, n *node) {
				n.apply(web(), fabric.Live)
				n.speaker.Fail(tt.fail, errBoom)
				n.store.Fail(tt.fail, errBoom)
				require.EqualError(t, n.Withdraw(t.Context(), "web"), tt.err)
				require.Len(t, n.problems(), 1)
				n.speaker.Fail(tt.fail, nil)
				n.store.Fail(tt.fail, nil)
				time.Sleep(2 * time.Second) // at once, not when the next full pass is due
				n.holds(want{web(), fabric.Wired})
				assert.Empty(t, n.problems())
			})
		})
	}
}

// Many guests at once, each asked for different things at the same time; in
// the end each is as it was asked last.
func TestManyGuestsAtOnce(t *testing.T) {
	n := fresh(t)
	stop := n.begin()
	var wg sync.WaitGroup
	wants := make([]want, 50)
	for i := range wants {
		vm := guest(fmt.Sprintf("guest%d", i), fmt.Sprintf("203.0.113.%d 2001:db8:100:1::%x", 10+i, 10+i), fmt.Sprintf("203.0.113.%d", 100+i))
		wants[i] = want{vm, []fabric.State{fabric.Absent, fabric.Wired, fabric.Live}[i%3]}
		wg.Go(func() {
			var noise sync.WaitGroup
			for range 4 {
				noise.Go(func() { assert.NoError(t, n.Apply(t.Context(), vm, fabric.Live)) })
				noise.Go(func() { assert.NoError(t, n.Withdraw(t.Context(), vm.Name)) })
				noise.Go(func() { assert.NoError(t, n.Expect(t.Context(), vm.Name)) })
				noise.Go(func() { assert.NoError(t, n.Apply(t.Context(), vm, fabric.Absent)) })
				noise.Go(func() { assert.NoError(t, n.Started(t.Context(), vm)) })
				noise.Go(func() { n.dataplane.Break(fabric.PortName(vm.Name, 1), "broken") })
				noise.Go(func() { n.speaker.Lose(vm.Prefixes()...) })
				noise.Go(func() { n.List(t.Context()); n.Status(t.Context()) })
			}
			noise.Wait()
			assert.NoError(t, n.Apply(t.Context(), vm, wants[i].state))
		})
	}
	wg.Wait()
	eventually(t, func() bool {
		ports, routes := n.actual()
		return len(ports) == 2*33 && len(routes) == 3*16
	})
	n.holds(wants...)
	stop()
}

// What hangs for one guest is not another's trouble, nor the repair's.
func TestOneGuestThatHangsKeepsNoOther(t *testing.T) {
	n := fresh(t)
	n.apply(db(), fabric.Live)
	stop := n.begin()
	defer stop()
	release := n.dataplane.Hang("wire aaa_net0")
	done := make(chan error, 1)
	go func() { done <- n.Apply(t.Context(), guest("aaa", "203.0.113.9"), fabric.Live) }()
	eventually(t, func() bool { return strings.Contains(strings.Join(n.journal.Lines(), ","), "store aaa live") })

	n.apply(web(), fabric.Live)
	n.dataplane.Break("db_net0", "no route")
	n.speaker.Lose(db().Prefixes()...)
	eventually(t, func() bool {
		ports, routes := n.actual()
		return len(ports) == 3 && len(routes) == 7
	})
	release()
	require.NoError(t, <-done)
	n.holds(want{db(), fabric.Live}, want{web(), fabric.Live}, want{guest("aaa", "203.0.113.9"), fabric.Live})
}

// eventually waits for what another goroutine is about to do.
func eventually(t *testing.T, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !is() {
		if time.Now().After(deadline) {
			t.Fatal("not in 20 s")
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func TestNewRefusesWhatCannotBe(t *testing.T) {
	bad := cluster()
	bad.Nodes[0].Address = bad.Nodes[1].Address
	_, err := agent.New(agent.Config{Cluster: bad, Node: "node1"})
	require.EqualError(t, err, "cluster msk1: nodes[1].address: 10.10.0.22 is already at nodes[0].address; each needs an address of its own")
	_, err = agent.New(agent.Config{Cluster: cluster(), Node: "node9"})
	require.EqualError(t, err, `node "node9" is not in cluster msk1 (it has node1, node2); add it under nodes, or name another`)
}
