package lxd

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/hypervisor"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

const patience = 20 * time.Second

// follow runs a source on the daemon, fast, and takes its first Lost.
func follow(t *testing.T, d *daemon) *Source {
	t.Helper()
	s := run(t, d)
	requireLost(t, s)
	return s
}

func run(t *testing.T, d *daemon) *Source {
	t.Helper()
	return runWith(t, d, Config{})
}

func runWith(t *testing.T, d *daemon, cfg Config) *Source {
	t.Helper()
	return runWithin(t, d, cfg, patience)
}

// runWithin runs a source that waits so long for an answer.
func runWithin(t *testing.T, d *daemon, cfg Config, call time.Duration) *Source {
	t.Helper()
	cfg.Socket = d.path
	s := New(cfg)
	s.times = times{list: 10 * time.Second}
	s.daemon.Times = hypervisor.Times{Call: call, Ping: 50 * time.Millisecond, RetryMin: 10 * time.Millisecond, RetryMax: 50 * time.Millisecond}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-ended)
		assert.False(t, s.Status().Connected)
	})
	return s
}

func next(t *testing.T, s *Source) fabric.Change {
	t.Helper()
	select {
	case c := <-s.Changes():
		return c
	case <-time.After(patience):
		require.FailNow(t, "no change")
		return fabric.Change{}
	}
}

func requireLost(t *testing.T, s *Source) {
	t.Helper()
	require.True(t, next(t, s).Lost, "Lost")
}

func requireNext(t *testing.T, s *Source, name string, state fabric.State) fabric.Desired {
	t.Helper()
	c := next(t, s)
	require.False(t, c.Lost)
	require.Equal(t, name, c.Guest.VM.Name)
	require.Equal(t, state.String(), c.Guest.State.String())
	require.Equal(t, "lxd", c.Guest.VM.Origin)
	require.WithinDuration(t, time.Now(), c.Guest.Since, patience)
	return c.Guest
}

func requireQuiet(t *testing.T, s *Source) {
	t.Helper()
	select {
	case c := <-s.Changes():
		require.FailNow(t, fmt.Sprintf("%+v", c))
	case <-time.After(100 * time.Millisecond):
	}
}

// list gives the states of the guests that the source lists.
func list(t *testing.T, s *Source) map[string]fabric.State {
	t.Helper()
	guests, err := s.Guests(t.Context())
	require.NoError(t, err)
	m := map[string]fabric.State{}
	for _, d := range guests {
		m[d.VM.Name] = d.State
	}
	require.Len(t, m, len(guests))
	return m
}

func with(i instance, change func(*instance)) instance {
	change(&i)
	return i
}

func stopped(i instance) instance { i.Code = codeStopped; return i }

func in(project string, i instance) instance { i.Project = project; return i }

func TestGuestsAreOursThatAreNotAbsent(t *testing.T) {
	d := newDaemon(t).start()
	d.set(p2p("web", 10))
	d.set(stopped(p2p("off", 11)))
	d.set(stopped(physical("ready", 12)))
	d.set(with(p2p("frozen", 13), func(i *instance) { i.Code = codeFrozen }))
	d.set(in("shop", physical("db", 14)))
	d.set(foreign("other"))
	d.set(with(p2p("odd", 15), func(i *instance) { i.ExpandedDevices = nil }))
	d.set(stopped(physical("lxd-move-of-1", 16)))
	s := New(Config{Socket: d.path})
	before := time.Now()
	got, err := s.Guests(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[string]fabric.State{"web": fabric.Live, "ready": fabric.Wired, "frozen": fabric.Live, "db": fabric.Live, "odd": 0, "other": 0}, list(t, s))
	for _, g := range got {
		assert.False(t, g.Since.Before(before))
		if g.VM.Name == "web" {
			assert.Equal(t, fabric.VM{Name: "web", UUID: "uuid of web", Origin: "lxd", Container: true, NICs: []fabric.NIC{{
				Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10")}, Kind: fabric.Adopt, Link: "eth0",
			}}}, g.VM)
		}
	}
	assert.Equal(t, "lxd", s.Name())
	assert.Equal(t, 4, s.Status().Guests)
	assert.Equal(t, []string{
		"lxd: instance odd: NIC 0 has no device, neither p2p with host_name odd_net0 nor physical with parent odd_peer0; " +
			"lxc config device add odd eth0 nic nictype=p2p host_name=odd_net0 name=eth0",
	}, s.Diagnose(t.Context()))
	assert.Zero(t, d.asked("/1.0/instances/"))
}

