// Package gobgptest has what the tests of the speaker and of the reflector share: a
// cluster on loopback addresses, its reflector, and a core gateway that learns
// routes.
package gobgptest

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp/reflector"
	"github.com/vmfabric/vmfabric/fabric/gobgp/router"
)

// Port is the port of the reflector of [Cluster]. Tests that need their own
// reflector add to it.
const Port = 11790

// A prefix of each family that a node of [Cluster] may announce.
var (
	V4 = netip.MustParsePrefix("203.0.113.10/32")
	V6 = netip.MustParsePrefix("2001:db8:100::10/128")
)

// Cluster returns a cluster on loopback addresses: a reflector, a core gateway, a
// node.
func Cluster() fabric.Cluster {
	return fabric.Cluster{
		Name: "lab", ASN: 4200000000,
		Communities: []fabric.Community{{A: 64512, B: 100}, {Large: true, A: 64512, B: 1, C: 100}},
		Pools: []fabric.Pool{
			{Name: "public4", Prefix: netip.MustParsePrefix("203.0.0.0/16"), Exclude: Prefixes("203.0.255.0/24")},
			{Name: "public6", Prefix: netip.MustParsePrefix("2001:db8:100::/48"), Exclude: Prefixes("2001:db8:100:ffff::/64")},
		},
		Routed:     Prefixes("198.51.100.0/24", "2001:db8:200::/48"),
		Reflectors: []fabric.RR{{Name: "rr1", Address: netip.MustParseAddr("127.0.0.1"), Port: Port}},
		Core:       []fabric.Core{{Name: "core1", Address: netip.MustParseAddr("127.0.0.3")}},
		Nodes:      []fabric.Node{{Name: "node1", Address: netip.MustParseAddr("127.0.0.2"), Address6: netip.MustParseAddr("2001:db8::2")}},
	}.WithDefaults()
}

// Prefixes parses prefixes.
func Prefixes(all ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range all {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

// Run runs a part until the end of the test, or until stop is called.
func Run(t *testing.T, part interface {
	Run(ctx context.Context) error
},
) (stop func()) {
	t.Helper()
	stop = begin(t, part.Run)
	t.Cleanup(stop)
	return stop
}

func begin(t *testing.T, run func(ctx context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		assert.NoError(t, <-done)
	})
}

// Reflector is a reflector that a test starts and stops.
type Reflector struct {
	*reflector.Reflector
	t    *testing.T
	stop func()
}

// NewReflector makes the first reflector of a cluster. It does not wait for nodes
// at its start. Start the peers after it: cleanups run in reverse order, and a peer
// that outlives its reflector waits for it.
func NewReflector(t *testing.T, c fabric.Cluster, opts ...reflector.Option) *Reflector {
	t.Helper()
	made, err := reflector.New(reflector.Config{Cluster: c, RR: c.Reflectors[0]}, append([]reflector.Option{reflector.WithDeferral(0)}, opts...)...)
	require.NoError(t, err)
	r := &Reflector{Reflector: made, t: t, stop: func() {}}
	t.Cleanup(func() { r.stop() })
	return r
}

// StartReflector makes a reflector as NewReflector does, and starts it.
func StartReflector(t *testing.T, c fabric.Cluster, opts ...reflector.Option) *Reflector {
	t.Helper()
	r := NewReflector(t, c, opts...)
	r.Start()
	return r
}

// Start starts the reflector and waits until it listens.
func (r *Reflector) Start() {
	r.t.Helper()
	r.stop = begin(r.t, r.Run)
	select {
	case <-r.Ready():
	case <-time.After(Bound):
		require.Fail(r.t, "the reflector is not ready")
	}
}

// Stop ends the reflector before the end of the test.
func (r *Reflector) Stop() { r.stop() }

// Table has the routes that a client of the reflector learned.
type Table struct {
	mu     sync.Mutex
	routes map[netip.Prefix]router.Route
}

// Learn takes a change of a route, as [router.Config] passes it.
func (t *Table) Learn(l router.Route) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l.NextHop.IsValid() {
		if t.routes == nil {
			t.routes = map[netip.Prefix]router.Route{}
		}
		t.routes[l.Prefix] = l
	} else {
		delete(t.routes, l.Prefix)
	}
}

// Get returns the next hop to a prefix, if there is a route.
func (t *Table) Get(p netip.Prefix) (netip.Addr, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l, ok := t.routes[p]
	return l.NextHop, ok
}

// Preference returns the LOCAL_PREF of the route to a prefix; zero if there is
// none.
func (t *Table) Preference(p netip.Prefix) uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.routes[p].LocalPref
}

// ClusterAt returns the test cluster with its reflector on another port.
func ClusterAt(port uint16) fabric.Cluster {
	c := Cluster()
	c.Reflectors[0].Port = port
	return c
}

// Listen starts a core gateway of the cluster.
func Listen(t *testing.T, c fabric.Cluster, address string) *Table {
	t.Helper()
	learned := &Table{}
	Run(t, router.New(router.Config{
		ASN: c.ASN, Address: netip.MustParseAddr(address), Reflectors: c.Reflectors, Learned: learned.Learn,
	}, slog.New(slog.DiscardHandler)))
	return learned
}

// All lists the prefixes.
func (t *Table) All() []netip.Prefix {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.SortedFunc(maps.Keys(t.routes), netip.Prefix.Compare)
}

// Bound is how long a test waits for an event.
const Bound = 60 * time.Second

// Eventually waits until f is true.
func Eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	require.Eventually(t, f, Bound, 20*time.Millisecond, what)
}

// ReadMessage reads a BGP message.
func ReadMessage(conn net.Conn) (*bgp.BGPMessage, error) {
	header := make([]byte, bgp.BGP_HEADER_LENGTH)
	if _, err := io.ReadFull(conn, header); err != nil {
		return nil, err
	}
	body := make([]byte, int(binary.BigEndian.Uint16(header[16:]))-len(header))
	if _, err := io.ReadFull(conn, body); err != nil {
		return nil, err
	}
	return bgp.ParseBGPMessage(append(header, body...))
}
