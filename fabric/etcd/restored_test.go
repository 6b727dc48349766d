package etcd_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/disk"
	"github.com/vmfabric/vmfabric/fabric/etcd"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// keeper is a node that remembers what it saw, over the restarts of its agent.
type keeper struct {
	node
	name    string
	cluster *fabric.Cluster
	state   string
	seen    *disk.Value
	own     *disk.Value
	adopted atomic.Int32
}

func keep(t *testing.T, c *fabric.Cluster, name string) *keeper {
	k := &keeper{name: name, cluster: c, state: filepath.Join(t.TempDir(), "state")}
	k.start(t)
	return k
}

func (k *keeper) start(t *testing.T) {
	t.Helper()
	seen, err := disk.OpenValue(k.state, "etcd", "seen")
	require.NoError(t, err)
	t.Cleanup(func() { _ = seen.Close() })
	own, err := disk.OpenValue(k.state, "etcd", "own")
	require.NoError(t, err)
	t.Cleanup(func() { _ = own.Close() })
	k.seen, k.own = seen, own
	k.node = start(t, k.cluster, etcd.WithMemory(k.name, k.seen), etcd.WithOwn(k.own), etcd.WithAdopted(func() { k.adopted.Add(1) }))
}

// end ends the agent.
func (k *keeper) end(t *testing.T) {
	t.Helper()
	k.stop()
	require.NoError(t, k.seen.Close())
	require.NoError(t, k.own.Close())
}

func (k *keeper) gives(t *testing.T, vm string) []netip.Prefix {
	t.Helper()
	given, err := k.Allocate(labtest.Soon(t), asks(vm, k.name, "few4", "many6"))
	require.NoError(t, err)
	return prefixes(given)
}

// owns acquires a guest from whoever owns it, and returns the epoch.
func (k *keeper) owns(t *testing.T, vm string) uint64 {
	t.Helper()
	var has fabric.Allocation
	require.Eventually(t, func() bool {
		all, err := k.Allocations(labtest.Soon(t), fabric.AllocationFilter{})
		i := slices.IndexFunc(all, func(a fabric.Allocation) bool { return a.VM == vm })
		if err != nil || i < 0 {
			return false
		}
		has = all[i]
		return true
	}, time.Minute, 10*time.Millisecond, "it heard of %s", vm)
	owner, err := k.Acquire(labtest.Soon(t), fabric.AcquireRequest{Guest: has.Guest, VM: vm, Node: k.name, Over: has.Epoch})
	require.NoError(t, err)
	return owner.Epoch
}

func (k *keeper) refuses(t *testing.T, why string) {
	t.Helper()
	diagnoses(t, k.node, why)
	_, err := k.Allocate(labtest.Soon(t), asks("new", k.name, "many6"))
	require.ErrorContains(t, err, "no addresses are given")
	_, err = k.Release(labtest.Soon(t), fabric.ReleaseRequest{Guest: "libvirt web"})
	require.ErrorContains(t, err, "no addresses are given")
}

// passes writes so much that etcd's revision is later than one.
func passes(t *testing.T, c *clientv3.Client, rev int64) {
	t.Helper()
	for {
		answer, err := c.Put(labtest.Soon(t), "/other", "x")
		require.NoError(t, err)
		if answer.Header.Revision > rev {
			return
		}
	}
}

var restored = map[string]struct {
	restarted bool // the agent does not run meanwhile
	token     string
	emptied   bool
	passed    bool // the revision is later than it was when the node sees it
	says      string
}{
	"meanwhile":                        {says: "is older than it was"},
	"meanwhile, as another":            {token: "other", says: "is another one than before"},
	"before the start":                 {restarted: true, says: "is older than it was"},
	"before the start, and passed":     {restarted: true, passed: true, says: "lacks what this node wrote last"},
	"emptied before the start, passed": {restarted: true, emptied: true, passed: true, says: "has no registry any more"},
}

// TestRestored: an etcd that was restored from a backup, or replaced by an empty one, gives no
// address on any node, until the operator adopts it. Then all go on without a restart.
func TestRestored(t *testing.T) {
	t.Parallel()
	for name, tt := range restored {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := labtest.NewEtcd(t, labtest.EtcdOptions{})
			c := cluster(e.Endpoints...)
			one, other := keep(t, c, "node1"), keep(t, c, "node2")
			web := one.gives(t, "web")
			backup := e.Backup(0)
			db := one.gives(t, "db")
			before := one.owns(t, "db")
			client := raw(t, e.Endpoints...)
			was, err := client.Get(labtest.Soon(t), "/other")
			require.NoError(t, err)
			if tt.restarted {
				one.end(t)
				other.end(t)
			}
			e.Token += tt.token
			if tt.emptied {
				e.Kill(0)
				e.Erase(0)
				e.Start(0)
				e.Ready(0)
			} else {
				e.Restore(backup)
			}
			if tt.passed {
				passes(t, client, was.Header.Revision)
			}
			if tt.restarted {
				one.start(t)
			}
			one.refuses(t, tt.says)
			if tt.restarted {
				other.start(t)
			} else {
				all, err := one.Allocations(labtest.Soon(t), fabric.AllocationFilter{})
				require.ErrorContains(t, err, "no addresses are given")
				assert.Len(t, all, 4, "what was known is told")
			}
			other.refuses(t, "no addresses are given")
			one.end(t)
			one.start(t)
			one.refuses(t, tt.says)
			adopts(t, client, one, other, web, db, tt.emptied)
			assert.Less(t, before, uint64(2*fabric.RegistryEpoch))
			assert.GreaterOrEqual(t, other.owns(t, "db"), uint64(2*fabric.RegistryEpoch), "no epoch of before the restore wins over it")
		})
	}
}

