package agent

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/fabric"
)

func TestStatisticsOfMoves(t *testing.T) {
	stopped := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	s := newStatistics()
	s.moved(fabric.Move{Outcome: moved, Stopped: stopped, Running: stopped.Add(200 * time.Millisecond)}, true)
	s.moved(fabric.Move{Outcome: moved, Stopped: stopped, Running: stopped.Add(-time.Second)}, true) // by another clock
	s.moved(fabric.Move{Outcome: moved, Running: stopped}, true)                                     // the source said nothing
	s.moved(fabric.Move{Outcome: moved, Resent: 40}, false)
	s.moved(fabric.Move{Outcome: "not heard of any more"}, false)
	is, done := s.open()
	defer done()
	assert.Equal(t, map[fabric.MoveKind]uint64{fabric.MovedIn: 3, fabric.MovedOut: 1, fabric.MoveFailed: 1}, is.Moves)
	assert.InDelta(t, .2, is.MoveGap.Sum, 1e-9)
	assert.EqualValues(t, 40, is.MoveResent.Sum)
	gaps := uint64(0)
	for _, n := range is.MoveGap.Counts {
		gaps += n
	}
	assert.EqualValues(t, 2, gaps)
}

func TestStatisticsOfAttaches(t *testing.T) {
	s := newStatistics()
	s.attached(3*time.Millisecond, nil)
	s.attached(time.Second, &fabric.RefusedError{VM: "web", Reason: fabric.RuleBroken, Err: errors.New("in no pool")})
	s.attached(time.Second, errors.New("no such device"))
	is, done := s.open()
	defer done()
	assert.InDelta(t, .003, is.Attach.Sum, 1e-9)
	assert.EqualValues(t, 1, is.AttachRefused)
	assert.EqualValues(t, 1, is.AttachFailed)
}

// TestHistogram: bounds belong to their class.
func TestHistogram(t *testing.T) {
	h := fabric.NewHistogram(1, 2)
	for _, v := range []float64{.5, 1, 1.5, 2, 9} {
		h.Add(v)
	}
	assert.Equal(t, []uint64{2, 2, 1}, h.Counts)
	assert.EqualValues(t, 14, h.Sum)
}
