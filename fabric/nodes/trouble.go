package nodes

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	memory      = 5 * time.Minute // how long a disagreement is reported after it was last seen
	maxTroubles = 64
)

// troubles has the problems that Diagnose reports. It is safe for concurrent use.
type troubles struct {
	log *slog.Logger

	mu  sync.Mutex
	all map[string]trouble // by what each is about
}

// trouble is a problem that Diagnose reports until it is settled or too old.
type trouble struct {
	text  string
	until time.Time // zero: until it is settled
}

func (t trouble) over(now time.Time) bool { return !t.until.IsZero() && now.After(t.until) }

// Diagnose implements [fabric.Diagnoser]: the addresses on which this agent cannot
// listen, the nodes that do not answer, and those that answer but disagree, for
// example because they have another key. It reports nothing that a caller said
// which is not known to be a node.
func (n *Nodes) Diagnose(context.Context) []string {
	now := time.Now()
	lines := append(n.peers.silences(n.Names(), now), n.troubles.list(now)...)
	slices.Sort(lines)
	return slices.Compact(lines) // the same problem may show in both directions
}

// list returns the texts of the troubles.
func (t *troubles) list(now time.Time) (lines []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, one := range t.all {
		if !one.over(now) {
			lines = append(lines, one.text)
		}
	}
	return lines
}

// note remembers trouble about key for a while, or until it is settled if while is
// zero. It logs new trouble.
func (t *troubles) note(key, text string, while time.Duration) {
	one := trouble{text: text}
	if while > 0 {
		one.until = time.Now().Add(while)
	}
	if t.swap(key, one).text != text {
		t.log.Warn(text)
	}
}

// swap remembers trouble, and returns the trouble that it replaces. If there is too
// much already, it returns the new trouble itself. It drops old trouble.
func (t *troubles) swap(key string, one trouble) (before trouble) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(t.all, func(_ string, other trouble) bool { return other.over(now) })
	before, again := t.all[key]
	if !again && len(t.all) >= maxTroubles {
		return one
	}
	t.all[key] = one
	return before
}

// settle drops the trouble about key.
func (t *troubles) settle(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.all, key)
}
