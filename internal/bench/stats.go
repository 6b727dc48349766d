package main

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// sample has the measured times of one thing, in any order.
type sample []time.Duration

func (s *sample) add(d time.Duration) { *s = append(*s, d) }

// quantile returns the smallest value that at least the share q of the sample does
// not exceed (nearest rank), or 0 if the sample is empty.
func (s sample) quantile(q float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	rank := int(math.Ceil(q * float64(len(s))))
	return sorted[min(max(rank, 1), len(s))-1]
}

func (s sample) p50() time.Duration { return s.quantile(0.50) }
func (s sample) p99() time.Duration { return s.quantile(0.99) }
func (s sample) max() time.Duration { return s.quantile(1) }
func (s sample) min() time.Duration { return s.quantile(0) }

// ratio returns a divided by b, or NaN if b is not positive.
func ratio(a, b time.Duration) float64 {
	if b <= 0 {
		return math.NaN()
	}
	return float64(a) / float64(b)
}

// ms writes a duration in milliseconds, as precise as a reader can use.
func ms(d time.Duration) string {
	v := float64(d) / float64(time.Millisecond)
	switch {
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// times writes a ratio.
func times(r float64) string {
	switch {
	case math.IsNaN(r):
		return "–"
	case r >= 10:
		return fmt.Sprintf("%.0f×", r)
	}
	return fmt.Sprintf("%.2f×", r)
}

// mib writes bytes in MiB.
func mib(bytes int64) string { return fmt.Sprintf("%.1f", float64(bytes)/(1<<20)) }

// count writes a number with commas: 5,000.
func count(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", count(n/1000), n%1000)
}
