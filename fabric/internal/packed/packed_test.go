package packed

import (
	"bytes"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestIsAMap: it has what a map has, in order, whatever is done to it.
func TestIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m Map
		is := map[string]string{}
		key := rapid.Custom(func(t *rapid.T) string {
			return strings.Repeat(rapid.SampledFrom([]string{"a", "b", "c", ""}).Draw(t, "of"), rapid.IntRange(0, 300).Draw(t, "times")) + rapid.StringN(0, 3, 6).Draw(t, "end")
		})
		for range rapid.IntRange(0, 200).Draw(t, "steps") {
			k := key.Draw(t, "key")
			if len(is) > 0 && rapid.Bool().Draw(t, "known") {
				k = rapid.SampledFrom(slices.Sorted(maps.Keys(is))).Draw(t, "which")
			}
			if rapid.IntRange(0, 3).Draw(t, "step") == 0 {
				delete(is, k)
				m.Delete([]byte(k))
			} else {
				is[k] = key.Draw(t, "value")
				m.Put([]byte(k), []byte(is[k]))
			}
			value, there := m.Get([]byte(k))
			want, known := is[k]
			if there != known || string(value) != want || m.Len() != len(is) {
				t.Fatalf("%q is %q (%v), and not %q", k, value, there, want)
			}
		}
		var keys []string
		for k, v := range m.All() {
			keys = append(keys, string(k))
			if string(v) != is[string(k)] {
				t.Fatalf("%q is %q", k, v)
			}
		}
		if !slices.Equal(keys, slices.Sorted(maps.Keys(is))) {
			t.Fatalf("it has %q", keys)
		}
		for _, chunk := range m.chunks {
			if len(chunk) == 0 || len(chunk) > most && bytes.Count(chunk, nil) > 2*most {
				t.Fatalf("a chunk of %d bytes", len(chunk))
			}
		}
	})
}

// TestTakesLittle: in any order, what is in it needs at most a third more.
func TestTakesLittle(t *testing.T) {
	const n, each = 100_000, 40
	for _, step := range []int{1, 7919} { // in order, and not
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		m := new(Map)
		for i := range n {
			m.Put(fmt.Appendf(nil, "%016d", i*step%n), bytes.Repeat([]byte{1}, each-16))
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		require.Equal(t, n, m.Len())
		took := int64(after.HeapAlloc) - int64(before.HeapAlloc)
		assert.Less(t, took, int64(n*each*4/3), "with steps of %d", step)
		t.Logf("%d bytes for each of %d", took/n, each)
		runtime.KeepAlive(m)
	}
}
