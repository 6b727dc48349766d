package reflector_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/gobgptest"
	"github.com/vmfabric/vmfabric/fabric/gobgp/reflector"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// rogue is a speaker that announces anything.
type rogue struct {
	t   *testing.T
	bgp *server.BgpServer
	// hops are its own next hops of IPv4 and IPv6: what the cluster has of the
	// node, or what comes of its session's address.
	hops [2]netip.Addr
}

// startRogue starts one at an address, with sessions to the reflectors of a
// cluster.
func startRogue(t *testing.T, c fabric.Cluster, address string) *rogue {
	t.Helper()
	at, node := netip.MustParseAddr(address), fabric.Node{}
	if i := slices.IndexFunc(c.Nodes, func(n fabric.Node) bool { return n.Address == at }); i >= 0 {
		node = c.Nodes[i]
	}
	r := &rogue{t: t, bgp: server.NewBgpServer(), hops: [2]netip.Addr{node.NextHop(at, false), node.NextHop(at, true)}}
	done := make(chan struct{})
	go func() { defer close(done); r.bgp.Serve() }()
	t.Cleanup(func() {
		require.NoError(t, r.bgp.StopBgp(t.Context(), &api.StopBgpRequest{}))
		<-done
	})
	require.NoError(t, r.bgp.StartBgp(t.Context(), &api.StartBgpRequest{Global: &api.Global{Asn: c.ASN, RouterId: address, ListenPort: -1}}))
	for _, rr := range c.Reflectors {
		p := &api.Peer{
			Conf:            &api.PeerConf{NeighborAddress: rr.Address.String(), PeerAsn: c.ASN, AuthPassword: rr.Password},
			Transport:       &api.Transport{LocalAddress: address, RemotePort: uint32(rr.Port)},
			Timers:          &api.Timers{Config: &api.TimersConfig{ConnectRetry: 1, IdleHoldTimeAfterReset: 1}},
			GracefulRestart: &api.GracefulRestart{Enabled: !raceOn, RestartTime: 120},
		}
		for _, afi := range []api.Family_Afi{api.Family_AFI_IP, api.Family_AFI_IP6} {
			p.AfiSafis = append(p.AfiSafis, &api.AfiSafi{
				Config:            &api.AfiSafiConfig{Family: &api.Family{Afi: afi, Safi: api.Family_SAFI_UNICAST}, Enabled: true},
				MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}},
			})
		}
		require.NoError(t, r.bgp.AddPeer(t.Context(), &api.AddPeerRequest{Peer: p}))
	}
	return r
}

func (r *rogue) path(p netip.Prefix, communities ...string) *apiutil.Path {
	return r.pathBy(p, netip.Addr{}, 100, communities...)
}

// pathBy is path with another next hop, if that is valid, and a LOCAL_PREF.
func (r *rogue) pathBy(p netip.Prefix, hop netip.Addr, pref uint32, communities ...string) *apiutil.Path {
	nlri, err := bgp.NewIPAddrPrefix(p)
	require.NoError(r.t, err)
	family, own := bgp.RF_IPv4_UC, r.hops[0]
	if p.Addr().Is6() {
		family, own = bgp.RF_IPv6_UC, r.hops[1]
	}
	if !hop.IsValid() {
		hop = own
	}
	attrs := []bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(0), bgp.NewPathAttributeLocalPref(pref)}
	if family == bgp.RF_IPv4_UC {
		a, err := bgp.NewPathAttributeNextHop(hop)
		require.NoError(r.t, err)
		attrs = append(attrs, a)
	} else {
		a, err := bgp.NewPathAttributeMpReachNLRI(family, []bgp.PathNLRI{{NLRI: nlri}}, hop)
		require.NoError(r.t, err)
		attrs = append(attrs, a)
	}
	var plain []uint32
	var large []*bgp.LargeCommunity
	for _, s := range communities {
		c, err := fabric.ParseCommunity(s)
		require.NoError(r.t, err)
		if c.Large {
			large = append(large, bgp.NewLargeCommunity(c.A, c.B, c.C))
		} else {
			plain = append(plain, c.A<<16|c.B)
		}
	}
	if len(plain) > 0 {
		attrs = append(attrs, bgp.NewPathAttributeCommunities(plain))
	}
	if len(large) > 0 {
		attrs = append(attrs, bgp.NewPathAttributeLargeCommunities(large))
	}
	return &apiutil.Path{Family: family, Nlri: nlri, Attrs: attrs, Age: time.Now().Unix()}
}

