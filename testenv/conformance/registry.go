package conformance

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// RegistryControls has the functions that the registry's suite needs beside the
// registry.
type RegistryControls struct {
	// Again returns a second registry over the same state, as after a restart; the
	// suite does not use the first any more.
	Again func(t *testing.T) fabric.Registry
	// Pass lets time pass for the registry, as for the end of a quarantine.
	Pass func(t *testing.T, d time.Duration)
}

// RegistryCluster is the cluster whose pools the registry's suite uses. Its only node
// is node1.
func RegistryCluster() *fabric.Cluster {
	c := fabric.Cluster{Name: "conformance", Pools: []fabric.Pool{
		{Name: "few4", Prefix: netip.MustParsePrefix("203.0.113.8/29"), Exclude: prefixes("203.0.113.8/32", "203.0.113.15/32"), Quarantine: 10 * time.Minute},
		{Name: "many4", Prefix: netip.MustParsePrefix("198.51.100.0/24"), Quarantine: 10 * time.Minute},
		{
			Name: "many6", Prefix: netip.MustParsePrefix("2001:db8:100::/48"), Quarantine: time.Minute,
			Reserve: []fabric.Reservation{{Prefix: netip.MustParsePrefix("2001:db8:100::/64"), Note: "by hand"}},
		},
		{Name: "own4", Prefix: netip.MustParsePrefix("192.0.2.128/27"), PerGuest: 29, Exclude: prefixes("192.0.2.130/32"), Quarantine: 10 * time.Minute},
		{Name: "own6", Prefixes: prefixes("2001:db8:200::/49", "2001:db8:300::/49"), PerGuest: 64, NodeLabels: []string{"ssd", "nvme"}, Quarantine: time.Minute},
		{Name: "odd4", Ranges: []fabric.AddressRange{{First: netip.MustParseAddr("192.0.2.9"), Last: netip.MustParseAddr("192.0.2.11")}}, Quarantine: time.Minute},
		{Name: "elsewhere4", Prefix: netip.MustParsePrefix("192.0.2.240/28"), NodeLabels: []string{"hdd"}},
		{Name: "bare4", Prefix: netip.MustParsePrefix("192.0.2.208/28"), PerGuest: 30, NoAddress: true, Quarantine: 10 * time.Minute},
		{Name: "bare6", Prefix: netip.MustParsePrefix("2001:db8:400::/48"), PerGuest: 64, NoAddress: true, Quarantine: 10 * time.Minute},
	}, Nodes: []fabric.Node{{Name: "node1", Address: netip.MustParseAddr("10.10.0.21")}}, Labels: map[string][]string{"node1": {"rack1", "nvme"}}}
	return &c
}

// Registry runs the laws of [fabric.Registry] as subtests. Each call of start makes an
// empty registry of [RegistryCluster] for node1, which lives until its t ends.
func Registry(t *testing.T, start func(t *testing.T) (fabric.Registry, RegistryControls)) {
	for _, law := range []struct {
		name string
		hold func(*testing.T, fabric.Registry, RegistryControls)
	}{
		{"a guest gets addresses, and the same when it asks again", registryGives},
		{"the first pool of each family", registryAuto},
		{"the next pool of the family when the first is full", registryNextPool},
		{"a pool of ranges, and one for other nodes", registryOddPools},
		{"a prefix for each guest", registryPrefixes},
		{"a prefix without an address in it", registryBarePrefixes},
		{"what is in a prefix and what is around it exclude each other", registryPrefixHeld},
		{"an address in the guest's own prefix", registryOwnPrefix},
		{"a guest gets everything or nothing", registryAllOrNothing},
		{"an address that another guest has is refused", registryHeld},
		{"what a guest does not ask for any more is given back", registryChange},
		{"an address that was given back is kept for a while", registryQuarantine},
		{"a reserved address is for a guest that names it", registryReserves},
		{"a release without a quarantine", registryReleaseNow},
		{"a guest takes an address over from another one", registryTakesOver},
		{"what one guest has, and who has an address", registryFilters},
		{"a second instance has it all", registryAgain},
		{"an address that a guest has already is recorded", registryRecords},
		{"an ended context changes nothing", registryContext},
		{"many guests at the same time", registryConcurrent},
		{"many guests that get prefixes at the same time", registryConcurrentPrefixes},
		{"a guest has one owner, with epochs that grow", registryOwner},
		{"nobody takes a guest over from another owner than he knows", registryOwnerRefused},
		{"a guest that starts has an owner at once", registryOwnerAtStart},
		{"a second instance knows the owner", registryOwnerAgain},
		{"of nodes that take over at the same time one does", registryOwnerConcurrent},
	} {
		t.Run(law.name, func(t *testing.T) {
			r, c := start(t)
			requireAllocations(t, r)
			law.hold(t, r, c)
		})
	}
}

