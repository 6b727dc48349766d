package etcd_test

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

func asks(vm, at string, pools ...string) fabric.AllocationRequest {
	a := fabric.AllocationRequest{Guest: fabric.Identity("libvirt " + vm), VM: vm, Node: at}
	for n, pool := range pools {
		w := fabric.Want{N: n, Pool: pool}
		if p, err := netip.ParsePrefix(pool); err == nil {
			w.Pool, w.Prefix = "", p
		}
		a.Wants = append(a.Wants, w)
	}
	return a
}

func prefixes(all []fabric.Allocation) (ps []netip.Prefix) {
	for _, a := range all {
		ps = append(ps, a.Prefix)
	}
	return ps
}

// TestTwoNodesRaceForFewAddresses: 50 guests on two nodes ask for one of six addresses,
// each for one of many IPv6 addresses, too: all or nothing.
func TestTwoNodesRaceForFewAddresses(t *testing.T) {
	e := labtest.NewEtcd(t, labtest.EtcdOptions{})
	nodes := []node{start(t, cluster(e.Endpoints...)), start(t, cluster(e.Endpoints...))}
	var (
		mu      sync.Mutex
		got     = map[netip.Prefix]string{}
		full    int
		running sync.WaitGroup
	)
	ctx := labtest.Soon(t)
	for n := range 50 {
		running.Go(func() {
			vm := fmt.Sprintf("vm%d", n)
			given, err := nodes[n%2].Allocate(ctx, asks(vm, "node1", "many6", "few4"))
			mu.Lock()
			defer mu.Unlock()
			var bad *fabric.AllocationError
			if errors.As(err, &bad) {
				assert.Equal(t, fabric.PoolFull, bad.Reason)
				full++
				return
			}
			assert.NoError(t, err)
			for _, p := range prefixes(given) {
				assert.Empty(t, got[p], "%s was given to %s, too", p, vm)
				got[p] = vm
			}
		})
	}
	running.Wait()
	assert.Equal(t, 44, full)
	assert.Len(t, got, 12)
	for _, n := range nodes {
		assert.EventuallyWithT(t, func(t *assert.CollectT) {
			all, err := n.Allocations(ctx, fabric.AllocationFilter{})
			assert.NoError(t, err)
			assert.Len(t, all, 12)
		}, time.Minute, 10*time.Millisecond)
	}
}

// TestOneGuestOnTwoNodes: two nodes that ask for one guest at the same time get one
// answer.
func TestOneGuestOnTwoNodes(t *testing.T) {
	e := labtest.NewEtcd(t, labtest.EtcdOptions{})
	nodes := []node{start(t, cluster(e.Endpoints...)), start(t, cluster(e.Endpoints...))}
	ctx := labtest.Soon(t)
	for round := range 40 {
		var answers [4][]fabric.Allocation
		var asking sync.WaitGroup
		for i := range answers {
			asking.Go(func() {
				given, err := nodes[i%2].Allocate(ctx, asks(fmt.Sprintf("vm%d", round), fmt.Sprintf("node%d", 1+i%2), "many4", "many6"))
				assert.NoError(t, err)
				answers[i] = given
			})
		}
		asking.Wait()
		for _, a := range answers[1:] {
			require.Equal(t, prefixes(answers[0]), prefixes(a))
		}
	}
	// What one node releases the other does not give from memory.
	for round := range 40 {
		vm := fmt.Sprintf("vm%d", round)
		released, err := nodes[0].Release(ctx, fabric.ReleaseRequest{Guest: fabric.Identity("libvirt " + vm), Now: true})
		require.NoError(t, err)
		require.Len(t, released, 2)
		again, err := nodes[1].Release(ctx, fabric.ReleaseRequest{Guest: fabric.Identity("libvirt " + vm)})
		require.NoError(t, err)
		require.Empty(t, again)
		_, err = nodes[1].Allocate(ctx, asks("other"+vm, "node1", prefixes(released)[0].String()))
		require.NoError(t, err)
	}
}