func TestProjectsOneByOneOnAnOldDaemon(t *testing.T) {
	d := newDaemon(t)
	d.extensions = []string{"event_lifecycle", "projects"}
	d.start()
	d.set(p2p("web", 10))
	d.set(in("shop", p2p("db", 11)))
	s := follow(t, d)
	assert.Equal(t, map[string]fabric.State{"web": fabric.Live, "db": fabric.Live}, list(t, s))
	assert.Equal(t, 2, d.asked("/1.0/instances?"))
	assert.Equal(t, []string{"project=%2A&type=lifecycle%2Coperation"}, d.subscriptions())

	d.set(in("shop", stopped(p2p("db", 11))))
	d.send(nil, "container-shutdown", "/1.0/containers/db", nil)
	requireNext(t, s, "db", fabric.Absent)
	d.set(in("new", p2p("mx", 12)))
	d.send(nil, "container-started", "/1.0/containers/mx", nil)
	requireLost(t, s)
	assert.Equal(t, fabric.Live, list(t, s)["mx"])
	d.set(in("new", stopped(p2p("mx", 12))))
	d.send(nil, "container-stopped", "/1.0/containers/mx", nil)
	requireNext(t, s, "mx", fabric.Absent)
}

func TestOneNameIsOneGuest(t *testing.T) {
	d := newDaemon(t).start()
	d.set(stopped(physical("web", 10)))
	d.set(in("a", p2p("web", 11)))
	d.set(in("b", p2p("web", 12)))
	s := follow(t, d)
	guests, err := s.Guests(t.Context())
	require.NoError(t, err)
	require.Len(t, guests, 1)
	assert.Equal(t, "203.0.113.11", guests[0].VM.NICs[0].Addresses[0].String(), "one that runs comes first")
	assert.Equal(t, []string{
		"lxd: instance web in project b: its name is that of the instance in project a, and a node has one guest of a name; rename one: lxc rename web NAME --project b",
		"lxd: instance web: its name is that of the instance in project a, and a node has one guest of a name; rename one: lxc rename web NAME",
	}, s.Diagnose(t.Context()))

	// Others of the name do not end the guest, nor take its place.
	d.set(physical("web", 10))
	d.tell("instance-started", "web")
	d.set(in("b", stopped(p2p("web", 12))))
	d.send(map[string]any{"project": "b"}, "instance-stopped", "/1.0/instances/web?project=b", nil)
	require.Eventually(t, func() bool { return len(s.Diagnose(t.Context())) == 1 }, patience, time.Millisecond)
	requireQuiet(t, s)
	assert.Len(t, list(t, s), 1)

	// When it ends, it is asked who has the name now.
	d.remove(key{"a", "web"})
	d.send(map[string]any{"project": "a"}, "instance-deleted", "/1.0/instances/web?project=a", nil)
	told := []fabric.Change{next(t, s), next(t, s)} // in either order
	if told[0].Lost {
		slices.Reverse(told)
	}
	gone := told[0].Guest
	assert.Equal(t, fabric.Absent, gone.State)
	assert.Equal(t, "203.0.113.11", gone.VM.NICs[0].Addresses[0].String())
	assert.True(t, told[1].Lost)
	guests, err = s.Guests(t.Context())
	require.NoError(t, err)
	require.Len(t, guests, 1)
	assert.Equal(t, "203.0.113.10", guests[0].VM.NICs[0].Addresses[0].String())
	assert.Empty(t, s.Diagnose(t.Context()))
}

func TestGuestWithAFlawStaysAsItWas(t *testing.T) {
	d := newDaemon(t).start()
	d.set(p2p("web", 10))
	s := follow(t, d)
	list(t, s)
	broken := with(p2p("web", 11), func(i *instance) {
		i.ExpandedConfig = config("user.vmfabric.net0.addresses=203.0.113.666")
	})
	d.set(broken)
	d.tell("instance-updated", "web")
	same := requireNext(t, s, "web", fabric.Live)
	assert.Equal(t, "203.0.113.10", same.VM.NICs[0].Addresses[0].String())
	assert.Len(t, s.Diagnose(t.Context()), 1)
	assert.Equal(t, map[string]fabric.State{"web": fabric.Live}, list(t, s))

	d.set(stopped(broken))
	d.tell("instance-stopped", "web")
	requireNext(t, s, "web", fabric.Absent)
	d.set(broken)
	d.tell("instance-started", "web")
	requireQuiet(t, s)
	assert.Equal(t, map[string]fabric.State{"web": 0}, list(t, s), "it was never seen right since")
	assert.Len(t, s.Diagnose(t.Context()), 1)

	d.set(p2p("web", 12))
	d.tell("instance-updated", "web")
	requireNext(t, s, "web", fabric.Live)
	assert.Empty(t, s.Diagnose(t.Context()))
}