// asks is the request of a guest, from pools or for addresses by name.
func asks(vm string, things ...string) fabric.AllocationRequest {
	a := fabric.AllocationRequest{Guest: fabric.Identity("libvirt " + vm), VM: vm, Node: "node1"}
	for n, thing := range things {
		w := fabric.Want{NIC: n % 2, N: n / 2, Pool: thing}
		if p, err := netip.ParsePrefix(thing); err == nil {
			w.Pool, w.Prefix = "", p
		}
		a.Wants = append(a.Wants, w)
	}
	return a
}

func allocate(t *testing.T, r fabric.Registry, a fabric.AllocationRequest) []netip.Prefix {
	t.Helper()
	before, err := r.Allocations(t.Context(), fabric.AllocationFilter{})
	require.NoError(t, err)
	given, err := r.Allocate(t.Context(), a)
	require.NoError(t, err)
	require.Len(t, given, len(a.Wants))
	after, err := r.Allocations(t.Context(), fabric.AllocationFilter{})
	require.NoError(t, err)
	var ps []netip.Prefix
	for n, g := range given {
		require.Equal(t, a.Guest, g.Guest)
		require.Equal(t, a.Wants[n].NIC, g.NIC, "in the order of the wants")
		same := func(b fabric.Allocation) bool {
			return b.Prefix == g.Prefix && b.Guest == a.Guest && b.State == g.State
		}
		require.Equal(t, !slices.ContainsFunc(before, same) && slices.ContainsFunc(after, same), g.New, "%s", g.Prefix)
		ps = append(ps, g.Prefix)
	}
	return ps
}

func refused(t *testing.T, r fabric.Registry, a fabric.AllocationRequest, reason fabric.Reason) *fabric.AllocationError {
	t.Helper()
	before, err := r.Allocations(t.Context(), fabric.AllocationFilter{})
	require.NoError(t, err)
	_, err = r.Allocate(t.Context(), a)
	requireReason(t, err)
	require.ErrorIs(t, err, fabric.ErrRefused)
	var bad *fabric.AllocationError
	require.True(t, errors.As(err, &bad), "%T: %[1]v", err)
	require.Equal(t, reason, bad.Reason, err)
	after, err := r.Allocations(t.Context(), fabric.AllocationFilter{})
	require.NoError(t, err)
	require.Equal(t, len(before), len(after), "what is refused changes nothing")
	return bad
}

// requireAllocations compares the registry's list with lines such as "203.0.113.10/32
// allocated web".
func requireAllocations(t *testing.T, r fabric.Registry, want ...string) {
	t.Helper()
	all, err := r.Allocations(t.Context(), fabric.AllocationFilter{})
	require.NoError(t, err)
	lines := []string{}
	for _, a := range all {
		line := fmt.Sprintf("%s %s", a.Prefix, a.State)
		if a.VM != "" {
			line += " " + a.VM
		}
		lines = append(lines, line)
	}
	require.Equal(t, append([]string{}, want...), lines)
	require.True(t, slices.IsSortedFunc(all, func(a, b fabric.Allocation) int { return a.Prefix.Compare(b.Prefix) }))
}

func release(t *testing.T, r fabric.Registry, of fabric.ReleaseRequest) (vms []string) {
	t.Helper()
	released, err := r.Release(t.Context(), of)
	require.NoError(t, err)
	for _, a := range released {
		vms = append(vms, a.Prefix.String()+" "+a.VM)
	}
	return vms
}

