package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/explain"
)

// whyTime is how long the agent waits for what the other nodes and the registry know of
// an address. A node tries whether packets pass it meanwhile.
const whyTime = 5 * time.Second

// Explain follows an address from its pool to the reflectors, on whatever node of the
// cluster its guest is, and says where the registry, the nodes, their kernels and the
// reflectors disagree about it. A step that is not good is missing, or a disagreement.
// Its error is always nil.
func (a *Agent) Explain(ctx context.Context, addr netip.Addr) ([]fabric.Step, error) {
	ctx, cancel := context.WithTimeout(ctx, whyTime)
	defer cancel()
	p := fabric.HostPrefix(addr)
	// Side by side: on a slow machine what this node tries takes all of the time.
	here, registry := make(chan fabric.Finding, 1), make(chan *explain.Registry, 1)
	go func() { here <- a.finding(ctx, addr) }()
	go func() { registry <- a.registryOn(ctx, p) }()
	answers, failed := a.askNodes(ctx, fabric.Notice{Kind: fabric.Explaining, Prefixes: []netip.Prefix{p}}, a.others())
	c := explain.Case{Address: addr, Cluster: a.cluster(), Registry: <-registry, Findings: []fabric.Finding{<-here}}
	for _, node := range sortedKeys(answers) {
		f, err := foundBy(node, answers[node])
		if err != nil {
			failed[node] = err
			continue
		}
		c.Findings = append(c.Findings, f)
	}
	for _, node := range sortedKeys(failed) {
		why := strings.TrimPrefix(oneLine(failed[node]), "node "+node)
		c.Silent = append(c.Silent, explain.Silence{Node: node, Why: strings.TrimLeft(why, ": ")})
	}
	return c.Lines(), nil
}

// foundBy gives the finding in the answer of another node.
func foundBy(node string, answer fabric.Answer) (fabric.Finding, error) {
	if answer.Finding == nil {
		return fabric.Finding{}, fmt.Errorf("node %s: its answer says nothing; upgrade its agent", node)
	}
	f := *answer.Finding
	if err := f.Validate(); err != nil {
		return f, fmt.Errorf("node %s: what it says cannot be shown: %w; see what runs there", node, err)
	}
	f.Node = node
	for i := range f.Steps {
		f.Steps[i].Node = node
	}
	return f, nil
}

// explains answers a node that explains an address.
func (a *Agent) explains(ctx context.Context, addr netip.Addr) fabric.Answer {
	ctx, cancel := context.WithTimeout(ctx, whyTime)
	defer cancel()
	f := a.finding(ctx, addr)
	return fabric.Answer{Finding: &f}
}

// registryOn gives what this node's registry says of an address; nil: there is none.
func (a *Agent) registryOn(ctx context.Context, p netip.Prefix) *explain.Registry {
	if a.registry == nil {
		return nil
	}
	is := &explain.Registry{Shared: a.registry.Shared()}
	var err error
	if is.Shared {
		is.Allocations, err = a.registry.Allocations(ctx, fabric.AllocationFilter{Prefix: p})
	}
	if err != nil {
		is.Error = oneLine(err)
	}
	return is
}

