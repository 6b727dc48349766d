package fake

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// Store is a [fabric.Store] in memory. The same Store serves the agent before
// and the agent after a restart.
type Store struct {
	Trouble
	journal *Journal

	mu         sync.Mutex
	guests     map[string]fabric.Desired
	damaged    map[string]error
	drained    time.Time
	moves      []fabric.Move
	gone       []fabric.VM
	blackholes []fabric.Blackhole
	fresh      bool
}

var _ fabric.Store = (*Store)(nil)

// NewStore makes a store with these guests in it. It writes to j.
func NewStore(j *Journal, guests ...fabric.Desired) *Store {
	s := &Store{journal: j, guests: map[string]fabric.Desired{}, damaged: map[string]error{}}
	for _, d := range guests {
		s.guests[d.VM.Name] = d
	}
	return s
}

// All implements [fabric.Store]. It sorts the guests by name.
func (s *Store) All(ctx context.Context) ([]fabric.Desired, error) {
	if err := s.before(ctx, "load"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var guests []fabric.Desired
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(s.guests)) {
		if err := s.damaged[name]; err != nil {
			errs = append(errs, fmt.Errorf("state of %s: %w", name, err))
			continue
		}
		guests = append(guests, s.guests[name])
	}
	return guests, errors.Join(errs...)
}

// Fresh implements [fabric.Store]. A new Store counts as one that kept state before.
func (s *Store) Fresh() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fresh
}

// Lose makes the store lose all that it kept. It is fresh until a guest is put or
// deleted.
func (s *Store) Lose() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.guests, s.damaged = map[string]fabric.Desired{}, map[string]error{}
	s.drained, s.moves, s.gone, s.fresh = time.Time{}, nil, nil, true
}

// Put implements [fabric.Store].
func (s *Store) Put(ctx context.Context, d fabric.Desired) error {
	name := d.VM.Name
	if name == "" || d.State < fabric.Absent || d.State > fabric.Live {
		return fmt.Errorf("state of %s: a guest has a name and a state", cmp.Or(name, "a guest"))
	}
	effect := fmt.Sprintf("store %s %v", name, d.State)
	if err := s.before(ctx, effect); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fresh = false
	if have, there := s.guests[name]; !there || s.damaged[name] != nil || !reflect.DeepEqual(have, d) {
		s.guests[name] = d
		delete(s.damaged, name)
		s.journal.add(effect)
	}
	return nil
}

// Delete implements [fabric.Store].
func (s *Store) Delete(ctx context.Context, vm string) error {
	effect := "forget " + vm
	if err := s.before(ctx, effect); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fresh = false
	if _, there := s.guests[vm]; there {
		delete(s.guests, vm)
		delete(s.damaged, vm)
		s.journal.add(effect)
	}
	return nil
}

// Drained implements [fabric.Store].
func (s *Store) Drained(ctx context.Context) (time.Time, error) {
	if err := s.before(ctx, "load drained"); err != nil {
		return time.Time{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drained, nil
}

// SetDrained implements [fabric.Store].
func (s *Store) SetDrained(ctx context.Context, since time.Time) error {
	effect := "store drained"
	if since.IsZero() {
		effect = "forget drained"
	}
	if err := s.before(ctx, effect); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.drained.Equal(since) {
		s.drained = since
		s.journal.add(effect)
	}
	return nil
}

// KeptMoves implements [fabric.Store].
func (s *Store) KeptMoves(ctx context.Context) ([]fabric.Move, error) {
	if err := s.before(ctx, "load moves"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.moves), nil
}

// KeepMoves implements [fabric.Store]. It writes nothing into the journal.
func (s *Store) KeepMoves(ctx context.Context, moves []fabric.Move) error {
	if err := s.before(ctx, "store moves"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moves = slices.Clone(moves)
	return nil
}

// KeptGone implements [fabric.Store].
func (s *Store) KeptGone(ctx context.Context) ([]fabric.VM, error) {
	if err := s.before(ctx, "load gone"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.gone), nil
}

// KeepGone implements [fabric.Store]. It writes nothing into the journal.
func (s *Store) KeepGone(ctx context.Context, guests []fabric.VM) error {
	if err := s.before(ctx, "store gone"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = slices.Clone(guests)
	return nil
}

// KeptBlackholes implements [fabric.Store].
func (s *Store) KeptBlackholes(ctx context.Context) ([]fabric.Blackhole, error) {
	if err := s.before(ctx, "load blackholes"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.blackholes), nil
}

// KeepBlackholes implements [fabric.Store]. It writes nothing into the journal.
func (s *Store) KeepBlackholes(ctx context.Context, all []fabric.Blackhole) error {
	if err := s.before(ctx, "store blackholes"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blackholes = slices.Clone(all)
	return nil
}

// Damage makes a guest's state unreadable, for the reason err, until it is put
// or deleted.
func (s *Store) Damage(vm string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.damaged[vm] = err
}
