package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

const (
	// registryMemory is how long what a node said of its registry is reported after it
	// was last heard: some comparisons may fail meanwhile.
	registryMemory = 5 * time.Minute
	// adoptedWithin is how long two nodes may know two lives of one registry: each hears
	// by itself that the registry was adopted.
	adoptedWithin = 30 * time.Second
)

// WithRegistryIdentity lets the agents of a cluster find out that two of them have
// different registries: is gives the identity of this node's, as far as it is known now.
func WithRegistryIdentity(is func() fabric.RegistryIdentity) Option {
	return func(a *Agent) { a.registryIdentity = is }
}

// registries has the registries of other nodes that are not this node's. It is safe for
// concurrent use.
type registries struct {
	mu    sync.Mutex
	other map[string]otherRegistry // by node
}

// otherRegistry is the registry of another node.
type otherRegistry struct {
	is          fabric.RegistryIdentity
	since, last time.Time // when it was first heard that it is another one, and last
}

// another reports whether two nodes have different registries.
func another(mine, theirs fabric.RegistryIdentity) bool {
	return mine.Name != theirs.Name || mine.ID != "" && theirs.ID != "" && mine.ID != theirs.ID
}

// heard notes which registry a node has.
func (r *registries) heard(node string, mine, theirs fabric.RegistryIdentity, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	was, known := r.other[node]
	switch {
	case !another(mine, theirs):
		delete(r.other, node)
		return
	case !known:
		was.since = now
	}
	if r.other == nil {
		r.other = map[string]otherRegistry{}
	}
	r.other[node] = otherRegistry{theirs, was.since, now}
}

// problems says for people which nodes have another registry than this one.
func (r *registries) problems(self string, mine fabric.RegistryIdentity, now time.Time) (texts []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, node := range sortedKeys(r.other) {
		theirs := r.other[node]
		switch {
		case !another(mine, theirs.is) || now.Sub(theirs.last) > registryMemory:
			delete(r.other, node)
		case mine.Name != theirs.is.Name || theirs.last.Sub(theirs.since) >= adoptedWithin:
			texts = append(texts, fmt.Sprintf("registry: node %s has another one than %s, and each may give away what the other gave: on %[1]s it is %[3]s, on %[2]s %[4]s; write the same registry into the cluster file of both, and restart the agent where that changes",
				node, self, theirs.is, mine))
		}
	}
	return texts
}

// otherRegistries says for people which nodes have another registry than this one.
func (a *Agent) otherRegistries() []string {
	if a.registryIdentity == nil {
		return nil
	}
	return a.registries.problems(a.node, a.registryIdentity(), time.Now())
}

// compareRegistry asks a node which registry it has. It reports whether the node answered:
// others report why one does not.
func (a *Agent) compareRegistry(ctx context.Context, node string) bool {
	if a.registryIdentity == nil {
		return true
	}
	mine := a.registryIdentity()
	answer, err := a.nodes.Ask(ctx, node, fabric.Notice{Kind: fabric.Comparing, Registry: &mine})
	if err == nil {
		a.registryOf(node, answer.Registry)
	}
	return err == nil || errors.Is(err, errors.ErrUnsupported) // an older agent
}

// compares answers a node that says which registry it has.
func (a *Agent) compares(node string, n fabric.Notice) (answer fabric.Answer) {
	if a.registryIdentity != nil {
		a.registryOf(node, n.Registry)
		mine := a.registryIdentity()
		answer.Registry = &mine
	}
	return answer
}

// registryOf notes which registry a node has; nil: it does not say.
func (a *Agent) registryOf(node string, theirs *fabric.RegistryIdentity) {
	if theirs != nil && theirs.Validate() == nil {
		a.registries.heard(node, a.registryIdentity(), *theirs, time.Now())
	}
}
