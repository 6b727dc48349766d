package etcd

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
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
func late(t *testing.T, e *labtest.Etcd, opts ...Option) *Registry {
	t.Helper()
	c := *conformance.RegistryCluster()
	c.Registry.Etcd = &fabric.EtcdConfig{Endpoints: e.Endpoints}
	c = c.WithDefaults()
	r, err := New(&c, opts...)
	require.NoError(t, err)
	client, err := clientv3.New(clientv3.Config{Endpoints: e.Endpoints, Logger: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	r.client.Store(client)
	close(r.running)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); r.readLists(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
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

// TestTransactionMeetsARestoredEtcd before anybody has looked, and when its revision is later
// than it was: it changes nothing.
func TestTransactionMeetsARestoredEtcd(t *testing.T) {
	t.Parallel()
	e := labtest.NewEtcd(t, labtest.EtcdOptions{})
	ctx := labtest.Soon(t)
	r, other := late(t, e, WithMemory("node1", &note{})), late(t, e, WithMemory("node2", &note{}))
	ask := func(vm string) fabric.AllocationRequest {
		return fabric.AllocationRequest{Guest: fabric.Identity("libvirt " + vm), VM: vm, Node: "node1", Wants: []fabric.Want{{Pool: "many6"}}}
	}
	backup := e.Backup(0)
	_, err := r.Allocate(ctx, ask("web"))
	require.NoError(t, err)
	e.Restore(backup)
	client := r.client.Load()
	for rev := int64(0); rev <= r.past.ask().rev; {
		put, err := client.Put(ctx, "/other", "x")
		require.NoError(t, err)
		rev = put.Header.Revision
	}
	_, err = r.Allocate(ctx, ask("db"))
	require.ErrorContains(t, err, "lacks what this node wrote last")
	_, err = r.Release(ctx, fabric.ReleaseRequest{Guest: "libvirt web"})
	require.ErrorContains(t, err, "no addresses are given")
	mine, err := client.Get(ctx, r.cache.keys.root+"addr/", clientv3.WithPrefix())
	require.NoError(t, err)
	assert.Empty(t, mine.Kvs)

	answer, err := client.Txn(ctx).Then(r.cache.keys.views()...).Commit()
	require.NoError(t, err)
	r.inspect(ctx, client, r.cache.keys.viewOf(answer.Header, answer.Responses), r.past.ask())
	_, err = other.Allocate(ctx, ask("db"))
	require.ErrorContains(t, err, "node node1 says that etcd lacks what this node wrote last", "it has not looked")
}

// TestFullPoolIsConfirmed: a node that asks a full pool reads that pool's keys, and all
// values only if something there is not as it knows.
func TestFullPoolIsConfirmed(t *testing.T) {
	e := labtest.NewEtcd(t, labtest.EtcdOptions{})
	ctx := labtest.Soon(t)
	one, other := late(t, e), late(t, e)
	ask := func(vm string, pools ...string) fabric.AllocationRequest {
		a := fabric.AllocationRequest{Guest: fabric.Identity("libvirt " + vm), VM: vm, Node: "node1"}
		for n, pool := range pools {
			a.Wants = append(a.Wants, fabric.Want{N: n, Pool: pool, V6: pool == fabric.AutoPool})
		}
		return a
	}
	named := func(vm, p string) fabric.AllocationRequest {
		return fabric.AllocationRequest{Guest: fabric.Identity("libvirt " + vm), VM: vm, Node: "node1", Wants: []fabric.Want{{Prefix: netip.MustParsePrefix(p)}}}
	}
	full := func(lists int64) {
		t.Helper()
		before := other.listed.Load()
		for _, pools := range [][]string{{"few4"}, {"few4", fabric.AutoPool}} {
			_, err := other.Allocate(ctx, ask("x", pools...))
			require.ErrorContains(t, err, "pool few4 is full")
		}
		assert.Equal(t, lists, other.listed.Load()-before)
	}
	free := func() {
		t.Helper()
		given, err := other.Allocate(ctx, ask("x", "few4"))
		require.NoError(t, err, "what this node did not hear of is free")
		_, err = one.Release(ctx, fabric.ReleaseRequest{Prefix: given[0].Prefix, Now: true})
		require.NoError(t, err)
		require.NoError(t, other.list(ctx))
	}
	var got netip.Prefix
	for _, vm := range []string{"a", "b", "c", "d", "e", "f"} {
		given, err := one.Allocate(ctx, ask(vm, "few4"))
		require.NoError(t, err)
		got = given[0].Prefix
	}
	require.NoError(t, other.list(ctx))
	full(0)
	_, err := one.Allocate(ctx, ask("y", "many4"))
	require.NoError(t, err)
	full(0)

	_, err = one.Release(ctx, fabric.ReleaseRequest{Prefix: got, Now: true})
	require.NoError(t, err)
	_, err = one.Allocate(ctx, named("g", got.String()))
	require.NoError(t, err)
	full(1) // the key is there, of a later revision

	_, err = one.Release(ctx, fabric.ReleaseRequest{Prefix: got, Now: true})
	require.NoError(t, err)
	free()

	for _, vm := range []string{"a", "b", "c", "d", "e"} {
		_, err := one.Release(ctx, fabric.ReleaseRequest{Guest: fabric.Identity("libvirt " + vm), Now: true})
		require.NoError(t, err)
	}
	_, err = one.Allocate(ctx, named("wide", "203.0.113.0/24"))
	require.NoError(t, err)
	require.NoError(t, other.list(ctx))
	full(0)
	_, err = one.Release(ctx, fabric.ReleaseRequest{Guest: "libvirt wide", Now: true})
	require.NoError(t, err)
	free()
}

// TestOwnerThatAFullEtcdForgets: nobody takes the owner before it for the present one.
func TestOwnerThatAFullEtcdForgets(t *testing.T) {
	e := labtest.NewEtcd(t, labtest.EtcdOptions{Args: []string{"--quota-backend-bytes", "1000000"}})
	ctx := labtest.Soon(t)
	one := late(t, e)
	web := fabric.AllocationRequest{Guest: "libvirt web", VM: "web", Node: "node1", Starts: true, Wants: []fabric.Want{{Pool: "few4"}, {N: 1, Pool: "many6"}}}
	given, err := one.Allocate(ctx, web)
	require.NoError(t, err)
	last, err := one.Acquire(ctx, fabric.AcquireRequest{Guest: web.Guest, VM: "web", Node: "node2", Over: given[0].Epoch})
	require.NoError(t, err)
	for i := 0; err == nil; i++ {
		_, err = one.client.Load().Put(ctx, fmt.Sprintf("other/%d", i), strings.Repeat("x", 100_000))
	}
	_, err = one.Release(ctx, fabric.ReleaseRequest{Prefix: given[0].Prefix})
	require.NoError(t, err)
	has, err := late(t, e).Allocations(ctx, fabric.AllocationFilter{Guest: web.Guest})
	require.NoError(t, err)
	require.Len(t, has, 1)
	assert.Zero(t, has[0].Epoch, "node2 had epoch %d last", last.Epoch)
}
