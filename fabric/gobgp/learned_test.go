package gobgp_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/server"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/gobgptest"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// recordingLearner records its calls.
type recordingLearner struct {
	mu      sync.Mutex
	routes  map[netip.Prefix]netip.Addr
	changes []string
	settled int
}

func newRecordingLearner() *recordingLearner {
	return &recordingLearner{routes: map[netip.Prefix]netip.Addr{}}
}

func (l *recordingLearner) Put(p netip.Prefix, via netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.routes[p] = via
	l.changes = append(l.changes, p.String()+" via "+via.String())
}

func (l *recordingLearner) Remove(p netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.routes, p)
	l.changes = append(l.changes, p.String()+" gone")
}

func (l *recordingLearner) Settle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settled++
}

// takeChanges returns the changes since it was called last.
func (l *recordingLearner) takeChanges() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	changes := l.changes
	l.changes = nil
	return changes
}

func (l *recordingLearner) has(ps ...learnedRoute) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range ps {
		if l.routes[p.prefix] != p.via {
			return false
		}
	}
	return true
}

type learnedRoute struct {
	prefix netip.Prefix
	via    netip.Addr // invalid: none
}

// learning is a cluster on loopback addresses: reflectors at 127.0.1.n, and
// nodes at 127.0.0.n.
func learning(firstPort uint16, reflectors int) fabric.Cluster {
	c := fabric.Cluster{
		Name: "lab", ASN: 64512,
		Communities: []fabric.Community{{A: 64512, B: 100}, {Large: true, A: 64512, B: 1, C: 100}},
		Pools: []fabric.Pool{
			{Name: "public4", Prefix: netip.MustParsePrefix("203.0.113.0/24"), Exclude: []netip.Prefix{netip.MustParsePrefix("203.0.113.240/28")}},
			{Name: "public6", Prefix: netip.MustParsePrefix("2001:db8:100::/48")},
		},
		Routed:   []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")},
		EastWest: true,
	}
	for n := range reflectors {
		c.Reflectors = append(c.Reflectors, fabric.RR{
			Name: fmt.Sprintf("rr%d", n+1), Address: netip.AddrFrom4([4]byte{127, 0, 1, byte(n + 1)}), Port: firstPort + uint16(n),
		})
	}
	return c.WithDefaults()
}

// plain is a reflector without a filter. Its end is no restart.
type plain struct{ *server.BgpServer }

func reflect(t *testing.T, c fabric.Cluster, n int) plain {
	t.Helper()
	labtest.Long(t)
	rr, ctx := c.Reflectors[n], t.Context()
	b := server.NewBgpServer()
	go b.Serve()
	require.NoError(t, b.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{
		Asn: c.ASN, RouterId: rr.Address.String(), ListenPort: int32(rr.Port), ListenAddresses: []string{rr.Address.String()},
	}}))
	var families []*api.AfiSafi
	for _, afi := range []api.Family_Afi{api.Family_AFI_IP, api.Family_AFI_IP6} {
		families = append(families, &api.AfiSafi{
			Config:            &api.AfiSafiConfig{Family: &api.Family{Afi: afi, Safi: api.Family_SAFI_UNICAST}, Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}},
		})
	}
	require.NoError(t, b.AddPeerGroup(ctx, &api.AddPeerGroupRequest{PeerGroup: &api.PeerGroup{
		Conf:            &api.PeerGroupConf{PeerGroupName: "all", PeerAsn: c.ASN},
		Transport:       &api.Transport{PassiveMode: true},
		RouteReflector:  &api.RouteReflector{RouteReflectorClient: true, RouteReflectorClusterId: rr.Address.String()},
		GracefulRestart: &api.GracefulRestart{Enabled: true, RestartTime: 120},
		AfiSafis:        families,
	}}))
	require.NoError(t, b.AddDynamicNeighbor(ctx, &api.AddDynamicNeighborRequest{
		DynamicNeighbor: &api.DynamicNeighbor{Prefix: "127.0.0.0/8", PeerGroup: "all"},
	}))
	return plain{b}
}

