package main

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestQuantile(t *testing.T) {
	t.Parallel()
	hundred := make(sample, 100)
	for i := range hundred {
		hundred[i] = time.Duration((i*37)%100 + 1) // 1 to 100, in no order
	}
	for _, tc := range []struct {
		name          string
		of            sample
		min, p50, p99 time.Duration
		max           time.Duration
	}{
		{name: "nothing"},
		{name: "one", of: sample{7}, min: 7, p50: 7, p99: 7, max: 7},
		{name: "two", of: sample{9, 3}, min: 3, p50: 3, p99: 9, max: 9},
		{name: "three", of: sample{9, 3, 5}, min: 3, p50: 5, p99: 9, max: 9},
		{name: "a hundred", of: hundred, min: 1, p50: 50, p99: 99, max: 100},
		{name: "two hundred", of: append(hundred, hundred...), min: 1, p50: 50, p99: 99, max: 100},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			assert.Equal(t, tc.min, tc.of.min())
			assert.Equal(t, tc.p50, tc.of.p50())
			assert.Equal(t, tc.p99, tc.of.p99())
			assert.Equal(t, tc.max, tc.of.max())
		})
	}
}

func TestQuantileLeavesTheOrderAlone(t *testing.T) {
	t.Parallel()
	s := sample{3, 1, 2}
	s.p50()
	assert.Equal(t, sample{3, 1, 2}, s)
}

func TestFiguresForPeople(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "0.49", ms(490*time.Microsecond))
	assert.Equal(t, "-0.25", ms(-250*time.Microsecond))
	assert.Equal(t, "12.3", ms(12345*time.Microsecond))
	assert.Equal(t, "1234", ms(1234*time.Millisecond))
	assert.Equal(t, "1.50×", times(ratio(3, 2)))
	assert.Equal(t, "25×", times(ratio(50, 2)))
	assert.Equal(t, "–", times(ratio(3, 0)))
	assert.True(t, math.IsNaN(ratio(3, -1)))
	assert.Equal(t, "999", count(999))
	assert.Equal(t, "1,000", count(1000))
	assert.Equal(t, "1,234,056", count(1234056))
	assert.Equal(t, "1.5", mib(3<<19))
}
