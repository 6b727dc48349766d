package agent_test

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// node is an agent that has adopted what was there, and what it stands on.
type node struct {
	*agent.Agent
	t         *testing.T
	name      string        // node1 when empty
	pools     []fabric.Pool // of the cluster, beside the usual ones
	journal   *fake.Journal
	dataplane *fake.Dataplane
	speaker   *fake.Speaker
	store     *fake.Store
	asked     sync.Map // the requests of guests for their configuration, by port
}

// fresh gives a node without guests.
func fresh(t *testing.T, opts ...agent.Option) *node {
	j := new(fake.Journal)
	return (&node{t: t, journal: j, dataplane: fake.NewDataplane(j), speaker: fake.NewSpeaker(j), store: fake.NewStore(j)}).start(opts...)
}

// again gives the node after a restart of its agent: links and store stay, the
// speaker begins anew.
func (n *node) again(opts ...agent.Option) *node {
	n.t.Helper()
	return (&node{t: n.t, name: n.name, pools: n.pools, journal: n.journal, dataplane: n.dataplane.Again(), speaker: fake.NewSpeaker(n.journal), store: n.store}).start(opts...)
}

func (n *node) start(opts ...agent.Option) *node {
	n.t.Helper()
	n.make(n.store, opts...)
	require.NoError(n.t, n.Adopt(n.t.Context()))
	return n
}

func (n *node) make(store fabric.Store, opts ...agent.Option) {
	n.t.Helper()
	var err error
	c := cluster()
	c.Pools = append(c.Pools, n.pools...)
	n.Agent, err = agent.New(agent.Config{
		Cluster: c, Node: cmp.Or(n.name, "node1"), Dataplane: asked{n.dataplane, n}, Speaker: n.speaker, Store: store,
	}, opts...)
	require.NoError(n.t, err)
}

// apply brings a guest to a state, which must succeed.
func (n *node) apply(vm fabric.VM, s fabric.State) {
	n.t.Helper()
	require.NoError(n.t, n.Apply(n.t.Context(), vm, s))
}

// did checks what was done since it was last asked, in order.
func (n *node) did(want ...string) {
	n.t.Helper()
	assert.Equal(n.t, want, n.journal.Take())
}

// problems gives those of the status.
func (n *node) problems() []string {
	n.t.Helper()
	st, err := n.Status(n.t.Context())
	require.NoError(n.t, err)
	assert.Equal(n.t, len(st.Problems) == 0, st.Healthy)
	return st.Problems
}

// states gives each port's state as the list tells it.
func (n *node) states() map[string]fabric.State {
	n.t.Helper()
	entries, err := n.List(n.t.Context())
	require.NoError(n.t, err)
	states := map[string]fabric.State{}
	for _, e := range entries {
		states[e.Port] = e.State
	}
	return states
}

// want is a guest and the state that it must have.
type want struct {
	vm    fabric.VM
	state fabric.State
}

// holds checks that the links, the announcements, the store and the list are
// those of these guests, and nothing else.
func (n *node) holds(guests ...want) {
	n.t.Helper()
	c := cluster()
	ports, routes := map[string][]string{}, []string{}
	stored, listed := map[string]fabric.State{}, map[string]fabric.State{}
	for _, g := range guests {
		if g.state == fabric.Absent {
			continue
		}
		stored[g.vm.Name] = g.state
		for _, p := range g.vm.Ports(&c) {
			ports[p.Name], listed[p.Name] = texts(p.NIC.Prefixes()), g.state
			if g.state == fabric.Live {
				routes = append(routes, texts(p.NIC.Prefixes())...)
			}
		}
	}
	havePorts, haveRoutes := n.actual()
	assert.Equal(n.t, ports, havePorts, "ports")
	assert.ElementsMatch(n.t, routes, haveRoutes, "announcements")
	kept, err := n.store.All(n.t.Context())
	require.NoError(n.t, err)
	haveStored := map[string]fabric.State{}
	for _, d := range kept {
		haveStored[d.VM.Name] = d.State
	}
	assert.Equal(n.t, stored, haveStored, "store")
	assert.Equal(n.t, listed, n.states(), "list")
}

// actual gives the ports that are as they were put, and the announcements.
func (n *node) actual() (ports map[string][]string, announced []string) {
	n.t.Helper()
	states, err := n.dataplane.Actual(n.t.Context())
	require.NoError(n.t, err)
	ports = map[string][]string{}
	for _, p := range states {
		if len(p.Faults) == 0 {
			ports[p.Name] = texts(p.NIC.Prefixes())
		}
	}
	routes, err := n.speaker.Actual(n.t.Context())
	require.NoError(n.t, err)
	for _, r := range routes {
		announced = append(announced, r.Prefix.String())
	}
	return ports, announced
}

// as gives the lines of announcements as those of a preference.
func as(preference string, lines []string) []string {
	all := make([]string, len(lines))
	for i, l := range lines {
		all[i] = l + " " + preference
	}
	return all
}

// from gives the guest as a source of that name knows it.
func from(source string, vm fabric.VM) fabric.VM {
	vm.Origin = source
	vm.NICs = slices.Clone(vm.NICs)
	return vm
}

// runs makes a node and runs its agent while f works with it. Time stands
// still while anybody has something to do; moment lets it go on.
func runs(t *testing.T, prepare func(*node) []agent.Option, f func(*testing.T, *node)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		j := new(fake.Journal)
		n := &node{t: t, journal: j, dataplane: fake.NewDataplane(j), speaker: fake.NewSpeaker(j), store: fake.NewStore(j)}
		var opts []agent.Option
		if prepare != nil {
			opts = prepare(n)
		}
		n.start(opts...)
		n.run(func() { f(t, n) })
	})
}

// run runs the agent while f works with it. Inside runs or synctest.Test only.
func (n *node) run(f func()) {
	n.t.Helper()
	stop := n.begin()
	defer stop()
	moment()
	f()
}

// begin starts Run; stop ends it.
func (n *node) begin() (stop func()) {
	ctx, cancel := context.WithCancel(n.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	return func() {
		n.t.Helper()
		cancel()
		select {
		case err := <-ended:
			assert.NoError(n.t, err)
		case <-time.After(time.Minute):
			n.t.Error("Run does not return when its context ends")
		}
	}
}

// moment is time enough for everything that was woken, and too short for what
// is done from time to time. Whatever comes after it is newer.
func moment() {
	time.Sleep(300 * time.Millisecond)
	synctest.Wait()
}
