package kernel_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/testenv/conformance"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestAnnouncerConformance runs the speaker's laws on the kernel alone; what a
// peer would hear is tried with the daemons.
func TestAnnouncerConformance(t *testing.T) {
	conformance.Speaker(t, func(t *testing.T) (fabric.Speaker, conformance.SpeakerControls) {
		addPort(t, "guest_net0")
		return fabric.NewSpeaker(announcer(t)), conformance.SpeakerControls{
			Prepare: func(t *testing.T, ps []netip.Prefix) { routeTo(t, "guest_net0", ps...) },
			Again:   func(t *testing.T) fabric.Speaker { return fabric.NewSpeaker(announcer(t)) },
			Lose:    func(t *testing.T, p netip.Prefix) { ip(t, "route", "del", p.String(), "metric", "100") },
			Preferred: func(t *testing.T, p netip.Prefix) uint32 {
				rs := shown(t, p)
				require.NotEmpty(t, rs, "%s is announced without a gap", p)
				return uint32(rs[0].Priority)
			},
		}
	})
}

func announcer(t *testing.T) *kernel.Announcer {
	t.Helper()
	labtest.Long(t)
	a, err := kernel.NewAnnouncer(t.Context())
	require.NoError(t, err)
	labtest.Running(t, a)
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	return a
}

// addPort makes a link like a port, which goes with the test.
func addPort(t *testing.T, name string) {
	t.Helper()
	sweep(t)
	ip(t, "link", "add", name, "up", "type", "veth", "peer", "name", "x"+name)
	ip(t, "link", "set", "x"+name, "up")
	ip(t, "addr", "add", "169.254.1.1/32", "dev", name)
	t.Cleanup(func() { sweep(t) })
}

// ip runs ip(8) for the family of the address that is among args.
func ip(t *testing.T, args ...string) {
	t.Helper()
	out, err := runIP(args...)
	require.NoError(t, err, out)
}

func runIP(args ...string) (string, error) {
	for _, a := range args {
		if strings.Contains(a, ":") {
			args = append([]string{"-6"}, args...)
			break
		}
	}
	out, err := exec.Command("ip", args...).CombinedOutput()
	return strings.Join(args, " ") + ": " + string(out), err
}

// routeTo makes routes to a port as the dataplane does.
func routeTo(t *testing.T, port string, ps ...netip.Prefix) {
	t.Helper()
	for _, p := range ps {
		r := &netlink.Route{
			LinkIndex: link(t, port).Attrs().Index, Dst: ipNet(p), Protocol: fabric.Protocol, Priority: fabric.PortMetric, Scope: netlink.SCOPE_LINK,
		}
		if err := netlink.RouteAdd(r); !errors.Is(err, os.ErrExist) {
			require.NoError(t, err, p)
		}
	}
}

// shown lists the kernel's routes to a prefix that announce it.
func shown(t *testing.T, p netip.Prefix) []netlink.Route {
	t.Helper()
	family := netlink.FAMILY_V6
	if p.Addr().Is4() {
		family = netlink.FAMILY_V4
	}
	all, err := dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, &netlink.Route{Protocol: fabric.Protocol, Dst: ipNet(p)}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_DST)
	})
	require.NoError(t, err)
	var rs []netlink.Route
	for _, r := range all {
		if r.Priority < fabric.PortMetric {
			rs = append(rs, r)
		}
	}
	return rs
}

func woken(t *testing.T, a *kernel.Announcer, by string) {
	t.Helper()
	select {
	case <-a.Changed():
	case <-time.After(10 * time.Second):
		require.FailNow(t, "no wake-up by "+by)
	}
}

