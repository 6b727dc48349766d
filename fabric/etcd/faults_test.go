package etcd_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestFiftyNodesAskAtOnce: of 50 nodes that ask a /24 with five addresses left at the same
// time five get one, and the others hear that it is full, by how much, and what to do. What
// that costs is bounded.
func TestFiftyNodesAskAtOnce(t *testing.T) {
	const many, left = 50, 5
	e := labtest.NewEtcd(t, labtest.EtcdOptions{})
	c := cluster(e.Endpoints...)
	ctx := labtest.Soon(t)
	one := start(t, c)
	size := 256
	for vm := 0; size > left; vm++ { // each as many as fit into a request
		n := min(100, size-left)
		_, err := one.Allocate(ctx, asks(fmt.Sprintf("before%d", vm), "node1", slices.Repeat([]string{"many4"}, n)...))
		require.NoError(t, err)
		size -= n
	}
	nodes := make([]node, many)
	for n := range nodes {
		nodes[n] = start(t, c)
		_, err := nodes[n].Allocations(ctx, fabric.AllocationFilter{})
		require.NoError(t, err)
	}
	handled := func(method string) int {
		return int(e.Metric(fmt.Sprintf(`grpc_server_handled_total{grpc_code="OK",grpc_method="%s"`, method)))
	}
	txns, reads := handled("Txn"), handled("Range")
	var (
		mu      sync.Mutex
		given   []netip.Prefix
		refused []string
		asking  sync.WaitGroup
	)
	for n := range nodes {
		asking.Go(func() {
			got, err := nodes[n].Allocate(ctx, asks(fmt.Sprintf("vm%d", n), "node1", "many4"))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				refused = append(refused, err.Error())
				return
			}
			given = append(given, prefixes(got)...)
		})
	}
	asking.Wait()
	txns, reads = handled("Txn")-txns, handled("Range")-reads
	t.Logf("%d transactions, %d reads", txns, reads)
	slices.SortFunc(given, netip.Prefix.Compare)
	assert.Len(t, slices.Compact(given), left)
	require.Len(t, refused, many-left)
	slices.Sort(refused)
	assert.Equal(t, []string{"NIC 0: pool many4 is full: of 256 addresses 256 are allocated, 0 reserved, 0 quarantined; release an address, or add a pool"}, slices.Compact(refused))
	assert.LessOrEqual(t, txns, many*(left+1))
	assert.LessOrEqual(t, reads, many*(left+2), "each loses each address once at most, and looks whether there is one left")
}

// TestRights: what etcd lets this node's user do not is told by name, for a user that may
// do nothing, one that may read only, and a prefix that is another's.
func TestRights(t *testing.T) {
	authority := labtest.NewAuthority(t)
	cert, key := authority.Sign("etcd", time.Now().Add(time.Hour))
	e := labtest.NewEtcd(t, labtest.EtcdOptions{CA: authority.File, Cert: cert, Key: key})
	user := func(name, prefix string) *fabric.Cluster {
		c := *cluster(e.Endpoints...)
		c.Registry.Etcd.CA = content(t, authority.File)
		cert, key := authority.Sign(name, time.Now().Add(365*24*time.Hour))
		c.Registry.Etcd.Cert, c.Registry.Etcd.Key, c.Registry.Etcd.Prefix = content(t, cert), content(t, key), prefix
		return &c
	}
	allow(t, user("root", ""), e, map[string]clientv3.PermissionType{"node1": clientv3.PermissionType(clientv3.PermReadWrite), "reader": clientv3.PermissionType(clientv3.PermRead)})
	good := start(t, user("node1", "/vmfabric"))
	_, err := good.Allocate(labtest.Soon(t), asks("web", "node1", "few4"))
	require.NoError(t, err)
	diagnoses(t, good, "")
	for _, tt := range []struct{ name, user, prefix, want string }{
		{"a user that etcd does not know", "stranger", "/vmfabric", "etcd does not let this node's user read and write /vmfabric/conformance/"},
		{"a user that may read", "reader", "/vmfabric", "etcd does not let this node's user read and write /vmfabric/conformance/"},
		{"a prefix that is not the cluster's", "node1", "/vmfabrik", "etcd does not let this node's user read and write /vmfabrik/conformance/"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := start(t, user(tt.user, tt.prefix))
			_, err := n.Allocate(labtest.Soon(t), asks("db", "node1", "few4"))
			require.ErrorContains(t, err, tt.want)
			assert.ErrorContains(t, err, "grant it that")
			t.Log(err)
			if tt.user != "reader" { // that one is found out when it writes
				diagnoses(t, n, tt.want)
			}
		})
	}
}

