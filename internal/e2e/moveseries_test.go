package e2e

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
)

// Series of moves take minutes. They are made by hand, and docs/performance.md has
// what came of them.
var (
	aborts    = flag.Int("aborts", 0, "how many migrations TestAbortedMoves aborts while the memory is copied, and a third as many after the guest has stopped")
	busyMoves = flag.Int("busymoves", 0, "how many moves TestBusyMoves makes on a machine whose processors are all taken")
)

// TestAbortedMoves aborts migrations one after the other, some while the memory is
// copied and some after the guest has stopped: the source alone announces it
// each time, and is without it for no longer than it stood still.
func TestAbortedMoves(t *testing.T) {
	if *aborts == 0 {
		t.Skip("give -aborts N")
	}
	m := startShuttle(t, options{})
	version, err := m.lv["node1"].Virsh(soon(t), "version")
	require.NoError(t, err)
	t.Log(version)
	for i := range *aborts + *aborts/3 {
		for attempt := 1; ; attempt++ {
			err := late(func() { m.aborts(i, i >= *aborts) })
			if err == nil {
				break
			}
			require.Less(t, attempt, 6, "%v", err)
			m.goesOn()
		}
	}
}

// aborts has a migration begin and aborts it, after the guest has stopped or
// before, at another moment for each i.
func (m *shuttle) aborts(i int, stopped bool) {
	t := m.t
	t.Helper()
	from := m.where()
	to := other(from)
	gone := len(m.gone())
	control := m.control()
	var stood time.Duration
	results := m.probed(func() {
		g := m.d.StartMigration(context.WithoutCancel(soon(t)), m.lv[to], hypervisors.MigrateOptions{Bandwidth: 8})
		inTime(g.Copying(soon(t)))
		time.Sleep(time.Duration(i%10) * 100 * time.Millisecond)
		if stopped {
			_, err := m.lv[from].Virsh(soon(t), "migrate-setmaxdowntime", m.d.Name(), "20000")
			inTime(err)
			inTime(core.Until(soon(t), func() error { return m.has(from, func(r fabric.Move) time.Time { return r.Stopped }) }))
		}
		inTime(g.Abort(soon(t)))
		if stopped {
			stood = time.Since(m.reported(from).Stopped)
		}
		inTime(m.failed(to, g))
		time.Sleep(time.Second)
	})
	stall := control()
	require.Equal(t, from, m.where())
	m.rests(from)
	assert.Empty(t, m.gone()[gone:], "the core gateway was without a route")
	for f, r := range results {
		t.Logf("%d, stopped %v (%v): IPv%d: %d sent, %d lost, longest gap %v; the machine stalled for %v", i, stopped, stood, 4+2*f, r.Sent, r.Lost, r.LongestGap, stall)
		assert.LessOrEqual(t, r.Lost, int((stood+stall)/probeEvery), "%+v", r)
	}
}

// TestBusyMoves moves a guest to and fro while two processes for each processor
// do nothing but run. Both nodes' own addresses are probed beside it.
func TestBusyMoves(t *testing.T) {
	if *busyMoves == 0 {
		t.Skip("give -busymoves N")
	}
	m := startShuttle(t, options{})
	for range 4 {
		c := exec.Command("sh", "-c", "while :; do :; done")
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		require.NoError(t, c.Start())
		t.Cleanup(func() {
			_ = c.Process.Kill()
			_ = c.Wait()
		})
	}
	for range *busyMoves {
		m.busyMove()
	}
}

// busyMove moves the guest under 1,000 probes a second to each of two addresses,
// until packets are not sent on any more, and logs what was lost, and when.
func (m *shuttle) busyMove() {
	t := m.t
	t.Helper()
	from := m.where()
	to := other(from)
	b, err := os.ReadFile("/proc/loadavg")
	require.NoError(t, err)
	load, _, _ := strings.Cut(string(b), " ")
	a := m.vm.NICs[0].Addresses
	var beside []core.ProbeResult
	vm := func(as ...netip.Addr) fabric.VM { return fabric.VM{NICs: []fabric.NIC{{Addresses: as}}} }
	var took time.Duration
	results := m.underProbe(vm(a[0], a[2]), time.Millisecond, func() {
		one, two := m.top.Nodes["node1"], m.top.Nodes["node2"]
		beside = m.underProbe(vm(one.Addr4(), one.Addr6(), two.Addr4(), two.Addr6()), probeEvery, func() {
			began := time.Now()
			require.NoError(t, m.d.Migrate(context.WithoutCancel(soon(t)), m.lv[to]))
			took = time.Since(began)
			time.Sleep(7500 * time.Millisecond)
		})
	})
	hung, err := m.d.Hung(soon(t))
	require.NoError(t, err)
	pause, err := m.d.Downtime(soon(t))
	require.NoError(t, err)
	source, destination := m.reported(from), m.reported(to)
	since := func(at time.Time) time.Duration { return at.Sub(source.Stopped).Round(100 * time.Microsecond) }
	text := fmt.Sprintf("%s -> %s, load %s, hung %v: virsh %v, pause %v", from, to, load, hung, took, pause)
	for i, r := range slices.Concat(results, beside) {
		text += fmt.Sprintf("; %s %d lost of %d, gap %v", []string{"IPv4", "IPv6", "node1 IPv4", "node1 IPv6", "node2 IPv4", "node2 IPv6"}[i], r.Lost, r.Sent, r.LongestGap)
		if r.Lost > 0 {
			text += fmt.Sprintf(" (%v to %v)", since(r.Losses[0].At), since(r.Losses[r.Lost-1].At))
		}
	}
	t.Logf("%s; diverted %v, %d sent again, announced %v, withdrawn %v, normal %v", text,
		since(source.Diverted), source.Resent, since(destination.Announced), since(source.Withdrawn), since(destination.Normal))
	m.rests(to)
}
