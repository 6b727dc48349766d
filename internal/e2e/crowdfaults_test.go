package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
)

// roomForMany adds a pool for the guests of a crowd.
func roomForMany(c *fabric.Cluster) {
	c.Pools = append(c.Pools, fabric.Pool{Name: "many4", Prefix: netip.MustParsePrefix("198.18.0.0/16")})
}

// inCrowd is one guest of many.
func inCrowd(n int) fabric.VM {
	return fabric.VM{Name: fmt.Sprint("c", n), NICs: []fabric.NIC{{Kind: fabric.Tap, Addresses: []netip.Addr{
		netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)}), netip.MustParseAddr(fmt.Sprintf("2001:db8:100::1:%x", n)),
	}}}}
}

// TestFaultsOfTheCrowd: very many guests, hooks, changes and cycles at once.
func TestFaultsOfTheCrowd(t *testing.T) {
	t.Parallel()
	o := underFaults(t, options{change: roomForMany})
	o.suffers("netlink overrun", func() time.Time {
		o.overrun("node1", whole(1000, 100))
		return time.Now()
	})
	guests, atOnce := whole(1000, 40), whole(200, 20)
	o.suffersAnd("many guests at once", func() (time.Time, string) {
		up := o.hooksOf("node1", guests, atOnce, "prepare", "start", "started")
		var all []netip.Prefix
		for n := range guests {
			all = append(all, inCrowd(n).Prefixes()...)
		}
		o.coreHas(o.top.Nodes["node1"], all...)
		down := o.hooksOf("node1", guests, atOnce, "stopped", "release")
		o.coreLacks(all...)
		return time.Now(), fmt.Sprintf("%d guests up in %v and down in %v", guests, up.Round(time.Second), down.Round(time.Second))
	})
	o.suffersAnd("many cycles", func() (time.Time, string) { return o.cycles("node1", whole(3000, 120)) })
	assert.ElementsMatch(t, []string{"link webnode1_net0", "route 203.0.113.10/32", "route 2001:db8:100::a/128", filepath.Join(o.top.Nodes["node1"].Dir(), "state", "guests", "webnode1.json")}, o.leftOn(o.top.Nodes["node1"]))
}

// hooksOf runs hooks of libvirt for each of so many guests, so many guests at a time, and
// says how long all took.
func (o *ordeal) hooksOf(node string, guests, atOnce int, ops ...string) time.Duration {
	o.t.Helper()
	began := time.Now()
	places, errs := make(chan struct{}, atOnce), make([]error, guests)
	var running sync.WaitGroup
	for n := range guests {
		places <- struct{}{}
		running.Go(func() {
			defer func() { <-places }()
			for _, op := range ops {
				if errs[n] = o.hook(node, inCrowd(n), op); errs[n] != nil {
					return
				}
			}
		})
	}
	running.Wait()
	for _, err := range errs {
		require.NoError(o.t, err)
	}
	return time.Since(began)
}

// hook runs the hook of a node as libvirt does. The guest's process has its tap from prepare
// to stopped.
func (o *ordeal) hook(node string, vm fabric.VM, op string) error {
	xml := fmt.Sprintf(`<domain type='kvm'><name>%s</name><metadata><fabric:vm xmlns:fabric="urn:vmfabric:domain:1"><fabric:nic>`+
		`<fabric:address>%s</fabric:address><fabric:address>%s</fabric:address></fabric:nic></fabric:vm></metadata>`+
		`<devices><interface type='ethernet'><target dev='%s' managed='no'/></interface></devices></domain>`,
		vm.Name, vm.NICs[0].Addresses[0], vm.NICs[0].Addresses[1], fabric.PortName(vm.Name, 0))
	cmd := exec.Command(hookProgram, vm.Name, op, "begin", "-")
	cmd.Stdin, cmd.Env = strings.NewReader(xml), append(os.Environ(), "VMFABRIC_SOCKET="+o.agents[node].socket)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s of %s: %w: %s", op, vm.Name, err, out)
	}
	switch op {
	case "prepare":
		f, err := holdTap(o.agents[node].node, fabric.PortName(vm.Name, 0))
		o.processes.Store(vm.Name, f)
		return err
	case "stopped":
		f, _ := o.processes.LoadAndDelete(vm.Name)
		return f.(*os.File).Close()
	}
	return nil
}

// coreLacks waits until the core gateway has none of the prefixes.
func (o *ordeal) coreLacks(ps ...netip.Prefix) {
	o.t.Helper()
	for _, p := range ps {
		o.eventually(p.String()+" is gone", func() error {
			if _, there, err := o.top.Core.Route(p); there || err != nil {
				return fmt.Errorf("core has %s %w", p, err)
			}
			return nil
		})
	}
}