func (r *rogue) announce(p netip.Prefix, communities ...string) {
	r.t.Helper()
	r.send(r.path(p, communities...))
}

func (r *rogue) send(p *apiutil.Path) {
	r.t.Helper()
	_, err := r.bgp.AddPath(apiutil.AddPathRequest{Paths: []*apiutil.Path{p}})
	require.NoError(r.t, err)
}

func peerOf(t *testing.T, r interface {
	Peers(ctx context.Context) ([]reflector.Peer, error)
}, name string,
) reflector.Peer {
	t.Helper()
	peers, err := r.Peers(t.Context())
	require.NoError(t, err)
	i := slices.IndexFunc(peers, func(p reflector.Peer) bool { return p.Peer == name })
	if i < 0 {
		return reflector.Peer{}
	}
	return peers[i]
}

const both = "64512:100 64512:1:100" // the cluster's communities

// announcements are what a node may and may not announce.
var announcements = []struct {
	prefix, communities string
	passes              bool
}{
	{"203.0.113.10/32", both, true},
	{"203.0.0.1/32", both, true},
	{"203.0.113.11/32", both + " 64512:666 65535:65281", true},
	{"198.51.100.0/29", both, true},
	{"198.51.100.0/24", both, true},
	{"198.51.100.77/32", both, true},
	{"2001:db8:100::10/128", both, true},
	{"2001:db8:100::11/128", both + " 64512:666", true},
	{"2001:db8:200::/56", both, true},
	{"2001:db8:200::/48", both, true},
	{"2001:db8:200::77/128", both, true},
	{"192.0.2.136/29", both, true}, // a guest's, of a pool that gives such prefixes
	{"192.0.2.137/32", both, true},
	{"2001:db8:300:5::/64", both, true},
	{"2001:db8:300:6::1/128", both, true},

	{"0.0.0.0/0", both, false},
	{"203.0.113.0/24", both, false},
	{"203.0.113.0/25", both, false},
	{"203.0.113.12/31", both, false},
	{"203.0.0.0/16", both, false},
	{"203.0.0.0/15", both, false},
	{"192.0.2.1/32", both, false},
	{"198.51.0.0/16", both, false},
	{"203.0.255.1/32", both, false}, // excluded
	{"203.0.113.20/32", "", false},
	{"203.0.113.21/32", "64512:100", false},
	{"203.0.113.22/32", "64512:1:100", false},
	{"203.0.113.23/32", "64512:101 64512:1:100", false},
	{"203.0.113.24/32", "64512:100 64512:1:1000", false},
	{"203.0.113.25/32", "64512:1002 64512:1:100", false},
	{"127.0.0.9/32", both, false},
	{"169.254.1.1/32", both, false},
	{"224.0.0.1/32", both, false},
	{"0.0.0.1/32", both, false},
	{"240.0.0.1/32", both, false},

	{"192.0.2.144/30", both, false},
	{"192.0.2.160/28", both, false},
	{"2001:db8:300:7::/65", both, false},
	{"2001:db8:300::/56", both, false},

	{"::/0", both, false},
	{"2001:db8:100::/48", both, false},
	{"2001:db8:100::/64", both, false},
	{"2001:db8:100::12/127", both, false},
	{"2001:db8::/32", both, false},
	{"2001:db8:9::9/128", both, false},
	{"2001:db8:100:ffff::1/128", both, false}, // excluded
	{"2001:db8:100::20/128", "", false},
	{"2001:db8:100::21/128", "64512:100", false},
	{"2001:db8:100::22/128", "64512:1:100", false},
	{"::1/128", both, false},
	{"fe80::1/128", both, false},
	{"ff02::1/128", both, false},
	{"::ffff:203.0.113.10/128", both, false},
}

