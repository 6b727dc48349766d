package agent_test

import (
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

func TestAdoptTakesOverWhatIsThere(t *testing.T) {
	n := fresh(t)
	n.apply(web(), fabric.Live)
	n.apply(db(), fabric.Wired)
	n.journal.Take()

	n = n.again()
	n.did(webAnnounced...)
	n.holds(want{web(), fabric.Live}, want{db(), fabric.Wired})
	assert.Empty(t, n.problems())
	n.apply(web(), fabric.Live)
	n.did()
	n.apply(web(), fabric.Absent)
	n.did(join(webWithdrawn, webUnwired, "forget web")...)
}

func TestAdoptMakesWhatIsMissing(t *testing.T) {
	n := fresh(t)
	n.apply(web(), fabric.Live)
	n.apply(db(), fabric.Wired)
	n.journal.Take()
	n.dataplane.RemoveLink("web_net1")
	n.dataplane.RemoveLink("db_net0")
	n.dataplane.Break("web_net0", "no route 198.51.100.0/29")

	n = n.again()
	n.did(join("wire db_net0", webWired, webAnnounced)...)
	n.holds(want{web(), fabric.Live}, want{db(), fabric.Wired})
}

func TestAdoptLooksAtWhoIsThereFirst(t *testing.T) {
	n := fresh(t)
	n.dataplane.Fail("list ports", errBoom)
	n.make(n.store)
	require.EqualError(t, n.Adopt(t.Context()), "adopt: boom")
	n.did()
}

func TestAdoptGoesOnWhenAGuestFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := fresh(t)
		n.apply(web(), fabric.Live)
		n.apply(db(), fabric.Live)
		n.dataplane.RemoveLink("db_net0")
		n.journal.Take()
		m := &node{t: t, journal: n.journal, dataplane: n.dataplane.Again(), speaker: fake.NewSpeaker(n.journal), store: n.store}
		m.dataplane.Fail("wire db_net0", errBoom)
		m.start()
		m.did(webAnnounced...)
		assert.Equal(t, []string{"guest db: port db_net0: boom"}, m.problems())
		m.dataplane.Fail("wire db_net0", nil)
		m.run(func() { m.holds(want{web(), fabric.Live}, want{db(), fabric.Live}) })
	})
}

// TestPortWithoutStateThatGoes: of a port that its owner made, and whose state was
// lost, nothing stays when the owner removes it. One that cannot be read stays.
func TestPortWithoutStateThatGoes(t *testing.T) {
	for _, readable := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			n := fresh(t)
			vm := guest("vm", "203.0.113.30 2001:db8:100:1::30 adopt")
			n.dataplane.AddLink("vm_net0")
			n.apply(vm, fabric.Live)
			if readable {
				n.store.Delete(t.Context(), "vm")
			} else {
				n.store.Damage("vm", errBoom)
			}
			n = n.again()
			n.run(func() {
				assert.Equal(t, map[fabric.Preference]int{fabric.Normal: 2}, n.preferences())
				n.dataplane.RemoveLink("vm_net0")
				time.Sleep(time.Minute)
				assert.Empty(t, n.preferences())
				assert.Equal(t, readable, len(n.problems()) == 0, n.problems())
				other := guest("other", "203.0.113.30 2001:db8:100:1::30")
				if err := n.Apply(t.Context(), other, fabric.Live); readable {
					require.NoError(t, err)
				} else {
					require.ErrorIs(t, err, fabric.ErrRefused)
				}
			})
		})
	}
}

// A guest runs on a port of ours, and its state was lost: it keeps its network.
func TestAdoptKeepsRunningGuestsWithoutState(t *testing.T) {
	const problem = "guest web: no state is kept of it, its port was taken over as it is; attach it, or detach it"
	lost := func(t *testing.T) *node {
		n := fresh(t)
		n.apply(web(), fabric.Live)
		n.apply(db(), fabric.Live)
		n.store.Delete(t.Context(), "web")
		n.journal.Take()
		return n.again()
	}
	t.Run("announced", func(t *testing.T) {
		n := lost(t)
		n.did(join("announce 203.0.113.20/32", webAnnounced)...)
		assert.Equal(t, []string{problem}, n.problems())
		assert.Len(t, n.states(), 3)
	})
	t.Run("told to other nodes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := fresh(t)
			n.apply(web(), fabric.Live)
			n.store.Delete(t.Context(), "web")
			n = n.again(agent.WithNodes(fake.NewNodes(nil, cluster().Nodes...)["node1"]))
			n.run(func() {
				time.Sleep(time.Minute)
				kept, err := n.store.All(t.Context())
				require.NoError(t, err)
				assert.Empty(t, kept, "what there may be of it on the disk is left alone")
			})
		})
	})
	t.Run("attached", func(t *testing.T) {
		n := lost(t)
		n.apply(web(), fabric.Live)
		n.holds(want{web(), fabric.Live}, want{db(), fabric.Live})
		assert.Empty(t, n.problems())
	})
	t.Run("detached", func(t *testing.T) {
		n := lost(t)
		n.apply(fabric.VM{Name: "web"}, fabric.Absent)
		n.holds(want{db(), fabric.Live})
		assert.Empty(t, n.problems())
	})
	t.Run("told by its source", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			src := fake.NewSource("libvirt")
			src.SetQuietly(web(), fabric.Live)
			n := fresh(t)
			n.apply(web(), fabric.Live)
			n.store.Delete(t.Context(), "web")
			n = n.again(agent.WithSources(src))
			assert.Equal(t, []string{problem}, n.problems())
			n.run(func() {
				n.holds(want{web(), fabric.Live})
				assert.Empty(t, n.problems())
			})
		})
	})
	t.Run("its address is another's", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := fresh(t)
			n.apply(guest("web", "203.0.113.10"), fabric.Live)
			n.store.Delete(t.Context(), "web")
			require.NoError(t, n.store.Put(t.Context(), fabric.Desired{VM: guest("heir", "203.0.113.10"), State: fabric.Live}))
			n = n.again()
			problem := `port web_net0 is ours, but nothing says what guest web is: NIC 0: 203.0.113.10: held by VM "heir" on this node; detach that first, or choose another; attach the guest, or remove the link`
			assert.Equal(t, []string{problem}, n.problems())
			n.run(func() {
				time.Sleep(time.Minute)
				ports, _ := n.dataplane.Actual(t.Context())
				assert.Len(t, ports, 2, "nothing is removed")
			})
		})
	})
}

