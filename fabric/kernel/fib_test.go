package kernel_test

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// Neighbours on the underlay, of which two are nodes.
var (
	node2 = map[bool]netip.Addr{true: netip.MustParseAddr("10.10.0.22"), false: netip.MustParseAddr("fd00:10:10::22")}
	node3 = map[bool]netip.Addr{true: netip.MustParseAddr("10.10.0.23"), false: netip.MustParseAddr("fd00:10:10::23")}
	afar  = map[bool]netip.Addr{true: netip.MustParseAddr("10.20.0.1"), false: netip.MustParseAddr("fd00:20::1")}
)

var guests = []netip.Prefix{netip.MustParsePrefix("203.0.113.12/32"), netip.MustParsePrefix("2001:db8:100::12/128")}

// underlay gives the namespace a link with addresses of both families, and a
// default route through 10.10.0.1 and fd00:10:10::1.
func underlay(t testing.TB) netlink.Link {
	t.Helper()
	sweep(t)
	require.NoError(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "up1"}))
	t.Cleanup(func() { sweep(t) })
	require.NoError(t, netlink.LinkSetUp(link(t, "up1")))
	bringUp(t)
	return link(t, "up0")
}

func bringUp(t testing.TB) {
	t.Helper()
	up := link(t, "up0")
	require.NoError(t, netlink.LinkSetUp(up))
	for _, a := range []string{"10.10.0.21/24", "fd00:10:10::21/64"} {
		addr, err := netlink.ParseAddr(a)
		require.NoError(t, err)
		addr.Flags = unix.IFA_F_NODAD
		require.NoError(t, netlink.AddrReplace(up, addr))
	}
	for _, gw := range []string{"10.10.0.1", "fd00:10:10::1"} {
		require.NoError(t, netlink.RouteReplace(&netlink.Route{Gw: net.ParseIP(gw), LinkIndex: up.Attrs().Index}))
	}
}

func openFIB(t *testing.T) *kernel.FIB {
	t.Helper()
	f, err := kernel.NewFIB(t.Context(), kernel.FIBConfig{Protocol: fabric.PeerProtocol, Metric: fabric.PeerMetric})
	require.NoError(t, err)
	labtest.Running(t, f)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	return f
}

// learned lists the routes of the fabric's peer protocol, and their metrics.
func learned(t *testing.T) []string {
	t.Helper()
	rs := []string{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Protocol: fabric.PeerProtocol}, netlink.RT_FILTER_PROTOCOL)
		})
		require.NoError(t, err)
		for _, r := range routes {
			rs = append(rs, fmt.Sprintf("%s via %s metric %d", r.Dst, r.Gw, r.Priority))
		}
	}
	slices.Sort(rs)
	return rs
}

func through(via map[bool]netip.Addr, ps ...netip.Prefix) []string {
	rs := []string{}
	for _, p := range ps {
		rs = append(rs, fmt.Sprintf("%s via %s metric 4096", p, via[p.Addr().Is4()]))
	}
	slices.Sort(rs)
	return rs
}

func eventuallyLearned(t *testing.T, want []string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) { assert.Equal(c, want, learned(t)) }, 30*time.Second, 5*time.Millisecond)
}

func put(f *kernel.FIB, via map[bool]netip.Addr, ps ...netip.Prefix) {
	for _, p := range ps {
		f.Put(p, via[p.Addr().Is4()])
	}
}

func well(t *testing.T, f *kernel.FIB) {
	t.Helper()
	require.Eventually(t, func() bool { return len(f.Diagnose(t.Context())) == 0 }, 30*time.Second, 5*time.Millisecond)
}

// ipRun runs ip(8), for what is done by somebody else.
func ipRun(t *testing.T, command string) {
	t.Helper()
	out, err := exec.Command("ip", strings.Fields(command)...).CombinedOutput()
	require.NoError(t, err, "ip %s: %s", command, out)
}

func ipRoute(p netip.Prefix) string {
	return map[bool]string{true: "-4 route ", false: "-6 route "}[p.Addr().Is4()]
}

