package simulate

import (
	"sync"
	"time"
)

// activity counts the steps of a history that are under way, and knows since when
// there are none. It is safe for concurrent use.
type activity struct {
	mu       sync.Mutex
	steps    int       // under way
	idle     time.Time // since when there are none
	faults   int       // steps under way that are not ordinary
	calm     time.Time // since when there are none
	troubles int       // of these, the steps that disturb an agent
	quiet    time.Time // since when there are no troubles
}

// disturbed notes that a step that is not ordinary begins, or ends, and whether it
// disturbs an agent.
func (a *activity) disturbed(by int, agent bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if agent {
		if a.troubles += by; a.troubles == 0 {
			a.quiet = time.Now()
		}
	}
	if a.faults += by; a.faults == 0 {
		a.calm = time.Now()
	}
}

// isCalm reports whether every step is ordinary, and was so lately.
func (a *activity) isCalm() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.faults == 0 && time.Since(a.calm) > aftermath
}

// act notes that a step begins, or ends.
func (a *activity) act(by int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.steps += by; a.steps == 0 {
		a.idle = time.Now()
	}
}

// isIdle reports whether no step is under way, and none was lately.
func (a *activity) isIdle() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.steps == 0 && time.Since(a.idle) > silent
}

// isQuiet reports whether no step has disturbed an agent for a time.
func (a *activity) isQuiet(d time.Duration) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.troubles == 0 && time.Since(a.quiet) > d
}