// Keys that ask for addresses of pools count at once, as addresses do. Lists and
// descriptions have them, too.
func TestPoolsOfARunningInstance(t *testing.T) {
	d := newDaemon(t).start()
	asks := func(addresses string) instance {
		return with(p2p("web", 10), func(i *instance) { i.ExpandedConfig = config("user.vmfabric.net0.addresses=" + addresses) })
	}
	d.set(asks("auto"))
	s := follow(t, d)
	guests, err := s.Guests(t.Context())
	require.NoError(t, err)
	require.Len(t, guests, 1)
	assert.Equal(t, []string{fabric.AutoPool}, guests[0].VM.NICs[0].Pools)
	vm, ours, err := s.Describe(t.Context(), "web")
	require.NoError(t, err)
	assert.True(t, ours)
	assert.Equal(t, guests[0].VM, vm)

	d.set(asks("203.0.113.10, pool:public6"))
	d.tell("instance-updated", "web")
	now := requireNext(t, s, "web", fabric.Live).VM.NICs[0]
	assert.Equal(t, []netip.Addr{netip.MustParseAddr("203.0.113.10")}, now.Addresses)
	assert.Equal(t, []string{"public6"}, now.Pools)

	d.set(asks("pool:"))
	d.tell("instance-updated", "web")
	assert.Equal(t, now, requireNext(t, s, "web", fabric.Live).VM.NICs[0], "one with a fault stays as it was")
	require.Len(t, s.Diagnose(t.Context()), 1)

	d.set(with(asks(""), func(i *instance) { i.ExpandedConfig = config("volatile.uuid=uuid of web") }))
	d.tell("instance-updated", "web")
	assert.Empty(t, requireNext(t, s, "web", fabric.Live).VM.NICs)
	d.set(p2p("web", 10))
	d.tell("instance-updated", "web")
	assert.Empty(t, requireNext(t, s, "web", fabric.Live).VM.NICs[0].Pools)
	assert.Empty(t, s.Diagnose(t.Context()))
}

// Its keys were taken away as it ran: it is still that guest, and what happens
// to it is told. A source that is new to it knows no more than its name.
func TestGuestWithoutKeysIsNotGone(t *testing.T) {
	bare := fabric.VM{Name: "web", UUID: "uuid of web", Origin: "lxd"}
	keyless := func(i instance) instance {
		return with(i, func(i *instance) { i.ExpandedConfig = config("volatile.uuid=uuid of web") })
	}
	for name, made := range map[string]func(string, int) instance{"p2p": p2p, "physical": physical} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t).start()
			d.set(made("web", 10))
			s := follow(t, d)
			list(t, s)
			d.set(keyless(made("web", 10)))
			d.tell("instance-updated", "web")
			assert.Equal(t, bare, requireNext(t, s, "web", fabric.Live).VM)
			for range 2 {
				assert.Equal(t, map[string]fabric.State{"web": fabric.Live}, list(t, s))
			}
			d.set(made("web", 11)) // others, which count at once
			d.tell("instance-updated", "web")
			assert.Equal(t, "203.0.113.11", requireNext(t, s, "web", fabric.Live).VM.NICs[0].Addresses[0].String())
			d.set(keyless(made("web", 11)))
			d.tell("instance-updated", "web")
			requireNext(t, s, "web", fabric.Live)

			again := follow(t, d)
			assert.Equal(t, map[string]fabric.State{"web": 0}, list(t, again), "nothing is known of it")
			d.set(stopped(keyless(made("web", 11))))
			d.tell("instance-shutdown", "web")
			requireNext(t, s, "web", fabric.Absent)
			assert.Equal(t, bare, requireNext(t, again, "web", fabric.Absent).VM)
			for _, s := range []*Source{s, again} {
				assert.Empty(t, list(t, s))
				assert.Empty(t, s.Diagnose(t.Context()))
			}
		})
	}
}

