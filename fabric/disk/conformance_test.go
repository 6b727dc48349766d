package disk

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
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

func TestRegistryConforms(t *testing.T) {
	conformance.Registry(t, func(t *testing.T) (fabric.Registry, conformance.RegistryControls) {
		dir, passed := t.TempDir(), time.Duration(0)
		again := func(t *testing.T) fabric.Registry {
			r, err := OpenRegistry(dir, conformance.RegistryCluster(), "node1", WithClock(func() time.Time { return time.Now().Add(passed) }))
			require.NoError(t, err)
			t.Cleanup(func() { assert.NoError(t, r.Close()) })
			return r
		}
		r := again(t)
		return r, conformance.RegistryControls{
			Again: func(t *testing.T) fabric.Registry {
				require.NoError(t, r.(*Registry).Close())
				return again(t)
			},
			Pass: func(_ *testing.T, d time.Duration) { passed += d },
		}
	})
}
