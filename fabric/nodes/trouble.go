package nodes

import (
	"context"
	"maps"
	"slices"
	"time"
)

const (
	memory      = 5 * time.Minute // how long a disagreement is reported after it was last seen
	maxTroubles = 64
)

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
	n.mu.Lock()
	defer n.mu.Unlock()
	n.forget()
	lines := n.silences(time.Now())
	for _, t := range n.troubles {
		lines = append(lines, t.text)
	}
	slices.Sort(lines)
	return slices.Compact(lines) // the same problem may show in both directions
}

// note remembers trouble about key for a while, or until it is settled if while is
// zero. It logs new trouble.
func (n *Nodes) note(key, text string, while time.Duration) {
	t := trouble{text: text}
	if while > 0 {
		t.until = time.Now().Add(while)
	}
	if n.swap(key, t).text != text {
		n.log.Warn(text)
	}
}

// swap remembers trouble, and returns the trouble that it replaces. If there is too
// much already, it returns t itself.
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

// settle drops the trouble about key.
func (n *Nodes) settle(key string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.troubles, key)
}

// forget drops old trouble. The caller holds n.mu.
func (n *Nodes) forget() {
	now := time.Now()
	maps.DeleteFunc(n.troubles, func(_ string, t trouble) bool { return t.over(now) })
}