func registryGives(t *testing.T, r fabric.Registry, _ RegistryControls) {
	web := asks("web", "few4", "many6", "many4", "many6")
	first := allocate(t, r, web)
	for n, p := range first {
		require.True(t, p.IsSingleIP())
		pool, in := RegistryCluster().PoolOf(p.Addr())
		require.True(t, in)
		require.Equal(t, web.Wants[n].Pool, pool.Name)
		require.True(t, pool.Contains(p.Addr()), "%s is excluded", p)
		_, reserved := pool.Reserved(p.Addr())
		require.False(t, reserved, "%s is reserved", p)
	}
	require.NotEqual(t, first[1], first[3])
	require.Equal(t, first, allocate(t, r, web))
	web.Node, web.VM = "node2", "renamed"
	require.Equal(t, first, allocate(t, r, web), "on another node, and renamed")
	all, err := r.Allocations(t.Context(), fabric.AllocationFilter{})
	require.NoError(t, err)
	require.Len(t, all, 4)
	for _, a := range all {
		require.Equal(t, "renamed", a.VM)
		require.True(t, a.Dynamic)
		require.NotZero(t, a.Since)
	}
}

func registryAuto(t *testing.T, r fabric.Registry, _ RegistryControls) {
	web := asks("web", fabric.AutoPool, fabric.AutoPool)
	web.Wants[1].V6 = true
	given := allocate(t, r, web)
	assert.True(t, RegistryCluster().Pools[0].Contains(given[0].Addr()))
	assert.True(t, RegistryCluster().Pools[2].Contains(given[1].Addr()))
}

func registryNextPool(t *testing.T, r fabric.Registry, _ RegistryControls) {
	for n := range 6 {
		allocate(t, r, asks(fmt.Sprintf("few%d", n), "few4"))
	}
	next := allocate(t, r, asks("web", fabric.AutoPool))[0]
	require.True(t, RegistryCluster().Pools[1].Contains(next.Addr()), "%s", next)
	release(t, r, fabric.ReleaseRequest{Guest: "libvirt few0", Now: true})
	require.Equal(t, next, allocate(t, r, asks("web", fabric.AutoPool))[0], "it keeps what it has")
	require.Equal(t, "few4", refused(t, r, asks("db", "few4", "few4"), fabric.PoolFull).Pool)
}

func registryOddPools(t *testing.T, r fabric.Registry, _ RegistryControls) {
	seen := map[netip.Prefix]bool{}
	for _, vm := range []string{"a", "b", "c"} {
		p := allocate(t, r, asks(vm, "odd4"))[0]
		require.True(t, RegistryCluster().Pools[5].Contains(p.Addr()), "%s", p)
		require.False(t, seen[p], "%s is given already", p)
		seen[p] = true
	}
	refused(t, r, asks("d", "odd4"), fabric.PoolFull)
	refused(t, r, asks("d", "elsewhere4"), fabric.PoolUnknown)
}

func registryPrefixes(t *testing.T, r fabric.Registry, c RegistryControls) {
	web := asks("web", "own4", "own6")
	given := allocate(t, r, web)
	require.Equal(t, []int{29, 64}, []int{given[0].Bits(), given[1].Bits()})
	for n, p := range given {
		require.Equal(t, p.Masked(), p)
		require.True(t, RegistryCluster().Pools[3+n].HasPrefix(p), "%s", p)
	}
	require.Equal(t, given, allocate(t, r, web))
	seen := map[netip.Prefix]bool{given[0]: true, given[1]: true}
	for _, vm := range []string{"a", "b"} {
		for _, p := range allocate(t, r, asks(vm, "own4", "own6")) {
			require.False(t, seen[p], "%s is given already", p)
			require.False(t, p.Overlaps(netip.MustParsePrefix("192.0.2.130/32")), "a part of %s is excluded", p)
			seen[p] = true
		}
	}
	require.Equal(t, "own4", refused(t, r, asks("c", "own4"), fabric.PoolFull).Pool)

	release(t, r, fabric.ReleaseRequest{Guest: "libvirt web"})
	refused(t, r, asks("c", "own4"), fabric.PoolFull)
	require.Equal(t, given, allocate(t, r, web), "out of its quarantine")
	require.Len(t, release(t, r, fabric.ReleaseRequest{Prefix: given[1]}), 1)
	need(t, c.Again != nil && c.Pass != nil, "Again and Pass")
	r = c.Again(t)
	require.Equal(t, given[:1], allocate(t, r, asks("web", "own4")))
	release(t, r, fabric.ReleaseRequest{Guest: "libvirt web"})
	c.Pass(t, 11*time.Minute)
	require.Equal(t, given[0], allocate(t, r, asks("c", "own4"))[0])
}

