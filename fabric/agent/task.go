package agent

// task is work on one guest, which one goroutine at a time has: see [Agent.begin].
// What changes a guest, or what the node has of it, is a method of it.
type task struct {
	*Agent
	vm string
}

// begin waits until nobody else is at work on a guest; end lets the next one begin.
func (a *Agent) begin(vm string) (t *task, end func()) {
	end = a.turns.lock(vm)
	return &task{a, vm}, end
}

// tryBegin is begin where nobody is at work on the guest; ok is false where somebody is.
func (a *Agent) tryBegin(vm string) (t *task, end func(), ok bool) {
	end, ok = a.turns.tryLock(vm)
	return &task{a, vm}, end, ok
}
