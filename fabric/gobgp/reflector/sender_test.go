package reflector_test

import (
	"bytes"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/gobgptest"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// announced has the routes that a node has announced, and those that pass.
type announced struct {
	node       *rogue
	tags       []string
	sent, good []netip.Prefix
}

// announce announces a route, of each family that its next hop allows.
func (s *announced) announce(passes bool, hop netip.Addr, pref uint32) {
	for _, v6 := range []bool{false, true} {
		if hop.IsValid() && hop.Is6() != v6 {
			continue
		}
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(len(s.sent) + 1)}), 32)
		if v6 {
			a := netip.MustParseAddr("2001:db8:100::").As16()
			a[15] = byte(len(s.sent) + 1)
			p = netip.PrefixFrom(netip.AddrFrom16(a), 128)
		}
		s.node.send(s.node.pathBy(p, hop, pref, s.tags...))
		if s.sent = append(s.sent, p); passes {
			s.good = append(s.good, p)
		}
	}
}

// all announces what may pass: the node's own next hop, with a LOCAL_PREF of the agents;
// and then other values of LOCAL_PREF, and other next hops.
func (s *announced) all() {
	for _, pref := range fabric.Preferences() {
		s.announce(true, netip.Addr{}, pref.LocalPref())
	}
	for _, pref := range []uint32{0, 1, 9, 11, 99, 101, 199, 201, 1000, math.MaxInt32, math.MaxUint32} {
		s.announce(false, netip.Addr{}, pref)
	}
	for _, other := range []string{
		"127.0.0.1", "127.0.0.3", "127.0.0.4", "127.0.0.5", "127.0.0.99", "169.254.1.1", "203.0.113.1", "192.0.2.1",
		"2001:db8::1", "2001:db8::3", "2001:db8::4", "2001:db8::99", "::ffff:127.0.0.4", "fe80::1", "::1", "2001:db8:100::1",
	} {
		s.announce(false, netip.MustParseAddr(other), 100)
	}
}

// TestSender: a node's routes pass with the node itself as next hop and a
// LOCAL_PREF that agents use, whether the cluster names it or not.
func TestSender(t *testing.T) {
	labtest.Long(t)
	hop := netip.MustParseAddr
	for n, from := range []struct{ name, address, hop6 string }{
		{"node1", "127.0.0.2", "2001:db8::2"}, {"127.0.0.9", "127.0.0.9", "::ffff:127.0.0.9"},
	} {
		t.Run(from.name, func(t *testing.T) {
			c := gobgptest.ClusterAt(gobgptest.Port + 30 + uint16(n))
			c.Nodes = append(c.Nodes, fabric.Node{Name: "node2", Address: hop("127.0.0.4"), Address6: hop("2001:db8::4")},
				fabric.Node{Name: "node3", Address: hop("127.0.0.5")})
			r := gobgptest.StartReflector(t, c)
			core := gobgptest.Listen(t, c, "127.0.0.3")
			node := startRogue(t, c, from.address)
			tags := strings.Fields(both)
			all := &announced{node: node, tags: tags}
			all.all()

			// The session is up, and what it sent is judged.
			gobgptest.Eventually(t, "everything arrives", func() bool { return peerOf(t, r, from.name).Received == uint64(len(all.sent)) })
			good := slices.SortedFunc(slices.Values(all.good), netip.Prefix.Compare)
			gobgptest.Eventually(t, "what may pass passes", func() bool { return len(core.All()) >= len(good) })
			assert.Equal(t, good, core.All())
			for _, p := range good {
				got, _ := core.Get(p)
				want := from.address
				if p.Addr().Is6() {
					want = from.hop6
				}
				assert.Equal(t, want, got.String())
			}
			assert.EqualValues(t, len(good), peerOf(t, r, from.name).Accepted)

			// A route that was good and is not any more leaves, and comes back.
			for _, p := range []netip.Prefix{good[0], good[len(good)-1]} {
				for _, bad := range []*apiutil.Path{node.pathBy(p, netip.Addr{}, 201, tags...), node.pathBy(p, hop(map[bool]string{false: "127.0.0.4", true: "2001:db8::4"}[p.Addr().Is6()]), 200, tags...)} {
					node.send(bad)
					gobgptest.Eventually(t, "it leaves", func() bool { return len(core.All()) == len(good)-1 })
					node.send(node.pathBy(p, netip.Addr{}, 200, tags...))
					gobgptest.Eventually(t, "it is back", func() bool { return slices.Equal(core.All(), good) })
				}
			}

			// A move: fresh, then standby, then drained; the reflector passes each on.
			for _, pref := range []fabric.Preference{fabric.Fresh, fabric.Standby, fabric.Draining, fabric.Normal} {
				for _, p := range []netip.Prefix{good[0], good[len(good)-1]} {
					path := node.pathBy(p, netip.Addr{}, pref.LocalPref(), tags...)
					if pref == fabric.Draining {
						path = node.pathBy(p, netip.Addr{}, pref.LocalPref(), append(tags, fabric.GracefulShutdown.String())...)
					}
					node.send(path)
					gobgptest.Eventually(t, "it is passed on", func() bool { return core.Preference(p) == pref.LocalPref() })
				}
			}
		})
	}
}