// TestPolicy announces everything that may pass and everything that may not,
// from a node that the cluster names and from one that it does not, and has a
// core gateway listen.
func TestPolicy(t *testing.T) {
	labtest.Long(t)
	for n, from := range []struct{ name, address string }{{"node1", "127.0.0.2"}, {"127.0.0.9", "127.0.0.9"}} {
		t.Run(from.name, func(t *testing.T) {
			c := gobgptest.ClusterAt(gobgptest.Port + 10 + uint16(n))
			// Pools that hold martians: no cluster file has them, and no reflector takes them.
			c.Pools = append(c.Pools, fabric.Pool{Name: "odd4", Prefix: netip.MustParsePrefix("0.0.0.0/1")}, fabric.Pool{Name: "odd6", Prefix: netip.MustParsePrefix("::/64")},
				fabric.Pool{Name: "all4", Prefix: netip.MustParsePrefix("224.0.0.0/3")}, fabric.Pool{Name: "all6", Prefix: netip.MustParsePrefix("f000::/4")})
			c.Pools = append(c.Pools, fabric.Pool{Name: "own4", Prefix: netip.MustParsePrefix("192.0.2.128/25"), PerGuest: 29},
				fabric.Pool{Name: "own6", Prefix: netip.MustParsePrefix("2001:db8:300::/48"), PerGuest: 64})
			c.Underlay = gobgptest.Prefixes("127.0.0.0/24")
			r := gobgptest.NewReflector(t, c)
			// It announces before there is a reflector: nothing passes while that starts.
			node := startRogue(t, c, from.address)
			var good []netip.Prefix
			for _, a := range announcements {
				p := gobgptest.Prefixes(a.prefix)[0]
				node.announce(p, strings.Fields(a.communities)...)
				if a.passes {
					good = append(good, p)
				}
			}
			slices.SortFunc(good, netip.Prefix.Compare)
			learned, other := gobgptest.Listen(t, c, "127.0.0.3"), gobgptest.Listen(t, c, "127.0.0.4")
			r.Start()

			gobgptest.Eventually(t, "everything arrives", func() bool { return peerOf(t, r, from.name).Received == uint64(len(announcements)) })
			gobgptest.Eventually(t, "what may pass passes", func() bool { return len(learned.All()) >= len(good) })
			assert.Equal(t, good, learned.All())
			p := peerOf(t, r, from.name)
			assert.EqualValues(t, len(good), p.Accepted)
			assert.Equal(t, uint64(8), p.IPv4.Accepted)
			assert.Equal(t, uint64(7), p.IPv6.Accepted)
			assert.Len(t, p.Refused, 3)
			routes4, err := r.Routes(t.Context(), false)
			require.NoError(t, err)
			routes6, err := r.Routes(t.Context(), true)
			require.NoError(t, err)
			assert.Equal(t, []uint64{8, 7}, []uint64{routes4, routes6})
			assert.EqualValues(t, len(good), peerOf(t, r, "core1").Advertised)
			gobgptest.Eventually(t, "a node that only listens is there", func() bool { return peerOf(t, r, "127.0.0.4").State == "established" })
			assert.Empty(t, other.All(), "the reflector sends nodes nothing")

			// Later changes are judged anew.
			node.announce(good[0], "64512:100")
			gobgptest.Eventually(t, "a route that loses a community leaves", func() bool { return len(learned.All()) == len(good)-1 })
			node.announce(good[0], strings.Fields(both)...)
			gobgptest.Eventually(t, "and comes back with it", func() bool { return slices.Equal(learned.All(), good) })
			assert.Empty(t, other.All())
		})
	}
}

