package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
)

// TestFaultsOfTheHypervisors: the daemons of libvirt and LXD are killed while guests start.
// The guests that run keep what they have; whatever became of each start, the fabric has
// those that run, and nothing of the others.
func TestFaultsOfTheHypervisors(t *testing.T) {
	t.Parallel()
	o := underFaults(t, options{nodes: 2})
	lv, lx := o.hypervisor("node1"), o.lxd("node2")
	guests := whole(6, 3)
	names := map[string][]string{}
	for n := range guests {
		v4, v6 := fmt.Sprintf("203.0.113.%d", 50+n), fmt.Sprintf("2001:db8:100::%x", 0x50+n)
		c4, c6 := fmt.Sprintf("203.0.113.%d", 100+n), fmt.Sprintf("2001:db8:100::%x", 0x100+n)
		names["node1"] = append(names["node1"], o.domain(lv, fmt.Sprint("d", n), tap(v4, v6)).Name())
		names["node2"] = append(names["node2"], o.container(lx, hypervisors.ContainerOptions{Name: fmt.Sprint("i", n), NICs: []fabric.NIC{p2p(c4, c6)}}).Name())
	}
	o.suffers("libvirtd is killed", func() time.Time {
		return o.killsUnderStarts("node1", names["node1"], daemon{lv.Kill, lv.Start, lv.Virsh, "list --name", nil})
	})
	o.suffers("LXD is killed", func() time.Time {
		return o.killsUnderStarts("node2", names["node2"], daemon{lx.Kill, lx.Start, lx.Lxc, "list --format csv --columns n status=running", func(p string) { o.mends(lx, p) }})
	})
	for _, name := range names["node1"] {
		// libvirtd may wait for a QEMU that it had just started when it was killed, until it
		// is started again.
		if _, err := lv.Virsh(soon(t), "destroy", name); err != nil {
			require.NoError(t, lv.Restart(soon(t)))
			_, _ = lv.Virsh(soon(t), "destroy", name) // it may have ended with that
		}
	}
	for _, name := range names["node2"] {
		_, err := lx.Lxc(soon(t), "delete", "--force", name)
		require.NoError(t, err)
	}
	for _, node := range []string{"node1", "node2"} {
		o.eventually("nothing of them is left", func() error {
			if left := o.leftOn(o.top.Nodes[node]); len(left) != 4 { // those of the probed guest
				return fmt.Errorf("%v", left)
			}
			return nil
		})
	}
}

// daemon is a hypervisor's.
type daemon struct {
	kill  func() error
	start func(context.Context) error
	do    func(context.Context, ...string) (string, error) // its client
	list  string                                           // what asks that for the guests that run
	mend  func(problem string)                             // does what the agent says of a guest that does not start
}

// killsUnderStarts has guests started while their hypervisor's daemon is killed and
// started again, and waits until the agent has those that run. It then starts the others. It
// returns the time of which the longest such wait is past.
func (o *ordeal) killsUnderStarts(node string, guests []string, d daemon) time.Time {
	o.t.Helper()
	starts := func() {
		var running sync.WaitGroup
		for _, name := range guests {
			running.Go(func() { _, _ = d.do(soon(o.t), "start", name) }) // which of them succeed is seen by the list
		}
		running.Wait()
	}
	var ended sync.WaitGroup
	var worst time.Duration
	for range whole(2, 1) {
		ended.Go(starts)
		time.Sleep(time.Duration(300+rand.IntN(whole(3000, 700))) * time.Millisecond)
		require.NoError(o.t, d.kill())
		ended.Wait()
		require.NoError(o.t, d.start(soon(o.t)))
		back := time.Now()
		o.hasWhatRuns(node, d)
		worst = max(worst, time.Since(back))
	}
	o.eventually("all start", func() error {
		for _, p := range o.agents[node].status().Problems {
			if strings.Contains(p, "cannot start, because its link") { // LXD leaves it when it is killed
				d.mend(p)
			}
		}
		starts()
		if n := len(o.whatRuns(d)); n != len(guests) {
			return fmt.Errorf("%d run", n)
		}
		return nil
	})
	o.hasWhatRuns(node, d)
	return time.Now().Add(-worst)
}