// allow gives users rights on the cluster's keys, and has etcd ask for them.
func allow(t *testing.T, root *fabric.Cluster, e *labtest.Etcd, users map[string]clientv3.PermissionType) {
	t.Helper()
	ctx := labtest.Soon(t)
	pair, err := tls.X509KeyPair([]byte(root.Registry.Etcd.Cert), []byte(root.Registry.Etcd.Key))
	require.NoError(t, err)
	secure := &tls.Config{RootCAs: x509.NewCertPool(), Certificates: []tls.Certificate{pair}}
	require.True(t, secure.RootCAs.AppendCertsFromPEM([]byte(root.Registry.Etcd.CA)))
	c, err := clientv3.New(clientv3.Config{Endpoints: e.Endpoints, Logger: zap.NewNop(), TLS: secure})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	add := func(name, role string) {
		_, err := c.UserAddWithOptions(ctx, name, "", &clientv3.UserAddOptions{NoPassword: true})
		require.NoError(t, err)
		_, err = c.UserGrantRole(ctx, name, role)
		require.NoError(t, err)
	}
	_, err = c.RoleAdd(ctx, "root")
	require.NoError(t, err)
	add("root", "root")
	for name, may := range users {
		_, err := c.RoleAdd(ctx, name)
		require.NoError(t, err)
		_, err = c.RoleGrantPermission(ctx, name, "/vmfabric/conformance/", clientv3.GetPrefixRangeEnd("/vmfabric/conformance/"), may)
		require.NoError(t, err)
		add(name, name)
	}
	_, err = c.AuthEnable(ctx)
	require.NoError(t, err)
}

// TestPoolThatIsGone: guests keep what they have of a pool that somebody took out of the
// file, and give it back; nobody gets anything from it any more.
func TestPoolThatIsGone(t *testing.T) {
	e := labtest.NewEtcd(t, labtest.EtcdOptions{})
	before := start(t, cluster(e.Endpoints...))
	given, err := before.Allocate(labtest.Soon(t), asks("web", "node1", "few4", "many6"))
	require.NoError(t, err)
	c := cluster(e.Endpoints...)
	c.Pools = slices.DeleteFunc(c.Pools, func(p fabric.Pool) bool { return p.Name == "few4" })
	after := start(t, c)
	again, err := after.Allocate(labtest.Soon(t), asks("web", "node1", "few4", "many6"))
	require.NoError(t, err)
	assert.Equal(t, prefixes(given), prefixes(again))
	_, err = after.Allocate(labtest.Soon(t), asks("db", "node1", "few4"))
	require.ErrorContains(t, err, `NIC 0: pool "few4" is not in cluster conformance; name one of many4, many6`)
	_, err = after.Allocate(labtest.Soon(t), asks("db", "node1", given[0].Prefix.String()))
	require.ErrorContains(t, err, "is allocated to guest web")
	all, err := after.Allocations(labtest.Soon(t), fabric.AllocationFilter{})
	require.NoError(t, err)
	assert.ElementsMatch(t, prefixes(given), prefixes(all))
	released, err := after.Release(labtest.Soon(t), fabric.ReleaseRequest{Guest: "libvirt web"})
	require.NoError(t, err)
	assert.ElementsMatch(t, prefixes(given), prefixes(released))
	all, err = after.Allocations(labtest.Soon(t), fabric.AllocationFilter{})
	require.NoError(t, err)
	require.Len(t, all, 1, "what is of no pool has no quarantine")
	assert.Equal(t, given[1].Prefix, all[0].Prefix)
}

