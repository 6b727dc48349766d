package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/text"
)

const (
	contactsTime = time.Second // how long a list waits for what the dataplane knows of guests' requests
	maxContacts  = 8           // of a port, from another node; there are fewer protocols
	acceptTime   = time.Minute // in which a guest declines an address that it got
	declineTime  = time.Hour   // how long a guest that declined an address and asks no more is a problem
	maxGuestText = 64          // characters of a text that a guest says of itself
)

// contacts are the last requests of guests for their configuration, by port; nil: not
// known.
type contacts map[string][]fabric.Contact

// contacts gives the last requests of this node's guests. Lists have the rest also if
// the dataplane does not answer, which the pass reports.
func (a *Agent) contacts(ctx context.Context) contacts {
	ctx, cancel := context.WithTimeout(ctx, contactsTime)
	defer cancel()
	ports, err := a.dataplane.Actual(ctx)
	if err != nil {
		return nil
	}
	return contactsOf(ports)
}

func contactsOf(ports []fabric.PortState) contacts {
	all := contacts{}
	for _, p := range ports {
		if len(p.Contacts) > 0 {
			all[p.Name] = shown(p.Contacts)
		}
	}
	return all
}

// shown gives requests with texts that can be shown: guests and other nodes wrote them.
func shown(cs []fabric.Contact) []fabric.Contact {
	all := make([]fabric.Contact, len(cs))
	for i, c := range cs {
		c.Protocol = fabric.ContactProtocol(text.Shown(string(c.Protocol), maxGuestText))
		c.Message, c.Hostname, c.Client = text.Shown(c.Message, maxGuestText), text.Shown(c.Hostname, maxGuestText), text.Shown(c.Client, maxGuestText)
		c.Refused = text.Shown(c.Refused, maxText)
		all[i] = c
	}
	return all
}

// of gives the requests of a guest, by NIC; nil: there are none.
func (c contacts) of(vm fabric.VM) (all [][]fabric.Contact) {
	for n := range vm.NICs {
		cs := c[fabric.PortName(vm.Name, n)]
		if len(cs) > 0 && all == nil {
			all = make([][]fabric.Contact, len(vm.NICs))
		}
		if all != nil {
			all[n] = cs
		}
	}
	return all
}

// declined lists the addresses of a guest that it declined and has not got since. A guest
// that asks no more may have been configured by hand, so that ends after a while.
func (c contacts) declined(vm fabric.VM, now time.Time) (problems []string) {
	for n, cs := range c.of(vm) {
		for _, contact := range cs {
			if !slices.Contains(vm.NICs[n].Addresses, contact.Declined) || accepted(contact, now) || now.Sub(contact.At) > declineTime {
				continue
			}
			problems = append(problems, fmt.Sprintf("guest %s: it declined %s by %s (last asked at %s), because something on its link answers for that address, and the node does not; see whether another link, a bridge or a container in the guest has the address, then let the guest ask again: this ends a minute after it took the address, or at %s if it asks no more",
				vm.Name, contact.Declined, contact.Protocol, contact.At.Format(time.DateTime), contact.At.Add(declineTime).Format(time.DateTime)))
		}
	}
	return problems
}

// accepted reports whether the guest has kept an address that it had declined before: it
// got it anew, and would have declined it by now.
func accepted(c fabric.Contact, now time.Time) bool {
	return (c.Message == "REQUEST" || c.Message == "SOLICIT") && now.Sub(c.At) > acceptTime
}

// contactable reports why the requests in another node's entry of a guest cannot be used.
func contactable(g fabric.GuestEntry) error {
	if len(g.Contacts) > len(g.VM.NICs) {
		return fmt.Errorf("guest %q has %d NICs and the requests of %d", g.VM.Name, len(g.VM.NICs), len(g.Contacts))
	}
	for _, cs := range g.Contacts {
		if len(cs) > maxContacts {
			return errors.New("a port with more requests than there are protocols")
		}
	}
	return nil
}
