package simulate

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var days = flag.Float64("days", 0, "how many simulated days of histories are run")

// TestSoak runs histories for so many simulated days, goes on after one that fails,
// and tells what there was of each kind.
func TestSoak(t *testing.T) {
	if *days == 0 {
		t.Skip("by hand: make soak")
	}
	first := *from
	if first == 0 {
		first = fresh()
	}
	var simulated time.Duration
	var steps [kinds]int
	began, seed, failed := time.Now(), first, 0
	for ; simulated < time.Duration(*days*float64(24*time.Hour)); seed++ {
		h := ofSeed(seed)
		for _, s := range h {
			steps[s.Kind]++
		}
		synctest.Test(t, func(*testing.T) {
			start := time.Now()
			if failures := Run(seed, h); len(failures) > 0 {
				failed++
				t.Errorf("seed %d:\n%s", seed, strings.Join(failures, "\n"))
			}
			simulated += time.Since(start)
		})
		if done := seed - first + 1; done%500 == 0 {
			t.Logf("%d histories, %d failed", done, failed)
		}
	}
	took := time.Since(began)
	t.Logf("%d histories from seed %d, %.1f simulated days in %v, %.1f simulated hours per second; %d failed",
		seed-first, first, simulated.Hours()/24, took.Round(time.Second), simulated.Hours()/took.Seconds(), failed)
	var all []string
	for k, n := range steps {
		all = append(all, fmt.Sprintf("%s %d", Kind(k), n))
	}
	t.Log(strings.Join(all, ", "))
}