func TestFIBPutReplaceRemove(t *testing.T) {
	underlay(t)
	f := openFIB(t)
	put(f, node2, guests...)
	eventuallyLearned(t, through(node2, guests...))

	updates, done := make(chan netlink.RouteUpdate, 64), make(chan struct{})
	require.NoError(t, netlink.RouteSubscribe(updates, done))
	put(f, node3, guests...)
	eventuallyLearned(t, through(node3, guests...))
	close(done)
	for u := range updates {
		if u.Protocol == fabric.PeerProtocol {
			assert.NotEqual(t, uint16(unix.RTM_DELROUTE), u.Type, "no moment without a route")
		}
	}

	f.Remove(guests[0])
	f.Remove(netip.MustParsePrefix("203.0.113.99/32")) // absence is success
	eventuallyLearned(t, through(node3, guests[1]))
	put(f, node2, guests[0])
	eventuallyLearned(t, append(through(node3, guests[1]), through(node2, guests[0])...))
	well(t, f)
	require.NoError(t, f.Close())
	assert.Empty(t, learned(t), "closing takes all out")
	put(f, node2, guests...)
	require.NoError(t, f.Close(), "again")
	assert.Empty(t, learned(t))
}

// TestFIBOtherFamily: a node with an IPv6 address alone is the next hop of
// IPv4 routes too (RFC 8950).
func TestFIBOtherFamily(t *testing.T) {
	underlay(t)
	f := openFIB(t)
	for _, via := range []netip.Addr{node2[false], node3[false], node2[true]} {
		f.Put(guests[0], via)
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			rs, err := dump(func() ([]netlink.Route, error) {
				return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: fabric.PeerProtocol}, netlink.RT_FILTER_PROTOCOL)
			})
			require.NoError(c, err)
			require.Len(c, rs, 1)
			have := rs[0].Gw
			if v, ok := rs[0].Via.(*netlink.Via); ok {
				have = v.Addr
			}
			assert.Equal(c, via.String(), have.String())
		}, 30*time.Second, 5*time.Millisecond)
	}
	well(t, f)
}

// TestFIBRepairs: what somebody takes out, changes or adds under our protocol
// is put right.
func TestFIBRepairs(t *testing.T) {
	up := underlay(t)
	f := openFIB(t)
	put(f, node2, guests...)
	want := through(node2, guests...)
	eventuallyLearned(t, want)
	for _, p := range guests {
		ipRun(t, ipRoute(p)+"del "+p.String()+" proto 148")
		eventuallyLearned(t, want)
		ipRun(t, fmt.Sprintf("%sreplace %s via %s proto 148 metric 4096", ipRoute(p), p, node3[p.Addr().Is4()]))
		eventuallyLearned(t, want)
		ipRun(t, fmt.Sprintf("%sadd %s via %s proto 148 metric 77", ipRoute(p), p, node3[p.Addr().Is4()]))
		eventuallyLearned(t, want)
		ipRun(t, fmt.Sprintf("%sreplace %s via %s proto 99 metric 4096", ipRoute(p), p, node3[p.Addr().Is4()]))
		require.Eventually(t, func() bool { return len(f.Diagnose(t.Context())) == 1 }, 30*time.Second, 5*time.Millisecond)
		ipRun(t, ipRoute(p)+"del "+p.String()+" proto 99")
		eventuallyLearned(t, want)
		well(t, f)
	}
	require.NoError(t, netlink.LinkSetDown(up))
	require.Eventually(t, func() bool { return len(f.Diagnose(t.Context())) == 1 }, 30*time.Second, 5*time.Millisecond)
	assert.Empty(t, learned(t))
	bringUp(t)
	eventuallyLearned(t, want)
	well(t, f)
}