// adopts adopts a registry, in which web has its addresses, if it was not emptied, and db
// has lost them.
func adopts(t *testing.T, client *clientv3.Client, one, other *keeper, web, db []netip.Prefix, emptied bool) {
	t.Helper()
	found, err := other.Adopt(labtest.Soon(t), false)
	require.NoError(t, err)
	assert.Contains(t, found.Doubt, "no addresses are given")
	assert.Len(t, found.Allocations, map[bool]int{false: 2}[emptied])
	other.refuses(t, "no addresses are given")
	before := other.adopted.Load()
	found, err = other.Adopt(labtest.Soon(t), true)
	require.NoError(t, err)
	assert.True(t, found.Adopted)
	assert.EqualValues(t, 2, found.Next)
	for _, k := range []*keeper{other, one} {
		diagnoses(t, k.node, "")
		assert.EqualValues(t, 1, k.adopted.Load()-before, k.name)
		_, err = k.Allocate(labtest.Soon(t), asks("new", k.name, "many6"))
		require.ErrorContains(t, err, "the nodes record in it what their guests have")
	}
	guest := asks("db", "node1", "few4", "many6") // it runs with what it has
	for i, p := range db {
		guest.Wants[i].Prefix = p
	}
	_, err = one.Allocate(labtest.Soon(t), guest)
	require.NoError(t, err)
	thief := guest
	thief.Guest, thief.VM = "libvirt thief", "thief"
	_, err = other.Allocate(labtest.Soon(t), thief)
	require.ErrorIs(t, err, fabric.ErrRefused)
	require.ErrorContains(t, err, "guest db")
	pass(t, client, time.Minute)
	assert.Equal(t, db, other.gives(t, "db"))
	if !emptied {
		assert.Equal(t, web, one.gives(t, "web"))
	}
	found, err = one.Adopt(labtest.Soon(t), true)
	require.NoError(t, err)
	assert.False(t, found.Adopted, "it is trusted")
	assert.EqualValues(t, 2, found.Incarnation)
	one.end(t)
	one.start(t)
	other.gives(t, "new")
	one.gives(t, "newer")
}

// TestMark: a node that lost nothing hears of it from one that did, at once, and does not
// need to look: a transaction that was decided before fails.
func TestMark(t *testing.T) {
	t.Parallel()
	e := labtest.NewEtcd(t, labtest.EtcdOptions{})
	c := cluster(e.Endpoints...)
	one, other := keep(t, c, "node1"), keep(t, c, "node2")
	other.gives(t, "web")
	backup := e.Backup(0)
	one.gives(t, "db")
	client := raw(t, e.Endpoints...)
	was, err := client.Get(labtest.Soon(t), "/other")
	require.NoError(t, err)
	one.end(t)
	other.end(t)
	e.Restore(backup)
	passes(t, client, was.Header.Revision)
	other.start(t)
	other.gives(t, "x")
	one.start(t)
	one.refuses(t, "lacks what this node wrote last")
	other.refuses(t, "node node1 says that etcd lacks what this node wrote last")
	fresh := keep(t, c, "node3")
	fresh.refuses(t, "node node1 says that")
}

// TestMemory: what cannot be read is not nothing.
func TestMemory(t *testing.T) {
	t.Parallel()
	e := labtest.NewEtcd(t, labtest.EtcdOptions{})
	one := keep(t, cluster(e.Endpoints...), "node1")
	one.gives(t, "web")
	one.end(t)
	own := filepath.Join(one.state, "etcd", "own.json")
	require.FileExists(t, own)
	require.NoError(t, os.WriteFile(own, []byte("{}"), 0o600))
	one.start(t)
	diagnoses(t, one.node, own)
	one.gives(t, "web")
	diagnoses(t, one.node, "") // it is kept anew
	one.end(t)
	seen := filepath.Join(one.state, "etcd", "seen.json")
	require.FileExists(t, seen)
	require.NoError(t, os.WriteFile(seen, []byte("{}"), 0o600))
	one.start(t)
	one.refuses(t, seen)
	found, err := one.Adopt(labtest.Soon(t), true)
	require.NoError(t, err)
	assert.True(t, found.Adopted)
	diagnoses(t, one.node, "")
	pass(t, raw(t, e.Endpoints...), time.Minute)
	one.gives(t, "db")
	one.end(t)
	one.start(t)
	one.gives(t, "db")
}

