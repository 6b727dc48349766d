package agent

import (
	"maps"
	"sync"
)

// conditions has the present problems of the node for Status, by key: a backend, or a
// guest. It is safe for concurrent use.
type conditions struct {
	mu    sync.Mutex
	texts map[string]string
}

// set sets the condition of a key to an error, or clears it if err is nil.
func (c *conditions) set(about string, err error) {
	if err == nil {
		c.clear(about)
		return
	}
	c.say(about, oneLine(err))
}

// say sets the condition of a key to a text.
func (c *conditions) say(about, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.texts == nil {
		c.texts = map[string]string{}
	}
	c.texts[about] = text
}

// clear clears the conditions of keys.
func (c *conditions) clear(abouts ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, about := range abouts {
		delete(c.texts, about)
	}
}

// clearFunc clears the conditions of all keys for which over is true.
func (c *conditions) clearFunc(over func(about string) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.texts, func(about, _ string) bool { return over(about) })
}

// list gives the texts in the order of their keys.
func (c *conditions) list() (texts []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, about := range sortedKeys(c.texts) {
		texts = append(texts, c.texts[about])
	}
	return texts
}
