// Package peering holds the BGP sessions of a routing daemon on the node
// against the cluster, and against what the node announces.
package peering

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/plural"
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
	// Sent reports whether a prefix was sent on one of these.
	Sent func(context.Context, fabric.Session, netip.Prefix) (bool, error)
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

// Advertisements says to which of the reflectors the daemon has sent a prefix.
func (d Daemon) Advertisements(ctx context.Context, prefix netip.Prefix) ([]fabric.Advertisement, error) {
	ctx, cancel := context.WithTimeout(ctx, sessionsBound)
	defer cancel()
	all, err := d.Ask(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Name, err)
	}
	var found []fabric.Session
	of := map[string]fabric.Session{} // as the daemon has them, by address
	for _, rr := range d.Cluster.Reflectors {
		s, ok := with(rr, all)
		of[rr.Address.String()] = s
		if !ok {
			s = fabric.Session{Address: rr.Address.String(), State: "idle"}
		}
		s.Peer = rr.Name
		found = append(found, s)
	}
	ads, err := fabric.AdvertisementsOn(prefix, d.Node, found, func(s fabric.Session) (bool, error) {
		return d.Sent(ctx, of[s.Address], prefix)
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Name, err)
	}
	for i, rr := range d.Cluster.Reflectors {
		switch _, ok := with(rr, all); {
		case !ok:
			ads[i].Reason = fmt.Sprintf("%s has no session with it; load what this prints: %s", d.Name, d.render())
		case !ads[i].Sent && ads[i].Reason == "":
			ads[i].Reason = fmt.Sprintf("%s does not send it; it must have %s: %s", d.Name, d.Learns, d.render())
		}
	}
	return ads, nil
}

// render is the command that prints what the daemon is to be configured with.
func (d Daemon) render() string {
	return fmt.Sprintf("vmfabric render %s --for %s", d.Name, cmp.Or(d.Node, "NODE"))
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
	return d.problems(all, routes, a.LastChange(), time.Now())
}

// problems says what is wrong with a daemon that has these sessions, on a node
// that announces these routes since last. Those of a family that a session does
// not carry are left out: that is a problem of its own.
func (d Daemon) problems(all []fabric.Session, routes []fabric.Route, last, now time.Time) []string {
	var problems []string
	render := d.render()
	for _, rr := range d.Cluster.Reflectors {
		s, ok := with(rr, all)
		announced := 0
		for _, r := range routes {
			if !s.Lacks(fabric.FamilyOf(r.Prefix)) {
				announced++
			}
		}
		settled := last
		if s.Since.After(last) {
			settled = s.Since
		}
		switch {
		case !ok:
			problems = append(problems, fmt.Sprintf("%s has no session with reflector %s (%s); load what this prints: %s",
				d.Name, rr.Name, rr.Address, render))
		case s.State == "established" && s.Advertised < uint64(announced) && now.Sub(settled) > settling:
			problems = append(problems, fmt.Sprintf("%s sends reflector %s (%s) %d of the %s that this node announces; it must have %s: %s",
				d.Name, rr.Name, rr.Address, s.Advertised, plural.Of(announced, "prefix", "prefixes"), d.Learns, render))
		}
	}
	return problems
}
