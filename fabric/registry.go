package fabric

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Registry keeps which guest has which address of the pools, whether the guest runs
// or not, and gives addresses from the pools. A guest that runs does not depend on
// it: the agent asks only before a guest starts whose addresses it does not know, and
// when a guest is gone for good.
//
// After an error nothing has changed, or the same call finds out what has. All
// methods are safe for concurrent use, and end with their context.
type Registry interface {
	// Allocate gives a guest everything that it asks for, or nothing, in the order of
	// the wants. Asked again, it gives the same. What is inside of a prefix that the guest
	// gets, too, is not listed for itself. An error that is an [*AllocationError] refuses
	// the request.
	Allocate(ctx context.Context, a AllocationRequest) ([]Allocation, error)
	// Release ends the allocations of a guest, or the allocation of a prefix. The
	// addresses are quarantined for the time of their pool. It returns what it
	// released; nothing to release is success.
	Release(ctx context.Context, r ReleaseRequest) ([]Allocation, error)
	// Acquire makes a node the owner of a guest that has allocations, and returns the
	// epoch of that ownership: it is higher than that of each owner before. It is a
	// compare-and-swap: an error that is an [*OwnerError] names the owner if that is
	// not the one that the caller knows; another [ErrRefused], that the guest has no
	// allocations. Asked again by the same node, it returns the same. No clock takes part.
	Acquire(ctx context.Context, a AcquireRequest) (Owner, error)
	// Allocations lists, in the order of their prefixes, the allocations, reservations
	// and quarantined addresses that a filter selects. What one guest has, and who has
	// one address, costs the same whatever the number of addresses in the cluster. Beside
	// an error it can list what was known before.
	Allocations(ctx context.Context, f AllocationFilter) ([]Allocation, error)
	// Shared reports whether all nodes of the cluster have this registry. The agents
	// ask each other what a guest has if they do not.
	Shared() bool

	Diagnoser
}

// RegistryIdentity says which registry a node has: nodes that have two would give one
// address to two guests.
type RegistryIdentity struct {
	Name string `json:"name"`         // by the cluster file, for people
	ID   string `json:"id,omitempty"` // that of its own; empty: it has none, or the node does not know it yet
}

// Validate reports why the identity cannot be shown; nil, and a nil identity: it can.
func (r *RegistryIdentity) Validate() error {
	if r == nil {
		return nil
	}
	if err := errors.Join(plain(r.Name, maxWord), plain(r.ID, maxWord)); err != nil {
		return fmt.Errorf("the identity of its registry: %w", err)
	}
	return nil
}

func (r RegistryIdentity) String() string {
	if r.ID == "" {
		return r.Name
	}
	return fmt.Sprintf("%s (%.8s)", r.Name, r.ID)
}

// AutoPool is the name of no pool. In place of one it asks for an address from the
// first pool of each family that gives addresses, serves the guest's node and is not full.
const AutoPool = "auto"

// ValidatePool reports why s cannot be the name of a pool that a guest asks for; nil: it
// can, or is AutoPool.
func ValidatePool(s string) error {
	if !plainName(s) {
		return fmt.Errorf("%.60q is not the name of a pool; write one such as public4, or %s", s, AutoPool)
	}
	return nil
}

// AllocationRequest is what [Registry.Allocate] is asked for.
type AllocationRequest struct {
	Guest Identity // empty: the prefixes are reserved for no guest
	VM    string   // the guest's name
	Node  string   // where it is about to run
	Wants []Want
	// Starts says that the guest starts on Node now: that is its owner from now on if it
	// has none yet. Otherwise [Registry.Acquire] changes the owner.
	Starts bool
	// From is the guest that has the prefixes of the wants, and from which Guest takes
	// them over. Guest then keeps what it has besides, except what answered the same
	// wants. Empty: what Guest has and does not ask for, it gives back.
	From Identity
	// FromEpoch is the epoch of the owner of From, as the caller knows it: if a node has
	// acquired that guest since, it may run with the prefixes, and keeps them.
	FromEpoch uint64
}

