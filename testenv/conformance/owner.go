package conformance

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// acquires is the request of a node that takes web over from the owner of an epoch.
func acquires(node string, over uint64) fabric.AcquireRequest {
	return fabric.AcquireRequest{Guest: "libvirt web", VM: "web", Node: node, Over: over}
}

func acquire(t *testing.T, r fabric.Registry, a fabric.AcquireRequest) fabric.Owner {
	t.Helper()
	is, err := r.Acquire(t.Context(), a)
	require.NoError(t, err)
	require.Equal(t, a.Node, is.Node)
	require.Greater(t, is.Epoch, a.Over)
	require.GreaterOrEqual(t, is.Epoch, a.Least)
	return is
}

// requireOwner compares the owner in all allocations of web.
func requireOwner(t *testing.T, r fabric.Registry, want fabric.Owner) {
	t.Helper()
	all, err := r.Allocations(t.Context(), fabric.AllocationFilter{})
	require.NoError(t, err)
	found := false
	for _, a := range all {
		if a.Guest == "libvirt web" && a.State == fabric.Allocated {
			found = true
			require.Equal(t, want, a.Owner(), "%s", a.Prefix)
		}
	}
	require.True(t, found)
}

func registryOwner(t *testing.T, r fabric.Registry, _ RegistryControls) {
	allocate(t, r, asks("db", "few4"))
	given, err := r.Allocate(t.Context(), asks("web", "few4", "many6"))
	require.NoError(t, err)
	require.Equal(t, fabric.Owner{Node: "node1"}, given[0].Owner(), "nobody acquired it yet")

	first := acquire(t, r, acquires("node1", 0))
	requireOwner(t, r, first)
	again := acquire(t, r, acquires("node1", first.Epoch))
	requireOwner(t, r, again)
	second := acquire(t, r, acquires("node2", again.Epoch))
	requireOwner(t, r, second)
	require.Equal(t, second, acquire(t, r, acquires("node2", again.Epoch)), "asked again, it answers the same")

	elsewhere := asks("web", "few4", "many6", "many4")
	elsewhere.Node = "node1"
	given, err = r.Allocate(t.Context(), elsewhere)
	require.NoError(t, err)
	for _, g := range given {
		require.Equal(t, second, g.Owner(), "a request for addresses is none for the guest")
	}
	requireOwner(t, r, second)

	least := acquires("node1", second.Epoch)
	least.Least = second.Epoch + 1000
	third := acquire(t, r, least)
	require.Equal(t, third, acquire(t, r, least))
	requireOwner(t, r, third)
}

func registryOwnerRefused(t *testing.T, r fabric.Registry, _ RegistryControls) {
	_, err := r.Acquire(t.Context(), acquires("node1", 0))
	require.ErrorIs(t, err, fabric.ErrRefused, "it has no address")
	requireAllocations(t, r)

	allocate(t, r, asks("web", "203.0.113.9/32"))
	first := acquire(t, r, acquires("node1", 0))
	second := acquire(t, r, acquires("node2", first.Epoch))
	for _, over := range []uint64{0, first.Epoch, second.Epoch + 1} {
		_, err := r.Acquire(t.Context(), acquires("node1", over))
		requireReason(t, err)
		require.ErrorIs(t, err, fabric.ErrRefused)
		var owned *fabric.OwnerError
		require.ErrorAs(t, err, &owned)
		require.Equal(t, fabric.OwnerError{VM: "web", Owner: second}, *owned)
	}
	requireOwner(t, r, second)

	release(t, r, fabric.ReleaseRequest{Guest: "libvirt web"})
	_, err = r.Acquire(t.Context(), acquires("node2", second.Epoch))
	require.ErrorIs(t, err, fabric.ErrRefused, "it has no address any more")
	requireAllocations(t, r, "203.0.113.9/32 quarantined web")

	gone, cancel := context.WithCancel(t.Context())
	cancel()
	allocate(t, r, asks("web", "203.0.113.9/32"))
	_, err = r.Acquire(gone, acquires("node3", 0))
	require.ErrorIs(t, err, context.Canceled)
	requireOwner(t, r, fabric.Owner{Node: "node1"})
}

func registryOwnerAtStart(t *testing.T, r fabric.Registry, _ RegistryControls) {
	for _, before := range []bool{false, true} {
		if before {
			allocate(t, r, asks("web", "few4"))
			requireOwner(t, r, fabric.Owner{Node: "node1"})
		}
		web := asks("web", "few4", "many6", "203.0.113.14/32")
		web.Starts, web.Node = true, "node1"
		given, err := r.Allocate(t.Context(), web)
		require.NoError(t, err)
		is := given[0].Owner()
		require.Equal(t, "node1", is.Node)
		require.Positive(t, is.Epoch)
		requireOwner(t, r, is)
		web.Node = "node2"
		given, err = r.Allocate(t.Context(), web)
		require.NoError(t, err)
		require.Equal(t, is, given[0].Owner(), "it has an owner, which Acquire changes")
		requireOwner(t, r, is)
		acquire(t, r, acquires("node2", is.Epoch))
		release(t, r, fabric.ReleaseRequest{Guest: "libvirt web", Now: true})
	}
}

func registryOwnerAgain(t *testing.T, r fabric.Registry, c RegistryControls) {
	allocate(t, r, asks("web", "few4", "many6"))
	is := acquire(t, r, acquires("node2", 0))
	need(t, c.Again != nil, "Again")
	r = c.Again(t)
	requireOwner(t, r, is)
	acquire(t, r, acquires("node1", is.Epoch))
}

func registryOwnerConcurrent(t *testing.T, r fabric.Registry, _ RegistryControls) {
	allocate(t, r, asks("web", "few4"))
	var over uint64
	for range 5 {
		var wg sync.WaitGroup
		var mu sync.Mutex
		var won []fabric.Owner
		for _, node := range []string{"node1", "node2", "node3", "node4"} {
			wg.Go(func() {
				is, err := r.Acquire(t.Context(), acquires(node, over))
				if refused := (*fabric.OwnerError)(nil); errors.As(err, &refused) {
					return
				}
				if assert.NoError(t, err) {
					mu.Lock()
					defer mu.Unlock()
					won = append(won, is)
				}
			})
		}
		wg.Wait()
		require.Len(t, won, 1, "one node takes over from one owner")
		requireOwner(t, r, won[0])
		over = won[0].Epoch
	}
}
