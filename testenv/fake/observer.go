package fake

import (
	"context"
	"slices"
	"sync"

	"github.com/vmfabric/vmfabric/fabric"
)

// Observer is a [fabric.Observer] that remembers its events. Its effects are named
// "observe" and the kind of event.
type Observer struct {
	Trouble

	mu     sync.Mutex
	events []fabric.Event
}

var _ fabric.Observer = (*Observer)(nil)

// NewObserver makes an observer without events.
func NewObserver() *Observer { return &Observer{} }

// Observe implements [fabric.Observer].
func (o *Observer) Observe(ctx context.Context, e fabric.Event) error {
	if err := o.before(ctx, "observe "+string(e.Kind)); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events = append(o.events, e)
	return nil
}

// Events returns the events so far, in order.
func (o *Observer) Events() []fabric.Event {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.events)
}
