package fake

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Trouble makes effects of a fake fail or hang, as a test demands. An effect has
// the name that it has in the [Journal], or the first words of it: "wire web_net0"
// is that port, "wire" all ports. Reads have names, too: "list ports", "list
// routes", "load", "list guests". It also has the problems that the fake reports.
type Trouble struct {
	mu       sync.Mutex
	fails    map[string]error
	hangs    map[string]chan struct{}
	problems []string
}

// Report makes Diagnose report these problems; none ends that.
func (t *Trouble) Report(problems ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.problems = slices.Clone(problems)
}

// Diagnose implements [fabric.Diagnoser].
func (t *Trouble) Diagnose(context.Context) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.problems)
}

// Fail makes an effect fail with err, without having happened, until Fail is called
// for it with nil.
func (t *Trouble) Fail(effect string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fails == nil {
		t.fails = map[string]error{}
	}
	if t.fails[effect] = err; err == nil {
		delete(t.fails, effect)
	}
}

// Hang makes an effect wait until release is called, or its context ends.
func (t *Trouble) Hang(effect string) (release func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.hangs == nil {
		t.hangs = map[string]chan struct{}{}
	}
	free := make(chan struct{})
	t.hangs[effect] = free
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.hangs[effect] == free {
			close(free)
			delete(t.hangs, effect)
		}
	}
}

// before waits for the end of a Hang of an effect, and returns the error of its
// context or of Fail. The caller holds no lock.
func (t *Trouble) before(ctx context.Context, effect string) error {
	t.mu.Lock()
	hang := match(t.hangs, effect)
	t.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", effect, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return match(t.fails, effect)
}

func match[V any](m map[string]V, effect string) (none V) {
	for key, v := range m {
		if effect == key || strings.HasPrefix(effect, key+" ") {
			return v
		}
	}
	return none
}
