package gobgp_test

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/gobgptest"
	"github.com/vmfabric/vmfabric/fabric/gobgp/router"
)

// TestRoutesReachCore sends a route of each family through a reflector to a
// core gateway, all on loopback addresses, and takes them back.
func TestRoutesReachCore(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	gobgptest.StartReflector(t, gobgptest.Cluster())
	learned := &gobgptest.Table{}
	node := gobgptest.Cluster().Nodes[0]
	s, err := gobgp.New(gobgp.Config{Cluster: gobgptest.Cluster(), Node: node})
	require.NoError(t, err)
	defer s.Close()
	core, err := router.New(router.Config{
		ASN: 4200000000, Address: netip.MustParseAddr("127.0.0.3"),
		Reflectors: gobgptest.Cluster().Reflectors, Learned: learned.Learn,
	}, log)
	require.NoError(t, err)
	defer core.Close()
	require.NoError(t, s.Put(t.Context(), fabric.Route{Prefix: gobgptest.V4}))
	require.NoError(t, s.Open(t.Context()))
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