// A port that nobody uses and nobody knows goes, once it is sure that nobody does.
func TestPruneWaitsForEverySource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		libvirt, lxd := fake.NewSource("libvirt"), fake.NewSource("lxd")
		n := leftovers(t, agent.WithSources(libvirt, lxd))
		libvirt.Fail("list guests", errBoom)
		lxd.Fail("list guests", errBoom)
		n.run(func() {
			time.Sleep(2 * time.Minute)
			n.did()
			libvirt.Fail("list guests", nil)
			time.Sleep(2 * time.Minute)
			n.did()
			lxd.Fail("list guests", nil)
			time.Sleep(2 * time.Second)
			n.did("withdraw 203.0.113.99/32", "withdraw 2001:db8:100:1::99/128", "unwire old_net0")
			n.holds(want{db(), fabric.Live})
		})
	})
}

func TestPruneDoesNotWaitForAHypervisorThatIsNotThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := fake.NewSource("libvirt")
		src.Fail("list guests", os.ErrNotExist)
		n := leftovers(t, agent.WithSources(src))
		n.run(func() {
			time.Sleep(2 * time.Second)
			n.holds(want{db(), fabric.Live})
		})
	})
}

func TestPruneIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := leftovers(t)
		n.dataplane.Fail("unwire", errBoom)
		n.run(func() {
			time.Sleep(5 * time.Second)
			assert.Equal(t, []string{"boom"}, n.problems())
			n.did("withdraw 203.0.113.99/32", "withdraw 2001:db8:100:1::99/128")
			n.dataplane.Fail("unwire", nil)
			time.Sleep(2 * time.Second)
			n.holds(want{db(), fabric.Live})
			assert.Empty(t, n.problems())
		})
	})
}

// leftovers gives a node with a guest, and with a port and announcements that
// no guest has.
func leftovers(t *testing.T, opts ...agent.Option) *node {
	n := fresh(t)
	n.apply(db(), fabric.Live)
	n.apply(guest("old", "203.0.113.99"), fabric.Wired)
	n.store.Delete(t.Context(), "old")
	n.dataplane.SetCarrier("old_net0", false)
	n = n.again(opts...)
	require.NoError(t, n.speaker.Put(t.Context(), fabric.Route{Prefix: prefix("203.0.113.99/32")}, fabric.Route{Prefix: prefix("2001:db8:100:1::99/128")}))
	n.journal.Take()
	return n
}

func TestUnreadableStateRemovesNothing(t *testing.T) {
	for _, tt := range []struct {
		name    string
		spoil   func(n *node)
		problem string
	}{
		{
			"one guest's", func(n *node) { n.store.Damage("web", errBoom) },
			"wanted state: state of web: boom (nothing is removed meanwhile)",
		},
		{
			"all of it", func(n *node) { n.store.Fail("load", errBoom) },
			"wanted state: boom (nothing is removed meanwhile)",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := fresh(t)
				n.apply(web(), fabric.Live)
				n.apply(db(), fabric.Live)
				n.apply(guest("old", "203.0.113.99"), fabric.Wired)
				n.dataplane.SetCarrier("old_net0", false)
				n.store.Delete(t.Context(), "old")
				tt.spoil(n)
				src := fake.NewSource("libvirt")
				n = n.again(agent.WithSources(src))
				n.journal.Take()
				n.run(func() {
					time.Sleep(5 * time.Minute)
					n.did()
					ports, routes := n.actual()
					assert.Len(t, ports, 4)
					assert.ElementsMatch(t, append(texts(web().Prefixes()), "203.0.113.20/32"), routes)
					assert.Contains(t, n.problems(), tt.problem)
				})
				// A restart once it can be read ends it.
				n.store.Fail("load", nil)
				require.NoError(t, n.Apply(t.Context(), web(), fabric.Live))
				n = n.again()
				n.run(func() {
					time.Sleep(2 * time.Second)
					n.holds(want{web(), fabric.Live}, want{db(), fabric.Live})
					assert.Empty(t, n.problems())
				})
			})
		})
	}
}

func TestStateThatIsGoneRemovesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := fresh(t)
		before.apply(web(), fabric.Live)
		before.apply(guest("old", "203.0.113.99"), fabric.Wired)
		before.dataplane.SetCarrier("old_net0", false)
		before.journal.Take()
		n := &node{t: t, journal: before.journal, dataplane: before.dataplane.Again(), speaker: fake.NewSpeaker(before.journal), store: fake.NewStore(before.journal)}
		n.store.Lose()
		n.start()
		n.did(webAnnounced...)
		n.run(func() {
			time.Sleep(time.Minute)
			n.did()
			assert.Contains(t, n.problems(), "wanted state: the state is empty although 3 ports are here; they are kept as they are. Detach those that are not wanted, then restart the agent (nothing is removed meanwhile)")
			assert.Equal(t, map[string]fabric.State{"web_net0": fabric.Live, "web_net1": fabric.Live, "old_net0": fabric.Wired}, n.states())
		})
	})
	t.Run("no ports either", func(t *testing.T) {
		n := fresh(t)
		n.store.Lose()
		n.start()
		assert.Empty(t, n.problems())
	})
}

// After a boot the hypervisor's guests start anew, or do not; those that were
// attached by hand are wanted as ever.
func TestAnotherBoot(t *testing.T) {
	n := fresh(t, agent.WithBoot("first"))
	n.apply(from("libvirt", web()), fabric.Live)
	n.apply(db(), fabric.Live)
	for _, port := range []string{"web_net0", "web_net1", "db_net0"} {
		n.dataplane.RemoveLink(port)
	}
	n.journal.Take()
	n = n.again(agent.WithBoot("second"))
	n.did("forget web", "wire db_net0", "announce 203.0.113.20/32")
	n.holds(want{db(), fabric.Live})

	n.apply(from("libvirt", web()), fabric.Live)
	n.journal.Take()
	n = n.again(agent.WithBoot("second"))
	n.did(join("announce 203.0.113.20/32", as("fresh", webAnnounced))...)
}

// Rules that changed since, and states that cannot be, are told and removed by
// nobody but the one who detaches the guest.
func TestAdoptTellsWhatBreaksTheRules(t *testing.T) {
	for _, tt := range []struct {
		name    string
		vm      fabric.VM
		problem string
		kept    bool
	}{
		{
			"outside the pools", guest("x", "192.0.2.1"),
			"guest x: NIC 0: address 192.0.2.1: outside the pools of cluster msk1; choose one from public4 (203.0.113.0/24), or add a pool (it keeps what it had until it is detached)", true,
		},
		{
			"another's address", guest("x", "203.0.113.20"),
			`guest x: NIC 0: 203.0.113.20: held by VM "db" on this node; detach that first, or choose another`, false,
		},
		{"no addresses", guest("x", ""), "guest x: NIC 0: no address; give it at least one from the pools; attach it anew", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := fresh(t)
				n.apply(db(), fabric.Live)
				require.NoError(t, n.store.Put(t.Context(), fabric.Desired{VM: tt.vm, State: fabric.Live}))
				n = n.again()
				n.run(func() {
					assert.Equal(t, []string{tt.problem}, n.problems())
					_, announced := n.states()["x_net0"]
					assert.Equal(t, tt.kept, announced)
					n.apply(fabric.VM{Name: "x"}, fabric.Absent)
					n.holds(want{db(), fabric.Live})
					assert.Empty(t, n.problems())
				})
			})
		})
	}
}

func TestRepair(t *testing.T) {
	for _, tt := range []struct {
		name string
		harm func(n *node)
		want []string
	}{
		{"a route of the kernel", func(n *node) { n.dataplane.Break("web_net0", "no route 2001:db8:100:1::10/128") }, []string{"wire web_net0"}},
		{"a link", func(n *node) { n.dataplane.RemoveLink("web_net1") }, []string{"wire web_net1"}},
		{"an announcement", func(n *node) { n.speaker.Lose(prefix("203.0.113.10/32")) }, []string{"announce 203.0.113.10/32"}},
		{"an IPv6 announcement", func(n *node) { n.speaker.Lose(prefix("2001:db8:100:1::11/128")) }, []string{"announce 2001:db8:100:1::11/128"}},
		{"everything", func(n *node) {
			n.dataplane.Mute(true) // until all of it has happened
			n.dataplane.Break("web_net0", "down")
			n.dataplane.RemoveLink("web_net1")
			n.speaker.Lose(web().Prefixes()...)
		}, join(webWired, webAnnounced)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			runs(t, nil, func(t *testing.T, n *node) {
				n.apply(web(), fabric.Live)
				n.apply(db(), fabric.Wired)
				moment()
				n.journal.Take()
				tt.harm(n)
				moment()
				n.did(tt.want...)
				n.holds(want{web(), fabric.Live}, want{db(), fabric.Wired})

				// Without the news of it, a pass that is due sees it all the same.
				n.dataplane.Mute(true)
				n.speaker.Mute(true)
				tt.harm(n)
				time.Sleep(25 * time.Second)
				n.did()
				time.Sleep(10 * time.Second)
				n.did(tt.want...)
				time.Sleep(time.Minute)
				n.did()
			})
		})
	}
}

func TestRepairIsTriedAgain(t *testing.T) {
	runs(t, nil, func(t *testing.T, n *node) {
		n.apply(web(), fabric.Live)
		n.apply(db(), fabric.Live)
		n.dataplane.Fail("wire db_net0", errBoom)
		n.dataplane.RemoveLink("db_net0")
		n.dataplane.Break("web_net0", "down")
		moment()
		assert.Equal(t, []string{"guest db: port db_net0: boom"}, n.problems())
		ports, _ := n.actual()
		assert.Contains(t, ports, "web_net0", "one guest's trouble is not another's")
		time.Sleep(10 * time.Second)
		n.journal.Take()
		n.dataplane.Fail("wire db_net0", nil)
		time.Sleep(2 * time.Second)
		n.did("wire db_net0")
		assert.Empty(t, n.problems())
		n.holds(want{web(), fabric.Live}, want{db(), fabric.Live})
	})
}

