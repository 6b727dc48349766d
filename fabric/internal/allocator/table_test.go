package allocator_test

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/vmfabric/vmfabric/fabric"
	. "github.com/vmfabric/vmfabric/fabric/internal/allocator"
)

var noon = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

func prefix(s string) netip.Prefix {
	if a, err := netip.ParseAddr(s); err == nil {
		return fabric.HostPrefix(a)
	}
	return netip.MustParsePrefix(s)
}

// pools is a cluster with a small pool of each family, and one for node2 alone.
func pools() *fabric.Cluster {
	c := fabric.Cluster{Name: "msk1", Pools: []fabric.Pool{
		{Name: "own2", Prefix: prefix("203.0.113.64/30"), Nodes: []string{"node2"}},
		{
			Name: "public4", Prefix: prefix("203.0.113.0/29"), Exclude: []netip.Prefix{prefix("203.0.113.0"), prefix("203.0.113.7")},
			Reserve: []fabric.Reservation{{Prefix: prefix("203.0.113.1"), Note: "vpn"}},
		},
		{Name: "public6", Prefix: prefix("2001:db8:100::/48")},
	}}.WithDefaults()
	return &c
}

// lab is a table that carries out what it decides.
type lab struct {
	t       *testing.T
	cluster *fabric.Cluster
	table   Table
	now     time.Time
	rnd     *rand.Rand
	written int
}

func newLab(t *testing.T) *lab {
	return &lab{t: t, cluster: pools(), now: noon, rnd: rand.New(rand.NewPCG(1, 2))}
}

func anyPool(fabric.Pool) error { return nil }

func asking(vm string, wants ...fabric.Want) fabric.AllocationRequest {
	return fabric.AllocationRequest{Guest: fabric.Identity("libvirt " + vm), VM: vm, Node: "node1", Wants: wants}
}

func auto() []fabric.Want {
	return []fabric.Want{{Pool: fabric.AutoPool}, {N: 1, Pool: fabric.AutoPool, V6: true}}
}

func (l *lab) tries(a fabric.AllocationRequest) ([]netip.Prefix, error) {
	given, change, err := l.table.Allocate(l.cluster, a, l.now, l.rnd, anyPool)
	l.table.Apply(change)
	l.written += len(change.Put) + len(change.Delete)
	var ps []netip.Prefix
	for _, g := range given {
		ps = append(ps, g.Prefix)
	}
	return ps, err
}

func (l *lab) gets(a fabric.AllocationRequest) []netip.Prefix {
	l.t.Helper()
	ps, err := l.tries(a)
	require.NoError(l.t, err)
	return ps
}

func (l *lab) refused(a fabric.AllocationRequest, reason fabric.Reason, text string) {
	l.t.Helper()
	before := l.table.List(fabric.AllocationFilter{})
	_, err := l.tries(a)
	var bad *fabric.AllocationError
	require.True(l.t, errors.As(err, &bad), "%v", err)
	assert.ErrorIs(l.t, err, fabric.ErrRefused)
	assert.Equal(l.t, reason, bad.Reason)
	assert.Equal(l.t, text, err.Error())
	assert.Equal(l.t, before, l.table.List(fabric.AllocationFilter{}), "what is refused changes nothing")
}

func (l *lab) releases(vm string) {
	_, change := l.table.Release(l.cluster, fabric.ReleaseRequest{Guest: fabric.Identity("libvirt " + vm)}, l.now)
	l.table.Apply(change)
}

func named(addresses ...string) (wants []fabric.Want) {
	for n, a := range addresses {
		wants = append(wants, fabric.Want{N: n, Prefix: prefix(a)})
	}
	return wants
}

// TestGuestKeepsWhatItGot, whatever its node is, and however often it asks.
func TestGuestKeepsWhatItGot(t *testing.T) {
	l := newLab(t)
	first := l.gets(asking("web", auto()...))
	require.Len(t, first, 2)
	assert.True(t, l.cluster.Pools[1].Contains(first[0].Addr()), "the first IPv4 pool that serves the node")
	assert.True(t, first[1].Addr().Is6())
	l.written = 0
	assert.Equal(t, first, l.gets(asking("web", auto()...)))
	assert.Zero(t, l.written)

	there := asking("web", auto()...)
	there.Node = "node2"
	assert.Equal(t, first, l.gets(there), "another pool comes first there")
	assert.Equal(t, "node1", l.table.Of("libvirt web")[0].Node, "asking for addresses is no start")
	l.table.Least = 7
	is, change, err := l.table.Acquire(fabric.AcquireRequest{Guest: "libvirt web", VM: "web", Node: "node2"})
	require.NoError(t, err)
	assert.Equal(t, fabric.Owner{Node: "node2", Epoch: 7}, is)
	l.table.Apply(change)
	assert.Equal(t, is, l.table.Of("libvirt web")[0].Owner())
	assert.NotEqual(t, first[0], l.gets(asking("db", auto()...))[0])
}

