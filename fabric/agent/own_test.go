package agent_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// reach is how a node reaches a registry that all nodes share: not at all while away is
// set. Before it acquires a guest, meanwhile happens.
type reach struct {
	fabric.Registry
	away      atomic.Bool
	deaf      atomic.Bool   // it acquires nothing
	highest   atomic.Uint64 // that the node has seen
	meanwhile func()

	mu    sync.Mutex
	known []fabric.Allocation
}

var errAway = errors.New("no quorum")

func (r *reach) Allocate(ctx context.Context, a fabric.AllocationRequest) ([]fabric.Allocation, error) {
	if r.away.Load() {
		return nil, errAway
	}
	return r.Registry.Allocate(ctx, a)
}

func (r *reach) Release(ctx context.Context, of fabric.ReleaseRequest) ([]fabric.Allocation, error) {
	if r.away.Load() {
		return nil, errAway
	}
	return r.Registry.Release(ctx, of)
}

func (r *reach) Acquire(ctx context.Context, a fabric.AcquireRequest) (fabric.Owner, error) {
	if r.away.Load() || r.deaf.Load() {
		return fabric.Owner{}, errAway
	}
	if f := r.meanwhile; f != nil {
		r.meanwhile = nil
		f()
	}
	return r.Registry.Acquire(ctx, a)
}

// Allocations lists what was known, with an error, while the registry is away.
func (r *reach) Allocations(ctx context.Context, f fabric.AllocationFilter) ([]fabric.Allocation, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := errAway
	if !r.away.Load() {
		r.known, err = r.Registry.Allocations(ctx, fabric.AllocationFilter{})
	}
	return slices.DeleteFunc(slices.Clone(r.known), func(a fabric.Allocation) bool { return !f.Selects(a) }), err
}

// shared runs two agents that share a registry, and whose clocks are wrong by hours,
// while f works with them. The guest runs on none of them yet.
func shared(t *testing.T, f func(*testing.T, *pair, map[string]*reach)) {
	t.Helper()
	all := newRegistry(nil)
	reaches := map[string]*reach{"node1": {Registry: all}, "node2": {Registry: all}}
	wrong := map[string]time.Duration{"node1": 20 * time.Hour, "node2": -20 * time.Hour}
	pairsOf(t, fake.NewSource, gold(), func(t *testing.T, p *pair) { f(t, p, reaches) }, func(node string) []agent.Option {
		return []agent.Option{
			agent.WithRegistry(reaches[node]), agent.WithEpochs(reaches[node].highest.Load),
			agent.WithClock(func() time.Time { return time.Now().Add(wrong[node]) }),
		}
	})
}

// epoch is that of the guest at a node.
func (p *pair) epoch(n *node) uint64 {
	p.t.Helper()
	kept, err := n.store.All(p.t.Context())
	require.NoError(p.t, err)
	for _, d := range kept {
		if d.VM.Name == p.vm.Name {
			return d.Epoch
		}
	}
	return 0
}

// owner is that of the guest in a registry.
func (p *pair) owner(r fabric.Registry) (is fabric.Owner) {
	p.t.Helper()
	all, err := r.Allocations(p.t.Context(), fabric.AllocationFilter{})
	require.NoError(p.t, err)
	for _, a := range all {
		if a.Guest == p.vm.Identity() {
			is = a.Owner()
		}
	}
	return is
}

// TestEpochsAreThoseOfTheRegistry: no clock takes part, and each start is the registry's
// word before the guest runs.
func TestEpochsAreThoseOfTheRegistry(t *testing.T) {
	shared(t, func(t *testing.T, p *pair, r map[string]*reach) {
		var before uint64
		for range 3 {
			for _, n := range []*node{p.one, p.two} {
				n.apply(p.vm, fabric.Wired)
				granted := p.owner(r["node1"])
				assert.Equal(t, n.name, granted.Node)
				assert.Greater(t, granted.Epoch, before)
				require.NoError(t, n.Started(t.Context(), p.vm))
				p.src[n].Set(p.vm, fabric.Live)
				p.lets(n)
				assert.Equal(t, granted, fabric.Owner{Node: n.name, Epoch: p.epoch(n)})
				time.Sleep(time.Minute)
				assert.Equal(t, granted, p.owner(r["node1"]), "it is written once")
				assert.Empty(t, n.problems())
				before = granted.Epoch
				p.over(n, p.vm)
			}
		}
	})
}

