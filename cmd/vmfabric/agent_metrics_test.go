package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// aNode has one of everything that the metrics tell.
func aNode() measured {
	attach, gap, resent := fabric.NewHistogram(.01, .1), fabric.NewHistogram(.1, 1), fabric.NewHistogram(0, 10)
	for _, v := range []float64{.004, .01, .05, 3} {
		attach.Add(v)
	}
	gap.Add(.25)
	resent.Add(7)
	return measured{
		node: "node1", log: slog.New(slog.DiscardHandler),
		status: func(context.Context) (fabric.Status, error) {
			return fabric.Status{
				Problems: []string{"one", "two"}, Ports: 5, Live: 3, Draining: true,
				Sessions: []fabric.Session{{Peer: "rr1", Address: "10.10.0.11", State: "established", Advertised: 6}, {Peer: "rr2", Address: "10.10.0.12", State: "active"}},
				Sources:  []fabric.SourceStatus{{Name: "libvirt", Connected: true}}, Registry: &fabric.RegistryStatus{Kind: "etcd", Healthy: true},
				Diversions: []fabric.DiversionStatus{{VM: "web"}, {VM: "db", Ended: time.Unix(1, 0)}},
			}, nil
		},
		statistics: func(context.Context) fabric.Statistics {
			return fabric.Statistics{
				Guests:        map[fabric.GuestCondition]int{fabric.GuestLive: 3, fabric.GuestArriving: 1},
				Announcements: map[fabric.Family]int{fabric.IPv4: 3, fabric.IPv6: 4},
				Attach:        attach, AttachRefused: 2, AttachFailed: 1, MoveGap: gap, MoveResent: resent,
				Repairs: map[fabric.RepairKind]uint64{fabric.RepairPort: 9}, Moves: map[fabric.MoveKind]uint64{fabric.MovedIn: 1},
			}
		},
		requests: func() []fabric.RequestCount {
			return []fabric.RequestCount{{Protocol: fabric.DHCPv4, Answered: 8, Refused: 1}}
		},
		drops: func(context.Context) (map[string][]fabric.Drops, error) {
			return map[string][]fabric.Drops{"web_net0": {{Reason: fabric.DropSource, Packets: 3, Bytes: 300}}}, nil
		},
		traffic: func(context.Context) ([]fabric.Traffic, error) {
			return []fabric.Traffic{
				{
					VM: "web", Prefix: netip.MustParsePrefix("203.0.113.10/32"), Sent: fabric.ByScope{External: fabric.Count{Packets: 10, Bytes: 1000}},
					Received: fabric.ByScope{Internal: fabric.Count{Packets: 2, Bytes: 200}},
				},
				{VM: "web", Prefix: netip.MustParsePrefix("2001:db8:200::/64"), Sent: fabric.ByScope{Internal: fabric.Count{Packets: 1, Bytes: 60}}},
			}, nil
		},
	}
}

// scrape serves a node's metrics on a port of its own, and reads them.
func scrape(t testing.TB, m measured) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- serveMetrics(ctx, l, m.metrics, m.log) }()
	defer func() { cancel(); assert.NoError(t, <-done) }()
	reply, err := http.Get("http://" + l.Addr().String() + "/metrics")
	require.NoError(t, err)
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, reply.StatusCode, string(text))
	return string(text)
}

