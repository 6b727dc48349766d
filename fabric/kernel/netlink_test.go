package kernel_test

import (
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// subscriptions counts the sockets that rtnetlink notifies of changes.
func subscriptions(t *testing.T) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/netlink")
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 3 && f[1] == "0" && strings.Trim(f[3], "0") != "" {
			n++
		}
	}
	return n
}

// TestOneNetlink: the ports, the announcements and what was learned are followed
// by one socket, and each sees what the others do.
func TestOneNetlink(t *testing.T) {
	underlay(t)
	before := subscriptions(t)
	n, err := kernel.Open(slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	labtest.Running(t, n)
	t.Cleanup(func() { require.NoError(t, n.Close()) })
	ports, err := kernel.New(t.Context(), kernel.Config{Cluster: "lab", Netlink: n})
	require.NoError(t, err)
	labtest.Running(t, ports)
	t.Cleanup(func() { require.NoError(t, ports.Close()) })
	fib, err := kernel.NewFIB(t.Context(), kernel.FIBConfig{Protocol: fabric.PeerProtocol, Metric: fabric.PeerMetric, Netlink: n})
	require.NoError(t, err)
	labtest.Running(t, fib)
	t.Cleanup(func() { require.NoError(t, fib.Close()) })
	announcer, err := kernel.NewAnnouncer(t.Context(), kernel.WithNetlink(n))
	require.NoError(t, err)
	labtest.Running(t, announcer)
	t.Cleanup(func() { require.NoError(t, announcer.Close()) })
	assert.Equal(t, before+1, subscriptions(t))

	p := port("web", fabric.NIC{Addresses: addrs("203.0.113.10", "2001:db8:100::10")})
	require.NoError(t, ports.Put(t.Context(), p))
	for _, prefix := range p.NIC.Prefixes() {
		require.NoError(t, announcer.Put(t.Context(), fabric.Route{Prefix: prefix, Preference: fabric.Normal}))
	}
	fib.Put(netip.MustParsePrefix("203.0.113.12/32"), node2[true])
	eventuallyLearned(t, []string{"203.0.113.12/32 via 10.10.0.22 metric 4096"})
	states, err := ports.Actual(t.Context())
	require.NoError(t, err)
	require.Len(t, states, 1)
	assert.Empty(t, states[0].Faults)

	require.NoError(t, ports.Remove(t.Context(), p.Name))
	routes, err := announcer.Actual(t.Context())
	require.NoError(t, err)
	assert.Empty(t, routes, "the kernel took them with the port")
}
