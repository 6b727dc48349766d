package gobgp_test

import (
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp"
)

const port = 11790

var discard = slog.New(slog.DiscardHandler)

var (
	v4 = netip.MustParsePrefix("203.0.113.10/32")
	v6 = netip.MustParsePrefix("2001:db8:100::10/128")
)

func cluster() fabric.Cluster {
	return fabric.Cluster{
		Name: "lab", ASN: 4200000000,
		Communities: []fabric.Community{{A: 64512, B: 100}, {Large: true, A: 64512, B: 1, C: 100}},
		Pools: []fabric.Pool{
			{Name: "public4", Prefix: netip.MustParsePrefix("203.0.0.0/16"), Exclude: prefixes("203.0.255.0/24")},
			{Name: "public6", Prefix: netip.MustParsePrefix("2001:db8:100::/48"), Exclude: prefixes("2001:db8:100:ffff::/64")},
		},
		Routed:     prefixes("198.51.100.0/24", "2001:db8:200::/48"),
		Reflectors: []fabric.RR{{Name: "rr1", Address: netip.MustParseAddr("127.0.0.1"), Port: port}},
		Core:       []fabric.Core{{Name: "core1", Address: netip.MustParseAddr("127.0.0.3")}},
		Nodes:      []fabric.Node{{Name: "node1", Address: netip.MustParseAddr("127.0.0.2"), Address6: netip.MustParseAddr("2001:db8::2")}},
	}.WithDefaults()
}

func prefixes(all ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range all {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

// startReflector starts the first reflector of a cluster, which ends with the
// test.
func startReflector(t *testing.T, c fabric.Cluster, opts ...gobgp.ReflectorOption) *gobgp.Reflector {
	t.Helper()
	r := newReflector(t, c, opts...)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

func newReflector(t *testing.T, c fabric.Cluster, opts ...gobgp.ReflectorOption) *gobgp.Reflector {
	t.Helper()
	r, err := gobgp.NewReflector(gobgp.ReflectorConfig{Cluster: c, RR: c.Reflectors[0]}, append([]gobgp.ReflectorOption{gobgp.ReflectorDeferral(0)}, opts...)...)
	require.NoError(t, err)
	return r
}

// table is what a client of the reflector learned.
type table struct {
	mu     sync.Mutex
	routes map[netip.Prefix]gobgp.Learned
}

func (t *table) learn(l gobgp.Learned) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l.NextHop.IsValid() {
		t.routes[l.Prefix] = l
	} else {
		delete(t.routes, l.Prefix)
	}
}

func (t *table) get(p netip.Prefix) (netip.Addr, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l, ok := t.routes[p]
	return l.NextHop, ok
}

// TestRoutesReachCore sends a route of each family through a reflector to a
// core gateway, all on loopback addresses, and takes them back.
func TestRoutesReachCore(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	startReflector(t, cluster())
	learned := &table{routes: map[netip.Prefix]gobgp.Learned{}}
	node := cluster().Nodes[0]
	s, err := gobgp.New(gobgp.Config{Cluster: cluster(), Node: node})
	require.NoError(t, err)
	defer s.Close()
	core, err := gobgp.NewRouter(gobgp.RouterConfig{
		ASN: 4200000000, Address: netip.MustParseAddr("127.0.0.3"),
		Reflectors: cluster().Reflectors, Learned: learned.learn,
	}, log)
	require.NoError(t, err)
	defer core.Close()
	require.NoError(t, s.Put(t.Context(), fabric.Route{Prefix: v4}))
	require.NoError(t, s.Open(t.Context()))
	require.NoError(t, s.Put(t.Context(), fabric.Route{Prefix: v6}))

	require.Eventually(t, func() bool {
		a, ok4 := learned.get(v4)
		b, ok6 := learned.get(v6)
		return ok4 && ok6 && a == node.Address && b == node.Address6
	}, 30*time.Second, 10*time.Millisecond)
	sessions, err := s.Sessions(t.Context())
	require.NoError(t, err)
	require.Len(t, sessions, 1)
	assert.Equal(t, "rr1", sessions[0].Peer)
	assert.Equal(t, "established", sessions[0].State)
	assert.EqualValues(t, 2, sessions[0].Advertised)

	require.NoError(t, s.Remove(t.Context(), v4, v6))
	require.NoError(t, s.Remove(t.Context(), v4), "absence is success")
	require.Eventually(t, func() bool {
		_, ok4 := learned.get(v4)
		_, ok6 := learned.get(v6)
		return !ok4 && !ok6
	}, 10*time.Second, 10*time.Millisecond)
}
