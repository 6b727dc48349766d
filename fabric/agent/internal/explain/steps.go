// Package explain says of one address where it is on its way from the pool to the
// reflectors, and who disagrees about it. It is pure: what each node, its kernel, its
// speaker and the registry know comes in as values.
package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// Local is what a node knows of the guest that has an address.
type Local struct {
	Node          string
	Ports         []fabric.PortEntry // of the guests that have it
	DrainingSince time.Time          // zero: the node is not being drained
	Sessions      []fabric.Session
	Sent          []fabric.Advertisement // of the prefix; nil: the speaker cannot tell
	SentError     error
	Faults        []fabric.ForwardingFault
	FaultsError   error            // why forwarding could not be tried
	Blackhole     fabric.Blackhole // of the address; zero: there is none
	// Answers to the guest's requests for its configuration, which the ports have; nil:
	// not known.
	Answers *Answers
}

// Answers says which requests of a guest for its configuration its node answers.
type Answers struct {
	NoDHCP, NoRA bool
	Since        time.Time // when the agent began to listen for requests
	Now          time.Time
}

// Steps follows an address from its guest to the reflectors, and names the first step
// that is missing; nil: no guest of the node has it.
func Steps(a netip.Addr, l Local) []fabric.Step {
	i := slices.IndexFunc(l.Ports, func(p fabric.PortEntry) bool { return has(p, a) })
	if i < 0 {
		return nil
	}
	withdrawn, faults := withdrawnFor(a, l.Faults)
	steps := l.toAnnouncement(l.Ports[i])
	switch last := &steps[len(steps)-1]; {
	case !last.Good:
	case withdrawn != "": // no reflector has it, on purpose: the reason says everything
		*last = fabric.Step{Step: "announcement", Text: withdrawn}
	case l.SentError != nil:
		steps = append(steps, fabric.Step{Step: "reflectors", Text: l.SentError.Error()})
	default:
		p, _ := PrefixOf(a, l.Ports)
		steps = append(steps, announcedTo(p, l.Sessions, l.Sent)...)
	}
	if l.Blackhole.Prefix.IsValid() {
		steps = append(steps, blackholeStep(l.Blackhole))
	}
	steps = append(steps, forwardingStep(a, faults, l.FaultsError))
	if l.Answers != nil {
		steps = append(steps, l.Answers.step(a, l.Ports[i].Contacts))
	}
	if drops := l.Ports[i].Drops; len(drops) > 0 {
		steps = append(steps, dropStep(l.Ports[i].Port, drops))
	}
	for i := range steps {
		steps[i].Node = l.Node
	}
	return steps
}

// has reports whether a port has an address, or a prefix with it.
func has(p fabric.PortEntry, a netip.Addr) bool {
	return slices.Contains(p.Addresses, a) || slices.ContainsFunc(p.Routes, func(r netip.Prefix) bool { return r.Contains(a) })
}

// toAnnouncement lists the steps up to the first one that is missing, or to the
// announcement of a live guest.
func (l Local) toAnnouncement(p fabric.PortEntry) []fabric.Step {
	steps := []fabric.Step{{Step: "guest", Good: true, Text: fmt.Sprintf("%s on %s", p.VM, l.Node)}}
	if p.Trouble != "" {
		return append(steps, fabric.Step{Step: "port", Text: p.Trouble})
	}
	text := fmt.Sprintf("%s (%s), up and routed", p.Port, p.Kind)
	if p.Kind == fabric.Adopt && p.State != fabric.Live {
		text = fmt.Sprintf("%s, taken over when its owner has made it", p.Port)
	}
	steps = append(steps, fabric.Step{Step: "port", Good: true, Text: text})
	if p.State != fabric.Live {
		return append(steps, fabric.Step{Step: "announcement", Text: "not announced: the guest does not run yet, or nobody holds the other end of its port"})
	}
	text = "live since " + p.Since.Format(time.DateTime)
	if !l.DrainingSince.IsZero() {
		text += fmt.Sprintf("; this node is draining since %s, and another one that announces it too comes first", l.DrainingSince.Format(time.DateTime))
	}
	return append(steps, fabric.Step{Step: "announcement", Good: true, Text: text})
}

