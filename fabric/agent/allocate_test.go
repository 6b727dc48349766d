package agent_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// asking is a guest of libvirt whose NIC asks for addresses of pools.
func asking(name string, pools ...string) fabric.VM {
	vm := known(name, "uuid-of-"+name, "")
	vm.NICs[0].Pools = pools
	return vm
}

// prefixPools are pools of which each guest gets a prefix.
func prefixPools() []fabric.Pool {
	return []fabric.Pool{
		{Name: "own4", Prefix: prefix("192.0.2.0/24"), PerGuest: 29, Quarantine: fabric.DefaultQuarantine},
		{Name: "own6", Prefix: prefix("2001:db8:300::/48"), PerGuest: 64, Quarantine: fabric.DefaultQuarantine},
		{Name: "bare4", Prefix: prefix("192.0.3.0/24"), PerGuest: 29, NoAddress: true, Quarantine: fabric.DefaultQuarantine},
		{Name: "bare6", Prefix: prefix("2001:db8:400::/48"), PerGuest: 64, NoAddress: true, Quarantine: fabric.DefaultQuarantine},
	}
}

func newRegistry(j *fake.Journal) *fake.Registry {
	c := cluster()
	c.Pools = append(c.Pools, prefixPools()...)
	return fake.NewRegistry(j, &c)
}

// allocations gives what a registry has, as lines such as "203.0.113.1/32 allocated web node1".
func allocations(t *testing.T, r fabric.Registry) []string {
	t.Helper()
	all, err := r.Allocations(t.Context(), fabric.AllocationFilter{})
	require.NoError(t, err)
	lines := []string{}
	for _, a := range all {
		lines = append(lines, fmt.Sprintf("%s %s %s %s", a.Prefix, a.State, a.VM, a.Node))
	}
	return lines
}

// has gives the addresses of a guest that is on a node.
func has(n *node, vm string) []netip.Addr {
	n.t.Helper()
	kept, err := n.store.All(n.t.Context())
	require.NoError(n.t, err)
	for _, d := range kept {
		if d.VM.Name == vm {
			return d.VM.NICs[0].Addresses
		}
	}
	return nil
}

// TestGuestGetsAddressesOfPools, and the same at each start, also after the agent's.
func TestGuestGetsAddressesOfPools(t *testing.T) {
	for name, vm := range map[string]fabric.VM{
		"pools by name":     asking("web", "public4", "public6"),
		"the first of each": asking("web", fabric.AutoPool),
		"it does not say":   func() fabric.VM { vm := asking("web"); vm.Resolve = true; return vm }(),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(nil)
			n := fresh(t, agent.WithRegistry(r))
			n.apply(vm, fabric.Wired)
			got := has(n, "web")
			assert.Equal(t, addrs("203.0.113.1", "2001:db8:100:1::"), got)
			assert.Equal(t, []string{"203.0.113.1/32 allocated web node1", "2001:db8:100:1::/128 allocated web node1"}, allocations(t, r))
			require.NoError(t, n.Started(t.Context(), vm))
			_, announced := n.actual()
			assert.ElementsMatch(t, []string{"203.0.113.1/32", "2001:db8:100:1::/128"}, announced)
			assert.Empty(t, n.problems())

			n.apply(asking("db", "public4"), fabric.Live)
			n = n.again(agent.WithRegistry(r))
			n.apply(vm, fabric.Live)
			assert.Equal(t, got, has(n, "web"))
			n.apply(vm, fabric.Absent)
			n.apply(vm, fabric.Live)
			assert.Equal(t, got, has(n, "web"))
			assert.Equal(t, addrs("203.0.113.2"), has(n, "db"))
		})
	}
}