func (p plain) Close() error {
	return p.StopBgp(context.Background(), &api.StopBgpRequest{})
}

type learningNode struct {
	*recordingLearner
	fabric.Node
	speaker *gobgp.Speaker
	t       *testing.T
}

// newNode makes the speaker of a node.
func newNode(t *testing.T, c fabric.Cluster, n byte) *learningNode {
	t.Helper()
	l := &learningNode{recordingLearner: newRecordingLearner(), t: t, Node: fabric.Node{
		Name: fmt.Sprintf("node%d", n), Address: netip.AddrFrom4([4]byte{127, 0, 0, n}),
		Address6: netip.MustParseAddr(fmt.Sprintf("fd00:10:10::%d", n)),
	}}
	var err error
	l.speaker, err = gobgp.New(gobgp.Config{Cluster: c, Node: l.Node}, gobgp.WithLearner(l.recordingLearner))
	require.NoError(t, err)
	return l
}

func open(t *testing.T, nodes ...*learningNode) {
	t.Helper()
	for _, n := range nodes {
		run(t, n.speaker)
	}
}

// settles waits until the node has learned everything there is.
func (n *learningNode) settles() {
	n.t.Helper()
	require.Eventually(n.t, func() bool { return n.isSettled() == 1 }, 60*time.Second, 5*time.Millisecond)
}

func (l *recordingLearner) isSettled() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.settled
}

func (n *learningNode) announces(rank fabric.Preference, ps ...netip.Prefix) {
	n.t.Helper()
	for _, p := range ps {
		require.NoError(n.t, n.speaker.Put(n.t.Context(), fabric.Route{Prefix: p, Preference: rank}))
	}
}

func (n *learningNode) withdraws(ps ...netip.Prefix) {
	n.t.Helper()
	require.NoError(n.t, n.speaker.Remove(n.t.Context(), ps...))
}

// learns waits until the node has the prefixes through another; nil: not at all.
func (n *learningNode) learns(from *learningNode, ps ...netip.Prefix) {
	n.t.Helper()
	var want []learnedRoute
	for _, p := range ps {
		r := learnedRoute{prefix: p}
		if from != nil {
			r.via = from.Source(p.Addr())
		}
		want = append(want, r)
	}
	require.Eventually(n.t, func() bool { return n.has(want...) }, 60*time.Second, 5*time.Millisecond, "%s: %v", n.Name, n.routes)
}

// advertises waits until each session has that many routes of the node's own.
func (n *learningNode) advertises(routes uint64) {
	n.t.Helper()
	require.Eventually(n.t, func() bool {
		sessions, err := n.speaker.Sessions(n.t.Context())
		require.NoError(n.t, err)
		return !slices.ContainsFunc(sessions, func(s fabric.Session) bool { return s.Advertised != routes })
	}, 60*time.Second, 5*time.Millisecond, n.Name)
}