func registryBarePrefixes(t *testing.T, r fabric.Registry, c RegistryControls) {
	for pool, others := range map[string][]string{"bare4": {"many4", "own6"}, "bare6": {"many6", "own4"}} {
		require.Equal(t, pool, refused(t, r, asks("web", pool), fabric.RuleBroken).Pool)
		require.Equal(t, pool, refused(t, r, asks("web", append([]string{pool}, others...)...), fabric.RuleBroken).Pool, "the address is on another NIC, or of the other family")
	}
	web := asks("web", "bare4", "bare6", "many4", "own6") // two on each NIC
	given := allocate(t, r, web)
	require.Equal(t, given, allocate(t, r, web))
	has := func() (bare []netip.Prefix) {
		all, err := r.Allocations(t.Context(), fabric.AllocationFilter{Guest: web.Guest})
		require.NoError(t, err)
		require.Len(t, all, len(given))
		for _, a := range all {
			require.Equal(t, a.NoAddress, !a.Address().IsValid(), "%s", a.Prefix)
			if a.NoAddress {
				bare = append(bare, a.Prefix)
			}
		}
		return bare
	}
	require.Equal(t, given[:2], has())
	// It runs with the prefix, and with an address in it or without, whatever the pool says.
	for n := range web.Wants {
		web.Wants[n].Prefix, web.Wants[n].NoAddress = given[n], n == 0
	}
	require.Equal(t, given, allocate(t, r, web))
	require.Equal(t, given[:1], has())
	for n := range web.Wants {
		web.Wants[n].Prefix = netip.Prefix{}
	}
	need(t, c.Again != nil, "Again")
	r = c.Again(t)
	require.Equal(t, given, allocate(t, r, web), "it keeps what it has")
	require.Equal(t, given[:1], has())

	// What asks for an address gets one, also where it had a prefix without.
	auto := asks("auto", fabric.AutoPool, fabric.AutoPool)
	auto.Wants[1].V6 = true
	for _, p := range allocate(t, r, auto) {
		require.True(t, p.IsSingleIP(), "%s", p)
	}
	auto = asks("web", fabric.AutoPool, fabric.AutoPool)
	auto.Wants[1].V6 = true
	require.NotContains(t, allocate(t, r, auto), given[0])
}

func registryPrefixHeld(t *testing.T, r fabric.Registry, _ RegistryControls) {
	given := allocate(t, r, asks("web", "own4", "own6"))
	for _, p := range given {
		inside, around := fabric.HostPrefix(fabric.RangeOf(p).Last), netip.PrefixFrom(p.Addr(), p.Bits()-2).Masked()
		for _, x := range []netip.Prefix{p, inside, around} {
			require.Equal(t, "web", refused(t, r, asks("db", x.String()), fabric.AddressHeld).Holder.VM, "%s", x)
			reserve := fabric.AllocationRequest{Wants: []fabric.Want{{Prefix: x}}}
			require.Equal(t, "web", refused(t, r, reserve, fabric.AddressHeld).Holder.VM, "%s", x)
		}
	}
	// An address that a guest names keeps its prefix from the others.
	release(t, r, fabric.ReleaseRequest{Guest: "libvirt web", Now: true})
	for n, address := range []string{"192.0.2.137/32", "192.0.2.145/32", "192.0.2.153/32"} {
		allocate(t, r, asks(fmt.Sprintf("named%d", n), address))
	}
	refused(t, r, asks("web", "own4"), fabric.PoolFull)
	allocate(t, r, asks("named0"))
	release(t, r, fabric.ReleaseRequest{Prefix: netip.MustParsePrefix("192.0.2.137/32"), Now: true})
	require.Equal(t, netip.MustParsePrefix("192.0.2.136/29"), allocate(t, r, asks("web", "own4"))[0])
}