// TestPolicyOfCoreGateways: the reflector sends them routes and accepts none, also where a range
// of nodes has their address, or a node the same.
func TestPolicyOfCoreGateways(t *testing.T) {
	labtest.Long(t)
	c := gobgptest.ClusterAt(gobgptest.Port + 12)
	c.Nodes = append(c.Nodes, fabric.Node{Name: "onCore", Address: c.Core[0].Address})
	c.Core = append(c.Core, fabric.Core{Name: "core2", Address: netip.MustParseAddr("127.0.0.4"), ASN: c.ASN})
	r := gobgptest.NewReflector(t, c)
	core := startRogue(t, c, "127.0.0.3")
	for _, p := range gobgptest.Prefixes("203.0.113.10/32", "2001:db8:100::10/128", "0.0.0.0/0", "::/0") {
		core.announce(p, strings.Fields(both)...)
	}
	learned := gobgptest.Listen(t, c, "127.0.0.4")
	node := startRogue(t, c, "127.0.0.2")
	r.Start()
	gobgptest.Eventually(t, "everything arrives", func() bool { return peerOf(t, r, "core1").Received == 4 })
	gobgptest.Eventually(t, "the other is there", func() bool { return peerOf(t, r, "core2").State == "established" })
	node.announce(netip.MustParsePrefix("203.0.113.11/32"), strings.Fields(both)...)
	node.announce(netip.MustParsePrefix("2001:db8:100::11/128"), strings.Fields(both)...)
	gobgptest.Eventually(t, "a node's routes pass", func() bool { return len(learned.All()) == 2 })
	assert.Equal(t, gobgptest.Prefixes("203.0.113.11/32", "2001:db8:100::11/128"), learned.All())
	assert.Zero(t, peerOf(t, r, "core1").Accepted)
	assert.Equal(t, reflector.RoleCore, peerOf(t, r, "core1").Role)
	assert.Equal(t, reflector.Peer{}, peerOf(t, r, "onCore"))
	status, err := r.Status(t.Context())
	require.NoError(t, err)
	assert.True(t, status.Healthy, status.Problems)
}

// TestEastWest: an east-west cluster's reflector sends nodes each other's routes.
func TestEastWest(t *testing.T) {
	labtest.Long(t)
	c := gobgptest.ClusterAt(gobgptest.Port + 13)
	c.EastWest = true
	r := gobgptest.StartReflector(t, c)
	named, unnamed := gobgptest.Listen(t, c, "127.0.0.2"), gobgptest.Listen(t, c, "127.0.0.10")
	node := startRogue(t, c, "127.0.0.9")
	good := gobgptest.Prefixes("203.0.113.10/32", "2001:db8:100::10/128")
	for _, p := range append(gobgptest.Prefixes("0.0.0.0/0", "203.0.113.0/24", "2001:db8:100::/64"), good...) {
		node.announce(p, strings.Fields(both)...)
	}
	gobgptest.Eventually(t, "nodes learn", func() bool { return len(named.All()) == 2 && len(unnamed.All()) == 2 })
	gobgptest.Eventually(t, "all arrived", func() bool { return peerOf(t, r, "127.0.0.9").Received == 5 })
	assert.Equal(t, good, named.All())
	assert.Equal(t, good, unnamed.All())
	assert.EqualValues(t, 2, peerOf(t, r, "node1").Advertised)
}

