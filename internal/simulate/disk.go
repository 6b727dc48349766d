package simulate

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
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
	d.node.tries(g)
	if d.node.broken() {
		return errDisk
	}
	if err := d.Store.Put(ctx, g); err != nil {
		return err
	}
	d.node.wrote(g.VM.Name, change{want: g})
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
	d.node.wrote(vm, change{gone: true})
	return nil
}

// tries notes the state that the agent wants to store, also if the disk is full.
func (n *node) tries(d fabric.Desired) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tried[d.VM.Name] = d
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
func (n *node) wrote(vm string, c change) {
	c.at = time.Now()
	safe := c.at.Add(-flushed * n.slowness())
	n.mu.Lock()
	defer n.mu.Unlock()
	all := append(n.unsafe[vm], c)
	for len(all) > 1 && all[1].at.Before(safe) {
		all = all[1:]
	}
	n.unsafe[vm] = all
}

// tear undoes changes that were not flushed, all or some of them.
func (n *node) tear() {
	safe := time.Now().Add(-flushed * n.slowness())
	n.mu.Lock()
	defer n.mu.Unlock()
	rnd := rand.New(rand.NewPCG(uint64(time.Since(n.world.began)), n.world.seed))
	for _, vm := range slices.Sorted(maps.Keys(n.unsafe)) {
		all := n.unsafe[vm]
		first := 0
		for first+1 < len(all) && all[first+1].at.Before(safe) {
			first++
		}
		c := all[first+rnd.IntN(len(all)-first)]
		if first == 0 && !all[0].at.Before(safe) && rnd.IntN(2) == 0 { // not even the first one was flushed
			c.gone = true
		}
		n.unsafe[vm] = []change{c}
		if c.gone {
			_ = n.store.Delete(context.Background(), vm)
		} else {
			_ = n.store.Put(context.Background(), c.want)
		}
	}
}

var errDisk = errors.New("no space left on device")