// A copy of a guest has the original's host_name, which is not its own. That is
// told when it is started, and when it runs: until then it does no harm.
func TestStoppedInstanceWithAFlawIsNoProblem(t *testing.T) {
	d := newDaemon(t).start()
	d.set(p2p("web", 10))
	flaws := map[string]instance{
		"copy":  with(p2p("copy", 11), func(i *instance) { i.ExpandedDevices = p2p("web", 10).ExpandedDevices }),
		"typo":  with(p2p("typo", 12), func(i *instance) { i.ExpandedConfig = config("user.vmfabric.net0.addresses=203.0.113.666") }),
		"wrong": with(p2p("wrong", 13), func(i *instance) { i.ExpandedConfig = config("user.vmfabric.net0.adresses=203.0.113.13") }),
	}
	for _, i := range flaws {
		d.set(stopped(i))
	}
	s := follow(t, d)
	assert.Equal(t, map[string]fabric.State{"web": fabric.Live}, list(t, s))
	assert.Empty(t, s.Diagnose(t.Context()))
	for name, i := range flaws {
		_, ours, err := s.Describe(t.Context(), name)
		require.Error(t, err, "its start is refused")
		assert.True(t, ours)
		d.set(i)
		d.tell("instance-started", name)
		require.Eventually(t, func() bool { return len(s.Diagnose(t.Context())) == 1 }, patience, time.Millisecond)
		assert.Contains(t, s.Diagnose(t.Context())[0], "lxd: instance "+name+": ")
		d.set(stopped(i))
		d.tell("instance-stopped", name)
		require.Eventually(t, func() bool { return len(s.Diagnose(t.Context())) == 0 }, patience, time.Millisecond)
	}
}

// LXD lists an instance that it cannot read without all that matters.
func TestUnreadableInstanceIsNotGone(t *testing.T) {
	d := newDaemon(t).start()
	lost := instance{Name: "web", Code: codeError}
	d.set(p2p("web", 10))
	s := New(Config{Socket: d.path})
	list(t, s)
	d.set(lost)
	assert.Equal(t, map[string]fabric.State{"web": fabric.Live}, list(t, s))

	fresh := New(Config{Socket: d.path})
	d.fail("/1.0/instances/web", http.StatusInternalServerError)
	_, err := fresh.Guests(t.Context())
	require.EqualError(t, err, "lxd: list instances: instance web: it cannot; see the log of lxd, the agent asks again")
	d.fail("/1.0/instances/web", http.StatusNotFound)
	assert.Empty(t, list(t, fresh))
}

func TestLifeOfAGuest(t *testing.T) {
	d := newDaemon(t).start()
	s := follow(t, d)
	list(t, s)
	assert.Equal(t, []string{"all-projects=true&type=lifecycle%2Coperation"}, d.subscriptions())

	for kind, c := range map[string]struct {
		i       instance
		created fabric.State
	}{"p2p": {p2p("web", 10), fabric.Absent}, "physical": {physical("web", 10), fabric.Wired}} {
		t.Run(kind, func(t *testing.T) {
			d.set(stopped(c.i))
			d.tell("instance-created", "web")
			requireNext(t, s, "web", c.created)
			d.set(c.i)
			d.tell("instance-started", "web")
			guest := requireNext(t, s, "web", fabric.Live)
			assert.Equal(t, "2001:db8:100::10", guest.VM.NICs[0].Addresses[1].String())

			d.code("web", codeFrozen)
			d.tell("instance-paused", "web")
			requireNext(t, s, "web", fabric.Live)
			d.code("web", codeRunning)
			d.tell("instance-resumed", "web")
			requireNext(t, s, "web", fabric.Live)
			d.tell("instance-restarted", "web")
			requireNext(t, s, "web", fabric.Live)

			d.code("web", codeStopped)
			d.tell("instance-shutdown", "web")
			requireNext(t, s, "web", c.created)
			d.remove(key{"default", "web"})
			d.tell("instance-snapshot-deleted", "web/snapshots/a")
			gone := requireNext(t, s, "web", fabric.Absent)
			assert.Equal(t, "web", gone.VM.Name)
		})
	}
	assert.Zero(t, s.Status().Guests)
	assert.False(t, s.Status().LastEvent.IsZero())
	requireQuiet(t, s)
}

func TestLateNewsDoesNotUndoNewer(t *testing.T) {
	d := newDaemon(t).start()
	s := follow(t, d)
	d.set(p2p("web", 10))
	d.tell("instance-stopped", "web") // of its life before
	requireNext(t, s, "web", fabric.Live)
	// Neither does a list that was asked for before an instance was read.
	began := time.Now()
	d.remove(key{"default", "web"})
	d.tell("instance-deleted", "web")
	requireNext(t, s, "web", fabric.Absent)
	assert.Empty(t, s.takeAll([]instance{p2p("web", 10)}, began))
	assert.Zero(t, s.Status().Guests)
}

