package fake

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// Source is a [fabric.Source] whose guests do what a test says.
type Source struct {
	Trouble
	name    string
	changes chan fabric.Change

	mu     sync.Mutex
	guests map[string]fabric.Desired
}

var _ fabric.Source = (*Source)(nil)

// NewSource makes a source without guests.
func NewSource(name string) *Source {
	return &Source{name: name, changes: make(chan fabric.Change, 256), guests: map[string]fabric.Desired{}}
}

// Name implements [fabric.Source].
func (s *Source) Name() string { return s.name }

// Guests implements [fabric.Source]; guests come by name, as of now.
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

// Set brings a guest to a state and tells it. The guest's origin is the source.
func (s *Source) Set(vm fabric.VM, state fabric.State) {
	s.tell(fabric.Change{Guest: s.set(vm, state)})
}

// SetQuietly is Set with the event lost.
func (s *Source) SetQuietly(vm fabric.VM, state fabric.State) { s.set(vm, state) }

// Lose tells that changes may have been missed.
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
