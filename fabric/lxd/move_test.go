package lxd

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// side is a node of a move: what its source tells is taken at once and kept,
// and ports of the fabric are made when they are wanted, as an agent does.
type side struct {
	*real

	mu   sync.Mutex
	now  states
	told []note // without repetitions
}

// note is what a guest was told to be.
type note struct {
	at    time.Time
	vm    string
	state fabric.State
}

func newSide(r *real) *side {
	s := &side{real: r, now: maps.Clone(r.now)}
	ctx, cancel := context.WithCancel(r.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case c := <-r.Changes():
				s.heed(ctx, c)
			}
		}
	})
	r.t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return s
}

func (s *side) heed(ctx context.Context, c fabric.Change) {
	if c.Gone {
		assert.Fail(s.t, "a guest that moves is gone for good", "%s: %+v", s.host.Name(), c.Guest.VM)
	}
	guests := []fabric.Desired{c.Guest}
	if c.Lost {
		var err error
		if guests, err = s.Guests(ctx); err != nil {
			return
		}
	}
	for _, d := range guests {
		s.wire(d)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.Lost {
		clear(s.now)
	}
	for _, d := range guests {
		name := d.VM.Name
		delete(s.now, name)
		if d.State != fabric.Absent {
			s.now[name] = d.State
		}
		if s.last(name).state != d.State {
			s.told = append(s.told, note{time.Now(), name, d.State})
		}
	}
}

// wire makes the ports of a guest that are the fabric's to make.
func (s *side) wire(d fabric.Desired) {
	if d.State == fabric.Absent {
		return
	}
	for n, nic := range d.VM.NICs {
		if name := fabric.PortName(d.VM.Name, n); nic.Kind == fabric.Veth && !s.host.HasLink(name) {
			at := netlink.NewLinkAttrs()
			at.Name, at.Flags = name, net.FlagUp
			assert.NoError(s.t, s.host.Netlink().LinkAdd(&netlink.Veth{LinkAttrs: at, PeerName: fabric.PeerName(d.VM.Name, n)}))
		}
	}
}

// last gives the last that was told of a guest. s.mu is held.
func (s *side) last(vm string) note {
	for _, n := range slices.Backward(s.told) {
		if n.vm == vm {
			return n
		}
	}
	return note{vm: vm, state: fabric.Absent}
}

// since gives what was told of a guest since a time, and when the last was.
func (s *side) since(began time.Time, vm string) (told string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var words []string
	for _, n := range s.told {
		if n.vm == vm && n.at.After(began) {
			words, at = append(words, n.state.String()), n.at
		}
	}
	return strings.Join(words, ", "), at
}

// moved checks what both sides told of a guest that moved, by patterns. Between the start of
// a container and its first list its link may come up: then it was never seen wired.
func (s *side) moved(t *testing.T, to *side, began time.Time, vm string, wantFrom, wantTo string) {
	t.Helper()
	from, left := s.since(began, vm)
	there, came := to.since(began, vm)
	assert.Regexp(t, "^"+wantFrom+"$", from, "source, of %s", vm)
	assert.Regexp(t, "^"+wantTo+"$", there, "destination, of %s", vm)
	t.Logf("%s: absent at the source %v after it was live at the destination", vm, left.Sub(came).Round(time.Millisecond))
}

// settles waits until the guests of a side are these, and checks that nothing
// more comes and that a list says the same.
func (s *side) settles(t *testing.T, want states) {
	t.Helper()
	is := func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !maps.Equal(s.now, want) {
			return fmt.Errorf("%s: want %v, have %v", s.host.Name(), want, s.now)
		}
		return nil
	}
	require.NoError(t, core.Until(s.soon(), is))
	time.Sleep(300 * time.Millisecond) // for what should not come
	require.NoError(t, is())
	guests, err := s.Guests(s.soon())
	require.NoError(t, err)
	listed := states{}
	for _, d := range guests {
		listed[d.VM.Name] = d.State
	}
	assert.Equal(t, want, listed, s.host.Name())
	assert.Empty(t, s.Diagnose(t.Context()))
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.told {
		assert.NotContains(t, n.vm, "lxd-move-of", s.host.Name())
	}
}

// sides starts two LXD that follow, and that know each other.
func sides(t *testing.T, cluster bool) (a, b *side) {
	needLXD(t)
	_, top := labtest.Build(t, core.SmallCluster(2))
	one, two := top.Nodes["node1"], top.Nodes["node2"]
	lx, err := hypervisors.StartLXD(t.Context(), one, hypervisors.LXDOptions{})
	require.NoError(t, err)
	var o hypervisors.LXDOptions
	if cluster {
		_, err := lx.Lxc(t.Context(), "config", "set", "core.https_address", netip.AddrPortFrom(one.Addr4(), 8443).String())
		require.NoError(t, err)
		_, err = lx.Lxc(t.Context(), "cluster", "enable", "node1")
		require.NoError(t, err)
		o, err = lx.Invite(t.Context(), two)
		require.NoError(t, err)
	}
	lx2, err := hypervisors.StartLXD(t.Context(), two, o)
	require.NoError(t, err)
	if !cluster {
		require.NoError(t, lx.Trust(t.Context(), lx2))
		require.NoError(t, lx2.Trust(t.Context(), lx))
	}
	return newSide(followReal(t, one, lx)), newSide(followReal(t, two, lx2))
}

