package agent_test

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
)

// TestAdoptedRegistry: an agent records again what all its guests have, in a registry that
// was restored from a backup and adopted. What it gave another guest is a problem, and
// keeps no other guest from being recorded.
func TestAdoptedRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, adopted := newRegistry(nil), make(chan struct{}, 1)
		adopt := func(ctx context.Context, really bool) (fabric.Adoption, error) {
			all, err := r.Allocations(ctx, fabric.AllocationFilter{})
			return fabric.Adoption{Doubt: "it is older", Allocations: all, Adopted: really}, err
		}
		n := fresh(t, agent.WithRegistry(r), agent.WithAdoption(agent.Adoption{Adopt: adopt, Adopted: adopted}))
		defer n.begin()()
		moment()
		n.apply(asking("a", "public4"), fabric.Live)
		n.apply(asking("b", "public4"), fabric.Live)
		n.apply(known("c", "uuid-of-c", "203.0.113.77"), fabric.Live)
		moment()
		was := allocations(t, r)
		for _, vm := range []string{"a", "b", "c"} { // the backup does not have them
			_, err := r.Release(t.Context(), fabric.ReleaseRequest{Guest: known(vm, "uuid-of-"+vm).Identity(), Now: true})
			require.NoError(t, err)
		}
		_, err := r.Allocate(t.Context(), fabric.AllocationRequest{Guest: "libvirt other", VM: "other", Node: "node2", Wants: []fabric.Want{{Pool: "public4"}}})
		require.NoError(t, err)

		found, err := n.AdoptRegistry(t.Context(), false)
		require.NoError(t, err)
		assert.Equal(t, []string{
			"guest a has 203.0.113.1, and by the registry guest other (libvirt other) has it, on node2",
			"guest b has 203.0.113.2, and by the registry nobody has it",
			"guest c has 203.0.113.77, and by the registry nobody has it",
		}, found.Differences)
		adopted <- struct{}{}
		moment()
		assert.Equal(t, append([]string{"203.0.113.1/32 allocated other node2"}, was[1:]...), allocations(t, r))
		require.Len(t, n.problems(), 1)
		assert.Contains(t, n.problems()[0], "guest a: the registry does not have its addresses: NIC 0: 203.0.113.1/32 is allocated (guest other on node2)")
		_, announced := n.actual()
		assert.ElementsMatch(t, []string{"203.0.113.1/32", "203.0.113.2/32", "203.0.113.77/32"}, announced)
	})
	_, err := fresh(t).AdoptRegistry(t.Context(), true)
	require.ErrorIs(t, err, fabric.ErrRefused)
	require.ErrorContains(t, err, "nothing is to adopt")
}
