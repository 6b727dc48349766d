package allocator_test

import (
	"fmt"
	"maps"
	"math/big"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/vmfabric/vmfabric/fabric"
	. "github.com/vmfabric/vmfabric/fabric/internal/allocator"
)

// perGuest has a pool of each family that gives prefixes, four of IPv4, one of them
// excluded in part and one reserved in part; and single addresses, if it is full.
func perGuest(t *testing.T) *lab {
	l := newLab(t)
	l.cluster.Pools = []fabric.Pool{
		{
			Name: "own4", Prefix: prefix("203.0.113.0/27"), PerGuest: 29, Quarantine: fabric.DefaultQuarantine,
			Exclude: []netip.Prefix{prefix("203.0.113.0"), prefix("203.0.113.7")}, Reserve: []fabric.Reservation{{Prefix: prefix("203.0.113.9")}},
		},
		{Name: "own6", Prefix: prefix("2001:db8:100::/48"), PerGuest: 64, Quarantine: fabric.DefaultQuarantine},
		{Name: "next4", Ranges: []fabric.AddressRange{{First: netip.MustParseAddr("192.0.2.10"), Last: netip.MustParseAddr("192.0.2.12")}}},
	}
	return l
}

// TestPrefixForEachGuest: it keeps it, nobody else gets it, and it is free a while after
// the guest gave it back.
func TestPrefixForEachGuest(t *testing.T) {
	l := perGuest(t)
	first := l.gets(asking("web", auto()...))
	assert.Contains(t, []string{"203.0.113.16/29", "203.0.113.24/29"}, first[0].String())
	assert.Equal(t, 64, first[1].Bits())
	assert.True(t, l.cluster.Pools[1].HasPrefix(first[1]))
	l.written = 0
	assert.Equal(t, first, l.gets(asking("web", auto()...)))
	assert.Zero(t, l.written)
	second := l.gets(asking("db", fabric.Want{Pool: "own4"}))
	assert.NotEqual(t, first[0], second[0])
	l.refused(asking("mx", fabric.Want{Pool: "own4"}), fabric.PoolFull,
		"NIC 0: pool own4 is full: of 3 prefixes of length 29 2 are allocated, 1 reserved, 0 quarantined; release a prefix, or add a pool")
	l.releases("db")
	l.refused(asking("mx", fabric.Want{Pool: "own4"}), fabric.PoolFull,
		"NIC 0: pool own4 is full: of 3 prefixes of length 29 1 are allocated, 1 reserved, 1 quarantined, the first of them for 10m0s more; release a prefix, or add a pool")
	l.now = l.now.Add(fabric.DefaultQuarantine)
	assert.Equal(t, second, l.gets(asking("mx", fabric.Want{Pool: "own4"})))
}

// TestPrefixChangesHands: another guest takes it over as it is, in the place of its own,
// which is given back.
func TestPrefixChangesHands(t *testing.T) {
	l := perGuest(t)
	had, own := l.gets(asking("web", auto()...)), l.gets(asking("db", auto()...))
	over := asking("db", auto()...)
	over.From = "libvirt web"
	for i := range over.Wants {
		over.Wants[i].Prefix = had[i]
	}
	assert.Equal(t, had, l.gets(over))
	assert.Equal(t, had, l.gets(asking("db", auto()...)), "when it starts")
	for _, p := range own {
		a, there := l.table.Get(p)
		assert.True(t, there)
		assert.Equal(t, fabric.Quarantined, a.State)
	}
	assert.Empty(t, l.table.Of("libvirt web"))
	over.Wants = over.Wants[:1]
	over.Wants[0].Prefix = fabric.HostPrefix(had[0].Addr())
	l.refused(asking("mx", over.Wants[0]), fabric.AddressHeld, fmt.Sprintf(
		"NIC 0: %s has %s in common with it, which is allocated to guest db (libvirt db), which got it on node1; give that one another address, or choose another", had[0].Addr(), had[0]))
}

