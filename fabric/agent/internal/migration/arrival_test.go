package migration_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/vmfabric/vmfabric/fabric/agent/internal/migration"
)

var (
	allArrivals      = []Arrival{NoArrival, Expected, Arriving, Ready, Running, Arrived}
	allArrivalEvents = []ArrivalEvent{
		Announced, Prepared, StartedAnew, PortsReady, GuestRuns, RoutesSent, OthersLetGo, Ended, NotHeardAgain,
	}
)

// TestOthersHearTheTruth follows every sequence of five events: the others are told of
// an arrival only while the guest's ports take packets and it does not run here, the
// source hears that it runs here once and only when it does, and whoever was told
// that it arrives hears that it does not.
func TestOthersHearTheTruth(t *testing.T) {
	type world struct{ arriving, runs, told bool }
	var walk func(a Arrival, w world, story []string, left int)
	walk = func(a Arrival, w world, story []string, left int) {
		require.Equal(t, a == Ready, w.arriving, "%v: %v", a, story)
		require.Equal(t, a.Runs(), w.runs, "%v: %v", a, story)
		if left == 0 {
			return
		}
		for _, e := range allArrivalEvents {
			next, is, at := NextArrival(a, e), w, append(story, e.String())
			if e == GuestRuns && a.Awaits() {
				is = world{runs: true}
			}
			if e == Prepared || e == StartedAnew || e == Ended || e == OthersLetGo && a.Runs() {
				is.runs, is.told = false, false
			}
			is.arriving = is.arriving && a.Awaits() && e != StartedAnew && e != Ended
			for _, effect := range next.Effects {
				switch effect {
				case TellArriving:
					is.arriving = true
				case TellArrived:
					require.True(t, is.runs && !is.told, "%v", at)
					is.told = true
				case TellCancelled:
					require.True(t, a.Awaits() && !is.runs, "%v", at)
				case Report:
					require.True(t, a.Runs(), "%v", at)
				}
			}
			if w.arriving && e == Ended {
				require.Contains(t, next.Effects, TellCancelled, "%v", at)
			}
			walk(next.To, is, at, left-1)
		}
	}
	walk(NoArrival, world{}, nil, 5)
}

// TestEveryArrivalEnds: whatever an arrival came to, it is over when the guest is gone.
func TestEveryArrivalEnds(t *testing.T) {
	for _, s := range allArrivals {
		assert.Equal(t, NoArrival, NextArrival(s, Ended).To, "%v", s)
	}
}
