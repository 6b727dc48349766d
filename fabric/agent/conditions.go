package agent

import (
	"maps"
	"sync"
)

// conditions are the problems of the node as a whole, by what they are about. It
// is safe for concurrent use.
type conditions struct {
	mu    sync.Mutex
	texts map[string]string
}

// set notes a problem, or with nil that there is none.
func (c *conditions) set(about string, err error) {
	if err == nil {
		c.clear(about)
		return
	}
	c.say(about, oneLine(err))
}

// say notes a problem in words.
func (c *conditions) say(about, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.texts == nil {
		c.texts = map[string]string{}
	}
	c.texts[about] = text
}

// clear notes that there is no problem with things.
func (c *conditions) clear(abouts ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, about := range abouts {
		delete(c.texts, about)
	}
}

// clearFunc is clear of all for which over is true.
func (c *conditions) clearFunc(over func(about string) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.texts, func(about, _ string) bool { return over(about) })
}

// list gives the problems, in the order of what they are about.
func (c *conditions) list() (texts []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, about := range sortedKeys(c.texts) {
		texts = append(texts, c.texts[about])
	}
	return texts
}
