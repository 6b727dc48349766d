package gobgp_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/gobgptest"
)

// TestReceived has a speaker say which routes its reflectors have sent: those of another
// node, also if nodes may not announce them, and none of its own.
func TestReceived(t *testing.T) {
	c := learning(11951, 2)
	var asked []netip.Prefix
	for n := range c.Reflectors {
		rr := reflect(t, c, n)
		defer func() { require.NoError(t, rr.Close()) }()
	}
	one, two := newNode(t, c, 51), newNode(t, c, 52)
	other := c
	other.Communities = nil // its routes are accepted by nobody
	three := newNode(t, other, 53)
	_, err := one.speaker.Received(t.Context(), gobgptest.V4, gobgptest.V6)
	require.ErrorContains(t, err, "does not run yet")
	open(t, one, two, three)
	foreign := gobgptest.Prefixes("203.0.113.88/32", "2001:db8:100::88/128")
	asked = append(asked, gobgptest.V4, gobgptest.V6, foreign[0], foreign[1])
	has := func(want ...string) {
		t.Helper()
		var got []string
		defer func() { assert.ElementsMatch(t, want, got) }()
		gobgptest.Eventually(t, "the routes have come", func() bool {
			all, err := one.speaker.Received(t.Context(), asked...)
			require.NoError(t, err)
			got = nil
			for _, r := range all {
				got = append(got, fmt.Sprint(r.Prefix, " ", r.Via, " ", r.Peer))
			}
			return len(got) == len(want)
		})
	}
	by := func(p netip.Prefix, n *learningNode) (all []string) {
		for _, rr := range c.Reflectors {
			all = append(all, fmt.Sprint(p, " ", n.Source(p.Addr()), " ", rr.Name))
		}
		return all
	}
	has()
	one.announces(fabric.Normal, asked...)
	two.announces(fabric.Normal, gobgptest.V4, gobgptest.V6, netip.MustParsePrefix("203.0.113.99/32"))
	three.announces(fabric.Normal, foreign...)
	one.withdraws(asked...)
	want := append(by(gobgptest.V4, two), by(gobgptest.V6, two)...)
	has(append(append(want, by(foreign[0], three)...), by(foreign[1], three)...)...)
	two.withdraws(gobgptest.V4)
	three.withdraws(foreign[0])
	has(append(by(gobgptest.V6, two), by(foreign[1], three)...)...)
	two.withdraws(gobgptest.V6)
	three.withdraws(foreign[1])
	has()
}
