package fake

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/vmfabric/vmfabric/fabric"
)

// Resolver is a [fabric.Resolver] with an inventory in memory. Its effects are
// named "resolve" and the VM.
type Resolver struct {
	Trouble

	mu     sync.Mutex
	guests map[string][]fabric.NIC
}

var _ fabric.Resolver = (*Resolver)(nil)

// NewResolver makes a resolver that knows no guest.
func NewResolver() *Resolver { return &Resolver{guests: map[string][]fabric.NIC{}} }

// Know puts a guest into the inventory, or replaces its NICs there.
func (r *Resolver) Know(vm string, nics ...fabric.NIC) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.guests[vm] = nics
}

// Resolve implements [fabric.Resolver].
func (r *Resolver) Resolve(ctx context.Context, q fabric.Query) ([]fabric.NIC, error) {
	if err := r.before(ctx, "resolve "+q.VM); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	nics, known := r.guests[q.VM]
	if !known {
		return nil, fmt.Errorf("VM %q is not in the inventory; add it", q.VM)
	}
	return slices.Clone(nics), nil
}
