package main

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestReport(t *testing.T) {
	t.Parallel()
	r := report{
		machine: []fact{{"kernel", "6.18"}, {"processor", "2 × Some"}},
		sections: []section{{
			title: "A title", method: "\nHow it was done.\n",
			tables:  []table{{head: []string{"what", "p50 ms"}, rows: [][]string{{"vmfabric", "0.49"}, {"the other", "12.3"}}}},
			targets: []target{within("this against that", 1.5, 2), within("that against this", 2.5, 2), none("losses", 0)},
			notes:   []string{"A note."},
		}},
		took: 90 * time.Second,
	}
	assert.Equal(t, `# Performance

Written by `+"`make bench` (`go run ./internal/bench`)"+`, which measures vmfabric and its peers in one run on one machine, in
laboratories of network namespaces: nodes, two BIRD reflectors, a BIRD core gateway. Every ratio is between two figures
of this run. Times are in milliseconds on one clock. The programs are built as released: no race detector,
`+"`-trimpath -ldflags '-s -w'`, `CGO_ENABLED=0`"+`. The run took 1m30s.

| machine   |          |
| --------- | -------- |
| kernel    | 6.18     |
| processor | 2 × Some |

## Targets

| target                           | measured |            |
| -------------------------------- | -------- | ---------- |
| this against that: at most 2.00× | 1.50×    | kept       |
| that against this: at most 2.00× | 2.50×    | **missed** |
| losses: none                     | 0        | kept       |

## A title

How it was done.

| what      | p50 ms |
| --------- | -----: |
| vmfabric  |   0.49 |
| the other |   12.3 |

A note.
`, r.markdown())
}

func TestSmokeRunSaysSo(t *testing.T) {
	t.Parallel()
	assert.Contains(t, report{quick: true}.markdown(), "these figures mean nothing")
	assert.NotContains(t, report{}.markdown(), "## Targets")
}

func TestWhatCannotBeComparedIsNotKept(t *testing.T) {
	t.Parallel()
	assert.False(t, within("x", math.NaN(), 2).kept)
	assert.True(t, within("x", 2, 2).kept)
	assert.False(t, none("x", 1).kept)
}
