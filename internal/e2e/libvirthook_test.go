package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestHookThatLibvirtdDoesNotKnow: libvirtd looks for hooks when it starts. That
// it knows ours not is said before the first guest fails to start.
func TestHookThatLibvirtdDoesNotKnow(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "qemu")
	s := start(t, options{noAgent: true})
	lv, err := hypervisors.StartLibvirt(soon(t), s.top.Nodes["node1"], hypervisors.LibvirtOptions{})
	require.NoError(t, err)
	a := s.agents["node1"]
	a.follow("--libvirt", lv.Socket(), lv.RunDir())
	const path = "/etc/libvirt/hooks/qemu.d/vmfabric"
	a.says("libvirt: there is no hook " + path)

	require.NoError(t, lv.InstallHook("qemu.d/vmfabric", hookProgram))
	a.says("may not know the hook "+path+", which came later", "systemctl restart libvirtd")
	// It was told to reload, which nobody can see but in what it does.
	d := s.domain(lv, "sea_gold", tap("203.0.113.10", "2001:db8:100::10"))
	require.NoError(t, d.Start(soon(t)))
	s.coreHas(s.top.Nodes["node1"], seaGold...)
	a.says()
	// An upgrade replaces the hook, and the agent.
	upgrade := func() {
		t.Helper()
		hook := filepath.Join(lv.HooksDir(), "qemu.d", "vmfabric")
		program, err := os.ReadFile(hook)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(hook+".new", program, 0o755))
		require.NoError(t, os.Rename(hook+".new", hook))
		require.NoError(t, a.Stop())
		a.start()
		s.connected(a)
		a.says()
	}
	upgrade()

	require.NoError(t, os.Chmod(filepath.Join(lv.HooksDir(), "qemu.d", "vmfabric"), 0o644))
	a.says("the hook "+path+" is not executable", "chmod 755 "+path)
	require.NoError(t, os.Chmod(filepath.Join(lv.HooksDir(), "qemu.d", "vmfabric"), 0o755))
	require.NoError(t, lv.Restart(soon(t)))
	s.connected(a)
	a.says()
	upgrade()
}

// connected waits until an agent follows libvirt.
func (s *system) connected(a *agent) {
	s.t.Helper()
	s.eventually("the agent follows libvirt", func() error {
		if st := a.status(); len(st.Sources) == 0 || !st.Sources[0].Connected {
			return os.ErrNotExist
		}
		return nil
	})
}
