package agent

import (
	"errors"

	"github.com/vmfabric/vmfabric/fabric"
)

// reasoned is an error of which more than the text is known.
type reasoned struct {
	error
	reason fabric.Reason
	text   string // with the way out
}

func (r reasoned) Error() string { return r.text }
func (r reasoned) Unwrap() error { return r.error }

// because gives an error for a reason, with the way out.
func (f *facts) because(reason fabric.Reason, err error) error {
	return reasoned{err, reason, f.withRemedy(err.Error(), reason)}
}

// refused gives why a guest is not taken.
func refused(vm string, err error) error {
	is := &fabric.RefusedError{VM: vm, Reason: fabric.RuleBroken, Err: err}
	var r reasoned
	if errors.As(err, &r) {
		is.Reason = r.reason
	}
	return is
}