// TestReservationAgainstGuests: a prefix that one node reserves and an address inside of
// it that another node gives exclude each other, in both families.
func TestReservationAgainstGuests(t *testing.T) {
	e := labtest.NewEtcd(t, labtest.EtcdOptions{})
	nodes := []node{start(t, cluster(e.Endpoints...)), start(t, cluster(e.Endpoints...))}
	ctx := labtest.Soon(t)
	given := 0
	for round := range 40 {
		wide := netip.MustParsePrefix(fmt.Sprintf("198.51.100.%d/30", 4*round))
		if round%2 == 1 {
			wide = netip.MustParsePrefix(fmt.Sprintf("2001:db8:100:%x::/64", round))
		}
		inside := fabric.HostPrefix(wide.Addr().Next())
		var reserved, allocated error
		var racing sync.WaitGroup
		racing.Go(func() {
			_, reserved = nodes[0].Allocate(ctx, fabric.AllocationRequest{Node: "node1", Wants: []fabric.Want{{Prefix: wide}}})
		})
		racing.Go(func() {
			_, allocated = nodes[1].Allocate(ctx, asks(fmt.Sprintf("vm%d", round), "node1", inside.String()))
		})
		racing.Wait()
		require.True(t, (reserved == nil) != (allocated == nil), "reservation of %s: %v, allocation of %s: %v", wide, reserved, inside, allocated)
		if allocated == nil {
			given++
			require.ErrorIs(t, reserved, fabric.ErrRefused)
		} else {
			require.ErrorIs(t, allocated, fabric.ErrRefused)
		}
	}
	t.Logf("%d of 40 went to the guest", given)
}

// TestPrefixAgainstItsParts: an allocation of a prefix and one inside of it, or around it,
// on two nodes at the same time exclude each other, whatever lengths were in use before.
func TestPrefixAgainstItsParts(t *testing.T) {
	e := labtest.NewEtcd(t, labtest.EtcdOptions{})
	nodes := []node{start(t, cluster(e.Endpoints...)), start(t, cluster(e.Endpoints...))}
	ctx := labtest.Soon(t)
	for round := range 60 {
		bits := []int{64, 60, 56, 64, 127, 65}[round%6]
		base := netip.MustParseAddr(fmt.Sprintf("2001:db8:%x::", 0x1000+round))
		wide := netip.PrefixFrom(base, bits)
		other := fabric.HostPrefix(base.Next())
		if round%4 == 1 {
			other = netip.PrefixFrom(base, bits-3)
		}
		var errs [2]error
		var racing sync.WaitGroup
		for i, p := range []netip.Prefix{wide, other} {
			racing.Go(func() {
				_, errs[i] = nodes[i].Allocate(ctx, asks(fmt.Sprintf("vm%d-%d", round, i), "node1", p.String()))
			})
		}
		racing.Wait()
		require.True(t, (errs[0] == nil) != (errs[1] == nil), "%s: %v, %s: %v", wide, errs[0], other, errs[1])
		for _, err := range errs {
			if err != nil {
				require.ErrorIs(t, err, fabric.ErrRefused)
			}
		}
		if round%7 == 3 { // the last prefix of a length may go
			for i := range nodes {
				_, err := nodes[i].Release(ctx, fabric.ReleaseRequest{Guest: fabric.Identity(fmt.Sprintf("libvirt vm%d-%d", round, i)), Now: true})
				require.NoError(t, err)
			}
		}
	}
}

// TestCompactionUnderTheWatch: a node whose watch cannot go on lists everything anew.
func TestCompactionUnderTheWatch(t *testing.T) {
	e := labtest.NewEtcd(t, labtest.EtcdOptions{})
	ctx, client := labtest.Soon(t), raw(t, e.Endpoints...)
	writer, reader := start(t, cluster(e.Endpoints...)), start(t, cluster(e.Endpoints...))
	_, err := reader.Allocations(ctx, fabric.AllocationFilter{})
	require.NoError(t, err)
	e.Kill(0) // the watch of the reader is to go on from here
	e.Start(0)
	e.Ready(0)
	given, err := writer.Allocate(ctx, asks("web", "node1", "many4"))
	require.NoError(t, err)
	_, err = writer.Release(ctx, fabric.ReleaseRequest{Prefix: given[0].Prefix, Now: true})
	require.NoError(t, err)
	last, err := writer.Allocate(ctx, asks("db", "node1", "many6"))
	require.NoError(t, err)
	now, err := client.Get(ctx, "x")
	require.NoError(t, err)
	_, err = client.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical())
	require.NoError(t, err)
	assert.EventuallyWithT(t, func(t *assert.CollectT) {
		all, err := reader.Allocations(ctx, fabric.AllocationFilter{})
		assert.NoError(t, err)
		assert.Equal(t, prefixes(last), prefixes(all))
	}, time.Minute, 10*time.Millisecond)
}
