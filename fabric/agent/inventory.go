package agent

import (
	"maps"
	"slices"
	"sync"
)

// inventory is how much is known of which guests this node has: nothing is
// removed before everybody has told all of them. It is safe for concurrent use.
type inventory struct {
	mu         sync.Mutex
	incomplete bool              // the store did not tell everything
	unlisted   map[string]bool   // sources that have not told their guests yet
	unknown    map[string]string // guests that run here and that nobody has resolved yet, with their source
}

// await notes a source that has yet to tell its guests.
func (i *inventory) await(source string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.unlisted == nil {
		i.unlisted = map[string]bool{}
	}
	i.unlisted[source] = true
}

// listed notes that a source has told its guests, and reports whether it is the
// first time.
func (i *inventory) listed(source string) (first bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	first = i.unlisted[source]
	delete(i.unlisted, source)
	return first
}

// damaged notes that the store could not tell everything.
func (i *inventory) damaged() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.incomplete = true
}

// isDamaged reports whether the store could not tell everything.
func (i *inventory) isDamaged() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.incomplete
}

// complete reports whether what nobody has told of may be removed.
func (i *inventory) complete() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return !i.incomplete && len(i.unlisted) == 0
}

// unresolved notes which guests of a source run here and are not resolved yet, in
// place of those that it noted before.
func (i *inventory) unresolved(source string, vms []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	maps.DeleteFunc(i.unknown, func(_, of string) bool { return of == source })
	if i.unknown == nil {
		i.unknown = map[string]string{}
	}
	for _, vm := range vms {
		i.unknown[vm] = source
	}
}

// resolved notes that a guest is known, or does not run here.
func (i *inventory) resolved(vm string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.unknown, vm)
}

// unresolvedGuests lists those that run here and that nobody has resolved yet.
func (i *inventory) unresolvedGuests() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Collect(maps.Keys(i.unknown))
}