// overrun makes and removes so many links, addresses and routes on a node whose agent has
// room for a few notifications alone, and meanwhile changes something of a port.
func (o *ordeal) overrun(node string, count int) {
	t, a := o.t, o.agents[node]
	t.Helper()
	sockets := a.shrink()
	before := a.overruns(sockets)
	var batch strings.Builder
	for n := range count / 2 {
		fmt.Fprintf(&batch, "link add bx%d type veth peer name by%[1]d\nlink set bx%[1]d up\naddr add 172.16.%d.%d/32 dev bx%[1]d\nroute add 172.17.%[2]d.%[3]d/32 dev bx%[1]d\n", n, n>>8, n&255)
		if n == count/4 {
			batch.WriteString("link set webnode1_net0 group 0\n")
		}
	}
	for n := range count / 2 {
		fmt.Fprintf(&batch, "link del bx%d\n", n)
	}
	file := filepath.Join(t.TempDir(), "batch")
	require.NoError(t, os.WriteFile(file, []byte(batch.String()), 0o600))
	_, err := a.node.Run(soon(t), "ip", "-batch", file)
	require.NoError(t, err)
	require.Greater(t, a.overruns(sockets), before, "no notification was lost")
	o.eventually("the port is repaired", func() error {
		l, err := a.node.Link("webnode1_net0")
		if err == nil && l.Attrs().Group != fabric.LinkGroup {
			err = fmt.Errorf("its group is %d", l.Attrs().Group)
		}
		return err
	})
	o.comesAndGoes(node, "after")
}

// shrink leaves the agent's sockets for notifications of rtnetlink as little room as the
// kernel allows, and gives their inodes.
func (a *agent) shrink() (inodes []string) {
	t := a.s.t
	t.Helper()
	for inode, s := range a.netlinkSockets() {
		if s.groups != 0 {
			inodes = append(inodes, inode)
		}
	}
	require.NotEmpty(t, inodes)
	pidfd, err := unix.PidfdOpen(a.Pid(), 0)
	require.NoError(t, err)
	defer unix.Close(pidfd)
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", a.Pid()))
	require.NoError(t, err)
	for _, f := range files {
		is, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", a.Pid(), f.Name()))
		if !slices.Contains(inodes, strings.TrimSuffix(strings.TrimPrefix(is, "socket:["), "]")) {
			continue
		}
		number, err := strconv.Atoi(f.Name())
		require.NoError(t, err)
		fd, err := unix.PidfdGetfd(pidfd, number, 0)
		require.NoError(t, err)
		require.NoError(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0))
		require.NoError(t, unix.Close(fd))
	}
	return inodes
}

// netlinkSocket is one of NETLINK_ROUTE.
type netlinkSocket struct {
	groups uint64
	drops  int
}

// netlinkSockets lists those of the agent's namespace by their inodes: its columns are sk,
// Eth, Pid, Groups, Rmem, Wmem, Dump, Locks, Drops and Inode.
func (a *agent) netlinkSockets() map[string]netlinkSocket {
	a.s.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/netlink", a.Pid()))
	require.NoError(a.s.t, err)
	all := map[string]netlinkSocket{}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 10 && f[1] == "0" {
			groups, _ := strconv.ParseUint(f[3], 16, 32)
			drops, _ := strconv.Atoi(f[8])
			all[f[9]] = netlinkSocket{groups, drops}
		}
	}
	return all
}

// overruns counts the notifications that sockets had no room for.
func (a *agent) overruns(inodes []string) (n int) {
	all := a.netlinkSockets()
	for _, i := range inodes {
		n += all[i].drops
	}
	return n
}

// resources is what a process has of its machine.
type resources struct{ memory, files, threads int }

func (a *agent) has() (r resources) {
	t := a.s.t
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.Pid()))
	require.NoError(t, err)
	for line := range strings.Lines(string(status)) {
		_, _ = fmt.Sscanf(line, "VmRSS: %d kB", &r.memory)
		_, _ = fmt.Sscanf(line, "Threads: %d", &r.threads)
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", a.Pid()))
	require.NoError(t, err)
	r.files = len(files)
	return r
}

// cycles attaches and detaches guests, four at a time, and compares what the agent has
// after a third of it with what it has at the end.
func (o *ordeal) cycles(node string, count int) (over time.Time, more string) {
	o.t.Helper()
	const atOnce = 4
	a := o.agents[node]
	round := func(n int) {
		var running sync.WaitGroup
		for g := range atOnce {
			running.Go(func() {
				for range n / atOnce {
					for _, op := range []hooks.Op{hooks.Live, hooks.Remove} {
						_, err := a.try(hooks.Request{Op: op, VM: inCrowd(g)})
						assert.NoError(o.t, err)
					}
				}
			})
		}
		running.Wait()
	}
	round(count / 3)
	first := a.has()
	round(count / 3)
	round(count / 3)
	last := a.has()
	assert.LessOrEqual(o.t, last.files, first.files+atOnce, "open files")
	assert.LessOrEqual(o.t, last.threads, first.threads+atOnce, "threads")
	assert.LessOrEqual(o.t, last.memory, first.memory*5/4+8<<10, "kB of memory")
	return time.Now(), fmt.Sprintf("after %d and %d cycles %d and %d MB, %d and %d files", count/3, count, first.memory>>10, last.memory>>10, first.files, last.files)
}