// Want is one address, or prefix, of an [AllocationRequest]. Guest, NIC and N are the
// identity of the request: whoever repeats it gets the same.
type Want struct {
	NIC int
	N   int // counts the wants of one NIC
	// Pool is the pool to take an address or a prefix from, or AutoPool. Empty: Prefix
	// says which, by the guest's description, or to reserve it.
	Pool string
	V6   bool // with AutoPool: an IPv6 address
	// Prefix, with a Pool, is what the guest has already: it runs with it.
	Prefix netip.Prefix
	// NoAddress, with a Pool and a Prefix, says that the guest has no address in it.
	NoAddress bool
	Note      string // for people
}

// Answers reports whether an allocation of the guest is the one that a want got.
func (w Want) Answers(a Allocation) bool {
	if a.NIC != w.NIC || a.Dynamic != (w.Pool != "") {
		return false
	}
	if w.Prefix.IsValid() {
		return a.Prefix == w.Prefix
	}
	return a.N == w.N && (a.Pool == w.Pool || w.Pool == AutoPool && a.Prefix.Addr().Is6() == w.V6 && !a.NoAddress)
}

// AllocationState says for whom an address is kept.
type AllocationState string

// The states of an allocation.
const (
	Allocated   AllocationState = "allocated"   // to a guest
	Reserved    AllocationState = "reserved"    // by the operator
	Quarantined AllocationState = "quarantined" // a guest gave it back
)

// Allocation is what a [Registry] knows of one address or prefix.
type Allocation struct {
	Prefix netip.Prefix    `json:"prefix"`
	Pool   string          `json:"pool"`
	State  AllocationState `json:"state"`
	// The guest that has the address, or had it before the quarantine.
	Guest   Identity `json:"guest,omitempty"`
	VM      string   `json:"vm,omitempty"`
	NIC     int      `json:"nic"`
	N       int      `json:"n"`
	Dynamic bool     `json:"dynamic,omitempty"` // the registry chose the address; otherwise the guest's description names it
	// NoAddress: the guest got the prefix without an address in it ([Pool.NoAddress]).
	NoAddress bool      `json:"no_address,omitempty"`
	Node      string    `json:"node,omitempty"`  // the guest's owner; before it has one, where it was when it got the address
	Epoch     uint64    `json:"epoch,omitempty"` // of the owner; zero: the guest has none yet
	Note      string    `json:"note,omitempty"`
	Reserved  bool      `json:"reserved,omitempty"` // it was reserved, and is again when the guest gives it back
	Since     time.Time `json:"since"`
	Until     time.Time `json:"until,omitzero"` // the end of the quarantine
	// Flaw says, with the way out, why the record cannot be read: nobody knows whose the
	// address is, no guest gets it, and only the operator ends that. It is never recorded.
	Flaw string `json:"flaw,omitempty"`
	// Waits says, on the node where the guest was, why what a guest has that is gone is not
	// given back yet. A registry does not keep it.
	Waits string `json:"waits,omitempty"`
	// New, in the answer of [Registry.Allocate], says that the guest did not have the
	// address before, and that it is listed now. A registry does not keep it.
	New bool `json:"-"`
}

// Address gives the address that the guest has on its NIC: that of the allocation, or
// the first one behind the base address of a prefix. The zero Addr: it has none.
func (a Allocation) Address() netip.Addr {
	switch {
	case a.Prefix.IsSingleIP():
		return a.Prefix.Addr()
	case a.NoAddress:
		return netip.Addr{}
	}
	return a.Prefix.Masked().Addr().Next()
}

// AllocationFilter selects allocations by all of its fields that are set. The zero value
// selects all.
type AllocationFilter struct {
	Guest  Identity     // what this guest has, without what it gave back
	Prefix netip.Prefix // what has an address in common with this prefix
}

// Selects reports whether the filter selects an allocation.
func (f AllocationFilter) Selects(a Allocation) bool {
	return (f.Guest == "" || a.Guest == f.Guest && a.State == Allocated) && (!f.Prefix.IsValid() || a.Prefix.Overlaps(f.Prefix))
}