var guest = []netip.Prefix{netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128")}

func announced(pref fabric.Preference, ps ...netip.Prefix) []fabric.Route {
	rs := []fabric.Route{}
	for _, p := range ps {
		rs = append(rs, fabric.Route{Prefix: p, Preference: pref})
	}
	return rs
}

// TestAnnouncementsOfPort: the routes that a dataplane makes are announced the
// same way that they lead, gateways too, and go with the port.
func TestAnnouncementsOfPort(t *testing.T) {
	sweep(t)
	d, a := open(t), announcer(t)
	behind := []netip.Prefix{netip.MustParsePrefix("198.51.100.0/29"), netip.MustParsePrefix("2001:db8:200::/64")}
	p := port("web", fabric.NIC{Addresses: addrs("203.0.113.10", "2001:db8:100::10"), Routes: behind})
	require.NoError(t, d.Put(t.Context(), p))
	all := append(guest[:2:2], behind...)
	require.NoError(t, a.Put(t.Context(), announced(fabric.Fresh, all...)...))
	for _, prefix := range all {
		rs := shown(t, prefix)
		require.Len(t, rs, 1, prefix)
		assert.Equal(t, link(t, "web_net0").Attrs().Index, rs[0].LinkIndex)
		assert.EqualValues(t, 200, rs[0].Priority)
		assert.Equal(t, !prefix.IsSingleIP(), rs[0].Gw != nil, prefix)
	}
	states, err := d.Actual(t.Context())
	require.NoError(t, err)
	require.Len(t, states, 1)
	assert.Empty(t, states[0].Faults, "announcements are none of the dataplane's business")

	require.NoError(t, d.Remove(t.Context(), p.Name))
	woken(t, a, "the port's end")
	got, err := a.Actual(t.Context())
	require.NoError(t, err)
	assert.Empty(t, got)
	require.NoError(t, a.Remove(t.Context(), all...), "they are gone")
}

// TestKernelDropsAnnouncements: what the kernel does without telling is known.
func TestKernelDropsAnnouncements(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   []string
		left []netip.Prefix
	}{
		{"link down", []string{"link", "set", "guest_net0", "down"}, nil},
		{"link gone", []string{"link", "del", "guest_net0"}, nil},
		{"last IPv4 address gone", []string{"addr", "del", "169.254.1.1/32", "dev", "guest_net0"}, guest[1:]},
		{"an IPv4 address gone", []string{"addr", "del", "169.254.1.2/32", "dev", "guest_net0"}, guest},
	} {
		t.Run(tc.name, func(t *testing.T) {
			addPort(t, "guest_net0")
			ip(t, "addr", "add", "169.254.1.2/32", "dev", "guest_net0")
			if tc.left != nil && len(tc.left) < 2 {
				ip(t, "addr", "del", "169.254.1.2/32", "dev", "guest_net0")
			}
			a := announcer(t)
			routeTo(t, "guest_net0", guest...)
			require.NoError(t, a.Put(t.Context(), announced(fabric.Normal, guest...)...))
			ip(t, tc.do...)
			require.EventuallyWithT(t, func(c *assert.CollectT) {
				got, err := a.Actual(t.Context())
				assert.NoError(c, err)
				assert.Equal(c, announced(fabric.Normal, tc.left...), got)
				var kernels []netip.Prefix
				for _, p := range guest {
					if len(shown(t, p)) > 0 {
						kernels = append(kernels, p)
					}
				}
				assert.Equal(c, tc.left, kernels, "what the kernel has")
			}, 10*time.Second, time.Millisecond)
			if len(tc.left) < 2 {
				woken(t, a, tc.name)
			}
		})
	}
}

func TestAnnouncementNeedsPort(t *testing.T) {
	addPort(t, "guest_net0")
	a := announcer(t)
	routeTo(t, "guest_net0", guest[1])
	err := a.Put(t.Context(), announced(fabric.Normal, guest...)...)
	require.EqualError(t, err, "announce 203.0.113.10/32: no port of this node has a route to it; attach the guest first")
	got, err := a.Actual(t.Context())
	require.NoError(t, err)
	assert.Equal(t, announced(fabric.Normal, guest[1]), got, "the other one is announced")

	require.ErrorContains(t, a.Put(t.Context(), announced(fabric.PortMetric, guest[1])...), "take one below 1024")
}

