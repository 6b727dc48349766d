package kernel_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestNextHop: the addresses that announcements name are followed as they go and
// come, and the agent is woken.
func TestNextHop(t *testing.T) {
	underlay(t)
	own := map[bool]netip.Addr{false: netip.MustParseAddr("10.10.0.21"), true: netip.MustParseAddr("fd00:10:10::21")}
	for name, c := range map[string]struct {
		v6, mapped bool
		gone, back func(t *testing.T)
		says       string
	}{
		"IPv4 address removed": {
			false, false,
			func(t *testing.T) { ipIn(t, nil, "addr del 10.10.0.21/24 dev up0") },
			func(t *testing.T) { ipIn(t, nil, "addr add 10.10.0.21/24 dev up0") },
			"IPv4 is announced for no guest: next hop 10.10.0.21 is no address of this node any more",
		},
		"IPv6 address removed": {
			true, false,
			func(t *testing.T) { ipIn(t, nil, "addr del fd00:10:10::21/64 dev up0") },
			func(t *testing.T) { ipIn(t, nil, "addr add fd00:10:10::21/64 dev up0 nodad") },
			"IPv6 is announced for no guest: next hop fd00:10:10::21 is no address of this node any more",
		},
		"IPv6 disabled": {
			true, false,
			func(t *testing.T) { sysctls(t, nil, map[string]string{"ipv6/conf/all/disable_ipv6": "1"}) },
			func(t *testing.T) {
				sysctls(t, nil, map[string]string{"ipv6/conf/all/disable_ipv6": "0"})
				ipIn(t, nil, "addr replace fd00:10:10::21/64 dev up0 nodad")
			},
			"sysctl net.ipv6.conf.all.disable_ipv6 must be 0",
		},
		"IPv6 disabled, without an address of its own": {
			true, true,
			func(t *testing.T) { sysctls(t, nil, map[string]string{"ipv6/conf/up0/disable_ipv6": "1"}) },
			func(t *testing.T) { sysctls(t, nil, map[string]string{"ipv6/conf/up0/disable_ipv6": "0"}) },
			"IPv6 is announced for no guest: it is disabled on up0; sysctl -w net.ipv6.conf.up0.disable_ipv6=0",
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := kernel.Config{Cluster: "lab", NextHop: own[false], NextHop6: own[true]}
			if c.mapped {
				cfg.NextHop6 = netip.Addr{}
			}
			d, err := kernel.New(t.Context(), cfg)
			require.NoError(t, err)
			labtest.Running(t, d)
			t.Cleanup(func() { require.NoError(t, d.Close()) })
			t.Cleanup(func() { bringUp(t) })
			woken := func(check func() bool) {
				t.Helper()
				bound := time.After(10 * time.Second)
				for !check() {
					select {
					case <-d.Changed():
					case <-bound:
						require.Fail(t, "not notified")
					}
				}
			}
			require.NoError(t, d.NextHop(false))
			require.NoError(t, d.NextHop(true))
			c.gone(t)
			woken(func() bool { return d.NextHop(c.v6) != nil })
			assert.ErrorContains(t, d.NextHop(c.v6), c.says)
			assert.NoError(t, d.NextHop(!c.v6), "the other family")
			c.back(t)
			woken(func() bool { return d.NextHop(c.v6) == nil })
		})
	}
}
