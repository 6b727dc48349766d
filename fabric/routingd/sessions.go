package routingd

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/plural"
)

// settling is how long a session, or an announcement, must exist before a missing
// route on it counts as a problem.
const settling = 5 * time.Second

// How long a daemon may take to answer. A request for a node's health waits for
// several such answers, and an agent takes a plugin that is silent for long to
// hang.
const (
	sessionsBound = 5 * time.Second
	diagnoseBound = 1500 * time.Millisecond
)

// Sessions implements [fabric.Speaker], in the order of the cluster's reflectors.
// It leaves out a reflector with which the daemon has no session; Diagnose names
// it. If the daemon does not answer, it returns an error after five seconds at the
// latest.
func (s *Speaker) Sessions(ctx context.Context) ([]fabric.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, sessionsBound)
	defer cancel()
	all, err := s.ask(ctx)
	if err != nil {
		return nil, err
	}
	var found []fabric.Session
	for _, rr := range s.cfg.Cluster.Reflectors {
		if one, ok := with(rr, all); ok {
			one.Peer = rr.Name
			found = append(found, one)
		}
	}
	return found, nil
}

// ask returns all of the daemon's sessions, with the daemon's names.
func (s *Speaker) ask(ctx context.Context) ([]fabric.Session, error) {
	all, err := s.cfg.Client.Sessions(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.cfg.Name, err)
	}
	s.last.complete(all)
	return all, nil
}

// Advertisements implements [fabric.Speaker] with the daemon's answer. If the
// daemon does not answer, it returns an error after five seconds at the latest.
func (s *Speaker) Advertisements(ctx context.Context, prefix netip.Prefix) ([]fabric.Advertisement, error) {
	ctx, cancel := context.WithTimeout(ctx, sessionsBound)
	defer cancel()
	all, err := s.ask(ctx)
	if err != nil {
		return nil, err
	}
	ads := make([]fabric.Advertisement, 0, len(s.cfg.Cluster.Reflectors))
	for _, rr := range s.cfg.Cluster.Reflectors {
		theirs, ok := with(rr, all)
		if !ok {
			ads = append(ads, fabric.Advertisement{
				Peer: rr.Name, Address: rr.Address.String(),
				Reason: fmt.Sprintf("%s has no session with it; %s", s.cfg.Name, s.configured()),
			})
			continue
		}
		ours := theirs
		ours.Peer = rr.Name
		one, err := fabric.AdvertisementsOn(prefix, s.cfg.Node.Name, []fabric.Session{ours}, func(fabric.Session) (bool, error) {
			return s.cfg.Client.Sent(ctx, theirs, prefix)
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.cfg.Name, err)
		}
		if ad := &one[0]; !ad.Sent && ad.Reason == "" {
			ad.Reason = fmt.Sprintf("%s does not send it; it must have %s", s.cfg.Name, s.learns())
		}
		ads = append(ads, one...)
	}
	return ads, nil
}

// Received implements [fabric.Speaker] with the daemon's answer: routes that its
// configuration neither uses nor keeps are not in it. If the daemon does not answer, it
// returns an error after five seconds at the latest.
func (s *Speaker) Received(ctx context.Context, prefixes ...netip.Prefix) ([]fabric.ReceivedRoute, error) {
	ctx, cancel := context.WithTimeout(ctx, sessionsBound)
	defer cancel()
	all, err := s.ask(ctx)
	if err != nil {
		return nil, err
	}
	own := []netip.Addr{s.cfg.Node.Address, s.cfg.Node.Address6}
	var routes []fabric.ReceivedRoute
	for _, rr := range s.cfg.Cluster.Reflectors {
		theirs, ok := with(rr, all)
		if !ok {
			continue
		}
		for _, p := range prefixes {
			hops, err := s.cfg.Client.Received(ctx, theirs, p)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.cfg.Name, err)
			}
			for _, via := range hops {
				if !slices.Contains(own, via) {
					routes = append(routes, fabric.ReceivedRoute{Prefix: p, Via: via, Peer: rr.Name})
				}
			}
		}
	}
	return routes, nil
}

// configured says how to load the daemon's configuration.
func (s *Speaker) configured() string {
	if s.printed == "" {
		return "load the configuration that is rendered for this node"
	}
	return "load what this prints: " + s.printed
}

// learns says what the daemon's configuration must have so that it takes routes up.
func (s *Speaker) learns() string {
	if s.printed == "" {
		return s.cfg.Learns
	}
	return s.cfg.Learns + ": " + s.printed
}

func with(rr fabric.RR, all []fabric.Session) (fabric.Session, bool) {
	i := slices.IndexFunc(all, func(s fabric.Session) bool { return s.Address == rr.Address.String() })
	if i < 0 {
		return fabric.Session{}, false
	}
	return all[i], true
}

// Diagnose implements [fabric.Diagnoser]: the daemon does not answer, has no
// session with a reflector, or does not send a route that has been announced for
// some seconds. It returns after two seconds at the latest.
func (s *Speaker) Diagnose(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, diagnoseBound)
	defer cancel()
	all, err := s.ask(ctx)
	if err != nil {
		return []string{err.Error()}
	}
	routes, err := s.Actual(ctx)
	if err != nil {
		return []string{err.Error()}
	}
	return s.problems(all, routes, s.LastChange(), time.Now())
}

// problems says what is wrong with a daemon that has these sessions, on a node that
// announces these routes since last. It leaves out the routes of a family that a
// session does not carry: that is a problem of its own.
func (s *Speaker) problems(all []fabric.Session, routes []fabric.Route, last, now time.Time) []string {
	var problems []string
	for _, rr := range s.cfg.Cluster.Reflectors {
		one, ok := with(rr, all)
		announced := 0
		for _, r := range routes {
			if !one.Lacks(fabric.FamilyOf(r.Prefix)) {
				announced++
			}
		}
		settled := last
		if one.Since.After(last) {
			settled = one.Since
		}
		switch {
		case !ok:
			problems = append(problems, fmt.Sprintf("%s has no session with reflector %s (%s); %s",
				s.cfg.Name, rr.Name, rr.Address, s.configured()))
		case one.State == "established" && one.Advertised < uint64(announced) && now.Sub(settled) > settling:
			problems = append(problems, fmt.Sprintf("%s sends reflector %s (%s) %d of the %s that this node announces; it must have %s",
				s.cfg.Name, rr.Name, rr.Address, one.Advertised, plural.Of(announced, "prefix", "prefixes"), s.learns()))
		}
	}
	return problems
}