// TestNextPoolOfTheFamily is taken when the first is full, and all are named when all are.
func TestNextPoolOfTheFamily(t *testing.T) {
	l := perGuest(t)
	for _, vm := range []string{"a", "b"} {
		assert.Equal(t, 29, l.gets(asking(vm, auto()[0]))[0].Bits())
	}
	for _, vm := range []string{"c", "d", "e"} {
		p := l.gets(asking(vm, auto()[0]))[0]
		assert.True(t, p.IsSingleIP() && l.cluster.Pools[2].Has(p.Addr()), p.String())
	}
	l.refused(asking("f", auto()[0]), fabric.PoolFull, "NIC 0: pool own4 is full: of 3 prefixes of length 29 2 are allocated, 1 reserved, 0 quarantined; "+
		"pool next4 is full: of 3 addresses 3 are allocated, 0 reserved, 0 quarantined; release a prefix, or add a pool")
	had := l.gets(asking("c", auto()[0]))
	l.table.Delete(l.gets(asking("a", auto()[0]))[0])
	assert.Equal(t, had, l.gets(asking("c", auto()[0])), "it keeps what it has when the first pool has room again")
	l.cluster.Pools[0].Nodes = []string{"node2"}
	l.refused(asking("f", auto()[0]), fabric.PoolFull, "NIC 0: pool next4 is full: of 3 addresses 3 are allocated, 0 reserved, 0 quarantined; release an address, or add a pool")
}

// TestPoolForLabels is for guests of the nodes that have one of them.
func TestPoolForLabels(t *testing.T) {
	l := perGuest(t)
	l.cluster.Pools[0].NodeLabels = []string{"ssd", "nvme"}
	l.cluster.Nodes, l.cluster.Labels = []fabric.Node{{Name: "node1"}, {Name: "node2"}}, map[string][]string{"node2": {"nvme"}}
	l.refused(asking("web", fabric.Want{Pool: "own4"}), fabric.PoolUnknown,
		"NIC 0: pool own4 does not serve node node1; write the node under its nodes, give the node the label ssd or nvme, or take another pool")
	there := asking("web", fabric.Want{Pool: "own4"})
	there.Node = "node2"
	assert.Equal(t, 29, l.gets(there)[0].Bits())
	assert.Equal(t, []string{"node2"}, Usage(l.cluster, l.cluster.Pools[0], maps.Values(map[int]fabric.Allocation{}), l.now).Nodes)
}

// TestAddressInTheGuestsOwnPrefix needs no allocation of its own, whichever of the two was
// first. Nobody else gets it.
func TestAddressInTheGuestsOwnPrefix(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		l := perGuest(t)
		ask := fabric.Want{N: 9, Pool: map[bool]string{false: "own4", true: "own6"}[v6]}
		own := l.gets(asking("web", ask))[0]
		inside := fabric.HostPrefix(fabric.RangeOf(own).Last)
		both := asking("web", ask, fabric.Want{Prefix: inside})
		assert.Equal(t, []netip.Prefix{own, inside}, l.gets(both))
		require.Len(t, l.table.List(fabric.AllocationFilter{}), 1, "the address is in the prefix")
		since := l.table.List(fabric.AllocationFilter{})[0].Since
		l.now = l.now.Add(time.Minute)
		given, change, err := l.table.Allocate(l.cluster, both, l.now, l.rnd, anyPool)
		require.NoError(t, err)
		assert.True(t, change.Empty())
		assert.Equal(t, since, given[1].Since, "it had it before")
		_, err = l.tries(asking("db", fabric.Want{Prefix: inside}))
		require.ErrorIs(t, err, fabric.ErrRefused)

		// The description names what it got, and asks no pool: then it is recorded for itself.
		assert.Equal(t, []netip.Prefix{inside}, l.gets(asking("web", fabric.Want{Prefix: inside})))
		assert.Equal(t, []netip.Prefix{inside}, prefixesOf(l.table.List(fabric.AllocationFilter{})))
		// A route around it, in the place of it.
		assert.Equal(t, []netip.Prefix{inside, own}, l.gets(asking("web", fabric.Want{Prefix: inside}, fabric.Want{N: 1, Prefix: own})))
		assert.Equal(t, []netip.Prefix{own}, prefixesOf(l.table.List(fabric.AllocationFilter{})))
		assert.Empty(t, l.releasesAll("web"))
		assert.Equal(t, []netip.Prefix{inside}, l.gets(asking("web", fabric.Want{Prefix: inside})), "out of its own quarantine")
		assert.Equal(t, []netip.Prefix{inside}, prefixesOf(l.table.List(fabric.AllocationFilter{})))
	}
}

