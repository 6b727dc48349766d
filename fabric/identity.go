package fabric

import (
	"cmp"
	"fmt"
)

// Identity identifies a guest in the cluster independently of its node: a guest
// that moved is the same, a copy is another one. A guest with a UUID may also be
// renamed. The zero value means that the identity is not known.
type Identity string

// byHand replaces the source in the identity of a guest without one.
const byHand = "attached"

// maxIdentity is the longest identity, in bytes: a source's name, and the UUID
// or name of the guest.
const maxIdentity = 64 + 2*MaxNameBytes

// Identity distinguishes the guest from all others in the cluster: its [Source],
// and its UUID there, or else its name.
func (v VM) Identity() Identity {
	return Identity(cmp.Or(v.Origin, byHand) + " " + cmp.Or(v.UUID, v.Name))
}

// Validate reports why an identity cannot be sent to another node; nil: it can.
func (i Identity) Validate() error {
	if err := plain(string(i), maxIdentity); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	return nil
}
