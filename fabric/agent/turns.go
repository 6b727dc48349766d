package agent

import "sync"

// turns serialises work by name. It keeps no entry for a name without work. The zero
// value is ready.
type turns struct {
	mu     sync.Mutex
	byName map[string]*turn
}

// wholeNode is the name for work on the node as a whole; no guest has this name.
const wholeNode = ""

type turn struct {
	taken chan struct{} // full while a goroutine works
	users int           // goroutines that work or wait
}

// lock waits until no goroutine works at name, and gives the function that ends the
// turn.
func (ts *turns) lock(name string) (unlock func()) {
	t, _ := ts.join(name, false)
	t.taken <- struct{}{}
	return func() { ts.leave(name, t) }
}

// tryLock is lock without waiting; ok is false if a goroutine works or waits at name.
func (ts *turns) tryLock(name string) (unlock func(), ok bool) {
	t, ok := ts.join(name, true)
	if !ok {
		return nil, false
	}
	t.taken <- struct{}{}
	return func() { ts.leave(name, t) }, true
}

// join counts a user of name; with first, only if there is no other.
func (ts *turns) join(name string, first bool) (_ *turn, ok bool) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.byName[name]
	switch {
	case t != nil && first:
		return nil, false
	case t == nil:
		t = &turn{taken: make(chan struct{}, 1)}
		if ts.byName == nil {
			ts.byName = map[string]*turn{}
		}
		ts.byName[name] = t
	}
	t.users++
	return t, true
}

func (ts *turns) leave(name string, t *turn) {
	<-t.taken
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t.users--; t.users == 0 {
		delete(ts.byName, name)
	}
}
