package fake

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// Source is a [fabric.Source] whose guests a test controls.
type Source struct {
	Trouble
	name    string
	changes chan fabric.Change

	restarts bool

	mu     sync.Mutex
	guests map[string]fabric.Desired
	asleep map[string]fabric.VM // by the hypervisor's name for them
	data   map[fabric.Identity][]byte
}

var _ fabric.Source = (*Source)(nil)

// NewSource makes a source without guests.
func NewSource(name string) *Source {
	return &Source{name: name, changes: make(chan fabric.Change, 256), guests: map[string]fabric.Desired{}, asleep: map[string]fabric.VM{}, data: map[fabric.Identity][]byte{}}
}

// NewMovesByRestart makes a source whose guests move by a new start on the other
// node.
func NewMovesByRestart(name string) *Source {
	s := NewSource(name)
	s.restarts = true
	return s
}

// MovesByRestart implements [fabric.Source].
func (s *Source) MovesByRestart() bool { return s.restarts }

// Status implements [fabric.Source].
func (s *Source) Status() fabric.SourceStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fabric.SourceStatus{Name: s.name, Connected: true, Guests: len(s.guests)}
}

// Name implements [fabric.Source].
func (s *Source) Name() string { return s.name }

// Guests implements [fabric.Source]. It sorts the guests by name; their Since is
// the time of the call.
func (s *Source) Guests(ctx context.Context) ([]fabric.Desired, error) {
	asOf := time.Now()
	if err := s.before(ctx, "list guests"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var guests []fabric.Desired
	for _, name := range slices.Sorted(maps.Keys(s.guests)) {
		d := s.guests[name]
		d.Since = asOf
		guests = append(guests, d)
	}
	return guests, nil
}

// Changes implements [fabric.Source].
func (s *Source) Changes() <-chan fabric.Change { return s.changes }

// Set brings a guest to a state and emits the change. The guest's origin is the
// source.
func (s *Source) Set(vm fabric.VM, state fabric.State) {
	s.tell(fabric.Change{Guest: s.set(vm, state)})
}

// Leave emits that a live guest stops because it goes on on another node.
func (s *Source) Leave(vm fabric.VM) {
	d := s.set(vm, fabric.Live)
	d.Leaving = true
	s.mu.Lock()
	s.guests[vm.Name] = d
	s.mu.Unlock()
	s.tell(fabric.Change{Guest: d})
}

// SetQuietly is Set with the event lost.
func (s *Source) SetQuietly(vm fabric.VM, state fabric.State) { s.set(vm, state) }

// Say lists a guest as d describes it, with its [fabric.Desired.Run] and with or
// without NICs. It emits the change if d has a state. The guest's origin is the
// source.
func (s *Source) Say(d fabric.Desired) {
	s.mu.Lock()
	d.VM.Origin, d.Since = s.name, time.Now()
	s.guests[d.VM.Name] = d
	s.mu.Unlock()
	if d.State != 0 {
		s.tell(fabric.Change{Guest: d})
	}
}

// Describe implements [fabric.Source]. It knows the guests that run, and those of
// Know.
func (s *Source) Describe(ctx context.Context, name string) (fabric.VM, bool, error) {
	if err := s.before(ctx, "look "+name); err != nil {
		return fabric.VM{}, false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if d, runs := s.guests[name]; runs {
		return d.VM, true, nil
	}
	vm, known := s.asleep[name]
	return vm, known, nil
}

// UserData implements [fabric.Source].
func (s *Source) UserData(ctx context.Context, vm fabric.VM) ([]byte, error) {
	if err := s.before(ctx, "user data of "+vm.Name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data[vm.Identity()], nil
}

// SetUserData sets the user data of a guest.
func (s *Source) SetUserData(guest fabric.Identity, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.data[guest] = data
}

// Know adds a guest that does not run, and that the hypervisor knows by a name.
func (s *Source) Know(name string, vm fabric.VM) {
	s.mu.Lock()
	defer s.mu.Unlock()
	vm.Origin = s.name
	s.asleep[name] = vm
}

// Forget makes the hypervisor forget a guest, as when it is undefined, and emits the
// change.
func (s *Source) Forget(vm fabric.VM) {
	s.ForgetQuietly(vm.Name)
	s.tell(fabric.Change{Guest: s.set(vm, fabric.Absent), Gone: true})
}

// ForgetQuietly is Forget with the event lost.
func (s *Source) ForgetQuietly(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.asleep, name)
	delete(s.guests, name)
}

// Lose emits that changes may have been lost.
func (s *Source) Lose() { s.tell(fabric.Change{Lost: true}) }

func (s *Source) set(vm fabric.VM, state fabric.State) fabric.Desired {
	s.mu.Lock()
	defer s.mu.Unlock()
	vm.Origin = s.name
	d := fabric.Desired{VM: vm, State: state, Since: time.Now()}
	if state == fabric.Absent {
		delete(s.guests, vm.Name)
	} else {
		s.guests[vm.Name] = d
	}
	return d
}

func (s *Source) tell(c fabric.Change) {
	select {
	case s.changes <- c:
	default: // nobody listens: the event is lost
	}
}
