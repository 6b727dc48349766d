package fabric

import (
	"errors"
	"fmt"
)

// Errors that callers branch on; errors.Is finds them in what the package and
// its backends return.
var (
	// ErrRefused: the request breaks a rule (an address outside the pools, or
	// held by another guest, ...). The same request cannot succeed later
	// unless something else changes.
	ErrRefused = errors.New("refused")
	// ErrForeign: a link of the port's name exists and does not carry our mark.
	ErrForeign = errors.New("not ours")
)

// RefusedError says why a node does not take a guest. It is an [ErrRefused].
type RefusedError struct {
	VM     string
	Reason Reason
	Err    error // in words
}

func (e *RefusedError) Error() string { return fmt.Sprintf("guest %s refused: %v", e.VM, e.Err) }

// Unwrap gives the reason in words.
func (e *RefusedError) Unwrap() error { return e.Err }

// Is reports whether target is ErrRefused.
func (e *RefusedError) Is(target error) bool { return target == ErrRefused }

// Reason classifies a problem for the program that runs the agent: that program
// knows the commands and files of the node that solve it.
type Reason string

// The reasons. For all but RuleBroken the fabric itself does not know the way out.
const (
	RuleBroken     Reason = "rule broken"     // the text of the error has the way out
	NodeDrained    Reason = "node drained"    // the node is being drained, so it refuses the guest
	DrainUnderWay  Reason = "drain under way" // the node is being drained
	DrainUnknown   Reason = "drain unknown"   // the store could not say whether the node is being drained
	GuestUnknown   Reason = "guest unknown"   // no hypervisor of the node has the guest
	ResolverNone   Reason = "resolver none"   // the guest needs a resolver, and the node has none
	ResolverSilent Reason = "resolver silent" // the resolver did not answer in time
	ResolverFailed Reason = "resolver failed" // the resolver answered with an error
	PoolUnknown    Reason = "pool unknown"    // the cluster has no pool of that name, or none that serves the node
	PoolFull       Reason = "pool full"       // every address of the pool is allocated, reserved or quarantined
	AddressHeld    Reason = "address held"    // another guest has the address, running or not
	AddressesWait  Reason = "addresses wait"  // those of a guest that is gone are not given back yet
	RegistrySilent Reason = "registry silent" // the registry did not answer in time
	RegistryFailed Reason = "registry failed" // the registry answered with an error
	RegistryNone   Reason = "registry none"   // the guest asks for an address, and the node has no registry that may give it
)
