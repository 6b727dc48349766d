package agent

import (
	"github.com/vmfabric/vmfabric/fabric"
)

// refusal is an error that reads as its text alone and is an ErrRefused.
type refusal struct{ error }

func (refusal) Is(target error) bool { return target == fabric.ErrRefused }
func (r refusal) Unwrap() error      { return r.error }
