package hypervisors_test

import (
	"context"
	"net/netip"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/executable"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// moving is two nodes with a libvirtd each, and a hook that makes ports.
type moving struct {
	t       *testing.T
	cluster fabric.Cluster
	top     *core.Topology
	lvs     []*hypervisors.Libvirt
}

func newMoving(t *testing.T) *moving {
	labtest.Need(t, "qemu")
	m := &moving{t: t, cluster: core.SmallCluster(2)}
	_, m.top = labtest.Build(t, m.cluster)
	script := filepath.Join(t.TempDir(), "hook")
	require.NoError(t, executable.Write(script, []byte(hook)))
	for _, name := range []string{"node1", "node2"} {
		lv, err := hypervisors.StartLibvirt(labtest.Soon(t), m.top.Nodes[name], hypervisors.LibvirtOptions{Hook: script})
		require.NoError(t, err)
		m.lvs = append(m.lvs, lv)
	}
	return m
}

var moved = []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10")}

// define makes the guest known to the first node.
func (m *moving) define(transient bool) *hypervisors.Domain {
	m.t.Helper()
	d, err := m.lvs[0].Define(labtest.Soon(m.t), hypervisors.DomainOptions{
		Name: "web", NICs: []hypervisors.DomainNIC{{NIC: fabric.NIC{Addresses: moved}}}, Gateway: m.cluster.Gateway, Transient: transient,
	})
	require.NoError(m.t, err)
	return d
}

// route has the core gateway find the guest where it is.
func (m *moving) route(d *hypervisors.Domain) {
	m.t.Helper()
	node := d.Libvirt().Host()
	require.NoError(m.t, m.top.Core.AddRoute(fabric.HostPrefix(moved[0]), node.Addr4(), "eth0"))
	require.NoError(m.t, m.top.Core.AddRoute(fabric.HostPrefix(moved[1]), node.Addr6(), "eth0"))
}

// reached reports whether the guest answers both its addresses. One that hangs,
// as emulated guests do now and then after a migration, is started anew.
func (m *moving) reached(d *hypervisors.Domain) {
	m.t.Helper()
	m.route(d)
	hung, err := d.Hung(labtest.Soon(m.t))
	require.NoError(m.t, err)
	if hung {
		m.t.Log("the guest hangs")
		require.NoError(m.t, d.Destroy(labtest.Soon(m.t)))
		require.NoError(m.t, d.Start(labtest.Soon(m.t)))
		require.NoError(m.t, d.WaitReady(labtest.Soon(m.t)))
	}
	for _, a := range moved {
		_, err := m.top.Client.Ping(labtest.Soon(m.t), a)
		require.NoError(m.t, err)
	}
}

// TestMigrations moves a guest to and fro in every way.
func TestMigrations(t *testing.T) {
	t.Parallel()
	m := newMoving(t)
	for _, transient := range []bool{false, true} {
		d := m.define(transient)
		require.NoError(t, d.Start(labtest.Soon(t)))
		require.NoError(t, d.WaitReady(labtest.Soon(t)))
		m.reached(d)
		to := 1
		ways := []hypervisors.MigrateOptions{{}, {Transport: hypervisors.Direct}, {Transport: hypervisors.Tunnelled}, {PostCopy: true, Bandwidth: 8}}
		if transient {
			ways = ways[:2]
		}
		for _, o := range ways {
			mig := d.StartMigration(labtest.Soon(t), m.lvs[to], o)
			if o.PostCopy {
				require.NoError(t, mig.Copying(labtest.Soon(t)))
				require.NoError(t, mig.PostCopy(labtest.Soon(t)))
			}
			require.NoError(t, mig.Wait(), "%+v", o)
			assert.Equal(t, m.lvs[to], d.Libvirt())
			down, err := d.Downtime(labtest.Soon(t))
			if o.PostCopy && err != nil { // else it had copied all before it was told to
				require.ErrorContains(t, err, "nothing of a downtime")
			} else {
				require.NoError(t, err, "%+v", o)
				assert.Positive(t, down)
			}
			require.NoError(t, d.Locate(labtest.Soon(t), m.lvs...))
			assert.Equal(t, m.lvs[to], d.Libvirt())
			m.reached(d)
			to = 1 - to
		}
		// Paused, it arrives paused.
		require.NoError(t, d.Pause(labtest.Soon(t)))
		_, err := d.Hung(labtest.Soon(t))
		require.ErrorContains(t, err, "domain web is paused")
		require.NoError(t, d.StartMigration(labtest.Soon(t), m.lvs[to], hypervisors.MigrateOptions{}).Wait())
		state, err := d.State(labtest.Soon(t))
		require.NoError(t, err)
		assert.Equal(t, "paused", state)
		require.NoError(t, d.Resume(labtest.Soon(t)))
		m.reached(d)

		to = 1 - to
		if !transient {
			require.NoError(t, d.Shutdown(labtest.Soon(t)))
			require.Error(t, d.Locate(labtest.Soon(t), m.lvs...), "it runs nowhere")
			require.NoError(t, d.StartMigration(labtest.Soon(t), m.lvs[to], hypervisors.MigrateOptions{Offline: true}).Wait())
			state, err = d.State(labtest.Soon(t))
			require.NoError(t, err)
			assert.Equal(t, "shut off", state)
			_, err = m.lvs[1-to].Virsh(labtest.Soon(t), "undefine", "web")
			require.ErrorContains(t, err, "failed to get domain", "it is not defined where it was")
			require.NoError(t, d.Start(labtest.Soon(t)))
			require.NoError(t, d.WaitReady(labtest.Soon(t)))
			m.reached(d)
			to = 1 - to
		}
		// Saved here, restored there.
		file := filepath.Join(t.TempDir(), "web.save")
		require.NoError(t, d.Save(labtest.Soon(t), file))
		require.NoError(t, d.Restore(labtest.Soon(t), m.lvs[to], file))
		m.reached(d)
		require.NoError(t, d.Shutdown(labtest.Soon(t)))
		require.Error(t, d.Locate(labtest.Soon(t), m.lvs...), "it runs nowhere")
		if !transient {
			_, err = m.lvs[1-to].Virsh(labtest.Soon(t), "undefine", "web")
			require.NoError(t, err)
		}
	}
}

// TestFailedMigrations: the guest stays where it was.
func TestFailedMigrations(t *testing.T) {
	t.Parallel()
	m := newMoving(t)
	d := m.define(false)
	require.NoError(t, d.Start(labtest.Soon(t)))
	require.NoError(t, d.WaitReady(labtest.Soon(t)))
	for what, fail := range map[string]func(mig *hypervisors.Migration) error{
		"aborted": func(mig *hypervisors.Migration) error { return mig.Abort(labtest.Soon(t)) },
		"destination's QEMU killed": func(*hypervisors.Migration) error {
			pid, err := m.lvs[1].GuestPid("web")
			if err != nil {
				return err
			}
			return syscall.Kill(pid, syscall.SIGKILL)
		},
		"destination's libvirtd killed": func(*hypervisors.Migration) error { return m.lvs[1].Kill() },
	} {
		mig := d.StartMigration(labtest.Soon(t), m.lvs[1], hypervisors.MigrateOptions{Bandwidth: 4})
		require.NoError(t, mig.Copying(labtest.Soon(t)), what)
		require.NoError(t, fail(mig), what)
		require.Error(t, mig.Wait(), what)
		require.Error(t, mig.Abort(labtest.Soon(t)), "it is over")
		if !m.lvs[1].Daemon().Running() {
			require.NoError(t, m.lvs[1].Start(labtest.Soon(t)))
		}
		require.NoError(t, core.Until(labtest.Soon(t), func() error { return d.Locate(labtest.Soon(t), m.lvs...) }), what)
		assert.Equal(t, m.lvs[0], d.Libvirt(), what)
		m.reached(d)
	}
}

// TestHungGuest tells a guest that stands still from one that is cut off.
func TestHungGuest(t *testing.T) {
	t.Parallel()
	m := newMoving(t)
	d := m.define(false)
	require.NoError(t, d.Start(labtest.Soon(t)))
	require.NoError(t, d.WaitReady(labtest.Soon(t)))
	node := d.Libvirt().Host()
	check := func(want bool, what string) {
		t.Helper()
		hung, err := d.Hung(labtest.Soon(t))
		require.NoError(t, err)
		assert.Equal(t, want, hung, what)
	}
	check(false, "nobody else has a route to it")
	require.NoError(t, node.SetDown("web_net0"))
	check(false, "its cable is cut")
	require.NoError(t, node.SetUp("web_net0"))
	_, err := node.Run(labtest.Soon(t), "ip", "route", "add", moved[0].String(), "dev", "web_net0")
	require.NoError(t, err)
	m.route(d)

	// Its kernel ends, and stays so. libvirt does not see that.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err = hypervisors.GuestRun(ctx, m.top.Client, moved[0], "echo 0 > /proc/sys/kernel/panic; echo c > /proc/sysrq-trigger")
	require.Error(t, err)
	check(true, d.Console())
	state, err := d.State(labtest.Soon(t))
	require.NoError(t, err)
	assert.Equal(t, "running", state)
}
