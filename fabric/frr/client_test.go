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
    "addressFamilyInfo":{
      "ipv4Unicast":{"packetQueueLength":0,"acceptedPrefixCounter":0,"sentPrefixCounter":3},
      "ipv6Unicast":{"acceptedPrefixCounter":0,"sentPrefixCounter":2}}},
  "fd00:10:10::12":{"bgpState":"Connect","lastResetTimerMsecs":7000,"addressFamilyInfo":{"ipv4Unicast":{"acceptedPrefixCounter":0}}},
  "10.10.0.13":{"bgpState":"Clearing"}
}`

func TestReadNeighbors(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	var ns neighbors
	require.NoError(t, json.Unmarshal([]byte(answer), &ns))
	got := ns.sessions(now)
	slices.SortFunc(got, func(a, b fabric.Session) int { return strings.Compare(a.Address, b.Address) })
	assert.Equal(t, []fabric.Session{
		{Address: "10.10.0.11", State: "established", Since: now.Add(-3 * time.Second), Advertised: 5},
		{Address: "10.10.0.13", State: "idle", Since: now},
		{Address: "fd00:10:10::12", State: "connect", Since: now.Add(-7 * time.Second)},
	}, got)
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
