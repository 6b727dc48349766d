package lxd

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// followIncus is follow of a daemon that is an Incus.
func followIncus(t *testing.T, d *daemon) *Source {
	t.Helper()
	s := runWith(t, d, Config{Product: Incus})
	requireLost(t, s)
	return s
}

// told takes the next change, which is of an instance of Incus.
func told(t *testing.T, s *Source, name string, state fabric.State) {
	t.Helper()
	c := next(t, s)
	require.False(t, c.Lost)
	require.Equal(t, name+" "+state.String(), c.Guest.VM.Name+" "+c.Guest.State.String())
	require.Equal(t, "incus", c.Guest.VM.Origin)
}

// TestIncusMovesInACluster: Incus 6.0 reports a move within a cluster by one event, which
// is of the member that the instance left, to all members.
func TestIncusMovesInACluster(t *testing.T) {
	d := newDaemon(t)
	d.cluster("node1")
	d.start()
	d.set(stopped(physical("here", 10)))
	d.set(with(stopped(physical("there", 11)), func(i *instance) { i.Location = "node2" }))
	s := followIncus(t, d)
	assert.Equal(t, states{"here": fabric.Wired}, list(t, s))

	migrated := func(name, from, to string, n int) {
		d.set(with(stopped(physical(name, n)), func(i *instance) { i.Location = to }))
		d.send(map[string]any{"project": "default", "location": from}, "instance-migrated", "/1.0/instances/"+name, nil)
	}
	migrated("there", "node2", "node1", 11)
	told(t, s, "there", fabric.Wired) // so that the fabric makes its NIC before its start
	migrated("here", "node1", "node2", 10)
	told(t, s, "here", fabric.Absent)
	migrated("here", "node2", "node3", 10)
	told(t, s, "here", fabric.Absent)
	migrated("there", "node1", "node3", 11)
	told(t, s, "there", fabric.Absent)
	requireQuiet(t, s)
	assert.Empty(t, list(t, s))
}

// TestIncusInItsWords: what is said of an instance names Incus and its client.
func TestIncusInItsWords(t *testing.T) {
	d := newDaemon(t).start()
	d.set(ours("web", 10, device{"type": "nic", "nictype": "bridged", "parent": "br0"}))
	s := followIncus(t, d)
	list(t, s)
	require.Len(t, s.Diagnose(t.Context()), 1)
	assert.Equal(t, "incus: instance web: NIC device eth0 is bridged, which Incus connects itself; "+
		"incus config device remove web eth0 && incus config device add web eth0 nic nictype=p2p host_name=web_net0 name=eth0", s.Diagnose(t.Context())[0])
	assert.Equal(t, "incus", s.Status().Name)
	d.stop()
	require.Eventually(t, func() bool { return !s.Status().Connected }, patience, time.Millisecond)
	require.Eventually(t, func() bool { return strings.Contains(strings.Join(s.Diagnose(t.Context()), "\n"), "; start incus") }, patience, time.Millisecond)
}

// TestIncusByItself is found at its own place, and LXD's are left alone.
func TestIncusByItself(t *testing.T) {
	assert.Equal(t, []string{"/var/lib/incus/unix.socket"}, New(Config{Product: Incus}).daemon.Sockets)
	assert.NotContains(t, New(Config{}).daemon.Sockets, "/var/lib/incus/unix.socket")
	assert.Equal(t, "incus", New(Config{Product: Incus}).Name())
	assert.True(t, New(Config{Product: Incus}).MovesByRestart())
}

// TestOtherProduct: a daemon that says it is another is not followed, since its hook, and
// the source that is its own, name its guests by it.
func TestOtherProduct(t *testing.T) {
	for _, tt := range []struct {
		product       Product
		name, another string
	}{{LXD, "lxd", "incus"}, {Incus, "incus", "lxd"}} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDaemon(t)
			d.product = tt.another
			d.start()
			d.set(p2p("web", 10))
			s := runWith(t, d, Config{Product: tt.product})
			require.Eventually(t, func() bool { return len(s.Diagnose(t.Context())) == 1 }, patience, time.Millisecond)
			assert.Regexp(t, "^"+tt.name+`: no answer on \S+ since \S+ \(it is `+tt.another+`'s\); start the agent with --`+tt.another+" "+d.path+" in place of --"+tt.name+"$", s.Diagnose(t.Context())[0])
			_, err := s.Guests(t.Context())
			require.ErrorContains(t, err, "it is "+tt.another+"'s")
			assert.False(t, s.Status().Connected)

			d.stop()
			d.product = tt.name // the right one comes
			d.start()
			requireLost(t, s)
			assert.Len(t, list(t, s), 1)
			assert.Empty(t, s.Diagnose(t.Context()))
		})
	}
}
