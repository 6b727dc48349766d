package kernel

import (
	"fmt"
	"net/netip"
)

// prefixErrors collects the errors of the single prefixes of a call.
type prefixErrors struct {
	verb  string
	first error
	more  int
}

func (t *prefixErrors) add(p netip.Prefix, err error) {
	if t.first != nil {
		t.more++
		return
	}
	t.first = fmt.Errorf("%s %s: %w", t.verb, p, err)
}

// addOther adds an error that is about no prefix.
func (t *prefixErrors) addOther(err error) {
	if t.first == nil {
		t.first = err
	}
}

func (t *prefixErrors) err() error {
	if t.more > 0 {
		return fmt.Errorf("%w (and %d more prefixes)", t.first, t.more)
	}
	return t.first
}
