package agent

// task is the right to work on one guest; one goroutine at a time has it: see
// [Agent.begin]. Every function that changes a guest, its ports or its routes is a
// method of task.
type task struct {
	*Agent
	vm string
}

// begin waits until no other goroutine works on a guest; end lets the next one begin.
func (a *Agent) begin(vm string) (t *task, end func()) {
	end, _ = a.turns.enter(vm, false)
	return &task{a, vm}, end
}

// tryBegin is begin without waiting; ok is false if another goroutine works on the
// guest.
func (a *Agent) tryBegin(vm string) (t *task, end func(), ok bool) {
	end, ok = a.turns.enter(vm, true)
	return &task{a, vm}, end, ok
}