var (
	webNIC = nicOf("", "203.0.113.10", "2001:db8:100::10")
	dbNIC  = nicOf(fabric.Veth, "203.0.113.11", "2001:db8:100::11")
)

// Between servers that are no cluster, a container that runs is started at the
// destination before it is stopped at the source.
func TestRealMovesBetweenServers(t *testing.T) {
	a, b := sides(t, false)
	db, err := a.lx.Init(a.soon(), hypervisors.ContainerOptions{Name: "db", NICs: []fabric.NIC{dbNIC}})
	require.NoError(t, err)
	a.settles(t, states{"db": fabric.Wired})
	for _, mode := range []string{"pull", "push", "relay"} {
		require.NoError(t, db.Move(a.soon(), b.lx, "--mode", mode))
		a.settles(t, states{})
		b.settles(t, states{"db": fabric.Wired})
		require.NoError(t, db.Move(a.soon(), a.lx, "--mode", mode))
		b.settles(t, states{})
		a.settles(t, states{"db": fabric.Wired})
	}
	require.NoError(t, db.Start(a.soon()))
	web, err := a.lx.Launch(a.soon(), hypervisors.ContainerOptions{Name: "web", NICs: []fabric.NIC{webNIC}})
	require.NoError(t, err)
	a.settles(t, states{"db": fabric.Live, "web": fabric.Live})
	for i, to := range []*side{b, a, b} {
		from, began := []*side{a, b}[i%2], time.Now()
		require.NoError(t, web.Move(a.soon(), to.lx, "--stateless"))
		from.settles(t, states{"db": fabric.Live})
		to.settles(t, states{"web": fabric.Live})
		from.moved(t, to, began, "web", "absent", "live")

		require.NoError(t, db.Move(a.soon(), to.lx, "--stateless"))
		from.settles(t, states{})
		to.settles(t, states{"db": fabric.Live, "web": fabric.Live})
		from.moved(t, to, began, "db", "wired, absent", "(wired, )?live")
	}

	// One that cannot start there stays.
	_, err = a.host.Run(a.soon(), "ip", "link", "add", "web_net0", "type", "bridge")
	require.NoError(t, err)
	began := time.Now()
	require.Error(t, web.Move(a.soon(), a.lx, "--stateless"))
	b.settles(t, states{"db": fabric.Live, "web": fabric.Live})
	a.settles(t, states{})
	b.moved(t, a, began, "web", "", "")
}

// The members of a cluster hear of each other's guests.
func TestRealMovesInACluster(t *testing.T) {
	a, b := sides(t, true)
	var cs []*hypervisors.Container
	for name, nic := range map[string]fabric.NIC{"web": webNIC, "db": dbNIC} {
		c, err := a.lx.Init(a.soon(), hypervisors.ContainerOptions{Name: name, NICs: []fabric.NIC{nic}, Target: "node1", Config: map[string]string{"cluster.evacuate": "migrate"}})
		require.NoError(t, err)
		cs = append(cs, c)
	}
	a.settles(t, states{"db": fabric.Wired})
	for range 2 {
		for _, c := range cs {
			a.lxc("move", c.Name(), "--target", "node2")
		}
		a.settles(t, states{})
		b.settles(t, states{"db": fabric.Wired})
		for _, c := range cs {
			a.lxc("move", c.Name(), "--target", "node1")
		}
		b.settles(t, states{})
		a.settles(t, states{"db": fabric.Wired})
	}
	for _, c := range cs {
		require.NoError(t, c.Start(a.soon()))
	}
	a.settles(t, states{"db": fabric.Live, "web": fabric.Live})
	for range 2 {
		began := time.Now()
		a.lxc("cluster", "evacuate", "node1", "--force")
		a.settles(t, states{})
		b.settles(t, states{"db": fabric.Live, "web": fabric.Live})
		a.moved(t, b, began, "web", "absent", "live")
		a.moved(t, b, began, "db", "wired, absent", "(wired, )?live")

		began = time.Now()
		a.lxc("cluster", "restore", "node1", "--force")
		b.settles(t, states{})
		a.settles(t, states{"db": fabric.Live, "web": fabric.Live})
		b.moved(t, a, began, "web", "absent", "live")
		b.moved(t, a, began, "db", "wired, absent", "(wired, )?live")
	}

	// One that the cluster does not move is stopped where it is.
	a.lxc("config", "set", "web", "cluster.evacuate=stop")
	a.lxc("cluster", "evacuate", "node1", "--force")
	a.settles(t, states{})
	b.settles(t, states{"db": fabric.Live})
	a.lxc("cluster", "restore", "node1", "--force")
	b.settles(t, states{})
	a.settles(t, states{"db": fabric.Live, "web": fabric.Live})
}
