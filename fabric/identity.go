package fabric

import (
	"cmp"
	"fmt"
)

// Identity says which guest it is that has an address, whatever its name: a copy
// is another one, and a guest that moved or was renamed is the same. The zero
// value is that of a guest of which nobody says.
type Identity string

// byHand stands for the source of a guest that has none.
const byHand = "attached"

// maxIdentity is the longest identity, in bytes: a source's name, and what it
// knows the guest by.
const maxIdentity = 64 + 2*MaxNameBytes

// Identity gives what tells the guest from all others in the cluster: who runs
// it, and the UUID that it has there, or else its name.
func (v VM) Identity() Identity {
	return Identity(cmp.Or(v.Origin, byHand) + " " + cmp.Or(v.UUID, v.Name))
}

// Validate reports what keeps an identity from being told.
func (i Identity) Validate() error {
	if err := plain(string(i), maxIdentity); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	return nil
}