// TestPoolThatIsFull counts what is taken, and by what.
func TestPoolThatIsFull(t *testing.T) {
	l := newLab(t)
	seen := map[netip.Prefix]bool{}
	for _, vm := range []string{"a", "b", "c", "d", "e"} {
		p := l.gets(asking(vm, fabric.Want{Pool: "public4"}))[0]
		assert.False(t, seen[p], "%s was given already", p)
		assert.NotEqual(t, prefix("203.0.113.1"), p, "reserved")
		seen[p] = true
	}
	full := "NIC 0: pool public4 is full: of 6 addresses 5 are allocated, 1 reserved, 0 quarantined; release an address, or add a pool"
	l.refused(asking("f", fabric.Want{Pool: "public4"}), fabric.PoolFull, full)
	l.refused(asking("f", fabric.Want{Pool: "public6"}, fabric.Want{NIC: 0, N: 2, Pool: "public4"}), fabric.PoolFull, full)

	l.releases("c")
	l.now = l.now.Add(time.Minute)
	l.refused(asking("f", fabric.Want{Pool: "public4"}), fabric.PoolFull,
		"NIC 0: pool public4 is full: of 6 addresses 4 are allocated, 1 reserved, 1 quarantined, the first of them for 9m0s more; release an address, or add a pool")
	l.now = l.now.Add(9 * time.Minute)
	assert.True(t, seen[l.gets(asking("f", fabric.Want{Pool: "public4"}))[0]])
	l.gets(asking("vpn", named("203.0.113.1")...))
	assert.Equal(t, "vpn", l.table.Of("libvirt vpn")[0].Note)
}

// TestPoolsThatCannotBe say why.
func TestPoolsThatCannotBe(t *testing.T) {
	l := newLab(t)
	l.refused(asking("web", fabric.Want{NIC: 1, Pool: "publik4"}), fabric.PoolUnknown, `NIC 1: pool "publik4" is not in cluster msk1; name one of own2, public4, public6`)
	l.refused(asking("web", fabric.Want{Pool: "own2"}), fabric.PoolUnknown, "NIC 0: pool own2 does not serve node node1; write the node under its nodes, or take another pool")
	l.cluster.Pools = l.cluster.Pools[:2]
	l.refused(asking("web", auto()...), fabric.PoolUnknown, "NIC 0: cluster msk1 has no IPv6 pool of addresses; add one")
	why := errors.New("not that one")
	_, change, err := l.table.Allocate(l.cluster, asking("web", auto()[0]), noon, l.rnd, func(fabric.Pool) error { return why })
	assert.EqualError(t, err, "NIC 0: not that one")
	assert.True(t, change.Empty())
}

// TestAddressThatAGuestNames is its own, also out of a quarantine, and nobody else's.
func TestAddressThatAGuestNames(t *testing.T) {
	l := newLab(t)
	l.gets(asking("web", named("203.0.113.2", "2001:db8:100::2")...))
	assert.Equal(t, "public6", l.table.List(fabric.AllocationFilter{})[1].Pool)
	l.refused(asking("db", named("203.0.113.3", "203.0.113.2")...), fabric.AddressHeld,
		"NIC 0: 203.0.113.2 is allocated to guest web (libvirt web), which got it on node1; give that one another address, or choose another")
	l.refused(asking("db", named("2001:db8:100::/64")...), fabric.AddressHeld,
		"NIC 0: 2001:db8:100::/64 has 2001:db8:100::2 in common with it, which is allocated to guest web (libvirt web), which got it on node1; give that one another address, or choose another")

	l.gets(asking("web", named("203.0.113.4")...)) // its description has changed
	l.refused(fabric.AllocationRequest{Wants: named("203.0.113.2")}, fabric.AddressHeld,
		"NIC 0: 203.0.113.2 was given back by guest web, and is kept until 2026-11-30T12:10:00Z; wait, or choose another")
	l.gets(asking("db", named("203.0.113.2")...))
	l.releases("web")
	l.gets(asking("web", named("203.0.113.4")...))
	l.now = l.now.Add(time.Hour)
	assert.Equal(t, []netip.Prefix{prefix("2001:db8:100::2")}, l.table.Expired(l.now).Delete)
}

