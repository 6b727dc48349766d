package kernel

import (
	"maps"
	"slices"
	"sync"
)

// conditions are the faults of the node that [Dataplane.Diagnose] reports, by their
// subject.
type conditions struct {
	mu    sync.Mutex
	texts map[string]string
}

// set sets the condition of a subject, or ends it if the text is empty.
func (c *conditions) set(about, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case text == "":
		delete(c.texts, about)
	case c.texts == nil:
		c.texts = map[string]string{about: text}
	default:
		c.texts[about] = text
	}
}

func (c *conditions) list() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.texts))
}
