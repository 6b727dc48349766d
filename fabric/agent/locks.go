package agent

import (
	"sync"
)

// keyedLocks serialises work by name. It keeps nothing about names that
// nobody holds or waits for. The zero value is ready.
type keyedLocks struct {
	mu    sync.Mutex
	locks map[string]*keyedLock
}

type keyedLock struct {
	held  chan struct{} // has one while it is held
	users int
}

// lock waits until name is free, takes it, and gives the function that frees it.
func (k *keyedLocks) lock(name string) (unlock func()) {
	k.mu.Lock()
	l := k.enter(name)
	k.mu.Unlock()
	l.held <- struct{}{}
	return k.leaver(name, l)
}

// tryLock is lock where name is free at once; ok is false where it is not.
func (k *keyedLocks) tryLock(name string) (unlock func(), ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.locks[name] != nil {
		return nil, false
	}
	l := k.enter(name)
	l.held <- struct{}{}
	return k.leaver(name, l), true
}

// enter counts a user of name. k.mu is held.
func (k *keyedLocks) enter(name string) *keyedLock {
	if k.locks == nil {
		k.locks = map[string]*keyedLock{}
	}
	l := k.locks[name]
	if l == nil {
		l = &keyedLock{held: make(chan struct{}, 1)}
		k.locks[name] = l
	}
	l.users++
	return l
}

func (k *keyedLocks) leaver(name string, l *keyedLock) func() {
	return func() {
		<-l.held
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.locks, name)
		}
	}
}