func addrs(ss ...string) (as []netip.Addr) {
	for _, s := range ss {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

// TestAddressesByHandAndOfPools are on one NIC, those by hand first.
func TestAddressesByHandAndOfPools(t *testing.T) {
	r := newRegistry(nil)
	n := fresh(t, agent.WithRegistry(r))
	vm := asking("web", "public4")
	vm.NICs[0].Addresses = addrs("203.0.113.1")
	n.apply(vm, fabric.Live)
	assert.Equal(t, addrs("203.0.113.1", "203.0.113.2"), has(n, "web"))
	d, _, err := n.Describe(t.Context(), "web")
	require.NoError(t, err)
	assert.Equal(t, 1, d.NICs[0].Dynamic)
	n.apply(d, fabric.Live)
	assert.Equal(t, addrs("203.0.113.1", "203.0.113.2"), has(n, "web"))
}

// withPrefixes is a node whose cluster has the pools of prefixPools, too.
func withPrefixes(t *testing.T, r fabric.Registry) *node {
	j := new(fake.Journal)
	return (&node{
		t: t, pools: prefixPools(), journal: j, dataplane: fake.NewDataplane(j), speaker: fake.NewSpeaker(j), store: fake.NewStore(j),
	}).start(agent.WithRegistry(r))
}

// nic gives the first NIC of a guest that is on a node, as its store has it.
func nic(n *node, vm string) fabric.NIC {
	n.t.Helper()
	kept, err := n.store.All(n.t.Context())
	require.NoError(n.t, err)
	for _, d := range kept {
		if d.VM.Name == vm {
			return d.VM.NICs[0]
		}
	}
	return fabric.NIC{}
}

// TestGuestGetsPrefixes: they are routed to it and announced, the first address of each is
// its own, and it has the same at each start, also after the agent's, and after the agent
// lost its state.
func TestGuestGetsPrefixes(t *testing.T) {
	r := newRegistry(nil)
	n := withPrefixes(t, r)
	vm := asking("web", "own6", "public4", "own4")
	vm.NICs[0].Addresses, vm.NICs[0].Routes = addrs("203.0.113.1", "2001:db8:300::7"), prefixes("198.51.100.0/29")
	n.apply(vm, fabric.Wired)
	require.NoError(t, n.Started(t.Context(), vm))
	got := nic(n, "web")
	assert.Equal(t, addrs("203.0.113.1", "2001:db8:300::7", "2001:db8:300:1::1", "203.0.113.2", "192.0.2.1"), got.Addresses)
	assert.Equal(t, prefixes("198.51.100.0/29", "2001:db8:300:1::/64", "192.0.2.0/29"), got.Routes)
	assert.Equal(t, []int{3, 2}, []int{got.Dynamic, got.DynamicRoutes})
	_, announced := n.actual()
	assert.ElementsMatch(t, texts(got.Prefixes()), announced)
	assert.Empty(t, n.problems())
	recorded := []string{
		"192.0.2.0/29 allocated web node1", "198.51.100.0/29 allocated web node1", "203.0.113.1/32 allocated web node1", "203.0.113.2/32 allocated web node1",
		"2001:db8:300::7/128 allocated web node1", "2001:db8:300:1::/64 allocated web node1",
	}
	assert.Equal(t, recorded, allocations(t, r))

	n.apply(asking("db", "own6"), fabric.Live)
	assert.Equal(t, prefixes("2001:db8:300:2::/64"), nic(n, "db").Routes)
	n = n.again(agent.WithRegistry(r))
	n.apply(vm, fabric.Live)
	assert.Equal(t, got, nic(n, "web"))
	n.apply(vm, fabric.Absent)
	n.apply(vm, fabric.Live)
	assert.Equal(t, got, nic(n, "web"))

	n.dataplane.SetCarrier("web_net0", true)
	n.store = fake.NewStore(n.journal)
	n = n.again(agent.WithRegistry(r))
	n.apply(vm, fabric.Live)
	assert.Equal(t, []int{3, 2}, []int{nic(n, "web").Dynamic, nic(n, "web").DynamicRoutes})
	assert.ElementsMatch(t, got.Addresses, nic(n, "web").Addresses)
	assert.ElementsMatch(t, got.Routes, nic(n, "web").Routes)
	assert.Subset(t, allocations(t, r), recorded)
	n.apply(vm, fabric.Absent)
	n.apply(vm, fabric.Live)
	assert.Equal(t, got, nic(n, "web"), "what it asks for at its next start is what it has")
}

// TestPrefixWithoutAddress: it is routed through another address of the NIC, and refused
// where there is none. The guest keeps what it runs with.
func TestPrefixWithoutAddress(t *testing.T) {
	r := newRegistry(nil)
	n := withPrefixes(t, r)
	for _, pools := range [][]string{{"bare4"}, {"bare6"}, {"bare6", "public4"}, {"bare4", "public6"}} {
		require.ErrorIs(t, n.Apply(t.Context(), asking("web", pools...), fabric.Live), fabric.ErrRefused)
	}
	assert.Empty(t, allocations(t, r))
	vm := asking("web", "bare6", "bare4", fabric.AutoPool)
	n.apply(vm, fabric.Live)
	got := nic(n, "web")
	assert.Equal(t, addrs("203.0.113.1", "2001:db8:100:1::"), got.Addresses)
	assert.Equal(t, prefixes("2001:db8:400::/64", "192.0.3.0/29"), got.Routes)
	assert.Equal(t, []int{2, 2}, []int{got.Dynamic, got.DynamicRoutes})
	_, announced := n.actual()
	assert.ElementsMatch(t, texts(got.Prefixes()), announced)
	recorded := allocations(t, r)
	for _, lost := range []bool{false, true} { // the second time the node's state is lost, and the guest runs
		if lost {
			n.dataplane.SetCarrier("web_net0", true)
			n.store = fake.NewStore(n.journal)
		}
		n = n.again(agent.WithRegistry(r))
		n.apply(vm, fabric.Live)
		assert.ElementsMatch(t, got.Addresses, nic(n, "web").Addresses)
		assert.ElementsMatch(t, got.Routes, nic(n, "web").Routes)
		assert.Equal(t, recorded, allocations(t, r))
		assert.Empty(t, n.problems())
	}
	n.apply(vm, fabric.Absent)
	vm = asking("db", "bare6")
	vm.NICs[0].Addresses = addrs("2001:db8:100::9")
	assert.ErrorContains(t, n.Apply(t.Context(), vm, fabric.Live), "excluded from pool public6")
	vm.NICs[0].Addresses = addrs("2001:db8:100:9::9")
	n.apply(vm, fabric.Live)
	assert.Equal(t, addrs("2001:db8:100:9::9"), nic(n, "db").Addresses)
	copied := asking("copy", "bare6")
	copied.NICs[0].Addresses = addrs("2001:db8:100:9::9")
	assert.ErrorContains(t, n.Apply(t.Context(), copied, fabric.Live), `held by VM "db"`)
	assert.Equal(t, prefixes("2001:db8:400:1::/64"), nic(n, "db").Allocated())
}

// TestAddressInTheGuestsOwnPrefix: a guest may name addresses of the prefix that a pool
// gave it, also while it has another one.
func TestAddressInTheGuestsOwnPrefix(t *testing.T) {
	r := newRegistry(nil)
	n := withPrefixes(t, r)
	n.apply(asking("web", "own6"), fabric.Live)
	n.apply(asking("web", "own6"), fabric.Absent)
	for _, named := range [][]netip.Addr{addrs("2001:db8:300::7"), addrs("2001:db8:300::1"), addrs("2001:db8:300::7", "2001:db8:300::1")} {
		vm := asking("web", "own6")
		vm.NICs[0].Addresses = named
		n.apply(vm, fabric.Live)
		got := nic(n, "web")
		if slices.Contains(named, netip.MustParseAddr("2001:db8:300::1")) {
			assert.Equal(t, named, got.Addresses, "it names the one that the prefix gives it")
		} else {
			assert.Equal(t, addrs("2001:db8:300::7", "2001:db8:300::1"), got.Addresses)
		}
		assert.Equal(t, prefixes("2001:db8:300::/64"), got.Routes)
		assert.Equal(t, prefixes("2001:db8:300::/64"), got.Allocated())
		assert.Equal(t, []string{"2001:db8:300::/64 allocated web node1"}, allocations(t, r))
		assert.Empty(t, n.problems())
		n = n.again(agent.WithRegistry(r))
		n.apply(vm, fabric.Live)
		assert.Equal(t, got, nic(n, "web"))
		n.apply(vm, fabric.Absent)
	}
	err := n.Apply(t.Context(), known("db", "uuid-of-db", "2001:db8:300::9"), fabric.Live)
	require.ErrorIs(t, err, fabric.ErrRefused)
}

// TestRoutesAreRecorded: the registry keeps two nodes from routing one prefix to two
// guests, and gives nothing of it away.
func TestRoutesAreRecorded(t *testing.T) {
	r := newRegistry(nil)
	first, second := known("web", "uuid-of-web", "203.0.113.9 198.51.100.0/29 192.0.2.0/29"), known("copy", "uuid-of-copy", "203.0.113.10 198.51.100.4/30")
	pairsOf(t, fake.NewSource, first, func(t *testing.T, p *pair) {
		p.runs(p.one, first)
		time.Sleep(time.Second)
		assert.Contains(t, allocations(t, r), "198.51.100.0/29 allocated web node1")
		require.ErrorIs(t, p.two.Apply(t.Context(), second, fabric.Wired), fabric.ErrRefused)
		p.two.apply(asking("own", "own4"), fabric.Live)
		assert.Equal(t, prefixes("192.0.2.8/29"), nic(p.two, "own").Routes)
		p.over(p.one, first)
		p.runs(p.two, second)
		assert.Contains(t, allocations(t, r), "198.51.100.4/30 allocated copy node2")
	}, func(string) []agent.Option { return []agent.Option{agent.WithRegistry(r)} })
}

func prefixes(ss ...string) (ps []netip.Prefix) {
	for _, s := range ss {
		ps = append(ps, prefix(s))
	}
	return ps
}

// TestRefusedByTheRegistry: nothing changes, and the caller hears why.
func TestRefusedByTheRegistry(t *testing.T) {
	r := newRegistry(nil)
	n := fresh(t, agent.WithRegistry(r), agent.WithRemedies(func(r fabric.Reason) string { return "remedy of " + string(r) }))
	n.apply(asking("db", "public4"), fabric.Live)
	n.apply(asking("db", "public4"), fabric.Absent) // it is stopped, and keeps it
	before := allocations(t, r)
	assert.Equal(t, []string{"203.0.113.1/32 allocated db node1"}, before)
	for _, tc := range []struct {
		vm     fabric.VM
		reason fabric.Reason
		says   string
	}{
		{asking("web", "none"), fabric.PoolUnknown, `guest web refused: NIC 0: no pool "none" for node node1; name another; remedy of pool unknown`},
		{known("web", "uuid-of-web", "203.0.113.1"), fabric.AddressHeld, "guest web refused: NIC 0: 203.0.113.1/32 is allocated (guest db on node1); choose another; remedy of address held"},
	} {
		err := n.Apply(t.Context(), tc.vm, fabric.Wired)
		require.ErrorIs(t, err, fabric.ErrRefused)
		var refused *fabric.RefusedError
		require.True(t, errors.As(err, &refused))
		assert.Equal(t, tc.reason, refused.Reason)
		assert.EqualError(t, err, tc.says)
		assert.Equal(t, before, allocations(t, r))
		n.holds()
	}
	none := fresh(t)
	assert.EqualError(t, none.Apply(t.Context(), asking("web", "public4"), fabric.Wired), "guest web refused: it asks for an address, and this node has no registry to give one")
}

// TestGuestThatCannotStartGivesItsAddressesBack: what it got for this start, not what
// it had before.
func TestGuestThatCannotStartGivesItsAddressesBack(t *testing.T) {
	r := newRegistry(nil)
	n := fresh(t, agent.WithRegistry(r))
	vm := asking("web", "public4")
	n.dataplane.Fail("wire web_net0", errors.New("no tap"))
	require.Error(t, n.Apply(t.Context(), vm, fabric.Wired))
	assert.Empty(t, allocations(t, r))
	n.dataplane.Fail("wire web_net0", nil)
	n.apply(vm, fabric.Wired)
	n.apply(vm, fabric.Absent)
	n.dataplane.Fail("wire web_net0", errors.New("no tap"))
	require.Error(t, n.Apply(t.Context(), vm, fabric.Wired))
	assert.Equal(t, []string{"203.0.113.1/32 allocated web node1"}, allocations(t, r))
}

// TestRegistryThatIsAway: guests run on, one that says what it has starts and is
// recorded later, one that asks is refused.
func TestRegistryThatIsAway(t *testing.T) {
	for name, spoil := range map[string]func(*fake.Registry) (mend func()){
		"it fails": func(r *fake.Registry) func() {
			r.Fail("allocate", errors.New("no quorum"))
			r.Fail("list addresses", errors.New("no quorum"))
			return func() { r.Fail("allocate", nil); r.Fail("list addresses", nil) }
		},
		"it hangs": func(r *fake.Registry) func() {
			first, second := r.Hang("allocate"), r.Hang("list addresses")
			return func() { first(); second() }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRegistry(nil)
				n := fresh(t, agent.WithRegistry(r))
				n.run(func() {
					n.apply(asking("web", "public4"), fabric.Live)
					mend := spoil(r)
					n.apply(asking("web", "public4"), fabric.Live)
					assert.Empty(t, n.problems(), "it is here")
					began := time.Now()
					err := n.Apply(t.Context(), asking("new", "public4"), fabric.Wired)
					require.ErrorIs(t, err, fabric.ErrRefused)
					assert.LessOrEqual(t, time.Since(began), 5*time.Second)
					began = time.Now()
					n.apply(known("db", "uuid-of-db", "203.0.113.9"), fabric.Live)
					assert.LessOrEqual(t, time.Since(began), time.Second)
					require.Len(t, n.problems(), 1)
					assert.Contains(t, n.problems()[0], "guest db: the registry does not have its addresses: ")
					n.apply(known("mx", "uuid-of-mx", "203.0.113.8"), fabric.Live)
					n.apply(known("mx", "uuid-of-mx", "203.0.113.8"), fabric.Absent)
					assert.Len(t, n.problems(), 1, "what is not here any more is no problem of the node")
					mend()
					time.Sleep(time.Minute)
					assert.Empty(t, n.problems())
					assert.Subset(t, allocations(t, r), []string{"203.0.113.1/32 allocated web node1", "203.0.113.9/32 allocated db node1"})
				})
			})
		})
	}
}