func registryOwnPrefix(t *testing.T, r fabric.Registry, _ RegistryControls) {
	own := allocate(t, r, asks("web", "own4", "own6"))
	inside := []string{fabric.HostPrefix(fabric.RangeOf(own[0]).Last).String(), fabric.HostPrefix(fabric.RangeOf(own[1]).Last).String()}
	both := asks("web", "own4", "own6", inside[0], inside[1])
	given := allocate(t, r, both)
	require.Equal(t, own, given[:2])
	requireAllocations(t, r, own[0].String()+" allocated web", own[1].String()+" allocated web")
	require.Equal(t, given, allocate(t, r, both))

	// The addresses in the place of the prefixes, and prefixes in the place of addresses.
	allocate(t, r, asks("web", inside...))
	requireAllocations(t, r, inside[0]+" allocated web", inside[1]+" allocated web")
	allocate(t, r, asks("web", inside[0], inside[1], own[0].String(), own[1].String()))
	requireAllocations(t, r, own[0].String()+" allocated web", own[1].String()+" allocated web")
}

func registryAllOrNothing(t *testing.T, r fabric.Registry, _ RegistryControls) {
	for _, vm := range []string{"a", "b", "c", "d", "e", "f"} {
		allocate(t, r, asks(vm, "few4"))
	}
	require.Equal(t, "few4", refused(t, r, asks("x", "many6", "few4"), fabric.PoolFull).Pool)
	refused(t, r, asks("y", "many6", "198.51.100.9/32", "few4"), fabric.PoolFull)
	allocate(t, r, asks("x", "many6", "198.51.100.9/32"))
	require.Equal(t, 1, refused(t, r, asks("z", "many6", "none"), fabric.PoolUnknown).NIC)
}

func registryHeld(t *testing.T, r fabric.Registry, _ RegistryControls) {
	allocate(t, r, asks("web", "203.0.113.9/32", "2001:db8:100::9/128"))
	for _, p := range []string{"203.0.113.9/32", "2001:db8:100::9/128", "2001:db8:100::/64"} {
		bad := refused(t, r, asks("db", "203.0.113.10/32", p), fabric.AddressHeld)
		require.Equal(t, "web", bad.Holder.VM)
		require.Equal(t, fabric.Identity("libvirt web"), bad.Holder.Guest)
		require.Equal(t, "node1", bad.Holder.Node)
	}
	requireAllocations(t, r, "203.0.113.9/32 allocated web", "2001:db8:100::9/128 allocated web")
	outside := allocate(t, r, asks("other", "192.0.2.7/32"))
	require.Equal(t, netip.MustParsePrefix("192.0.2.7/32"), outside[0], "an address of no pool is kept, too")
}

func registryChange(t *testing.T, r fabric.Registry, _ RegistryControls) {
	allocate(t, r, asks("web", "203.0.113.9/32", "2001:db8:100::9/128"))
	allocate(t, r, asks("web", "203.0.113.10/32", "2001:db8:100::9/128"))
	requireAllocations(t, r, "203.0.113.9/32 quarantined web", "203.0.113.10/32 allocated web", "2001:db8:100::9/128 allocated web")
	allocate(t, r, asks("web", "203.0.113.9/32"))
	requireAllocations(t, r, "203.0.113.9/32 allocated web", "203.0.113.10/32 quarantined web", "2001:db8:100::9/128 quarantined web")
}

func registryQuarantine(t *testing.T, r fabric.Registry, c RegistryControls) {
	for _, vm := range []string{"a", "b", "c", "d", "e", "f"} {
		allocate(t, r, asks(vm, "few4"))
	}
	had := allocate(t, r, asks("c", "few4"))[0]
	require.Equal(t, []string{had.String() + " c"}, release(t, r, fabric.ReleaseRequest{Guest: "libvirt c"}))
	require.Empty(t, release(t, r, fabric.ReleaseRequest{Guest: "libvirt c"}), "it is released already")
	require.Empty(t, release(t, r, fabric.ReleaseRequest{Prefix: had}))
	refused(t, r, asks("new", "few4"), fabric.PoolFull)
	all, err := r.Allocations(t.Context(), fabric.AllocationFilter{})
	require.NoError(t, err)
	i := slices.IndexFunc(all, func(a fabric.Allocation) bool { return a.Prefix == had })
	require.Equal(t, 10*time.Minute, all[i].Until.Sub(all[i].Since))

	// The guest itself gets it again.
	require.Equal(t, had, allocate(t, r, asks("c", "few4"))[0])
	release(t, r, fabric.ReleaseRequest{Guest: "libvirt c"})

	// A guest that names the address may have it: its owner made it anew.
	allocate(t, r, asks("anew", had.String()))
	release(t, r, fabric.ReleaseRequest{Prefix: had})

	need(t, c.Pass != nil, "Pass")
	c.Pass(t, 11*time.Minute)
	require.Equal(t, had, allocate(t, r, asks("new", "few4"))[0])
}

