package simulate

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// disk is the store of an agent, until the agent is killed.
type disk struct {
	*fake.Store
	*mortal
}

func (d disk) Put(ctx context.Context, g fabric.Desired) error {
	if err := d.take(); err != nil {
		return err
	}
	d.node.storage.tries(g)
	if d.node.broken() {
		return errDisk
	}
	if err := d.Store.Put(ctx, g); err != nil {
		return err
	}
	d.node.storage.wrote(g.VM.Name, change{want: g}, d.node.slowness())
	return nil
}

func (d disk) Delete(ctx context.Context, vm string) error {
	if err := d.take(); err != nil {
		return err
	}
	if d.node.broken() {
		return errDisk
	}
	if err := d.Store.Delete(ctx, vm); err != nil {
		return err
	}
	d.node.storage.wrote(vm, change{gone: true}, d.node.slowness())
	return nil
}

// storage is a node's disk with the state of its guests. It is safe for concurrent
// use.
type storage struct {
	mu     sync.Mutex
	store  *fake.Store
	unsafe map[string][]change       // changes of each guest's state: the last one that is safe on the disk, and those after it
	tried  map[string]fabric.Desired // the state that the agent last wanted to store
}

func newStorage() *storage {
	return &storage{store: fake.NewStore(nil), unsafe: map[string][]change{}, tried: map[string]fabric.Desired{}}
}

// current returns what is on the disk.
func (s *storage) current() *fake.Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.store
}

// begin notes that another agent begins to use the disk.
func (s *storage) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tried = map[string]fabric.Desired{}
}

// lose empties the disk.
func (s *storage) lose() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store, s.unsafe = fake.NewStore(nil), map[string][]change{}
}

// tries notes the state that the agent wants to store, also if the disk is full.
func (s *storage) tries(d fabric.Desired) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tried[d.VM.Name] = d
}

// lastTried returns the state of a guest that the agent last wanted to store.
func (s *storage) lastTried(vm string) (fabric.Desired, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, known := s.tried[vm]
	return d, known
}

// change is a change of a guest's state on the disk.
type change struct {
	want fabric.Desired
	gone bool
	at   time.Time
}

// flushed is the longest time until a change is safe on the disk.
const flushed = 50 * time.Millisecond

// wrote notes a change. A loss of power within flushed may undo it.
func (s *storage) wrote(vm string, c change, slowness time.Duration) {
	c.at = time.Now()
	safe := c.at.Add(-flushed * slowness)
	s.mu.Lock()
	defer s.mu.Unlock()
	all := append(s.unsafe[vm], c)
	for len(all) > 1 && all[1].at.Before(safe) {
		all = all[1:]
	}
	s.unsafe[vm] = all
}

// tear undoes changes that were not flushed, all or some of them.
func (s *storage) tear(slowness time.Duration, w setting) {
	safe := time.Now().Add(-flushed * slowness)
	s.mu.Lock()
	defer s.mu.Unlock()
	rnd := rand.New(rand.NewPCG(uint64(time.Since(w.began)), w.seed))
	for _, vm := range slices.Sorted(maps.Keys(s.unsafe)) {
		all := s.unsafe[vm]
		first := 0
		for first+1 < len(all) && all[first+1].at.Before(safe) {
			first++
		}
		c := all[first+rnd.IntN(len(all)-first)]
		if first == 0 && !all[0].at.Before(safe) && rnd.IntN(2) == 0 { // not even the first one was flushed
			c.gone = true
		}
		s.unsafe[vm] = []change{c}
		if c.gone {
			_ = s.store.Delete(context.Background(), vm)
		} else {
			_ = s.store.Put(context.Background(), c.want)
		}
	}
}

var errDisk = errors.New("no space left on device")