// TestGuestsOfBeforeAreRecorded: those that a node had before it had a registry, and
// those whose registry lost what it knew.
func TestGuestsOfBeforeAreRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := fresh(t)
		n.apply(known("db", "uuid-of-db", "203.0.113.9"), fabric.Live)
		first := newRegistry(nil)
		n = n.again(agent.WithRegistry(first))
		n.run(func() { n.apply(asking("web", "public4", "public6"), fabric.Live) })
		second := newRegistry(nil)
		n = n.again(agent.WithRegistry(second))
		n.run(func() {
			time.Sleep(time.Second)
			assert.Equal(t, allocations(t, first), allocations(t, second))
			assert.Len(t, allocations(t, second), 3)
			all, err := second.Allocations(t.Context(), fabric.AllocationFilter{})
			require.NoError(t, err)
			assert.True(t, all[0].Dynamic)
		})
	})
}

// TestGuestThatRunsGetsNoNewAddress: nobody knows which one it runs with.
func TestGuestThatRunsGetsNoNewAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, src := newRegistry(nil), fake.NewSource("libvirt")
		src.SetQuietly(asking("web", "public4"), fabric.Live)
		n := fresh(t, agent.WithRegistry(r), agent.WithSources(src))
		n.run(func() {
			time.Sleep(time.Second)
			assert.Empty(t, allocations(t, r))
			require.Len(t, n.problems(), 1)
			assert.Equal(t, "guest web runs, but it asks for addresses of pools, and the registry does not know which it runs with; stop and start it", n.problems()[0])
		})
	})
}

