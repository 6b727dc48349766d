package nodes

import (
	"errors"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// laterKinds are the kinds of notice that an agent may not know which knows identities
// of guests. An agent says in its [hello] which of them it answers: one that does not
// would report a question that it does not know as a disagreement.
var laterKinds = []fabric.NoticeKind{fabric.Describing, fabric.Forgotten, fabric.Listing, fabric.Explaining, fabric.Comparing}

// olderError is the error of a question that an older agent does not know.
type olderError struct{ kind fabric.NoticeKind }

func (e *olderError) Error() string {
	what := map[fabric.NoticeKind]string{
		fabric.Acquiring:  "does not say who holds an address",
		fabric.Describing: "does not say which addresses a guest has",
		fabric.Forgotten:  "does not hear that a guest is gone",
		fabric.Listing:    "does not tell its ports",
		fabric.Explaining: "does not say what it knows of an address",
		fabric.Comparing:  "does not say which registry it has",
	}[e.kind]
	return "its agent is older and " + what + "; upgrade it"
}

// Is reports whether target is errors.ErrUnsupported.
func (e *olderError) Is(target error) bool { return target == errors.ErrUnsupported }

// older reports whether the agent is of a version that does not know identities of
// guests. It refuses a notice with unknown keys, so it would get no claim before it is
// upgraded, were it not for understood.
func (h hello) older() bool { return h.First == 0 }

// understood returns the parts of a notice that the agent knows. The error is an
// olderError if it does not know the kind.
func (h hello) understood(notice fabric.Notice) (fabric.Notice, error) {
	switch {
	case slices.Contains(laterKinds, notice.Kind) && !slices.Contains(h.Asks, notice.Kind), h.older() && notice.Kind == fabric.Acquiring:
		return notice, &olderError{notice.Kind}
	case h.older():
		notice.Identity, notice.Acquired = "", time.Time{}
	}
	return notice, nil
}
