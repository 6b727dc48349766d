package gobgp_test

import (
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/gobgptest"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/peering"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// script is what a reflector of the test does on each connection.
type script struct {
	asn      uint32
	families []bgp.Family         // that it offers; none: it has no multiprotocol capability
	before   *bgp.BGPNotification // in place of its OPEN
	opening  *bgp.BGPNotification // in place of its KEEPALIVE
	after    *bgp.BGPNotification // once the session is up and end is closed
	end      chan struct{}
	gone     chan struct{}        // closed: it closes the connection without a word
	hold     chan struct{}        // it waits for its end before its KEEPALIVE; nil: it does not
	update   func(*bgp.BGPUpdate) // each UPDATE
}

// play stands for the first reflector of a cluster.
func play(t *testing.T, c fabric.Cluster, s script) {
	t.Helper()
	rr := c.Reflectors[0]
	l, err := net.Listen("tcp", net.JoinHostPort(rr.Address.String(), strconv.Itoa(int(rr.Port))))
	require.NoError(t, err)
	ended, done := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(ended); l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.serve(conn, ended)
			conn.Close()
		}
	}()
}

func (s script) serve(conn net.Conn, ended chan struct{}) {
	send := func(m *bgp.BGPMessage) bool {
		b, err := m.Serialize()
		if err == nil {
			_, err = conn.Write(b)
		}
		return err == nil
	}
	end := func(n *bgp.BGPNotification) {
		send(bgp.NewBGPNotificationMessage(n.ErrorCode, n.ErrorSubcode, n.Data))
		_ = conn.(*net.TCPConn).CloseWrite()
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		_, _ = io.Copy(io.Discard, conn)
	}
	if s.before != nil {
		end(s.before)
		return
	}
	caps := []bgp.ParameterCapabilityInterface{bgp.NewCapFourOctetASNumber(s.asn)}
	for _, f := range s.families {
		caps = append(caps, bgp.NewCapMultiProtocol(f))
	}
	open, err := bgp.NewBGPOpenMessage(bgp.AS_TRANS, 90, netip.MustParseAddr("192.0.2.9"), []bgp.OptionParameterInterface{bgp.NewOptionParameterCapability(caps)})
	if err != nil || !send(open) {
		return
	}
	if s.opening != nil {
		end(s.opening)
		return
	}
	if s.hold != nil {
		select {
		case <-s.hold:
		case <-ended:
			return
		}
	}
	if !send(bgp.NewBGPKeepAliveMessage()) {
		return
	}
	for s.update != nil {
		m, err := gobgptest.ReadMessage(conn)
		if err != nil {
			return
		}
		if u, ok := m.Body.(*bgp.BGPUpdate); ok {
			s.update(u)
		}
	}
	if s.gone != nil {
		select {
		case <-s.gone:
		case <-ended:
		}
		return
	}
	if s.after == nil {
		_, _ = io.Copy(io.Discard, conn)
		return
	}
	select {
	case <-s.end:
		end(s.after)
	case <-ended:
	}
}

// run runs a speaker until the end of the test. What is put after it came after Run.
func run(t *testing.T, s *gobgp.Speaker) {
	t.Helper()
	gobgptest.Run(t, s)
	gobgptest.Eventually(t, "it opens its sessions", func() bool { return opens(t, s) })
}

// opens reports whether Run has begun with the sessions.
func opens(t *testing.T, s *gobgp.Speaker) bool {
	t.Helper()
	all, err := s.Sessions(t.Context())
	require.NoError(t, err)
	return slices.ContainsFunc(all, func(one fabric.Session) bool { return one.State != "idle" })
}

// opened starts a speaker of node1 that announces a prefix of each family.
func opened(t *testing.T, c fabric.Cluster) *gobgp.Speaker {
	t.Helper()
	s, err := gobgp.New(gobgp.Config{Cluster: c, Node: c.Nodes[0]})
	require.NoError(t, err)
	run(t, s)
	require.NoError(t, s.Put(t.Context(), fabric.Route{Prefix: gobgptest.V4}, fabric.Route{Prefix: gobgptest.V6}))
	return s
}

func sessionOf(t *testing.T, s *gobgp.Speaker) fabric.Session {
	t.Helper()
	all, err := s.Sessions(t.Context())
	require.NoError(t, err)
	require.Len(t, all, 1)
	return all[0]
}

// TestFamilies: what a reflector takes is known family by family, and prefix by
// prefix.
func TestFamilies(t *testing.T) {
	labtest.Long(t)
	for n, tc := range []struct {
		name     string
		families []bgp.Family
		want     []fabric.Family
	}{
		{"both", []bgp.Family{bgp.RF_IPv4_UC, bgp.RF_IPv6_UC}, []fabric.Family{fabric.IPv4, fabric.IPv6}},
		{"IPv4", []bgp.Family{bgp.RF_IPv4_UC}, []fabric.Family{fabric.IPv4}},
		{"IPv6", []bgp.Family{bgp.RF_IPv6_UC}, []fabric.Family{fabric.IPv6}},
		{"no multiprotocol capability", nil, []fabric.Family{fabric.IPv4}},
		{"neither", []bgp.Family{bgp.RF_IPv4_VPN}, []fabric.Family{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := gobgptest.ClusterAt(gobgptest.Port + 40 + uint16(n))
			play(t, c, script{asn: c.ASN, families: tc.families})
			s := opened(t, c)
			gobgptest.Eventually(t, "the session is up", func() bool { return sessionOf(t, s).State == "established" })
			session := sessionOf(t, s)
			assert.Equal(t, tc.want, session.Families)
			assert.EqualValues(t, len(tc.want), session.Advertised, "what is sent, not what could be")
			for p, f := range map[netip.Prefix]fabric.Family{gobgptest.V4: fabric.IPv4, gobgptest.V6: fabric.IPv6} {
				sent, err := s.Advertisements(t.Context(), p)
				require.NoError(t, err)
				require.Len(t, sent, 1)
				assert.Equal(t, "rr1", sent[0].Peer)
				assert.Equal(t, !session.Lacks(f), sent[0].Sent, p)
				if session.Lacks(f) {
					assert.Contains(t, sent[0].Reason, "it takes no "+f.String())
				}
			}
			sent, err := s.Advertisements(t.Context(), netip.MustParsePrefix("203.0.113.99/32"))
			require.NoError(t, err)
			assert.False(t, sent[0].Sent, "not announced")
		})
	}
}

