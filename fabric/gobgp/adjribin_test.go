package gobgp

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/gobgptest"
)

// recorder is a learner that records its calls.
type recorder []string

func (r *recorder) Put(p netip.Prefix, via netip.Addr) { *r = append(*r, fmt.Sprint(p, " via ", via)) }

func (r *recorder) Remove(p netip.Prefix) { *r = append(*r, fmt.Sprint(p, " removed")) }
func (r *recorder) Settle()               { *r = append(*r, "settled") }

// take returns the calls since it was called last.
func (r *recorder) take() []string {
	calls := *r
	*r = nil
	return calls
}

// table is an Adj-RIB-In whose updates a test makes.
type table struct {
	*adjRIBIn
	t         *testing.T
	reflector netip.Addr
	calls     *recorder
}

func newTable(t *testing.T) *table {
	cfg := Config{Cluster: gobgptest.Cluster(), Node: gobgptest.Cluster().Nodes[0]}
	calls, reflectors := &recorder{}, cfg.Cluster.Reflectors
	log := slog.New(slog.DiscardHandler)
	in := newAdjRIBIn(newImportFilter(cfg, log), newLocRIB(calls, reflectors), newCompetitors(reflectors))
	in.sessionUp(reflectors[0].Address)
	return &table{in, t, reflectors[0].Address, calls}
}

// learn has the reflector send another node's routes.
func (r *table) learn(preference fabric.Preference, prefixes ...netip.Prefix) {
	r.t.Helper()
	for _, prefix := range prefixes {
		other := Config{Cluster: r.filter.Load().cfg.Cluster, Node: fabric.Node{Address: netip.MustParseAddr("127.0.0.9"), Address6: netip.MustParseAddr("2001:db8::9")}}
		p, err := other.path(fabric.Route{Prefix: prefix, Preference: preference})
		require.NoError(r.t, err)
		p.PeerAddress, p.PeerID = r.reflector, r.reflector
		r.update([]*apiutil.Path{p})
	}
}

// lose has the reflector withdraw routes.
func (r *table) lose(prefixes ...netip.Prefix) {
	r.t.Helper()
	for _, prefix := range prefixes {
		nlri, err := bgp.NewIPAddrPrefix(prefix)
		require.NoError(r.t, err)
		r.update([]*apiutil.Path{{Nlri: nlri, PeerAddress: r.reflector, Withdrawal: true}})
	}
}

// receive reads what waits for the reader of the competing routes.
func (r *table) receive() (all []string) {
	r.t.Helper()
	ctx, end := context.WithCancel(r.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.competitors.deliver(ctx) }()
	for {
		select {
		case c := <-r.competitors.out:
			all = append(all, fmt.Sprint(c.Prefix, " ", c.Preference, " gone=", c.Gone))
			continue
		case <-time.After(time.Second): // of the bubble
		}
		end()
		<-done
		return all
	}
}

var bothFamilies = []netip.Prefix{gobgptest.V4, gobgptest.V6}

// TestCompetitorsWaitForTheReader: of each prefix the reader gets the newest route,
// and none that has gone meanwhile; the end of one that it received it gets too.
func TestCompetitorsWaitForTheReader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newTable(t)
		gone := netip.MustParsePrefix("203.0.113.77/32")
		for _, p := range append(bothFamilies, gone) {
			r.announced(p)
		}
		for range 3 {
			r.learn(fabric.Fresh, append(bothFamilies, gone)...)
			r.lose(append(bothFamilies, gone)...)
		}
		assert.Empty(t, r.receive())
		r.learn(fabric.Fresh, bothFamilies...)
		assert.Equal(t, []string{gobgptest.V4.String() + " fresh gone=false", gobgptest.V6.String() + " fresh gone=false"}, r.receive())
		r.learn(fabric.Fresh, bothFamilies...)
		assert.Empty(t, r.receive(), "nothing has changed")
		r.withdrawn(bothFamilies...)
		r.learn(fabric.Normal, gobgptest.V4)
		r.lose(gobgptest.V6)
		assert.Equal(t, []string{gobgptest.V4.String() + " fresh gone=true", gobgptest.V6.String() + " fresh gone=true"}, r.receive())
	})
}

// TestCompetitorsOfNewAnnouncements: a route that was there before competes with an
// announcement that is new, and does not wait any more once that is withdrawn.
func TestCompetitorsOfNewAnnouncements(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newTable(t)
		r.learn(fabric.Fresh, gobgptest.V4)
		r.learn(fabric.Normal, gobgptest.V6)
		assert.Empty(t, r.receive(), "this node announces neither")
		r.announced(gobgptest.V4)
		r.withdrawn(gobgptest.V4)
		assert.Empty(t, r.receive())
		r.announced(gobgptest.V4)
		r.announced(gobgptest.V6)
		assert.Equal(t, []string{gobgptest.V4.String() + " fresh gone=false"}, r.receive())
	})
}

// TestEndOfRIBDropsEarlierRoutes: routes that a reflector does not send again in its
// next session are gone at its End-of-RIB of their family, not before.
func TestEndOfRIBDropsEarlierRoutes(t *testing.T) {
	t.Parallel()
	r := newTable(t)
	r.learn(fabric.Normal, bothFamilies...)
	assert.Equal(t, []string{gobgptest.V4.String() + " via 127.0.0.9", gobgptest.V6.String() + " via 2001:db8::9"}, r.calls.take())
	r.endOfRIB(endOfRIB{r.reflector, bgp.RF_IPv4_UC})
	assert.Empty(t, r.calls.take())
	r.endOfRIB(endOfRIB{r.reflector, bgp.RF_IPv6_UC})
	assert.Equal(t, []string{"settled"}, r.calls.take())

	r.sessionUp(r.reflector)
	r.learn(fabric.Normal, gobgptest.V6)
	assert.Empty(t, r.calls.take())
	r.endOfRIB(endOfRIB{r.reflector, bgp.RF_IPv6_UC})
	assert.Empty(t, r.calls.take())
	r.endOfRIB(endOfRIB{r.reflector, bgp.RF_IPv4_UC})
	assert.Equal(t, []string{gobgptest.V4.String() + " removed"}, r.calls.take(), "it settles once")
}

// TestReplacedUnlessUpdated: a looked-up route that is not there is dropped, unless
// an update has come meanwhile.
func TestReplacedUnlessUpdated(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newTable(t)
		r.announced(gobgptest.V4)
		r.learn(fabric.Fresh, gobgptest.V4)
		require.Len(t, r.receive(), 1)
		delivered, updates := r.deliveredCompetitors()
		require.Equal(t, []competing{{gobgptest.V4, r.reflector}}, delivered)
		r.learn(fabric.Fresh, gobgptest.V4)
		r.replaced(delivered[0], updates)
		assert.Empty(t, r.receive())
		_, updates = r.deliveredCompetitors()
		r.replaced(delivered[0], updates)
		assert.Equal(t, []string{gobgptest.V4.String() + " fresh gone=true"}, r.receive())
	})
}
