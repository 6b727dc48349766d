package reservation

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func set(words ...string) (s Set) {
	for _, w := range words {
		if p, err := netip.ParsePrefix(w); err == nil {
			s.Prefixes = append(s.Prefixes, p)
		} else {
			s.Ports = append(s.Ports, w)
		}
	}
	return s
}

func TestAChangeHoldsBoth(t *testing.T) {
	for name, kept := range map[string]Set{"it succeeds": set("203.0.113.11/32", "2001:db8::11/128", "a1"), "it fails": set("203.0.113.10/32", "2001:db8::10/128", "a0")} {
		t.Run(name, func(t *testing.T) {
			table := New()
			old, next := set("203.0.113.10/32", "2001:db8::10/128", "a0"), set("203.0.113.11/32", "2001:db8::11/128", "a1")
			require.NoError(t, table.Reserve("a", old))
			require.NoError(t, table.Reserve("a", next))
			for _, word := range []string{"203.0.113.10/32", "2001:db8::10/128", "a0", "203.0.113.11/32", "2001:db8::11/128", "a1"} {
				var c *Conflict
				require.ErrorAs(t, table.Reserve("b", set(word)), &c, word)
				assert.Equal(t, "a", c.Holder)
			}
			table.Keep("a", kept)
			assert.Equal(t, kept, table.Held("a"))
			free := old
			if name == "it fails" {
				free = next
			}
			require.NoError(t, table.Reserve("b", free))
			require.Error(t, table.Reserve("b", kept))
			assert.Equal(t, free, table.Held("b"), "what was refused changed nothing")
			table.Keep("a", Set{})
			table.Keep("b", Set{})
			assert.Equal(t, New(), table, "nothing is left")
		})
	}
}

func TestConflicts(t *testing.T) {
	table := New()
	require.NoError(t, table.Reserve("a", set("203.0.113.8/29", "203.0.113.9/32", "2001:db8:1::/48", "192.0.2.1/32", "2001:db8:2::1/128", "a0")))
	for want, held := range map[string]string{
		"203.0.113.9/32": "203.0.113.9/32", "203.0.113.10/32": "203.0.113.8/29", "203.0.113.12/30": "203.0.113.8/29", "192.0.2.0/24": "192.0.2.1/32",
		"2001:db8:1:2::/64": "2001:db8:1::/48", "2001:db8:1::1/128": "2001:db8:1::/48", "2001:db8:2::/64": "2001:db8:2::1/128",
	} {
		assert.Equal(t, &Conflict{Holder: "a", Prefix: netip.MustParsePrefix(want), Held: netip.MustParsePrefix(held)}, table.Check("b", set(want)))
		assert.NoError(t, table.Check("a", set(want)), "its own")
	}
	assert.Equal(t, &Conflict{Holder: "a", Port: "a0"}, table.Check("b", set("203.0.113.99/32", "a0")))
	assert.NoError(t, table.Check("b", set("203.0.113.16/29", "192.0.2.2/32", "2001:db8:3::/48")))
}

// model is the same without any cleverness: a list of who holds what.
type model map[string]map[string]bool

func (m model) reserve(guest string, want Set) bool {
	for other, holds := range m {
		if other == guest {
			continue
		}
		for _, port := range want.Ports {
			if holds[port] {
				return false
			}
		}
		for _, p := range want.Prefixes {
			for word := range holds {
				if q, err := netip.ParsePrefix(word); err == nil && p.Overlaps(q) {
					return false
				}
			}
		}
	}
	if m[guest] == nil {
		m[guest] = map[string]bool{}
	}
	for _, w := range words(want) {
		m[guest][w] = true
	}
	return true
}

func (m model) keep(guest string, only Set) {
	kept := map[string]bool{}
	for _, w := range words(only) {
		if m[guest][w] {
			kept[w] = true
		}
	}
	m[guest] = kept
}

func words(s Set) []string {
	list := slices.Clone(s.Ports)
	for _, p := range s.Prefixes {
		list = append(list, p.String())
	}
	slices.Sort(list)
	return list
}

// Histories of guests that come, change, fail and go, from fixed seeds.
func TestHistories(t *testing.T) {
	guests := []string{"a", "b", "c", "d"}
	pool := []string{
		"203.0.113.0/32", "203.0.113.1/32", "203.0.113.2/32", "203.0.113.0/31", "203.0.113.0/30", "203.0.113.4/30", "203.0.113.0/29",
		"2001:db8::/128", "2001:db8::1/128", "2001:db8::/127", "2001:db8::/64", "2001:db8::/32", "32.1.13.184/32", "p0", "p1", "p2",
	}
	for seed := range uint64(200) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 11))
			table, m := New(), model{}
			last := map[string]Set{}
			for step := range 200 {
				guest, want := guests[r.IntN(len(guests))], Set{}
				for range 1 + r.IntN(3) {
					s := set(pool[r.IntN(len(pool))])
					want.Prefixes, want.Ports = append(want.Prefixes, s.Prefixes...), append(want.Ports, s.Ports...)
				}
				what := ""
				switch r.IntN(4) {
				case 0, 1: // begins a change
					what = fmt.Sprint("reserve ", guest, " ", words(want))
					checked, err := table.Check(guest, want), table.Reserve(guest, want)
					assert.Equal(t, checked == nil, err == nil, what)
					require.Equal(t, m.reserve(guest, want), err == nil, "%s: %v", what, err)
					var c *Conflict
					if errors.As(err, &c) {
						held := c.Port
						if held == "" {
							held = c.Held.String()
						}
						assert.True(t, m[c.Holder][held], "%s: %v", what, err)
					} else {
						last[guest] = want
					}
				case 2: // ends it, well or not
					only := last[guest]
					what = fmt.Sprint("keep ", guest, " ", words(only))
					table.Keep(guest, only)
					m.keep(guest, only)
				case 3:
					what = "go " + guest
					table.Keep(guest, Set{})
					m.keep(guest, Set{})
				}
				for _, g := range guests {
					var holds []string
					for w := range m[g] {
						holds = append(holds, w)
					}
					slices.Sort(holds)
					require.Equal(t, holds, words(table.Held(g)), "step %d, %s", step, what)
					for _, p := range table.Held(g).Prefixes {
						holder, held := table.Holder(p)
						require.True(t, held && holder == g, "step %d, %s: %s", step, what, p)
					}
					for _, p := range table.Held(g).Ports {
						holder, held := table.PortHolder(p)
						require.True(t, held && holder == g, "step %d, %s: %s", step, what, p)
					}
				}
			}
			for _, g := range guests {
				table.Keep(g, Set{})
			}
			require.Equal(t, New(), table, "nothing is left")
		})
	}
}
