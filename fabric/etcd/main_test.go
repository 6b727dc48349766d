package etcd_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/disk"
	"github.com/vmfabric/vmfabric/fabric/etcd"
	"github.com/vmfabric/vmfabric/testenv/conformance"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// cluster is that of the conformance suite, with a registry at these endpoints.
func cluster(endpoints ...string) *fabric.Cluster {
	c := *conformance.RegistryCluster()
	c.Registry.Etcd = &fabric.EtcdConfig{Endpoints: endpoints}
	c = c.WithDefaults()
	return &c
}

// node is a node's registry that runs until its test ends, or stop is called.
type node struct {
	*etcd.Registry
	stop func()
}

func start(t *testing.T, c *fabric.Cluster, opts ...etcd.Option) node {
	t.Helper()
	r, err := etcd.New(c, opts...)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	done := false
	stop := func() {
		if cancel(); !done {
			done = true
			assert.NoError(t, <-ended)
		}
	}
	t.Cleanup(stop)
	return node{r, stop}
}

// raw is a client that goes behind the registry's back.
func raw(t *testing.T, endpoints ...string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop(), DialTimeout: 3 * time.Second})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// pass ends the leases that end within d.
func pass(t *testing.T, c *clientv3.Client, d time.Duration) {
	ctx := labtest.Soon(t)
	all, err := c.Leases(ctx)
	require.NoError(t, err)
	for _, l := range all.Leases {
		left, err := c.TimeToLive(ctx, l.ID)
		require.NoError(t, err)
		if time.Duration(left.TTL)*time.Second <= d {
			_, err := c.Revoke(ctx, l.ID)
			require.NoError(t, err)
		}
	}
}

func TestRegistryConforms(t *testing.T) {
	e := labtest.NewEtcd(t, labtest.EtcdOptions{})
	c := raw(t, e.Endpoints...)
	conformance.Registry(t, func(t *testing.T) (fabric.Registry, conformance.RegistryControls) {
		_, err := c.Delete(labtest.Soon(t), "/vmfabric/", clientv3.WithPrefix())
		require.NoError(t, err)
		seen, err := disk.OpenValue(t.TempDir(), "etcd", "seen")
		require.NoError(t, err)
		t.Cleanup(func() { _ = seen.Close() })
		r := start(t, cluster(e.Endpoints...), etcd.WithMemory("node1", seen))
		return r, conformance.RegistryControls{
			Again: func(t *testing.T) fabric.Registry {
				r.stop()
				return start(t, cluster(e.Endpoints...), etcd.WithMemory("node1", seen))
			},
			Pass: func(t *testing.T, d time.Duration) { pass(t, c, d) },
		}
	})
}
