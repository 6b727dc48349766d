package lxd

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// nodeLinks are links of a node that do what a test says.
type nodeLinks struct {
	changed chan struct{}

	mu     sync.Mutex
	last   int
	links  map[string]nodeLink
	names  []string
	missed bool
}

type nodeLink struct {
	index  int
	paired bool
}

func newLinks(names ...string) *nodeLinks {
	l := &nodeLinks{changed: make(chan struct{}, 1), links: map[string]nodeLink{}}
	for _, name := range names {
		l.add(name, true)
	}
	return l
}

func (l *nodeLinks) Changed() <-chan struct{} { return l.changed }

func (l *nodeLinks) Take() ([]string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	names, missed := l.names, l.missed
	l.names, l.missed = nil, false
	return names, missed
}

func (l *nodeLinks) Link(name string) (int, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.links[name].index, l.links[name].paired
}

// add makes a link; paired: both ends of it are here.
func (l *nodeLinks) add(name string, paired bool) {
	l.change(name, func() {
		l.last++
		l.links[name] = nodeLink{l.last, paired}
	})
}

func (l *nodeLinks) remove(name string) { l.change(name, func() { delete(l.links, name) }) }

// touch tells of a link that did not come or go.
func (l *nodeLinks) touch(name string) { l.change(name, func() {}) }

// lose is a change that is not told.
func (l *nodeLinks) lose(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	l.missed = true
	l.wake()
}

func (l *nodeLinks) change(name string, f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	l.names = append(l.names, name)
	l.wake()
}

func (l *nodeLinks) wake() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// followLinks runs a source that sees links, and lists.
func followLinks(t *testing.T, d *daemon, l *nodeLinks) *Source {
	t.Helper()
	s := runWith(t, d, Config{Links: l})
	requireLost(t, s)
	list(t, s)
	return s
}

func (l *nodeLinks) taken(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.names) == 0 && !l.missed && len(l.changed) == 0
	}, patience, time.Millisecond)
}

func TestGuestThatStartsIsSeenByItsLink(t *testing.T) {
	d, l := newDaemon(t).start(), newLinks()
	d.set(stopped(p2p("web", 10)))
	d.set(stopped(physical("db", 11)))
	s := followLinks(t, d, l)

	l.add("db_net0", false) // which the fabric makes
	l.add("web_net1", true)
	l.add("web_net0", true)
	got := requireNext(t, s, "web", fabric.Live)
	assert.Len(t, got.VM.NICs, 1)
	assert.Equal(t, states{"web": fabric.Live, "db": fabric.Wired}, list(t, s), "LXD says that it is stopped yet")
	d.tell("instance-updated", "web")
	requireNext(t, s, "web", fabric.Live)
	d.set(with(p2p("web", 10), func(i *instance) { i.Code = 106 })) // starting
	assert.Equal(t, states{"web": fabric.Live, "db": fabric.Wired}, list(t, s))
	d.set(p2p("web", 10))
	d.tell("instance-started", "web")
	requireNext(t, s, "web", fabric.Live)

	l.touch("web_net0")
	l.taken(t)
	l.remove("web_net0")
	l.taken(t)
	requireQuiet(t, s)
	d.code("web", codeStopped)
	d.tell("instance-stopped", "web")
	requireNext(t, s, "web", fabric.Absent)
	l.add("web_net0", true)
	requireNext(t, s, "web", fabric.Live)
}

func TestStartThatGoesWrong(t *testing.T) {
	d, l := newDaemon(t).start(), newLinks()
	d.set(stopped(p2p("web", 10)))
	s := followLinks(t, d, l)
	for range 2 {
		l.add("web_net0", true)
		requireNext(t, s, "web", fabric.Live)
		l.remove("web_net0")
		requireNext(t, s, "web", fabric.Absent)
	}

	// A link that stays is no start for ever.
	l.add("web_net0", true)
	requireNext(t, s, "web", fabric.Live)
	s.mu.Lock()
	s.known["web"].until = time.Now()
	s.mu.Unlock()
	assert.Empty(t, list(t, s))
	l.touch("web_net0")
	l.taken(t)
	requireQuiet(t, s)
}

func TestLinkThatWasThereIsNoStart(t *testing.T) {
	d, l := newDaemon(t).start(), newLinks("web_net0")
	d.set(stopped(p2p("web", 10)))
	s := followLinks(t, d, l)
	l.touch("web_net0")
	l.taken(t)
	requireQuiet(t, s)
	assert.Empty(t, list(t, s))
	l.lose(func() { l.links["web_net0"] = nodeLink{99, true} }) // gone and come
	requireNext(t, s, "web", fabric.Live)
	l.lose(func() { delete(l.links, "web_net0") })
	requireNext(t, s, "web", fabric.Absent)
}

func TestLinkOfOneOfTwoProjects(t *testing.T) {
	d, l := newDaemon(t).start(), newLinks()
	d.set(stopped(p2p("web", 10)))
	d.set(stopped(in("shop", p2p("web", 11))))
	s := followLinks(t, d, l)
	l.add("web_net0", true)
	l.taken(t)
	requireQuiet(t, s)
	d.set(in("shop", p2p("web", 11)))
	d.send(map[string]any{"project": "shop"}, "instance-started", "/1.0/instances/web?project=shop", nil)
	assert.Equal(t, "203.0.113.11", requireNext(t, s, "web", fabric.Live).VM.NICs[0].Addresses[0].String())
}

func TestLook(t *testing.T) {
	d := newDaemon(t).start()
	d.set(p2p("web", 10))
	d.set(stopped(p2p("db", 11)))
	d.set(in("shop", p2p("web", 12)))
	d.set(in("shop", stopped(physical("mx", 13))))
	d.set(with(p2p("bad", 14), func(i *instance) { i.ExpandedDevices["eth0"]["host_name"] = "" }))
	d.set(foreign("plain"))
	look := func(t *testing.T, s *Source) {
		for name, want := range map[string]string{"web": "203.0.113.10", "db": "203.0.113.11", "shop_mx": "203.0.113.13"} {
			vm, ours, err := s.Describe(t.Context(), name)
			require.NoError(t, err, name)
			assert.True(t, ours)
			assert.Equal(t, want, vm.NICs[0].Addresses[0].String())
			assert.Equal(t, "lxd", vm.Origin)
		}
		for _, name := range []string{"plain", "nobody", "shop_db", "nowhere_web"} {
			_, ours, err := s.Describe(t.Context(), name)
			require.NoError(t, err, name)
			assert.False(t, ours, name)
		}
		_, _, err := s.Describe(t.Context(), "bad")
		require.ErrorContains(t, err, "instance bad: NIC device eth0 has no host_name")
	}
	t.Run("without a connection", func(t *testing.T) { look(t, New(Config{Socket: d.path})) })
	t.Run("with one", func(t *testing.T) {
		s := follow(t, d)
		list(t, s)
		look(t, s)
		vm, ours, err := s.Describe(t.Context(), "mx")
		require.NoError(t, err)
		assert.True(t, ours, "the only one of its name")
		assert.Equal(t, "mx", vm.Name)
		_, _, err = s.Describe(t.Context(), "shop_web")
		require.ErrorContains(t, err, "instance shop_web: its name is that of the instance in project default")
		d.fail("/1.0/instances/web", 500)
		_, _, err = s.Describe(t.Context(), "web")
		require.ErrorContains(t, err, "lxd: instance web: ")
	})
	t.Run("without LXD", func(t *testing.T) {
		_, _, err := New(Config{Socket: t.TempDir() + "/none"}).Describe(t.Context(), "web")
		require.ErrorContains(t, err, "start lxd")
	})
}