// TestSegments: a reflector is asked to send no packets that a path may not pass, whatever
// the links say.
func TestSegments(t *testing.T) {
	labtest.Long(t)
	c := gobgptest.ClusterAt(gobgptest.Port + 39)
	rr := c.Reflectors[0]
	l, err := net.Listen("tcp", net.JoinHostPort(rr.Address.String(), strconv.Itoa(int(rr.Port))))
	require.NoError(t, err)
	defer l.Close()
	opened(t, c)
	conn, err := l.Accept()
	require.NoError(t, err)
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	require.NoError(t, err)
	var most int
	require.NoError(t, raw.Control(func(fd uintptr) { most, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) }))
	require.NoError(t, err)
	assert.LessOrEqual(t, most, peering.Segment, "what this side may send")
}

// TestNotifications: the last NOTIFICATION of a session is known, in whichever
// state and direction it passed.
func TestNotifications(t *testing.T) {
	labtest.Long(t)
	const text = "planned \u202ework\x1b[2J"
	families := []bgp.Family{bgp.RF_IPv4_UC, bgp.RF_IPv6_UC}
	shutdown := &bgp.BGPNotification{ErrorCode: 6, ErrorSubcode: 2, Data: append([]byte{byte(len(text))}, text...)}
	ended := make(chan struct{})
	close(ended)
	for n, tc := range []struct {
		name   string
		script script
		want   string
		sent   bool
	}{
		{"shut down", script{families: families, after: shutdown, end: ended}, `Cease, Administrative Shutdown (6/2), "planned \u202ework\u001b[2J"`, false},
		{"too many prefixes", script{families: families, after: &bgp.BGPNotification{ErrorCode: 6, ErrorSubcode: 1}, end: ended}, "Cease, Maximum Number of Prefixes Reached (6/1)", false},
		{"of another AS", script{asn: 64999, families: families}, "OPEN Message Error, Bad Peer AS (2/2)", true},
		{"expects another AS", script{families: families, opening: &bgp.BGPNotification{ErrorCode: 2, ErrorSubcode: 2}}, "OPEN Message Error, Bad Peer AS (2/2)", false},
		{"rejects", script{before: &bgp.BGPNotification{ErrorCode: 6, ErrorSubcode: 5}}, "Cease, Connection Rejected (6/5)", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := gobgptest.ClusterAt(gobgptest.Port + 50 + uint16(n))
			if tc.script.asn == 0 {
				tc.script.asn = c.ASN
			}
			play(t, c, tc.script)
			s := opened(t, c)
			gobgptest.Eventually(t, "it is known", func() bool {
				n := sessionOf(t, s).Notification
				return n != nil && n.String() == tc.want
			})
			session := sessionOf(t, s)
			assert.Equal(t, tc.sent, session.Notification.Sent)
			assert.WithinDuration(t, time.Now(), session.Notification.At, time.Minute)
			gobgptest.Eventually(t, "the session has the reason for its end", func() bool {
				session := sessionOf(t, s)
				return session.State != "established" && strings.Contains(session.DownReason(), session.Notification.String())
			})
		})
	}
}

// TestFailures: a reflector that ends its sessions without a NOTIFICATION, as one
// does that is stopped, is not reported to have another AS number or password.
func TestFailures(t *testing.T) {
	labtest.Long(t)
	families := []bgp.Family{bgp.RF_IPv4_UC, bgp.RF_IPv6_UC}
	down := func(s *gobgp.Speaker, kind fabric.FailureKind, says string) {
		t.Helper()
		gobgptest.Eventually(t, says, func() bool {
			session := sessionOf(t, s)
			return session.State != "established" && session.Failure != nil && session.Failure.Kind == kind && strings.Contains(session.DownReason(), says)
		})
		assert.NotContains(t, sessionOf(t, s).DownReason(), "AS number")
	}
	c := gobgptest.ClusterAt(gobgptest.Port + 60)
	r := gobgptest.StartReflector(t, c)
	s := opened(t, c)
	up := func() {
		gobgptest.Eventually(t, "the session is up", func() bool { return sessionOf(t, s).State == "established" })
		assert.Nil(t, sessionOf(t, s).Failure)
	}
	up()
	r.Stop()
	down(s, fabric.Refused, "nothing listens for BGP at 127.0.0.1 (connection refused); start the reflector there")
	play(t, c, script{asn: c.ASN, families: families})
	up()

	// One that hangs up, and goes on listening.
	c = gobgptest.ClusterAt(gobgptest.Port + 61)
	gone := make(chan struct{})
	play(t, c, script{asn: c.ASN, families: families, gone: gone})
	s = opened(t, c)
	up()
	close(gone)
	down(s, fabric.Closed, "rr1 closed the connection without a NOTIFICATION, as when it is stopped; check that the reflector runs and knows this node")
}
