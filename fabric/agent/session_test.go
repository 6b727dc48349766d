package agent_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// TestStatusOfFamilies: a session that does not carry a family of the cluster's
// pools is a problem, whichever family that is.
func TestStatusOfFamilies(t *testing.T) {
	since := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	up := func(peer string, families ...fabric.Family) fabric.Session {
		return fabric.Session{Peer: peer, Address: "10.10.0.11", State: "established", Since: since, Families: families}
	}
	for _, tc := range []struct {
		name     string
		sessions []fabric.Session
		want     []string
	}{
		{"both", []fabric.Session{up("rr1", fabric.IPv4, fabric.IPv6)}, []string{}},
		{"not known", []fabric.Session{up("rr1")}, []string{}},
		{"no IPv6", []fabric.Session{up("rr1", fabric.IPv4), up("rr2", fabric.IPv4, fabric.IPv6)}, []string{
			"rr1 takes no IPv6: its session (10.10.0.11) was negotiated without that family; add an IPv6 channel (BIRD) or address family (FRR) to the session of node1 and rr1, on the side that has none, as it is rendered from the cluster file",
		}},
		{"no IPv4", []fabric.Session{up("rr1", fabric.IPv4, fabric.IPv6), up("rr2", fabric.IPv6)}, []string{
			"rr2 takes no IPv4: its session (10.10.0.11) was negotiated without that family; add an IPv4 channel (BIRD) or address family (FRR) to the session of node1 and rr2, on the side that has none, as it is rendered from the cluster file",
		}},
		{"down", []fabric.Session{{Peer: "rr1", Address: "10.10.0.11", State: "active", Since: since, Families: []fabric.Family{}}}, []string{
			"session with rr1 (10.10.0.11) is active since 12:00:00; check that the reflector runs, knows this node and has the same AS number and password",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := fresh(t)
			n.speaker.SetSessions(tc.sessions...)
			st, err := n.Status(t.Context())
			require.NoError(t, err)
			assert.Equal(t, tc.want, st.Problems)
			assert.Equal(t, len(tc.want) == 0, st.Healthy)
		})
	}
	neither := up("rr1")
	neither.Families = []fabric.Family{}
	assert.True(t, neither.Lacks(fabric.IPv4))
	assert.True(t, neither.Lacks(fabric.IPv6))
	assert.Contains(t, asJSON(t, neither), `"families":[]`)
	assert.NotContains(t, asJSON(t, up("rr1")), "families")
}

// TestDownReason: what ended a session is said in place of a guess, unless it
// came up and went down since.
func TestDownReason(t *testing.T) {
	since := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	const guess = "check that the reflector runs, knows this node and has the same AS number and password"
	note := func(sent bool, code, subcode uint8, text string, at time.Time) *fabric.Notification {
		return fabric.NewNotification(sent, code, subcode, text, at)
	}
	for _, tc := range []struct {
		name string
		n    *fabric.Notification
		want string
	}{
		{"nothing is known", nil, guess},
		{"shut down there", note(false, 6, 2, "planned work", since.Add(-time.Millisecond)), `rr1 ended it with Cease, Administrative Shutdown (6/2), "planned work"; enable the session there again, or ask who disabled it`},
		{"shut down here", note(true, 6, 2, "", time.Time{}), "this side ended it with Cease, Administrative Shutdown (6/2); enable the session on this side again"},
		{"wrong AS", note(true, 2, 2, "", since.Add(time.Second)), "this side ended it with OPEN Message Error, Bad Peer AS (2/2); give both sides the same AS numbers: asn in the cluster file, and in the configuration that is rendered from it"},
		{"too many", note(false, 6, 1, "", since), "rr1 ended it with Cease, Maximum Number of Prefixes Reached (6/1); announce less, or raise max_prefixes in the cluster file and render the reflector's configuration anew"},
		{"of an earlier session", note(false, 6, 2, "planned work", since.Add(-time.Hour)), guess},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := fabric.Session{Peer: "rr1", Address: "10.10.0.11", State: "active", Since: since, Notification: tc.n}
			assert.Equal(t, tc.want, s.DownReason())
		})
	}
	core := fabric.Session{Peer: "core1", Role: "core", State: "idle"}
	assert.Equal(t, "check that the core gateway runs, knows this reflector and has the same AS number and password", core.DownReason())
}

func TestAdvertisements(t *testing.T) {
	prefix := netip.MustParsePrefix("2001:db8:100::10/128")
	n := fresh(t)
	_, err := n.Advertisements(t.Context(), prefix)
	require.ErrorIs(t, err, errors.ErrUnsupported)

	sessions := []fabric.Session{
		{Peer: "rr1", State: "established", Families: []fabric.Family{fabric.IPv4}},
		{Peer: "rr2", State: "established", Families: []fabric.Family{fabric.IPv4, fabric.IPv6}},
		{Peer: "rr3", State: "established"},
		{Peer: "rr4", State: "active"},
	}
	asked := []string{}
	all, err := fabric.AdvertisementsOn(prefix, "node1", sessions, func(s fabric.Session) (bool, error) {
		asked = append(asked, s.Peer)
		return s.Peer == "rr2", nil
	})
	require.NoError(t, err)
	assert.Equal(t, []string{"rr2", "rr3"}, asked)
	var sent []bool
	for _, a := range all {
		sent = append(sent, a.Sent)
	}
	assert.Equal(t, []bool{false, true, false, false}, sent)
	assert.Contains(t, all[0].Reason, "it takes no IPv6")
	assert.Contains(t, all[3].Reason, "active since")
	_, err = fabric.AdvertisementsOn(prefix, "node1", sessions, func(fabric.Session) (bool, error) { return false, errBoom })
	require.ErrorIs(t, err, errBoom)
}
