package bird

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// As BIRD 2.0.12 writes it, shortened.
const protocols = `Name       Proto      Table      State  Since         Info
device1    Device     ---        up     11:41:56.669  

k4         Kernel     master4    up     11:41:56.669  
  Channel ipv4
    State:          UP
    Routes:         7 imported, 7 exported, 1 preferred

to_rr1     BGP        ---        up     11:41:57.466  Established   
  BGP state:          Established
    Neighbor address: 10.10.0.11
    Neighbor AS:      64512
  Channel ipv4
    State:          UP
    Routes:         0 imported, 3 exported, 0 preferred
    Route change stats:     received   rejected   filtered    ignored   accepted
      Export updates:              9          0          0        ---          9
    BGP Next hop:   10.10.0.21
  Channel ipv6
    State:          UP
    Routes:         0 imported, 2 exported, 0 preferred
    BGP Next hop:   fd00::21

to_rr2     BGP        ---        down   2026-11-20    
  BGP state:          Down
    Neighbor address: fd00:10:10::12
  Channel ipv4
    State:          DOWN

to_rr3     BGP        ---        start  2026-11-21 23:59:58 Passive
  BGP state:          Passive
    Neighbor address: 10.10.0.13
    Last error:       Socket: Connection refused

to_rr4     BGP        ---        start  11:41:57.000  Active        Received: Administrative shutdown
  Message:        planned work
  BGP state:          Active
    Neighbor address: 10.10.0.14
    Last error:       Received: Administrative shutdown

to_rr5     BGP        ---        start  11:41:57.000  Active        BGP Error: Bad peer AS
  Message:        planned work
  BGP state:          Active
    Neighbor address: 10.10.0.15
    Last error:       BGP Error: Bad peer AS

to_rr6     BGP        ---        up     11:41:57.000  Established
  BGP state:          Established
    Neighbor address: 10.10.0.16
  Channel ipv4
    State:          DOWN
  Channel ipv6
    State:          UP
    Routes:         0 imported, 1 exported, 0 preferred

to_rr7     BGP        ---        down   11:41:57.000  Automatic shutdown: Route limit exceeded
  BGP state:          Down
    Neighbor address: 10.10.0.17
    Last error:       Automatic shutdown: Route limit exceeded

nodes      BGP        ---        start  23:59:59.5    Passive
  BGP state:          Passive
    Neighbor range:   10.10.0.0/24
`

func TestParseSessions(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.FixedZone("", 3600))
	at := func(month time.Month, day, hour, minute, sec, milli int) time.Time {
		return time.Date(2026, month, day, hour, minute, sec, milli*int(time.Millisecond), now.Location())
	}
	note := func(sent bool, code, subcode uint8, text string) *fabric.Notification {
		return fabric.NewNotification(sent, code, subcode, text, time.Time{})
	}
	assert.Equal(t, []fabric.Session{
		{Peer: "to_rr1", Address: "10.10.0.11", State: "established", Since: at(11, 22, 11, 41, 57, 466), Advertised: 5, Families: []fabric.Family{fabric.IPv4, fabric.IPv6}},
		{Peer: "to_rr2", Address: "fd00:10:10::12", State: "idle", Since: at(11, 20, 0, 0, 0, 0), Notification: note(true, 6, 2, "")},
		{Peer: "to_rr3", Address: "10.10.0.13", State: "active", Since: at(11, 21, 23, 59, 58, 0), Failure: &fabric.SessionFailure{Kind: fabric.Refused, Reason: "Connection refused"}},
		{Peer: "to_rr4", Address: "10.10.0.14", State: "active", Since: at(11, 22, 11, 41, 57, 0), Notification: note(false, 6, 2, "planned work")},
		{Peer: "to_rr5", Address: "10.10.0.15", State: "active", Since: at(11, 22, 11, 41, 57, 0), Notification: note(true, 2, 2, "")},
		{Peer: "to_rr6", Address: "10.10.0.16", State: "established", Since: at(11, 22, 11, 41, 57, 0), Advertised: 1, Families: []fabric.Family{fabric.IPv6}},
		{Peer: "to_rr7", Address: "10.10.0.17", State: "idle", Since: at(11, 22, 11, 41, 57, 0), Notification: note(true, 6, 1, "")},
	}, parseSessions(strings.Split(protocols, "\n"), now))
	assert.Equal(t, at(11, 21, 23, 59, 59, 500), parseSince([]string{"23:59:59.5", "Passive"}, now), "a time still to come is yesterday's")
	assert.Zero(t, parseSince([]string{"sometime"}, now))
}

func FuzzSessions(f *testing.F) {
	f.Add(protocols)
	f.Fuzz(func(t *testing.T, in string) {
		for _, s := range parseSessions(strings.Split(in, "\n"), time.Now()) {
			assert.Contains(t, in, s.Address)
			assert.Contains(t, []string{"idle", "connect", "active", "opensent", "openconfirm", "established"}, s.State)
		}
	})
}

// listen stands for a BIRD that writes what is given and then goes on as hang
// says.
func listen(t *testing.T, answer string, hang bool) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "bird.ctl")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	ended := make(chan struct{})
	done := make(chan struct{})
	t.Cleanup(func() { close(ended); l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte(answer))
			if hang {
				<-ended
			} else { // once it was asked
				_, _ = conn.Read(make([]byte, 100))
			}
			conn.Close()
		}
	}()
	return socket
}

func TestClientSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	left := filepath.Join(dir, "left.ctl")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	for _, tc := range []struct{ name, socket, want string }{
		{"no socket", filepath.Join(dir, "none.ctl"), "BIRD has no control socket at " + filepath.Join(dir, "none.ctl") + ": file does not exist; start bird, or name the socket that it has (bird -s)"},
		{"not running", left, "BIRD does not run, its control socket " + left + " is from an earlier one: connection refused; start bird"},
		{"cut off", listen(t, "0001 BIRD 2.0.12 ready.\n1002-a", false), "EOF"},
		{"silent", listen(t, "0001 BIRD 2.0.12 ready.\n", true), "does not answer: context deadline exceeded"},
		{"refused", listen(t, "0001 BIRD 2.0.12 ready.\n8007 Access denied\n", true), "Access denied"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			_, err := Client{Socket: tc.socket}.Sessions(ctx)
			require.ErrorContains(t, err, tc.want)
		})
	}
	if os.Geteuid() == 0 {
		return // root may do everything
	}
	shut := filepath.Join(dir, "shut")
	require.NoError(t, os.Mkdir(shut, 0))
	_, err = Client{Socket: filepath.Join(shut, "bird.ctl")}.Query(t.Context(), "show status")
	require.ErrorContains(t, err, "run as root, or in BIRD's group")
}

func TestNextHop(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"\tBGP.next_hop: 10.10.0.21":             "10.10.0.21",
		"\tbgp_next_hop: 10.10.0.21":             "10.10.0.21", // BIRD 3
		"\tBGP.next_hop: fd00:10:10::21 fe80::1": "fd00:10:10::21",
		"\tbgp_next_hop: fd00:10:10::21 fe80::1": "fd00:10:10::21",
		"\tBGP.next_hop: ":                       "",
		"\tBGP.local_pref: 100":                  "",
		"":                                       "",
	} {
		via, is := nextHop(line)
		assert.Equal(t, want != "", is, line)
		if is {
			assert.Equal(t, want, via.String())
		}
	}
}
