package reflector_test

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/gobgptest"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// client is a client of a reflector that opens its session at once.
type client struct {
	conn net.Conn

	mu    sync.Mutex
	prefs map[string]uint32 // of the last UPDATE; none: withdrawn, or not received
}

// pref is the LOCAL_PREF of a prefix in the last UPDATE, or zero.
func (h *client) pref(p netip.Prefix) uint32 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.prefs[p.String()]
}

// take takes over an UPDATE.
func (h *client) take(u *bgp.BGPUpdate) {
	h.mu.Lock()
	defer h.mu.Unlock()
	came, went := u.NLRI, u.WithdrawnRoutes
	var pref uint32
	for _, a := range u.PathAttributes {
		switch a := a.(type) {
		case *bgp.PathAttributeLocalPref:
			pref = a.Value
		case *bgp.PathAttributeMpReachNLRI:
			came = append(came, a.Value...)
		case *bgp.PathAttributeMpUnreachNLRI:
			went = append(went, a.Value...)
		}
	}
	for _, n := range went {
		delete(h.prefs, n.NLRI.String())
	}
	for _, n := range came {
		h.prefs[n.NLRI.String()] = pref
	}
}

// openSession connects, and exchanges OPENs. A reflector that has begun a moment ago may close
// a connection, since it is not waiting for this neighbour yet.
func openSession(t *testing.T, rr fabric.RR, from netip.Addr, open []byte) (conn net.Conn) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}
	gobgptest.Eventually(t, "the reflector opens the session", func() bool {
		var err error
		conn, err = d.DialContext(t.Context(), "tcp", net.JoinHostPort(rr.Address.String(), strconv.Itoa(int(rr.Port))))
		require.NoError(t, err)
		_, wrote := conn.Write(open)
		answer, err := gobgptest.ReadMessage(conn)
		if err = errors.Join(wrote, err); err != nil {
			conn.Close()
			return false
		}
		require.EqualValues(t, bgp.BGP_MSG_OPEN, answer.Header.Type)
		return true
	})
	return conn
}

// dial opens a session of some families from an address. at is called the moment
// before the reflector's side is established.
func dial(t *testing.T, c fabric.Cluster, from netip.Addr, at func(), families ...bgp.Family) *client {
	t.Helper()
	caps := []bgp.ParameterCapabilityInterface{bgp.NewCapFourOctetASNumber(c.ASN)}
	for _, f := range families {
		caps = append(caps, bgp.NewCapMultiProtocol(f))
	}
	open, err := bgp.NewBGPOpenMessage(bgp.AS_TRANS, 90, from, []bgp.OptionParameterInterface{bgp.NewOptionParameterCapability(caps)})
	require.NoError(t, err)
	b, err := open.Serialize()
	require.NoError(t, err)
	keepalive, err := bgp.NewBGPKeepAliveMessage().Serialize()
	require.NoError(t, err)
	conn := openSession(t, c.Reflectors[0], from, b)
	h := &client{conn: conn, prefs: map[string]uint32{}}
	require.EqualValues(t, bgp.BGP_MSG_KEEPALIVE, h.read(t).Header.Type)
	at()
	_, err = conn.Write(keepalive)
	require.NoError(t, err)
	go func() {
		for {
			m, err := gobgptest.ReadMessage(conn)
			if err != nil {
				return
			}
			switch u := m.Body.(type) {
			case *bgp.BGPUpdate:
				h.take(u)
			case *bgp.BGPKeepAlive:
				if _, err := conn.Write(keepalive); err != nil {
					return
				}
			}
		}
	}()
	return h
}

func (h *client) read(t *testing.T) *bgp.BGPMessage {
	t.Helper()
	m, err := gobgptest.ReadMessage(h.conn)
	require.NoError(t, err)
	return m
}

// dialMany opens the sessions of many clients with a reflector, one after the other,
// and calls change at the very moment at which each is established.
func dialMany(t *testing.T, c fabric.Cluster, change func(i int) error, opened func(i int, h *client)) {
	// Under the race detector there are fewer, which stay: GoBGP itself has a race
	// between the end of a session and what others are sent.
	clients, stay := 1500, []*client{}
	if raceOn {
		clients = 60
	}
	defer func() {
		for _, h := range stay {
			h.conn.Close()
		}
	}()
	// One client of 400 misses such a change of a reflector that does not send it
	// once more.
	for i := range clients {
		changed := make(chan error, 1)
		h := dial(t, c, netip.AddrFrom4([4]byte{127, 0, byte(1 + i/200), byte(1 + i%200)}), func() {
			time.AfterFunc(time.Duration(i%40)*10*time.Microsecond, func() { changed <- change(i) })
		}, bgp.RF_IPv4_UC, bgp.RF_IPv6_UC)
		require.NoError(t, <-changed)
		opened(i, h)
		if stay = append(stay, h); !raceOn {
			h.conn.Close()
		}
	}
}

// eastWest is a cluster whose reflector sends every client every route.
func eastWest(port uint16) fabric.Cluster {
	c := gobgptest.ClusterAt(gobgptest.Port)
	c.EastWest = true
	c.Underlay = gobgptest.Prefixes("127.0.0.0/16")
	return c
}

// preferred is a path of a rogue, with a LOCAL_PREF.
func (r *rogue) preferred(prefix netip.Prefix, pref uint32) *apiutil.Path {
	return r.pathBy(prefix, netip.Addr{}, pref, strings.Fields(both)...)
}