// finding gives what this node knows of an address.
func (a *Agent) finding(ctx context.Context, addr netip.Addr) fabric.Finding {
	p := fabric.HostPrefix(addr)
	f := fabric.Finding{Node: a.node}
	var ports []fabric.PortEntry
	states, kernelErr := a.dataplane.Actual(ctx)
	if kernelErr != nil {
		f.Flaws = append(f.Flaws, "its kernel: "+cut(oneLine(kernelErr), maxText))
	}
	f.Guest, ports, f.Routes = a.holding(addr, contactsOf(states))
	ports = a.drops(ctx).with(ports)
	for _, s := range states {
		if slices.ContainsFunc(s.NIC.Prefixes(), p.Overlaps) {
			f.Ports = append(f.Ports, fabric.FoundPort{Port: s.Name, VM: s.VM})
		}
	}
	announced := p
	routes, err := a.speaker.Actual(ctx)
	if err != nil {
		f.Flaws = append(f.Flaws, "its speaker: "+cut(oneLine(err), maxText))
	}
	for _, r := range routes {
		if r.Prefix.Contains(addr) && (!f.Announced || r.Prefix.Bits() > announced.Bits()) {
			f.Announced, announced = true, r.Prefix
		}
	}
	if prefix, has := explain.PrefixOf(addr, ports); has {
		announced = prefix
	}
	var sent []fabric.Advertisement
	var sentErr error
	if f.Announced || f.Guest != nil {
		sent, sentErr = a.Advertisements(ctx, announced)
		if errors.Is(sentErr, errors.ErrUnsupported) {
			sent, sentErr = nil, nil
		}
	}
	for _, ad := range sent {
		if ad.Sent {
			f.Sent = append(f.Sent, ad.Peer)
		}
	}
	if a.registry != nil && !a.registry.Shared() {
		all, err := a.registry.Allocations(ctx, fabric.AllocationFilter{Prefix: p})
		f.Allocations, f.OwnRegistry = all, err == nil
	}
	if f.Guest != nil {
		l := explain.Local{Node: a.node, Ports: ports, Sent: sent, SentError: sentErr}
		if kernelErr == nil {
			l.Answers = a.answersTo(f.Guest.VM)
		}
		f.Steps = a.steps(ctx, addr, l)
	}
	return f
}

// steps follows an address that a guest of this node has.
func (a *Agent) steps(ctx context.Context, addr netip.Addr, l explain.Local) []fabric.Step {
	s, done := a.state.open()
	if s.draining() {
		l.DrainingSince = s.drained
	}
	l.Blackhole = s.blackholeOf(addr, a.clock())
	done()
	if l.Sent == nil && l.SentError == nil {
		l.Sessions, l.SentError = a.speaker.Sessions(ctx)
		if errors.Is(l.SentError, errors.ErrUnsupported) {
			l.SentError = nil
		}
	}
	l.Faults, l.FaultsError = a.CheckForwarding(ctx)
	return explain.Steps(addr, l)
}

// answersTo says which requests of a guest for its configuration the node answers.
func (a *Agent) answersTo(vm string) *explain.Answers {
	s, done := a.state.open()
	defer done()
	is := &explain.Answers{Now: a.clock(), Since: a.began, NoDHCP: a.cluster().Guests.NoDHCP, NoRA: a.cluster().Guests.NoRA}
	if g := s.guests[vm]; g != nil {
		is.NoDHCP, is.NoRA = is.NoDHCP || g.want.VM.NoDHCP, is.NoRA || g.want.VM.NoRA
	}
	return is
}

// holding gives the guest of this node that has an address, its ports, and the routes of
// other nodes to the address that reflectors have.
func (a *Agent) holding(addr netip.Addr, asked contacts) (found *fabric.FoundGuest, ports []fabric.PortEntry, routes []fabric.FoundRoute) {
	p := fabric.HostPrefix(addr)
	s, done := a.state.open()
	defer done()
	for _, vm := range s.reserved.Holders(p) {
		g := s.guests[vm]
		if g == nil || g.want.State == fabric.Absent {
			continue
		}
		d := g.want
		found = &fabric.FoundGuest{
			VM: vm, Guest: d.VM.Identity(), State: d.State, Lost: d.Lost, Epoch: d.Epoch, Acquired: d.Acquired,
			Routed: !slices.ContainsFunc(d.VM.NICs, func(n fabric.NIC) bool { return slices.Contains(n.Addresses, addr) }),
			Moving: d.Incoming || g.arrival.Awaits() || g.departs(),
		}
		ports = s.entry(g, asked).Ports(a.cluster())
		for at, r := range g.competing {
			if at.prefix.Contains(addr) {
				routes = append(routes, fabric.FoundRoute{Reflector: at.reflector, Node: r.node})
			}
		}
	}
	for at, r := range s.peers.strays {
		if at.prefix.Contains(addr) {
			routes = append(routes, fabric.FoundRoute{Reflector: at.reflector, Via: r.Via})
		}
	}
	slices.SortFunc(routes, func(x, y fabric.FoundRoute) int {
		return cmp.Or(cmp.Compare(x.Reflector, y.Reflector), cmp.Compare(x.Node, y.Node), x.Via.Compare(y.Via))
	})
	return found, ports, routes
}