func prefixesOf(all []fabric.Allocation) (ps []netip.Prefix) {
	for _, a := range all {
		ps = append(ps, a.Prefix)
	}
	return ps
}

func (l *lab) releasesAll(vm string) []fabric.Allocation {
	l.releases(vm)
	return l.table.Of(fabric.Identity("libvirt " + vm))
}

// TestRouteAroundWhatIsKept is refused: around what the operator reserved, also if the
// guest has it, and around what a pool gave to the guest.
func TestRouteAroundWhatIsKept(t *testing.T) {
	l := perGuest(t)
	l.gets(fabric.AllocationRequest{Wants: named("203.0.113.17")})
	l.refused(asking("web", named("203.0.113.16/29")...), fabric.AddressHeld,
		"NIC 0: 203.0.113.16/29 has 203.0.113.17 in common with it, which is reserved; end the reservation, or choose another")
	l.gets(asking("web", named("203.0.113.17")...))
	around := "NIC 0: %s has %s in common with it, which is allocated to guest web (libvirt web), which got it on node1; give that one another address, or choose another"
	l.refused(asking("web", named("203.0.113.17", "203.0.113.16/29")...), fabric.AddressHeld, fmt.Sprintf(around, "203.0.113.16/29", "203.0.113.17"))
	ask := fabric.Want{N: 7, Pool: "own6"}
	own := l.gets(asking("web", ask))[0]
	wide := netip.PrefixFrom(own.Addr(), 56).Masked()
	l.refused(asking("web", ask, fabric.Want{Prefix: wide}), fabric.AddressHeld, fmt.Sprintf(around, wide, own))
	ask.Prefix = own
	l.refused(asking("web", ask, fabric.Want{Prefix: wide}), fabric.AddressHeld, fmt.Sprintf(around, wide, own))
}

// TestSparsePrefixes are far apart.
func TestSparsePrefixes(t *testing.T) {
	l := perGuest(t)
	near := map[netip.Prefix]bool{}
	for i := range 100 {
		p := l.gets(fabric.AllocationRequest{Guest: fabric.Identity(rune('a' + i)), Node: "node1", Wants: auto()[1:]})[0]
		near[netip.PrefixFrom(p.Addr(), 60).Masked()] = true
	}
	assert.Greater(t, len(near), 90)
}

// TestUsage counts units, whatever has a part of one.
func TestUsage(t *testing.T) {
	l := perGuest(t)
	usage := func(i int) fabric.PoolUsage {
		return Usage(l.cluster, l.cluster.Pools[i], slices.Values(l.table.List(fabric.AllocationFilter{})), l.now)
	}
	is := usage(0)
	assert.Equal(t, "3 0 1 0 2", words(is))
	l.gets(asking("web", named("203.0.113.17", "203.0.113.18", "203.0.113.9", "192.0.2.11")...))
	assert.Equal(t, "3 3 0 0 1", words(usage(0)), "two addresses in one prefix, and one of the reserved one")
	assert.Equal(t, "3 1 0 0 2", words(usage(2)))
	l.gets(asking("db", fabric.Want{Pool: "own4"}, fabric.Want{N: 1, Pool: "own6"}))
	assert.Equal(t, "3 4 0 0 0", words(usage(0)))
	assert.Equal(t, "65536 1 0 0 65535", words(usage(1)))
	l.releases("db")
	assert.Equal(t, "65536 0 0 1 65535", words(usage(1)))
	l.cluster.Pools[1].PerGuest = 0 // it is a pool of single addresses now
	free := new(big.Int).Lsh(big.NewInt(1), 80)
	free.Sub(free, new(big.Int).Lsh(big.NewInt(1), 64))
	assert.Equal(t, free.String(), usage(1).Free.String())
}

