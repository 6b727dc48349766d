package e2e

import (
	"cmp"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/faults"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// Whole faults take minutes. They are made by hand, and docs/reliability.md has what came
// of them.
var (
	wholeFaults = flag.Bool("faults", false, "make faults as long and as many as docs/reliability.md has them")
	figures     = flag.String("figures", "", "write what came of each fault into this file")
	before      = flag.String("before", "", "upgrade from this program, of an earlier version")
)

// whole gives one of two sizes of a fault: the one of docs/reliability.md, or a small one.
func whole[T any](all, small T) T {
	if *wholeFaults {
		return all
	}
	return small
}

// ordeal is a system whose guests are probed while one fault after the other befalls it.
type ordeal struct {
	*system
	control *core.Host // its packets pass the same machines, and nothing that a fault is about
	guests  map[string][]fabric.VM

	processes sync.Map // of guests of a crowd: the *os.File of each one's tap, by its name
}

// underFaults starts a system with a guest on each node that has an agent.
func underFaults(t testing.TB, opts options) *ordeal {
	t.Helper()
	o := &ordeal{system: start(t, opts), guests: map[string][]fabric.VM{}}
	var err error
	o.control, err = o.lab.AddReflector("control", core.Underlay4(99), core.Underlay6(99))
	require.NoError(t, err)
	if !opts.noAgent {
		for n, node := range o.cluster.Nodes {
			o.adds(node.Name, veth("web"+node.Name, fmt.Sprintf("203.0.113.%d", 10+n), fmt.Sprintf("2001:db8:100::%x", 10+n)))
		}
	}
	return o
}

// adds runs a guest on a node, which is probed from then on.
func (o *ordeal) adds(node string, vm fabric.VM) {
	o.t.Helper()
	o.run(node, vm)
	o.probes(node, vm)
}

// probes has a guest that runs on a node probed from then on.
func (o *ordeal) probes(node string, vm fabric.VM) {
	o.t.Helper()
	o.guests[node] = append(o.guests[node], vm)
	o.coreHas(o.top.Nodes[node], vm.Prefixes()...)
	for _, a := range vm.NICs[0].Addresses {
		o.reaches(o.top.Client, a.String())
	}
}

// suffers has a fault befall the system while all its guests are probed 1,000 times a
// second, and waits until all is right again. befall makes the fault and takes it away, and
// returns since when it is over. The row of the table says how many packets may be lost.
func (o *ordeal) suffers(name string, befall func() time.Time) {
	o.t.Helper()
	o.suffersAnd(name, func() (time.Time, string) { return befall(), "" })
}

// suffersAnd is suffers with something else that befall measures.
func (o *ordeal) suffersAnd(name string, befall func() (over time.Time, more string)) {
	t := o.t
	t.Helper()
	row := faults.Named(name)
	require.NotNil(t, row, "a row %q of testenv/faults", name)
	controls := o.probe(core.Underlay4(99), core.Underlay6(99))
	var probes []*core.Prober
	for _, vms := range o.guests {
		for _, vm := range vms {
			probes = append(probes, o.probe(vm.NICs[0].Addresses...)...)
		}
	}
	answered(t, 100, probes...)
	over, more := befall()
	o.right()
	all := faults.Count{Right: time.Since(over), More: more}
	answered(t, 100, append(probes, controls...)...)
	lostByControl := 0
	for _, p := range controls {
		r := p.Stop()
		all.Control += r.Lost
		lostByControl = max(lostByControl, r.Lost)
	}
	for _, p := range probes {
		r := p.Stop()
		all.Lost, all.Sent = all.Lost+r.Lost, all.Sent+r.Sent
		if row.Most >= 0 { // a machine without time for packets takes them where they come
			assert.LessOrEqual(t, r.Lost, row.Most+10*lostByControl, "%s: %v", name, r)
		}
		if r.Lost > 0 {
			t.Logf("%s: %v", name, r)
		}
	}
	o.found(name, all)
}

// found tells what came of a fault.
func (o *ordeal) found(name string, c faults.Count) {
	o.t.Helper()
	o.t.Logf("%s: %s", name, c)
	if *figures != "" {
		require.NoError(o.t, faults.Keep(*figures, name, c))
	}
}

func (o *ordeal) probe(to ...netip.Addr) (probes []*core.Prober) {
	o.t.Helper()
	for _, a := range to {
		p, err := o.top.Client.Probe(a, time.Millisecond)
		require.NoError(o.t, err)
		probes = append(probes, p)
	}
	return probes
}

// right waits until no agent has anything to complain of, the core gateway has every
// guest's routes, and every guest answers.
func (o *ordeal) right() {
	o.t.Helper()
	for name, a := range o.agents {
		if a.Daemon == nil {
			continue
		}
		a.healthy()
		a.established()
		for _, vm := range o.guests[name] {
			o.coreHas(a.node, vm.Prefixes()...)
			for _, at := range vm.NICs[0].Addresses {
				o.reaches(o.top.Client, at.String())
			}
		}
	}
}

// stops has a process stand still for a time.
func (a *agent) stops(d time.Duration) {
	a.s.t.Helper()
	require.NoError(a.s.t, a.Signal(syscall.SIGSTOP))
	time.Sleep(d)
	require.NoError(a.s.t, a.Signal(syscall.SIGCONT))
}

// TestFaultsOfTheAgent: an agent stands still, is replaced, and its clock jumps.
func TestFaultsOfTheAgent(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "bird")
	installed := filepath.Join(t.TempDir(), "vmfabric")
	installs(t, cmp.Or(*before, program), installed)
	o := underFaults(t, options{nodes: 2, program: installed})
	a := o.agents["node1"]
	o.suffers("stopped shortly", func() time.Time {
		a.stops(whole(5*time.Second, time.Second))
		return time.Now()
	})
	o.suffers("stopped, with the watchdog", func() time.Time {
		a.isBarked()
		return time.Now()
	})
	o.suffers("upgraded", func() time.Time {
		installs(t, program, installed)
		began := time.Now()
		for _, a := range o.agents {
			a.restart(a.Stop)
		}
		return began
	})
	if !canJump {
		return
	}
	o.suffers("clock jumps", func() (over time.Time) {
		for n, jump := range []time.Duration{time.Hour, -2 * time.Hour, time.Hour} {
			a.jumps(jump)
			over = time.Now()
			o.comesAndGoes("node1", fmt.Sprint("late", n))
		}
		return over
	})
}

