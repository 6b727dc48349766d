package agent_test

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// asJSON writes v, with the times of a test's clock as it writes them.
func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return string(b)
}

func stamp(at time.Time) string { return at.Format(time.RFC3339Nano) }

func TestListAsJSON(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := fresh(t)
		entries, err := n.List(t.Context())
		require.NoError(t, err)
		assert.Equal(t, "[]", asJSON(t, entries))

		first := time.Now()
		n.apply(web(), fabric.Wired)
		n.apply(from("libvirt", db()), fabric.Wired)
		time.Sleep(time.Minute)
		second := time.Now()
		n.apply(from("libvirt", db()), fabric.Live)
		time.Sleep(time.Minute)
		n.apply(from("libvirt", db()), fabric.Live) // it is live since it was
		entries, err = n.List(t.Context())
		require.NoError(t, err)
		assert.JSONEq(t, `[
			{"vm": "db", "port": "db_net0", "kind": "tap", "state": "live", "addresses": ["203.0.113.20"], "routes": [], "since": "`+stamp(second)+`", "origin": "libvirt"},
			{"vm": "web", "port": "web_net0", "kind": "tap", "state": "wired", "addresses": ["203.0.113.10", "2001:db8:100:1::10"], "routes": ["198.51.100.0/29"], "since": "`+stamp(first)+`"},
			{"vm": "web", "port": "web_net1", "kind": "veth", "state": "wired", "addresses": ["203.0.113.11", "2001:db8:100:1::11"], "routes": ["2001:db8:200:8::/64"], "since": "`+stamp(first)+`"}
		]`, asJSON(t, entries))
	})
}

func TestListTellsTrouble(t *testing.T) {
	n := fresh(t)
	n.speaker.Fail("announce", errBoom)
	require.Error(t, n.Started(t.Context(), db()))
	entries, err := n.List(t.Context())
	require.NoError(t, err)
	require.Len(t, entries, 1)
	assert.Equal(t, fabric.Wired, entries[0].State, "as it is, not as it is wanted")
	assert.Equal(t, "announce 203.0.113.20: boom", entries[0].Trouble)
}

func TestListIsTheCallersOwn(t *testing.T) {
	n := fresh(t)
	n.apply(web(), fabric.Live)
	entries, err := n.List(t.Context())
	require.NoError(t, err)
	clear(entries[0].Addresses)
	clear(entries[0].Routes)
	n.apply(web(), fabric.Live)
	n.holds(want{web(), fabric.Live})
}

func TestStatusAsJSON(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		n := fresh(t)
		st, err := n.Status(t.Context())
		require.NoError(t, err)
		assert.JSONEq(t, `{"cluster": "msk1", "node": "node1", "healthy": true, "since": "`+stamp(began)+`",
			"sessions": [], "sources": [], "ports": 0, "live": 0, "problems": []}`, asJSON(t, st))

		time.Sleep(time.Minute)
		n.speaker.SetSessions(
			fabric.Session{Peer: "rr1", Address: "10.10.0.11", State: "established", Since: began.Add(time.Second), Advertised: 6},
			fabric.Session{Peer: "rr2", Address: "fd00::12", State: "active", Since: began.Add(2 * time.Second)},
		)
		n.apply(web(), fabric.Live)
		n.apply(db(), fabric.Wired)
		st, err = n.Status(t.Context())
		require.NoError(t, err)
		assert.JSONEq(t, `{"cluster": "msk1", "node": "node1", "healthy": false, "since": "`+stamp(began)+`",
			"sessions": [
				{"peer": "rr1", "address": "10.10.0.11", "state": "established", "since": "`+stamp(began.Add(time.Second))+`", "advertised": 6},
				{"peer": "rr2", "address": "fd00::12", "state": "active", "since": "`+stamp(began.Add(2*time.Second))+`", "advertised": 0}
			],
			"sources": [], "ports": 3, "live": 2,
			"problems": ["session with rr2 (fd00::12) is active since `+began.Add(2*time.Second).Format(time.TimeOnly)+`; check that the reflector runs, knows this node and has the same AS number and password"]
		}`, asJSON(t, st))
	})
}

func TestStatusCountsWhatIsAnnounced(t *testing.T) {
	runs(t, nil, func(t *testing.T, n *node) {
		n.apply(web(), fabric.Live)
		n.apply(db(), fabric.Live)
		n.dataplane.SetCarrier("web_net1", false)
		moment()
		st, err := n.Status(t.Context())
		require.NoError(t, err)
		assert.Equal(t, 3, st.Ports)
		assert.Equal(t, 2, st.Live)
		require.NoError(t, n.Drain(t.Context()))
		st, err = n.Status(t.Context())
		require.NoError(t, err)
		assert.Equal(t, 3, st.Ports)
		assert.Equal(t, 2, st.Live, "what is announced last of all is announced")
		assert.True(t, st.Draining)
		assert.Contains(t, asJSON(t, st), `"draining":true`)
		assert.Contains(t, asJSON(t, st), `"draining_since":"`)
	})
}