// PrefixOf gives the prefix that is announced for an address: the guest's own, or the
// longest one that is routed to a guest.
func PrefixOf(a netip.Addr, ports []fabric.PortEntry) (found netip.Prefix, ok bool) {
	for _, p := range ports {
		if slices.Contains(p.Addresses, a) {
			return fabric.HostPrefix(a), true
		}
		for _, r := range p.Routes {
			if r.Contains(a) && (!ok || r.Bits() > found.Bits()) {
				found, ok = r, true
			}
		}
	}
	return found, ok
}

// announcedTo says of each session whether the prefix was sent on it or, if that is not
// known, whether it could have been.
func announcedTo(p netip.Prefix, sessions []fabric.Session, sent []fabric.Advertisement) []fabric.Step {
	var steps []fabric.Step
	for _, a := range sent {
		text := fmt.Sprintf("%s, %s was sent", a.Address, p)
		if !a.Sent {
			text = fmt.Sprintf("%s, %s was not sent: %s", a.Address, p, orUnknown(a.Reason))
		}
		steps = append(steps, fabric.Step{Step: "reflector " + a.Peer, Good: a.Sent, Text: text})
	}
	if sent != nil {
		return steps
	}
	for _, s := range sessions {
		good := s.State == "established" && !s.Lacks(fabric.FamilyOf(p))
		text := fmt.Sprintf("%s, %s since %s, %d advertised", s.Address, s.State, s.Since.Format(time.DateTime), s.Advertised)
		switch {
		case s.State != "established":
			text += "; " + s.DownReason()
		case !good:
			text += fmt.Sprintf("; it takes no %s", fabric.FamilyOf(p))
		}
		steps = append(steps, fabric.Step{Step: "reflector " + s.Peer, Good: good, Text: text})
	}
	return steps
}

func orUnknown(reason string) string {
	if reason == "" {
		return "the speaker does not say why"
	}
	return reason
}

// forwardingStep says whether packets of an address's family pass the node, as the test
// found just now.
func forwardingStep(a netip.Addr, faults []fabric.ForwardingFault, err error) fabric.Step {
	if err != nil {
		return fabric.Step{Step: "forwarding", Text: err.Error()}
	}
	var texts []string
	for _, f := range faults {
		if concerns(f, a) {
			texts = append(texts, f.Text)
		}
	}
	if len(texts) > 0 {
		return fabric.Step{Step: "forwarding", Text: strings.Join(texts, "; ")}
	}
	return fabric.Step{Step: "forwarding", Good: true, Text: fmt.Sprintf("%s packets pass between the underlay and a port, tried now", familyOf(a))}
}

// blackholeStep says until when packets to the address are discarded. They are on purpose,
// and the address is not reached all the same.
func blackholeStep(b fabric.Blackhole) fabric.Step {
	text := fmt.Sprintf("packets to %s are discarded since %s, until %s; lift its blackhole to have them sooner",
		b.Prefix.Addr(), b.Since.Format(time.DateTime), b.Until.Format(time.DateTime))
	return fabric.Step{Step: "delivery", Text: text}
}

// dropStep says what the node dropped of a port, the last first. A filter does its work,
// so the step is good.
func dropStep(port string, drops []fabric.Drops) fabric.Step {
	newest := slices.SortedStableFunc(slices.Values(drops), func(x, y fabric.Drops) int { return y.Last.Compare(x.Last) })
	var texts []string
	for _, d := range newest {
		text := fmt.Sprintf("%d by %s", d.Packets, d.Reason)
		if !d.Last.IsZero() {
			text += ", the last at " + d.Last.Format(time.DateTime)
		}
		texts = append(texts, text)
	}
	return fabric.Step{Step: "drops", Good: true, Text: fmt.Sprintf("packets of %s that the node dropped: %s", port, strings.Join(texts, "; "))}
}

// withdrawnFor says why the node announces no address of a family; empty: it does. It
// also returns the other faults.
func withdrawnFor(a netip.Addr, faults []fabric.ForwardingFault) (reason string, others []fabric.ForwardingFault) {
	for _, f := range faults {
		if f.Withdrawn && concerns(f, a) {
			reason = f.Text
		} else {
			others = append(others, f)
		}
	}
	return reason, others
}

func familyOf(a netip.Addr) string {
	return map[bool]string{true: "IPv4", false: "IPv6"}[a.Unmap().Is4()]
}

func concerns(f fabric.ForwardingFault, a netip.Addr) bool {
	return f.Family == "" || f.Family == familyOf(a)
}
