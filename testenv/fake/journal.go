package fake

import (
	"slices"
	"sync"
)

// Journal keeps the effects of fakes, in order. The zero value is ready, a nil
// Journal keeps nothing. It is safe for concurrent use, and fakes may share one.
type Journal struct {
	mu    sync.Mutex
	lines []string
}

// Lines returns the effects so far.
func (j *Journal) Lines() []string {
	if j == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.lines)
}

// Take returns the effects since the last Take.
func (j *Journal) Take() []string {
	if j == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	lines := j.lines
	j.lines = nil
	return lines
}

func (j *Journal) add(line string) {
	if j == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}