// TestKilledAgent: a node that is killed, and had no time to keep anything at its end, has
// kept its last write.
func TestKilledAgent(t *testing.T) {
	t.Parallel()
	e := labtest.NewEtcd(t, labtest.EtcdOptions{})
	one := keep(t, cluster(e.Endpoints...), "node1")
	one.gives(t, "web")
	var seen etcd.Seen
	found, err := one.seen.Get(&seen)
	require.NoError(t, err)
	require.True(t, found)
	last, err := raw(t, e.Endpoints...).Get(labtest.Soon(t), "/vmfabric/conformance/node/node1/last")
	require.NoError(t, err)
	require.Len(t, last.Kvs, 1)
	assert.Equal(t, last.Kvs[0].ModRevision, seen.Wrote)
	assert.EqualValues(t, 1, seen.Incarnation.Number)
}

// TestHighestEpoch: a node that begins while etcd is away knows how high an epoch it or
// another node had got when it last saw the registry, also one above etcd's revision.
func TestHighestEpoch(t *testing.T) {
	e := labtest.NewEtcd(t, labtest.EtcdOptions{})
	one, two := keep(t, cluster(e.Endpoints...), "node1"), keep(t, cluster(e.Endpoints...), "node2")
	web := asks("web", "node1", "few4")
	web.Starts = true
	given, err := one.Allocate(labtest.Soon(t), web)
	require.NoError(t, err)
	highest := given[0].Epoch
	for _, least := range []uint64{0, highest + 5000} {
		is, err := one.Acquire(labtest.Soon(t), fabric.AcquireRequest{Guest: web.Guest, VM: "web", Node: "node3", Over: highest, Least: least})
		require.NoError(t, err)
		require.Greater(t, is.Epoch, highest)
		highest = is.Epoch
		assert.Eventually(t, func() bool { return two.Epoch() >= highest }, time.Minute, 10*time.Millisecond, "it heard of it")
	}
	two.end(t)
	e.Kill(0)
	for range 2 {
		two.start(t)
		assert.GreaterOrEqual(t, two.Epoch(), highest)
		two.end(t)
	}
}

// TestOwnGuestsAreKnown: a node that begins while etcd is away knows what the guests have
// that it had, and no others.
func TestOwnGuestsAreKnown(t *testing.T) {
	e := labtest.NewEtcd(t, labtest.EtcdOptions{})
	one, two := keep(t, cluster(e.Endpoints...), "node1"), keep(t, cluster(e.Endpoints...), "node2")
	started := func(k *keeper, vm string) []netip.Prefix {
		a := asks(vm, k.name, "few4", "many6")
		a.Starts = true
		given, err := k.Allocate(labtest.Soon(t), a)
		require.NoError(t, err)
		return prefixes(given)
	}
	web, moved, other := started(one, "web"), started(one, "moved"), started(two, "other")
	started(one, "gone")
	_, err := one.Release(labtest.Soon(t), fabric.ReleaseRequest{Guest: "libvirt gone"})
	require.NoError(t, err)
	two.owns(t, "moved")
	knows := func(k *keeper, vm string) []netip.Prefix {
		all, err := k.Allocations(labtest.Soon(t), fabric.AllocationFilter{Guest: fabric.Identity("libvirt " + vm)})
		require.Error(t, err)
		return prefixes(all)
	}
	require.Eventually(t, func() bool {
		all, err := one.Allocations(labtest.Soon(t), fabric.AllocationFilter{Guest: "libvirt moved"})
		return err == nil && all[0].Node == "node2"
	}, time.Minute, 10*time.Millisecond)
	one.end(t)
	two.end(t)
	e.Kill(0)
	came := netip.MustParsePrefix("198.51.100.77/32")
	for n := range 2 {
		one.start(t)
		two.start(t)
		if n == 0 { // it moves here meanwhile
			_, err := one.Allocate(labtest.Soon(t), fabric.AllocationRequest{Guest: "libvirt came", VM: "came", Node: "node1", Wants: []fabric.Want{{Pool: "many4", Prefix: came}}})
			require.Error(t, err)
			_, err = one.Allocate(labtest.Soon(t), asks("new", "node1", "many4"))
			require.Error(t, err)
		}
		assert.Equal(t, []netip.Prefix{came}, knows(one, "came"))
		assert.Empty(t, knows(one, "new"))
		assert.Equal(t, web, knows(one, "web"))
		assert.Empty(t, slices.Concat(knows(one, "moved"), knows(one, "other"), knows(one, "gone"), knows(two, "web")))
		assert.Equal(t, [][]netip.Prefix{moved, other}, [][]netip.Prefix{knows(two, "moved"), knows(two, "other")})
		one.end(t)
		two.end(t)
	}
	e.Start(0)
	one.start(t)
	_, err = one.Release(labtest.Soon(t), fabric.ReleaseRequest{Guest: "libvirt web"})
	require.NoError(t, err)
	one.end(t)
	e.Kill(0)
	one.start(t)
	assert.Empty(t, knows(one, "web"))
}
