package fake

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/signal"
)

// Speaker is a [fabric.Speaker] that announces to nobody.
type Speaker struct {
	Trouble
	journal     *Journal
	changed     signal.Signal
	competitors chan fabric.Competitor

	mu       sync.Mutex
	routes   map[netip.Prefix]fabric.Route
	sessions []fabric.Session
	received []fabric.ReceivedRoute
	muted    bool
}

var _ fabric.Speaker = (*Speaker)(nil)

// NewSpeaker makes a speaker with no routes. It writes to j.
func NewSpeaker(j *Journal) *Speaker {
	return &Speaker{journal: j, changed: signal.New(), competitors: make(chan fabric.Competitor, 16), routes: map[netip.Prefix]fabric.Route{}}
}

// Actual implements [fabric.Speaker]. It sorts the routes by prefix.
func (s *Speaker) Actual(ctx context.Context) ([]fabric.Route, error) {
	if err := s.before(ctx, "list routes"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	routes := slices.Collect(maps.Values(s.routes))
	slices.SortFunc(routes, func(a, b fabric.Route) int { return a.Prefix.Compare(b.Prefix) })
	return routes, nil
}

// Put implements [fabric.Speaker]. It stops at the first route that fails.
func (s *Speaker) Put(ctx context.Context, routes ...fabric.Route) error {
	for _, r := range routes {
		effect := "announce " + r.Prefix.String()
		if r.Preference != fabric.Normal {
			effect += " " + r.Preference.String()
		}
		if r.First {
			effect += " first"
		}
		if err := s.before(ctx, effect); err != nil {
			return err
		}
		s.mu.Lock()
		have, there := s.routes[r.Prefix]
		s.routes[r.Prefix] = r
		if have.Holder = r.Holder; !there || have != r { // the holder is not in the journal
			s.journal.add(effect)
		}
		s.mu.Unlock()
	}
	return nil
}

// Remove implements [fabric.Speaker]. It stops at the first route that fails.
func (s *Speaker) Remove(ctx context.Context, prefixes ...netip.Prefix) error {
	for _, p := range prefixes {
		effect := "withdraw " + p.String()
		if err := s.before(ctx, effect); err != nil {
			return err
		}
		s.mu.Lock()
		if _, there := s.routes[p]; there {
			delete(s.routes, p)
			s.journal.add(effect)
		}
		s.mu.Unlock()
	}
	return nil
}

// Changed implements [fabric.Speaker].
func (s *Speaker) Changed() <-chan struct{} { return s.changed }

// Sessions implements [fabric.Speaker].
func (s *Speaker) Sessions(ctx context.Context) ([]fabric.Session, error) {
	if err := s.before(ctx, "list sessions"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sessions), nil
}

// Advertisements implements [fabric.Speaker]. It is not supported.
func (*Speaker) Advertisements(context.Context, netip.Prefix) ([]fabric.Advertisement, error) {
	return nil, errors.ErrUnsupported
}

// Received implements [fabric.Speaker].
func (s *Speaker) Received(ctx context.Context, prefixes ...netip.Prefix) ([]fabric.ReceivedRoute, error) {
	if err := s.before(ctx, "list received routes"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.received), func(r fabric.ReceivedRoute) bool { return !slices.Contains(prefixes, r.Prefix) }), nil
}

// SetReceived sets what the reflectors have sent.
func (s *Speaker) SetReceived(routes ...fabric.ReceivedRoute) {
	s.outside(func() { s.received = routes })
}

// Competitors implements [fabric.Speaker].
func (s *Speaker) Competitors() <-chan fabric.Competitor { return s.competitors }

// Compete emits another node's competing route, as from a reflector.
func (s *Speaker) Compete(r fabric.Competitor) { s.competitors <- r }

// SetSessions sets the sessions.
func (s *Speaker) SetSessions(sessions ...fabric.Session) {
	s.outside(func() { s.sessions = sessions })
}

// Lose removes routes behind the speaker's back.
func (s *Speaker) Lose(prefixes ...netip.Prefix) {
	s.outside(func() {
		for _, p := range prefixes {
			delete(s.routes, p)
		}
	})
}

// Mute keeps Changed silent, as if events were lost.
func (s *Speaker) Mute(silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.muted = silent
}

func (s *Speaker) outside(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	if !s.muted {
		s.changed.Send()
	}
}