func words(u fabric.PoolUsage) string {
	return u.Size.String() + " " + itoa(u.Allocated) + " " + u.Reserved.String() + " " + itoa(u.Quarantined) + " " + u.Free.String()
}

func itoa(n int) string { return big.NewInt(int64(n)).String() }

// TestNothingOverlaps, whatever guests ask for in whatever order, of what two guests have,
// of what is reserved, and of what one gave back.
func TestNothingOverlaps(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := perGuest(t)
		l.cluster.Pools[1].Prefix = prefix("2001:db8:100::/61") // so that guests meet
		wants := map[string]fabric.Want{
			"pool of IPv4 prefixes": {N: 1, Pool: "own4"}, "pool of IPv6 prefixes": {N: 2, Pool: "own6"}, "pool of addresses": {N: 3, Pool: "next4"},
			"first of IPv4": {N: 4, Pool: fabric.AutoPool}, "first of IPv6": {N: 5, Pool: fabric.AutoPool, V6: true},
		}
		for i, name := range []string{"203.0.113.17", "203.0.113.25", "203.0.113.16/29", "203.0.113.24/30", "203.0.113.16/28", "2001:db8:100::7", "2001:db8:100:1::/64", "2001:db8:100:2::/63", "192.0.2.11"} {
			wants[name] = fabric.Want{N: 10 + i, Prefix: prefix(name)}
		}
		vms := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"})
		some := rapid.SliceOfNDistinct(rapid.SampledFrom(slices.Sorted(maps.Keys(wants))), 1, 4, rapid.ID)
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			vm := vms.Draw(rt, "vm")
			switch rapid.IntRange(0, 4).Draw(rt, "step") {
			case 0:
				l.releases(vm)
			case 1:
				l.now = l.now.Add(time.Duration(rapid.IntRange(1, 900).Draw(rt, "seconds")) * time.Second)
				l.table.Apply(l.table.Expired(l.now))
			default:
				a := asking(vm)
				for _, name := range some.Draw(rt, "wants") {
					a.Wants = append(a.Wants, wants[name])
				}
				if given, err := l.tries(a); err == nil {
					has(rt, l, a, given)
				}
			}
			disjoint(rt, l)
		}
	})
}

// has checks that a guest has what it was given, and that it is what it asked for.
func has(rt *rapid.T, l *lab, a fabric.AllocationRequest, given []netip.Prefix) {
	of := l.table.Of(a.Guest)
	for i, p := range given {
		w := a.Wants[i]
		if w.Prefix.IsValid() && w.Prefix != p {
			rt.Fatalf("it asked for %s and got %s", w.Prefix, p)
		}
		inside := func(h fabric.Allocation) bool { return h.Prefix.Bits() <= p.Bits() && h.Prefix.Overlaps(p) }
		if !slices.ContainsFunc(of, inside) {
			rt.Fatalf("%s got %s, and has %v", a.VM, p, prefixesOf(of))
		}
		if slices.Contains(given[:i], p) {
			rt.Fatalf("%s got %s twice", a.VM, p)
		}
		if _, in := l.cluster.PoolOf(p.Addr()); !in {
			rt.Fatalf("%s is in no pool", p)
		}
	}
	for _, h := range of {
		if !slices.Contains(given, h.Prefix) {
			rt.Fatalf("%s has %s, and did not ask for it", a.VM, h.Prefix)
		}
	}
}

// disjoint checks that nothing in the table overlaps.
func disjoint(rt *rapid.T, l *lab) {
	all := l.table.List(fabric.AllocationFilter{})
	for i, a := range all {
		for _, b := range all[i+1:] {
			if a.Prefix.Overlaps(b.Prefix) {
				rt.Fatalf("%s of %s (%s) and %s of %s (%s) overlap", a.Prefix, a.VM, a.State, b.Prefix, b.VM, b.State)
			}
		}
	}
}
