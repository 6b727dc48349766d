package core_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

func TestHostsHaveTheirOwnKernelSettings(t *testing.T) {
	t.Parallel()
	lab := labtest.New(t)
	a, err := lab.AddHost("a")
	require.NoError(t, err)
	b, err := lab.AddHost("b")
	require.NoError(t, err)
	require.NoError(t, a.SetSysctls(map[string]string{"net.ipv4.conf.lo.rp_filter": "2"}))
	for h, want := range map[*core.Host]string{a: "2", b: "0"} {
		got, err := h.Sysctl("net.ipv4.conf.lo.rp_filter")
		require.NoError(t, err)
		assert.Equal(t, want, got, h.Name())
	}
}

func TestNamesOfHosts(t *testing.T) {
	t.Parallel()
	lab := labtest.New(t)
	_, err := lab.AddHost("twice")
	require.NoError(t, err)
	_, err = lab.AddHost("twice")
	assert.ErrorContains(t, err, "choose another name")
	for _, bad := range []string{"", "../x", "a b", ".hidden", strings.Repeat("x", 65)} {
		_, err := lab.AddHost(bad)
		assert.ErrorContains(t, err, "not a plain name", bad)
	}
	assert.Nil(t, lab.Host("never"))
	assert.Equal(t, "twice", lab.Host("twice").Name())
}

func TestDoReturnsWhateverHappens(t *testing.T) {
	t.Parallel()
	h, err := labtest.New(t).AddHost("h")
	require.NoError(t, err)
	sentinel := errors.New("said f")
	assert.ErrorIs(t, h.Do(func() error { return sentinel }), sentinel)
	assert.ErrorContains(t, h.Do(func() error { var tb testing.T; tb.SkipNow(); return nil }), "instead of returning")
}

func TestDialAndListenInHosts(t *testing.T) {
	t.Parallel()
	_, top := labtest.Build(t, core.SmallCluster(1))
	node := top.Nodes["node1"]
	for _, a := range []netip.Addr{node.Addr4(), node.Addr6()} {
		l, err := node.Listen("tcp", netip.AddrPortFrom(a, 7).String())
		require.NoError(t, err)
		go func() {
			c, err := l.Accept()
			if err == nil {
				_, _ = io.Copy(c, c)
				c.Close()
			}
		}()
		c, err := top.Client.Dial(labtest.Soon(t), "tcp", l.Addr().String())
		require.NoError(t, err)
		_, err = c.Write([]byte("hello"))
		require.NoError(t, err)
		require.NoError(t, c.(*net.TCPConn).CloseWrite())
		back, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.Equal(t, "hello", string(back))
		c.Close()
		l.Close()
	}
}

