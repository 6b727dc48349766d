package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
)

// prefixOf returns the prefix that is announced for an address: the guest's own, or
// the longest one that is routed to a guest.
func prefixOf(a netip.Addr, ports []fabric.PortEntry) (found netip.Prefix, ok bool) {
	for _, p := range ports {
		if slices.Contains(p.Addresses, a) {
			return netip.PrefixFrom(a, a.BitLen()), true
		}
		for _, r := range p.Routes {
			if r.Contains(a) && (!ok || r.Bits() > found.Bits()) {
				found, ok = r, true
			}
		}
	}
	return found, ok
}

// sent asks the agent to which peers it has sent a prefix; nil if its speaker
// cannot tell.
func (t *tool) sent(ctx context.Context, p netip.Prefix) ([]fabric.Advertisement, error) {
	reply, err := t.call(ctx, hooks.Request{Op: hooks.Sent, Prefix: p})
	if errors.Is(err, errors.ErrUnsupported) {
		return nil, nil
	}
	return reply.Advertisements, err
}

// announcedTo says of each session whether the prefix was sent on it or, if that is
// unknown, whether it could have been.
func announcedTo(p netip.Prefix, sessions []fabric.Session, sent []fabric.Advertisement) []step {
	var steps []step
	for _, a := range sent {
		text := fmt.Sprintf("%s, %s was sent", a.Address, p)
		if !a.Sent {
			text = fmt.Sprintf("%s, %s was not sent: %s", a.Address, p, orUnknown(a.Reason))
		}
		steps = append(steps, step{"reflector " + a.Peer, a.Sent, text})
	}
	if sent != nil {
		return steps
	}
	for _, s := range sessions {
		good := s.State == "established" && !s.Lacks(fabric.FamilyOf(p))
		text := fmt.Sprintf("%s, %s for %s, %s advertised", s.Address, s.State, ago(s.Since), count(s.Advertised, "route"))
		switch {
		case s.State != "established":
			text += "; " + s.DownReason()
		case !good:
			text += fmt.Sprintf("; it takes no %s", fabric.FamilyOf(p))
		}
		steps = append(steps, step{"reflector " + s.Peer, good, text})
	}
	return steps
}

func orUnknown(reason string) string {
	if reason == "" {
		return "the speaker does not say why; see vmfabric status"
	}
	return reason
}

// lastNotification describes the last NOTIFICATION of a session in a few words.
func lastNotification(n fabric.Notification) string {
	way := "received"
	if n.Sent {
		way = "sent"
	}
	when := ""
	if !n.At.IsZero() {
		when = " " + ago(n.At) + " ago"
	}
	return fmt.Sprintf("last NOTIFICATION %s%s: %s", way, when, n)
}
