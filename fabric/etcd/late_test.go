package etcd

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/conformance"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// late is a registry that runs without its watch: it knows no more than what it asks for.
func late(t *testing.T, e *labtest.Etcd) *Registry {
	t.Helper()
	c := *conformance.RegistryCluster()
	c.Registry.Etcd = &fabric.EtcdConfig{Endpoints: e.Endpoints}
	c = c.WithDefaults()
	r, err := New(&c)
	require.NoError(t, err)
	client, err := clientv3.New(clientv3.Config{Endpoints: e.Endpoints, Logger: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	r.client.Store(client)
	close(r.running)
	require.NoError(t, r.list(labtest.Soon(t)))
	return r
}

// TestLateCopy: a node whose copy is late gives and refuses by what is.
func TestLateCopy(t *testing.T) {
	e := labtest.NewEtcd(t, labtest.EtcdOptions{})
	ctx := labtest.Soon(t)
	one, other := late(t, e), late(t, e)
	ask := func(vm, pool string) fabric.AllocationRequest {
		return fabric.AllocationRequest{Guest: fabric.Identity("libvirt " + vm), VM: vm, Node: "node1", Wants: []fabric.Want{{Pool: pool}}}
	}
	var last fabric.Allocation
	for _, vm := range []string{"a", "b", "c", "d", "e", "f"} {
		given, err := one.Allocate(ctx, ask(vm, "few4"))
		require.NoError(t, err)
		last = given[0]
	}
	same, err := other.Allocate(ctx, ask("f", "few4"))
	require.NoError(t, err)
	assert.Equal(t, last.Prefix, same[0].Prefix, "the guest has it from the other node")

	released, err := other.Release(ctx, fabric.ReleaseRequest{Guest: "libvirt f", Now: true})
	require.NoError(t, err)
	require.Len(t, released, 1)
	given, err := one.Allocate(ctx, ask("g", "few4"))
	require.NoError(t, err, "it is not full any more")
	assert.Equal(t, last.Prefix, given[0].Prefix)
	_, err = other.Allocate(ctx, ask("h", "few4"))
	require.ErrorIs(t, err, fabric.ErrRefused)

	released, err = other.Release(ctx, fabric.ReleaseRequest{Guest: "libvirt g", Now: true})
	require.NoError(t, err)
	require.Len(t, released, 1)
	byName := fabric.AllocationRequest{Guest: "libvirt i", VM: "i", Node: "node1", Wants: []fabric.Want{{Prefix: last.Prefix}}}
	_, err = one.Allocate(ctx, byName)
	require.NoError(t, err, "nobody has it any more")
	_, err = other.Release(ctx, fabric.ReleaseRequest{Guest: "libvirt i", Now: true})
	require.NoError(t, err)
	again, err := one.Allocate(ctx, byName)
	require.NoError(t, err)
	all, err := late(t, e).Allocations(ctx, fabric.AllocationFilter{})
	require.NoError(t, err)
	again[0].New = false
	assert.Contains(t, all, again[0], "what it says to have given is recorded")
}
