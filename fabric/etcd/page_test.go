package etcd

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/conformance"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// behind gives an address where an etcd answers everything so much later.
func behind(t *testing.T, endpoint string, delay time.Duration) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", strings.TrimPrefix(endpoint, "http://"))
			if err != nil {
				_ = in.Close()
				return
			}
			go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
			go delayed(in, out, delay)
		}
	}()
	return "http://" + l.Addr().String()
}

// delayed passes on what in says, so much later, in its order.
func delayed(out io.WriteCloser, in io.Reader, delay time.Duration) {
	type part struct {
		at   time.Time
		text []byte
	}
	parts := make(chan part, 1000)
	go func() {
		defer close(parts)
		for b := make([]byte, 32<<10); ; {
			n, err := in.Read(b)
			if err != nil {
				return
			}
			parts <- part{time.Now().Add(delay), append([]byte(nil), b[:n]...)}
		}
	}()
	for p := range parts {
		<-time.After(time.Until(p.at))
		_, _ = out.Write(p.text)
	}
	_ = out.Close()
}

// TestSlowPages: an etcd that takes longer for a page of its keys than for a call, as when
// all nodes of a large cluster start at once, is read all the same.
func TestSlowPages(t *testing.T) {
	e := labtest.NewEtcd(t, labtest.EtcdOptions{})
	given, err := late(t, e).Allocate(labtest.Soon(t), fabric.AllocationRequest{Guest: "libvirt a", VM: "a", Node: "node1", Wants: []fabric.Want{{Pool: "few4"}}})
	require.NoError(t, err)
	c := *conformance.RegistryCluster()
	c.Registry.Etcd = &fabric.EtcdConfig{Endpoints: []string{behind(t, e.Endpoints[0], tryTime+tryTime/4)}}
	c = c.WithDefaults()
	r, err := New(&c)
	require.NoError(t, err)
	client, err := clientv3.New(clientv3.Config{Endpoints: c.Registry.Etcd.Endpoints, Logger: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	r.client.Store(client)
	close(r.running)
	require.Eventually(t, func() bool { return r.list(labtest.Soon(t)) == nil }, time.Minute, time.Millisecond)
	all, known := r.cache.list(fabric.AllocationFilter{})
	assert.True(t, known)
	require.Len(t, all, 1)
	assert.Equal(t, given[0].Prefix, all[0].Prefix)
	assert.Zero(t, r.late.Load(), "the next list begins with short calls again")
}
