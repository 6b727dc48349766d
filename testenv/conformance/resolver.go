package conformance

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// ResolverControls has the functions that the resolver's suite needs beside the
// resolver.
type ResolverControls struct {
	// Know puts a guest into the inventory that the resolver asks.
	Know func(t *testing.T, q fabric.Query, nics ...fabric.NIC)
	// Known are guests that are in the inventory already, for a resolver without
	// Know.
	Known []Resolved
	// Hang withholds the answer about a guest until the question's context ends.
	Hang func(t *testing.T, vm string)
}

// Resolved is a question to a resolver and its answer.
type Resolved struct {
	Query fabric.Query
	NICs  []fabric.NIC // addresses and routes
}

// Resolver runs the laws of [fabric.Resolver] as subtests. Each call of start makes
// a resolver that does not know a guest called "conformance-unknown", and lives
// until its t ends.
func Resolver(t *testing.T, start func(t *testing.T) (fabric.Resolver, ResolverControls)) {
	for _, law := range []struct {
		name string
		hold func(*testing.T, fabric.Resolver, ResolverControls)
	}{
		{"answers what the inventory has, both families", resolverAnswers},
		{"an unknown guest is an error with a reason", resolverUnknown},
		{"the end of the context is the end of waiting", resolverContext},
		{"different guests at the same time", resolverConcurrent},
	} {
		t.Run(law.name, func(t *testing.T) {
			r, c := start(t)
			law.hold(t, r, c)
		})
	}
}

// inventory returns the guests that the suite puts into the inventory. The first
// has a NIC with everything, and one of each family.
func inventory() []Resolved {
	mac := func(last byte) fabric.MAC { return fabric.MAC{0x52, 0x54, 0, 0, 0, last} }
	v4, v6 := netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10")
	return []Resolved{
		{
			fabric.Query{VM: "conformance-web", UUID: "6b9c1c3e-7b0a-4b61-9c59-0d6f8a3f2d11", MACs: []fabric.MAC{mac(1), {}, mac(3)}},
			[]fabric.NIC{
				{Addresses: []netip.Addr{v4, v6}, Routes: prefixes("198.51.100.0/29", "2001:db8:200::/64")},
				{Addresses: []netip.Addr{v4.Next()}},
				{Addresses: []netip.Addr{v6.Next()}},
			},
		},
		{
			fabric.Query{VM: "conformance мой сервер", MACs: []fabric.MAC{mac(4)}},
			[]fabric.NIC{{Addresses: []netip.Addr{v6.Next().Next(), v4.Next().Next()}}},
		},
	}
}

// fill puts guests into the inventory, and returns all that the resolver knows.
func (c ResolverControls) fill(t *testing.T) []Resolved {
	t.Helper()
	if c.Know == nil {
		need(t, len(c.Known) > 0, "Know, and none Known")
		return c.Known
	}
	guests := inventory()
	for _, g := range guests {
		c.Know(t, g.Query, g.NICs...)
	}
	return append(guests, c.Known...)
}

func requireResolved(t require.TestingT, r fabric.Resolver, want Resolved) {
	got, err := r.Resolve(context.Background(), want.Query)
	require.NoError(t, err, want.Query.VM)
	require.Len(t, got, len(want.NICs), want.Query.VM)
	for n, nic := range want.NICs {
		require.Equal(t, nic.Addresses, got[n].Addresses, "%s, NIC %d", want.Query.VM, n)
		require.ElementsMatch(t, nic.Routes, got[n].Routes, "%s, NIC %d", want.Query.VM, n)
	}
}

func resolverAnswers(t *testing.T, r fabric.Resolver, c ResolverControls) {
	for _, g := range c.fill(t) {
		require.Len(t, g.NICs, len(g.Query.MACs), "a guest of the inventory has a NIC for each MAC")
		for range 2 {
			requireResolved(t, r, g)
		}
	}
}

// requireReason checks that err gives people a reason, in one line.
func requireReason(t require.TestingT, err error) {
	require.Error(t, err)
	require.NotEmpty(t, strings.TrimSpace(err.Error()), "an error says why")
	require.NotContains(t, strings.TrimSpace(err.Error()), "\n", "in one line")
}

func resolverUnknown(t *testing.T, r fabric.Resolver, c ResolverControls) {
	guests := c.fill(t)
	for _, macs := range [][]fabric.MAC{nil, {{}}, {{0x52, 0x54, 0, 0xff, 0xff, 0xff}}} {
		_, err := r.Resolve(t.Context(), fabric.Query{VM: "conformance-unknown", MACs: macs})
		requireReason(t, err)
	}
	requireResolved(t, r, guests[0]) // the error does not concern this guest
}

func resolverContext(t *testing.T, r fabric.Resolver, c ResolverControls) {
	guests := c.fill(t)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	began := time.Now()
	_, _ = r.Resolve(gone, guests[0].Query) // the resolver may know the answer without asking
	require.Less(t, time.Since(began), patience)
	requireResolved(t, r, guests[0])

	need(t, c.Hang != nil, "Hang")
	c.Hang(t, guests[0].Query.VM)
	short, cancel := context.WithTimeout(t.Context(), quiet)
	defer cancel()
	asked := time.Now()
	_, err := r.Resolve(short, guests[0].Query)
	requireReason(t, err)
	require.Greater(t, time.Since(asked), quiet/2, "it answered although its inventory does not: %v", err)
	require.Less(t, time.Since(began), patience)
	for _, g := range guests[1:] {
		requireResolved(t, r, g)
	}
}

func resolverConcurrent(t *testing.T, r fabric.Resolver, c ResolverControls) {
	guests := c.fill(t)
	var wg sync.WaitGroup
	for i := range 8 {
		g := guests[i%len(guests)]
		wg.Go(func() {
			for range 10 {
				got, err := r.Resolve(t.Context(), g.Query)
				if assert.NoError(t, err) && assert.Len(t, got, len(g.NICs)) {
					for n := range got {
						assert.Equal(t, g.NICs[n].Addresses, got[n].Addresses)
					}
				}
				_, err = r.Resolve(t.Context(), fabric.Query{VM: "conformance-unknown", MACs: []fabric.MAC{{}}})
				assert.Error(t, err)
			}
		})
	}
	wg.Wait()
}