// TestCoreOfAnotherAS has the core gateway outside: the next hop stays the node.
func TestCoreOfAnotherAS(t *testing.T) {
	labtest.Long(t)
	c := gobgptest.ClusterAt(gobgptest.Port + 14)
	c.Core[0].ASN = 64600
	gobgptest.StartReflector(t, c)
	outside := c
	outside.ASN = 64600
	learned := gobgptest.Listen(t, outside, "127.0.0.3")
	node := startRogue(t, c, "127.0.0.2")
	for _, p := range []netip.Prefix{gobgptest.V4, gobgptest.V6} {
		node.announce(p, strings.Fields(both)...)
	}
	gobgptest.Eventually(t, "they pass", func() bool { return len(learned.All()) == 2 })
	hop4, _ := learned.Get(gobgptest.V4)
	hop6, _ := learned.Get(gobgptest.V6)
	assert.Equal(t, "127.0.0.2", hop4.String())
	assert.Equal(t, "2001:db8::2", hop6.String())
}

// TestPrefixLimit has a node exceed the limit in each family: it loses all of
// its routes, is refused for the pause, and others do not notice.
func TestPrefixLimit(t *testing.T) {
	labtest.Long(t)
	for n, tc := range []struct{ name, address, prefix string }{
		{"node1", "127.0.0.2", "203.0.113.%d/32"},
		{"127.0.0.9", "127.0.0.9", "2001:db8:100::%d/128"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := gobgptest.ClusterAt(gobgptest.Port + 15 + uint16(n))
			c.MaxPrefixes = 10
			r := gobgptest.StartReflector(t, c, reflector.WithPause(3*time.Second))
			learned := gobgptest.Listen(t, c, "127.0.0.3")
			good := startRogue(t, c, "127.0.0.20")
			good.announce(gobgptest.V4, strings.Fields(both)...)
			node := startRogue(t, c, tc.address)
			for i := range 10 {
				node.announce(netip.MustParsePrefix(fmt.Sprintf(tc.prefix, 20+i)), strings.Fields(both)...)
			}
			gobgptest.Eventually(t, "ten pass", func() bool { return len(learned.All()) == 11 })
			status, err := r.Status(t.Context())
			require.NoError(t, err)
			assert.Contains(t, strings.Join(status.Problems, "\n"), "announces 10 prefixes of a family, and 10 is the most", "the warning")

			node.announce(netip.MustParsePrefix(fmt.Sprintf(tc.prefix, 99)), strings.Fields(both)...)
			gobgptest.Eventually(t, "it is refused", func() bool { return peerOf(t, r, tc.name).Held })
			gobgptest.Eventually(t, "its routes leave", func() bool { return len(learned.All()) == 1 })
			status, err = r.Status(t.Context())
			require.NoError(t, err)
			assert.Contains(t, strings.Join(status.Problems, "\n"), "is refused for 3s")
			// Until it announces less, it comes and goes.
			gobgptest.Eventually(t, "it may connect again", func() bool { return !peerOf(t, r, tc.name).Held })
			gobgptest.Eventually(t, "and is refused again", func() bool { return peerOf(t, r, tc.name).Held })
			over := node.path(netip.MustParsePrefix(fmt.Sprintf(tc.prefix, 99)), strings.Fields(both)...)
			over.Withdrawal = true
			require.NoError(t, node.bgp.DeletePath(apiutil.DeletePathRequest{Paths: []*apiutil.Path{over}}))
			gobgptest.Eventually(t, "then its routes are back", func() bool { return len(learned.All()) == 11 })
			assert.Equal(t, "established", peerOf(t, r, "127.0.0.20").State)
		})
	}
}