func TestDaemonEndsAsItIsTold(t *testing.T) {
	t.Parallel()
	h, err := labtest.New(t).AddHost("h")
	require.NoError(t, err)
	for _, tc := range []struct {
		name, script string
		end          func(*core.Daemon) error
		signal       syscall.Signal
	}{
		{"stop", `echo up; exec sleep 1000`, (*core.Daemon).Stop, syscall.SIGTERM},
		{"kill", `echo up; exec sleep 1000`, (*core.Daemon).Kill, syscall.SIGKILL},
		{"stop what will not hear", `trap "" TERM; echo up; while :; do sleep 1000; done`, (*core.Daemon).Stop, syscall.SIGKILL},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d, err := h.StartDaemon(strings.ReplaceAll(tc.name, " ", "-"), exec.Command("/bin/sh", "-c", tc.script))
			require.NoError(t, err)
			require.Eventually(t, func() bool { return d.Log() == "up\n" }, 20*time.Second, time.Millisecond)
			assert.True(t, d.Running())
			require.NoError(t, tc.end(d))
			assert.False(t, d.Running())
			var exit *exec.ExitError
			require.ErrorAs(t, d.Wait(), &exit)
			assert.Equal(t, tc.signal, exit.Sys().(syscall.WaitStatus).Signal())
			assert.NoError(t, tc.end(d), "again")
		})
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	t.Parallel()
	lab, err := core.New(t.Context(), core.Options{Name: "closed"})
	if errors.Is(err, os.ErrPermission) {
		labtest.New(t) // skips or fails
	}
	require.NoError(t, err)
	h, err := lab.AddHost("h")
	require.NoError(t, err)
	// A daemon, a child of it that it does not wait for, and a command.
	d, err := h.StartDaemon("parent", exec.Command("/bin/sh", "-c", "setsid sleep 1000 & echo $!; exec sleep 1000"))
	require.NoError(t, err)
	var child int
	require.Eventually(t, func() bool { n, _ := fmt.Sscan(d.Log(), &child); return n == 1 }, 20*time.Second, time.Millisecond)
	cmd := exec.Command("sleep", "1000")
	require.NoError(t, h.Start(cmd))

	require.NoError(t, lab.Close())
	assert.False(t, d.Running())
	assert.Error(t, cmd.Wait(), "killed")
	assert.True(t, labtest.Ended(child))
	assert.NoFileExists(t, h.NamespacePath())
	assert.NoDirExists(t, lab.Dir())
	assert.NoError(t, lab.Close(), "again")
	_, err = lab.AddHost("late")
	assert.Error(t, err)
}

func TestDumpShowsEverything(t *testing.T) {
	t.Parallel()
	lab, top := labtest.Build(t, core.SmallCluster(1))
	d, err := top.Core.StartDaemon("talker", exec.Command("echo", "word of the daemon"))
	require.NoError(t, err)
	require.NoError(t, d.Wait())
	var b bytes.Buffer
	lab.Dump(&b)
	for _, want := range []string{
		"=== node1 (vmf-" + lab.ID() + "-node1)", "10.10.0.21/24", "fd00:10:10::21/64",
		"route 0.0.0.0/0 via 10.10.0.1 dev eth0", "route ::/0 via fd00:10:10::1 dev eth0", "word of the daemon",
	} {
		assert.Contains(t, b.String(), want)
	}
}

// childEnv makes a test of this binary, run again, the owner of a lab that is
// to die.
const childEnv = "VMFABRIC_TESTENV_CHILD"

// TestChildOwnsALab is run by other tests in a process of its own.
func TestChildOwnsALab(t *testing.T) {
	if os.Getenv(childEnv) == "" {
		t.Skip("run by other tests")
	}
	lab, err := core.New(context.Background(), core.Options{Name: "orphan"})
	require.NoError(t, err)
	h, err := lab.AddHost("h")
	require.NoError(t, err)
	d, err := h.StartDaemon("parent", exec.Command("/bin/sh", "-c", "setsid sleep 1000 & exec sleep 1000"))
	require.NoError(t, err)
	fmt.Println("OWNS", lab.Dir(), h.NamespacePath(), d.Pid())
	select {}
}

type orphan struct {
	cmd            *exec.Cmd
	dir, namespace string
	daemon         int
}

func startOrphan(t *testing.T) orphan {
	t.Helper()
	labtest.New(t) // skips or fails where labs cannot be made
	var o orphan
	o.cmd = exec.Command("/proc/self/exe", "-test.run=^TestChildOwnsALab$", "-test.v")
	o.cmd.Env = append(os.Environ(), childEnv+"=1")
	out, err := o.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, o.cmd.Start())
	t.Cleanup(func() { _ = o.cmd.Process.Kill() })
	var seen bytes.Buffer
	buf := make([]byte, 1024)
	for {
		n, err := out.Read(buf)
		seen.Write(buf[:n])
		if _, rest, ok := strings.Cut(seen.String(), "OWNS "); ok && strings.Contains(rest, "\n") {
			_, err := fmt.Sscan(rest, &o.dir, &o.namespace, &o.daemon)
			require.NoError(t, err)
			return o
		}
		require.NoError(t, err, "child said %q", seen.String())
	}
}