func TestBackendsThatDoNotAnswerAreToldAndAskedAgain(t *testing.T) {
	runs(t, nil, func(t *testing.T, n *node) {
		n.apply(db(), fabric.Live)
		for _, look := range []string{"list ports", "list routes"} {
			n.dataplane.Fail(look, errBoom)
			n.speaker.Fail(look, errBoom)
			n.dataplane.Break("db_net0", "down")
			moment()
			assert.Equal(t, []string{"boom"}, n.problems())
			n.dataplane.Fail(look, nil)
			n.speaker.Fail(look, nil)
			time.Sleep(2 * time.Second)
			assert.Empty(t, n.problems())
			n.holds(want{db(), fabric.Live})
		}
	})
}

// A guest whose process is gone must not draw traffic.
func TestCarrier(t *testing.T) {
	runs(t, nil, func(t *testing.T, n *node) {
		n.apply(web(), fabric.Live)
		n.apply(db(), fabric.Live)
		moment()
		n.journal.Take()
		n.dataplane.SetCarrier("web_net1", false)
		moment()
		n.did(webWithdrawn[3:]...)
		assert.Equal(t, map[string]fabric.State{"web_net0": fabric.Live, "web_net1": fabric.Wired, "db_net0": fabric.Live}, n.states())
		n.apply(web(), fabric.Live)
		time.Sleep(time.Minute)
		n.did()
		n.dataplane.SetCarrier("web_net1", true)
		moment()
		n.did(webAnnounced[3:]...)
		n.holds(want{web(), fabric.Live}, want{db(), fabric.Live})
	})
}

// A guest that stopped, lost its carrier and starts again is announced when it
// starts, not when somebody looks.
func TestCarrierOfTheRunBeforeIsForgotten(t *testing.T) {
	runs(t, nil, func(t *testing.T, n *node) {
		n.apply(web(), fabric.Live)
		n.dataplane.SetCarrier("web_net0", false)
		n.dataplane.SetCarrier("web_net1", false)
		moment()
		require.NoError(t, n.Withdraw(t.Context(), "web")) // stopped, and no release
		n.dataplane.SetCarrier("web_net0", true)
		n.dataplane.SetCarrier("web_net1", true)
		moment()
		n.journal.Take()
		require.NoError(t, n.Started(t.Context(), web()))
		n.did(join("store web live", webAnnounced)...)
		n.holds(want{web(), fabric.Live})
	})
}

// At a start of the agent nothing tells whether a port without carrier had one:
// a hypervisor's guest holds its ports while it runs, any other may come later.
func TestCarrierAtTheStart(t *testing.T) {
	for _, tt := range []struct {
		origin      string
		first, then []string
	}{
		{"", []string{"announce 203.0.113.20/32"}, nil},
		{"libvirt", nil, []string{"announce 203.0.113.20/32 fresh"}},
	} {
		t.Run("of "+tt.origin, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := fresh(t)
				n.apply(from(tt.origin, db()), fabric.Live)
				n.dataplane.SetCarrier("db_net0", false)
				n.journal.Take()
				n = n.again()
				n.run(func() {
					n.did(tt.first...)
					n.dataplane.SetCarrier("db_net0", true)
					moment()
					n.did(tt.then...)
					n.holds(want{db(), fabric.Live})
				})
			})
		})
	}
}

// adoptedAnnounced are the announcements of a link that is adopted.
var adoptedAnnounced = lines("announce", "203.0.113.10/32", "2001:db8:100:1::10/128")

func TestAdoptedLinks(t *testing.T) {
	vm := guest("web", "203.0.113.10 2001:db8:100:1::10 adopt", "203.0.113.11")
	announced := append(slices.Clone(adoptedAnnounced), "announce 203.0.113.11/32")
	t.Run("taken over when it appears", func(t *testing.T) {
		for _, state := range []fabric.State{fabric.Wired, fabric.Live} {
			runs(t, nil, func(t *testing.T, n *node) {
				n.apply(vm, state)
				time.Sleep(2 * time.Minute)
				assert.Equal(t, fabric.Wired, n.states()["web_net0"])
				assert.Equal(t, state, n.states()["web_net1"])
				assert.Empty(t, n.problems())
				n.journal.Take()
				n.dataplane.AddLink("web_net0")
				moment()
				if state == fabric.Live {
					n.did(join("wire web_net0", announced[:2])...)
				} else {
					n.did("wire web_net0")
				}
				n.holds(want{vm, state})
			})
		}
	})
	t.Run("made by the hypervisor on its way up", func(t *testing.T) {
		runs(t, nil, func(t *testing.T, n *node) {
			vm := from("libvirt", vm)
			n.apply(vm, fabric.Wired) // prepare
			n.did("store web wired", "wire web_net1")
			n.dataplane.AddLinkDown("web_net0")
			n.apply(vm, fabric.Wired) // start
			n.did("wire web_net0")
			require.NoError(t, n.Started(t.Context(), vm))
			n.did(join("store web live", as("standby", announced[:2]), as("fresh", announced[2:]))...)
			n.holds(want{vm, fabric.Live})
		})
	})
	t.Run("of a guest that starts", testLinkOfGuestThatStarts)
	t.Run("of a guest that died meanwhile", testLinkOfGuestThatDied)
	t.Run("gone and back", func(t *testing.T) {
		runs(t, nil, func(t *testing.T, n *node) {
			n.dataplane.AddLink("web_net0")
			n.apply(vm, fabric.Live)
			n.journal.Take()
			n.dataplane.RemoveLink("web_net0")
			moment()
			n.did("withdraw 203.0.113.10/32", "withdraw 2001:db8:100:1::10/128")
			n.dataplane.AddLink("web_net0")
			moment()
			n.did(join("wire web_net0", announced[:2])...)
			n.holds(want{vm, fabric.Live})
		})
	})
	t.Run("given back", func(t *testing.T) {
		n := fresh(t)
		n.dataplane.AddLink("web_net0")
		n.apply(vm, fabric.Live)
		n.apply(vm, fabric.Absent)
		assert.True(t, n.dataplane.Foreign("web_net0"))
		n.holds()
	})
}

