package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
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

var countedMoves = flag.Int("countedmoves", 3, "how often TestMetricsOverMoves moves the guest")

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
	return s.passedBy(s.top.Core, counter)
}

func (s *system) passedBy(h *core.Host, counter string) (packets, bytes float64) {
	s.t.Helper()
	out, err := h.Run(soon(s.t), "nft", "list", "counter", "inet", "passed", counter)
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

// watched is a counter of nft on a host, beside which the nodes' counters of a guest are put.
type watched struct {
	at                              *core.Host
	address, direction, scope, name string
	was                             map[string]float64 // what the nodes have counted more, by unit
}

// excess is what the nodes together have counted more than the host, by unit.
func (s *system) excess(w watched) map[string]float64 {
	s.t.Helper()
	packets, bytes := s.passedBy(w.at, w.name)
	more := map[string]float64{"packets": -packets, "bytes": -bytes}
	for node, h := range s.top.Nodes {
		for unit := range more {
			more[unit] += s.metric(h, fmt.Sprintf(`vmfabric_guest_%s_total{address=%q,direction=%q,node=%q,scope=%q,vm="sea_gold"}`, unit, w.address, w.direction, node, w.scope))
		}
	}
	return more
}

// TestMetricsOverMoves: over moves of a running guest, while agents are killed and stopped,
// what the nodes count of it together is what the core gateway and a machine of the
// underlay exchanged with it: by address, in both directions, inside and outside.
func TestMetricsOverMoves(t *testing.T) {
	t.Parallel()
	m := startShuttle(t, options{change: func(c *fabric.Cluster) {
		c.Accounting, c.Metrics = true, netip.MustParseAddrPort("127.0.0.1:9178")
	}})
	inside, four, six := m.top.Reflectors["rr1"], m.vm.NICs[0].Addresses[0], m.vm.NICs[0].Addresses[2]
	probed := fabric.VM{NICs: []fabric.NIC{{Addresses: []netip.Addr{four, six}}}}
	all := m.watchTraffic(inside, four, six)
	m.eventually("all is counted", func() error {
		for _, from := range []*core.Host{inside, m.top.Client} {
			m.reaches(from, four.String(), six.String())
		}
		for _, w := range all {
			if packets, _ := m.passedBy(w.at, w.name); m.excess(w)["packets"] <= -packets {
				return fmt.Errorf("nothing is counted of %+v", w)
			}
		}
		return nil
	})
	for i := range all {
		all[i].was = m.excess(all[i])
	}
	for i := range *countedMoves {
		from := m.where()
		var beside []*core.Prober
		for _, a := range probed.NICs[0].Addresses {
			p, err := inside.Probe(a, 4*probeEvery)
			require.NoError(t, err)
			beside = append(beside, p)
		}
		results := m.underProbe(probed, probeEvery, func() {
			require.NoError(t, m.d.Migrate(context.WithoutCancel(soon(t)), m.lv[other(from)]))
			m.rests(other(from))
			m.oneRestarts(i, from)
		})
		for _, p := range beside {
			results = append(results, p.Stop())
		}
		sent, lost := 0, 0
		for _, r := range results {
			sent, lost = sent+r.Sent, lost+r.Lost
		}
		t.Logf("move %d: %d requests, %d of them lost, %d packets sent again", i+1, sent, lost, m.reported(from).Resent)
		m.eventually("the counts agree", func() error { return m.agree(all, lost > 0) })
	}
}

// agree compares what the nodes count with what others do. In a move with losses, as of a
// guest that hung and was started anew, what a machine of the underlay sent may have come to
// no node: then nothing is counted that was not sent.
func (s *system) agree(all []watched, lossy bool) error {
	s.t.Helper()
	text := ""
	for i, w := range all {
		is := s.excess(w)
		if lossy && w.scope == "internal" && w.direction == "received" && is["packets"] <= w.was["packets"] && is["bytes"] <= w.was["bytes"] {
			all[i].was = is
			continue
		}
		if !maps.Equal(is, w.was) {
			text += fmt.Sprintf("%s %s %s: the nodes count %v more than %s, and %v before; ", w.address, w.scope, w.direction, is, w.at.Name(), w.was)
		}
	}
	if text != "" {
		return errors.New(text)
	}
	return nil
}

// oneRestarts kills an agent, or stops it, after the i-th move from a node, and starts it
// again.
func (m *shuttle) oneRestarts(i int, from string) {
	m.t.Helper()
	left, has := m.agents[from], m.agents[other(from)]
	switch i % 3 {
	case 0:
		left.restart(left.Kill)
	case 1:
		has.restart(has.Kill)
	default:
		has.restart(has.Stop)
	}
	left.established()
	has.established()
}

// watchTraffic has the core gateway count what it forwards to addresses of a guest and from
// them, and a machine of the underlay what it sends there and has from there.
func (s *system) watchTraffic(inside *core.Host, addresses ...netip.Addr) (all []watched) {
	s.t.Helper()
	for _, at := range []*core.Host{s.top.Core, inside} {
		scope, hooks := "external", [2]string{"forward", "forward"}
		if at == inside {
			scope, hooks = "internal", [2]string{"output", "input"}
		}
		table := ""
		for i, a := range addresses {
			family, underlay := "ip", core.UnderlayPrefix4
			if a.Is6() {
				family, underlay = "ip6", core.UnderlayPrefix6
			}
			for j, direction := range []string{"received", "sent"} {
				ends, rule := [2]string{"daddr", "saddr"}, ""
				if at != inside { // what the machine of the underlay sends by way of the core gateway is not external
					rule = fmt.Sprintf("%s %s != %s ", family, ends[1-j], underlay)
				}
				name := fmt.Sprintf("%s%d", direction, i)
				table += fmt.Sprintf("counter %s { }; chain c_%[1]s { type filter hook %s priority 300; %s%s %s %s counter name %[1]s; }; ", name, hooks[j], rule, family, ends[j], a)
				all = append(all, watched{at: at, address: a.String(), direction: direction, scope: scope, name: name})
			}
		}
		_, err := at.Run(soon(s.t), "nft", "table inet passed { "+table+"}")
		require.NoError(s.t, err)
	}
	return all
}