// TestLearnedAndOwn has two nodes announce one prefix of each family, in every order
// and rank: a node announces its own route whatever it learns, and what it learns of
// the other node does not depend on its own route.
func TestLearnedAndOwn(t *testing.T) {
	c := learning(11901, 2)
	for n := range c.Reflectors {
		rr := reflect(t, c, n)
		t.Cleanup(func() { require.NoError(t, rr.Close()) })
	}
	one, two, three := newNode(t, c, 11), newNode(t, c, 12), newNode(t, c, 13)
	open(t, one, two, three)
	for _, n := range []*learningNode{one, two, three} {
		n.settles()
	}
	for _, other := range []fabric.Preference{fabric.Standby, fabric.Normal, fabric.Fresh} {
		two.announces(other, gobgptest.V4, gobgptest.V6)
		one.learns(two, gobgptest.V4, gobgptest.V6)
		three.learns(two, gobgptest.V4, gobgptest.V6)
		one.takeChanges()
		for _, own := range []fabric.Preference{fabric.Standby, fabric.Normal, fabric.Fresh} {
			if own == other {
				continue
			}
			one.announces(own, gobgptest.V4, gobgptest.V6)
			one.advertises(2)
			winner := one
			if other.LocalPref() > own.LocalPref() {
				winner = two
				assert.Empty(t, one.takeChanges(), "the other is there as before")
			}
			three.learns(winner, gobgptest.V4, gobgptest.V6)
			one.withdraws(gobgptest.V4, gobgptest.V6)
			one.learns(two, gobgptest.V4, gobgptest.V6)
			three.learns(two, gobgptest.V4, gobgptest.V6)
			one.takeChanges()
		}
		// The other node announces while this one does.
		two.withdraws(gobgptest.V4, gobgptest.V6)
		one.learns(nil, gobgptest.V4, gobgptest.V6)
		one.announces(fabric.Normal, gobgptest.V4, gobgptest.V6)
		three.learns(one, gobgptest.V4, gobgptest.V6)
		two.announces(other, gobgptest.V4, gobgptest.V6)
		one.advertises(2)
		one.withdraws(gobgptest.V4, gobgptest.V6)
		one.learns(two, gobgptest.V4, gobgptest.V6)
		two.withdraws(gobgptest.V4, gobgptest.V6)
		one.learns(nil, gobgptest.V4, gobgptest.V6)
		three.learns(nil, gobgptest.V4, gobgptest.V6)
	}
	assert.Empty(t, one.speaker.Diagnose(t.Context()))
}

// TestLearnedFromTwoReflectors: the learner gets a route once that both reflectors
// have, and the end of one reflector is no change.
func TestLearnedFromTwoReflectors(t *testing.T) {
	c := learning(11911, 2)
	first, second := reflect(t, c, 0), reflect(t, c, 1)
	defer func() { require.NoError(t, second.Close()) }()
	left, right := c, c
	left.Reflectors, right.Reflectors = c.Reflectors[:1], c.Reflectors[1:]
	one, two, three, four := newNode(t, c, 21), newNode(t, c, 22), newNode(t, left, 23), newNode(t, right, 24)
	open(t, two, three, four)
	two.announces(fabric.Normal, gobgptest.V4, gobgptest.V6)
	three.learns(two, gobgptest.V4, gobgptest.V6)
	four.learns(two, gobgptest.V4, gobgptest.V6)
	open(t, one)
	one.settles()
	one.learns(two, gobgptest.V4, gobgptest.V6)
	require.NoError(t, first.Close())
	three.learns(nil, gobgptest.V4, gobgptest.V6)
	mark := netip.MustParsePrefix("203.0.113.77/32")
	two.announces(fabric.Normal, mark)
	one.learns(two, mark)
	require.Eventually(t, func() bool {
		sessions, err := one.speaker.Sessions(t.Context())
		require.NoError(t, err)
		return sessions[0].State != "established"
	}, 60*time.Second, 5*time.Millisecond)
	two.withdraws(mark)
	one.learns(nil, mark)
	assert.ElementsMatch(t, []string{
		gobgptest.V4.String() + " via 127.0.0.22", gobgptest.V6.String() + " via fd00:10:10::22",
		mark.String() + " via 127.0.0.22", mark.String() + " gone",
	}, one.takeChanges())
}