// testLinkOfGuestThatStarts: its announcements follow the link as the guest boots and
// ends.
func testLinkOfGuestThatStarts(t *testing.T) {
	runs(t, nil, func(t *testing.T, n *node) {
		vm := from("lxd", guest("web", "203.0.113.10 2001:db8:100:1::10 adopt"))
		n.dataplane.AddLinkDown("web_net0")
		n.apply(vm, fabric.Live)
		n.did(join("store web live", "wire web_net0", as("standby", adoptedAnnounced))...)
		time.Sleep(time.Second)
		n.dataplane.SetCarrier("web_net0", true)
		moment()
		n.did(as("fresh", adoptedAnnounced)...)
		time.Sleep(2 * time.Minute)
		n.did(adoptedAnnounced...)
		n.dataplane.SetCarrier("web_net0", false)
		moment()
		n.did("withdraw 203.0.113.10/32", "withdraw 2001:db8:100:1::10/128")
		n.dataplane.RemoveLink("web_net0")
		moment()
		n.did()
		n.dataplane.AddLinkDown("web_net0") // it boots
		moment()
		n.did(join("wire web_net0", as("standby", adoptedAnnounced))...)
		n.dataplane.SetCarrier("web_net0", true)
		moment()
		n.did(adoptedAnnounced...)
		n.holds(want{vm, fabric.Live})
	})
}

// testLinkOfGuestThatDied: its routes wait for its carrier, over a restart of the
// agent too.
func testLinkOfGuestThatDied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := fresh(t)
		vm := from("lxd", guest("web", "203.0.113.10 2001:db8:100:1::10 adopt"))
		n.dataplane.AddLink("web_net0")
		n.apply(vm, fabric.Live)
		n.dataplane.SetCarrier("web_net0", false)
		n.journal.Take()
		n = n.again()
		n.run(func() {
			time.Sleep(time.Minute)
			n.did()
			n.dataplane.SetCarrier("web_net0", true)
			moment()
			n.did(adoptedAnnounced...)
		})
	})
}

// restarted is a guest that its hypervisor moves by starting it anew, and the source
// that says so.
type restarted struct {
	kind string
	src  *fake.Source
}

// restartedAnnounced are its announcements.
var restartedAnnounced = lines("announce", "203.0.113.10/32", "2001:db8:100:1::10/128", "198.51.100.0/29", "2001:db8:200:8::/64")

// options makes the source for the agent of a node.
func (r *restarted) options(*node) []agent.Option {
	r.src = fake.NewMovesByRestart("lxd")
	return []agent.Option{agent.WithSources(r.src)}
}

// begins starts the guest: it has carrier, and was not heard.
func (r *restarted) begins(t *testing.T, n *node) {
	t.Helper()
	vm := from("lxd", guest("web", "203.0.113.10 2001:db8:100:1::10 198.51.100.0/29 2001:db8:200:8::/64 "+r.kind))
	if r.kind == "adopt" {
		n.dataplane.AddLink("web_net0")
	} else {
		n.apply(vm, fabric.Wired)
	}
	n.dataplane.SetCarrier("web_net0", false)
	if r.kind == "veth" {
		n.dataplane.SetCarrier("web_net0", true)
	}
	n.journal.Take()
	n.apply(vm, fabric.Live)
	r.src.Set(vm, fabric.Live)
	assert.Subset(t, n.journal.Take(), as("standby", restartedAnnounced))
	moment()
	n.dataplane.SetCarrier("web_net0", true)
	moment()
	n.did()
	n.holds(want{vm, fabric.Live})
}