// What an event told before a list must not undo what the list tells.
func TestNewsOlderThanAList(t *testing.T) {
	d := newDaemon(t).start()
	d.set(p2p("web", 10))
	s := follow(t, d)
	list(t, s)
	d.code("web", codeStopped)
	d.tell("instance-stopped", "web")
	waiting := func() fabric.State {
		return s.queue.Waiting()["web"].State
	}
	require.Eventually(t, func() bool { return waiting() == fabric.Absent }, patience, time.Millisecond)
	d.code("web", codeRunning)
	assert.Equal(t, map[string]fabric.State{"web": fabric.Live}, list(t, s))
	assert.Equal(t, fabric.Live, waiting())
	requireNext(t, s, "web", fabric.Live)
}

// Before the first list nobody knows whose name it is that is gone.
func TestUnknownIsNotGoneBeforeAList(t *testing.T) {
	d := newDaemon(t).start()
	d.set(p2p("web", 10))
	d.set(in("shop", stopped(p2p("web", 11))))
	s := follow(t, d)
	gone := func() { d.send(map[string]any{"project": "shop"}, "instance-stopped", "/1.0/instances/web", nil) }
	gone()
	d.tell("instance-deleted", "brief")
	require.Eventually(t, func() bool { return d.asked("/1.0/instances/") == 2 }, patience, time.Millisecond)
	requireQuiet(t, s)
	list(t, s)
	gone()
	requireQuiet(t, s)
	d.tell("instance-deleted", "brief") // which a hook may have brought up
	requireNext(t, s, "brief", fabric.Absent)
}

func TestRename(t *testing.T) {
	d := newDaemon(t).start()
	d.set(stopped(physical("old", 10)))
	s := follow(t, d)
	assert.Equal(t, map[string]fabric.State{"old": fabric.Wired}, list(t, s))
	d.remove(key{"default", "old"})
	d.set(stopped(physical("new", 10)))
	d.send(map[string]any{"project": "default"}, "instance-renamed", "/1.0/instances/new", map[string]any{"old_name": "old"})
	told := map[string]fabric.State{}
	for range 2 {
		c := next(t, s)
		told[c.Guest.VM.Name] = c.Guest.State
	}
	assert.Equal(t, map[string]fabric.State{"old": fabric.Absent, "new": fabric.Wired}, told)
}

func TestManyMayHaveChanged(t *testing.T) {
	d := newDaemon(t).start()
	s := follow(t, d)
	for action, source := range map[string]string{
		"profile-updated": "/1.0/profiles/fabric", "project-deleted": "/1.0/projects/shop", "cluster-member-renamed": "/1.0/cluster/members/node1",
	} {
		d.send(nil, action, source, nil)
		requireLost(t, s)
	}
	d.send(nil, "network-updated", "/1.0/networks/br0", nil)
	d.send(map[string]any{"type": "operation"}, "", "", nil)
	requireQuiet(t, s)
	d.send(map[string]any{"metadata": 7}, "", "", nil)
	requireLost(t, s)
}

func TestMemberOfACluster(t *testing.T) {
	d := newDaemon(t)
	d.cluster("node1")
	d.start()
	d.set(p2p("here", 10))
	d.set(with(p2p("there", 11), func(i *instance) { i.Location = "node2" }))
	d.set(instance{Name: "dark", Code: codeError, Location: "node3"})
	s := follow(t, d)
	assert.Equal(t, map[string]fabric.State{"here": fabric.Live}, list(t, s))
	elsewhere := map[string]any{"project": "default", "location": "node2"}

	d.send(elsewhere, "instance-started", "/1.0/instances/there", nil)
	requireQuiet(t, s)
	assert.Zero(t, d.asked("/1.0/instances/there"), "what happens elsewhere is not asked for")

	// A move, as a member that is left hears it.
	d.set(with(stopped(p2p("lxd-move-of-1", 10)), func(i *instance) { i.Location = "node2" }))
	d.send(elsewhere, "instance-created", "/1.0/instances/lxd-move-of-1", nil)
	d.set(with(p2p("here", 10), func(i *instance) { i.Location = "node2" }))
	d.send(elsewhere, "instance-renamed", "/1.0/instances/here", map[string]any{"old_name": "lxd-move-of-1"})
	gone := requireNext(t, s, "here", fabric.Absent)
	assert.Len(t, gone.VM.NICs, 1)
	// And back.
	d.set(p2p("here", 10))
	d.tell("instance-renamed", "here")
	requireNext(t, s, "here", fabric.Live)
	requireQuiet(t, s)

	t.Run("that changes its name", func(t *testing.T) {
		d.cluster("node9")
		d.set(with(p2p("here", 10), func(i *instance) { i.Location = "node9" }))
		d.send(map[string]any{"project": "default", "location": "node9"}, "instance-updated", "/1.0/instances/here", nil)
		requireNext(t, s, "here", fabric.Live)
		assert.Equal(t, map[string]fabric.State{"here": fabric.Live}, list(t, s))
		d.set(p2p("new", 12))
		d.tell("instance-started", "new")
		requireNext(t, s, "new", fabric.Live)
	})
}