// TestGuestThatStartsOnTwoNodes: the one that acquires it second does not start it.
func TestGuestThatStartsOnTwoNodes(t *testing.T) {
	shared(t, func(t *testing.T, p *pair, r map[string]*reach) {
		p.runs(p.one, p.vm)
		time.Sleep(time.Second)
		p.over(p.one, p.vm)
		was := p.owner(r["node1"])
		r["node1"].meanwhile = func() { p.two.apply(p.vm, fabric.Wired) }
		err := p.one.Apply(t.Context(), p.vm, fabric.Wired)
		require.ErrorIs(t, err, fabric.ErrRefused)
		is := p.owner(r["node1"])
		assert.Equal(t, "node2", is.Node)
		assert.Greater(t, is.Epoch, was.Epoch)
		assert.ErrorContains(t, err, "guest sea_gold refused: node node2 acquired guest sea_gold in the meantime")
		p.one.holds()
		p.two.holds(want{p.vm, fabric.Wired})
	})
}

// TestStartThatFails elsewhere leaves the guest to the node where it runs.
func TestStartThatFails(t *testing.T) {
	shared(t, func(t *testing.T, p *pair, r map[string]*reach) {
		p.runs(p.one, p.vm)
		p.lets(p.one)
		was := p.owner(r["node1"])
		for name, fails := range map[string]func(){
			"after its port was made": func() {
				p.two.apply(p.vm, fabric.Wired)
				assert.Equal(t, "node1", p.owner(r["node1"]).Node, "it arrives: node1 has it")
				p.two.apply(p.vm, fabric.Absent)
			},
			"started by hand, and its port cannot be made": func() {
				p.two.dataplane.Fail("wire sea_gold_net0", errors.New("no memory"))
				require.Error(t, p.two.Apply(t.Context(), p.vm, fabric.Live))
				p.two.dataplane.Fail("wire sea_gold_net0", nil)
			},
		} {
			fails()
			time.Sleep(time.Second)
			is := p.owner(r["node1"])
			assert.Equal(t, "node1", is.Node, name)
			assert.GreaterOrEqual(t, is.Epoch, was.Epoch, name)
			time.Sleep(time.Minute)
			assert.Equal(t, is, p.owner(r["node1"]), name)
			p.one.holds(want{p.vm, fabric.Live})
		}

		p.over(p.one, p.vm)
		p.two.apply(p.vm, fabric.Wired)
		assert.Equal(t, "node2", p.owner(r["node1"]).Node)
		r["node2"].away.Store(true)
		p.two.apply(p.vm, fabric.Absent)
		time.Sleep(time.Second)
		r["node2"].away.Store(false)
		time.Sleep(15 * time.Second)
		assert.Equal(t, "node1", p.owner(r["node1"]).Node, "handed back when the registry is there again")
	})
}

// TestMovesAreWrittenAfterwards: a move waits for no registry. While that is away, the
// agents' own words are enough, whatever the clocks say.
func TestMovesAreWrittenAfterwards(t *testing.T) {
	shared(t, func(t *testing.T, p *pair, r map[string]*reach) {
		p.runs(p.one, p.vm)
		p.lets(p.one)
		first := p.owner(r["node1"])
		for _, away := range []bool{false, true} {
			for _, way := range [][2]*node{{p.one, p.two}, {p.two, p.one}} {
				from, to := way[0], way[1]
				r["node1"].away.Store(away)
				r["node2"].away.Store(away)
				before := p.epoch(from)
				p.arrives(to)
				r["node1"].meanwhile = func() { t.Error("the registry is asked before the guest runs there") }
				r["node2"].meanwhile = r["node1"].meanwhile
				p.src[from].Leave(p.vm)
				moment()
				r["node1"].meanwhile, r["node2"].meanwhile = nil, nil
				p.src[to].Set(p.vm, fabric.Live)
				moment()
				assert.Greater(t, p.epoch(to), before)
				p.leaves(from)
				p.lets(to)
				r["node1"].away.Store(false)
				r["node2"].away.Store(false)
				time.Sleep(15 * time.Second)
				is := p.owner(r["node1"])
				assert.Equal(t, to.name, is.Node)
				assert.GreaterOrEqual(t, is.Epoch, p.epoch(to))
				assert.Greater(t, is.Epoch, first.Epoch)
				first = is
				assert.Empty(t, to.problems())
				to.holds(want{p.vm, fabric.Live})
				from.holds()
			}
		}
	})
}

