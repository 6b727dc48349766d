package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
)

// TestStalledMoves: a smoke run repeats a few moves that do not end in time, and a real
// run none. Any other failure is one at once, and a guest that hangs is another thing.
func TestStalledMoves(t *testing.T) {
	t.Parallel()
	stalls := func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	broken := errors.New("broken")
	fails := func(err error) func(context.Context) error { return func(context.Context) error { return err } }
	works := fails(nil)
	for _, tc := range []struct {
		name         string
		size         size
		tries        []func(context.Context) error
		want         error
		anew         []bool
		stalls, hung int
	}{
		{"at once", quickSize, []func(context.Context) error{works}, nil, nil, 0, 0},
		{"twice", quickSize, []func(context.Context) error{stalls, stalls, works}, nil, []bool{true, true}, 2, 0},
		{"too often", quickSize, []func(context.Context) error{stalls, stalls, stalls}, context.DeadlineExceeded, []bool{true, true}, 2, 0},
		{"in a real run", fullSize, []func(context.Context) error{stalls}, context.DeadlineExceeded, nil, 0, 0},
		{"broken", quickSize, []func(context.Context) error{fails(broken)}, broken, nil, 0, 0},
		{"hung", fullSize, []func(context.Context) error{fails(errHung), works}, nil, []bool{false}, 0, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var said bytes.Buffer
				g, tried, anew := &mover{name: "vmfabric"}, 0, []bool(nil)
				err := g.attempt(t.Context(), &bench{size: tc.size, log: &said}, func(ctx context.Context) error {
					tried++
					return tc.tries[tried-1](ctx)
				}, func(_ context.Context, stalled bool) error {
					anew = append(anew, stalled)
					return nil
				})
				assert.ErrorIs(t, err, tc.want)
				assert.Equal(t, len(tc.tries), tried)
				assert.Equal(t, tc.anew, anew)
				assert.Equal(t, []int{tc.stalls, tc.hung}, []int{g.stalls, g.hung})
				assert.Equal(t, len(tc.anew), strings.Count(said.String(), "the move does not count"))
				note := (&moving{core: "BIRD", ours: g}).stallNote()
				assert.Equal(t, tc.stalls > 0, note != "", note)
			})
		})
	}
}

// TestRealRatesStay: a smoke run has rates of its own, and says them.
func TestRealRatesStay(t *testing.T) {
	t.Parallel()
	whole, quick := movesMethod(fullSize), movesMethod(quickSize)
	assert.Contains(t, whole, "client sends 1,000 echo requests a second")
	assert.Contains(t, whole, "sends a line every 10 ms")
	assert.Contains(t, whole, "a series of its own at 4,000 requests a\nsecond")
	assert.Contains(t, quick, "client sends 50 echo requests a second")
	assert.Contains(t, quick, "sends a line every 100 ms")
	assert.Contains(t, quick, "a series of its own at 100 requests a\nsecond")
}