func registryReserves(t *testing.T, r fabric.Registry, _ RegistryControls) {
	lb := netip.MustParsePrefix("203.0.113.12/32")
	reserve := fabric.AllocationRequest{Wants: []fabric.Want{{Prefix: lb, Note: "load balancer"}}}
	for range 2 {
		allocate(t, r, reserve)
		requireAllocations(t, r, "203.0.113.12/32 reserved")
	}
	for _, vm := range []string{"a", "b", "c", "d", "e"} {
		require.NotEqual(t, lb, allocate(t, r, asks(vm, "few4"))[0])
	}
	refused(t, r, asks("f", "few4"), fabric.PoolFull)
	given, err := r.Allocate(t.Context(), asks("lb", lb.String()))
	require.NoError(t, err)
	require.Equal(t, "load balancer", given[0].Note)
	require.Equal(t, "lb", refused(t, r, reserve, fabric.AddressHeld).Holder.VM)
	release(t, r, fabric.ReleaseRequest{Guest: "libvirt lb"})
	refused(t, r, asks("f", "few4"), fabric.PoolFull)
	require.Len(t, release(t, r, fabric.ReleaseRequest{Prefix: lb}), 1)
	require.Equal(t, lb, allocate(t, r, asks("f", "few4"))[0])
}

func registryReleaseNow(t *testing.T, r fabric.Registry, _ RegistryControls) {
	allocate(t, r, asks("web", "203.0.113.9/32"))
	web := fabric.ReleaseRequest{Prefix: netip.MustParsePrefix("203.0.113.9/32")}
	release(t, r, web)
	requireAllocations(t, r, "203.0.113.9/32 quarantined web")
	web.Now = true
	require.Len(t, release(t, r, web), 1, "also out of its quarantine")
	requireAllocations(t, r)
	require.Empty(t, release(t, r, web))
	allocate(t, r, asks("db", "203.0.113.9/32", "2001:db8:100::9/128"))
	web.Guest = "libvirt web"
	require.Empty(t, release(t, r, web), "it is another guest's by now")
	web.Guest = "libvirt db"
	require.Equal(t, []string{"203.0.113.9/32 db"}, release(t, r, web), "and no more of that guest's")
	requireAllocations(t, r, "2001:db8:100::9/128 allocated db")
}

func registryTakesOver(t *testing.T, r fabric.Registry, _ RegistryControls) {
	had := allocate(t, r, asks("web", "few4", "many6"))
	kept := allocate(t, r, asks("db", "many4"))
	over := asks("db", "few4", "many6")
	over.From = "libvirt web"
	over.Wants[0].N, over.Wants[1].N = 7, 7 // beside what it has
	over.Wants[0].Prefix, over.Wants[1].Prefix = had[0], had[1]
	for range 2 {
		require.Equal(t, had, allocate(t, r, over))
		requireAllocations(t, r, kept[0].String()+" allocated db", had[0].String()+" allocated db", had[1].String()+" allocated db")
	}

	// One that answered the same want is given back.
	other := allocate(t, r, asks("other", "many4"))
	over = asks("db", "many4")
	over.From, over.Wants[0].Prefix = "libvirt other", other[0]
	allocate(t, r, over)
	state := func(p netip.Prefix) fabric.AllocationState {
		all, err := r.Allocations(t.Context(), fabric.AllocationFilter{Prefix: p})
		require.NoError(t, err)
		require.Len(t, all, 1)
		return all[0].State
	}
	require.Equal(t, fabric.Quarantined, state(kept[0]))
	require.Equal(t, fabric.Allocated, state(had[0]))

	// Nobody takes it over if a node has acquired the other guest since.
	owner := acquire(t, r, fabric.AcquireRequest{Guest: "libvirt db", VM: "db", Node: "node2"})
	over = asks("late", "few4")
	over.From, over.Wants[0].Prefix = "libvirt db", had[0]
	require.Equal(t, owner, refused(t, r, over, fabric.AddressHeld).Holder.Owner())
	over.FromEpoch = owner.Epoch
	require.Equal(t, had[:1], allocate(t, r, over))
	require.Equal(t, had[:1], allocate(t, r, over))
	over.Guest, over.VM, over.From, over.FromEpoch = "libvirt db", "db", "libvirt late", 0
	require.Equal(t, had[:1], allocate(t, r, over))

	// Nobody takes over what the other guest does not have.
	over = asks("late", "many4")
	over.From, over.Wants[0].Prefix = "libvirt web", had[0]
	require.Equal(t, "db", refused(t, r, over, fabric.AddressHeld).Holder.VM)
	over.Wants[0].Prefix = kept[0]
	refused(t, r, over, fabric.AddressHeld)
	over.Wants[0].Prefix = netip.MustParsePrefix("198.51.100.250/32")
	if slices.Contains(slices.Concat(kept, other), over.Wants[0].Prefix) {
		over.Wants[0].Prefix = netip.MustParsePrefix("203.0.113.14/32")
	}
	refused(t, r, over, fabric.RuleBroken)
}