// TestLearnedWhereReflectorsDiffer: each of two nodes has a session with one reflector
// only, and the better route counts, whichever reflector has it.
func TestLearnedWhereReflectorsDiffer(t *testing.T) {
	c := learning(11915, 2)
	first, second := reflect(t, c, 0), reflect(t, c, 1)
	defer func() { require.NoError(t, second.Close()) }()
	left, right := c, c
	left.Reflectors, right.Reflectors = c.Reflectors[:1], c.Reflectors[1:]
	one, two, three := newNode(t, c, 25), newNode(t, left, 26), newNode(t, right, 27)
	open(t, one, two, three)
	three.announces(fabric.Normal, gobgptest.V4, gobgptest.V6)
	one.learns(three, gobgptest.V4, gobgptest.V6)
	two.announces(fabric.Normal, gobgptest.V4, gobgptest.V6)
	one.learns(two, gobgptest.V4, gobgptest.V6) // the lower originator
	three.announces(fabric.Fresh, gobgptest.V4, gobgptest.V6)
	one.learns(three, gobgptest.V4, gobgptest.V6)
	three.announces(fabric.Standby, gobgptest.V4, gobgptest.V6)
	one.learns(two, gobgptest.V4, gobgptest.V6)
	require.NoError(t, first.Close())
	one.learns(three, gobgptest.V4, gobgptest.V6)
	three.withdraws(gobgptest.V4, gobgptest.V6)
	one.learns(nil, gobgptest.V4, gobgptest.V6)
}

// TestLearnsOnlyWhatIsAnnounceable: a reflector without a filter passes everything
// on, and the node accepts the routes that a node of the cluster may announce.
func TestLearnsOnlyWhatIsAnnounceable(t *testing.T) {
	c := learning(11921, 1)
	rr := reflect(t, c, 0)
	defer func() { require.NoError(t, rr.Close()) }()
	stranger := c
	stranger.Communities = c.Communities[:1]
	one, two, three := newNode(t, c, 31), newNode(t, c, 32), newNode(t, stranger, 33)
	open(t, one, two, three)
	for _, p := range []string{"203.0.113.11/32", "2001:db8:100::11/128"} {
		three.announces(fabric.Fresh, netip.MustParsePrefix(p))
	}
	for _, p := range []string{
		"0.0.0.0/0", "::/0", "203.0.113.0/24", "203.0.113.8/31", "203.0.113.241/32", "192.0.2.1/32",
		"2001:db8:100::/64", "2001:db8:200::1/128", "198.51.0.0/16",
	} {
		two.announces(fabric.Normal, netip.MustParsePrefix(p))
	}
	routed, inside := netip.MustParsePrefix("198.51.100.0/29"), netip.MustParsePrefix("198.51.100.9/32")
	two.announces(fabric.Normal, routed, inside, gobgptest.V4, gobgptest.V6)
	one.learns(two, gobgptest.V4, gobgptest.V6, routed, inside)
	three.advertises(2)
	three.announces(fabric.Normal, netip.MustParsePrefix("203.0.113.12/32"))
	three.advertises(3)
	two.announces(fabric.Normal, netip.MustParsePrefix("203.0.113.13/32"))
	one.learns(two, netip.MustParsePrefix("203.0.113.13/32"))
	one.mu.Lock()
	assert.Len(t, one.routes, 5, "%v", one.routes)
	one.mu.Unlock()
	// An accepted route comes again without the communities: it is accepted no more.
	sessions, err := three.speaker.Sessions(t.Context())
	require.NoError(t, err)
	require.Equal(t, "established", sessions[0].State)
	three.announces(fabric.Fresh, gobgptest.V4)
	one.learns(nil, gobgptest.V4)
	three.withdraws(gobgptest.V4)
	one.learns(two, gobgptest.V4)
}

// TestLearnedSettles: with a reflector that does not answer, the learner settles
// after the restart time.
func TestLearnedSettles(t *testing.T) {
	c := learning(11931, 2)
	rr := reflect(t, c, 0)
	defer func() { require.NoError(t, rr.Close()) }()
	patient := newNode(t, c, 41)
	c.Timers.Restart = 2 * time.Second
	one, two := newNode(t, c, 42), newNode(t, c, 43)
	open(t, patient, one, two)
	two.announces(fabric.Normal, gobgptest.V4)
	one.learns(two, gobgptest.V4)
	patient.learns(two, gobgptest.V4)
	one.settles()
	assert.Zero(t, patient.isSettled())
	two.announces(fabric.Normal, gobgptest.V6)
	one.learns(two, gobgptest.V6)
}
