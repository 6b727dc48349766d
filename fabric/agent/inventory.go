package agent

import (
	"maps"
	"slices"
	"sync"
)

// inventory says whether the agent knows all guests of this node. The agent removes
// nothing before the store and all sources have listed theirs. It is safe for
// concurrent use.
type inventory struct {
	mu         sync.Mutex
	incomplete bool              // some stored state cannot be used
	unlisted   map[string]bool   // sources that have not listed their guests yet
	unknown    map[string]string // guests that run here without resolved addresses, with their source
}

// await adds a source that has not listed its guests yet.
func (i *inventory) await(source string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.unlisted == nil {
		i.unlisted = map[string]bool{}
	}
	i.unlisted[source] = true
}

// awaits reports whether a source has not listed its guests yet.
func (i *inventory) awaits(source string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.unlisted[source]
}

// listed notes that a source has listed its guests, and reports whether it is the
// first time.
func (i *inventory) listed(source string) (first bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	first = i.unlisted[source]
	delete(i.unlisted, source)
	return first
}

// damaged notes that some stored state cannot be used.
func (i *inventory) damaged() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.incomplete = true
}

// isDamaged reports whether some stored state cannot be used.
func (i *inventory) isDamaged() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.incomplete
}

// complete reports whether the agent may remove ports and routes of unlisted guests.
func (i *inventory) complete() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return !i.incomplete && len(i.unlisted) == 0
}

// unresolved replaces the list of a source's guests that run here without resolved
// addresses.
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

// resolved notes that a guest has its addresses, or does not run here any more.
func (i *inventory) resolved(vm string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.unknown, vm)
}

// unresolvedGuests lists the guests that run here without resolved addresses.
func (i *inventory) unresolvedGuests() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Collect(maps.Keys(i.unknown))
}
