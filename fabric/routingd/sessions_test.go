package routingd

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

var (
	now     = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	cluster = fabric.Cluster{Reflectors: []fabric.RR{
		{Name: "rr1", Address: netip.MustParseAddr("10.10.0.11")}, {Name: "rr2", Address: netip.MustParseAddr("fd00:10:10::12")},
	}}
)

// client is a daemon with these sessions.
type client struct {
	sessions []fabric.Session
	sent     func(fabric.Session) (bool, error)
	received []netip.Addr
	err      error
}

func (c *client) Sessions(context.Context) ([]fabric.Session, error) {
	return slices.Clone(c.sessions), c.err
}

func (c *client) Sent(_ context.Context, s fabric.Session, _ netip.Prefix) (bool, error) {
	return c.sent(s)
}

func (c *client) Received(context.Context, fabric.Session, netip.Prefix) ([]netip.Addr, error) {
	return c.received, c.err
}

// over gives a speaker over a daemon, which can announce nothing.
func over(c *client) *Speaker {
	return &Speaker{log: slog.New(slog.DiscardHandler), printed: "vmfabric render bird --for node1", cfg: Config{
		Cluster: cluster, Node: fabric.Node{Name: "node1"}, Name: "bird", Learns: "protocol kernel with learn", Client: c,
	}}
}

func session(address, state string, advertised uint64, ago time.Duration) fabric.Session {
	return fabric.Session{Peer: "to_somebody", Address: address, State: state, Since: now.Add(-ago), Advertised: advertised}
}

func TestSessionsOfReflectors(t *testing.T) {
	t.Parallel()
	six, other, four := session("fd00:10:10::12", "idle", 0, 0), session("192.0.2.1", "established", 9, 0), session("10.10.0.11", "established", 2, 0)
	got, err := over(&client{sessions: []fabric.Session{six, other, four}}).Sessions(t.Context())
	require.NoError(t, err)
	four.Peer, six.Peer = "rr1", "rr2"
	assert.Equal(t, []fabric.Session{four, six}, got)
}

func TestDaemonThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	s := over(&client{err: errors.New("it does not run; start bird")})
	_, err := s.Sessions(t.Context())
	require.EqualError(t, err, "bird: it does not run; start bird")
	assert.Equal(t, []string{"bird: it does not run; start bird"}, s.Diagnose(t.Context()))
	_, err = s.Advertisements(t.Context(), netip.MustParsePrefix("2001:db8:100::10/128"))
	require.EqualError(t, err, "bird: it does not run; start bird")
}

func TestProblems(t *testing.T) {
	t.Parallel()
	const hour = time.Hour
	announced := []fabric.Route{{Prefix: netip.MustParsePrefix("203.0.113.10/32")}, {Prefix: netip.MustParsePrefix("2001:db8:100::10/128")}}
	four, six := session("10.10.0.11", "established", 1, hour), session("fd00:10:10::12", "established", 1, hour)
	four.Families, six.Families = []fabric.Family{fabric.IPv4}, []fabric.Family{fabric.IPv6}
	short := "bird sends reflector rr1 (10.10.0.11) 1 of the 2 prefixes that this node announces; it must have protocol kernel with learn: vmfabric render bird --for node1"
	for _, tc := range []struct {
		name     string
		sessions []fabric.Session
		last     time.Duration
		want     []string
	}{
		{"all is well", []fabric.Session{session("10.10.0.11", "established", 2, hour), session("fd00:10:10::12", "established", 3, hour)}, hour, nil},
		{"a session is down", []fabric.Session{session("10.10.0.11", "established", 2, hour), session("fd00:10:10::12", "connect", 0, hour)}, hour, nil},
		{"no session", []fabric.Session{session("10.10.0.11", "established", 2, hour)}, hour, []string{
			"bird has no session with reflector rr2 (fd00:10:10::12); load what this prints: vmfabric render bird --for node1",
		}},
		{"one is not sent", []fabric.Session{session("10.10.0.11", "established", 1, hour), session("fd00:10:10::12", "established", 2, hour)}, hour, []string{short}},
		{"not yet", []fabric.Session{session("10.10.0.11", "established", 1, hour), session("fd00:10:10::12", "established", 2, hour)}, time.Second, nil},
		{"a family each", []fabric.Session{four, six}, hour, nil},
		{"up for a moment", []fabric.Session{session("10.10.0.11", "established", 1, time.Second), session("fd00:10:10::12", "established", 2, hour)}, hour, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			assert.Equal(t, tc.want, over(nil).problems(tc.sessions, announced, now.Add(-tc.last), now))
		})
	}
}

// TestNobodyPrints: a speaker that no command of ours stands behind names none.
func TestNobodyPrints(t *testing.T) {
	t.Parallel()
	s := over(&client{sessions: []fabric.Session{session("10.10.0.11", "established", 0, time.Hour)}})
	s.printed = ""
	announced := []fabric.Route{{Prefix: netip.MustParsePrefix("203.0.113.10/32")}, {Prefix: netip.MustParsePrefix("2001:db8:100::10/128")}}
	assert.Equal(t, []string{
		"bird sends reflector rr1 (10.10.0.11) 0 of the 2 prefixes that this node announces; it must have protocol kernel with learn",
		"bird has no session with reflector rr2 (fd00:10:10::12); load the configuration that is rendered for this node",
	}, s.problems([]fabric.Session{session("10.10.0.11", "established", 0, time.Hour)}, announced, now.Add(-time.Hour), now))
}

func TestAdvertisements(t *testing.T) {
	t.Parallel()
	sent := map[string]bool{"10.10.0.11": true}
	c := &client{sessions: []fabric.Session{session("10.10.0.11", "established", 1, 0)}}
	c.sent = func(s fabric.Session) (bool, error) {
		assert.Equal(t, "to_somebody", s.Peer, "as the daemon has it")
		return sent[s.Address], nil
	}
	s := over(c)
	for _, prefix := range []string{"203.0.113.10/32", "2001:db8:100::10/128"} {
		got, err := s.Advertisements(t.Context(), netip.MustParsePrefix(prefix))
		require.NoError(t, err)
		assert.Equal(t, []fabric.Advertisement{
			{Peer: "rr1", Address: "10.10.0.11", Sent: true},
			{Peer: "rr2", Address: "fd00:10:10::12", Reason: "bird has no session with it; load what this prints: vmfabric render bird --for node1"},
		}, got)
	}
	c.sessions = append(c.sessions, session("fd00:10:10::12", "established", 0, 0))
	got, err := s.Advertisements(t.Context(), netip.MustParsePrefix("2001:db8:100::10/128"))
	require.NoError(t, err)
	assert.False(t, got[1].Sent)
	assert.Equal(t, "bird does not send it; it must have protocol kernel with learn: vmfabric render bird --for node1", got[1].Reason)
	c.sent = func(fabric.Session) (bool, error) { return false, errors.New("no answer") }
	_, err = s.Advertisements(t.Context(), netip.MustParsePrefix("203.0.113.10/32"))
	require.EqualError(t, err, "bird: no answer")
}
