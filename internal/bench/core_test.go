package main

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestGuestsAreInThePools(t *testing.T) {
	t.Parallel()
	seen := map[netip.Prefix]bool{}
	for _, n := range []int{0, 1, 255, 256, 5200, background, background + 5000} {
		g := guestNumber(n)
		assert.True(t, pool4.Contains(g.a4) && pool6.Contains(g.a6), g)
		assert.LessOrEqual(t, len(g.port()), 15)
		for _, p := range g.prefixes() {
			assert.False(t, seen[p], p)
			seen[p] = true
		}
	}
	g := guestNumber(258)
	assert.Equal(t, netip.MustParseAddr("10.64.1.2"), g.a4)
	assert.Equal(t, netip.MustParseAddr("2001:db8:100::102"), g.a6)
}

func TestRoutesComeAndGo(t *testing.T) {
	t.Parallel()
	r := &routes{seen: map[netip.Prefix]*history{}, woken: make(chan struct{})}
	ps := guestNumber(1).prefixes()
	at := func(msec int) time.Time { return time.Unix(1000, 0).Add(time.Duration(msec) * time.Millisecond) }
	r.arm(ps...)
	r.note(ps[0], true, at(1))
	r.note(ps[1], true, at(2))
	r.note(ps[0], true, at(3)) // the second reflector says so too
	came, err := r.come(t.Context(), ps...)
	require.NoError(t, err)
	assert.Equal(t, at(2), came, "the later family, for the first time")

	r.mark()
	n, _ := r.removals()
	assert.Zero(t, n)
	r.note(ps[1], false, at(10))
	r.note(ps[1], true, at(14)) // replaced
	n, away := r.removals()
	assert.Equal(t, 1, n)
	assert.Equal(t, 4*time.Millisecond, away)

	r.note(ps[0], false, at(20))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = r.gone(ctx, ps...)
	assert.ErrorContains(t, err, ps[1].String(), "it came back")
	r.note(ps[1], false, at(30))
	r.note(ps[1], false, at(31)) // of a route that was not there
	went, err := r.gone(t.Context(), ps...)
	require.NoError(t, err)
	assert.Equal(t, at(30), went)
	n, _ = r.removals()
	assert.Equal(t, 3, n)
}
