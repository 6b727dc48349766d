package fake

import (
	"context"
	"fmt"
	"strings"
	"sync"
)

// Trouble is what a test makes for a fake. An effect is named as in the
// [Journal], or by its first words: "wire web_net0" is that port, "wire" all.
// Looking on has names too: "list ports", "list routes", "load", "list guests".
type Trouble struct {
	mu    sync.Mutex
	fails map[string]error
	hangs map[string]chan struct{}
}

// Fail lets an effect end in err, without having happened, until Fail is
// called for it with nil.
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

// Hang lets an effect wait until release is called, or its context ends.
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

// before is called before an effect, without locks held.
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