// TestRegistriesOfTheirOwn: a guest keeps its addresses and prefixes where it moves, and
// the node that gave them knows where it is, and when it is gone for good.
func TestRegistriesOfTheirOwn(t *testing.T) {
	for name, tt := range map[string]struct {
		pools []string
		has   []string
	}{
		"addresses": {[]string{fabric.AutoPool}, []string{"203.0.113.1/32", "2001:db8:100:1::/128"}},
		"prefixes":  {[]string{"own6", "own4", "public6"}, []string{"192.0.2.0/29", "2001:db8:100:1::/128", "2001:db8:300::/64"}},
		"without":   {[]string{"bare6", "bare4", fabric.AutoPool}, []string{"192.0.3.0/29", "203.0.113.1/32", "2001:db8:100:1::/128", "2001:db8:400::/64"}},
	} {
		t.Run(name, func(t *testing.T) {
			registries := map[string]*fake.Registry{"node1": newRegistry(nil).OfOneNode(), "node2": newRegistry(nil).OfOneNode()}
			vm := asking("web", tt.pools...)
			with := func(node string) []agent.Option { return []agent.Option{agent.WithRegistry(registries[node])} }
			are := func(state string) (lines []string) {
				for _, p := range tt.has {
					lines = append(lines, p+" "+state+" web node2")
				}
				return lines
			}
			pairsOf(t, fake.NewSource, vm, func(t *testing.T, p *pair) {
				p.runs(p.one, vm)
				got := nic(p.one, "web")
				require.Len(t, got.Allocated(), len(tt.has))
				p.arrives(p.two)
				assert.Equal(t, got, nic(p.two, "web"))
				p.src[p.two].Set(vm, fabric.Live)
				moment()
				p.leaves(p.one)
				_, announced := p.two.actual()
				assert.ElementsMatch(t, texts(got.Prefixes()), announced)
				assert.Equal(t, are("allocated"), allocations(t, registries["node2"]))
				time.Sleep(time.Second)
				assert.Equal(t, are("allocated"), allocations(t, registries["node1"]), "nobody said that it is gone there")

				p.src[p.one].Forget(vm)
				time.Sleep(time.Second)
				assert.Equal(t, are("allocated"), allocations(t, registries["node1"]), "it is on the other node")
				p.over(p.two, vm)
				p.src[p.two].Forget(vm)
				time.Sleep(time.Second)
				assert.Equal(t, are("quarantined"), allocations(t, registries["node1"]))
			}, with)
		})
	}
}