// TestFIBAdopts: what an earlier process left serves until it is learned
// again, or everything has been.
func TestFIBAdopts(t *testing.T) {
	underlay(t)
	more := []netip.Prefix{netip.MustParsePrefix("203.0.113.13/32"), netip.MustParsePrefix("2001:db8:100::13/128")}
	for _, p := range slices.Concat(guests, more) {
		ipRun(t, fmt.Sprintf("%sadd %s via %s proto 148 metric 4096", ipRoute(p), p, node2[p.Addr().Is4()]))
	}
	all := through(node2, slices.Concat(guests, more)...)
	f := openFIB(t)
	put(f, node2, guests...)
	late := netip.MustParsePrefix("203.0.113.14/32")
	put(f, node2, late)
	eventuallyLearned(t, sorted(all, through(node2, late)))
	f.Remove(late)
	eventuallyLearned(t, all)
	f.Remove(more[0]) // withdrawn before everything is learned
	eventuallyLearned(t, through(node2, guests[0], guests[1], more[1]))
	put(f, node3, guests[0])
	eventuallyLearned(t, sorted(through(node3, guests[0]), through(node2, guests[1], more[1])))
	f.Settle()
	eventuallyLearned(t, sorted(through(node3, guests[0]), through(node2, guests[1])))
	f.Settle()
	put(f, node2, more...)
	eventuallyLearned(t, sorted(through(node3, guests[0]), through(node2, guests[1], more[0], more[1])))
}

func sorted(lists ...[]string) []string {
	all := slices.Concat(lists...)
	slices.Sort(all)
	return all
}

// TestFIBForeign: what has another protocol is never touched, whatever its
// metric.
func TestFIBForeign(t *testing.T) {
	underlay(t)
	f := openFIB(t)
	foreign := func(p netip.Prefix, metric int) string {
		return fmt.Sprintf("%s via %s proto 99 metric %d", p, node3[p.Addr().Is4()], metric)
	}
	for _, p := range guests {
		ipRun(t, ipRoute(p)+"add "+foreign(p, 4096))
		ipRun(t, ipRoute(p)+"add "+foreign(p, 50))
	}
	theirs := func() string {
		out, err := exec.Command("sh", "-c", "ip -4 route show proto 99; ip -6 route show proto 99").Output()
		require.NoError(t, err)
		return string(out)
	}
	before := theirs()
	require.Equal(t, 4, strings.Count(before, "\n"), before)
	put(f, node2, guests...)
	require.Eventually(t, func() bool {
		d := f.Diagnose(t.Context())
		return len(d) == 1 && strings.Contains(d[0], "(and 1 more)")
	}, 30*time.Second, 5*time.Millisecond)
	assert.Contains(t, f.Diagnose(t.Context())[0], "route 203.0.113.12/32 via 10.10.0.22")
	assert.Contains(t, f.Diagnose(t.Context())[0], "not ours; see ip route show 203.0.113.12/32")
	assert.Empty(t, learned(t))
	for _, p := range guests {
		ipRun(t, ipRoute(p)+"del "+foreign(p, 4096))
	}
	eventuallyLearned(t, through(node2, guests...))
	put(f, node3, guests...)
	eventuallyLearned(t, through(node3, guests...))
	require.NoError(t, f.Close())
	assert.Empty(t, learned(t))
	assert.Equal(t, 2, strings.Count(theirs(), "metric 50"), "those stay")
}

