package nodes

import (
	"context"
	"maps"
	"slices"
	"time"
)

const (
	memory      = 5 * time.Minute // how long a disagreement is told after it was last seen
	maxTroubles = 64
)

// trouble is what Diagnose tells until it is settled, or too old.
type trouble struct {
	text  string
	until time.Time // zero: until it is settled
}

func (t trouble) over(now time.Time) bool { return !t.until.IsZero() && now.After(t.until) }

// Diagnose implements [fabric.Diagnoser]: where this agent cannot listen, which
// nodes do not answer, and which answer but cannot be talked to, as with another
// key. What was said by who is not known to be a node is not among them.
func (n *Nodes) Diagnose(context.Context) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.forget()
	lines := n.silences(time.Now())
	for _, t := range n.troubles {
		lines = append(lines, t.text)
	}
	slices.Sort(lines)
	return slices.Compact(lines) // what ails questions of both sides
}

// note remembers trouble about key for a while, or until it is settled where
// that is zero, and logs it where it is new.
func (n *Nodes) note(key, text string, while time.Duration) {
	t := trouble{text: text}
	if while > 0 {
		t.until = time.Now().Add(while)
	}
	if n.swap(key, t).text != text {
		n.log.Warn(text)
	}
}

// swap remembers trouble, and gives what it takes the place of. Where there is
// too much already, that is the trouble itself.
func (n *Nodes) swap(key string, t trouble) (before trouble) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.forget()
	before, again := n.troubles[key]
	if !again && len(n.troubles) >= maxTroubles {
		return t
	}
	n.troubles[key] = t
	return before
}

// settle forgets the trouble about key.
func (n *Nodes) settle(key string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.troubles, key)
}

// forget drops what is over. The caller holds the lock.
func (n *Nodes) forget() {
	now := time.Now()
	maps.DeleteFunc(n.troubles, func(_ string, t trouble) bool { return t.over(now) })
}