// A guest that its hypervisor moves by starting it anew takes traffic when it was
// heard, whoever makes its port.
func TestGuestsThatAreToBeHeard(t *testing.T) {
	for _, kind := range []string{"adopt", "veth"} {
		r := &restarted{kind: kind}
		t.Run(kind+" heard", func(t *testing.T) {
			runs(t, r.options, func(t *testing.T, n *node) {
				r.begins(t, n)
				n.dataplane.Hear("web_net0")
				synctest.Wait()
				n.did(as("fresh", restartedAnnounced)...)
				n.dataplane.Hear("web_net0")
				time.Sleep(time.Minute)
				n.did(restartedAnnounced...)

				// Its carrier goes for a moment.
				n.dataplane.SetCarrier("web_net0", false)
				moment()
				assert.Len(t, n.journal.Take(), len(restartedAnnounced))
				n.dataplane.SetCarrier("web_net0", true)
				moment()
				n.did(as("standby", restartedAnnounced)...)
				n.dataplane.Hear("web_net0")
				synctest.Wait()
				n.did(restartedAnnounced...)
			})
		})
		t.Run(kind+" silent", func(t *testing.T) {
			runs(t, r.options, func(t *testing.T, n *node) {
				r.begins(t, n)
				time.Sleep(fabric.ListenFor - time.Second)
				n.did()
				time.Sleep(time.Second)
				moment()
				n.did(as("fresh", restartedAnnounced)...)
			})
		})
		t.Run(kind+" before the agent", func(t *testing.T) {
			runs(t, r.options, func(t *testing.T, n *node) {
				r.begins(t, n)
				n.dataplane.Hear("web_net0")
				time.Sleep(time.Minute)
				n.journal.Take()
				n = n.again(agent.WithSources(r.src))
				n.run(func() {
					assert.Equal(t, restartedAnnounced, n.journal.Take())
				})
			})
		})
	}
	t.Run("one NIC of two", testOneNICHeard)
}

// testOneNICHeard: a NIC that was heard does not vouch for the other.
func testOneNICHeard(t *testing.T) {
	r := new(restarted)
	runs(t, r.options, func(t *testing.T, n *node) {
		vm := from("lxd", guest("web", "203.0.113.10 adopt", "2001:db8:100:1::10 adopt"))
		for _, p := range []string{"web_net0", "web_net1"} {
			n.dataplane.AddLink(p)
			n.dataplane.SetCarrier(p, false)
		}
		n.apply(vm, fabric.Live)
		r.src.Set(vm, fabric.Live)
		for _, p := range []string{"web_net0", "web_net1"} {
			n.dataplane.SetCarrier(p, true)
		}
		moment()
		n.journal.Take()
		n.dataplane.Hear("web_net1")
		synctest.Wait()
		n.did("announce 2001:db8:100:1::10/128 fresh")
		n.dataplane.Hear("web_net0")
		synctest.Wait()
		n.did("announce 203.0.113.10/32 fresh")
	})
}

// following runs an agent that follows a source.
func following(t *testing.T, f func(t *testing.T, n *node, src *fake.Source)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		src := fake.NewSource("libvirt")
		n := fresh(t, agent.WithSources(src))
		n.run(func() { f(t, n, src) })
	})
}

func TestSourceNews(t *testing.T) {
	vm := from("libvirt", web())
	for _, tt := range []struct {
		name   string
		before fabric.State
		news   fabric.State
		after  fabric.State
	}{
		{"runs, not here", fabric.Absent, fabric.Live, fabric.Live},
		{"runs, wired", fabric.Wired, fabric.Live, fabric.Live},
		{"runs, live", fabric.Live, fabric.Live, fabric.Live},
		{"waits, not here", fabric.Absent, fabric.Wired, fabric.Wired},
		{"waits, live", fabric.Live, fabric.Wired, fabric.Live}, // going down in steps is for the hooks
		{"gone, wired", fabric.Wired, fabric.Absent, fabric.Absent},
		{"gone, live", fabric.Live, fabric.Absent, fabric.Absent},
		{"gone, not here", fabric.Absent, fabric.Absent, fabric.Absent},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, told := range []struct {
				how  string
				news func(src *fake.Source)
			}{
				{"by an event", func(src *fake.Source) { src.Set(vm, tt.news) }},
				{"by the list after a lost event", func(src *fake.Source) {
					src.SetQuietly(vm, tt.news)
					src.Lose()
				}},
				{"by the list that is due", func(src *fake.Source) {
					src.SetQuietly(vm, tt.news)
					time.Sleep(70 * time.Second)
				}},
			} {
				t.Run(told.how, func(t *testing.T) {
					following(t, func(t *testing.T, n *node, src *fake.Source) {
						n.apply(db(), fabric.Live) // by hand: no source's business
						n.apply(vm, tt.before)
						if tt.before != fabric.Absent {
							src.SetQuietly(vm, tt.before)
						}
						time.Sleep(10 * time.Second) // a guest handled a moment ago may be missing in a list
						told.news(src)
						moment()
						n.holds(want{db(), fabric.Live}, want{vm, tt.after})
						assert.Empty(t, n.problems())
					})
				})
			}
		})
	}
}

func TestSourceTellsOfAChangedGuest(t *testing.T) {
	following(t, func(t *testing.T, n *node, src *fake.Source) {
		src.Set(web(), fabric.Live)
		moment()
		n.journal.Take()
		plugged := from("libvirt", web())
		plugged.NICs = append(plugged.NICs, guest("", "203.0.113.12").NICs...)
		src.Set(plugged, fabric.Live)
		moment()
		n.did("store web live", "wire web_net2", "announce 203.0.113.12/32 fresh")
	})
}

// Guests of other sources, and those attached by hand, are not this one's to
// remove.
func TestSourceSpeaksForItsOwnGuestsOnly(t *testing.T) {
	following(t, func(t *testing.T, n *node, src *fake.Source) {
		n.apply(db(), fabric.Live)
		n.apply(from("lxd", web()), fabric.Live)
		src.Set(db(), fabric.Absent)
		src.Set(web(), fabric.Absent)
		time.Sleep(2 * time.Minute)
		n.holds(want{db(), fabric.Live}, want{web(), fabric.Live})
	})
}