// TestFIBUnreachable: a next hop that is no neighbour is reported and tried
// again; others do not wait for it.
func TestFIBUnreachable(t *testing.T) {
	up := underlay(t)
	f := openFIB(t)
	near := []netip.Prefix{netip.MustParsePrefix("203.0.113.13/32"), netip.MustParsePrefix("2001:db8:100::13/128")}
	put(f, afar, guests...)
	put(f, node2, near...)
	eventuallyLearned(t, through(node2, near...))
	require.Eventually(t, func() bool {
		return len(f.Diagnose(t.Context())) == 1 && strings.Contains(f.Diagnose(t.Context())[0], "(and 1 more)")
	}, 30*time.Second, 5*time.Millisecond)
	assert.Contains(t, f.Diagnose(t.Context())[0], "the next hop must be a neighbour on one of the node's links")
	// An IPv4-mapped next hop is of no use to the kernel.
	f.Remove(guests[0])
	f.Put(guests[1], netip.MustParseAddr("::ffff:10.10.0.22"))
	require.Eventually(t, func() bool {
		d := f.Diagnose(t.Context())
		return len(d) == 1 && strings.Contains(d[0], "2001:db8:100::12/128 via ::ffff:10.10.0.22 is not in the kernel")
	}, 30*time.Second, 5*time.Millisecond)
	// It becomes a neighbour.
	put(f, afar, guests...)
	for _, a := range []string{"10.20.0.21/24", "fd00:20::21/64"} {
		addr, err := netlink.ParseAddr(a)
		require.NoError(t, err)
		addr.Flags = unix.IFA_F_NODAD
		require.NoError(t, netlink.AddrAdd(up, addr))
	}
	eventuallyLearned(t, sorted(through(node2, near...), through(afar, guests...)))
	well(t, f)
}

// TestFIBOwnPortWins: a port's route goes before a learned one of the same
// prefix, whichever came first, and the learned one is there when it goes.
func TestFIBOwnPortWins(t *testing.T) {
	underlay(t)
	f, d := openFIB(t), open(t)
	p := port("web", fabric.NIC{Kind: fabric.Veth, Addresses: addrs("203.0.113.12", "2001:db8:100::12")})
	leadsTo := func(link string) {
		t.Helper()
		for _, g := range guests {
			require.EventuallyWithT(t, func(c *assert.CollectT) {
				rs, err := netlink.RouteGet(g.Addr().AsSlice())
				require.NoError(c, err)
				l, err := netlink.LinkByIndex(rs[0].LinkIndex)
				require.NoError(c, err)
				assert.Equal(c, link, l.Attrs().Name)
			}, 30*time.Second, 5*time.Millisecond)
		}
	}
	put(f, node2, guests...)
	eventuallyLearned(t, through(node2, guests...))
	require.NoError(t, d.Put(t.Context(), p))
	leadsTo("web_net0")
	put(f, node3, guests...)
	eventuallyLearned(t, through(node3, guests...))
	leadsTo("web_net0")
	actual, err := d.Actual(t.Context())
	require.NoError(t, err)
	require.Len(t, actual, 1)
	assert.Empty(t, actual[0].Faults)
	require.NoError(t, d.Remove(t.Context(), "web_net0"))
	leadsTo("up0")
	f.Remove(guests[0])
	f.Remove(guests[1])
	eventuallyLearned(t, []string{})
	require.NoError(t, d.Put(t.Context(), p))
	put(f, node2, guests...)
	eventuallyLearned(t, through(node2, guests...))
	leadsTo("web_net0")
	require.NoError(t, d.Remove(t.Context(), "web_net0"))
}

// TestFIBMany puts, moves and takes out 2,000 routes.
func TestFIBMany(t *testing.T) {
	underlay(t)
	f := openFIB(t)
	var ps []netip.Prefix
	for n := range 1000 {
		ps = append(ps,
			netip.MustParsePrefix(fmt.Sprintf("198.51.%d.%d/32", n/250, n%250)),
			netip.MustParsePrefix(fmt.Sprintf("2001:db8:100::%x/128", n+1)))
	}
	put(f, node2, ps...)
	eventuallyLearned(t, through(node2, ps...))
	put(f, node3, ps...)
	put(f, node2, ps[:100]...)
	eventuallyLearned(t, sorted(through(node2, ps[:100]...), through(node3, ps[100:]...)))
	for _, p := range ps[:500] {
		f.Remove(p)
	}
	eventuallyLearned(t, through(node3, ps[500:]...))
	// Somebody flushes them.
	ipRun(t, "-4 route flush proto 148")
	ipRun(t, "-6 route flush proto 148")
	eventuallyLearned(t, through(node3, ps[500:]...))
	well(t, f)
	require.NoError(t, f.Close())
	assert.Empty(t, learned(t))
}
