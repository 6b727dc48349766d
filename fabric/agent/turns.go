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

// enter waits until no goroutine works at name, and gives the function that ends the
// turn. With ifFree it does not wait; ok is then false if a goroutine works or waits
// at name.
func (ts *turns) enter(name string, ifFree bool) (leave func(), ok bool) {
	ts.mu.Lock()
	t := ts.byName[name]
	if t != nil && ifFree {
		ts.mu.Unlock()
		return nil, false
	}
	if t == nil {
		t = &turn{taken: make(chan struct{}, 1)}
		if ts.byName == nil {
			ts.byName = map[string]*turn{}
		}
		ts.byName[name] = t
	}
	t.users++
	ts.mu.Unlock()
	t.taken <- struct{}{}
	return func() { ts.leave(name, t) }, true
}

func (ts *turns) leave(name string, t *turn) {
	<-t.taken
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t.users--; t.users == 0 {
		delete(ts.byName, name)
	}
}
