package fabric

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Step is a line of the explanation of an address: a step on its way from the pool to
// the reflectors, or what disagrees about it.
type Step struct {
	Step string `json:"step"`
	Good bool   `json:"good"`
	Text string `json:"text"`
	Node string `json:"node,omitempty"` // the node that the line is of; empty: the cluster
	// Allocation is that of the registry, in the step of that name.
	Allocation *Allocation `json:"allocation,omitempty"`
}

// Disagreement is the Step of a line that says who disagrees about an address.
const Disagreement = "disagreement"

// Finding is what one node knows of an address. The zero value: nothing.
type Finding struct {
	Node  string      `json:"node"`
	Guest *FoundGuest `json:"guest,omitempty"` // nil: the node has no guest with the address
	// Ports are those of the node's kernel with the address.
	Ports     []FoundPort  `json:"ports,omitempty"`
	Announced bool         `json:"announced,omitempty"` // the node announces the address
	Sent      []string     `json:"sent,omitempty"`      // the reflectors that were sent it, as far as the speaker can tell
	Routes    []FoundRoute `json:"routes,omitempty"`    // other nodes' routes to it, as reflectors sent them to this node
	// OwnRegistry: the node has a registry of its own, which answers, and Allocations has
	// what that has of the address.
	OwnRegistry bool         `json:"own_registry,omitempty"`
	Allocations []Allocation `json:"allocations,omitempty"`
	// Flaws say what the node could not find out, about its kernel or its speaker.
	Flaws []string `json:"flaws,omitempty"`
	// Steps follow the address from the guest to the reflectors, up to the first step
	// that is missing.
	Steps []Step `json:"steps,omitempty"`
}

// FoundGuest is the guest of a node that has an address.
type FoundGuest struct {
	VM       string    `json:"vm"`
	Guest    Identity  `json:"guest"`
	State    State     `json:"state"`            // as wanted
	Routed   bool      `json:"routed,omitempty"` // the address is in a prefix that is routed to the guest
	Moving   bool      `json:"moving,omitempty"` // the guest is about to leave the node, or to arrive there
	Lost     string    `json:"lost,omitempty"`   // see [Desired.Lost]
	Epoch    uint64    `json:"epoch,omitempty"`  // of the node's claim to the guest
	Acquired time.Time `json:"acquired,omitzero"`
}

// FoundPort is a port of a node's kernel.
type FoundPort struct {
	Port string `json:"port"`
	VM   string `json:"vm"`
}

// FoundRoute is a node's route that a reflector has.
type FoundRoute struct {
	Reflector string     `json:"reflector"`
	Node      string     `json:"node,omitempty"` // empty: Via is the address of no node
	Via       netip.Addr `json:"via,omitzero"`   // the next hop; only without Node
}

// The most that a finding of another node may have.
const (
	maxSteps = 5000 // one for each of 4,096 reflectors, and those of the node itself
	maxText  = 4096 // bytes of a step's text
	maxFound = 5000 // ports, reflectors or routes
)

// Validate reports why a finding of another node cannot be shown.
func (f Finding) Validate() error {
	if len(f.Steps) > maxSteps || max(len(f.Ports), len(f.Sent), len(f.Routes), len(f.Allocations), len(f.Flaws)) > maxFound {
		return fmt.Errorf("a finding of %d steps, %d ports and %d routes; at most %d of each", len(f.Steps), len(f.Ports), len(f.Routes), maxFound)
	}
	var errs []error
	word := func(w string) { errs = append(errs, plain(w, maxWord)) }
	if g := f.Guest; g != nil {
		errs = append(errs, ValidateKnownName(g.VM), g.Guest.Validate())
		word(g.Lost)
		if g.State != Wired && g.State != Live {
			errs = append(errs, fmt.Errorf("guest %q is %v", g.VM, g.State))
		}
	}
	for _, p := range f.Ports {
		word(p.Port)
		word(p.VM)
	}
	for _, r := range f.Routes {
		word(r.Reflector)
		word(r.Node)
	}
	for _, s := range f.Sent {
		word(s)
	}
	for _, a := range f.Allocations {
		word(a.VM)
		word(a.Node)
		word(a.Pool)
		errs = append(errs, a.Guest.Validate(), plain(a.Note, maxText), plain(a.Flaw, maxText))
	}
	for _, t := range f.Flaws {
		errs = append(errs, plain(t, maxText))
	}
	for _, s := range f.Steps {
		word(s.Step)
		errs = append(errs, plain(s.Text, maxText))
	}
	return errors.Join(errs...)
}
