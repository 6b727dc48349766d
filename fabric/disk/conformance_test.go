package disk

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/conformance"
)

func TestConforms(t *testing.T) {
	conformance.Store(t, func(t *testing.T) (fabric.Store, conformance.StoreControls) {
		dir := t.TempDir()
		s := open(t, dir)
		return s, conformance.StoreControls{
			Again: func(t *testing.T) fabric.Store {
				require.NoError(t, s.Close())
				s = open(t, dir)
				return s
			},
			Damage: func(t *testing.T, vm string) {
				s.guests.mu.Lock()
				defer s.guests.mu.Unlock()
				path := filepath.Join(dir, "guests", fileName(vm)+suffix)
				if s.guests.unsafe[fileName(vm)] != nil {
					path += newSuffix
				}
				require.NoError(t, os.Truncate(path, 99))
			},
		}
	})
}