// comesAndGoes starts a guest on a node, reaches it, and ends it.
func (o *ordeal) comesAndGoes(node, name string) {
	o.t.Helper()
	vm := veth(name, "203.0.113.90", "2001:db8:100::90")
	o.run(node, vm)
	o.coreHas(o.top.Nodes[node], vm.Prefixes()...)
	o.reaches(o.top.Client, "203.0.113.90", "2001:db8:100::90")
	o.agents[node].ask(hooks.Remove, vm)
	o.nobodyHas(vm.Prefixes()...)
}

// TestStoppedForLong: who has heard nothing of an agent for the hold time takes its node
// for dead.
func TestStoppedForLong(t *testing.T) {
	t.Parallel()
	if !*wholeFaults {
		t.Skip("give -faults")
	}
	o := underFaults(t, options{})
	a := o.agents["node1"]
	o.suffers("stopped for long", func() time.Time {
		a.stops(time.Minute)
		return time.Now()
	})
}

// watchdog is WatchdogSec of the unit.
const watchdog = 5 * time.Second

// isBarked at by systemd's watchdog: an agent that stands still is ended by the unit's
// WatchdogSignal, and started again.
func (a *agent) isBarked() {
	t := a.s.t
	t.Helper()
	require.NoError(t, a.Signal(syscall.SIGSTOP))
	time.Sleep(watchdog)
	require.NoError(t, a.Signal(syscall.SIGKILL))
	_ = a.Wait() // by the signal
	time.Sleep(time.Second)
	a.start()
}

// installs puts a program into the place of another one, as a package does: whoever runs
// the other one keeps it.
func installs(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(to+".new", b, 0o755))
	require.NoError(t, os.Rename(to+".new", to))
}
