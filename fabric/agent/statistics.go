package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// statistics counts what the agent did. Its zero value is not usable.
type statistics struct {
	mu sync.Mutex
	is fabric.Statistics
}

func newStatistics() *statistics {
	return &statistics{is: fabric.Statistics{
		Attach:     fabric.NewHistogram(.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10),
		MoveGap:    fabric.NewHistogram(.01, .025, .05, .1, .15, .25, .5, .75, 1, 2.5, 5, 10, 30),
		MoveResent: fabric.NewHistogram(0, 1, 10, 50, 100, 500, 1000, 5000, 10000, 50000),
		Repairs:    map[fabric.RepairKind]uint64{}, Moves: map[fabric.MoveKind]uint64{},
	}}
}

// open gives what was counted to the caller alone, until it calls done.
func (s *statistics) open() (is *fabric.Statistics, done func()) {
	s.mu.Lock()
	return &s.is, s.mu.Unlock
}

// attached counts a guest that was brought up, or was not.
func (s *statistics) attached(took time.Duration, err error) {
	is, done := s.open()
	defer done()
	switch {
	case err == nil:
		is.Attach.Add(took.Seconds())
	case errors.Is(err, fabric.ErrRefused):
		is.AttachRefused++
	default:
		is.AttachFailed++
	}
}

func (s *statistics) repaired(kind fabric.RepairKind) {
	is, done := s.open()
	defer done()
	is.Repairs[kind]++
}

// moved counts a move whose report is complete.
func (s *statistics) moved(m fabric.Move, arrival bool) {
	is, done := s.open()
	defer done()
	switch {
	case m.Outcome != moved:
		is.Moves[fabric.MoveFailed]++
	case arrival:
		is.Moves[fabric.MovedIn]++
		if !m.Stopped.IsZero() && !m.Running.IsZero() {
			is.MoveGap.Add(max(0, m.Running.Sub(m.Stopped).Seconds())) // clocks differ
		}
	default:
		is.Moves[fabric.MovedOut]++
		is.MoveResent.Add(float64(m.Resent))
	}
}

// Statistics returns what the agent counted since it started, and how its guests stand.
func (a *Agent) Statistics(ctx context.Context) fabric.Statistics {
	counted, done := a.counts.open()
	all := *counted
	for _, h := range []*fabric.Histogram{&all.Attach, &all.MoveGap, &all.MoveResent} {
		h.Counts = slices.Clone(h.Counts)
	}
	all.Repairs, all.Moves = maps.Clone(all.Repairs), maps.Clone(all.Moves)
	done()
	all.Guests = a.guestConditions()
	if routes, err := a.speaker.Actual(ctx); err == nil { // else the pass reports it
		all.Announcements = map[fabric.Family]int{}
		for _, r := range routes {
			all.Announcements[fabric.FamilyOf(r.Prefix)]++
		}
	}
	return all
}

func (a *Agent) guestConditions() map[fabric.GuestCondition]int {
	all := map[fabric.GuestCondition]int{}
	s, done := a.state.open()
	defer done()
	for _, g := range s.guests {
		switch {
		case g.want.State == fabric.Absent:
			continue
		case g.departure.state.Stops() || g.departure.state.Diverts():
			all[fabric.GuestLeaving]++
		case g.want.Incoming:
			all[fabric.GuestArriving]++
		case g.announced:
			all[fabric.GuestLive]++
		default:
			all[fabric.GuestWired]++
		}
		if g.trouble != nil {
			all[fabric.GuestTrouble]++
		}
	}
	return all
}

// Traffic returns what the node has forwarded for guests, also for those that have left
// it; with an error, as it was last known. The error is [errors.ErrUnsupported] if the
// node does not count.
func (a *Agent) Traffic(ctx context.Context) ([]fabric.Traffic, error) {
	if a.traffic == nil {
		return nil, fmt.Errorf("node %s counts no packets of guests: %w", a.node, errors.ErrUnsupported)
	}
	return a.traffic(ctx)
}
