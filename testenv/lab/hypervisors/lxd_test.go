package hypervisors_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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

// wire is a node's work for a port in a few lines.
func wire(t *testing.T, node *core.Host, port string, nic fabric.NIC) {
	t.Helper()
	gw := core.SmallCluster(1).Gateway
	require.NoError(t, node.SetUp(port))
	for _, a := range nic.Addresses {
		require.NoError(t, node.AddAddr(port, fabric.HostPrefix(gw.Addr(a))))
		require.NoError(t, node.AddRoute(fabric.HostPrefix(a), netip.Addr{}, port))
	}
	for _, p := range nic.Routes {
		require.NoError(t, node.AddRoute(p, nic.Via(p), port))
	}
}

func TestLXDRunsContainers(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "lxd")
	cluster := core.SmallCluster(1)
	_, top := labtest.Build(t, cluster)
	node := top.Nodes["node1"]
	lx, err := hypervisors.StartLXD(labtest.Soon(t), node, hypervisors.LXDOptions{})
	require.NoError(t, err)

	// One NIC of each kind.
	require.NoError(t, node.Netlink().LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "web_net1"}, PeerName: "web_peer1"}))
	nics := []fabric.NIC{
		{
			Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10")},
			Routes:    []netip.Prefix{netip.MustParsePrefix("198.51.100.0/29"), netip.MustParsePrefix("2001:db8:200::/64")},
			MAC:       fabric.MAC{0, 0x16, 0x3e, 0, 0, 0x0a}, MTU: 1400,
		},
		{Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.11"), netip.MustParseAddr("2001:db8:100::11")}, Kind: fabric.Veth},
	}
	c, err := lx.Launch(labtest.Soon(t), hypervisors.ContainerOptions{Name: "web", NICs: nics, Gateway: cluster.Gateway})
	require.NoError(t, err)
	reach := []netip.Addr{netip.MustParseAddr("198.51.100.5"), netip.MustParseAddr("2001:db8:200::5")}
	for n, nic := range nics {
		wire(t, node, fabric.PortName("web", n), nic)
		reach = append(reach, nic.Addresses...)
		for _, p := range nic.Prefixes() {
			via := node.Addr4()
			if p.Addr().Is6() {
				via = node.Addr6()
			}
			require.NoError(t, top.Core.AddRoute(p, via, "eth0"))
		}
	}
	require.NoError(t, c.WaitReady(labtest.Soon(t)))
	for _, a := range reach {
		_, err := top.Client.Ping(labtest.Soon(t), a)
		require.NoError(t, err)
	}
	for _, a := range nics[0].Addresses {
		conn, err := top.Client.Dial(labtest.Soon(t), "tcp", netip.AddrPortFrom(a, 7).String())
		require.NoError(t, err)
		_, err = fmt.Fprint(conn, "echo")
		require.NoError(t, err)
		back := make([]byte, 4)
		_, err = io.ReadFull(conn, back)
		require.NoError(t, err)
		assert.Equal(t, "echo", string(back))
		conn.Close()
		out, err := hypervisors.GuestRun(labtest.Soon(t), top.Client, a, "ping -c1 -W5 "+clientOf(a).String()+" && uname -n")
		require.NoError(t, err)
		assert.Contains(t, out, "1 packets received")
	}
	out, err := c.Exec(labtest.Soon(t), "ip", "link", "show", "eth0")
	require.NoError(t, err)
	assert.Contains(t, out, "00:16:3e:00:00:0a")
	assert.Contains(t, out, "mtu 1400")

	pid, err := c.Pid(labtest.Soon(t))
	require.NoError(t, err)
	require.NoError(t, lx.Kill())
	assert.False(t, labtest.Ended(pid), "containers outlive LXD")
	require.NoError(t, lx.Start(labtest.Soon(t)))
	state, err := c.State(labtest.Soon(t))
	require.NoError(t, err)
	assert.Equal(t, "Running", state)
	require.NoError(t, c.Shutdown(labtest.Soon(t)))
	assert.True(t, labtest.Ended(pid))
	_, err = c.Pid(labtest.Soon(t))
	require.ErrorIs(t, err, os.ErrProcessDone)
	assert.False(t, node.HasLink("web_net0"))
	assert.True(t, node.HasLink("web_peer1"), "it came back")

	require.NoError(t, c.Start(labtest.Soon(t)))
	require.NoError(t, c.Destroy(labtest.Soon(t)))
	require.NoError(t, c.Delete(labtest.Soon(t)))
}