// TestReservation is given to nobody that asks a pool, to a guest that names it, and is
// one again after that.
func TestReservation(t *testing.T) {
	l := newLab(t)
	reserve := fabric.AllocationRequest{Wants: []fabric.Want{{Prefix: prefix("203.0.113.4"), Note: "load balancer"}}}
	l.gets(reserve)
	l.written = 0
	l.gets(reserve)
	assert.Zero(t, l.written)
	for _, vm := range []string{"a", "b", "c", "d"} {
		assert.NotEqual(t, prefix("203.0.113.4"), l.gets(asking(vm, fabric.Want{Pool: "public4"}))[0])
	}
	l.refused(asking("e", fabric.Want{Pool: "public4"}), fabric.PoolFull, "NIC 0: pool public4 is full: of 6 addresses 4 are allocated, 2 reserved, 0 quarantined; release an address, or add a pool")
	l.gets(asking("lb", named("203.0.113.4")...))
	l.refused(reserve, fabric.AddressHeld, "NIC 0: 203.0.113.4 is allocated to guest lb (libvirt lb), which got it on node1; give that one another address, or choose another")
	l.releases("lb")
	l.gets(reserve)
	released, change := l.table.Release(l.cluster, fabric.ReleaseRequest{Prefix: prefix("203.0.113.4")}, l.now)
	require.Len(t, released, 1)
	assert.Equal(t, Change{Delete: []netip.Prefix{prefix("203.0.113.4")}}, change, "a reservation has no quarantine")
}

// TestSparse: addresses of an IPv6 pool are far apart, and none is its subnet's
// anycast address.
func TestSparse(t *testing.T) {
	l := newLab(t)
	subnets := map[netip.Prefix]bool{}
	for i := range 200 {
		p := l.gets(fabric.AllocationRequest{Guest: fabric.Identity(rune('a' + i)), Node: "node1", Wants: auto()[1:]})[0]
		subnets[netip.PrefixFrom(p.Addr(), 64).Masked()] = true
	}
	assert.Greater(t, len(subnets), 190)
	l.cluster.Pools = []fabric.Pool{{Name: "few", Prefix: prefix("2001:db8::/127")}}
	assert.Equal(t, prefix("2001:db8::1"), l.gets(asking("web", fabric.Want{Pool: "few"}))[0])
	l.refused(asking("db", fabric.Want{Pool: "few"}), fabric.PoolFull, "NIC 0: pool few is full: of 2 addresses 1 are allocated, 0 reserved, 0 quarantined; release an address, or add a pool")
}

// TestNobodyGetsWhatAnotherHas, whatever happens in whatever order.
func TestNobodyGetsWhatAnotherHas(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := newLab(t)
		has := map[string][]netip.Prefix{}
		type gift struct {
			vm string
			at time.Time
		}
		freed := map[netip.Prefix]gift{}
		vms := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f", "g"})
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			vm := vms.Draw(rt, "vm")
			switch rapid.IntRange(0, 2).Draw(rt, "step") {
			case 0:
				given, err := l.tries(asking(vm, fabric.Want{Pool: "public4"}))
				if err != nil {
					continue
				}
				if len(has[vm]) > 0 && has[vm][0] != given[0] {
					rt.Fatalf("%s had %s, and got %s", vm, has[vm][0], given[0])
				}
				for other, ps := range has {
					if other != vm && len(ps) > 0 && ps[0] == given[0] {
						rt.Fatalf("%s got %s, which %s has", vm, given[0], other)
					}
				}
				if g, was := freed[given[0]]; was && g.vm != vm && len(has[vm]) == 0 && l.now.Sub(g.at) < fabric.DefaultQuarantine {
					rt.Fatalf("%s got %s, which %s gave back %v ago", vm, given[0], g.vm, l.now.Sub(g.at))
				}
				has[vm] = given
			case 1:
				l.releases(vm)
				for _, p := range has[vm] {
					freed[p] = gift{vm, l.now}
				}
				delete(has, vm)
			case 2:
				l.now = l.now.Add(time.Duration(rapid.IntRange(1, 900).Draw(rt, "seconds")) * time.Second)
				l.table.Apply(l.table.Expired(l.now))
			}
		}
	})
}

// TestQuarantineUntilDeleted: where another machine ends the quarantines, this one's clock
// ends none.
func TestQuarantineUntilDeleted(t *testing.T) {
	for _, address := range []string{"192.0.2.9", "2001:db8:100::9"} {
		l := newLab(t)
		l.table.UntilDeleted = true
		kept := fabric.Allocation{Prefix: prefix(address), State: fabric.Quarantined, Guest: "libvirt web", VM: "web", Since: noon, Until: noon.Add(time.Minute)}
		l.table.Put(kept)
		l.now = noon.Add(time.Hour)
		assert.Empty(t, l.table.Expired(l.now))
		_, err := l.tries(fabric.AllocationRequest{Node: "node1", Wants: []fabric.Want{{Prefix: kept.Prefix}}})
		require.ErrorIs(t, err, fabric.ErrRefused)
		released, _ := l.table.Release(l.cluster, fabric.ReleaseRequest{Prefix: kept.Prefix, Now: true}, l.now)
		assert.Equal(t, []fabric.Allocation{kept}, released)
		l.table.Delete(kept.Prefix)
		l.gets(fabric.AllocationRequest{Node: "node1", Wants: []fabric.Want{{Prefix: kept.Prefix}}})
	}
}