// TestStartWithoutTheRegistry of a guest whose node knows its addresses: it is written
// when the registry is back.
func TestStartWithoutTheRegistry(t *testing.T) {
	shared(t, func(t *testing.T, p *pair, r map[string]*reach) {
		r["node1"].away.Store(true)
		p.runs(p.one, p.vm)
		p.lets(p.one)
		assert.GreaterOrEqual(t, p.epoch(p.one), uint64(fabric.RegistryEpoch), "above those of all clocks")
		r["node1"].away.Store(false)
		time.Sleep(15 * time.Second)
		is := p.owner(r["node1"])
		assert.Equal(t, "node1", is.Node)
		assert.GreaterOrEqual(t, is.Epoch, p.epoch(p.one))
		assert.Empty(t, p.one.problems())
		again := p.one.again(p.options(p.one)...)
		again.run(func() {
			time.Sleep(time.Minute)
			assert.Equal(t, is, p.owner(r["node1"]), "the next agent has nothing to write")
		})
	})
}

// TestRegistryDecidesWhileAgentsDoNotTalk: the guest runs on both nodes, and a reflector
// passes the other one's route. The node that acquired it last has it.
func TestRegistryDecidesWhileAgentsDoNotTalk(t *testing.T) {
	for name, is := range map[string]struct{ away, unread bool }{
		"acquired on the second node":                                {},
		"started on the second without the registry":                 {away: true},
		"which knows nothing of it, by an agent that has just begun": {away: true, unread: true},
	} {
		t.Run(name, func(t *testing.T) {
			shared(t, func(t *testing.T, p *pair, r map[string]*reach) {
				p.runs(p.one, p.vm)
				p.lets(p.one)
				p.reflects(false)
				p.ends[p.one].Cut("node2", true)
				if _, err := r["node2"].Allocations(t.Context(), fabric.AllocationFilter{}); is.unread {
					require.NoError(t, err)
					r["node2"].known = nil
					r["node2"].highest.Store(p.epoch(p.one))
				}
				r["node2"].away.Store(is.away)
				p.runs(p.two, p.vm)
				time.Sleep(10 * time.Second)
				if !is.away {
					assert.Empty(t, announces(t, p.one))
					assert.NotEmpty(t, announces(t, p.two))
					return
				}
				assert.NotEmpty(t, announces(t, p.one))
				assert.Contains(t, p.one.problems(), "guest sea_gold: a route for it via node2 comes before this node's at rr1, and the agent there does not answer; by the registry node1 has the guest, which stays announced: see what runs on node2")
				r["node2"].away.Store(false)
				time.Sleep(15 * time.Second)
				assert.Empty(t, announces(t, p.one), "the second node has acquired it")
				assert.NotEmpty(t, announces(t, p.two))
				assert.NotContains(t, p.one.problems(), "by the registry")
			})
		})
	}
}

// TestFirstStartAsksOnce: the answer that gives a guest its addresses makes its node the
// owner.
func TestFirstStartAsksOnce(t *testing.T) {
	shared(t, func(t *testing.T, p *pair, r map[string]*reach) {
		acquired := 0
		r["node1"].meanwhile = func() { acquired++ }
		p.runs(p.one, p.vm)
		p.lets(p.one)
		time.Sleep(time.Minute)
		assert.Zero(t, acquired)
		first := p.owner(r["node1"])
		assert.Equal(t, fabric.Owner{Node: "node1", Epoch: p.epoch(p.one)}, first)
		p.over(p.one, p.vm)
		p.runs(p.one, p.vm)
		assert.Equal(t, 1, acquired)
		assert.Greater(t, p.owner(r["node1"]).Epoch, first.Epoch)
	})
}