func registryFilters(t *testing.T, r fabric.Registry, _ RegistryControls) {
	web := allocate(t, r, asks("web", "203.0.113.9/32", "2001:db8:100:1::9/128"))
	allocate(t, r, asks("db", "203.0.113.10/32", "2001:db8:100:2::9/128"))
	allocate(t, r, fabric.AllocationRequest{Wants: []fabric.Want{{Prefix: netip.MustParsePrefix("2001:db8:100:3::/64")}}})
	release(t, r, fabric.ReleaseRequest{Prefix: web[1]})
	for _, tc := range []struct {
		filter fabric.AllocationFilter
		want   []string
	}{
		{fabric.AllocationFilter{}, []string{"203.0.113.9/32", "203.0.113.10/32", "2001:db8:100:1::9/128", "2001:db8:100:2::9/128", "2001:db8:100:3::/64"}},
		{fabric.AllocationFilter{Guest: "libvirt web"}, []string{"203.0.113.9/32"}},
		{fabric.AllocationFilter{Guest: "libvirt nobody"}, nil},
		{fabric.AllocationFilter{Prefix: web[1]}, []string{"2001:db8:100:1::9/128"}},
		{fabric.AllocationFilter{Prefix: netip.MustParsePrefix("2001:db8:100:3::7/128")}, []string{"2001:db8:100:3::/64"}},
		{fabric.AllocationFilter{Prefix: netip.MustParsePrefix("2001:db8:100:2::/63")}, []string{"2001:db8:100:2::9/128", "2001:db8:100:3::/64"}},
		{fabric.AllocationFilter{Prefix: netip.MustParsePrefix("203.0.113.11/32")}, nil},
		{fabric.AllocationFilter{Guest: "libvirt db", Prefix: netip.MustParsePrefix("203.0.113.8/29")}, []string{"203.0.113.10/32"}},
	} {
		all, err := r.Allocations(t.Context(), tc.filter)
		require.NoError(t, err)
		var got []string
		for _, a := range all {
			require.True(t, tc.filter.Selects(a))
			got = append(got, a.Prefix.String())
		}
		require.Equal(t, tc.want, got, "%+v", tc.filter)
	}
}

func registryAgain(t *testing.T, r fabric.Registry, c RegistryControls) {
	given := allocate(t, r, asks("web", "few4", "many6"))
	allocate(t, r, asks("db", "few4"))
	release(t, r, fabric.ReleaseRequest{Guest: "libvirt db"})
	allocate(t, r, fabric.AllocationRequest{Wants: []fabric.Want{{Prefix: netip.MustParsePrefix("198.51.100.7/32"), Note: "printer"}}})
	before, err := r.Allocations(t.Context(), fabric.AllocationFilter{})
	require.NoError(t, err)

	need(t, c.Again != nil, "Again")
	r = c.Again(t)
	after, err := r.Allocations(t.Context(), fabric.AllocationFilter{})
	require.NoError(t, err)
	require.Equal(t, len(before), len(after))
	for i, a := range after {
		require.WithinDuration(t, before[i].Since, a.Since, 0)
		require.WithinDuration(t, before[i].Until, a.Until, 0)
		a.Since, a.Until, before[i].Since, before[i].Until = time.Time{}, time.Time{}, time.Time{}, time.Time{}
		require.Equal(t, before[i], a)
	}
	require.Equal(t, given, allocate(t, r, asks("web", "few4", "many6")))
}