// TestOlderNodeIsNotToldTwice what it does not know, and hears the rest.
func TestOlderNodeIsNotToldTwice(t *testing.T) {
	registries := map[string]*fake.Registry{"node1": newRegistry(nil).OfOneNode(), "node2": newRegistry(nil).OfOneNode()}
	vm := asking("web", fabric.AutoPool)
	pairsOf(t, fake.NewSource, vm, func(t *testing.T, p *pair) {
		p.ends[p.one].Fail("node1 tells node2 forgotten", fmt.Errorf("it is older: %w", errors.ErrUnsupported))
		p.runs(p.one, vm)
		p.over(p.one, vm)
		p.src[p.one].Forget(vm)
		moment()
		p.forget()
		p.runs(p.one, known("mx", "uuid-of-mx", "203.0.113.9"))
		moment()
		assert.Contains(t, p.talk.Take(), "node1 tells node2 claimed mx")
		assert.Empty(t, p.one.problems())
	}, func(node string) []agent.Option { return []agent.Option{agent.WithRegistry(registries[node])} })
}

// TestGuestThatStartsElsewhere keeps the address and the prefix of its node's own registry.
func TestGuestThatStartsElsewhere(t *testing.T) {
	registries := map[string]*fake.Registry{"node1": newRegistry(nil).OfOneNode(), "node2": newRegistry(nil).OfOneNode()}
	vm := asking("web", fabric.AutoPool, "own6")
	vm.NICs[0].Addresses = addrs("203.0.113.77")
	with := func(node string) []agent.Option { return []agent.Option{agent.WithRegistry(registries[node])} }
	pairsOf(t, fake.NewSource, vm, func(t *testing.T, p *pair) {
		p.runs(p.one, vm)
		time.Sleep(time.Second)
		got := nic(p.one, "web")
		p.over(p.one, vm)
		assert.Contains(t, allocations(t, registries["node1"]), "203.0.113.1/32 allocated web node1")
		p.runs(p.two, vm)
		assert.Equal(t, got, nic(p.two, "web"))
		assert.Contains(t, allocations(t, registries["node1"]), "203.0.113.1/32 allocated web node2")
		assert.Contains(t, allocations(t, registries["node1"]), "2001:db8:300::/64 allocated web node2")
	}, with)
}

// TestGuestMovesWithoutTheRegistry: the node that it leaves says what it has.
func TestGuestMovesWithoutTheRegistry(t *testing.T) {
	for name, spoil := range map[string]func(*fake.Registry){
		"it fails": func(r *fake.Registry) {
			r.Fail("allocate", errors.New("no quorum"))
			r.Fail("list addresses", errors.New("no quorum"))
		},
		"it hangs": func(r *fake.Registry) { r.Hang("allocate"); r.Hang("list addresses") },
	} {
		t.Run(name, func(t *testing.T) {
			r, vm := newRegistry(nil), asking("web", "public4", "public6", "own6")
			pairsOf(t, fake.NewSource, vm, func(t *testing.T, p *pair) {
				p.runs(p.one, vm)
				got := nic(p.one, "web")
				require.Len(t, got.Allocated(), 3)
				spoil(r)
				p.arrives(p.two)
				assert.Equal(t, got, nic(p.two, "web"))
				p.src[p.two].Set(vm, fabric.Live)
				moment()
				p.leaves(p.one)
				_, announced := p.two.actual()
				assert.Len(t, announced, 4)
			}, func(string) []agent.Option { return []agent.Option{agent.WithRegistry(r)} })
		})
	}
}

// TestGuestByHandIsGoneForGood when it is detached: nobody else has a description of it.
func TestGuestByHandIsGoneForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(nil)
		n := fresh(t, agent.WithRegistry(r))
		n.run(func() {
			vm := fabric.VM{Name: "web", NICs: []fabric.NIC{{Pools: []string{"public4"}}}}
			n.apply(vm, fabric.Live)
			n.apply(vm, fabric.Absent)
			time.Sleep(time.Second)
			assert.Equal(t, []string{"203.0.113.1/32 quarantined web node1"}, allocations(t, r))
			n.apply(vm, fabric.Live)
			assert.Equal(t, []string{"203.0.113.1/32 allocated web node1"}, allocations(t, r), "it came back in time")
		})
	})
}

// unheard is a registry whose answers to allocations come when nobody waits any more.
type unheard struct{ fabric.Registry }

func (r unheard) Allocate(ctx context.Context, a fabric.AllocationRequest) ([]fabric.Allocation, error) {
	_, _ = r.Registry.Allocate(ctx, a)
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestAgentDiesBetweenAllocationAndPort: what the guest got is its own when it starts, and
// is given back when it never does.
func TestAgentDiesBetweenAllocationAndPort(t *testing.T) {
	byHand := fabric.VM{Name: "web", NICs: []fabric.NIC{{Pools: []string{"public4"}}}}
	for name, then := range map[string]struct {
		vm   fabric.VM
		does func(*node, *fake.Source)
		left string
	}{
		"it starts":                       {asking("web", "public4"), func(n *node, _ *fake.Source) { n.apply(asking("web", "public4"), fabric.Live) }, "allocated"},
		"its hypervisor forgets it":       {asking("web", "public4"), func(_ *node, src *fake.Source) { src.Forget(asking("web", "public4")) }, "quarantined"},
		"it is attached by hand again":    {byHand, func(n *node, _ *fake.Source) { n.apply(byHand, fabric.Live) }, "allocated"},
		"it was by hand, and is detached": {byHand, func(n *node, _ *fake.Source) { n.apply(fabric.VM{Name: "web"}, fabric.Absent) }, "quarantined"},
	} {
		for _, stored := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, stored %v", name, stored), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r, src := newRegistry(nil), fake.NewSource("libvirt")
					dead := fresh(t, agent.WithRegistry(r))
					if stored {
						defer dead.dataplane.Hang("wire web_net0")()
					} else {
						dead = fresh(t, agent.WithRegistry(unheard{r}))
					}
					go func() { _ = dead.Apply(t.Context(), then.vm, fabric.Live) }()
					synctest.Wait()
					require.Equal(t, []string{"203.0.113.1/32 allocated web node1"}, allocations(t, r))
					n := dead.again(agent.WithRegistry(r), agent.WithSources(src))
					n.run(func() {
						then.does(n, src)
						time.Sleep(time.Second)
						assert.Equal(t, []string{"203.0.113.1/32 " + then.left + " web node1"}, allocations(t, r))
					})
				})
			})
		}
	}
}

