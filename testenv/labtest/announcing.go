package labtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/conformance"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
)

// Announcing is a lab for speakers that announce through the kernel and a daemon on
// the node: a node with a port, and a reflector.
type Announcing struct {
	Cluster   fabric.Cluster // with one reflector and one node
	Node      *core.Host
	Reflector *routers.Bird
	RR        *core.Host // where the reflector runs
	Port      string     // the name of the node's only port
}

// NewAnnouncing makes the lab, without a daemon on the node. It needs BIRD.
func NewAnnouncing(t testing.TB) *Announcing {
	t.Helper()
	Need(t, "bird")
	c := core.SmallCluster(1)
	c.Reflectors = c.Reflectors[:1]
	_, top := Build(t, c)
	a := &Announcing{Cluster: c, Node: top.Nodes["node1"], RR: top.Reflectors["rr1"], Port: "guest_net0"}
	a.StartReflector(t)
	for _, args := range []string{
		"link add " + a.Port + " up type veth peer name xguest_net0", "link set xguest_net0 up", "addr add 169.254.1.1/32 dev " + a.Port,
	} {
		_, err := a.Node.Run(t.Context(), "ip", strings.Fields(args)...)
		require.NoError(t, err)
	}
	return a
}

// StartReflector starts the reflector, at first or after its end.
func (a *Announcing) StartReflector(t testing.TB) {
	t.Helper()
	var err error
	a.Reflector, err = routers.StartBird(t.Context(), a.RR, routers.Reflector{RouterID: a.RR.Addr4()}.Bird())
	require.NoError(t, err)
}

// BirdConf is the configuration of a BIRD on the node. With its default buffer
// BIRD misses notifications when a thousand routes come at once, until its next
// scan.
func (a *Announcing) BirdConf() string {
	return fmt.Sprintf(`log stderr all;
router id %[1]s;
protocol device { scan time 10; }
filter carriers {
	if krt_source = %[2]d && krt_metric < %[3]d then {
		preference = 200;
		bgp_local_pref = krt_metric;
		bgp_community.add((64512,100));
		if krt_metric = %[6]d then bgp_community.add((65535,0));
		accept;
	}
	reject;
}
protocol kernel k4 { learn; scan time 60; netlink rx buffer 8388608; ipv4 { import filter carriers; export none; }; }
protocol kernel k6 { learn; scan time 60; netlink rx buffer 8388608; ipv6 { import filter carriers; export none; }; }
protocol bgp 'to_rr1' {
	local %[1]s as %[4]d; direct; neighbor %[5]s as %[4]d;
	connect delay time 1; connect retry time 1; error wait time 1, 5;
	ipv4 { import none; export where source = RTS_INHERIT; next hop self; };
	ipv6 { import none; export where source = RTS_INHERIT; next hop self; };
}
`, a.Node.Addr4(), fabric.Protocol, fabric.PortMetric, a.Cluster.ASN, a.Cluster.Reflectors[0].Address, fabric.Draining.LocalPref())
}

// FRRConf is the configuration of an FRR on the node.
func (a *Announcing) FRRConf() string {
	var b strings.Builder
	for i, p := range fabric.Preferences() {
		communities := append([]fabric.Community{{A: 64512, B: 100}}, p.Communities()...)
		fmt.Fprintf(&b, `route-map carriers permit %d
 match metric %d
 set local-preference %[2]d
 set metric 0
 set community %[3]s
 set origin igp
exit
`, 10*i+10, p.LocalPref(), strings.Trim(fmt.Sprint(communities), "[]"))
	}
	fmt.Fprintf(&b, `router bgp %d
 bgp router-id %s
 no bgp default ipv4-unicast
 neighbor rr peer-group
 neighbor rr remote-as %[1]d
 neighbor rr timers connect 1
 address-family ipv4 unicast
  redistribute kernel route-map carriers
  neighbor rr activate
 exit-address-family
 address-family ipv6 unicast
  redistribute kernel route-map carriers
  neighbor rr activate
 exit-address-family
 neighbor %[3]s peer-group rr
`, a.Cluster.ASN, a.Node.Addr4(), a.Cluster.Reflectors[0].Address)
	return b.String()
}

