package histories

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// TestReleaseThatFindsItDone: a release whose first try was lost finds that the address has
// ended, and says so. If another operation ended it, the release did nothing: an allocation
// that gave the guest another one, or a release with quarantine.
func TestReleaseThatFindsItDone(t *testing.T) {
	since := time.Now()
	was := fabric.Allocation{Prefix: places[8], Guest: guest(9), VM: "a", State: fabric.Allocated, Since: since}
	kept, given := was, was
	kept.State, kept.Since = fabric.Quarantined, since.Add(time.Second)
	given.Prefix, given.VM, given.Since = places[0], "b", since.Add(time.Second)
	had := call{entry: entry{ID: 1, At: 1, Kind: allocate, Guest: 9, VM: "a"}, answer: entry{ID: 1, At: 2, Got: []fabric.Allocation{was}}}
	atOnce := call{entry: entry{ID: 2, At: 3, Kind: release, Prefix: was.Prefix, Now: true}, answer: entry{ID: 2, At: 9, Got: []fabric.Allocation{was}}}
	for what, other := range map[string]call{
		"allocation": {entry: entry{ID: 3, At: 4, Kind: allocate, Guest: 9, VM: "b"}, answer: entry{ID: 3, At: 8, Got: []fabric.Allocation{given}}},
		"release":    {entry: entry{ID: 3, At: 4, Kind: release, Prefix: was.Prefix}, answer: entry{ID: 3, At: 8, Got: []fabric.Allocation{was}}},
	} {
		t.Run(what, func(t *testing.T) {
			all := past{make([][]version, len(places)), make([][]ownership, guests+1)}
			all.places[8] = []version{{rev: 1, seen: 2, is: &was}, {rev: 2, seen: 7, is: &kept}}
			if other.Kind == allocate {
				all.places[0] = []version{{rev: 2, seen: 7, is: &given}}
			}
			r := resolve([]call{had, atOnce, other}, all, nil)
			assert.Empty(t, r.flaws)
			require.Len(t, r.ops, 3)
			wrote := map[int64]bool{}
			for _, o := range r.ops {
				if o.in.now {
					assert.Zero(t, o.out.ended)
					assert.Nil(t, o.wrote)
					continue
				}
				require.NotNil(t, o.wrote)
				wrote[o.wrote.rev] = true
			}
			assert.Len(t, wrote, 2)
		})
	}
}

// TestReleaseThatCameLater: an address ended before somebody was told of what was written
// later. A release that was called after that found it done, also if etcd's own history was
// late, and neither the release whose answer was lost nor the later one is blamed.
func TestReleaseThatCameLater(t *testing.T) {
	since := time.Now()
	was := fabric.Allocation{Prefix: places[8], Guest: guest(9), VM: "a", State: fabric.Allocated, Since: since}
	given := fabric.Allocation{Prefix: places[0], Guest: guest(7), VM: "b", State: fabric.Allocated, Since: since.Add(time.Second)}
	owner := fabric.Owner{Node: nodeName(0), Epoch: fabric.RegistryEpoch + 3}
	had := call{entry: entry{ID: 1, At: 1, Kind: allocate, Guest: 9, VM: "a"}, answer: entry{ID: 1, At: 2, Got: []fabric.Allocation{was}}}
	did := entry{ID: 2, At: 3, Kind: release, Prefix: was.Prefix, Now: true}
	found := call{entry: entry{ID: 3, At: 6, Kind: release, Prefix: was.Prefix, Now: true}, answer: entry{ID: 3, At: 9, Got: []fabric.Allocation{was}}}
	for what, by := range map[string]call{
		"the answer was lost": {entry: did},
		"both were answered":  {entry: did, answer: entry{ID: 2, At: 8, Got: []fabric.Allocation{was}}},
	} {
		for what2, later := range map[string]call{
			"an allocation":   {entry: entry{ID: 4, At: 4, Kind: allocate, Guest: 7, VM: "b"}, answer: entry{ID: 4, At: 5, Got: []fabric.Allocation{given}}},
			"an acquisition":  {entry: entry{ID: 4, At: 4, Kind: acquire, Guest: 9}, answer: entry{ID: 4, At: 5, Owner: &owner}},
			"nothing written": {},
		} {
			t.Run(what+", "+what2, func(t *testing.T) {
				all := past{make([][]version, len(places)), make([][]ownership, guests+1)}
				all.places[8] = []version{{rev: 1, seen: 2, is: &was}, {rev: 2, seen: 10}}
				calls := []call{found, had, by}
				switch later.Kind {
				case allocate:
					all.places[0] = []version{{rev: 3, seen: 10, is: &given}}
				case acquire:
					all.owners[9] = []ownership{{rev: 3, seen: 10, is: owner}}
				}
				if later.Kind != "" {
					calls = append(calls, later)
				}
				r := resolve(calls, all, nil)
				assert.Empty(t, r.flaws)
				for _, o := range r.ops {
					if later.Kind != "" && o.call == found.At {
						assert.Zero(t, o.out.ended, "it found the address free")
						assert.Nil(t, o.wrote)
					}
					if later.Kind != "" && o.in.kind == release && o.call == did.At {
						require.NotNil(t, o.wrote)
						assert.Equal(t, int64(2), o.wrote.rev)
					}
				}
			})
		}
	}
}