// TestAgentDiesBetweenEndAndRelease: the agent after it gives back what guests had that
// were gone for good, however long the registry was away.
func TestAgentDiesBetweenEndAndRelease(t *testing.T) {
	for name, tc := range map[string]struct {
		vm   fabric.VM
		ends func(*node, *fake.Source)
	}{
		"its hypervisor forgot it": {asking("web", "public4"), func(n *node, src *fake.Source) {
			n.apply(asking("web", "public4"), fabric.Absent)
			src.Forget(asking("web", "public4"))
		}},
		"it was detached": {fabric.VM{Name: "web", NICs: []fabric.NIC{{Pools: []string{"public4"}}}}, func(n *node, _ *fake.Source) {
			n.apply(fabric.VM{Name: "web"}, fabric.Absent)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, src := newRegistry(nil), fake.NewSource("libvirt")
				n := fresh(t, agent.WithRegistry(r), agent.WithSources(src))
				n.run(func() {
					n.apply(tc.vm, fabric.Live)
					r.Fail("release", errors.New("no quorum"))
					tc.ends(n, src)
					time.Sleep(time.Minute)
				})
				assert.Equal(t, []string{"203.0.113.1/32 allocated web node1"}, allocations(t, r))
				for range 2 { // the first one has no more luck
					n = n.again(agent.WithRegistry(r), agent.WithSources(fake.NewSource("libvirt")))
					n.run(func() { time.Sleep(time.Minute) })
					r.Fail("release", nil)
				}
				assert.Equal(t, []string{"203.0.113.1/32 quarantined web node1"}, allocations(t, r))
				kept, err := n.store.KeptGone(t.Context())
				require.NoError(t, err)
				assert.Empty(t, kept)
			})
		})
	}
}

// TestSilentNodeKeepsAddresses: a guest that is gone may be there.
func TestSilentNodeKeepsAddresses(t *testing.T) {
	r := newRegistry(nil)
	pairsOf(t, fake.NewSource, asking("web", "public4"), func(t *testing.T, p *pair) {
		p.runs(p.one, p.vm)
		time.Sleep(10 * time.Second)
		p.ends[p.one].Cut("node2", true)
		p.over(p.one, p.vm)
		p.src[p.one].Forget(p.vm)
		time.Sleep(time.Minute)
		assert.Equal(t, []string{"203.0.113.1/32 allocated web node1"}, allocations(t, r))
		p.ends[p.one].Cut("node2", false)
		time.Sleep(time.Minute)
		assert.Equal(t, []string{"203.0.113.1/32 quarantined web node1"}, allocations(t, r))
	}, func(string) []agent.Option { return []agent.Option{agent.WithRegistry(r)} })
}

// TestAddressOfAGuestThatIsNoMore: its hypervisor does not know it, although nobody
// said that it is gone.
func TestAddressOfAGuestThatIsNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, src := newRegistry(nil), fake.NewSource("libvirt")
		n := fresh(t, agent.WithRegistry(r), agent.WithSources(src))
		n.run(func() {
			old, young := asking("old", "public4"), known("young", "uuid-of-young", "203.0.113.1")
			src.Know("old", old)
			n.apply(old, fabric.Wired)
			n.apply(old, fabric.Absent)
			require.ErrorIs(t, n.Apply(t.Context(), young, fabric.Wired), fabric.ErrRefused, "it is defined yet")
			src.ForgetQuietly("old")
			n.apply(young, fabric.Wired)
			assert.Equal(t, []string{"203.0.113.1/32 allocated young node1"}, allocations(t, r))
		})
	})
}

// TestAddressThatAGuestNamesIsThatOfTheOneThatRuns: as it is without a registry.
func TestAddressThatAGuestNamesIsThatOfTheOneThatRuns(t *testing.T) {
	r := newRegistry(nil)
	first, second := known("web", "uuid-of-web", "203.0.113.9 203.0.113.8"), known("copy", "uuid-of-copy", "203.0.113.9 203.0.113.8")
	pairsOf(t, fake.NewSource, first, func(t *testing.T, p *pair) {
		p.runs(p.one, first)
		time.Sleep(time.Second)
		require.ErrorIs(t, p.one.Apply(t.Context(), second, fabric.Wired), fabric.ErrRefused)
		require.ErrorIs(t, p.two.Apply(t.Context(), second, fabric.Wired), fabric.ErrRefused)
		assert.Len(t, allocations(t, r), 2)
		p.over(p.one, first)
		p.runs(p.two, second)
		assert.Equal(t, []string{"203.0.113.8/32 allocated copy node2", "203.0.113.9/32 allocated copy node2"}, allocations(t, r))
		assert.Empty(t, p.two.problems())
	}, func(string) []agent.Option { return []agent.Option{agent.WithRegistry(r)} })
}

