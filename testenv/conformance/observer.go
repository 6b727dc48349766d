package conformance

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// ObserverControls has the functions that the observer's suite needs beside the
// observer.
type ObserverControls struct {
	// Received returns the events that have arrived, in order; it may lag.
	Received func(t *testing.T) []fabric.Event
	// Hang makes Observe wait until its context ends, or release is called.
	Hang func(t *testing.T) (release func())
}

// Observer runs the laws of [fabric.Observer] as subtests. Each call of start makes
// an observer without events, which lives until its t ends.
func Observer(t *testing.T, start func(t *testing.T) (fabric.Observer, ObserverControls)) {
	for _, law := range []struct {
		name string
		hold func(*testing.T, fabric.Observer, ObserverControls)
	}{
		{"takes every kind of event, both families", observerKinds},
		{"an event comes through unchanged", observerUnchanged},
		{"a kind that it does not know is no error", observerUnknown},
		{"events keep their order", observerOrder},
		{"the end of the context is the end of waiting", observerContext},
	} {
		t.Run(law.name, func(t *testing.T) {
			o, c := start(t)
			law.hold(t, o, c)
		})
	}
}

var longAgo = time.Date(2026, 11, 22, 12, 3, 4, 567890123, time.UTC)

// events returns one event of each kind, as an agent emits it.
func events(ps ...netip.Prefix) []fabric.Event {
	guest := func(kind fabric.EventKind, ports ...string) fabric.Event {
		return fabric.Event{
			At: longAgo, Kind: kind, Cluster: "msk1", Node: "node1",
			VM: "web", UUID: "6b9c1c3e-7b0a-4b61-9c59-0d6f8a3f2d11", Ports: ports, Prefixes: ps,
		}
	}
	announced := guest(fabric.Announced)
	announced.Preference = fabric.Fresh
	session := fabric.Event{
		At: longAgo, Kind: fabric.SessionChanged, Cluster: "msk1", Node: "node1",
		Session: &fabric.Session{Peer: "rr1", Address: "10.10.0.11", State: "established", Since: longAgo.Add(-time.Hour), Advertised: 7},
	}
	return []fabric.Event{
		guest(fabric.Attached, "web_net0", "web_net1"), announced, guest(fabric.Moved, "web_net0"),
		guest(fabric.Withdrawn), guest(fabric.Detached, "web_net0"), session,
	}
}

// plain returns the event without differences that do not count: time zones, and
// nil against empty slices.
func plain(e fabric.Event) fabric.Event {
	e.At = e.At.UTC().Round(0)
	if e.Session != nil {
		s := *e.Session
		s.Since = s.Since.UTC().Round(0)
		e.Session = &s
	}
	e.Ports, e.Prefixes = append([]string{}, e.Ports...), append([]netip.Prefix{}, e.Prefixes...)
	return e
}

// requireReceived waits until exactly these events have arrived.
func requireReceived(t *testing.T, c ObserverControls, want ...fabric.Event) {
	t.Helper()
	if c.Received == nil {
		return
	}
	var got []fabric.Event
	eventually(t, fmt.Sprintf("%d events arrive", len(want)), func() bool {
		got = c.Received(t)
		return len(got) >= len(want)
	})
	require.Len(t, got, len(want))
	for i := range want {
		require.Equal(t, plain(want[i]), plain(got[i]))
	}
}

func observerKinds(t *testing.T, o fabric.Observer, c ObserverControls) {
	var want []fabric.Event
	for _, family := range [][]netip.Prefix{both[:1], both[1:], both, prefixes("198.51.100.0/29", "2001:db8:200::/64")} {
		for _, e := range events(family...) {
			require.NoError(t, o.Observe(t.Context(), e), string(e.Kind))
			want = append(want, e)
		}
	}
	requireReceived(t, c, want...)
}

func observerUnchanged(t *testing.T, o fabric.Observer, c ObserverControls) {
	need(t, c.Received != nil, "Received")
	full := events(both...)[0]
	full.Preference, full.Dropped = fabric.Standby, 12345
	full.Session = &fabric.Session{Peer: "rr2", Address: "fd00:10::12", State: "opensent", Since: longAgo, Advertised: 1 << 40}
	full.VM = "мой сервер \"quoted\"\n"
	bare := fabric.Event{At: longAgo, Kind: fabric.Attached}
	for _, e := range []fabric.Event{full, bare} {
		require.NoError(t, o.Observe(t.Context(), e))
	}
	requireReceived(t, c, full, bare)
}

func observerUnknown(t *testing.T, o fabric.Observer, _ ObserverControls) {
	e := events(both...)[0]
	e.Kind = "of-a-later-release"
	require.NoError(t, o.Observe(t.Context(), e), "what it does not know it leaves alone")
}

func observerOrder(t *testing.T, o fabric.Observer, c ObserverControls) {
	var want []fabric.Event
	for i := range 200 {
		e := events(both...)[i%len(events())]
		e.At = e.At.Add(time.Duration(i) * time.Microsecond)
		require.NoError(t, o.Observe(t.Context(), e))
		want = append(want, e)
	}
	requireReceived(t, c, want...)
}

func observerContext(t *testing.T, o fabric.Observer, c ObserverControls) {
	began := time.Now()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	all := events(both...)
	_ = o.Observe(gone, all[0]) // the observer may take the event all the same
	require.Less(t, time.Since(began), patience)

	need(t, c.Hang != nil, "Hang")
	release := c.Hang(t)
	short, cancel := context.WithTimeout(t.Context(), quiet)
	defer cancel()
	requireReason(t, o.Observe(short, all[1]))
	require.Less(t, time.Since(began), patience)
	release()
	require.NoError(t, o.Observe(t.Context(), all[2]), "the next one, after one that it did not take")
	if c.Received != nil {
		eventually(t, "the next one arrives", func() bool {
			return slices.ContainsFunc(c.Received(t), func(e fabric.Event) bool { return e.Kind == all[2].Kind })
		})
	}
}
