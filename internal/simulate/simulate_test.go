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
	budget = flag.Duration("budget", 0, "how long histories of fresh seeds are run")
)

// shrinkFor is how long a history that fails is made shorter at most.
const shrinkFor = time.Minute

// run runs a history in a bubble of its own.
func run(t *testing.T, seed uint64, h History) (failures []string) {
	synctest.Test(t, func(*testing.T) { failures = Run(seed, h) })
	return failures
}

// fresh is a seed that nobody has seen.
func fresh() uint64 { return uint64(time.Now().UnixNano() % 1_000_000_000) }

// ofSeed gives the history of a seed. In that of every third one the nodes share a
// registry. All end with a combination of failures.
func ofSeed(seed uint64) History {
	h := NewHistory(seed)
	if seed%3 == 0 {
		h = Shared(seed, h)
	}
	return Combined(seed, h)
}

// holds runs a history. One that fails is told as short as it still does.
func holds(t *testing.T, seed uint64, h History) (simulated time.Duration) {
	failures := run(t, seed, h)
	if len(failures) == 0 {
		return h.Length() + rest
	}
	short, until := h, time.Now().Add(shrinkFor)
	if *shrink {
		short = Shrink(h, func(less History) bool { return time.Now().Before(until) && len(run(t, seed, less)) > 0 })
		if again := run(t, seed, short); len(again) > 0 { // else only some runs of it fail
			failures = again
		}
	}
	t.Fatalf("seed %d, %d steps of %d; make simulate SEEDS=1 FROM=%[1]d repeats it:\n%[4]s%[5]s", seed, len(short), len(h), short, strings.Join(failures, "\n"))
	return 0
}

// TestSimulate runs histories from the seeds that it is told, and tells the first
// that fails.
func TestSimulate(t *testing.T) {
	first := *from
	if first == 0 {
		first = fresh()
	}
	t.Logf("seeds %d to %d", first, first+*seeds-1)
	var simulated time.Duration
	for seed := first; seed < first+*seeds; seed++ {
		t.Logf("history %d", seed)
		simulated += holds(t, seed, ofSeed(seed))
	}
	t.Logf("%v simulated", simulated.Round(time.Minute))
}

// TestFoundBefore runs the histories in which faults of the agents were found that
// the first seeds do not show.
func TestFoundBefore(t *testing.T) {
	for _, seed := range []uint64{12001773} {
		holds(t, seed, NewHistory(seed))
	}
	for _, seed := range []uint64{219, 441, 3234, 41000088, 41001123, 61000173, 61002756} {
		holds(t, seed, Shared(seed, NewHistory(seed)))
	}
	for _, seed := range []uint64{63000040, 65001262, 67002299, 68000463} {
		holds(t, seed, ofSeed(seed))
	}
}

// TestFresh runs histories from fresh seeds, as many as its time allows.
func TestFresh(t *testing.T) {
	if *budget == 0 {
		t.Skip("needs a budget: make fresh")
	}
	first, until := fresh(), time.Now().Add(*budget)
	seed := first
	t.Logf("the first seed is %d", first)
	for ; time.Now().Before(until); seed++ {
		holds(t, seed, ofSeed(seed))
	}
	t.Logf("%d histories hold", seed-first)
}

// TestHistoryIsOfItsSeed: a seed that was printed gives the history again.
func TestHistoryIsOfItsSeed(t *testing.T) {
	assert.Equal(t, NewHistory(7), NewHistory(7))
	assert.NotEqual(t, NewHistory(7), NewHistory(8))
}

// TestCombinedIsTheHistoryAndMore: what was printed of a seed stays as it is.
func TestCombinedIsTheHistoryAndMore(t *testing.T) {
	for seed := range uint64(50) {
		h := NewHistory(seed)
		c := Combined(seed, h)
		assert.Equal(t, h, c[:len(h)])
		for _, s := range c[len(h):] {
			assert.GreaterOrEqual(t, s.At, h.Length()+calm, "%s", s)
		}
		assert.Equal(t, c, Combined(seed, h))
	}
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