// TestSenderLinkLocal: a link-local next hop beside the right one is left out,
// and alone it is refused.
func TestSenderLinkLocal(t *testing.T) {
	labtest.Long(t)
	c := gobgptest.ClusterAt(gobgptest.Port + 32)
	r := gobgptest.StartReflector(t, c)
	// GoBGP shows no link-local next hops, and sends none of its own.
	core, node := raw(t, c, "127.0.0.3"), raw(t, c, "127.0.0.2")
	normal := fabric.Normal.LocalPref()
	for p, hops := range map[string][]string{
		"2001:db8:100::1/128": {"2001:db8::2", "fe80::2"},
		"2001:db8:100::2/128": {"2001:db8::9", "fe80::2"},
		"2001:db8:100::3/128": {"fe80::2"},
	} {
		route := routers.RogueRoute{Prefix: netip.MustParsePrefix(p), LocalPref: &normal, Communities: c.Communities}
		for _, h := range hops {
			route.NextHops = append(route.NextHops, netip.MustParseAddr(h))
		}
		require.NoError(t, node.Announce(route))
	}
	gobgptest.Eventually(t, "everything arrives", func() bool { return peerOf(t, r, "node1").Received == 3 })
	plain := slices.Concat([]byte{0, 2, 1, 16}, netip.MustParseAddr("2001:db8::2").AsSlice())
	gobgptest.Eventually(t, "the first passes", func() bool {
		return slices.ContainsFunc(core.Heard(), func(update []byte) bool { return bytes.Contains(update, plain) })
	})
	for _, update := range core.Heard() {
		for _, hop := range []string{"fe80::2", "2001:db8::9"} {
			assert.NotContains(t, string(update), string(netip.MustParseAddr(hop).AsSlice()))
		}
	}
}

// raw brings a session up with the first reflector of a cluster.
func raw(t *testing.T, c fabric.Cluster, address string) *routers.Rogue {
	t.Helper()
	at := netip.MustParseAddr(address)
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(at, 0))}
	var r *routers.Rogue
	gobgptest.Eventually(t, "there is a session", func() bool {
		conn, err := dialer.DialContext(t.Context(), "tcp", netip.AddrPortFrom(c.Reflectors[0].Address, c.Reflectors[0].Port).String())
		if err == nil {
			r, err = routers.NewRogue(conn, c.ASN, at)
		}
		return err == nil
	})
	t.Cleanup(func() { assert.NoError(t, r.Close()) })
	return r
}

// TestSenderUndeclared: of a node that the cluster gives no IPv6 address passes
// what may be its own, and is nobody else's.
func TestSenderUndeclared(t *testing.T) {
	labtest.Long(t)
	c := gobgptest.ClusterAt(gobgptest.Port + 33)
	c.Nodes[0].Address6 = netip.Addr{}
	c.Nodes = append(c.Nodes, fabric.Node{Name: "node2", Address: netip.MustParseAddr("127.0.0.4"), Address6: netip.MustParseAddr("2001:db8::4")})
	r := gobgptest.StartReflector(t, c)
	core := gobgptest.Listen(t, c, "127.0.0.3")
	node := startRogue(t, c, "127.0.0.2")
	var good []netip.Prefix
	for n, hop := range []string{
		"2001:db8::2", "2001:db8::77", "::ffff:127.0.0.2", // its own, for all that the reflector knows
		"2001:db8::4", "2001:db8:1::2", "2001:db8:100::7", "fe80::1", "::1", "::ffff:127.0.0.4",
	} {
		p := netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("2001:db8:100::%d", n+1)), 128)
		node.send(node.pathBy(p, netip.MustParseAddr(hop), 100, strings.Fields(both)...))
		if n < 3 {
			good = append(good, p)
		}
		high := netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("2001:db8:100::1:%d", n+1)), 128)
		node.send(node.pathBy(high, netip.MustParseAddr(hop), 201, strings.Fields(both)...))
	}
	gobgptest.Eventually(t, "everything arrives", func() bool { return peerOf(t, r, "node1").Received == 18 })
	gobgptest.Eventually(t, "what may pass passes", func() bool { return len(core.All()) >= len(good) })
	assert.Equal(t, good, core.All())
}