func TestAgentMetrics(t *testing.T) {
	text := scrape(t, aNode())
	for _, line := range []string{
		`vmfabric_healthy{node="node1"} 0`, `vmfabric_problems{node="node1"} 2`, `vmfabric_draining{node="node1"} 1`,
		`vmfabric_guests{condition="live",node="node1"} 3`, `vmfabric_guests{condition="arriving",node="node1"} 1`, `vmfabric_guests{condition="wired",node="node1"} 0`,
		`vmfabric_ports{node="node1",state="live"} 3`, `vmfabric_ports{node="node1",state="wired"} 2`,
		`vmfabric_session_up{address="10.10.0.11",node="node1",peer="rr1"} 1`, `vmfabric_session_up{address="10.10.0.12",node="node1",peer="rr2"} 0`,
		`vmfabric_session_advertised_prefixes{address="10.10.0.11",node="node1",peer="rr1"} 6`,
		`vmfabric_announcements{family="ipv6",node="node1"} 4`,
		`vmfabric_attach_seconds_bucket{node="node1",le="0.01"} 2`, `vmfabric_attach_seconds_bucket{node="node1",le="0.1"} 3`,
		`vmfabric_attach_seconds_bucket{node="node1",le="+Inf"} 4`, `vmfabric_attach_seconds_count{node="node1"} 4`, `vmfabric_attach_seconds_sum{node="node1"} 3.064`,
		`vmfabric_attach_errors_total{node="node1",reason="refused"} 2`, `vmfabric_repairs_total{kind="port",node="node1"} 9`,
		`vmfabric_moves_total{kind="in",node="node1"} 1`, `vmfabric_move_gap_seconds_bucket{node="node1",le="1"} 1`, `vmfabric_move_resent_packets_sum{node="node1"} 7`,
		`vmfabric_diversions{node="node1"} 1`, `vmfabric_source_connected{node="node1",source="libvirt"} 1`, `vmfabric_registry_healthy{kind="etcd",node="node1"} 1`,
		`vmfabric_dropped_packets_total{node="node1",port="web_net0",reason="source"} 3`,
		`vmfabric_guest_requests_total{node="node1",outcome="refused",protocol="dhcpv4"} 1`,
		`vmfabric_guest_bytes_total{address="203.0.113.10",direction="sent",node="node1",scope="external",vm="web"} 1000`,
		`vmfabric_guest_packets_total{address="203.0.113.10",direction="received",node="node1",scope="internal",vm="web"} 2`,
		`vmfabric_guest_bytes_total{address="2001:db8:200::/64",direction="sent",node="node1",scope="internal",vm="web"} 60`,
		"# TYPE vmfabric_guest_bytes_total counter", "# TYPE vmfabric_move_gap_seconds histogram",
	} {
		assert.Contains(t, text, line+"\n")
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	require.NoError(t, err)
	assert.Empty(t, problems)
}

// TestMetricsOfAPoorNode: what is not known is left out, and the rest is told.
func TestMetricsOfAPoorNode(t *testing.T) {
	m := aNode()
	m.status = func(context.Context) (fabric.Status, error) {
		return fabric.Status{}, errors.New("the speaker does not answer")
	}
	m.statistics = func(context.Context) fabric.Statistics { return fabric.Statistics{} }
	m.traffic = func(context.Context) ([]fabric.Traffic, error) { return nil, errors.ErrUnsupported }
	m.drops = func(context.Context) (map[string][]fabric.Drops, error) { return nil, errors.ErrUnsupported }
	text := scrape(t, m)
	assert.Contains(t, text, `vmfabric_healthy{node="node1"} 0`)
	for _, name := range []string{"vmfabric_guest_bytes_total", "vmfabric_session_up", "vmfabric_announcements", "vmfabric_registry_healthy"} {
		assert.NotContains(t, text, name)
	}
}

// TestTrafficText: the text of the traffic says what the encoder of the library says.
func TestTrafficText(t *testing.T) {
	count := fabric.ByScope{Internal: fabric.Count{Packets: 1, Bytes: 1 << 30}, External: fabric.Count{Packets: 1 << 40, Bytes: 3}}
	m := trafficMetrics{`a "node"`, []fabric.Traffic{
		{VM: "web", Prefix: netip.MustParsePrefix("203.0.113.10/32"), Sent: count},
		{VM: "web", Prefix: netip.MustParsePrefix("2001:db8:200::/64"), Received: count},
		{VM: "back\\slash \"and\"\nlines", Prefix: netip.MustParsePrefix("2001:db8::1/128"), Sent: count, Received: count},
	}}
	for range 500 { // more than is written at once
		m.traffic = append(m.traffic, m.traffic[0])
	}
	families, err := m.Gather()
	require.NoError(t, err)
	var encoded, written bytes.Buffer
	for _, f := range families {
		_, err := expfmt.MetricFamilyToText(&encoded, f)
		require.NoError(t, err)
	}
	require.NoError(t, m.writeText(&written))
	number := regexp.MustCompile(`(?m)[^ ]+$`) // 1e+09 and 1000000000 are one
	plain := func(text string) string {
		return number.ReplaceAllStringFunc(text, func(s string) string {
			v, err := strconv.ParseFloat(s, 64)
			if err != nil {
				return s
			}
			return strconv.FormatFloat(v, 'f', -1, 64)
		})
	}
	assert.Equal(t, plain(encoded.String()), plain(written.String()))
	require.ErrorIs(t, m.writeText(brokenWriter{}), io.ErrClosedPipe)
	written.Reset()
	require.NoError(t, trafficMetrics{node: "node1"}.writeText(&written))
	assert.Empty(t, written.String())
}

// brokenWriter writes nothing.
type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// TestMetricsByProtobuf: who asks for another format gets all in that.
func TestMetricsByProtobuf(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- serveMetrics(ctx, l, aNode().metrics, slog.New(slog.DiscardHandler)) }()
	defer func() { cancel(); require.NoError(t, <-ended) }()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.Addr().String()+"/metrics", nil)
	require.NoError(t, err)
	req.Header.Set("Accept", "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited")
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	d, seen := expfmt.NewDecoder(res.Body, expfmt.ResponseFormat(res.Header)), map[string]int{}
	for {
		var f dto.MetricFamily
		if err := d.Decode(&f); errors.Is(err, io.EOF) {
			break
		} else {
			require.NoError(t, err)
		}
		seen[f.GetName()] += len(f.GetMetric())
	}
	assert.Equal(t, 4*2, seen["vmfabric_guest_bytes_total"])
	assert.Equal(t, 1, seen["vmfabric_healthy"])
}

func TestMetricsAddress(t *testing.T) {
	c := fabric.Cluster{Metrics: netip.MustParseAddrPort("127.0.0.1:9178")}
	assert.Equal(t, "127.0.0.1:9178", agentFlags{}.metricsAddress(&c))
	assert.Equal(t, "[::1]:9", agentFlags{metrics: "[::1]:9"}.metricsAddress(&c))
	assert.Empty(t, agentFlags{metrics: "off"}.metricsAddress(&c))
	assert.Empty(t, agentFlags{}.metricsAddress(&fabric.Cluster{}))
}

// BenchmarkScrape scrapes the metrics of 5,000 guests of two addresses. What the kernel
// takes for its counters is BenchmarkTraffic of fabric/kernel.
func BenchmarkScrape(b *testing.B) {
	m := aNode()
	var all []fabric.Traffic
	for i := range 5000 {
		for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0x20, 0x01, 14: byte(i >> 8), 15: byte(i)})} {
			c := fabric.ByScope{Internal: fabric.Count{Packets: uint64(i), Bytes: 1 << 30}, External: fabric.Count{Packets: 12345678, Bytes: 1 << 40}}
			all = append(all, fabric.Traffic{VM: fmt.Sprint("guest", i), Prefix: fabric.HostPrefix(a), Sent: c, Received: c})
		}
	}
	m.traffic = func(context.Context) ([]fabric.Traffic, error) { return all, nil }
	for b.Loop() {
		text := scrape(b, m)
		require.Equal(b, 4*len(all), strings.Count(text, "\nvmfabric_guest_bytes_total{"))
	}
}