// TestDiskThatIsFull: a member whose disk is full ends. The others go on, and status names
// it.
func TestDiskThatIsFull(t *testing.T) {
	labtest.Need(t, "root")
	small := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", small, "tmpfs", 0, "size=160m"))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(small, unix.MNT_DETACH)) })
	dir := t.TempDir()
	e := labtest.NewEtcd(t, labtest.EtcdOptions{Members: 3, Dir: func(member int) string {
		if member == 0 {
			return filepath.Join(small, "m0")
		}
		return filepath.Join(dir, fmt.Sprintf("m%d", member))
	}})
	n, client := start(t, cluster(e.Endpoints...)), raw(t, e.Endpoints...)
	given, err := n.Allocate(labtest.Soon(t), asks("web", "node1", "few4"))
	require.NoError(t, err)
	fill(t, filepath.Join(small, "other"))
	for i := 0; e.Running(0); i++ {
		require.Less(t, i, 1000, "the member whose disk is full runs on")
		_, _ = client.Put(labtest.Soon(t), fmt.Sprintf("other/%d", i%10), strings.Repeat("x", 200_000))
	}
	require.Eventually(t, func() bool {
		again, err := n.Allocate(labtest.Soon(t), asks("web", "node1", "few4"))
		return err == nil && slices.Equal(prefixes(given), prefixes(again))
	}, time.Minute, 10*time.Millisecond)
	_, err = n.Allocate(labtest.Soon(t), asks("db", "node1", "few4"))
	require.NoError(t, err)
	again := start(t, cluster(e.Endpoints...)) // it asks each member when it begins, and once a minute
	diagnoses(t, again, e.Endpoints[0]+": nothing listens there; start etcd, or correct the endpoint; 2 of 3 members answer")
}

// fill writes until a file system is full.
func fill(t *testing.T, file string) {
	t.Helper()
	f, err := os.Create(file)
	require.NoError(t, err)
	defer f.Close()
	block := make([]byte, 1<<16)
	for err == nil {
		_, err = f.Write(block)
	}
	require.ErrorIs(t, err, unix.ENOSPC)
}

// TestSlowDisk: a member that stands still again and again, as one whose disk is slow, makes
// requests slow and no more; also the one that leads.
func TestSlowDisk(t *testing.T) {
	e := labtest.NewEtcd(t, labtest.EtcdOptions{Members: 3})
	n := start(t, cluster(e.Endpoints...))
	_, err := n.Allocate(labtest.Soon(t), asks("web", "node1", "many4"))
	require.NoError(t, err)
	for _, slow := range []int{e.Leader(), (e.Leader() + 1) % 3} {
		require.GreaterOrEqual(t, slow, 0)
		ctx, stop := context.WithCancel(t.Context())
		var standing sync.WaitGroup
		standing.Go(func() {
			for ctx.Err() == nil {
				e.Pause(slow)
				waits(ctx, 150*time.Millisecond)
				e.Continue(slow)
				waits(ctx, 50*time.Millisecond)
			}
		})
		for i := range 10 {
			_, err := n.Allocate(labtest.Soon(t), asks(fmt.Sprintf("vm%d-%d", slow, i), "node1", "many4"))
			assert.NoError(t, err)
		}
		stop()
		standing.Wait()
	}
	all, err := n.Allocations(labtest.Soon(t), fabric.AllocationFilter{})
	require.NoError(t, err)
	assert.Len(t, all, 21)
}

func waits(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
