package simulate

import (
	"flag"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

var (
	seeds  = flag.Uint64("seeds", 30, "how many histories are run")
	shrink = flag.Bool("shrink", true, "make a history that fails as short as it still does")
	from   = flag.Uint64("from", 1, "the first seed; 0: the clock's")
)

// run runs a history in a bubble of its own.
func run(t *testing.T, seed uint64, h History) (failures []string) {
	synctest.Test(t, func(*testing.T) { failures = Run(seed, h) })
	return failures
}

// TestSimulate runs histories from fresh seeds, and tells the first that fails
// as short as it still does.
func TestSimulate(t *testing.T) {
	first := *from
	if first == 0 {
		first = uint64(time.Now().UnixNano() % 1_000_000_000)
	}
	t.Logf("seeds %d to %d", first, first+*seeds-1)
	var simulated time.Duration
	for seed := first; seed < first+*seeds; seed++ {
		h := NewHistory(seed)
		simulated += h.Length() + rest
		failures := run(t, seed, h)
		if len(failures) == 0 {
			continue
		}
		short := h
		if *shrink {
			short = Shrink(h, func(less History) bool { return len(run(t, seed, less)) > 0 })
		}
		t.Fatalf("seed %d, %d steps of %d:\n%s%s", seed, len(short), len(h), short, strings.Join(run(t, seed, short), "\n"))
	}
	t.Logf("%v simulated", simulated.Round(time.Minute))
}

// TestHistoryIsOfItsSeed: a seed that was printed gives the history again.
func TestHistoryIsOfItsSeed(t *testing.T) {
	assert.Equal(t, NewHistory(7), NewHistory(7))
	assert.NotEqual(t, NewHistory(7), NewHistory(8))
}

// TestShrink leaves what is needed, and in its order.
func TestShrink(t *testing.T) {
	h := NewHistory(3)
	needs := func(h History) bool {
		var kinds []Kind
		for _, s := range h {
			if s.Kind == Start && s.Guest == 2 || s.Kind == Start && s.Guest == 3 {
				kinds = append(kinds, s.Kind)
			}
		}
		return len(kinds) >= 2
	}
	assert.Len(t, Shrink(h, needs), 2)
}
