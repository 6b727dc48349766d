package disk

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/conformance"
)

// TestDamagedAllocation: nobody gets the address, and the file stays as it is, until the
// operator releases the address.
func TestDamagedAllocation(t *testing.T) {
	for name, file := range map[string]string{"203.0.113.10": "203.0.113.10_32.json", "2001:db8:100::10": "2001-db8-100--10_128.json"} {
		dir := t.TempDir()
		path := filepath.Join(dir, "addresses", file)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte("x"), 0o600))
		r, err := OpenRegistry(dir, conformance.RegistryCluster(), "node1")
		require.NoError(t, err)
		defer r.Close()

		require.Len(t, r.Diagnose(t.Context()), 1)
		assert.Contains(t, r.Diagnose(t.Context())[0], path+": damaged (")
		p, is := prefixOfFile(file[:len(file)-len(suffix)])
		require.True(t, is)
		asks := fabric.AllocationRequest{Guest: "a", VM: "a", Node: "node1", Wants: []fabric.Want{{Prefix: p}}}
		_, err = r.Allocate(t.Context(), asks)
		require.ErrorIs(t, err, fabric.ErrRefused)
		require.ErrorContains(t, err, name+" may be another guest's: state: "+path+": damaged (")
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		assert.Equal(t, "x", string(content))

		_, err = r.Release(t.Context(), fabric.ReleaseRequest{Prefix: p})
		require.NoError(t, err)
		assert.Empty(t, r.Diagnose(t.Context()))
		given, err := r.Allocate(t.Context(), asks)
		require.NoError(t, err)
		assert.Equal(t, fabric.Identity("a"), given[0].Guest)
		all, err := r.Allocations(t.Context(), fabric.AllocationFilter{})
		require.NoError(t, err)
		assert.Len(t, all, 1)
	}
}