// TestOwnerThatCannotBeRecorded: status says so in one line, since when and of how many
// guests, until the registry knows it.
func TestOwnerThatCannotBeRecorded(t *testing.T) {
	shared(t, func(t *testing.T, p *pair, r map[string]*reach) {
		r["node1"].deaf.Store(true)
		vms := []fabric.VM{p.vm}
		for n := range 4 {
			vm := known(fmt.Sprintf("other%d", n), fmt.Sprintf("uuid-of-other%d", n), fmt.Sprintf("203.0.113.%d", 50+n))
			vms = append(vms, vm)
		}
		for _, vm := range vms { // what ran before has an owner, and no start makes another one
			_, err := r["node2"].Registry.Allocate(t.Context(), fabric.AllocationRequest{Guest: vm.Identity(), VM: vm.Name, Node: "node2", Starts: true, Wants: []fabric.Want{{Prefix: fabric.HostPrefix(vm.NICs[0].Addresses[0])}}})
			require.NoError(t, err)
		}
		says := func() string { return strings.Join(p.one.problems(), "\n") }
		began := time.Now().Add(20 * time.Hour) // by the node's clock
		p.runs(p.one, vms[0])
		time.Sleep(15 * time.Second)
		assert.Contains(t, says(), "the registry does not know that 1 guest runs here since "+began.Format(time.DateOnly))
		assert.Contains(t, says(), "(sea_gold)")
		for _, vm := range vms[1:] {
			p.runs(p.one, vm)
		}
		time.Sleep(15 * time.Second)
		said := says()
		assert.Contains(t, said, "the registry does not know that 5 guests run here since ")
		assert.Contains(t, said, "(other0, other1, other2 and 2 more)")
		assert.Contains(t, said, errAway.Error())
		assert.Equal(t, 1, strings.Count(said, "the registry does not know that"))
		r["node1"].deaf.Store(false)
		time.Sleep(15 * time.Second)
		assert.Empty(t, p.one.problems())
		assert.Equal(t, "node1", p.owner(r["node1"]).Node)
	})
}

// TestReleaseWithoutAnAnswer names the nodes that did not say that the guest is not there.
func TestReleaseWithoutAnAnswer(t *testing.T) {
	shared(t, func(t *testing.T, p *pair, r map[string]*reach) {
		p.runs(p.two, p.vm)
		p.lets(p.two)
		_, _, err := p.one.Release(t.Context(), fabric.ReleaseRequest{Guest: p.vm.Identity()})
		require.ErrorIs(t, err, fabric.ErrRefused)
		r["node1"].away.Store(true)
		_, _, err = p.one.Release(t.Context(), fabric.ReleaseRequest{Guest: p.vm.Identity()})
		assert.EqualError(t, err, "registry: "+errAway.Error())
		r["node1"].away.Store(false)
		p.ends[p.one].Cut("node2", true)
		released, silent, err := p.one.Release(t.Context(), fabric.ReleaseRequest{Guest: p.vm.Identity()})
		require.NoError(t, err)
		assert.Len(t, released, 2)
		assert.Equal(t, []string{"node2"}, silent)
		p.ends[p.one].Cut("node2", false)
		_, silent, err = p.one.Release(t.Context(), fabric.ReleaseRequest{Guest: p.vm.Identity()})
		require.NoError(t, err)
		assert.Empty(t, silent)
	})
}

// TestStopAndStartWithoutTheRegistry: a guest that has addresses of pools has them again,
// on each node that has read the registry; one that has none yet gets none.
func TestStopAndStartWithoutTheRegistry(t *testing.T) {
	shared(t, func(t *testing.T, p *pair, r map[string]*reach) {
		vm := asking("web", fabric.AutoPool, "own6")
		p.runs(p.one, vm)
		time.Sleep(time.Second)
		had := nic(p.one, "web")
		require.Len(t, had.Prefixes(), 4)
		for _, n := range []*node{p.one, p.two} {
			_, err := r[n.name].Allocations(t.Context(), fabric.AllocationFilter{})
			require.NoError(t, err)
			r[n.name].away.Store(true)
		}
		at := p.one
		for _, n := range []*node{p.one, p.two, p.one} {
			p.over(at, vm)
			p.runs(n, vm)
			assert.Equal(t, had, nic(n, "web"))
			at = n
		}
		require.ErrorContains(t, p.two.Apply(t.Context(), asking("new", fabric.AutoPool), fabric.Wired), errAway.Error())
		r["node1"].away.Store(false)
		r["node2"].away.Store(false)
		time.Sleep(15 * time.Second)
		assert.Empty(t, p.one.problems())
		for _, a := range allocations(t, r["node1"]) {
			assert.Contains(t, a, "allocated web node1")
		}
	})
}

