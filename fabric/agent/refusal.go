package agent

import (
	"errors"

	"github.com/vmfabric/vmfabric/fabric"
)

// reasoned is an error with a reason.
type reasoned struct {
	error
	reason fabric.Reason
	text   string // of the error, with the way out
}

func (r reasoned) Error() string { return r.text }
func (r reasoned) Unwrap() error { return r.error }

// because adds a reason, and its way out, to an error.
func (f *facts) because(reason fabric.Reason, err error) error {
	return reasoned{err, reason, f.withRemedy(err.Error(), reason)}
}

// refused gives the [fabric.RefusedError] of a guest, with the reason of err if it
// has one.
func refused(vm string, err error) error {
	is := &fabric.RefusedError{VM: vm, Reason: fabric.RuleBroken, Err: err}
	var r reasoned
	if errors.As(err, &r) {
		is.Reason = r.reason
	}
	return is
}
