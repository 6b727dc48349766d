package gobgp_test

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/gobgptest"
	"github.com/vmfabric/vmfabric/fabric/gobgp/reflector"
	"github.com/vmfabric/vmfabric/fabric/gobgp/router"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestRoutesReachCore sends a route of each family through a reflector to a
// core gateway, all on loopback addresses, and takes them back.
func TestRoutesReachCore(t *testing.T) {
	labtest.Long(t)
	gobgptest.StartReflector(t, gobgptest.Cluster())
	learned := gobgptest.Listen(t, gobgptest.Cluster(), "127.0.0.3")
	node := gobgptest.Cluster().Nodes[0]
	s, err := gobgp.New(gobgp.Config{Cluster: gobgptest.Cluster(), Node: node})
	require.NoError(t, err)
	require.NoError(t, s.Put(t.Context(), fabric.Route{Prefix: gobgptest.V4}))
	before, err := s.Sessions(t.Context())
	require.NoError(t, err)
	require.Len(t, before, 1, "there is a session to be, before Run")
	assert.Equal(t, "idle", before[0].State)
	run(t, s)
	require.NoError(t, s.Put(t.Context(), fabric.Route{Prefix: gobgptest.V6}))

	require.Eventually(t, func() bool {
		a, ok4 := learned.Get(gobgptest.V4)
		b, ok6 := learned.Get(gobgptest.V6)
		return ok4 && ok6 && a == node.Address && b == node.Address6
	}, 30*time.Second, 10*time.Millisecond)
	sessions, err := s.Sessions(t.Context())
	require.NoError(t, err)
	require.Len(t, sessions, 1)
	assert.Equal(t, "rr1", sessions[0].Peer)
	assert.Equal(t, "established", sessions[0].State)
	assert.EqualValues(t, 2, sessions[0].Advertised)

	require.NoError(t, s.Remove(t.Context(), gobgptest.V4, gobgptest.V6))
	require.NoError(t, s.Remove(t.Context(), gobgptest.V4), "absence is success")
	require.Eventually(t, func() bool {
		_, ok4 := learned.Get(gobgptest.V4)
		_, ok6 := learned.Get(gobgptest.V6)
		return !ok4 && !ok6
	}, 10*time.Second, 10*time.Millisecond)
}

// TestRunEndsWhileItBegins: that ctx ends is no error, whenever that is.
func TestRunEndsWhileItBegins(t *testing.T) {
	s, err := gobgp.New(gobgp.Config{Cluster: gobgptest.Cluster(), Node: gobgptest.Cluster().Nodes[0]})
	require.NoError(t, err)
	r, err := reflector.New(reflector.Config{Cluster: gobgptest.ClusterAt(gobgptest.Port + 2), RR: gobgptest.ClusterAt(gobgptest.Port + 2).Reflectors[0]})
	require.NoError(t, err)
	core := router.New(router.Config{ASN: 64512, Address: netip.MustParseAddr("127.0.0.3"), Reflectors: gobgptest.Cluster().Reflectors}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	assert.NoError(t, s.Run(ctx))
	assert.NoError(t, r.Run(ctx))
	assert.NoError(t, core.Run(ctx))
}

// TestNodeWithoutTheFamily: a node cannot have a session with a reflector of a family
// that it has no address of.
func TestNodeWithoutTheFamily(t *testing.T) {
	c := gobgptest.Cluster()
	c.Reflectors[0].Address = netip.MustParseAddr("::1")
	_, err := gobgp.New(gobgp.Config{Cluster: c, Node: fabric.Node{Name: "node1", Address: netip.MustParseAddr("127.0.0.2")}})
	assert.EqualError(t, err, "reflector rr1: ::1: node node1 has no address of that family")
}