// whatRuns lists the guests that a hypervisor runs.
func (o *ordeal) whatRuns(d daemon) []string {
	o.t.Helper()
	out, err := d.do(soon(o.t), strings.Fields(d.list)...)
	require.NoError(o.t, err)
	names := strings.Fields(out)
	slices.Sort(names)
	return names
}

// hasWhatRuns waits until an agent has the guests that its hypervisor runs, and those that
// are probed.
func (o *ordeal) hasWhatRuns(node string, d daemon) {
	o.t.Helper()
	o.eventually("the agent has what runs", func() error {
		want := o.whatRuns(d)
		for _, vm := range o.guests[node] {
			want = append(want, vm.Name)
		}
		have := o.guestsOf(node)
		slices.Sort(have)
		slices.Sort(want)
		if !slices.Equal(have, want) {
			return fmt.Errorf("%v runs, and it has %v", want, have)
		}
		return nil
	})
}

// TestFaultsOfThePower: guests come and go by hand, the agent is killed, and its state is
// as it was at a moment before, as a disk has it that lost its last changes.
func TestFaultsOfThePower(t *testing.T) {
	t.Parallel()
	o := underFaults(t, options{})
	a := o.agents["node1"]
	state := filepath.Join(a.node.Dir(), "state")
	o.suffers("power is lost", func() (over time.Time) {
		for n := range whole(30, 3) {
			before := filepath.Join(o.t.TempDir(), fmt.Sprint("state", n))
			stop := o.churn("node1")
			time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
			copied(t, state, before)
			time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
			require.NoError(t, a.Kill())
			stop()
			require.NoError(t, os.RemoveAll(state))
			require.NoError(t, os.Rename(before, state))
			a.start()
			over = time.Now()
			for _, p := range a.status().Problems {
				assert.NotContains(t, p, "damaged")
			}
			for g := range churning {
				a.ask(hooks.Remove, inChurn(g))
			}
			o.eventually("the agent has what runs", func() error {
				if have := o.guestsOf("node1"); !slices.Equal(have, []string{"webnode1"}) {
					return fmt.Errorf("it has %v", have)
				}
				return nil
			})
		}
		return over
	})
	for g := range churning {
		o.nobodyHas(inChurn(g).Prefixes()...)
	}
	assert.Len(t, o.leftOn(a.node), 4)
}

// churning is how many guests come and go.
const churning = 4

func inChurn(g int) fabric.VM {
	vm := veth(fmt.Sprint("churn", g), fmt.Sprintf("203.0.113.%d", 60+g), fmt.Sprintf("2001:db8:100::%x", 0x60+g))
	vm.NICs[0].Kind = fabric.Tap
	return vm
}

// churn has guests come and go on a node until its end, which the agent may end.
func (o *ordeal) churn(node string) (stop func()) {
	done := make(chan struct{})
	var running sync.WaitGroup
	for g := range churning {
		running.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				vm := inChurn(g)
				vm.NICs[0].MTU = 1280 + n
				_, _ = o.agents[node].try(hooks.Request{Op: []hooks.Op{hooks.Wire, hooks.Live, hooks.Remove}[n%3], VM: vm}) // the agent is killed meanwhile
			}
		})
	}
	return func() {
		close(done)
		running.Wait()
	}
}

// copied copies a state directory that is written to meanwhile: a file that goes before it
// is read is not there.
func copied(t *testing.T, from, to string) {
	t.Helper()
	require.NoError(t, filepath.Walk(from, func(path string, info os.FileInfo, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		require.NoError(t, err)
		at := filepath.Join(to, strings.TrimPrefix(path, from))
		if info.IsDir() {
			return os.MkdirAll(at, info.Mode().Perm())
		}
		b, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil
		}
		require.NoError(t, err)
		return os.WriteFile(at, b, info.Mode().Perm())
	}))
}
