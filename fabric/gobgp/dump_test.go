package gobgp_test

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/fabric"
)

// hearer is a client of a reflector that opens its session at once.
type hearer struct {
	conn net.Conn
	pref atomic.Uint32 // of v4, as heard last; zero: withdrawn, or not heard
}

// hear opens a session from an address. at is called the moment before the
// reflector's side is established.
func hear(t *testing.T, c fabric.Cluster, from netip.Addr, at func()) *hearer {
	t.Helper()
	rr := c.Reflectors[0]
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}
	conn, err := d.DialContext(t.Context(), "tcp", net.JoinHostPort(rr.Address.String(), strconv.Itoa(int(rr.Port))))
	require.NoError(t, err)
	h := &hearer{conn: conn}
	open, err := bgp.NewBGPOpenMessage(bgp.AS_TRANS, 90, from, []bgp.OptionParameterInterface{
		bgp.NewOptionParameterCapability([]bgp.ParameterCapabilityInterface{bgp.NewCapFourOctetASNumber(c.ASN), bgp.NewCapMultiProtocol(bgp.RF_IPv4_UC)}),
	})
	require.NoError(t, err)
	send := func(m *bgp.BGPMessage) {
		b, err := m.Serialize()
		require.NoError(t, err)
		_, err = conn.Write(b)
		require.NoError(t, err)
	}
	send(open)
	require.EqualValues(t, bgp.BGP_MSG_OPEN, h.read(t).Header.Type)
	require.EqualValues(t, bgp.BGP_MSG_KEEPALIVE, h.read(t).Header.Type)
	at()
	send(bgp.NewBGPKeepAliveMessage())
	go func() {
		for {
			m, err := readMessage(conn)
			if err != nil {
				return
			}
			u, ok := m.Body.(*bgp.BGPUpdate)
			if !ok {
				continue
			}
			for _, w := range u.WithdrawnRoutes {
				if w.NLRI.String() == v4.String() {
					h.pref.Store(0)
				}
			}
			for _, n := range u.NLRI {
				if n.NLRI.String() != v4.String() {
					continue
				}
				for _, a := range u.PathAttributes {
					if p, ok := a.(*bgp.PathAttributeLocalPref); ok {
						h.pref.Store(p.Value)
					}
				}
			}
		}
	}()
	return h
}

func (h *hearer) read(t *testing.T) *bgp.BGPMessage {
	t.Helper()
	m, err := readMessage(h.conn)
	require.NoError(t, err)
	return m
}

func readMessage(conn net.Conn) (*bgp.BGPMessage, error) {
	header := make([]byte, bgp.BGP_HEADER_LENGTH)
	if _, err := io.ReadFull(conn, header); err != nil {
		return nil, err
	}
	body := make([]byte, int(binary.BigEndian.Uint16(header[16:]))-len(header))
	if _, err := io.ReadFull(conn, body); err != nil {
		return nil, err
	}
	return bgp.ParseBGPMessage(append(header, body...))
}