func TestMemberThatAGuestMovesTo(t *testing.T) {
	d, l := newDaemon(t), newLinks()
	d.cluster("node1")
	d.start()
	d.set(p2p("here", 10))
	d.set(with(p2p("there", 11), func(i *instance) { i.Location = "node2" }))
	elsewhere := map[string]any{"project": "default", "location": "node2"}
	s := followLinks(t, d, l)
	d.set(with(stopped(p2p("lxd-move-of-2", 11)), func(i *instance) { i.Location = "node1" }))
	d.tell("instance-created", "lxd-move-of-2")
	assert.Equal(t, states{"here": fabric.Live}, list(t, s))
	d.send(elsewhere, "instance-deleted", "/1.0/instances/there", nil)
	d.set(stopped(p2p("there", 11)))
	d.send(map[string]any{"project": "default", "location": "node1"}, "instance-renamed", "/1.0/instances/there", map[string]any{"old_name": "lxd-move-of-2"})
	requireNext(t, s, "there", fabric.Absent)
	l.add("there_net0", true)
	requireNext(t, s, "there", fabric.Live)
	// What the source says late of its own does not stop the one that starts here.
	for _, action := range []string{"instance-shutdown", "instance-stopped", "instance-deleted"} {
		d.send(elsewhere, action, "/1.0/instances/there", nil)
		requireNext(t, s, "there", fabric.Live)
	}
	d.set(p2p("there", 11))
	d.tell("instance-started", "there")
	requireNext(t, s, "there", fabric.Live)
	assert.Equal(t, states{"here": fabric.Live, "there": fabric.Live}, list(t, s))
}

func TestDaemonThatFormsAClusterKeepsItsGuests(t *testing.T) {
	d := newDaemon(t).start()
	d.set(p2p("web", 10))
	s := follow(t, d)
	list(t, s)
	d.cluster("node1")
	d.set(with(p2p("web", 10), func(i *instance) { i.Location = "node1" }))
	d.tell("instance-updated", "web")
	requireNext(t, s, "web", fabric.Live)
	assert.Equal(t, map[string]fabric.State{"web": fabric.Live}, list(t, s))
}

func TestRestartOfTheDaemon(t *testing.T) {
	d := newDaemon(t).start()
	d.set(p2p("web", 10))
	s := follow(t, d)
	require.True(t, s.Status().Connected)
	assert.Empty(t, s.Diagnose(t.Context()))

	for range 3 {
		d.stop()
		require.Eventually(t, func() bool { return len(s.Diagnose(t.Context())) == 1 }, patience, time.Millisecond)
		assert.Regexp(t, `^lxd: no answer on \S+/unix.socket since \d\d:\d\d:\d\d \(.+\); start lxd$`, s.Diagnose(t.Context())[0])
		assert.NotContains(t, s.Diagnose(t.Context())[0], "failed")
		assert.False(t, s.Status().Connected)
		began := time.Now()
		_, err := s.Guests(t.Context())
		require.ErrorContains(t, err, "lxd: no answer on ")
		assert.Less(t, time.Since(began), patience/2)

		d.fail("/1.0", http.StatusServiceUnavailable) // it is about to come up
		d.start()
		require.Eventually(t, func() bool {
			return strings.HasSuffix(strings.Join(s.Diagnose(t.Context()), ""), " (it cannot); wait until it is up, and see its log if it does not come")
		}, patience, time.Millisecond)
		d.fail("/1.0", 0)
		requireLost(t, s)
		assert.Empty(t, s.Diagnose(t.Context()))
		assert.True(t, s.Status().Connected)
		assert.Len(t, list(t, s), 1)
		d.tell("instance-resumed", "web")
		requireNext(t, s, "web", fabric.Live)
	}
}

func TestEventsCutInTheMiddleOfOne(t *testing.T) {
	d := newDaemon(t).start()
	d.set(p2p("web", 10))
	s := follow(t, d)
	for range 3 {
		d.cut()
		requireLost(t, s)
		assert.Equal(t, states{"web": fabric.Live}, list(t, s))
	}
	d.code("web", codeStopped)
	d.tell("instance-stopped", "web")
	// Told, or listed where it was told to a connection that was about to end.
	if c := next(t, s); c.Lost {
		assert.Empty(t, list(t, s))
	} else {
		assert.Equal(t, fabric.Absent, c.Guest.State)
	}
}