func TestSourceGuestThatCannotBeDescribedIsNotGone(t *testing.T) {
	following(t, func(t *testing.T, n *node, src *fake.Source) {
		n.apply(from("libvirt", web()), fabric.Live)
		src.SetQuietly(fabric.VM{Name: "web"}, 0)
		time.Sleep(2 * time.Minute)
		n.holds(want{web(), fabric.Live})
	})
}

// A guest that came since the list was begun may be missing in it.
func TestSourceListThatIsOldRemovesNothing(t *testing.T) {
	following(t, func(t *testing.T, n *node, src *fake.Source) {
		release := src.Hang("list guests")
		src.Lose()
		time.Sleep(10 * time.Second)
		n.apply(from("libvirt", web()), fabric.Live)
		release()
		moment()
		n.holds(want{web(), fabric.Live})
		time.Sleep(2 * time.Minute) // but the next one tells
		n.holds()
	})
}

// A request can wait for its answers for as long as a list may lack its guest.
func TestSourceListDuringASlowStartRemovesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, registry := fake.NewSource("libvirt"), newRegistry(nil)
		n := fresh(t, agent.WithSources(src), agent.WithRegistry(registry))
		n.run(func() {
			moment()
			answer := registry.Hang("allocate web")
			started := make(chan error)
			go func() { started <- n.Apply(t.Context(), asking("web", "public4"), fabric.Wired) }()
			time.Sleep(4500 * time.Millisecond)
			answer()
			require.NoError(t, <-started)
			time.Sleep(time.Second)
			src.Lose() // its hypervisor lists it once it runs
			moment()
			assert.Len(t, has(n, "web"), 1)
			time.Sleep(2 * time.Minute)
			assert.Empty(t, has(n, "web"))
		})
	})
}

func TestSourceNewsOlderThanARequestIsNoNews(t *testing.T) {
	vm := from("libvirt", web())
	for _, tt := range []struct {
		name    string
		news    fabric.State
		request func(n *node) error
		after   fabric.State
	}{
		{"gone, then started", fabric.Absent, func(n *node) error { return n.Started(n.t.Context(), vm) }, fabric.Live},
		{"running, then removed", fabric.Live, func(n *node) error { return n.Apply(n.t.Context(), vm, fabric.Absent) }, fabric.Absent},
		{"running, then withdrawn", fabric.Live, func(n *node) error { return n.Withdraw(n.t.Context(), vm.Name) }, fabric.Wired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src := fake.NewSource("libvirt")
				n := fresh(t, agent.WithSources(src))
				n.apply(vm, fabric.Live)
				time.Sleep(time.Second)
				src.Set(vm, tt.news) // nobody reads it yet
				time.Sleep(time.Second)
				require.NoError(t, tt.request(n))
				if tt.after == fabric.Absent {
					src.SetQuietly(vm, fabric.Absent)
				} else {
					src.SetQuietly(vm, tt.after)
				}
				n.journal.Take()
				n.run(func() { n.did() })
				n.holds(want{vm, tt.after})
			})
		})
	}
}

// The order of events counts, not the time at which somebody got to them.
func TestSourceNewsThatWaitedIsNews(t *testing.T) {
	following(t, func(t *testing.T, n *node, src *fake.Source) {
		vm := from("libvirt", web())
		src.Set(vm, fabric.Live)
		moment()
		release := n.speaker.Hang("announce 203.0.113.20/32")
		src.Set(db(), fabric.Live) // which keeps the reader of news
		moment()
		src.Set(vm, fabric.Absent)
		moment()
		src.Set(vm, fabric.Live)
		moment()
		release()
		moment()
		n.holds(want{db(), fabric.Live}, want{vm, fabric.Live})
	})
}

func TestSourceGuestThatIsRefused(t *testing.T) {
	bad := from("libvirt", guest("bad", "203.0.113.20"))
	const problem = `guest bad refused: NIC 0: 203.0.113.20: held by VM "db" on this node; detach that first, or choose another`
	for _, tt := range []struct {
		name string
		end  func(n *node, src *fake.Source)
	}{
		{"stops", func(_ *node, src *fake.Source) { src.Set(bad, fabric.Absent) }},
		{"stops, and the event is lost", func(_ *node, src *fake.Source) {
			src.SetQuietly(bad, fabric.Absent)
			time.Sleep(70 * time.Second)
		}},
		{"is changed", func(_ *node, src *fake.Source) { src.Set(guest("bad", "203.0.113.21"), fabric.Live) }},
		{"the other one goes", func(n *node, _ *fake.Source) {
			n.apply(db(), fabric.Absent)
			time.Sleep(70 * time.Second)
		}},
		{"is attached with other addresses", func(n *node, src *fake.Source) {
			src.SetQuietly(guest("bad", "203.0.113.21"), fabric.Live)
			n.apply(from("libvirt", guest("bad", "203.0.113.21")), fabric.Live)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			following(t, func(t *testing.T, n *node, src *fake.Source) {
				n.apply(db(), fabric.Live)
				n.journal.Take()
				src.Set(bad, fabric.Live)
				time.Sleep(90 * time.Second) // also when it is listed
				n.did()
				assert.Equal(t, []string{problem}, n.problems())
				tt.end(n, src)
				moment()
				assert.Empty(t, n.problems())
			})
		})
	}
}

func TestRunWithoutSourcesThatAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := fake.NewSource("libvirt")
		defer src.Hang("list guests")()
		n := fresh(t, agent.WithSources(src))
		n.run(func() {
			src.Set(web(), fabric.Live) // news comes all the same
			moment()
			n.holds(want{web(), fabric.Live})
		})
	})
}

// Run returns nil when its context ends, whatever it is at, and leaves
// everything as it is; no goroutine stays, or the bubble would not end.
func TestRunEnds(t *testing.T) {
	for _, hang := range []string{"list ports", "list routes", "list guests", "wire", "announce", "unwire", "withdraw"} {
		t.Run("in "+hang, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src := fake.NewSource("libvirt")
				n := leftovers(t, agent.WithSources(src))
				src.SetQuietly(web(), fabric.Live)
				releases := []func(){n.dataplane.Hang(hang), n.speaker.Hang(hang), src.Hang(hang)}
				stop := n.begin()
				time.Sleep(5 * time.Second)
				stop()
				for _, release := range releases {
					release()
				}
				ports, _ := n.actual()
				assert.Contains(t, ports, "db_net0")
			})
		})
	}
}

func TestRunLeavesEverythingAsItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := fresh(t)
		n.apply(web(), fabric.Live)
		n.journal.Take()
		n.run(func() {})
		n.did()
		n.holds(want{web(), fabric.Live})
	})
}

// A removal that the source asked for waits behind a newer start of the guest,
// and must not undo it.
func TestSourceNewsThatGrewOldWhileItWaited(t *testing.T) {
	src := fake.NewSource("libvirt")
	n := fresh(t, agent.WithSources(src))
	vm := from("libvirt", web())
	release := n.dataplane.Hang("wire web_net0")
	done := make(chan error, 2)
	start := func() { done <- n.Apply(t.Context(), vm, fabric.Live) }
	go start()
	eventually(t, func() bool { return len(n.journal.Lines()) == 1 })
	stop := n.begin()
	defer stop()
	// Each waits for the one before. Nothing shows that they do; a pause makes
	// it likely, and the outcome is the same when they do not.
	go start()
	time.Sleep(20 * time.Millisecond)
	src.Set(vm, fabric.Absent)
	src.Set(db(), fabric.Live)
	eventually(t, func() bool { return len(src.Changes()) == 0 })
	time.Sleep(20 * time.Millisecond)
	release()
	require.NoError(t, <-done)
	require.NoError(t, <-done)
	eventually(t, func() bool { return n.states()["db_net0"] == fabric.Live }) // so the news before was taken up
	n.holds(want{vm, fabric.Live}, want{db(), fabric.Live})
}

// TestAnotherBootThatIsForgottenLater: the disk is full at the start.
func TestAnotherBootThatIsForgottenLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := fresh(t, agent.WithBoot("first"))
		n.apply(from("libvirt", web()), fabric.Live)
		full := errBoom
		n.dataplane.RemoveLink("web_net0")
		n.dataplane.RemoveLink("web_net1")
		n.store.Fail("forget", full)
		n = n.again(agent.WithBoot("second"))
		n.run(func() {
			time.Sleep(time.Minute)
			n.store.Fail("forget", nil)
			time.Sleep(time.Minute)
			n.holds()
		})
	})
}

// A guest that has run since such names were allowed keeps its network, also
// where its state was lost, and can be detached.
func TestUnseenNamesOfBefore(t *testing.T) {
	const name = "web\u202e"
	vm := guest(name, "203.0.113.10 2001:db8:100:1::10")
	for _, kept := range []bool{true, false} {
		t.Run(map[bool]string{true: "kept", false: "lost"}[kept], func(t *testing.T) {
			n := fresh(t)
			c := cluster()
			require.NoError(t, n.dataplane.Put(t.Context(), vm.Ports(&c)[0]))
			n.dataplane.SetCarrier(fabric.PortName(name, 0), true)
			if kept {
				require.NoError(t, n.store.Put(t.Context(), fabric.Desired{VM: vm, State: fabric.Live}))
			}
			n = n.again()
			assert.Equal(t, map[string]fabric.State{fabric.PortName(name, 0): fabric.Live}, n.states())
			_, announced := n.actual()
			assert.Len(t, announced, 2)
			require.ErrorIs(t, n.Apply(t.Context(), guest("other\u202e", "203.0.113.11"), fabric.Live), fabric.ErrRefused)
			n.apply(fabric.VM{Name: name}, fabric.Absent)
			n.holds()
		})
	}
}

// TestClockThatWasSetBack: a start that was in the future comes first no longer than
// one that is now.
func TestClockThatWasSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, vm := new(fake.Journal), gold()
		src := fake.NewSource("libvirt")
		src.SetQuietly(vm, fabric.Live)
		n := (&node{t: t, journal: j, dataplane: fake.NewDataplane(j), speaker: fake.NewSpeaker(j), store: fake.NewStore(j, fabric.Desired{
			VM: vm, State: fabric.Live, Since: time.Now().Add(time.Hour),
		})}).start(agent.WithSources(src))
		n.dataplane.SetCarrier("sea_gold_net0", true)
		n.run(func() {
			moment()
			require.Equal(t, map[fabric.Preference]int{fabric.Fresh: 2}, n.preferences())
			time.Sleep(2 * time.Minute)
			assert.Equal(t, map[fabric.Preference]int{fabric.Normal: 2}, n.preferences())
		})
	})
}
