package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/plan"
)

const (
	listTime  = 5 * time.Second // how long the agent waits for a part of another node's list
	pageBytes = 1 << 20         // of a part, about; a message takes four times as much
	maxText   = 1000            // bytes of a text in it
)

// List gives all ports that are wanted on this node, in the order of VM name and
// index. Its error is always nil.
func (a *Agent) List(ctx context.Context) ([]fabric.PortEntry, error) {
	asked, drops := a.contacts(ctx), a.drops(ctx)
	s, done := a.state.open()
	defer done()
	entries := make([]fabric.PortEntry, 0, len(s.guests))
	for _, name := range sortedKeys(s.guests) {
		if g := s.guests[name]; g.want.State != fabric.Absent {
			entries = append(entries, drops.with(s.entry(g, asked).Ports(a.cluster()))...)
		}
	}
	return entries, nil
}

// drops are the packets that the node dropped, by port.
type drops map[string][]fabric.Drops

// drops gives what the node dropped; nil: not known. Lists have the rest also then.
func (a *Agent) drops(ctx context.Context) drops {
	ctx, cancel := context.WithTimeout(ctx, contactsTime)
	defer cancel()
	all, err := a.dataplane.Drops(ctx)
	if err != nil {
		return nil
	}
	return all
}

// with gives ports what the node dropped of theirs.
func (d drops) with(ports []fabric.PortEntry) []fabric.PortEntry {
	for i := range ports {
		ports[i].Drops = d[ports[i].Port]
	}
	return ports
}

// entry gives a guest as it is listed, with its requests. It shares nothing with the
// guest.
func (s *state) entry(g *guest, asked contacts) fabric.GuestEntry {
	e := fabric.GuestEntry{VM: g.want.VM, Since: g.want.Since, Trouble: g.troubleText(s.node), Orphan: g.orphan, Contacts: asked.of(g.want.VM)}
	e.VM.NICs = slices.Clone(e.VM.NICs)
	for n := range e.VM.NICs {
		nic := &e.VM.NICs[n]
		nic.Addresses, nic.Routes = slices.Clone(nic.Addresses), slices.Clone(nic.Routes)
		state := fabric.Wired
		if g.announced && g.nics[n] != plan.Down {
			state = fabric.Live
		}
		e.States = append(e.States, state)
	}
	return e
}

// page gives the guests whose names come after a name, as many as fit a message, and
// whether there are others.
func (a *Agent) page(ctx context.Context, after string) (guests []fabric.GuestEntry, more bool) {
	asked := a.contacts(ctx)
	s, done := a.state.open()
	defer done()
	size := 0
	for _, name := range sortedKeys(s.guests) {
		g := s.guests[name]
		if name <= after || g.want.State == fabric.Absent {
			continue
		}
		e := s.entry(g, asked)
		e.Trouble = cut(e.Trouble, maxText)
		// No list shows them, and agents of before, which do not know the keys, could not
		// read the answer.
		e.VM.Isolated, e.VM.Firewall = false, nil
		if size += entrySize(e); size > pageBytes && len(guests) > 0 {
			return guests, true
		}
		guests = append(guests, e)
	}
	return guests, false
}

// entrySize gives an upper bound for the bytes of a guest in a message.
func entrySize(e fabric.GuestEntry) int {
	size := 512 + 6*(len(e.VM.Name)+len(e.VM.UUID)+len(e.Trouble)) // a byte can become \u001f
	for _, nic := range e.VM.NICs {
		size += 256 + 48*(len(nic.Addresses)+len(nic.Routes))
		for _, pool := range nic.Pools {
			size += len(pool) + 4
		}
	}
	for _, cs := range e.Contacts {
		for _, c := range cs {
			size += 256 + 6*(len(c.Message)+len(c.Hostname)+len(c.Client)+len(c.Refused))
		}
	}
	return size
}

// cut shortens a text.
func cut(text string, most int) string {
	if len(text) > most {
		return text[:most] + "..."
	}
	return text
}

// Nodes lists the names of the cluster's nodes that the agent knows, this one first. Its
// error is always nil.
func (a *Agent) Nodes(context.Context) ([]string, error) {
	return append([]string{a.node}, a.others()...), nil
}

// ListNode lists the ports of any node of the cluster, those of the guests whose names
// come after a name, as many as fit a message. The error says why the node does not tell.
func (a *Agent) ListNode(ctx context.Context, node, after string) (fabric.PortPage, error) {
	guests, more, err := a.guestsOf(ctx, node, after)
	is := fabric.PortPage{Ports: []fabric.PortEntry{}}
	for _, g := range guests {
		is.Ports = append(is.Ports, g.Ports(a.cluster())...)
	}
	for i := range is.Ports {
		is.Ports[i].Node = node
	}
	if more {
		is.Next = guests[len(guests)-1].VM.Name
	}
	return is, err
}

// guestsOf gives a part of the guests of a node: see [Agent.page].
func (a *Agent) guestsOf(ctx context.Context, node, after string) ([]fabric.GuestEntry, bool, error) {
	if node == a.node {
		guests, more := a.page(ctx, after)
		return guests, more, nil
	}
	if a.nodes == nil {
		return nil, false, fmt.Errorf("node %s: this agent talks to no other node", node)
	}
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	answer, err := a.nodes.Ask(ctx, node, fabric.Notice{Kind: fabric.Listing, VM: after})
	if err != nil {
		return nil, false, err
	}
	if err := listable(answer, after); err != nil {
		return nil, false, fmt.Errorf("node %s: its list of guests cannot be used: %w; see what runs there", node, err)
	}
	for _, g := range answer.Guests {
		for n, cs := range g.Contacts {
			g.Contacts[n] = shown(cs)
		}
	}
	return answer.Guests, answer.More, nil
}

// listable reports why a list of another node cannot be used. Its names ascend, so that
// a list of parts has an end.
func listable(answer fabric.Answer, after string) error {
	for _, g := range answer.Guests {
		if err := fabric.ValidateKnownName(g.VM.Name); err != nil {
			return err
		}
		if g.VM.Name <= after {
			return fmt.Errorf("guest %q comes after %q", g.VM.Name, after)
		}
		after = g.VM.Name
		if len(g.States) != len(g.VM.NICs) || slices.ContainsFunc(g.States, func(s fabric.State) bool { return s != fabric.Wired && s != fabric.Live }) {
			return fmt.Errorf("guest %q has %d NICs and the states of %d", g.VM.Name, len(g.VM.NICs), len(g.States))
		}
		if err := errors.Join(g.VM.Identity().Validate(), g.VM.ValidateNICs(), contactable(g)); err != nil {
			return fmt.Errorf("guest %q: %w", g.VM.Name, err)
		}
		if slices.ContainsFunc(g.VM.Prefixes(), func(p netip.Prefix) bool { return !p.IsValid() }) {
			return fmt.Errorf("guest %q has an address that is none", g.VM.Name)
		}
	}
	if answer.More && len(answer.Guests) == 0 {
		return errors.New("it has no end")
	}
	return nil
}
