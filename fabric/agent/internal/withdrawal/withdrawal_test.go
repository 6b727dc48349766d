package withdrawal_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/withdrawal"
)

func TestRemains(t *testing.T) {
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	timers := fabric.Timers{Hold: 9 * time.Second, Restart: 2 * time.Minute, LongLived: time.Minute}
	keeps := withdrawal.Keeps(timers)
	assert.Equal(t, 189*time.Second, keeps)
	four, six := netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128")
	node2 := netip.MustParseAddr("fd00:10:10::22")
	session := func(peer, state string, ago time.Duration) fabric.Session {
		return fabric.Session{Peer: peer, State: state, Since: now.Add(-ago)}
	}
	up := session("rr1", fabric.Established, time.Hour)
	for name, tc := range map[string]struct {
		c    withdrawal.Case
		ago  time.Duration // since when the node waits
		want string
	}{
		"nothing is known":    {},
		"all have withdrawn":  {c: withdrawal.Case{Sessions: []fabric.Session{up}}},
		"another node's":      {c: withdrawal.Case{Sessions: []fabric.Session{up}, Received: []fabric.ReceivedRoute{{Prefix: six, Via: node2, Peer: "rr1"}}}, want: "reflector rr1 has a route to 2001:db8:100::10 via node2 (fd00:10:10::22): see what announces it there"},
		"nobody's, and later": {c: withdrawal.Case{Received: []fabric.ReceivedRoute{{Prefix: four, Via: netip.MustParseAddr("10.10.0.99"), Peer: "rr2"}}}, ago: time.Hour, want: "reflector rr2 has a route to 203.0.113.10 via 10.10.0.99: see what announces it there"},
		"still sent":          {c: withdrawal.Case{Sent: []withdrawal.Sent{{Prefix: four, Peer: "rr1"}}}, want: "this node's speaker still announces 203.0.113.10 to reflector rr1: see that it takes up changes; this ends at 12:03:09"},
		"sent too long":       {c: withdrawal.Case{Sent: []withdrawal.Sent{{Prefix: four, Peer: "rr1"}}}, ago: keeps},
		"a session is down":   {c: withdrawal.Case{Sessions: []fabric.Session{up, session("rr2", "active", time.Minute)}}, want: "reflector rr2 may keep this node's route until 12:02:09, because the session with it is active: bring that up"},
		"it went down later":  {c: withdrawal.Case{Sessions: []fabric.Session{session("rr2", "idle", time.Second)}}, ago: time.Minute, want: "reflector rr2 may keep this node's route until 12:02:09, because the session with it is idle: bring that up"},
		"down for long":       {c: withdrawal.Case{Sessions: []fabric.Session{session("rr2", "active", keeps)}}},
		"waited for long":     {c: withdrawal.Case{Sessions: []fabric.Session{session("rr2", "active", time.Second)}}, ago: keeps},
		"no answer":           {c: withdrawal.Case{Error: errors.New("bird: no\nanswer")}, want: "the speaker does not say which routes the reflectors have (bird: no; answer); this ends at 12:03:09"},
		"no answer for long":  {c: withdrawal.Case{Error: errors.New("no")}, ago: keeps},
	} {
		t.Run(name, func(t *testing.T) {
			tc.c.Timers, tc.c.Now, tc.c.Since = timers, now, now.Add(-tc.ago)
			tc.c.NodeAt = func(a netip.Addr) string {
				return map[netip.Addr]string{node2: "node2"}[a]
			}
			assert.Equal(t, tc.want, tc.c.Remains())
		})
	}
}
