package core_test

import (
	"bufio"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// serveEach accepts connections of a host on port 7 and serves each.
func serveEach(t *testing.T, h *core.Host, serve func(*net.TCPConn)) {
	l, err := h.Listen("tcp", ":7")
	require.NoError(t, err)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				serve(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { l.Close(); running.Wait() })
}

func TestSession(t *testing.T) {
	t.Parallel()
	lab := labtest.New(t)
	one, err := lab.AddReflector("one", core.Underlay4(31), core.Underlay6(31))
	require.NoError(t, err)
	two, err := lab.AddReflector("two", core.Underlay4(32), core.Underlay6(32))
	require.NoError(t, err)
	serveEach(t, two, func(conn *net.TCPConn) { _, _ = io.Copy(conn, conn) })
	for _, to := range []netip.Addr{two.Addr4(), two.Addr6()} {
		s, err := one.OpenSession(labtest.Soon(t), netip.AddrPortFrom(to, 7), time.Millisecond)
		require.NoError(t, err)
		require.Eventually(t, func() bool { return s.Echoed() > 50 }, 10*time.Second, time.Millisecond)
		require.NoError(t, lab.Disconnect(two))
		cut := time.Now()
		time.Sleep(300 * time.Millisecond)
		require.NoError(t, lab.Reconnect(two))
		had := s.Echoed()
		require.Eventually(t, func() bool { return s.Echoed() > had+50 }, 10*time.Second, time.Millisecond)
		r := s.Stop()
		require.NoError(t, r.Err)
		assert.False(t, r.Reset)
		assert.Equal(t, r.Sent, r.Echoed)
		assert.EqualValues(t, 15*r.Echoed, r.Bytes)
		assert.Greater(t, r.LongestStall, 250*time.Millisecond)
		assert.WithinDuration(t, cut, r.StallFrom, 200*time.Millisecond)
		assert.Positive(t, r.Retransmits)
	}
}

func TestSessionEnds(t *testing.T) {
	t.Parallel()
	lab := labtest.New(t)
	one, err := lab.AddReflector("one", core.Underlay4(31))
	require.NoError(t, err)
	reset, err := lab.AddReflector("reset", core.Underlay4(32))
	require.NoError(t, err)
	serveEach(t, reset, func(conn *net.TCPConn) {
		_, _ = bufio.NewReader(conn).ReadString('\n')
		_ = conn.SetLinger(0)
	})
	wrong, err := lab.AddReflector("wrong", core.Underlay4(33))
	require.NoError(t, err)
	serveEach(t, wrong, func(conn *net.TCPConn) {
		_, _ = io.WriteString(conn, "line 000000001\n")
		_, _ = io.Copy(io.Discard, conn)
	})
	for host, words := range map[*core.Host]string{reset: "connection reset", wrong: `line 0 came back as "line 000000001`} {
		s, err := one.OpenSession(labtest.Soon(t), netip.AddrPortFrom(host.Addr4(), 7), time.Millisecond)
		require.NoError(t, err)
		var r core.SessionResult
		time.Sleep(200 * time.Millisecond)
		r = s.Stop()
		require.ErrorContains(t, r.Err, words)
		assert.Equal(t, host == reset, r.Reset)
		assert.Zero(t, r.Echoed)
	}
	_, err = one.OpenSession(labtest.Soon(t), netip.AddrPortFrom(one.Addr4(), 7), time.Millisecond)
	require.ErrorContains(t, err, "refused")
}
