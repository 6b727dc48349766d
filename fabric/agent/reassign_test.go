package agent_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// TestReassign gives what a guest had to another one, which has it at its next start, in
// the place of what a pool gave that.
func TestReassign(t *testing.T) {
	r := newRegistry(nil)
	web, db := asking("web", "public4", "public6"), asking("db", "public4", "public6")
	pairsOf(t, fake.NewSource, web, func(t *testing.T, p *pair) {
		p.src[p.one].Know("web", web)
		p.src[p.one].Know("db", db)
		p.runs(p.one, web)
		p.runs(p.two, db)
		time.Sleep(time.Second)
		ps := []netip.Prefix{prefix("203.0.113.1/32"), prefix("2001:db8:100:1::/128")}
		assert.Equal(t, ps, []netip.Prefix{fabric.HostPrefix(has(p.one, "web")[0]), fabric.HostPrefix(has(p.one, "web")[1])})
		for _, address := range ps {
			_, err := p.two.Reassign(t.Context(), address, "db")
			require.ErrorIs(t, err, fabric.ErrRefused)
			assert.EqualError(t, err, address.Addr().String()+" refused: guest web has it on node1; stop that one first")
		}
		p.over(p.one, web)
		_, err := p.one.Reassign(t.Context(), ps[0], "db")
		require.EqualError(t, err, "203.0.113.1 refused: guest db is on node2; stop it first, it gets the address when it starts")
		p.over(p.two, db)
		p.ends[p.one].Cut("node2", true)
		_, err = p.two.Reassign(t.Context(), ps[0], "db")
		require.ErrorContains(t, err, "guest web may be on node1, whose agent does not answer")
		p.ends[p.one].Cut("node2", false)
		for range 2 {
			for _, address := range ps {
				given, err := p.one.Reassign(t.Context(), address, "db")
				require.NoError(t, err)
				require.Len(t, given, 2)
			}
		}
		assert.Equal(t, []string{
			"203.0.113.1/32 allocated db node2", "203.0.113.2/32 quarantined db node2",
			"2001:db8:100:1::/128 allocated db node2", "2001:db8:100:1::1/128 quarantined db node2",
		}, allocations(t, r))
		p.runs(p.two, db)
		assert.Equal(t, []netip.Addr{ps[0].Addr(), ps[1].Addr()}, has(p.two, "db"))
		p.runs(p.one, web)
		assert.NotContains(t, has(p.one, "web"), ps[0].Addr())
	}, func(string) []agent.Option { return []agent.Option{agent.WithRegistry(r)} })
}

// TestReassignRefusals say what to do instead, and change nothing.
func TestReassignRefusals(t *testing.T) {
	r, src := newRegistry(nil), fake.NewSource("libvirt")
	n := fresh(t, agent.WithRegistry(r), agent.WithSources(src))
	web := asking("web", "public4", "public6")
	for _, s := range []fabric.State{fabric.Wired, fabric.Absent} {
		n.apply(web, s)
		n.apply(asking("rest", "public4"), s)
	}
	_, err := r.Release(t.Context(), fabric.ReleaseRequest{Guest: "libvirt uuid-of-rest"})
	require.NoError(t, err)
	_, err = n.Reserve(t.Context(), prefix("203.0.113.9/32"), "printer")
	require.NoError(t, err)
	src.Know("db", known("db", "uuid-of-db", "203.0.113.77"))
	src.Know("six", asking("six", "public6"))
	src.Know("named", known("named", "uuid-of-named", "203.0.113.77 203.0.113.1"))
	before := allocations(t, r)
	for _, tc := range []struct{ address, to, says string }{
		{"203.0.113.50/32", "db", "no guest has it; allocate it to guest db instead"},
		{"203.0.113.9/32", "db", "it is reserved, and no guest has it"},
		{"203.0.113.2/32", "db", "guest rest gave it back, and no guest has it"},
		{"203.0.113.1/32", "nobody", "no guest of that name has an address"},
		{"203.0.113.1/32", "db", "guest db neither names it nor asks a pool that has it"},
		{"203.0.113.1/32", "six", "guest six neither names it nor asks a pool that has it"},
		{"203.0.113.0/24", "six", "it is in 203.0.113.1 of guest web, or around it; name that"},
	} {
		_, err := n.Reassign(t.Context(), prefix(tc.address), tc.to)
		require.ErrorContains(t, err, tc.says)
	}
	assert.Equal(t, before, allocations(t, r))
	r.Fail("allocate", errors.New("no quorum"))
	_, err = n.Reassign(t.Context(), prefix("2001:db8:100:1::/128"), "six")
	require.EqualError(t, err, "no quorum")
	r.Fail("allocate", nil)

	given, err := n.Reassign(t.Context(), prefix("2001:db8:100:1::/128"), "six")
	require.NoError(t, err)
	assert.True(t, given[0].Dynamic)
	given, err = n.Reassign(t.Context(), prefix("203.0.113.1/32"), "named")
	require.NoError(t, err)
	assert.False(t, given[0].Dynamic, "its description names it")
	assert.Equal(t, 1, given[0].N)
	_, err = fresh(t).Reassign(t.Context(), prefix("203.0.113.1/32"), "db")
	require.ErrorContains(t, err, "no registry")
}

// TestReassignBeside: a guest that asks a pool twice gets it beside what it has.
func TestReassignBeside(t *testing.T) {
	r, src := newRegistry(nil), fake.NewSource("libvirt")
	n := fresh(t, agent.WithRegistry(r), agent.WithSources(src))
	once, twice := asking("db", "public4", "public6"), asking("db", "public4", "public6", "public4", "public6")
	for _, vm := range []fabric.VM{asking("web", "public4", "public6"), once} {
		n.apply(vm, fabric.Wired)
		n.apply(vm, fabric.Absent)
	}
	src.Know("db", twice)
	had := allocations(t, r)
	for _, address := range []string{"203.0.113.1/32", "2001:db8:100:1::/128"} {
		_, err := n.Reassign(t.Context(), prefix(address), "db")
		require.NoError(t, err)
	}
	n.apply(twice, fabric.Wired)
	assert.Len(t, has(n, "db"), 4)
	for _, line := range allocations(t, r) {
		assert.Contains(t, line, " allocated db ", had)
	}
}

// TestReassignOnTheNodeOfItsRegistry: each node has one of its own.
func TestReassignOnTheNodeOfItsRegistry(t *testing.T) {
	registries := map[string]*fake.Registry{"node1": newRegistry(nil).OfOneNode(), "node2": newRegistry(nil).OfOneNode()}
	vm := asking("web", fabric.AutoPool)
	pairsOf(t, fake.NewSource, vm, func(t *testing.T, p *pair) {
		p.src[p.one].Know("db", asking("db", fabric.AutoPool))
		p.runs(p.one, vm)
		time.Sleep(time.Second)
		p.over(p.one, vm)
		p.runs(p.two, vm)
		time.Sleep(time.Second)
		p.over(p.two, vm)
		_, err := p.one.Reassign(t.Context(), prefix("203.0.113.1/32"), "db")
		require.ErrorContains(t, err, "this node has a registry of its own, and guest web went to node2; ask there")
	}, func(node string) []agent.Option { return []agent.Option{agent.WithRegistry(registries[node])} })
}