func TestReflectorErrors(t *testing.T) {
	c := gobgptest.ClusterAt(gobgptest.Port + 17)
	r := gobgptest.StartReflector(t, c)
	for _, tc := range []struct {
		name   string
		change func(*fabric.Cluster, *fabric.RR)
		says   string
	}{
		{"address in use", func(*fabric.Cluster, *fabric.RR) {}, "reflector rr1: listen on 127.0.0.1:11807: address already in use; another reflector"},
		{"address of another machine", func(_ *fabric.Cluster, rr *fabric.RR) { rr.Address = netip.MustParseAddr("192.0.2.1") }, "run the reflector where it is"},
		{"another AS", func(_ *fabric.Cluster, rr *fabric.RR) { rr.ASN = 64999 }, "a reflector reflects within one AS"},
		{"no pools", func(c *fabric.Cluster, _ *fabric.RR) { c.Pools, c.Routed = nil, nil }, "no pools"},
		{"no community", func(c *fabric.Cluster, _ *fabric.RR) { c.Communities = nil }, "no community"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			changed, rr := c, c.Reflectors[0]
			tc.change(&changed, &rr)
			another, err := reflector.New(reflector.Config{Cluster: changed, RR: rr})
			if err == nil {
				_, err = another.Peers(t.Context())
				require.ErrorContains(t, err, "does not run yet")
				err = another.Run(t.Context())
			}
			require.ErrorContains(t, err, tc.says)
			assert.NotContains(t, err.Error(), "\n")
		})
	}
	r.Stop()
	again := gobgptest.StartReflector(t, c)
	status, err := again.Status(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []string{"core1", "node1"}, []string{status.Sessions[0].Peer, status.Sessions[1].Peer})
	require.Len(t, status.Problems, 2)
	assert.Contains(t, status.Problems[0], "core gateway core1 (127.0.0.3) has no session since")
	assert.Contains(t, status.Problems[1], "no node has a session")
	assert.Equal(t, "reflector", status.Role)
	assert.Equal(t, "rr1", status.Node)
}

// TestNodeRestarts: a node that ends without a word keeps its routes, by name and
// by address alike; one that is gone for the restart time loses them.
func TestNodeRestarts(t *testing.T) {
	labtest.Long(t)
	if raceOn {
		t.Skip("GoBGP races with itself as a helper in graceful restart")
	}
	for n, tc := range []struct{ name, address string }{{"node1", "127.0.0.2"}, {"127.0.0.9", "127.0.0.9"}} {
		t.Run(tc.name, func(t *testing.T) {
			c := gobgptest.ClusterAt(gobgptest.Port + 18 + uint16(n))
			r := gobgptest.StartReflector(t, c)
			learned := gobgptest.Listen(t, c, "127.0.0.3")
			node := fabric.Node{Name: "node", Address: netip.MustParseAddr(tc.address)}
			if tc.name == c.Nodes[0].Name {
				node = c.Nodes[0]
			}
			start := func() (stop func()) {
				s, err := gobgp.New(gobgp.Config{Cluster: c, Node: node})
				require.NoError(t, err)
				require.NoError(t, s.Put(t.Context(), fabric.Route{Prefix: gobgptest.V4}, fabric.Route{Prefix: gobgptest.V6}))
				return gobgptest.Run(t, s)
			}
			stop := start()
			gobgptest.Eventually(t, "they pass", func() bool { return len(learned.All()) == 2 })
			// It ends without a Cease, as a killed process does.
			stop()
			gobgptest.Eventually(t, "the session is down", func() bool { return peerOf(t, r, tc.name).State != "established" })
			assert.Len(t, learned.All(), 2, "kept")
			stop = start()
			gobgptest.Eventually(t, "the session is back", func() bool { return peerOf(t, r, tc.name).State == "established" })
			for range 50 {
				require.Len(t, learned.All(), 2, "nothing flaps")
				time.Sleep(20 * time.Millisecond)
			}
			stop()
			gobgptest.Eventually(t, "the session is down", func() bool { return peerOf(t, r, tc.name).State != "established" })

			c.Timers.Restart = 3 * time.Second
			stop = start()
			gobgptest.Eventually(t, "the session is back", func() bool { return peerOf(t, r, tc.name).State == "established" })
			stop()
			gobgptest.Eventually(t, "gone for good", func() bool { return len(learned.All()) == 0 })
		})
	}
}