// PoolUsage says how much of a pool is used: how many addresses, or prefixes if the pool
// gives these. The numbers do not count what the pool excludes. Those that can be larger
// than any integer type are in decimal digits.
type PoolUsage struct {
	Pool        string         `json:"pool"`
	Prefix      netip.Prefix   `json:"prefix,omitzero"` // as in the cluster file
	Prefixes    []netip.Prefix `json:"prefixes"`        // all that together are the pool
	Extent      string         `json:"extent"`          // the same for people
	PerGuest    int            `json:"per_guest,omitempty"`
	NoAddress   bool           `json:"no_address,omitempty"` // the guest gets no address in its prefix
	Nodes       []string       `json:"nodes,omitempty"`
	Size        json.Number    `json:"size"` // what guests may have
	Allocated   int            `json:"allocated"`
	Reserved    json.Number    `json:"reserved"` // by the cluster file or the operator, and not allocated
	Quarantined int            `json:"quarantined"`
	Free        json.Number    `json:"free"`
	NextFree    time.Time      `json:"next_free,omitzero"` // when the first quarantine ends
}

// Addresses is what a node's registry knows.
type Addresses struct {
	Pools       []PoolUsage  `json:"pools"`
	Allocations []Allocation `json:"allocations"`
}

// Adoption is what a node says of a registry that was restored from a backup, or
// replaced, before or after the operator has adopted it.
type Adoption struct {
	Doubt       string       `json:"doubt,omitempty"` // why no node trusts it; empty: they do
	Incarnation int64        `json:"incarnation"`     // that it has; zero: none
	Next        int64        `json:"next"`            // that begins when it is adopted
	Addresses   int          `json:"addresses"`       // that it knows of
	Allocations []Allocation `json:"-"`
	// Differences says what this node's guests have that the registry does not know, or
	// that it gave others.
	Differences []string `json:"differences"`
	Adopted     bool     `json:"adopted"`
}

// ReleaseRequest is what [Registry.Release] is to end: all allocations of a guest, the
// allocation or reservation of Prefix, or, if both are given, the allocation of Prefix as
// long as it is the guest's.
type ReleaseRequest struct {
	Guest  Identity
	Prefix netip.Prefix
	// Now releases without a quarantine.
	Now bool
}

// RegistryEpoch is the lowest epoch that a [Registry] of several nodes gives. An agent
// without one takes its epochs from a clock, in milliseconds: those are lower until the
// year 2527.
const RegistryEpoch = 1 << 44

// AcquireRequest is what [Registry.Acquire] is asked for.
type AcquireRequest struct {
	Guest Identity
	VM    string // the guest's name
	Node  string // the new owner
	Over  uint64 // the epoch of the owner before, as the caller knows it; zero: there was none
	// Least is the lowest epoch that the caller can use: the one that the guest runs
	// with already, or one above what other nodes said. Zero: any.
	Least uint64
}

// Owner is the node that a guest runs on, or ran on last.
type Owner struct {
	Node  string `json:"node"`
	Epoch uint64 `json:"epoch"` // of two owners of a guest, the later one has the higher
}

// Owner gives the owner of the guest that has the address.
func (a Allocation) Owner() Owner { return Owner{a.Node, a.Epoch} }

// OwnerError says that the owner of a guest is not the one that [Registry.Acquire] was
// to end. It is an [ErrRefused].
type OwnerError struct {
	VM    string
	Owner Owner
}

func (e *OwnerError) Error() string {
	return fmt.Sprintf("node %s acquired guest %s in the meantime (epoch %d); see whether it runs there, then try again", e.Owner.Node, e.VM, e.Owner.Epoch)
}

// Is reports whether target is ErrRefused.
func (e *OwnerError) Is(target error) bool { return target == ErrRefused }

// AllocationError says why a [Registry] does not give an address. It is an
// [ErrRefused].
type AllocationError struct {
	Reason Reason
	NIC    int
	Pool   string
	Prefix netip.Prefix // the address that was asked for, if one was
	Holder Allocation   // with [AddressHeld]
	Text   string       // in words
}

func (e *AllocationError) Error() string { return fmt.Sprintf("NIC %d: %s", e.NIC, e.Text) }

// Is reports whether target is ErrRefused.
func (e *AllocationError) Is(target error) bool { return target == ErrRefused }
