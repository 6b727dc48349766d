package fabric

import "errors"

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
