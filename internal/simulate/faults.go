package simulate

import (
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// faults are what is wrong with a node. It is safe for concurrent use.
type faults struct {
	mu        sync.Mutex
	deaf      bool              // the hypervisor emits no event
	slow      int               // reasons why everything takes longer
	full      int               // reasons why the disk is full
	cuts      map[string]cutOff // by the node whose agent it does not reach, or did not
	unreached int               // reasons why the registry does not answer
	away      time.Time         // when the first of them began
	back      time.Time         // when it last answered again
	remembers []fabric.Allocation
	garbled   int           // reasons why messages come late, twice or out of order
	clear     time.Time     // when messages were last garbled
	ahead     time.Duration // by how much the clock is ahead
}

// cutOff is the connection to another agent.
type cutOff struct {
	reasons int       // why it is broken
	last    time.Time // when it last was
}

// addCut adds a reason why the agent at an end does not reach that of another node,
// or removes one.
func (f *faults) addCut(end *fake.Nodes, other string, by int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	reasons := f.cuts[other].reasons + by
	f.cuts[other] = cutOff{reasons, time.Now()}
	end.Cut(other, reasons > 0)
}

// isCut reports whether the agents of two nodes do not reach each other.
func (f *faults) isCut(other string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cuts[other].reasons > 0
}

// reachedSince reports whether the agent of another node was in reach since a time, and
// messages to and from this one came in time.
func (f *faults) reachedSince(other string, at time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.cuts[other]
	return c.reasons == 0 && c.last.Before(at) && f.garbled == 0 && f.clear.Before(at)
}

// isDeaf reports whether the hypervisor emits no event.
func (f *faults) isDeaf() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.deaf
}

// setDeaf sets whether the hypervisor emits no event. It reports whether that was
// otherwise before.
func (f *faults) setDeaf(deaf bool) (changed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	changed = f.deaf != deaf
	f.deaf = deaf
	return changed
}

// setAhead sets by how much the clock is ahead.
func (f *faults) setAhead(by time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ahead = by
}

// clock returns the time of day by the node's clock.
func (f *faults) clock() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Now().Round(0).Add(f.ahead)
}

// slowness returns the factor by which effects take longer.
func (f *faults) slowness() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.slow > 0 {
		return 300
	}
	return 1
}

// broken reports whether the disk is full.
func (f *faults) broken() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.full > 0
}

// unreach has the registry not answer for a time. The agent that runs then remembers what
// it was like.
func (f *faults) unreach(d time.Duration, was []fabric.Allocation) {
	f.mu.Lock()
	if f.unreached == 0 {
		f.remembers, f.away = was, time.Now()
	}
	f.mu.Unlock()
	f.during(&f.unreached, d)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.back = time.Now()
}

// remembered gives what an agent remembers of the registry that does not answer: nothing,
// if the agent began after that.
func (f *faults) remembered(began time.Time) []fabric.Allocation {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !began.Before(f.away) {
		return nil
	}
	return f.remembers
}

// ignorant reports whether an agent that began at a time may never have heard of the
// registry, or did so lately.
func (f *faults) ignorant(began time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return began.After(f.away) && (f.unreached > 0 || began.Before(f.back) && time.Since(f.back) < silent)
}

// reachesRegistry reports whether the registry answers.
func (f *faults) reachesRegistry() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.unreached == 0
}

// during adds a reason to a counter for a time.
func (f *faults) during(reasons *int, d time.Duration) {
	for _, by := range []int{1, -1} {
		f.mu.Lock()
		*reasons += by
		f.mu.Unlock()
		if by > 0 {
			time.Sleep(d)
		}
	}
}

// garble makes messages come late, twice or out of order for a time.
func (f *faults) garble(d time.Duration) {
	f.during(&f.garbled, d)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clear = time.Now()
}

// isGarbled reports whether messages come late, twice or out of order.
func (f *faults) isGarbled() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.garbled > 0
}

// garbledWithin reports whether messages come late, twice or out of order, or did
// within a time.
func (f *faults) garbledWithin(d time.Duration) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.garbled > 0 || !f.clear.IsZero() && time.Since(f.clear) < d
}