// TestRecordThatCannotBeRead: nobody gets its address, and nobody but the operator ends it,
// also while its guest runs, which is recorded anew then.
func TestRecordThatCannotBeRead(t *testing.T) {
	r := newRegistry(nil)
	web, other := known("web", "uuid-of-web", "203.0.113.9"), known("copy", "uuid-of-copy", "203.0.113.9")
	pairsOf(t, fake.NewSource, web, func(t *testing.T, p *pair) {
		p.runs(p.one, web)
		at := prefix("203.0.113.9/32")
		r.Damage(at, "key x is damaged; release it")
		damaged := []string{"203.0.113.9/32 allocated unreadable "}
		require.ErrorIs(t, p.two.Apply(t.Context(), other, fabric.Wired), fabric.ErrRefused)
		time.Sleep(2 * time.Minute)
		assert.Equal(t, damaged, allocations(t, r))
		assert.Contains(t, p.one.problems(), "guest web: the registry does not have its addresses: NIC 0: key x is damaged; release it")
		_, err := p.one.Reassign(t.Context(), at, "web")
		require.ErrorContains(t, err, "key x is damaged; release it")
		_, _, err = p.two.Release(t.Context(), fabric.ReleaseRequest{Prefix: at, Now: true})
		require.ErrorContains(t, err, "guest web has it on node1", "another guest could get it at once")

		_, _, err = p.two.Release(t.Context(), fabric.ReleaseRequest{Prefix: at})
		require.NoError(t, err)
		time.Sleep(2 * time.Minute)
		assert.Equal(t, []string{"203.0.113.9/32 allocated web node1"}, allocations(t, r))
		assert.Empty(t, p.one.problems())

		p.over(p.one, web)
		r.Damage(at, "key x is damaged; release it")
		for _, n := range []*node{p.one, p.two} {
			require.ErrorIs(t, n.Apply(t.Context(), other, fabric.Live), fabric.ErrRefused, "nobody has it")
			require.ErrorContains(t, n.Apply(t.Context(), web, fabric.Live), "key x is damaged; release it")
		}
		assert.Equal(t, damaged, allocations(t, r))
	}, func(string) []agent.Option { return []agent.Option{agent.WithRegistry(r)} })
}

// TestAddressOfAGuestThatIsWithdrawnElsewhere: it runs, and has its address again when
// the other guest has ended.
func TestAddressOfAGuestThatIsWithdrawnElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, web := newRegistry(nil), known("web", "uuid-of-web", "203.0.113.9")
		_, err := r.Allocate(t.Context(), fabric.AllocationRequest{Guest: web.Identity(), VM: "web", Node: "node2", Wants: []fabric.Want{{Prefix: prefix("203.0.113.9/32")}}})
		require.NoError(t, err)
		ends := fake.NewNodes(nil, cluster().Nodes[:2]...)
		ctx, cancel := context.WithCancel(t.Context())
		var here atomic.Bool
		here.Store(true)
		served := make(chan error)
		go func() {
			served <- ends["node2"].Serve(ctx, func(_ context.Context, _ fabric.Node, n fabric.Notice) fabric.Answer {
				if n.Kind != fabric.Describing || !here.Load() {
					return fabric.Answer{}
				}
				return fabric.Answer{Held: true, VM: "web", Identity: web.Identity(), NICs: web.NICs}
			})
		}()
		n := fresh(t, agent.WithNodes(ends["node1"]), agent.WithRegistry(r))
		n.run(func() {
			other := known("copy", "uuid-of-copy", "203.0.113.9")
			require.ErrorIs(t, n.Apply(t.Context(), other, fabric.Live), fabric.ErrRefused)
			assert.Equal(t, []string{"203.0.113.9/32 allocated web node2"}, allocations(t, r))
			here.Store(false)
			n.apply(other, fabric.Live)
			assert.Equal(t, []string{"203.0.113.9/32 allocated copy node1"}, allocations(t, r))
		})
		cancel()
		require.NoError(t, <-served)
	})
}

// TestAddressOfAGuestOnANodeThatWasNotMet: an agent that has just begun waits a minute for
// a node that does not answer; perhaps no agent runs there.
func TestAddressOfAGuestOnANodeThatWasNotMet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, web := newRegistry(nil), known("web", "uuid-of-web", "203.0.113.9")
		_, err := r.Allocate(t.Context(), fabric.AllocationRequest{Guest: web.Identity(), VM: "web", Node: "node9", Wants: []fabric.Want{{Prefix: prefix("203.0.113.9/32")}}})
		require.NoError(t, err)
		n := fresh(t, agent.WithNodes(fake.NewNodes(nil, cluster().Nodes[:2]...)["node1"]), agent.WithRegistry(r))
		n.run(func() {
			other := known("copy", "uuid-of-copy", "203.0.113.9")
			until := time.Now().Add(time.Minute).Format(time.TimeOnly)
			time.Sleep(50 * time.Second)
			err := n.Apply(t.Context(), other, fabric.Live)
			require.ErrorIs(t, err, fabric.ErrRefused)
			require.ErrorContains(t, err, "guest web may be on node2, whose agent does not answer: start that, or see that the guest is off, and release the address; this agent has just begun, and waits for node2 until "+until+": try again then")
			assert.NotContains(t, err.Error(), "\n")
			time.Sleep(10 * time.Second)
			n.apply(other, fabric.Live)
			assert.Equal(t, []string{"203.0.113.9/32 allocated copy node1"}, allocations(t, r))
		})
	})
}