func TestStatusIsToldAsFarAsItIsKnown(t *testing.T) {
	n := fresh(t)
	n.apply(db(), fabric.Live)
	n.speaker.Fail("list sessions", errBoom)
	st, err := n.Status(t.Context())
	require.ErrorIs(t, err, errBoom)
	assert.Equal(t, 1, st.Live)
	assert.False(t, st.Healthy)
	assert.Equal(t, []string{"speaker: boom"}, st.Problems)
	assert.NotNil(t, st.Sessions)
}

// counting is a source that knows three guests.
type counting struct{ *fake.Source }

func (c counting) Status() fabric.SourceStatus {
	return fabric.SourceStatus{Name: c.Name(), Connected: true, Guests: 3}
}

func TestStatusAsksTheBackends(t *testing.T) {
	source, resolver := counting{fake.NewSource("libvirt")}, new(fake.Trouble)
	end := fake.NewNodes(nil, cluster().Nodes...)["node1"]
	n := fresh(t, agent.WithSources(source, fake.NewSource("lxd")), agent.WithNodes(end), agent.WithDiagnosers(resolver))
	assert.Empty(t, n.problems())
	for text, backend := range map[string]*fake.Trouble{
		"port is not ours": &n.dataplane.Trouble, "bird: start it": &n.speaker.Trouble, "disk: check it": &n.store.Trouble,
		"node2: no answer": end.Trouble, "libvirt: no answer; restart it": &source.Trouble, "inventory: it is down": resolver,
	} {
		backend.Report(text)
		assert.Equal(t, []string{text}, n.problems())
		backend.Report()
	}
	st, err := n.Status(t.Context())
	require.NoError(t, err)
	assert.Equal(t, `[{"name":"libvirt","connected":true,"guests":3},{"name":"lxd","connected":true,"guests":0}]`, asJSON(t, st.Sources))
}

func TestStatusOfTheRegistry(t *testing.T) {
	r := newRegistry(nil)
	n := fresh(t, agent.WithRegistry(r))
	status := func() string {
		st, err := n.Status(t.Context())
		require.NoError(t, err)
		return asJSON(t, st.Registry)
	}
	assert.Equal(t, `{"kind":"file","shared":true,"healthy":true,"problems":[]}`, status())
	r.Report("registry: no quorum")
	assert.Equal(t, []string{"registry: no quorum"}, n.problems(), "once")
	assert.Equal(t, `{"kind":"file","shared":true,"healthy":false,"problems":["registry: no quorum"]}`, status())
	n = fresh(t, agent.WithRegistry(newRegistry(nil).OfOneNode()))
	assert.Equal(t, `{"kind":"file","shared":false,"healthy":true,"problems":[]}`, status())
	n = fresh(t)
	assert.Equal(t, "null", status())
}

func TestProblemsAreOneLineEach(t *testing.T) {
	runs(t, nil, func(t *testing.T, n *node) {
		n.apply(web(), fabric.Live)
		n.dataplane.Fail("unwire", errBoom) // both ports: two errors
		require.Error(t, n.Apply(t.Context(), web(), fabric.Absent))
		assert.Equal(t, []string{"guest web: remove web_net0: boom; boom"}, n.problems())
		for _, p := range n.problems() {
			assert.False(t, strings.Contains(p, "\n"))
		}
	})
}

// TestStatistics: what the agent does is counted where it does it.
func TestStatistics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := fresh(t)
		n.apply(web(), fabric.Live)
		n.apply(from("libvirt", db()), fabric.Wired)
		n.apply(from("libvirt", db()), fabric.Wired) // nothing to do
		outside := db()
		outside.Name, outside.NICs[0].Addresses[0] = "out", prefix("192.0.2.1/32").Addr()
		require.ErrorIs(t, n.Apply(t.Context(), outside, fabric.Live), fabric.ErrRefused)
		n.speaker.Fail("announce", errBoom)
		require.Error(t, n.Started(t.Context(), from("libvirt", db())))
		is := n.Statistics(t.Context())
		assert.EqualValues(t, 1, is.AttachRefused)
		assert.EqualValues(t, 1, is.AttachFailed)
		attached := uint64(0)
		for _, c := range is.Attach.Counts {
			attached += c
		}
		assert.EqualValues(t, 2, attached)
		assert.Equal(t, map[fabric.GuestCondition]int{fabric.GuestLive: 1, fabric.GuestWired: 1, fabric.GuestTrouble: 1}, is.Guests)
		assert.Equal(t, map[fabric.Family]int{fabric.IPv4: 3, fabric.IPv6: 3}, is.Announcements)
	})
}
