package etcd

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// pagedKeys is how many keys there are: several pages of them.
const pagedKeys = 1500

// paged is a registry without a copy, on an etcd with more than one page of keys, each of
// whose reads is seen, and may be held up.
func paged(t *testing.T, e *labtest.Etcd, reads func(context.Context, *etcdserverpb.RangeRequest) error) *Registry {
	t.Helper()
	r := late(t, e)
	for n := 0; n < pagedKeys; n += 100 {
		var puts []clientv3.Op
		for i := range 100 {
			puts = append(puts, clientv3.OpPut(fmt.Sprintf("%snode/filler%06d/last", r.cache.keys.root, n+i), "x"))
		}
		_, err := r.client.Load().Txn(labtest.Soon(t)).Then(puts...).Commit()
		require.NoError(t, err)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: e.Endpoints, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, in, out any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if page, is := in.(*etcdserverpb.RangeRequest); is {
				if err := reads(ctx, page); err != nil {
					return err
				}
			}
			return invoke(ctx, method, in, out, conn, opts...)
		}),
	}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	r.client.Store(client)
	return r
}

// TestSlowPages: an etcd that takes longer for a page of its keys than for a call, as when
// all nodes of a large cluster start at once, is read all the same.
func TestSlowPages(t *testing.T) {
	once := false
	r := paged(t, labtest.NewEtcd(t, labtest.EtcdOptions{}), func(ctx context.Context, asked *etcdserverpb.RangeRequest) error {
		if !asked.Serializable || once {
			return nil
		}
		once = true
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-time.After(tryTime + tryTime/4):
			return nil
		}
	})
	all, _, _, err := r.readAll(labtest.Soon(t))
	require.NoError(t, err)
	assert.Greater(t, len(all), pagedKeys)
}

// TestPagesOfAnyMember: the pages are read from any member, as they were at one revision; if
// a member does not have that yet, the leader is asked. An etcd that does not say its
// revision is not waited for longer than for any call.
func TestPagesOfAnyMember(t *testing.T) {
	var asked []*etcdserverpb.RangeRequest
	behind, away := false, false
	r := paged(t, labtest.NewEtcd(t, labtest.EtcdOptions{}), func(ctx context.Context, page *etcdserverpb.RangeRequest) error {
		asked = append(asked, page)
		switch {
		case away:
			<-ctx.Done()
			return status.FromContextError(ctx.Err()).Err()
		case behind && page.Serializable:
			return rpctypes.ErrGRPCFutureRev
		}
		return nil
	})
	for _, behind = range []bool{false, true} {
		asked = nil
		all, header, _, err := r.readAll(labtest.Soon(t))
		require.NoError(t, err)
		assert.Greater(t, len(all), pagedKeys)
		assert.True(t, asked[0].CountOnly && !asked[0].Serializable)
		for n, page := range asked[1:] {
			assert.Equal(t, header.Revision, page.Revision)
			assert.Equal(t, behind && n%2 == 1, !page.Serializable)
		}
	}
	away, asked = true, nil
	_, _, _, err := r.readAll(labtest.Soon(t))
	require.Error(t, err)
	assert.Len(t, asked, tries)
}

// TestListGoesOn: what was read is not read again, whether nobody waits for it any more or a
// page failed.
func TestListGoesOn(t *testing.T) {
	var asked []string
	fails := 0
	hold := make(chan struct{})
	r := paged(t, labtest.NewEtcd(t, labtest.EtcdOptions{}), func(ctx context.Context, page *etcdserverpb.RangeRequest) error {
		if !page.Serializable {
			return nil
		}
		asked = append(asked, string(page.Key))
		if len(asked) < 3 {
			return nil
		}
		<-hold
		if fails > 0 {
			fails--
			return status.Error(codes.Internal, "the member is busy")
		}
		return nil
	})
	require.NotZero(t, r.listed.Load())
	before := r.listed.Load()
	r.cache.reset()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, r.know(ctx), context.DeadlineExceeded)
	hasNot, _ := r.cache.list(fabric.AllocationFilter{})
	assert.Empty(t, hasNot)
	r.lists.mu.Lock()
	r.lists.now.began = r.lists.now.began.Add(-leastPageTime)
	r.lists.mu.Unlock()
	require.ErrorContains(t, r.know(labtest.Soon(t)), "not read as a whole yet", "a start does not wait for it")
	assert.Contains(t, strings.Join(r.Diagnose(t.Context()), "\n"), "not read as a whole yet")
	r.lists.mu.Lock()
	r.lists.now.began = time.Now()
	r.lists.mu.Unlock()
	fails = tries
	close(hold)
	require.NoError(t, r.know(labtest.Soon(t)))
	assert.Zero(t, fails)
	assert.Equal(t, before+1, r.listed.Load())
	assert.NotZero(t, r.cache.revision())
	for n, key := range asked[tries+2:] {
		assert.Greater(t, key, asked[n+1], "page %d", n)
	}
	for _, again := range asked[2 : tries+2] {
		assert.Equal(t, asked[2], again)
	}
	assert.Equal(t, asked[2], asked[tries+2], "the next attempt begins with what failed")

	r.cache.reset()
	_, err := r.Allocations(labtest.Soon(t), fabric.AllocationFilter{})
	require.NoError(t, err)
	assert.Equal(t, before+2, r.listed.Load(), "one list is enough")
}
