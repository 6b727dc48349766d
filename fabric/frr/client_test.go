package frr

import (
	"context"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/executable"
)

// As FRR 8.4.4 writes it, shortened.
const answer = `{
  "10.10.0.11":{"remoteAs":64512,"bgpState":"Established","bgpTimerUpMsec":3000,"lastResetTimerMsecs":7000,
    "lastErrorCodeSubcode":"0602","lastNotificationReason":"Cease\/Administrative Shutdown","lastShutdownDescription":"planned work","lastResetDueTo":"BGP Notification received",
    "neighborCapabilities":{"multiprotocolExtensions":{"ipv4Unicast":{"advertisedAndReceived":true},"ipv6Unicast":{"advertisedAndReceived":true}}},
    "addressFamilyInfo":{
      "ipv4Unicast":{"packetQueueLength":0,"acceptedPrefixCounter":0,"sentPrefixCounter":3},
      "ipv6Unicast":{"acceptedPrefixCounter":0,"sentPrefixCounter":2}}},
  "fd00:10:10::12":{"bgpState":"Connect","lastResetTimerMsecs":7000,"addressFamilyInfo":{"ipv4Unicast":{"acceptedPrefixCounter":0}}},
  "10.10.0.13":{"bgpState":"Clearing","lastErrorCodeSubcode":"0602","lastResetDueTo":"Waiting for peer OPEN"},
  "10.10.0.14":{"bgpState":"Established","lastErrorCodeSubcode":"0202","lastResetDueTo":"BGP Notification send",
    "neighborCapabilities":{"multiprotocolExtensions":{"ipv4Unicast":{"advertised":true},"ipv6Unicast":{"advertisedAndReceived":true}}},
    "addressFamilyInfo":{"ipv4Unicast":{},"ipv6Unicast":{}}},
  "10.10.0.15":{"bgpState":"Established","neighborCapabilities":{"multiprotocolExtensions":{"ipv4Unicast":{"advertised":true},"ipv6Unicast":{"advertised":true}}},
    "addressFamilyInfo":{"ipv4Unicast":{},"ipv6Unicast":{}}}
}`

func TestReadNeighbors(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	var ns neighbors
	require.NoError(t, json.Unmarshal([]byte(answer), &ns))
	got := ns.sessions(now)
	slices.SortFunc(got, func(a, b fabric.Session) int { return strings.Compare(a.Address, b.Address) })
	note := fabric.NewNotification
	assert.Equal(t, []fabric.Session{
		{Address: "10.10.0.11", State: "established", Since: now.Add(-3 * time.Second), Advertised: 5, Families: []fabric.Family{fabric.IPv4, fabric.IPv6}, Notification: note(false, 6, 2, "planned work", now.Add(-7*time.Second))},
		{Address: "10.10.0.13", State: "idle", Since: now},
		{Address: "10.10.0.14", State: "established", Since: now, Families: []fabric.Family{fabric.IPv6}, Notification: note(true, 2, 2, "", now)},
		{Address: "10.10.0.15", State: "established", Since: now, Families: []fabric.Family{fabric.IPv4}},
		{Address: "fd00:10:10::12", State: "connect", Since: now.Add(-7 * time.Second)},
	}, got)
}

func TestUnescape(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		`planned work`: "planned work", `\xd1\x80\xd0\xb0\xd0\xb1\xd0\xbe\xd1\x82\xd1\x8b at 5`: "работы at 5", `\xe2\x80\xae`: "\u202e",
		`\xff`: `\xff`, `\xd0`: `\xd0`, `\x`: `\x`,
	} {
		assert.Equal(t, want, unescape(given))
	}
}

// fakeVtysh writes a script that stands for vtysh.
func fakeVtysh(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vtysh")
	require.NoError(t, executable.Write(path, []byte("#!/bin/sh\n"+script+"\n")))
	return path
}

func TestClientSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, vtysh, want string }{
		{"no program", "no-such-vtysh", "executable file not found in $PATH; install frr, or name the program"},
		{"not running", fakeVtysh(t, "echo 'Exiting: failed to connect to any daemons.' >&2; exit 1"), "vtysh reaches no daemon of FRR; start frr, and run as root or in the group frrvty"},
		{"no bgpd", fakeVtysh(t, "echo 'bgpd is not running'; exit 1"), "FRR's bgpd does not run; set bgpd=yes in /etc/frr/daemons and restart frr"},
		{"refused", fakeVtysh(t, "echo '% Unknown command'; exit 1"), "vtysh: exit status 1: % Unknown command"},
		{"not JSON", fakeVtysh(t, "echo hello"), "show bgp neighbors json: invalid character"},
		{"silent", fakeVtysh(t, "exec sleep 60"), "vtysh does not answer: context deadline exceeded"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if tc.name == "silent" {
				ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
			}
			defer cancel()
			_, err := Client{Vtysh: tc.vtysh}.Sessions(ctx)
			require.ErrorContains(t, err, tc.want)
		})
	}
	got, err := Client{Vtysh: fakeVtysh(t, `printf '%s|' "$@"`), Pathspace: "lab"}.Run(t.Context(), "show version", "show bgp summary json")
	require.NoError(t, err)
	assert.Equal(t, "-N|lab|-c|show version|-c|show bgp summary json|", got)
}
