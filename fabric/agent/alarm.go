package agent

import (
	"slices"
	"sync"
	"time"
)

// alarm calls do at each of the requested times, with one timer, until it is stopped.
type alarm struct {
	do func()

	mu      sync.Mutex
	times   []time.Time // ascending
	timer   *time.Timer
	stopped bool
}

// after requests a call of do after d.
func (a *alarm) after(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := time.Now().Add(d)
	i, there := slices.BinarySearchFunc(a.times, at, time.Time.Compare)
	if there || a.stopped {
		return
	}
	a.times = slices.Insert(a.times, i, at)
	switch {
	case a.timer == nil:
		a.timer = time.AfterFunc(d, a.ring)
	case i == 0:
		a.timer.Reset(d)
	}
}

func (a *alarm) ring() {
	a.mu.Lock()
	now := time.Now()
	n := 0
	for n < len(a.times) && !a.times[n].After(now) {
		n++
	}
	a.times = slices.Delete(a.times, 0, n)
	if len(a.times) > 0 && !a.stopped {
		a.timer.Reset(a.times[0].Sub(now))
	}
	a.mu.Unlock()
	if n > 0 {
		a.do()
	}
}

// stop drops the requested times and all later ones.
func (a *alarm) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopped, a.times = true, nil
	if a.timer != nil {
		a.timer.Stop()
	}
}