func TestAbsentLXDIsNoProblem(t *testing.T) {
	d := newDaemon(t)
	s := run(t, d)
	_, err := s.Guests(t.Context())
	require.ErrorIs(t, err, os.ErrNotExist)
	requireQuiet(t, s)
	assert.Empty(t, s.Diagnose(t.Context()))
	assert.False(t, s.Status().Connected)

	d.set(p2p("web", 10))
	d.start()
	requireLost(t, s)
	assert.Len(t, list(t, s), 1)

	d.stop()
	os.Remove(d.path)
	require.Eventually(t, func() bool { return len(s.Diagnose(t.Context())) == 1 }, patience, time.Millisecond, "it was there")
	assert.Contains(t, s.Diagnose(t.Context())[0], "start lxd")
}

func TestSockets(t *testing.T) {
	dead := newDaemon(t)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead.path})
	require.NoError(t, err)
	ln.SetUnlinkOnClose(false)
	ln.Close()
	s := run(t, dead)
	require.Eventually(t, func() bool { return len(s.Diagnose(t.Context())) == 1 }, patience, time.Millisecond)
	assert.Regexp(t, `no answer on \S+ since \S+ \(connect: connection refused\); start lxd$`, s.Diagnose(t.Context())[0])

	alive := newDaemon(t).start()
	both := New(Config{})
	both.daemon.Sockets = []string{filepath.Join(t.TempDir(), "unix.socket"), dead.path, alive.path}
	_, err = both.Guests(t.Context())
	require.ErrorIs(t, err, os.ErrNotExist, "an LXD that was never used is left alone")
	assert.Zero(t, alive.asked("/1.0"))
	for _, d := range []*daemon{dead, alive} {
		require.NoError(t, os.Mkdir(filepath.Join(filepath.Dir(d.path), "database"), 0o700))
	}
	_, err = both.Guests(t.Context())
	require.NoError(t, err, "the one that answers serves")
}

func TestHangingDaemonIsNoticed(t *testing.T) {
	d := newDaemon(t).start()
	d.set(p2p("web", 10))
	s := runWithin(t, d, Config{}, time.Second)
	requireLost(t, s)
	d.freeze()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := s.Guests(ctx)
	require.ErrorContains(t, err, "timed out")
	require.Eventually(t, func() bool { return !s.Status().Connected && len(s.Diagnose(t.Context())) == 1 }, patience, time.Millisecond)
	assert.Regexp(t, `since \S+ \(timed out\); restart lxd$`, s.Diagnose(t.Context())[0])

	d.thaw()
	requireLost(t, s)
	assert.Empty(t, s.Diagnose(t.Context()))
	d.tell("instance-resumed", "web")
	requireNext(t, s, "web", fabric.Live)
}

func TestListThatIsRefusedIsTold(t *testing.T) {
	d := newDaemon(t).start()
	s := follow(t, d)
	d.fail("/1.0/instances", http.StatusInternalServerError)
	_, err := s.Guests(t.Context())
	require.EqualError(t, err, "lxd: list instances: it cannot; see the log of lxd, the agent asks again")
	assert.Equal(t, []string{err.Error()}, s.Diagnose(t.Context()))
	d.fail("/1.0/instances", 0)
	list(t, s)
	assert.Empty(t, s.Diagnose(t.Context()))
}

func TestInstanceThatIsNotToldIsListed(t *testing.T) {
	d := newDaemon(t).start()
	d.set(p2p("web", 10))
	s := follow(t, d)
	d.fail("/1.0/instances/web", http.StatusInternalServerError)
	d.tell("instance-started", "web")
	requireLost(t, s)
}

func TestFloodAboutOneInstance(t *testing.T) {
	d := newDaemon(t).start()
	d.set(p2p("web", 10))
	d.set(p2p("db", 11))
	s := follow(t, d)
	d.hold()
	for range 1000 {
		d.tell("instance-updated", "web")
	}
	require.Eventually(t, func() bool { return d.asked("/1.0/instances/web") == 1 }, patience, time.Millisecond)
	d.set(p2p("web", 20))
	d.thaw()
	d.tell("instance-updated", "db")
	told := map[string]fabric.Desired{}
	isWhole := func() bool {
		web, ok := told["web"]
		return ok && len(told) == 2 && web.VM.NICs[0].Addresses[0].String() == "203.0.113.20"
	}
	for !isWhole() {
		c := next(t, s)
		if !c.Lost {
			told[c.Guest.VM.Name] = c.Guest
			continue
		}
		guests, err := s.Guests(t.Context())
		require.NoError(t, err)
		for _, d := range guests {
			told[d.VM.Name] = d
		}
	}
	// How often it is read depends on how fast the events come, and not on
	// their number.
	assert.Less(t, d.asked("/1.0/instances/web"), 100)
}