// TestAddressOfAGuestOnASilentNode: its owner is waited for without an end, and named.
func TestAddressOfAGuestOnASilentNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, web := newRegistry(nil), known("web", "uuid-of-web", "2001:db8:100:5::9")
		_, err := r.Allocate(t.Context(), fabric.AllocationRequest{Guest: web.Identity(), VM: "web", Node: "node2", Wants: []fabric.Want{{Prefix: prefix("2001:db8:100:5::9/128")}}})
		require.NoError(t, err)
		n := fresh(t, agent.WithNodes(fake.NewNodes(nil, cluster().Nodes[:2]...)["node1"]), agent.WithRegistry(r))
		n.run(func() {
			for range 2 {
				err := n.Apply(t.Context(), known("copy", "uuid-of-copy", "2001:db8:100:5::9"), fabric.Live)
				require.ErrorIs(t, err, fabric.ErrRefused)
				require.ErrorContains(t, err, "guest web may be on node2, whose agent does not answer: start that")
				assert.NotContains(t, err.Error(), "try again then")
				time.Sleep(2 * time.Minute)
			}
		})
	})
}

// TestReflectorKeepsAddresses: what a guest had that is gone is not given back while a
// reflector has a route of another node to it, or may have one of this node.
func TestReflectorKeepsAddresses(t *testing.T) {
	elsewhere := func(ps ...string) (all []fabric.ReceivedRoute) {
		for _, p := range ps {
			all = append(all, fabric.ReceivedRoute{Prefix: netip.MustParsePrefix(p), Via: netip.MustParseAddr("10.10.0.99"), Peer: "rr1"})
		}
		return all
	}
	ends := fabric.DefaultTimers.Hold + fabric.DefaultTimers.Restart
	for name, tc := range map[string]struct {
		has     func(*node)
		says    string
		over    func(*testing.T, *node) // and it is given back at once; nil: it is after ends
		forever bool                    // it is never given back without over
	}{
		"IPv4 elsewhere": {
			has: func(n *node) { n.speaker.SetReceived(elsewhere("203.0.113.1/32")...) }, says: "reflector rr1 has a route to 203.0.113.1 via 10.10.0.99",
			over: func(_ *testing.T, n *node) { n.speaker.SetReceived() }, forever: true,
		},
		"IPv6 elsewhere": {
			has: func(n *node) { n.speaker.SetReceived(elsewhere("2001:db8:100:5::1/128", "203.0.113.77/32")...) }, says: "reflector rr1 has a route to 2001:db8:100:5::1 via 10.10.0.99",
			over: func(_ *testing.T, n *node) { n.speaker.SetReceived(elsewhere("203.0.113.77/32")...) }, forever: true,
		},
		"its session comes back": {
			has: func(n *node) { n.speaker.SetSessions(fabric.Session{Peer: "rr2", State: "active", Since: time.Now()}) }, says: "reflector rr2 may keep this node's route until",
			over: func(_ *testing.T, n *node) {
				n.speaker.SetSessions(fabric.Session{Peer: "rr2", State: fabric.Established, Since: time.Now()})
			},
		},
		"its session stays down": {
			has: func(n *node) { n.speaker.SetSessions(fabric.Session{Peer: "rr2", State: "active", Since: time.Now()}) }, says: "reflector rr2 may keep this node's route until",
		},
		"the speaker does not answer": {
			has: func(n *node) { n.speaker.Fail("list received routes", errors.New("boom")) }, says: "the speaker does not say which routes the reflectors have (boom)",
		},
		"the operator releases it": {
			has: func(n *node) { n.speaker.SetReceived(elsewhere("203.0.113.1/32")...) }, says: "reflector rr1 has a route to 203.0.113.1",
			over: func(t *testing.T, n *node) {
				for _, p := range []string{"203.0.113.1/32", "2001:db8:100:5::1/128"} {
					_, _, err := n.Release(t.Context(), fabric.ReleaseRequest{Prefix: netip.MustParsePrefix(p)})
					require.NoError(t, err)
				}
			}, forever: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRegistry(nil)
				n := fresh(t, agent.WithRegistry(r))
				n.run(func() {
					vm := fabric.VM{Name: "web", NICs: []fabric.NIC{{Pools: []string{"public4"}, Addresses: addrs("2001:db8:100:5::1")}}}
					n.apply(vm, fabric.Live)
					tc.has(n)
					n.apply(vm, fabric.Absent)
					time.Sleep(time.Minute)
					n.waitsFor(tc.says)
					if tc.forever {
						time.Sleep(2 * ends)
						n.waitsFor(tc.says)
					}
					if tc.over != nil {
						tc.over(t, n)
					} else {
						time.Sleep(ends - time.Minute)
					}
					time.Sleep(11 * time.Second)
					assert.Equal(t, []string{"203.0.113.1/32 quarantined web node1", "2001:db8:100:5::1/128 quarantined web node1"}, allocations(t, r))
					st, err := n.Status(t.Context())
					require.NoError(t, err)
					assert.NotContains(t, strings.Join(st.Problems, "\n"), "web")
				})
			})
		})
	}
}

// waitsFor checks that the two addresses of web, which is gone, wait for something.
func (n *node) waitsFor(what string) {
	n.t.Helper()
	all, err := n.Addresses(n.t.Context())
	require.NoError(n.t, err)
	for _, a := range all.Allocations {
		assert.Equal(n.t, fabric.Allocated, a.State)
		assert.Contains(n.t, a.Waits, what)
	}
	require.Len(n.t, all.Allocations, 2)
	st, err := n.Status(n.t.Context())
	require.NoError(n.t, err)
	assert.Contains(n.t, strings.Join(st.Problems, "\n"), "guest web is gone for good, and its addresses are not given back yet: "+what)
}