func registryRecords(t *testing.T, r fabric.Registry, _ RegistryControls) {
	runs := asks("web", "few4", "many6")
	runs.Wants[0].Prefix = netip.MustParsePrefix("203.0.113.13/32")
	runs.Wants[1].Prefix = netip.MustParsePrefix("2001:db8:100:1::7/128")
	given := allocate(t, r, runs)
	require.Equal(t, []netip.Prefix{runs.Wants[0].Prefix, runs.Wants[1].Prefix}, given)
	require.Equal(t, given, allocate(t, r, asks("web", "few4", "many6")), "it gets the same when it asks the pools")
	runs.Guest, runs.VM = "libvirt other", "other"
	refused(t, r, runs, fabric.AddressHeld)
}

func registryContext(t *testing.T, r fabric.Registry, _ RegistryControls) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := r.Allocate(gone, asks("web", "few4"))
	require.ErrorIs(t, err, context.Canceled)
	_, err = r.Release(gone, fabric.ReleaseRequest{Guest: "libvirt web"})
	require.ErrorIs(t, err, context.Canceled)
	_, err = r.Allocations(gone, fabric.AllocationFilter{})
	require.ErrorIs(t, err, context.Canceled)
	requireAllocations(t, r)
}

// registryConcurrentPrefixes lets guests get a prefix and an address each, or name an
// address that may be in a prefix of another one.
func registryConcurrentPrefixes(t *testing.T, r fabric.Registry, _ RegistryControls) {
	const guests = 30
	var wg sync.WaitGroup
	for n := range guests {
		wg.Go(func() {
			a := asks(fmt.Sprintf("vm%d", n), "own6", "many4")
			if n%3 == 0 {
				a = asks(fmt.Sprintf("vm%d", n), fmt.Sprintf("192.0.2.%d/32", 128+n))
			}
			if n%3 == 1 {
				a.Wants = append(a.Wants, fabric.Want{N: 7, Pool: "own4"})
			}
			_, err := r.Allocate(t.Context(), a)
			var bad *fabric.AllocationError
			if !errors.As(err, &bad) || bad.Reason != fabric.AddressHeld && bad.Reason != fabric.PoolFull {
				assert.NoError(t, err)
			}
		})
	}
	wg.Wait()
	all, err := r.Allocations(t.Context(), fabric.AllocationFilter{})
	require.NoError(t, err)
	for i, a := range all {
		for _, b := range all[i+1:] {
			require.False(t, a.Prefix.Overlaps(b.Prefix), "%s of %s and %s of %s", a.Prefix, a.VM, b.Prefix, b.VM)
		}
	}
	require.GreaterOrEqual(t, len(all), 20, "ten guests of two prefixes each meet nobody")
}

func registryConcurrent(t *testing.T, r fabric.Registry, _ RegistryControls) {
	const guests = 50
	var wg sync.WaitGroup
	got := make([]netip.Prefix, guests)
	var mu sync.Mutex
	for n := range guests {
		wg.Go(func() {
			given, err := r.Allocate(t.Context(), asks(fmt.Sprintf("vm%d", n), "few4"))
			var bad *fabric.AllocationError
			if errors.As(err, &bad) {
				assert.Equal(t, fabric.PoolFull, bad.Reason)
				return
			}
			if assert.NoError(t, err) {
				mu.Lock()
				defer mu.Unlock()
				got[n] = given[0].Prefix
			}
		})
	}
	wg.Wait()
	seen := map[netip.Prefix]int{}
	for n, p := range got {
		if p.IsValid() {
			first, twice := seen[p]
			require.False(t, twice, "%s was given to vm%d and to vm%d", p, first, n)
			seen[p] = n
		}
	}
	require.Len(t, seen, 6)
}