// TestForeignRouteInTheWay: a route of somebody else's is left alone.
func TestForeignRouteInTheWay(t *testing.T) {
	for _, p := range guest {
		addPort(t, "guest_net0")
		a := announcer(t)
		routeTo(t, "guest_net0", p)
		ip(t, "route", "add", p.String(), "dev", "guest_net0", "metric", "100", "proto", "static")
		err := a.Put(t.Context(), announced(fabric.Normal, p)...)
		require.ErrorIs(t, err, fabric.ErrForeign)
		assert.ErrorContains(t, err, fmt.Sprintf("remove it: ip route del %s metric 100", p))
		got, err := a.Actual(t.Context())
		require.NoError(t, err)
		assert.Empty(t, got)
		require.NoError(t, a.Remove(t.Context(), p))
		out, err := runIP("route", "show", p.String(), "metric", "100", "proto", "static")
		require.NoError(t, err)
		assert.Contains(t, out, "guest_net0", "it is still there")

		// Replacing ours takes it away, and nobody says so.
		require.NoError(t, a.Put(t.Context(), announced(fabric.Fresh, p)...))
		ip(t, "route", "replace", p.String(), "dev", "guest_net0", "metric", "200", "proto", "static")
		woken(t, a, "the replacement")
		got, err = a.Actual(t.Context())
		require.NoError(t, err)
		assert.Empty(t, got)
	}
}

// TestAnnouncementFollowsPort: one that leads where the port is no more would
// take the guest's packets there.
func TestAnnouncementFollowsPort(t *testing.T) {
	for _, p := range guest {
		for _, when := range []string{"while it watches", "before it began"} {
			t.Run(p.String()+" moved "+when, func(t *testing.T) {
				addPort(t, "guest_net0")
				ip(t, "link", "add", "other_net0", "up", "type", "veth", "peer", "name", "xother_net0")
				ip(t, "addr", "add", "169.254.1.1/32", "dev", "other_net0")
				a, err := kernel.NewAnnouncer(t.Context())
				require.NoError(t, err)
				labtest.Running(t, a)
				routeTo(t, "guest_net0", p)
				require.NoError(t, a.Put(t.Context(), announced(fabric.Normal, p)...))
				if when == "before it began" {
					require.NoError(t, a.Close())
				}
				ip(t, "route", "del", p.String(), "dev", "guest_net0", "metric", "1024")
				routeTo(t, "other_net0", p)
				if when == "before it began" {
					a, err = kernel.NewAnnouncer(t.Context())
					require.NoError(t, err)
					labtest.Running(t, a)
				}
				defer a.Close()
				woken(t, a, "the move")
				require.Eventually(t, func() bool { return len(shown(t, p)) == 0 }, 10*time.Second, 5*time.Millisecond, "nothing leads to the old port")
				require.NoError(t, a.Put(t.Context(), announced(fabric.Normal, p)...))
				rs := shown(t, p)
				require.Len(t, rs, 1)
				assert.Equal(t, link(t, "other_net0").Attrs().Index, rs[0].LinkIndex)
			})
		}
	}
}

// TestAnnouncerClosed: a closed announcer says so, and leaves what it announced.
func TestAnnouncerClosed(t *testing.T) {
	addPort(t, "guest_net0")
	a, err := kernel.NewAnnouncer(t.Context())
	require.NoError(t, err)
	labtest.Running(t, a)
	routeTo(t, "guest_net0", guest...)
	require.NoError(t, a.Put(t.Context(), announced(fabric.Normal, guest...)...))
	require.NoError(t, a.Close())
	_, err = a.Actual(t.Context())
	require.Error(t, err)
	require.Error(t, a.Put(t.Context(), announced(fabric.Normal, guest...)...))
	for _, p := range guest {
		assert.Len(t, shown(t, p), 1)
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
