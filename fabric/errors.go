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

// RefusedError is why a node does not take a guest. It is an [ErrRefused].
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

// Reason is what kind of problem something is, for whoever knows by which commands
// and files of a node it is solved.
type Reason string

// The reasons that have a way out which the fabric itself does not know.
const (
	RuleBroken     Reason = "rule broken"     // the text says all
	NodeDrained    Reason = "node drained"    // a guest is refused, as its node is drained
	DrainUnderWay  Reason = "drain under way" // the node is drained
	DrainUnknown   Reason = "drain unknown"   // whether it is could not be read
	GuestUnknown   Reason = "guest unknown"   // no hypervisor of the node has the guest
	ResolverNone   Reason = "resolver none"   // a guest does not say what it has, and there is nobody to ask
	ResolverSilent Reason = "resolver silent" // nor does the resolver answer
	ResolverFailed Reason = "resolver failed" // or it does not know either
)
