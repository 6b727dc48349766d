package paging

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// cost is what a walk asked of an etcd.
type cost struct{ pages, looked, largest int }

// walks reads all keys of an etcd that has these, and says what that took. size is of
// each page.
func walks(t *testing.T, root string, has, dense []string, size func() int) (all []string, c cost) {
	t.Helper()
	w := New(root, dense)
	for {
		from, end, more := w.Page()
		if !more {
			return all, c
		}
		require.Less(t, from, end)
		require.Less(t, c.pages, 1_000_000)
		first, _ := slices.BinarySearch(has, from)
		last, _ := slices.BinarySearch(has, end)
		limit := size()
		page := has[first:min(last, first+limit)]
		c.pages++
		c.looked += last - first
		c.largest = max(c.largest, last-first)
		all = append(all, page...)
		from, end = "", ""
		if len(page) > 0 {
			from, end = page[0], page[len(page)-1]
		}
		w.Read(from, end, len(page), first+limit < last, size())
	}
}

func sorted(keys map[string]bool) (all []string) {
	for k := range keys {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}

// registry has the keys of a cluster: so many guests with an address of each family.
func registry(guests int, identity func(i int) string) (keys, dense []string) {
	const root = "/vmfabric/msk1/"
	random := rand.New(rand.NewPCG(1, 2))
	all := map[string]bool{root + "prefixes": true, root + "meta/incarnation": true}
	first := netip.MustParseAddr("10.64.0.0").As4()
	for i := range guests {
		four := first
		four[1], four[2], four[3] = four[1]+byte(i>>16), byte(i>>8), byte(i)
		all[root+"addr/"+hex.EncodeToString(four[:])+"/32"] = true
		all[fmt.Sprintf("%saddr/20010db80100%04x%08x%08x/128", root, random.IntN(1<<16), random.Uint32(), random.Uint32())] = true
		all[root+"guest/"+identity(i)] = true
		all[fmt.Sprintf("%snode/node%d/last", root, i%1000)] = true
	}
	return sorted(all), []string{root + "addr/0a4000", root + "addr/20010db8010000"}
}

// TestWalkOfARegistry reads each key once, in few pages, and has etcd look at few other keys.
func TestWalkOfARegistry(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 4))
	for name, identity := range map[string]func(int) string{
		"numbers": func(i int) string { return fmt.Sprintf("libvirt%%20aaaaaaaa-0000-4000-8000-%012d", i) },
		"UUIDs": func(int) string {
			return fmt.Sprintf("libvirt%%20%08x-%04x-4000-8000-%012x", random.Uint32(), random.IntN(1<<16), random.Uint64()>>16)
		},
		"names": func(i int) string {
			return fmt.Sprintf("lxd%%20default%%2F%c%c%d%%20%08x-0000-4000-8000-%012d", 'a'+random.IntN(26), 'a'+random.IntN(26), i%7, random.Uint32(), i)
		},
	} {
		for _, guests := range []int{0, 3, 1000, 50_000} {
			has, dense := registry(guests, identity)
			for _, size := range []int{leastPage, mostPage} {
				all, c := walks(t, "/vmfabric/msk1/", has, dense, func() int { return size })
				require.True(t, slices.Equal(has, all))
				t.Logf("%s: %d keys, %d a page: %d pages, looked at %d keys, at most %d", name, len(has), size, c.pages, c.looked, c.largest)
				assert.LessOrEqual(t, c.pages, 30+3*len(has)/(2*size), name)
				assert.LessOrEqual(t, c.looked, 6*len(has)+10*size, name)
			}
		}
	}
}

// TestWalkOfAnyKeys: what it concludes may be wrong, what it reads is right.
func TestWalkOfAnyKeys(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 5))
		letters := []string{"ab", "01", "09af", "z\x00\xff", "-/0123456789abcdefghij"}[random.IntN(5)]
		word := func() string {
			b := make([]byte, 1+random.IntN(12))
			for i := range b {
				b[i] = letters[random.IntN(len(letters))]
			}
			return string(b)
		}
		root := []string{"r/", "r\xff"}[random.IntN(2)]
		keys := map[string]bool{}
		for range random.IntN(2000) {
			keys[root+word()] = true
		}
		has := sorted(keys)
		var dense []string
		for range random.IntN(4) {
			dense = append(dense, root+word())
		}
		all, _ := walks(t, root, slices.Concat([]string{"a", "r"}, has, []string{"s\xff", "t"}), dense, func() int { return 1 + random.IntN(50) })
		require.True(t, slices.Equal(has, all), "seed %d: %q instead of %q", seed, all, has)
	}
}
