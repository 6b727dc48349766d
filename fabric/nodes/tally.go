package nodes

import (
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// tallyFor is how long further log lines of a kind are only counted.
const tallyFor = time.Minute

// tally logs events that strangers can cause as often as they like: the first of a
// kind at once, and a minute later how many more there were. It is safe for
// concurrent use.
type tally struct {
	log *slog.Logger

	mu    sync.Mutex
	kinds map[string]*tallied // by text; there are few texts
}

type tallied struct {
	since time.Time
	more  uint64
}

// warn logs a text with its attributes, or counts it.
func (t *tally) warn(now time.Time, text string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if k := t.kinds[text]; k != nil {
		k.more++
		return
	}
	t.kinds[text] = &tallied{since: now}
	t.log.Warn(text, args...)
}

// flush logs the counts that are a minute old.
func (t *tally) flush(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for text, k := range t.kinds {
		switch {
		case now.Sub(k.since) < tallyFor:
		case k.more == 0:
			delete(t.kinds, text)
		default:
			t.log.Warn(fmt.Sprintf("%s (and %d more like this in the last minute)", text, k.more))
			*k = tallied{since: now}
		}
	}
}
