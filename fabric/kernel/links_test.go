package kernel_test

import (
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// await takes names until it is among them.
func await(t *testing.T, l *kernel.Links, name string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case <-l.Changed():
			if names, incomplete := l.Take(); slices.Contains(names, name) || incomplete {
				return
			}
		case <-deadline:
			require.FailNow(t, "no change of it", name)
		}
	}
}

func TestLinksAreFollowed(t *testing.T) {
	d := open(t)
	links := d.Links()
	index, _ := links.Link("web_net0")
	assert.Zero(t, index)
	require.NoError(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "web_net0"}, PeerName: "web_peer0"}))
	t.Cleanup(func() {
		if l, err := netlink.LinkByName("web_net0"); err == nil {
			_ = netlink.LinkDel(l)
		}
	})
	await(t, links, "web_net0")
	l, err := netlink.LinkByName("web_net0")
	require.NoError(t, err)
	index, paired := links.Link("web_net0")
	assert.Equal(t, l.Attrs().Index, index)
	assert.True(t, paired)

	guest := exec.Command("sleep", "60")
	guest.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	require.NoError(t, guest.Start())
	t.Cleanup(func() {
		_ = guest.Process.Kill()
		_ = guest.Wait()
	})
	peer, err := netlink.LinkByName("web_peer0")
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetNsPid(peer, guest.Process.Pid))
	index, paired = links.Link("web_net0")
	assert.Equal(t, l.Attrs().Index, index)
	assert.False(t, paired, "the other end is in use")

	require.NoError(t, netlink.LinkDel(l))
	await(t, links, "web_net0")
	index, _ = links.Link("web_net0")
	assert.Zero(t, index)
}

// TestLinkFoundWithoutCarrier: its owner had it in use before, so a guest that
// starts again differs from one that has died.
func TestLinkFoundWithoutCarrier(t *testing.T) {
	require.NoError(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "web_net0"}, PeerName: "web_peer0"}))
	t.Cleanup(func() {
		l, err := netlink.LinkByName("web_net0")
		require.NoError(t, err)
		require.NoError(t, netlink.LinkDel(l))
	})
	p := port("web", fabric.NIC{Kind: fabric.Adopt, Addresses: addrs("203.0.113.10", "2001:db8:100::10")})
	lost := func(d *kernel.Dataplane) bool {
		t.Helper()
		require.NoError(t, d.Put(t.Context(), p))
		ports, err := d.Actual(t.Context())
		require.NoError(t, err)
		require.Len(t, ports, 1)
		assert.False(t, ports[0].Carrier)
		return ports[0].Lost
	}
	first, err := kernel.New(t.Context(), kernel.Config{Cluster: "lab"})
	require.NoError(t, err)
	labtest.Running(t, first)
	assert.False(t, lost(first), "its guest is about to come")
	require.NoError(t, first.Close())
	second := open(t)
	assert.True(t, lost(second))
	require.NoError(t, second.Remove(t.Context(), p.Name))
}