func (o orphan) gone() bool {
	_, errDir := os.Stat(o.dir)
	_, errNs := os.Stat(o.namespace)
	return os.IsNotExist(errDir) && os.IsNotExist(errNs) && labtest.Ended(o.daemon)
}

func TestKeeperCleansUpAfterAKilledOwner(t *testing.T) {
	t.Parallel()
	o := startOrphan(t)
	require.NoError(t, o.cmd.Process.Kill())
	_ = o.cmd.Wait()
	require.Eventually(t, o.gone, 20*time.Second, 5*time.Millisecond)
}

func TestSweepCleansUpAfterAKilledOwnerAndKeeper(t *testing.T) {
	t.Parallel()
	o := startOrphan(t)
	living := labtest.New(t)
	keeper := childNamed(t, o.cmd.Process.Pid, "sh\x00-s\x00"+o.dir)
	require.NoError(t, syscall.Kill(keeper, syscall.SIGKILL))
	require.NoError(t, o.cmd.Process.Kill())
	_ = o.cmd.Wait()
	// Other tests make labs meanwhile, which sweeps too.
	_, err := core.Sweep()
	require.NoError(t, err)
	require.Eventually(t, o.gone, 20*time.Second, 5*time.Millisecond)
	assert.DirExists(t, living.Dir(), "the lab of a living owner stays")
}

// childNamed finds the child of a process by its arguments.
func childNamed(t *testing.T, parent int, name string) int {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
	require.NoError(t, err)
	for _, list := range lists {
		pids, err := os.ReadFile(list)
		require.NoError(t, err)
		for _, pid := range strings.Fields(string(pids)) {
			cmdline, _ := os.ReadFile("/proc/" + pid + "/cmdline")
			if string(cmdline) == name+"\x00" {
				var n int
				_, err := fmt.Sscan(pid, &n)
				require.NoError(t, err)
				return n
			}
		}
	}
	t.Fatalf("process %d has no child %s", parent, name)
	return 0
}

func TestNetnsDirOfChoice(t *testing.T) {
	t.Parallel()
	labtest.New(t) // skips or fails where labs cannot be made
	dir := filepath.Join(t.TempDir(), "netns")
	var labs []*core.Lab
	for range 2 {
		lab, err := core.New(t.Context(), core.Options{NetnsDir: dir})
		require.NoError(t, err)
		h, err := lab.AddHost("h")
		require.NoError(t, err)
		assert.Equal(t, filepath.Join(dir, h.Namespace()), h.NamespacePath())
		labs = append(labs, lab)
	}
	require.NoError(t, labs[0].Close())
	assert.NoError(t, labs[1].Host("h").Do(func() error { return nil }))
	require.NoError(t, labs[1].Close())
	assert.NoError(t, os.Remove(dir), "empty and no mount any more")
}

// TestSnifferHasWhatPassed: the frames that passed are there at once, however busy the
// machine is.
func TestSnifferHasWhatPassed(t *testing.T) {
	h, err := labtest.New(t).AddHost("h")
	require.NoError(t, err)
	conn, err := h.Dial(t.Context(), "udp", "127.0.0.1:9")
	require.NoError(t, err)
	defer conn.Close()
	for n := range 20 {
		sn, err := h.Sniff("lo", func(f core.Frame) bool { return f.Outgoing && len(f.Data) == 14+20+8+1 })
		require.NoError(t, err)
		sent := 0
		for range 50 {
			if _, err := conn.Write([]byte("x")); err == nil { // or it says that the one before was refused
				sent++
			}
		}
		if n%2 == 0 {
			require.Len(t, sn.Frames(), sent)
		}
		require.NoError(t, sn.Close())
		require.Len(t, sn.Frames(), sent)
	}
}
