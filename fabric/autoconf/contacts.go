package autoconf

import (
	"slices"

	"github.com/vmfabric/vmfabric/fabric"
)

// Newest adds a contact to a list that has the newest one of each protocol. An address
// that the guest declined stays declined while the guest tries to get it again: only
// when it renews a lease it has one.
func Newest(contacts []fabric.Contact, c fabric.Contact) []fabric.Contact {
	i := slices.IndexFunc(contacts, func(o fabric.Contact) bool { return o.Protocol == c.Protocol })
	if i < 0 {
		return append(contacts, c)
	}
	begins := slices.Contains([]string{"DISCOVER", "SOLICIT", "REQUEST"}, c.Message)
	if begins && !c.Declined.IsValid() {
		c.Declined = contacts[i].Declined
	}
	contacts[i] = c
	return contacts
}