// TestContainersMove moves one between servers that are no cluster, running and
// stopped.
func TestContainersMove(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "lxd")
	cluster := core.SmallCluster(2)
	_, top := labtest.Build(t, cluster)
	var lxs []*hypervisors.LXD
	for _, name := range []string{"node1", "node2"} {
		lx, err := hypervisors.StartLXD(labtest.Soon(t), top.Nodes[name], hypervisors.LXDOptions{})
		require.NoError(t, err)
		lxs = append(lxs, lx)
	}
	require.NoError(t, lxs[0].Trust(labtest.Soon(t), lxs[1]))
	require.NoError(t, lxs[1].Trust(labtest.Soon(t), lxs[0]))
	nic := fabric.NIC{Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10")}}
	c, err := lxs[0].Launch(labtest.Soon(t), hypervisors.ContainerOptions{Name: "web", NICs: []fabric.NIC{nic}, Gateway: cluster.Gateway})
	require.NoError(t, err)
	for i, args := range [][]string{{"--stateless"}, {"--stateless"}, {}} {
		from, to := lxs[i%2], lxs[1-i%2]
		if len(args) == 0 {
			require.NoError(t, c.Destroy(labtest.Soon(t)))
		}
		require.NoError(t, c.Move(labtest.Soon(t), to, args...))
		assert.Equal(t, to, c.LXD())
		_, err := from.Lxc(labtest.Soon(t), "query", "/1.0/instances/web")
		require.ErrorContains(t, err, "not found")
		if len(args) == 0 {
			require.NoError(t, c.Start(labtest.Soon(t)))
		}
		require.NoError(t, c.WaitReady(labtest.Soon(t)))
		wire(t, to.Host(), "web_net0", nic)
		for _, a := range nic.Addresses {
			_, err := to.Host().Ping(labtest.Soon(t), a)
			require.NoError(t, err)
		}
	}
}

func TestLXDsKeepToTheirHosts(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "lxd")
	lab := labtest.New(t)
	var pids []int
	for _, name := range []string{"a", "b"} {
		h, err := lab.AddHost(name)
		require.NoError(t, err)
		lx, err := hypervisors.StartLXD(labtest.Soon(t), h, hypervisors.LXDOptions{})
		require.NoError(t, err)
		name, err := lx.Lxc(labtest.Soon(t), "query", "/1.0")
		require.NoError(t, err)
		assert.Contains(t, name, fmt.Sprintf(`"server_name": %q`, h.Name()))
		_, err = lx.Lxc(labtest.Soon(t), "project", "create", "shop", "-c", "features.images=true", "-c", "features.profiles=false")
		require.NoError(t, err)
		for _, project := range []string{"", "shop"} {
			c, err := lx.Launch(labtest.Soon(t), hypervisors.ContainerOptions{Name: "web", Project: project, Config: map[string]string{"user.note": name[:2]}})
			require.NoError(t, err)
			pid, err := c.Pid(labtest.Soon(t))
			require.NoError(t, err)
			pids = append(pids, pid)
		}
		pids = append(pids, lx.Daemon().Pid())
		assert.DirExists(t, lx.RunDir())
		assert.FileExists(t, lx.Socket())
	}
	groups := controlGroupsOf(t, lab.ID())
	assert.NotEmpty(t, groups)
	require.NoError(t, lab.Close())
	for _, pid := range pids {
		assert.True(t, labtest.Ended(pid))
	}
	assert.Empty(t, controlGroupsOf(t, lab.ID()))
	assert.NoDirExists(t, lab.Dir())
}

// controlGroupsOf lists the control groups of a lab, wherever they are.
func controlGroupsOf(t *testing.T, lab string) (found []string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/mounts")
	require.NoError(t, err)
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); fields[2] == "cgroup2" {
			_ = filepath.WalkDir(fields[1], func(path string, _ os.DirEntry, err error) error {
				if err == nil && strings.Contains(filepath.Base(path), lab) {
					found = append(found, path)
				}
				return nil
			})
		}
	}
	return found
}

// lxdChildEnv makes a test of this binary, run again, the owner of a lab that is
// to die.
const lxdChildEnv = "VMFABRIC_TESTENV_LXD_CHILD"

// TestChildOwnsALXD is run by another test in a process of its own.
func TestChildOwnsALXD(t *testing.T) {
	if os.Getenv(lxdChildEnv) == "" {
		t.Skip("run by another test")
	}
	ctx := context.Background()
	lab, err := core.New(ctx, core.Options{Name: "orphan"})
	require.NoError(t, err)
	h, err := lab.AddHost("h")
	require.NoError(t, err)
	lx, err := hypervisors.StartLXD(ctx, h, hypervisors.LXDOptions{})
	require.NoError(t, err)
	c, err := lx.Launch(ctx, hypervisors.ContainerOptions{Name: "web"})
	require.NoError(t, err)
	pid, err := c.Pid(ctx)
	require.NoError(t, err)
	fmt.Println("OWNS", lab.ID(), lab.Dir(), lx.Daemon().Pid(), pid)
	select {}
}

func TestLXDIsCleanedUpAfterItsOwner(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "lxd")
	labtest.New(t) // skips or fails where labs cannot be made
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestChildOwnsALXD$", "-test.v")
	cmd.Env = append(os.Environ(), lxdChildEnv+"=1")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	var id, dir string
	var daemon, guest int
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if _, rest, ok := strings.Cut(lines.Text(), "OWNS "); ok {
			_, err := fmt.Sscan(rest, &id, &dir, &daemon, &guest)
			require.NoError(t, err)
			break
		}
	}
	require.NotEmpty(t, id, "the child said nothing")
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	require.Eventually(t, func() bool {
		_, err := os.Stat(dir)
		return os.IsNotExist(err) && labtest.Ended(daemon) && labtest.Ended(guest) && len(controlGroupsOf(t, id)) == 0
	}, 20*time.Second, 10*time.Millisecond)
}