// TestChangeWhileSessionOpens has a route change at the very moment at which a
// client's session is established, again and again: none of the changes is lost.
func TestChangeWhileSessionOpens(t *testing.T) {
	patient(t)
	c := at(port + 60)
	c.EastWest = true
	c.Underlay = prefixes("127.0.0.0/16")
	// Under the race detector there are fewer, which stay: GoBGP itself has a race
	// between a session that ends and what others are told.
	clients, stay := 1500, []*hearer{}
	if raceOn {
		clients = 60
	}
	defer func() {
		for _, h := range stay {
			h.conn.Close()
		}
	}()
	r := newReflector(t, c)
	defer func() { require.NoError(t, r.Close()) }()
	node := startRogue(t, c, "127.0.0.2")
	announce := func(pref uint32) error {
		p := node.path(v4, strings.Fields(both)...)
		p.Attrs[1] = bgp.NewPathAttributeLocalPref(pref)
		_, err := node.bgp.AddPath(apiutil.AddPathRequest{Paths: []*apiutil.Path{p}})
		return err
	}
	require.NoError(t, announce(100))
	first := hear(t, c, netip.MustParseAddr("127.0.0.9"), func() {})
	eventually(t, "it is there", func() bool { return first.pref.Load() == 100 })
	stay = append(stay, first)
	// One client of 400 misses such a change of a reflector that does not send all
	// of it once more.
	for i := range clients {
		changed := make(chan error, 1)
		pref := []uint32{fabric.Fresh.LocalPref(), fabric.Standby.LocalPref()}[i%2]
		h := hear(t, c, netip.AddrFrom4([4]byte{127, 0, byte(1 + i/200), byte(1 + i%200)}), func() {
			time.AfterFunc(time.Duration(i%40)*10*time.Microsecond, func() { changed <- announce(pref) })
		})
		require.NoError(t, <-changed)
		require.Eventually(t, func() bool { return h.pref.Load() == pref }, bound, time.Millisecond, "client %d has %d, not %d", i, h.pref.Load(), pref)
		if stay = append(stay, h); !raceOn {
			h.conn.Close()
		}
	}
}

// TestRemovalWhileSessionOpens: what is withdrawn while a session is being
// established is withdrawn once it is.
func TestRemovalWhileSessionOpens(t *testing.T) {
	patient(t)
	for n, prefix := range []netip.Prefix{v4, v6} {
		t.Run(prefix.String(), func(t *testing.T) {
			c := at(port + 61 + uint16(n))
			var withdrawn atomic.Bool
			hold := make(chan struct{})
			play(t, c, script{asn: c.ASN, families: []bgp.Family{bgp.RF_IPv4_UC, bgp.RF_IPv6_UC}, hold: hold, hear: func(u *bgp.BGPUpdate) {
				for _, w := range u.WithdrawnRoutes {
					withdrawn.Store(withdrawn.Load() || w.NLRI.String() == prefix.String())
				}
				for _, a := range u.PathAttributes {
					if m, ok := a.(*bgp.PathAttributeMpUnreachNLRI); ok && len(m.Value) > 0 {
						withdrawn.Store(withdrawn.Load() || m.Value[0].NLRI.String() == prefix.String())
					}
				}
			}})
			s := opened(t, c)
			eventually(t, "the session is being established", func() bool { return sessionOf(t, s).State == "openconfirm" })
			require.NoError(t, s.Remove(t.Context(), prefix))
			close(hold)
			eventually(t, "it is withdrawn", withdrawn.Load)
			sent, err := s.Advertisements(t.Context(), prefix)
			require.NoError(t, err)
			assert.False(t, sent[0].Sent)
		})
	}
}

// TestReflectorTellsOfItsSessions: the health of an embedded reflector knows
// families and NOTIFICATIONs, too.
func TestReflectorTellsOfItsSessions(t *testing.T) {
	patient(t)
	c := at(port + 65)
	r := closeLast(t)
	r.Reflector = newReflector(t, c)
	says := func(want string) {
		t.Helper()
		eventually(t, want, func() bool {
			st, err := r.Status(t.Context())
			require.NoError(t, err)
			return !st.Healthy && strings.Contains(strings.Join(st.Problems, "\n"), want)
		})
	}
	core := hear(t, c, netip.MustParseAddr("127.0.0.3"), func() {})
	says("core gateway core1 (127.0.0.3) takes no IPv6: its session was negotiated without that family")
	assert.Equal(t, []fabric.Family{fabric.IPv4}, peerOf(t, r, "core1").Families)
	end, err := bgp.NewBGPNotificationMessage(6, 2, append([]byte{12}, "planned work"...)).Serialize()
	require.NoError(t, err)
	_, err = core.conn.Write(end)
	require.NoError(t, err)
	says(`core1 ended it with Cease, Administrative Shutdown (6/2), "planned work"; enable the session there again`)
	core.conn.Close()
}
