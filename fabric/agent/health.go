package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// Status gives the health of the node. If the speaker cannot list its sessions,
// Status returns that error together with everything else.
func (a *Agent) Status(ctx context.Context) (fabric.Status, error) {
	st := fabric.Status{
		Cluster: a.cluster().Name, Node: a.node, Since: a.began,
		Sessions: []fabric.Session{}, Sources: []fabric.SourceStatus{}, Problems: []string{},
	}
	asked := a.contacts(ctx)
	s, done := a.state.open()
	st.Draining, st.DrainingSince = s.draining(), s.drained
	if st.Draining {
		st.Problems = append(st.Problems, s.drainProblem())
	}
	for _, name := range sortedKeys(s.guests) {
		g := s.guests[name]
		if g.want.State != fabric.Absent {
			st.Ports += len(g.want.VM.NICs)
		}
		if g.announced {
			st.Live += len(g.want.VM.NICs) - g.nics.Down()
		}
		if text := g.troubleText(a.node); text != "" {
			st.Problems = append(st.Problems, fmt.Sprintf("guest %s: %s", name, text))
		}
		st.Problems = append(st.Problems, asked.declined(g.want.VM, a.clock())...)
	}
	st.Problems = append(st.Problems, a.conditions.list()...)
	if text := s.ownersProblem(); text != "" {
		st.Problems = append(st.Problems, text)
	}
	st.Problems = append(st.Problems, s.contests()...)
	done()
	for _, err := range a.missingHops().Errors() {
		st.Problems = append(st.Problems, oneLine(err))
	}

	sessions, err := a.speaker.Sessions(ctx)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		err = nil
	case err != nil:
		st.Problems = append(st.Problems, fmt.Sprintf("speaker: %v", err))
	}
	st.Sessions = append(st.Sessions, sessions...)
	st.Problems = append(st.Problems, a.cluster().SessionProblems(a.node, sessions)...)
	for _, d := range a.allDiagnosers() {
		st.Problems = append(st.Problems, d.Diagnose(ctx)...)
	}
	if a.registry != nil {
		problems := append(append([]string{}, a.registry.Diagnose(ctx)...), a.otherRegistries()...)
		st.Registry = &fabric.RegistryStatus{
			Kind: a.cluster().Registry.Kind(), Shared: a.registry.Shared(), Healthy: len(problems) == 0, Problems: problems,
		}
		st.Problems = append(st.Problems, problems...)
	}
	for _, s := range a.sources {
		st.Sources = append(st.Sources, s.Status())
	}
	st.Problems = append(st.Problems, a.events.problems()...)
	diversions, doubts := a.diverted.list(time.Now())
	st.Diversions, st.Problems = diversions, append(st.Problems, doubts...)
	st.Healthy = len(st.Problems) == 0
	return st, err
}

// WithDiagnosers makes [Agent.Status] report the problems of further parts, too, such
// as a resolver or an observer that runs in a program of its own.
func WithDiagnosers(d ...fabric.Diagnoser) Option {
	return func(a *Agent) { a.diagnosers = append(a.diagnosers, d...) }
}

// allDiagnosers lists the backends but for the registry, and then the further parts.
func (a *Agent) allDiagnosers() []fabric.Diagnoser {
	all := []fabric.Diagnoser{a.dataplane, a.speaker, a.store}
	if a.nodes != nil {
		all = append(all, a.nodes)
	}
	for _, s := range a.sources {
		all = append(all, s)
	}
	return append(all, a.diagnosers...)
}

func (g *guest) troubleText(node string) string {
	switch {
	case g.trouble != nil:
	case g.want.Lost != "" && g.want.State == fabric.Live:
		return lostText(g.want, node)
	default:
		return g.differs
	}
	return oneLine(g.trouble)
}

// Advertisements reports, for each peer of the node's speaker, whether a prefix was
// sent. The error is [errors.ErrUnsupported] if the speaker cannot know.
func (a *Agent) Advertisements(ctx context.Context, prefix netip.Prefix) ([]fabric.Advertisement, error) {
	all, err := a.speaker.Advertisements(ctx, prefix)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return nil, fmt.Errorf("speaker: it cannot say which prefixes it sends: %w", errors.ErrUnsupported)
	case err != nil:
		return nil, fmt.Errorf("speaker: %w", err)
	}
	return all, nil
}

// CheckForwarding tests whether packets of guests pass this node now, in each
// family of the cluster's pools, and whether the node has the next hops that it
// announces. A dataplane that cannot test it counts as one without faults.
func (a *Agent) CheckForwarding(ctx context.Context) ([]fabric.ForwardingFault, error) {
	var faults []fabric.ForwardingFault
	hops := a.missingHops()
	for _, hop := range []struct {
		family string
		err    error
	}{{"IPv4", hops.V4}, {"IPv6", hops.V6}} {
		if hop.err != nil {
			faults = append(faults, fabric.ForwardingFault{Family: hop.family, Text: oneLine(hop.err), Withdrawn: true})
		}
	}
	tried, err := a.dataplane.CheckForwarding(ctx)
	if errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	return append(faults, tried...), err
}