// TestChangeWhileSessionOpens has a route change at the very moment at which a
// client's session is established, again and again: none of the changes is lost.
func TestChangeWhileSessionOpens(t *testing.T) {
	labtest.Long(t)
	c := eastWest(gobgptest.Port + 60)
	gobgptest.StartReflector(t, c)
	node := startRogue(t, c, "127.0.0.2")
	announce := func(pref uint32) error {
		_, err := node.bgp.AddPath(apiutil.AddPathRequest{Paths: []*apiutil.Path{node.preferred(gobgptest.V4, pref)}})
		return err
	}
	require.NoError(t, announce(100))
	first := dial(t, c, netip.MustParseAddr("127.0.0.9"), func() {}, bgp.RF_IPv4_UC)
	defer first.conn.Close()
	gobgptest.Eventually(t, "it is there", func() bool { return first.pref(gobgptest.V4) == 100 })
	pref := func(i int) uint32 {
		return []uint32{fabric.Fresh.LocalPref(), fabric.Standby.LocalPref()}[i%2]
	}
	dialMany(t, c, func(i int) error { return announce(pref(i)) }, func(i int, h *client) {
		require.Eventually(t, func() bool { return h.pref(gobgptest.V4) == pref(i) }, gobgptest.Bound, time.Millisecond, "client %d has %d, not %d", i, h.pref(gobgptest.V4), pref(i))
	})
}

// TestWithdrawalWhileSessionOpens has routes of both families withdrawn at the
// very moment at which a client's session is established, again and again: they
// stay with none.
func TestWithdrawalWhileSessionOpens(t *testing.T) {
	labtest.Long(t)
	c := eastWest(gobgptest.Port + 67)
	gobgptest.StartReflector(t, c)
	node := startRogue(t, c, "127.0.0.2")
	paths := []*apiutil.Path{node.preferred(gobgptest.V4, 100), node.preferred(gobgptest.V6, 100)}
	first := dial(t, c, netip.MustParseAddr("127.0.0.9"), func() {}, bgp.RF_IPv4_UC, bgp.RF_IPv6_UC)
	defer first.conn.Close()
	begin := func() {
		_, err := node.bgp.AddPath(apiutil.AddPathRequest{Paths: paths})
		require.NoError(t, err)
		require.Eventually(t, func() bool { return first.pref(gobgptest.V4) == 100 && first.pref(gobgptest.V6) == 100 }, gobgptest.Bound, time.Millisecond)
	}
	begin()
	later := []netip.Prefix{netip.MustParsePrefix("203.0.113.77/32"), netip.MustParsePrefix("2001:db8:100::77/128")}
	dialMany(t, c, func(int) error {
		return node.bgp.DeletePath(apiutil.DeletePathRequest{Paths: []*apiutil.Path{withdrawal(paths[0]), withdrawal(paths[1])}})
	}, func(i int, h *client) {
		// What is announced now comes after all that was in the table before.
		pref := fabric.Preferences()[i%2].LocalPref()
		after := []*apiutil.Path{node.preferred(later[0], pref), node.preferred(later[1], pref)}
		_, err := node.bgp.AddPath(apiutil.AddPathRequest{Paths: after})
		require.NoError(t, err)
		require.Eventually(t, func() bool { return h.pref(later[0]) == pref && h.pref(later[1]) == pref }, gobgptest.Bound, time.Millisecond, "client %d hears nothing", i)
		require.Eventually(t, func() bool { return h.pref(gobgptest.V4) == 0 && h.pref(gobgptest.V6) == 0 }, gobgptest.Bound, time.Millisecond, "client %d has what is withdrawn: %d, %d", i, h.pref(gobgptest.V4), h.pref(gobgptest.V6))
		require.Eventually(t, func() bool { return first.pref(gobgptest.V4) == 0 && first.pref(gobgptest.V6) == 0 }, gobgptest.Bound, time.Millisecond, "it is not withdrawn")
		begin()
	})
}

// withdrawal is what takes a path back.
func withdrawal(p *apiutil.Path) *apiutil.Path {
	w := *p
	w.Withdrawal = true
	return &w
}

// TestReflectorTellsOfItsSessions: the health of an embedded reflector knows
// families and NOTIFICATIONs, too.
func TestReflectorReportsItsSessions(t *testing.T) {
	labtest.Long(t)
	c := gobgptest.ClusterAt(gobgptest.Port + 65)
	r := gobgptest.StartReflector(t, c)
	reports := func(want string) {
		t.Helper()
		gobgptest.Eventually(t, want, func() bool {
			st, err := r.Status(t.Context())
			require.NoError(t, err)
			return !st.Healthy && strings.Contains(strings.Join(st.Problems, "\n"), want)
		})
	}
	core := dial(t, c, netip.MustParseAddr("127.0.0.3"), func() {}, bgp.RF_IPv4_UC)
	reports("core gateway core1 (127.0.0.3) takes no IPv6: its session was negotiated without that family")
	assert.Equal(t, []fabric.Family{fabric.IPv4}, peerOf(t, r, "core1").Families)
	end, err := bgp.NewBGPNotificationMessage(6, 2, append([]byte{12}, "planned work"...)).Serialize()
	require.NoError(t, err)
	_, err = core.conn.Write(end)
	require.NoError(t, err)
	reports(`core1 ended it with Cease, Administrative Shutdown (6/2), "planned work"; enable the session there again`)
	core.conn.Close()
}
