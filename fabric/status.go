package fabric

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// PortEntry is one port in the list that people and programs see.
type PortEntry struct {
	VM        string         `json:"vm"`
	Port      string         `json:"port"`
	Kind      Kind           `json:"kind"`
	State     State          `json:"state"` // Wired or Live, as it is, not as it is wanted
	Addresses []netip.Addr   `json:"addresses"`
	Routes    []netip.Prefix `json:"routes"`
	Since     time.Time      `json:"since"`
	Origin    string         `json:"origin,omitempty"`
	Trouble   string         `json:"trouble,omitempty"` // why the port is not as it is wanted
}

// SourceStatus is how a [Source] fares.
type SourceStatus struct {
	Name      string    `json:"name"`
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since,omitzero"`      // of the connection, or of its absence
	LastEvent time.Time `json:"last_event,omitzero"` // zero before the first
	Guests    int       `json:"guests"`              // of ours, seen running
}

// SourceReporter is implemented by a [Source] that can tell how it fares.
type SourceReporter interface {
	Status() SourceStatus
}

// Status is the health of a node, or of an embedded reflector, which has no
// guests.
type Status struct {
	Cluster  string `json:"cluster"`
	Node     string `json:"node"`           // its name, or the reflector's
	Role     string `json:"role,omitempty"` // "reflector"; empty: a node
	Healthy  bool   `json:"healthy"`        // no problems
	Draining bool   `json:"draining,omitempty"`
	// DrainingSince is when [Agent.Drain] was asked for; zero: the node is not being drained.
	DrainingSince time.Time      `json:"draining_since,omitzero"`
	Since         time.Time      `json:"since"` // start of the agent
	Sessions      []Session      `json:"sessions"`
	Sources       []SourceStatus `json:"sources"`
	Ports         int            `json:"ports"`
	Live          int            `json:"live"`     // ports whose guest is announced
	Problems      []string       `json:"problems"` // one line each: the thing, the reason, the way out

	Diversions []DiversionStatus `json:"diversions,omitempty"` // under way, or ended in the last minutes
}

// List gives every port that is wanted on this node, by VM name and index.
func (a *Agent) List(context.Context) ([]PortEntry, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	entries := make([]PortEntry, 0, len(a.guests))
	for _, name := range sortedKeys(a.guests) {
		g := a.guests[name]
		if g.want.State == Absent {
			continue
		}
		for _, p := range g.want.VM.Ports(&a.cluster) {
			state := Wired
			if g.announced && g.stand[p.Index] != down {
				state = Live
			}
			e := PortEntry{
				VM: name, Port: p.Name, Kind: p.NIC.Kind, State: state,
				Addresses: slices.Clone(p.NIC.Addresses), Routes: slices.Clone(p.NIC.Routes),
				Since: g.want.Since, Origin: g.want.VM.Origin, Trouble: g.troubleText(a.node),
			}
			if e.Routes == nil {
				e.Routes = []netip.Prefix{}
			}
			entries = append(entries, e)
		}
	}
	return entries, nil
}

// Status gives the health of the node. An error means that a backend did not
// answer; the status is filled in as far as it is known.
func (a *Agent) Status(ctx context.Context) (Status, error) {
	st := Status{
		Cluster: a.cluster.Name, Node: a.node, Since: a.began,
		Sessions: []Session{}, Sources: []SourceStatus{}, Problems: []string{},
	}
	a.mu.Lock()
	st.Draining, st.DrainingSince = a.draining(), a.drained
	if st.Draining {
		st.Problems = append(st.Problems, a.drainProblem())
	}
	for _, name := range sortedKeys(a.guests) {
		g := a.guests[name]
		if g.want.State != Absent {
			st.Ports += len(g.want.VM.NICs)
		}
		if g.announced {
			st.Live += len(g.want.VM.NICs) - g.stand.down()
		}
		if text := g.troubleText(a.node); text != "" {
			st.Problems = append(st.Problems, fmt.Sprintf("guest %s: %s", name, text))
		}
	}
	for _, key := range sortedKeys(a.ailments) {
		st.Problems = append(st.Problems, a.ailments[key])
	}
	st.Problems = append(st.Problems, a.contests()...)
	a.mu.Unlock()
	for _, err := range a.missingHops().errors() {
		st.Problems = append(st.Problems, oneLine(err))
	}

	var err error
	if l, ok := a.speaker.(SessionLister); ok {
		var sessions []Session
		if sessions, err = l.Sessions(ctx); err != nil {
			st.Problems = append(st.Problems, fmt.Sprintf("speaker: %v", err))
		}
		st.Sessions = append(st.Sessions, sessions...)
		st.Problems = append(st.Problems, sessionProblems(&a.cluster, a.node, sessions)...)
	}
	for _, backend := range a.backends() {
		if d, ok := backend.(Diagnoser); ok {
			st.Problems = append(st.Problems, d.Diagnose()...)
		}
		if s, ok := backend.(SourceReporter); ok {
			st.Sources = append(st.Sources, s.Status())
		}
	}
	st.Problems = append(st.Problems, a.events.problems()...)
	diversions, doubts := a.diverted.list(time.Now())
	st.Diversions, st.Problems = diversions, append(st.Problems, doubts...)
	st.Healthy = len(st.Problems) == 0
	return st, err
}

func (a *Agent) backends() []any {
	all := []any{a.dataplane, a.speaker, a.store, a.resolver, a.nodes}
	for _, s := range a.sources {
		all = append(all, s)
	}
	for _, l := range a.events.listeners {
		all = append(all, l.observer)
	}
	return all
}

func (g *guest) troubleText(node string) string {
	switch {
	case g.trouble != nil:
	case g.want.Lost != "" && g.want.State == Live:
		return lostText(g.want, node)
	default:
		return g.differs
	}
	return strings.ReplaceAll(g.trouble.Error(), "\n", "; ")
}