// EndIsTold ends the reflector, and checks that its session then has the
// NOTIFICATION by which it ended, with its time. A speaker that follows a daemon
// that has just started may miss the first one: then EndIsTold starts the reflector
// again and repeats.
func (a *Announcing) EndIsTold(t testing.TB, session func() fabric.Session) {
	t.Helper()
	for range 25 { // a speaker may read the daemon's log up to half a minute late
		is := func(up bool) func() bool {
			return func() bool { return (session().State == "established") == up }
		}
		require.Eventually(t, is(true), time.Minute, 10*time.Millisecond)
		require.NoError(t, a.Reflector.Stop())
		require.Eventually(t, is(false), time.Minute, 10*time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		err := core.Until(ctx, func() error {
			if n := session().Notification; n == nil || n.Sent || n.Code != 6 || n.At.IsZero() {
				return fmt.Errorf("the session's last NOTIFICATION is %v", n)
			}
			return nil
		})
		cancel()
		if err == nil {
			return
		}
		t.Log(err)
		a.StartReflector(t)
	}
	require.Fail(t, "the end of the session is not told with its time")
}

// Prepare makes routes to the port, as the dataplane does.
func (a *Announcing) Prepare(t testing.TB, ps []netip.Prefix) {
	t.Helper()
	l, err := a.Node.Netlink().LinkByName(a.Port)
	require.NoError(t, err)
	for _, p := range ps {
		err := a.Node.Netlink().RouteAdd(&netlink.Route{
			LinkIndex: l.Attrs().Index, Dst: ipNet(p), Protocol: fabric.Protocol, Priority: fabric.PortMetric, Scope: netlink.SCOPE_LINK,
		})
		if !errors.Is(err, os.ErrExist) {
			require.NoError(t, err, p)
		}
	}
}

// Lose removes an announcement of normal preference.
func (a *Announcing) Lose(t testing.TB, p netip.Prefix) {
	t.Helper()
	require.NoError(t, a.Node.Netlink().RouteDel(&netlink.Route{
		Dst: ipNet(p), Protocol: fabric.Protocol, Priority: int(fabric.Normal.LocalPref()), Scope: netlink.SCOPE_LINK,
	}))
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// PortEnds takes the port out of use in several ways, each after announce has
// announced the prefixes, the first of them IPv4. It checks that the reflector
// hears the withdrawals.
func (a *Announcing) PortEnds(t testing.TB, announce func(), ps []netip.Prefix) {
	t.Helper()
	ip := func(args string) {
		_, err := a.Node.Run(t.Context(), "ip", strings.Fields(args)...)
		require.NoError(t, err)
	}
	for _, way := range []struct {
		end, undo string
		left      []netip.Prefix
	}{
		{"link set " + a.Port + " down", "link set " + a.Port + " up", nil},
		{"addr del 169.254.1.1/32 dev " + a.Port, "addr add 169.254.1.1/32 dev " + a.Port, ps[1:]},
		{"link del " + a.Port, "", nil},
	} {
		a.Prepare(t, ps)
		announce()
		a.Hears(t, ps...)
		began := time.Now()
		ip(way.end)
		a.Hears(t, way.left...)
		// BIRD looks at the whole kernel table once a minute.
		require.Less(t, time.Since(began), 30*time.Second, "withdrawn by a notification, not by a scan: %s", way.end)
		if way.undo != "" {
			ip(way.undo)
		}
	}
}

// Withdrawals counts the withdrawals that the reflector has received.
func (a *Announcing) Withdrawals(t testing.TB) int {
	t.Helper()
	lines, err := a.Reflector.Query(t.Context(), "show protocols all")
	require.NoError(t, err)
	all, seen := 0, false
	for _, line := range lines {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "Import" && f[1] == "withdraws:" {
			n, err := strconv.Atoi(f[2])
			require.NoError(t, err, line)
			all, seen = all+n, true
		}
	}
	require.True(t, seen, "the reflector has a session")
	return all
}

// ChangesPreference has announce announce the prefixes with one preference
// after another, and checks that the reflector hears of each without a
// withdrawal.
func (a *Announcing) ChangesPreference(t testing.TB, announce func(fabric.Preference), ps []netip.Prefix) {
	t.Helper()
	a.Prepare(t, ps)
	var before int
	for i, pref := range []fabric.Preference{fabric.Standby, fabric.Fresh, fabric.Normal, fabric.Draining, fabric.Blackholed, fabric.Fresh, fabric.Normal, fabric.Standby} {
		announce(pref)
		a.Hears(t, ps...)
		require.Eventually(t, func() bool {
			return !slices.ContainsFunc(a.Routes(t), func(r routers.BGPRoute) bool {
				return r.LocalPref != pref.LocalPref() ||
					slices.Contains(r.Communities, fabric.GracefulShutdown) != (pref == fabric.Draining)
			})
		}, time.Minute, 10*time.Millisecond, "the reflector hears %s", pref)
		if i == 0 {
			before = a.Withdrawals(t)
		}
	}
	require.Equal(t, before, a.Withdrawals(t), "withdrawals by changes of preference")
}

// Routes lists the reflector's routes from the node.
func (a *Announcing) Routes(t testing.TB) []routers.BGPRoute {
	t.Helper()
	rs, err := a.Reflector.Routes(t.Context())
	require.NoError(t, err)
	return rs
}

// Controls returns the controls for the speaker's suite. again makes another
// speaker.
func (a *Announcing) Controls(again func(*testing.T) fabric.Speaker) conformance.SpeakerControls {
	return conformance.SpeakerControls{
		Prepare: func(t *testing.T, ps []netip.Prefix) { a.Prepare(t, ps) },
		Lose:    func(t *testing.T, p netip.Prefix) { a.Lose(t, p) },
		Again:   again,
		Heard: func(t *testing.T) []netip.Prefix {
			var ps []netip.Prefix
			for _, r := range a.Routes(t) {
				ps = append(ps, r.Prefix)
			}
			return ps
		},
		Preferred: func(t *testing.T, p netip.Prefix) uint32 {
			for _, r := range a.Routes(t) {
				if r.Prefix == p {
					return r.LocalPref
				}
			}
			return 0
		},
	}
}

// Hears waits until the reflector has exactly these prefixes of the node, with the
// right next hops.
func (a *Announcing) Hears(t testing.TB, want ...netip.Prefix) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, core.Until(ctx, func() error {
		got := map[netip.Prefix]routers.BGPRoute{}
		for _, r := range a.Routes(t) {
			got[r.Prefix] = r
		}
		if len(got) != len(want) {
			return fmt.Errorf("the reflector has %d prefixes, not %d: %v", len(got), len(want), got)
		}
		for _, p := range want {
			hop := a.Node.Addr4()
			if p.Addr().Is6() {
				hop = a.Node.Addr6()
			}
			if got[p].NextHop != hop {
				return fmt.Errorf("the reflector has %s as %+v", p, got[p])
			}
		}
		return nil
	}))
}
