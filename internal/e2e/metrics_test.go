package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// metric reads one series of an agent; 0 if there is none.
func (s *system) metric(node *core.Host, series string) float64 {
	s.t.Helper()
	text, err := node.Run(soon(s.t), "curl", "-sS", "--fail", "http://127.0.0.1:9178/metrics")
	require.NoError(s.t, err)
	for line := range strings.Lines(text) {
		if value, is := strings.CutPrefix(line, series+" "); is {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			require.NoError(s.t, err, line)
			return n
		}
	}
	return 0
}

// passed reads what the core gateway has forwarded to a guest and from it.
func (s *system) passed(counter string) (packets, bytes float64) {
	s.t.Helper()
	out, err := s.top.Core.Run(soon(s.t), "nft", "list", "counter", "inet", "passed", counter)
	require.NoError(s.t, err)
	m := regexp.MustCompile(`packets (\d+) bytes (\d+)`).FindStringSubmatch(out)
	require.NotNil(s.t, m, out)
	packets, _ = strconv.ParseFloat(m[1], 64)
	bytes, _ = strconv.ParseFloat(m[2], 64)
	return packets, bytes
}

// TestMetrics: what an agent says of a guest's traffic is what the core gateway forwards
// for it, in both families, over a restart of the agent; the rest of the metrics, top and
// the audit log tell what happened.
func TestMetrics(t *testing.T) {
	t.Parallel()
	s := start(t, options{change: func(c *fabric.Cluster) {
		c.Accounting, c.Metrics = true, netip.MustParseAddrPort("127.0.0.1:9178")
	}})
	node1, a := s.top.Nodes["node1"], s.agents["node1"]
	vm := veth("web", "203.0.113.10", "2001:db8:100::10")
	s.run("node1", vm)
	s.coreHas(node1, vm.Prefixes()...)
	s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10")
	series := func(unit, address, direction string) string {
		return fmt.Sprintf(`vmfabric_guest_%s_total{address=%q,direction=%q,node="node1",scope="external",vm="web"}`, unit, address, direction)
	}
	for _, c := range []struct{ address, family, icmp string }{{"203.0.113.10", "ip", "ip protocol icmp"}, {"2001:db8:100::10", "ip6", "meta l4proto icmpv6"}} {
		s.eventually("counters of "+c.address, func() error {
			s.reaches(s.top.Client, c.address)
			if s.metric(node1, series("packets", c.address, "sent")) == 0 {
				return fmt.Errorf("nothing is counted")
			}
			return nil
		})
		_, err := s.top.Core.Run(soon(t), "nft", fmt.Sprintf(`table inet passed { counter to_%s { }; counter from_%[1]s { }; chain f_%[1]s { type filter hook forward priority 300; %[1]s daddr %s counter name to_%[1]s; %[1]s saddr %[2]s counter name from_%[1]s; }; }`, c.family, c.address))
		require.NoError(t, err)
		was := map[string]float64{}
		for _, direction := range []string{"sent", "received"} {
			for _, unit := range []string{"packets", "bytes"} {
				was[direction+unit] = s.metric(node1, series(unit, c.address, direction))
			}
		}
		for range 2 {
			_, err = s.top.Client.Run(soon(t), "ping", "-n", "-q", "-c", "40", "-i", "0.01", c.address)
			require.NoError(t, err)
			require.NoError(t, a.Kill())
			_, err = s.top.Client.Run(soon(t), "ping", "-n", "-q", "-c", "10", "-i", "0.01", c.address)
			require.NoError(t, err)
			a.start()
			a.established()
		}
		for direction, counter := range map[string]string{"sent": "from_", "received": "to_"} {
			packets, bytes := s.passed(counter + c.family)
			assert.GreaterOrEqual(t, packets, 100.0)
			assert.Equal(t, packets, s.metric(node1, series("packets", c.address, direction))-was[direction+"packets"], c.address+" "+direction)
			assert.Equal(t, bytes, s.metric(node1, series("bytes", c.address, direction))-was[direction+"bytes"], c.address+" "+direction)
		}
	}
	assert.Equal(t, 1.0, s.metric(node1, `vmfabric_guests{condition="live",node="node1"}`))
	assert.Equal(t, 2.0, s.metric(node1, `vmfabric_session_up{address="10.10.0.11",node="node1",peer="rr1"}`)+s.metric(node1, `vmfabric_session_up{address="10.10.0.12",node="node1",peer="rr2"}`))
	assert.Equal(t, 1.0, s.metric(node1, `vmfabric_announcements{family="ipv6",node="node1"}`))
	out, errs, code := a.cli("top", "--once", "--interval", "100ms", "--json")
	require.Zero(t, code, errs)
	assert.True(t, json.Valid([]byte(out)), out)
}
