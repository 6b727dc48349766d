package etcd_test

import (
	"encoding/hex"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/disk"
	"github.com/vmfabric/vmfabric/fabric/etcd"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestRecordOfAPoolsAddressIsDamaged: its guest is refused, and does not start with another
// address, until the operator ends the record; also after the agent's restart.
func TestRecordOfAPoolsAddressIsDamaged(t *testing.T) {
	e := labtest.NewEtcd(t, labtest.EtcdOptions{})
	own, err := disk.OpenValue(t.TempDir(), "etcd", "own")
	require.NoError(t, err)
	t.Cleanup(func() { _ = own.Close() })
	seen, err := disk.OpenValue(t.TempDir(), "etcd", "seen")
	require.NoError(t, err)
	t.Cleanup(func() { _ = seen.Close() })
	options := []etcd.Option{etcd.WithMemory("node1", seen), etcd.WithOwn(own)}
	n, other := start(t, cluster(e.Endpoints...), options...), start(t, cluster(e.Endpoints...))
	ctx := labtest.Soon(t)
	web := asks("web", "node1", "few4", "many6")
	given, err := n.Allocate(ctx, web)
	require.NoError(t, err)
	_, err = other.Allocations(ctx, fabric.AllocationFilter{})
	require.NoError(t, err)
	at := given[0].Prefix
	key := "/vmfabric/conformance/addr/" + hex.EncodeToString(at.Addr().AsSlice()) + "/32"
	_, err = raw(t, e.Endpoints...).Put(ctx, key, "x")
	require.NoError(t, err)
	refuses := func(n node) {
		t.Helper()
		diagnoses(t, n, "key "+key+" is damaged")
		_, err := n.Allocate(ctx, web)
		held, is := errors.AsType[*fabric.AllocationError](err)
		require.True(t, is, "%v", err)
		assert.Equal(t, at, held.Prefix)
		assert.NotEmpty(t, held.Holder.Flaw, "no agent gives it back by itself")
		assert.ErrorContains(t, err, "the guest had "+at.Addr().String()+" from pool few4")
		assert.ErrorContains(t, err, "is damaged; release "+at.Addr().String())
	}
	refuses(n)
	refuses(other)
	given, err = n.Allocate(ctx, asks("db", "node1", "few4", "many6"))
	require.NoError(t, err, "another guest is not concerned")
	assert.NotEqual(t, at, given[0].Prefix)
	n.stop()
	n = start(t, cluster(e.Endpoints...), options...)
	refuses(n)

	_, err = other.Release(ctx, fabric.ReleaseRequest{Prefix: at, Now: true})
	require.NoError(t, err)
	diagnoses(t, n, "")
	given, err = n.Allocate(ctx, web)
	require.NoError(t, err, "that is the operator's word")
	assert.Len(t, given, 2)
}
