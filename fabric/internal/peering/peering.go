// Package peering holds the BGP sessions of a routing daemon on the node
// against the cluster, and against what the node announces.
package peering

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// settling is how long a session, or what is announced, may be new before what
// it carries counts.
const settling = 5 * time.Second

// How long a daemon may take to answer: whoever asks for a node's health waits
// for several such parts of it, and takes a plugin that is silent for long to
// hang.
const (
	sessionsBound = 5 * time.Second
	diagnoseBound = 1500 * time.Millisecond
)

// Daemon is a routing daemon on a node.
type Daemon struct {
	Name    string // as `vmfabric render` has it
	Node    string
	Learns  string // what must be in its configuration for it to take routes up
	Cluster fabric.Cluster
	Ask     func(context.Context) ([]fabric.Session, error) // for all its sessions
}

// Sessions gives those of the daemon's sessions that are with reflectors of the
// cluster, under the reflectors' names and in their order.
func (d Daemon) Sessions(ctx context.Context) ([]fabric.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, sessionsBound)
	defer cancel()
	all, err := d.Ask(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Name, err)
	}
	var found []fabric.Session
	for _, rr := range d.Cluster.Reflectors {
		if s, ok := with(rr, all); ok {
			s.Peer = rr.Name
			found = append(found, s)
		}
	}
	return found, nil
}

func with(rr fabric.RR, all []fabric.Session) (fabric.Session, bool) {
	i := slices.IndexFunc(all, func(s fabric.Session) bool { return s.Address == rr.Address.String() })
	if i < 0 {
		return fabric.Session{}, false
	}
	return all[i], true
}

// Announcer is what announces through the daemon.
type Announcer interface {
	Actual(context.Context) ([]fabric.Route, error)
	LastChange() time.Time
}

// Diagnose says what ails a daemon through which a announces.
func (d Daemon) Diagnose(a Announcer) []string {
	ctx, cancel := context.WithTimeout(context.Background(), diagnoseBound)
	defer cancel()
	all, err := d.Ask(ctx)
	if err != nil {
		return []string{fmt.Sprintf("%s: %v", d.Name, err)}
	}
	routes, err := a.Actual(ctx)
	if err != nil {
		return []string{err.Error()}
	}
	return d.problems(all, len(routes), a.LastChange(), time.Now())
}

// problems says what is wrong with a daemon that has these sessions, on a node
// that announces so many prefixes since last.
func (d Daemon) problems(all []fabric.Session, announced int, last, now time.Time) []string {
	var problems []string
	render := fmt.Sprintf("vmfabric render %s --for %s", d.Name, cmp.Or(d.Node, "NODE"))
	for _, rr := range d.Cluster.Reflectors {
		s, ok := with(rr, all)
		settled := last
		if s.Since.After(last) {
			settled = s.Since
		}
		switch {
		case !ok:
			problems = append(problems, fmt.Sprintf("%s has no session with reflector %s (%s); load what this prints: %s",
				d.Name, rr.Name, rr.Address, render))
		case s.State == "established" && s.Advertised < uint64(announced) && now.Sub(settled) > settling:
			problems = append(problems, fmt.Sprintf("%s sends reflector %s (%s) %d of the %d prefixes that this node announces; it must have %s: %s",
				d.Name, rr.Name, rr.Address, s.Advertised, announced, d.Learns, render))
		}
	}
	return problems
}
