package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/plural"
)

// Drain takes the node out of service. It announces guests that run here as
// [fabric.Draining] (RFC 8326), so that the routes of another node where a guest
// runs rank first, and it refuses guests that are not here yet. Guests that are
// here go on, and stay reachable until they end or have moved. A drain lasts, over
// restarts, until [Agent.Undrain]. Drain is idempotent;
// [fabric.Status.DrainingSince] is the time of the first call.
//
// If the store cannot keep the drain, nothing changes. After any other error the node
// is drained, and the agent keeps trying.
func (a *Agent) Drain(ctx context.Context) error { return a.setDrained(ctx, time.Now()) }

// Undrain ends a drain: the node announces its guests as before, and takes new ones.
// Without a drain it does nothing. Its errors mean the same as those of Drain.
func (a *Agent) Undrain(ctx context.Context) error { return a.setDrained(ctx, time.Time{}) }

func (a *Agent) setDrained(ctx context.Context, since time.Time) error {
	leave, _ := a.turns.enter(wholeNode, false)
	defer leave()
	s, done := a.state.open()
	is := s.drained
	done()
	if !is.IsZero() && !since.IsZero() {
		since = is
	}
	// Store it even if it does not change: the stored value may be damaged or
	// missing.
	if err := a.store.SetDrained(ctx, since); err != nil {
		return fmt.Errorf("node %s: keep whether it is drained: %w", a.node, err)
	}
	s, done = a.state.open()
	s.drained = since
	names := sortedKeys(s.guests)
	done()
	a.conditions.clear("drain")
	if is.IsZero() && since.IsZero() {
		return nil
	}
	a.log.Info("drain", "on", !since.IsZero(), "guests", len(names))
	var errs []error
	for _, vm := range names {
		t, end := a.begin(vm)
		errs = append(errs, t.reconcile(ctx, nil))
		end()
	}
	err := errors.Join(errs...)
	if err != nil {
		a.signal()
		err = fmt.Errorf("%w; the agent keeps trying", err)
	}
	return err
}

// recallDrain loads the drain from the store.
func (a *Agent) recallDrain(ctx context.Context) {
	since, err := a.store.Drained(ctx)
	s, done := a.state.open()
	s.drained = since
	done()
	if err != nil {
		a.conditions.say("drain", a.withRemedy(fmt.Sprintf("whether the node is drained: %s (it is taken for not drained)", oneLine(err)), fabric.DrainUnknown))
		a.log.Error("drain not known", "err", err)
	}
}

// draining reports whether the node is being drained.
func (s *state) draining() bool { return !s.drained.IsZero() }

// drainRefusal is the error for a guest that is not here yet.
func (s *state) drainRefusal() error {
	return s.because(fabric.NodeDrained, fmt.Errorf("node %s is draining", s.node))
}

// drainProblem is the line about the drain in [fabric.Status].
func (s *state) drainProblem() string {
	left := 0
	for _, g := range s.guests {
		if g.want.State != fabric.Absent {
			left++
		}
	}
	return s.withRemedy(fmt.Sprintf("draining since %s: %s left, new ones are refused",
		s.drained.Format(time.DateTime), plural.Of(left, "guest is", "guests are")), fabric.DrainUnderWay)
}