// TestAddressOfAnotherGuestWithoutTheRegistry: a node that knew the registry gives no guest
// an address that another one may run with on a node that does not answer, or that a pool
// gave to another one. What nobody needs, and what is its own, a guest starts with.
func TestAddressOfAnotherGuestWithoutTheRegistry(t *testing.T) {
	shared(t, func(t *testing.T, p *pair, r map[string]*reach) {
		web, pooled := known("web", "uuid-of-web", "203.0.113.9 2001:db8:100:5::9"), asking("pooled", "public4")
		other := func(addresses string) fabric.VM { return known("copy", "uuid-of-copy", addresses) }
		mine := known("mine", "uuid-of-mine", "203.0.113.20")
		p.runs(p.two, web)
		p.runs(p.two, pooled)
		p.over(p.two, pooled)
		p.runs(p.one, mine)
		p.over(p.one, mine)
		_, err := r["node1"].Allocations(t.Context(), fabric.AllocationFilter{})
		require.NoError(t, err)
		r["node1"].away.Store(true)
		p.ends[p.one].Cut("node2", true)
		for _, address := range []string{"203.0.113.9", "2001:db8:100:5::9"} {
			err := p.one.Apply(t.Context(), other(address), fabric.Wired)
			require.ErrorIs(t, err, fabric.ErrRefused)
			assert.EqualError(t, err, "guest copy refused: NIC 0: "+address+" is that of guest web (libvirt uuid-of-web), which got it on node2, by what this node knows of the registry, which does not answer now; "+
				"have it answer, or give one of the two another address; guest web may be on node2, whose agent does not answer: start that, or see that the guest is off, and release the address")
			require.ErrorIs(t, p.one.Apply(t.Context(), other(address), fabric.Live), fabric.ErrRefused)
		}
		assert.Empty(t, has(p.one, "copy"))
		p.one.apply(mine, fabric.Live)
		p.one.apply(other("203.0.113.30"), fabric.Live)
		p.one.apply(other("203.0.113.30"), fabric.Absent)

		p.ends[p.one].Cut("node2", false)
		require.ErrorIs(t, p.one.Apply(t.Context(), other("203.0.113.9"), fabric.Wired), fabric.ErrRefused)
		require.ErrorContains(t, p.one.Apply(t.Context(), other("203.0.113.1"), fabric.Wired), "203.0.113.1 is that of guest pooled (libvirt uuid-of-pooled)")
		p.over(p.two, web)
		p.one.apply(other("203.0.113.9 2001:db8:100:5::9"), fabric.Live)
	})
}

// TestAttachedOnTwoNodes: of a guest that was attached by hand only its user knows where it
// runs, so no node withdraws it. The node that is not its owner by the registry says so.
func TestAttachedOnTwoNodes(t *testing.T) {
	shared(t, func(t *testing.T, p *pair, _ map[string]*reach) {
		vm := guest("box", "203.0.113.10 2001:db8:100:1::10")
		p.one.apply(vm, fabric.Live)
		time.Sleep(time.Second)
		p.two.apply(vm, fabric.Live)
		time.Sleep(2 * time.Minute)
		moment()
		for _, n := range []*node{p.one, p.two} {
			assert.Equal(t, map[string]string{"203.0.113.10/32": "normal"}, p.first(n))
		}
		problems := p.one.problems()
		require.Len(t, problems, 1)
		assert.Contains(t, problems[0], "node2 acquired guest box")
		assert.Empty(t, p.two.problems())
		require.NoError(t, p.one.Apply(t.Context(), vm, fabric.Absent))
		time.Sleep(2 * time.Minute)
		assert.Empty(t, p.one.problems())
		assert.Empty(t, p.first(p.one))
	})
}

// TestStartWhileAddressesAreGivenBack: a guest that was detached is attached again just as
// the registry is told that it is gone. It starts, and has its addresses.
func TestStartWhileAddressesAreGivenBack(t *testing.T) {
	shared(t, func(t *testing.T, p *pair, reaches map[string]*reach) {
		vm, r := guest("own", "203.0.113.20 2001:db8:100:1::20"), reaches["node1"].Registry.(*fake.Registry)
		p.one.apply(vm, fabric.Live)
		free := r.Hang("release")
		defer free()
		p.one.apply(fabric.VM{Name: vm.Name}, fabric.Absent)
		time.Sleep(100 * time.Millisecond)
		reaches["node1"].meanwhile = func() {
			free()
			time.Sleep(100 * time.Millisecond)
		}
		p.one.apply(vm, fabric.Live)
		time.Sleep(time.Minute)
		assert.Equal(t, []string{"203.0.113.20/32 allocated own node1", "2001:db8:100:1::20/128 allocated own node1"}, allocations(t, r))
	})
}