func TestFloodAboutManyInstances(t *testing.T) {
	d := newDaemon(t).start()
	s := follow(t, d)
	const many = 1000
	for i := range many {
		d.set(physical(fmt.Sprint("g", i), i%250+1))
	}
	d.hold()
	for i := range many {
		d.tell("instance-started", fmt.Sprint("g", i))
	}
	requireLost(t, s)
	assert.LessOrEqual(t, d.asked("/1.0/instances/"), slots)
	d.thaw()
	told := map[string]bool{}
	for len(told) < maxWaiting {
		if c := next(t, s); !c.Lost {
			told[c.Guest.VM.Name] = true
		}
	}
	assert.Len(t, list(t, s), many)
	d.mu.Lock()
	defer d.mu.Unlock()
	assert.LessOrEqual(t, d.most, slots)
}

func TestOnlyTheNewestIsTold(t *testing.T) {
	d := newDaemon(t).start()
	d.set(physical("web", 10))
	s := follow(t, d)
	for _, code := range []int{codeRunning, codeStopped, codeRunning, codeStopped} {
		d.code("web", code)
		d.tell("instance-updated", "web")
	}
	require.Eventually(t, func() bool {
		return s.queue.Waiting()["web"].State == fabric.Wired
	}, patience, time.Millisecond)
	requireNext(t, s, "web", fabric.Wired)
}

func TestPortLeftBehind(t *testing.T) {
	d := newDaemon(t).start()
	d.set(stopped(p2p("web", 10)))
	d.set(stopped(physical("db", 11)))
	d.set(p2p("mx", 12))
	links := newLinks("web_net0", "db_net0", "mx_net0")
	s := New(Config{Socket: d.path, Links: links})
	s.times.leak = 0
	list(t, s)
	assert.Empty(t, s.Diagnose(t.Context()), "it may be about to start, or to go")
	list(t, s)
	assert.Equal(t, []string{
		"lxd: instance web is stopped and cannot start, because its link web_net0 is still there (lxd did not run when the guest died); ip link del web_net0",
	}, s.Diagnose(t.Context()))
	links.remove("web_net0")
	assert.Empty(t, s.Diagnose(t.Context()))
	list(t, s)
	links.add("web_net0", true)
	list(t, s)
	assert.Empty(t, s.Diagnose(t.Context()))
	d.set(p2p("web", 10))
	list(t, s)
	assert.Empty(t, s.Diagnose(t.Context()), "it runs")
}

func TestRunLeavesNothingBehind(t *testing.T) {
	labtest.EndsItsGoroutines(t)
	d := newDaemon(t).start()
	d.set(p2p("web", 10))
	s := follow(t, d)
	d.hold()
	d.tell("instance-resumed", "web")
	require.Eventually(t, func() bool { return d.asked("/1.0/instances/web") == 1 }, patience, time.Millisecond)
	list(t, s)
}

// TestUserDataOfAnInstance is what LXD gives cloud-init, and of the same instance alone.
func TestUserDataOfAnInstance(t *testing.T) {
	d := newDaemon(t).start()
	d.set(p2p("none", 9))
	d.set(with(p2p("old", 10), func(i *instance) { i.ExpandedConfig[formerUserDataKey] = "#old" }))
	d.set(with(p2p("web", 11), func(i *instance) {
		i.ExpandedConfig[formerUserDataKey], i.ExpandedConfig[userDataKey] = "#old", "#new"
	}))
	s := follow(t, d)
	list(t, s)
	for name, want := range map[string]string{"none": "", "old": "#old", "web": "#new"} {
		vm, _, err := s.Describe(t.Context(), name)
		require.NoError(t, err)
		data, err := s.UserData(t.Context(), vm)
		require.NoError(t, err)
		assert.Equal(t, want, string(data), name)
	}
	vm, _, err := s.Describe(t.Context(), "web")
	require.NoError(t, err)
	vm.UUID = "another"
	data, err := s.UserData(t.Context(), vm)
	require.ErrorContains(t, err, "lxd: instance web is another one by now")
	assert.Empty(t, data)
}
